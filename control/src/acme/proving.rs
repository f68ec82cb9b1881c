//! Shows proofs to authorities by way of the proxies: an order goes on when those of its Gateways have what they are to show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use proto::mesh::{DumpCommand, command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::publish::board::Board;
use crate::world::acme::AcmeProof;
use crate::world::{Name, ObjectKey};

/// How long proxies have to take a proof over. Then the order goes on by those that have it, and fails where none has.
const TAKEN_MAX: Duration = Duration::from_secs(10);
/// How often they are asked, and how long one may take to answer.
const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A proof that is to be told to proxies, and who waits for that.
pub(super) struct Proof {
    pub secret: ObjectKey,
    pub proof: AcmeProof,
    pub told: oneshot::Sender<()>,
}

/// See the module.
#[derive(Clone)]
pub struct Proving {
    pub(super) board: Arc<Board>,
    pub(super) proofs: mpsc::Sender<Proof>,
}

impl Proving {
    /// Returns when proxies show it.
    ///
    /// # Errors
    /// No proxy of some Gateway does.
    pub(super) async fn show(&self, secret: &ObjectKey, proof: AcmeProof) -> Result<(), String> {
        let (gateways, name) = (proof.gateways.clone(), proof.name.clone());
        let (told, heard) = oneshot::channel();
        let stopping = || "the control plane is stopping".to_owned();
        self.proofs.send(Proof { secret: secret.clone(), proof, told }).await.map_err(|_| stopping())?;
        heard.await.map_err(|_| stopping())?;
        self.taken(&gateways, &name).await
    }

    /// Waits until every connected proxy of these Gateways says that it shows what has that name.
    async fn taken(&self, gateways: &[Name], name: &str) -> Result<(), String> {
        let (until, mut have) = (Instant::now() + TAKEN_MAX, BTreeSet::new());
        loop {
            let keys = |gateway: &Name| self.board.gateway_proxies(&gateway.0, &gateway.1);
            let all: Vec<(usize, String)> =
                gateways.iter().enumerate().flat_map(|(number, gateway)| keys(gateway).into_iter().map(move |key| (number, key))).collect();
            let asked =
                all.iter().filter(|(_, key)| !have.contains(key)).map(|(_, key)| async { (key.clone(), self.shows(key, name).await) });
            let answers = join_all(asked).await;
            have.extend(answers.into_iter().filter_map(|(key, shows)| shows.then_some(key)));
            let lacks: Vec<&str> = all.iter().filter(|(_, key)| !have.contains(key)).map(|(_, key)| key.as_str()).collect();
            let without = |number: &usize| !all.iter().any(|(of, key)| of == number && have.contains(key));
            let bare: Vec<&Name> = (0..gateways.len()).filter(|number| without(number)).map(|number| &gateways[number]).collect();
            if lacks.is_empty() && bare.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                if let Some(gateway) = bare.first().filter(|_| bare.len() == gateways.len()) {
                    return Err(format!("no proxy of Gateway {}/{} is connected that could prove the name", gateway.0, gateway.1));
                }
                tracing::warn!(
                    lacks = lacks.join(", "),
                    name,
                    "some proxies have not said that they prove a name; the order goes on without them"
                );
                return Ok(());
            }
            sleep(ASK_EVERY).await;
        }
    }

    async fn shows(&self, key: &str, name: &str) -> bool {
        let question = command::Kind::Dump(DumpCommand { kind: "challenges".to_owned() });
        let answer = self.board.ask(key, question, ANSWER_MAX).await;
        let names: Option<Vec<String>> = answer.ok().and_then(|json| serde_json::from_str(&json).ok());
        names.is_some_and(|names| names.iter().any(|known| known == name))
    }
}
