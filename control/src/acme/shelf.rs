//! Where certificates and what is remembered of their orders are kept: in files mode all of it is the book's, and a certificate is an object that
//! is applied; in a cluster it is a Secret of the API server, which every replica reads as any other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use proto::annotations::{ACME, ACME_ON};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::decide::Track;
use crate::publish::board::{Board, Errand};
use crate::store::{Page, Row, Store};
use crate::world::ObjectKey;

/// One call of an API server.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Who writes, as an API server notes it.
const FIELD_MANAGER: &str = "meshwright-acme";
/// What applied certificates are said to come from.
const FILE: &str = "acme";

/// What outlives the process beside the certificates.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct KeptAcme {
    /// Accounts at authorities, with their keys.
    pub accounts: BTreeMap<String, Value>,
    /// By the Secret of each name.
    pub tracks: Vec<(ObjectKey, Track)>,
}

/// See the module.
pub(super) struct Shelf {
    pub board: Arc<Board>,
    pub store: Arc<Store>,
    /// The way to the API server; `None`: files.
    pub cluster: Option<kube::Client>,
}

impl Shelf {
    /// What was kept; what cannot be read is begun anew.
    pub(super) async fn read(&self) -> KeptAcme {
        let store = self.store.clone();
        match spawn_blocking(move || store.load(Row::Acme)).await {
            Ok(Ok(kept)) => kept.unwrap_or_default(),
            Ok(Err(error)) => {
                tracing::error!(%error, "what is known of ordered certificates cannot be read; it is begun anew");
                KeptAcme::default()
            }
            Err(_) => KeptAcme::default(),
        }
    }

    /// Keeps it. What is not taken is tried again with the next change; the store says so by itself.
    pub(super) async fn write(&self, kept: &KeptAcme) {
        let (mut page, store) = (Page::default(), self.store.clone());
        page.put(Row::Acme, kept);
        // What becomes of it is told by the store.
        let _ = spawn_blocking(move || store.write(page)).await;
    }

    /// Puts a certificate's Secret (JSON) in force.
    ///
    /// # Errors
    /// Why it was not taken, with the remedy.
    pub(super) async fn put(&self, secret: &ObjectKey, text: &str) -> Result<(), String> {
        let Some(client) = &self.cluster else {
            let (reply, answer) = oneshot::channel();
            let documents = vec![(FILE.to_owned(), text.to_owned())];
            let stopping = "the control plane is stopping";
            if !self.board.send(Errand::Apply { documents, delete: false, reply }).await {
                return Err(stopping.to_owned());
            }
            return answer.await.map_err(|_| stopping.to_owned())?.map(|_| ());
        };
        let document: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        apply(client, secret, document, false).await
    }

    /// Whether a certificate's Secret would be taken.
    ///
    /// # Errors
    /// Why not, with the remedy.
    pub(super) async fn may_put(&self, secret: &ObjectKey) -> Result<(), String> {
        let Some(client) = &self.cluster else { return Ok(()) };
        apply(client, secret, document(secret, "", ""), true).await
    }
}

/// The Secret of a certificate.
pub(super) fn document(secret: &ObjectKey, chain: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": secret.name, "namespace": secret.namespace, "labels": {ACME: ACME_ON}},
        "data": {"tls.crt": STANDARD.encode(chain), "tls.key": STANDARD.encode(key)},
    })
}

/// Never by force: whoever else has written the Secret is told.
async fn apply(client: &kube::Client, secret: &ObjectKey, document: Value, dry_run: bool) -> Result<(), String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &secret.namespace);
    let params = PatchParams { dry_run, ..PatchParams::apply(FIELD_MANAGER) };
    match timeout(CALL_MAX, api.patch(&secret.name, &params, &Patch::Apply(document))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(format!(
            "the control plane may not write Secrets in namespace {}: bind the Role of docs/edge-acme.md there",
            secret.namespace
        )),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(format!(
            "{secret} is somebody else's by now ({}): delete it, or remove its label {ACME} to keep it as your own",
            status.message
        )),
        Ok(Err(error)) => Err(format!("{secret} cannot be written: {error}")),
        Err(_) => Err(format!("{secret} cannot be written: the API server does not answer")),
    }
}
