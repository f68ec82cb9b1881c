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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::UNIX_EPOCH;

    use proto::mesh::Answer;
    use proto::names::Mode;

    use super::*;
    use crate::clock::Clock;
    use crate::publish::board::Seated;
    use crate::publish::peer::{Claim, Dialect, Entrance, replica_key};
    use crate::world::Kind;
    use crate::world::acme::AcmeShown;

    const SHOWN: &str = "acme/http/a.example/t";

    /// A proxy of Gateway `shop/edge` that shows the proof when it has been asked so often.
    fn replica(board: &Arc<Board>, name: &str, after: usize) -> (Seated, Arc<AtomicUsize>) {
        let claim = Claim {
            client: Dialect::Meshwright,
            mode: Mode::Edge,
            namespace: "shop".to_owned(),
            workload: "edge".to_owned(),
            instance: "edge".to_owned(),
            replica: name.to_owned(),
        };
        let seat = board.arrive(claim, Entrance::Tls, String::new()).unwrap();
        let key = replica_key("shop", "edge", name);
        let (_, mut commands) = board.correspond(&key, "", 1);
        let (board, asked) = (board.clone(), Arc::<AtomicUsize>::default());
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                let shows = counted.fetch_add(1, Ordering::Relaxed) >= after;
                let json = if shows { format!("[\"acme/http/other/t\", \"{SHOWN}\"]") } else { "[]".to_owned() };
                board.answered(&key, Answer { id: command.id, json, ..Answer::default() });
            }
        });
        (seat, asked)
    }

    /// Shows a proof; what came of it, and after how long.
    async fn shown(board: Arc<Board>) -> (Result<(), String>, Duration) {
        let (sender, mut proofs) = mpsc::channel::<Proof>(1);
        let driver = tokio::spawn(async move { proofs.recv().await.unwrap().told.send(()) });
        let proof =
            AcmeProof { gateways: vec![("shop".into(), "edge".into())], name: SHOWN.into(), shown: AcmeShown::Answer("t.hash".into()) };
        let began = Instant::now();
        let came = Proving { board, proofs: sender }.show(&ObjectKey::new(Kind::Secret, "shop", "acme-a.example"), proof).await;
        driver.await.unwrap().unwrap();
        (came, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn every_replica_shows_a_proof_before_the_authority_is_told() {
        // Aim: whichever of a Gateway's proxies the authority meets answers: the order waits for the last of them, and asks none again that has said
        // so; after 10 s it goes on by those that have it; where none has, nothing is asked of the authority, and the Gateway is named.
        let (board, _events) = Board::new(Clock::new(|| UNIX_EPOCH));
        let (none, _) = shown(board.clone()).await;
        assert!(none.unwrap_err().contains("no proxy of Gateway shop/edge"));
        let (_quick, asked) = replica(&board, "a", 0);
        let (_slow, late) = replica(&board, "b", 20);
        let (came, took) = shown(board.clone()).await;
        assert_eq!((came, asked.load(Ordering::Relaxed), late.load(Ordering::Relaxed)), (Ok(()), 1, 21));
        assert!(took >= 20 * ASK_EVERY && took < TAKEN_MAX, "{took:?}");
        let (_never, _) = replica(&board, "c", usize::MAX);
        let (came, took) = shown(board).await;
        assert!(came.is_ok() && took >= TAKEN_MAX, "{took:?}");
    }
}
