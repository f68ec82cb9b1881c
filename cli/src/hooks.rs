//! The admission webhooks of a cluster's control plane. Every replica serves them for as long as its process runs, whether it holds the lease
//! or stands by; only the holder writes what API servers and pods are to believe.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a door: the port that API servers call, and the machine's clock")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::client::{CALL_MAX, Client, within};
use apiserver::keep::Secret;
use certs_ca::store::{Vault, VaultChanges, VaultRows};
use certs_ca::{Ca, Policy, ServerNames};
use control::app::{InTurn, SAFE};
use control::settings::ExternalArgs;
use control::world::World;
use injector::SidecarSettings;
use injector::bundle::HookService;
use injector::serving::{Issued, Issuer};
use injector::webhook::Webhook;
use kube::Api;
use rustls_pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::plane::external_files;

/// Webhooks are served for so long after a stop: API servers hear a little later than the pod itself that it ends, and a pod whose
/// admission nobody answers is not made.
pub const LINGER: Duration = Duration::from_secs(5);
/// Between two looks whether the mesh has an authority yet.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said what is waited for while that stays the same.
const REMIND: Duration = Duration::from_secs(60);
/// The row of the Secret without which there is no authority.
const ROOT_KEY: &str = "root.key";
/// The ClusterRole of the control plane, as `install` and the chart name it.
pub const ROLE: &str = "meshwright-control";
/// What the authority's copy writes for itself lies here, below the data folder.
const FOLDER: &str = "webhook";

/// What the webhooks of one replica need.
pub struct Hooks {
    /// The way to the API server.
    pub client: Client,
    /// Where the authority's keys lie.
    pub namespace: String,
    /// Where they are served.
    pub listen: SocketAddr,
    /// The Service by which API servers reach them.
    pub service: HookService,
    /// An authority of the user's own.
    pub external: ExternalArgs,
    /// The data folder.
    pub data_dir: PathBuf,
    /// What sidecars have in common; its version of Kubernetes only where `version_told`.
    pub sidecar: SidecarSettings,
    /// The version was given by a flag, and is not asked for.
    pub version_told: bool,
    /// The process is about to end: they are still served, and not ready, so that no more is sent here.
    pub leaving: CancellationToken,
}

/// Roots by which the webhooks are believed now, PEM; empty: not known yet.
pub type Believed = watch::Sender<String>;

impl Hooks {
    /// What the holder of the lease does for them: it tells API servers and namespaces the roots.
    pub fn in_turn(&self, believed: &Believed) -> InTurn {
        let (client, service, believed) = (self.client.clone(), self.service.clone(), believed.clone());
        Arc::new(move |stop| {
            let (client, service, roots) = (client.clone(), service.clone(), believed.subscribe());
            Box::pin(async move {
                let bundles = injector::keep::bundles(client.clone(), (service, ROLE), roots.clone(), stop.clone());
                tokio::join!(bundles, injector::keep::root_maps(client, roots, stop));
            })
        })
    }

    /// Serves them until `stop`, from when the mesh has an authority and the cluster has said its version.
    ///
    /// # Errors
    /// The port cannot be had.
    pub async fn serve(self, worlds: watch::Receiver<Option<World>>, believed: Believed, stop: CancellationToken) -> anyhow::Result<()> {
        let mut sidecar = self.sidecar.clone();
        let ready = async {
            if !self.version_told {
                sidecar.kubernetes = self.version().await;
            }
            self.made().await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = ready => {}
        }
        let bound = TcpListener::bind(self.listen).await;
        let listener =
            bound.with_context(|| format!("cannot listen on {} for webhooks; choose another with --webhook-listen", self.listen))?;
        tracing::info!(listen = %self.listen, kubernetes = %sidecar.kubernetes, "the admission webhooks are served");
        let now = control::clock::Clock::new(std::time::SystemTime::now);
        let (known, leaving) = (worlds.clone(), self.leaving.clone());
        let unready = move || {
            if leaving.is_cancelled() {
                return Some("it is about to end".to_owned());
            }
            known.borrow().is_none().then(|| "the cluster has not been read yet".to_owned())
        };
        let webhook = Webhook::new(sidecar).with_analyzer(admission::analyzer(worlds, now));
        admission::open(listener, Arc::new(self.issuer()), webhook, Arc::new(unready), believed, stop).await
    }

    async fn version(&self) -> injector::KubernetesVersion {
        let mut waiting = Waiting::default();
        loop {
            match injector::keep::version(&self.client).await {
                Ok(version) => return version,
                Err(error) => waiting.say(&format!("the cluster's version is not known yet: {error}")),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when there is an authority: the first holder of the lease makes it.
    async fn made(&self) {
        if self.external.files().is_some() {
            return;
        }
        let (api, mut waiting) = (Api::<Secret>::namespaced(self.client.clone(), &self.namespace), Waiting::default());
        loop {
            match within(CALL_MAX, api.get_opt(SAFE)).await {
                Ok(Some(secret)) if rows(&secret).contains_key(ROOT_KEY) => return,
                Ok(_) => {
                    waiting.say(&format!("Secret {}/{SAFE} holds no authority yet: the first holder of the lease makes it", self.namespace))
                }
                Err(error) => waiting.say(&format!("Secret {}/{SAFE} cannot be read: {error}", self.namespace)),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn issuer(&self) -> Copied {
        let HookService { namespace, name } = &self.service;
        Copied {
            api: Api::namespaced(self.client.clone(), &self.namespace),
            place: format!("Secret {}/{SAFE}", self.namespace),
            external: self.external.clone(),
            folder: self.data_dir.join(FOLDER),
            names: ServerNames {
                dns: vec![format!("{name}.{namespace}.svc"), format!("{name}.{namespace}.svc.cluster.local"), name.clone()],
                addresses: Vec::new(),
            },
            runtime: Handle::current(),
            open: Mutex::default(),
            trouble: Mutex::default(),
        }
    }
}

/// What the webhooks wait for, as it was told: when it changes, and now and then.
#[derive(Default)]
struct Waiting(Option<(String, Instant)>);

impl Waiting {
    fn say(&mut self, why: &str) {
        if self.0.as_ref().is_some_and(|(told, at)| told == why && at.elapsed() < REMIND) {
            return;
        }
        tracing::warn!("the admission webhooks are not served yet: {why}");
        self.0 = Some((why.to_owned(), Instant::now()));
    }
}

/// Certificates by a copy of the mesh's authority, read again whenever its Secret has changed. It signs for this webhook only, and what it
/// would write down is forgotten.
struct Copied {
    api: Api<Secret>,
    place: String,
    external: ExternalArgs,
    folder: PathBuf,
    names: ServerNames,
    runtime: Handle,
    /// With the version of the Secret that it was read from.
    open: Mutex<Option<(String, Ca)>>,
    /// Why it cannot be read now, as it was told.
    trouble: Mutex<Option<String>>,
}

impl Copied {
    /// Reads the Secret, and opens the authority anew if it is another one than before; whether it is.
    fn renewed(&self) -> Result<bool, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let files = external_files(&self.external);
        if let (Some(_), Some((_, ca))) = (&files, open.as_ref()) {
            return ca.refresh().map_err(|error| error.to_string());
        }
        let (version, rows) = match files {
            Some(_) => Default::default(),
            None => {
                let secret = self.runtime.block_on(within(CALL_MAX, self.api.get(SAFE))).map_err(|error| error.to_string())?;
                (secret.metadata.resource_version.clone().unwrap_or_default(), rows(&secret))
            }
        };
        if open.as_ref().is_some_and(|(known, _)| *known == version) {
            return Ok(false);
        }
        if files.is_none() && !rows.contains_key(ROOT_KEY) {
            return Err(format!("{} holds no authority", self.place));
        }
        // Two cannot have the folder open.
        *open = None;
        let vault = Box::new(Paper { place: self.place.clone(), rows });
        let ca = Ca::open_shared(&self.folder, vault, files.as_ref(), Policy::default(), Arc::new(OffsetDateTime::now_utc));
        *open = Some((version, ca.map_err(|error| error.to_string())?));
        Ok(true)
    }

    fn by<T>(&self, work: impl FnOnce(&Ca) -> Result<T, String>) -> Result<T, String> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, ca) = open.as_ref().ok_or_else(|| format!("{} could not be read yet", self.place))?;
        work(ca)
    }
}

impl Issuer for Copied {
    fn issue(&self) -> Result<Issued, String> {
        self.by(|ca| {
            let seat = ca.seat(&self.names).map_err(|error| error.to_string())?;
            Issued::read(seat.chain, PrivatePkcs8KeyDer::from(seat.key.to_vec()).into())
        })
    }

    fn roots(&self) -> Result<String, String> {
        self.by(|ca| Ok(ca.bundle_pem()))
    }

    /// Asked every few seconds: the same trouble is told once, and its end.
    fn has_news(&self) -> bool {
        let renewed = self.renewed();
        let mut told = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &renewed {
            Err(error) if told.as_ref() != Some(error) => {
                tracing::warn!(error, "the webhook's authority cannot be read; its former certificate stays in use");
            }
            Ok(_) if told.is_some() => tracing::info!("the webhook's authority is read again"),
            _ => {}
        }
        *told = renewed.as_ref().err().cloned();
        renewed.unwrap_or_default()
    }
}

/// Rows that were read once.
struct Paper {
    place: String,
    rows: VaultRows,
}

impl Vault for Paper {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn load(&self) -> Result<VaultRows, String> {
        Ok(self.rows.clone())
    }

    /// The holder of the lease writes; a copy's own issuing certificate is below the same root, and nobody else's business.
    fn keep(&self, changes: VaultChanges) -> Result<(), String> {
        drop(changes);
        Ok(())
    }
}

fn rows(secret: &Secret) -> VaultRows {
    secret.data.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone().into())).collect()
}

#[cfg(test)]
mod tests {
    use apiserver::testing::{Fake, Mood};
    use serde_json::{Value, json};
    use tokio::runtime::Runtime;

    use super::*;

    const PLACE: &str = "/api/v1/namespaces/mesh/secrets/meshwright-ca";

    /// Lines of the log, of this thread.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        /// How many say that, so far.
        fn count(&self, word: &str) -> usize {
            String::from_utf8_lossy(&self.0.lock().unwrap()).lines().filter(|line| line.contains(word)).count()
        }

        fn listen(&self) -> tracing::subscriber::DefaultGuard {
            let lines = self.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish();
            tracing::subscriber::set_default(subscriber)
        }
    }

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn hooks(fake: &Fake, folder: &std::path::Path) -> Hooks {
        Hooks {
            client: fake.client(),
            namespace: "mesh".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            service: HookService { namespace: "mesh".to_owned(), name: "hook".to_owned() },
            external: ExternalArgs::default(),
            data_dir: folder.to_owned(),
            sidecar: SidecarSettings::default(),
            version_told: true,
            leaving: CancellationToken::new(),
        }
    }

    /// A Secret as the first holder leaves it.
    fn secret() -> Value {
        struct Kept(Arc<Mutex<VaultRows>>);
        impl Vault for Kept {
            fn place(&self) -> String {
                "here".to_owned()
            }
            fn load(&self) -> Result<VaultRows, String> {
                Ok(self.0.lock().unwrap().clone())
            }
            fn keep(&self, changes: VaultChanges) -> Result<(), String> {
                for (name, value) in changes {
                    match value {
                        Some(value) => drop(self.0.lock().unwrap().insert(name, value)),
                        None => drop(self.0.lock().unwrap().remove(&name)),
                    }
                }
                Ok(())
            }
        }
        let (kept, folder) = (Arc::new(Mutex::new(VaultRows::default())), tempfile::tempdir().unwrap());
        let vault = Box::new(Kept(Arc::clone(&kept)));
        drop(Ca::open_shared(folder.path(), vault, None, Policy::default(), Arc::new(OffsetDateTime::now_utc)).unwrap());
        let rows = kept.lock().unwrap().iter().map(|(name, value)| (name.clone(), k8s_openapi::ByteString(value.to_vec()))).collect();
        let secret = Secret { data: Some(rows), ..Secret::default() };
        let mut object = serde_json::to_value(secret).unwrap();
        object["metadata"] = json!({"name": "meshwright-ca", "namespace": "mesh"});
        object
    }

    #[test]
    fn a_copy_of_the_authority_follows_its_secret() {
        // Aim: a copy signs below the root of the Secret; while that cannot be read the copy stays in use, which is told once for each cause,
        // and so is its end; another version is news.
        let (runtime, fake, folder, lines) = (Runtime::new().unwrap(), Fake::default(), tempfile::tempdir().unwrap(), Lines::default());
        let _listening = lines.listen();
        let _inside = runtime.enter();
        let copied = hooks(&fake, folder.path()).issuer();
        assert!(!copied.has_news() && !copied.has_news() && copied.issue().is_err());
        assert_eq!(lines.count("cannot be read"), 1, "there is no Secret");
        fake.state().put(PLACE, secret());
        assert!(copied.has_news() && !copied.has_news());
        assert_eq!(lines.count("is read again"), 1);
        let (roots, issued) = (copied.roots().unwrap(), copied.issue().unwrap());
        assert!(roots.contains("BEGIN CERTIFICATE") && issued.not_after > issued.not_before);

        for code in [503, 403] {
            fake.state().mood = Mood::Says(code);
            (0..3).for_each(|_| assert!(!copied.has_news()));
            assert_eq!((copied.roots().unwrap() == roots, copied.issue().is_ok()), (true, true));
        }
        assert_eq!(lines.count("cannot be read"), 3);
        fake.state().mood = Mood::Well;
        let same = fake.state().objects[PLACE].clone();
        fake.state().put(PLACE, same);
        assert!(copied.has_news(), "another version");
        assert_eq!((copied.roots().unwrap() == roots, lines.count("is read again")), (true, 2));
        fake.state().put(PLACE, json!({"metadata": {"name": "meshwright-ca"}, "data": {}}));
        assert!(!copied.has_news() && copied.issue().is_ok(), "an emptied Secret is no authority");
        assert_eq!(lines.count("holds no authority"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_what_webhooks_wait_for() {
        // Aim: at once, again when the cause is another, and once a minute; an authority ends it.
        let (fake, folder, lines) = (Fake::default(), tempfile::tempdir().unwrap(), Lines::default());
        let _listening = lines.listen();
        let hooks = hooks(&fake, folder.path());
        let made = hooks.made();
        tokio::pin!(made);
        assert!(tokio::time::timeout(Duration::from_secs(150), &mut made).await.is_err());
        assert_eq!((lines.count("not served yet"), lines.count("the first holder of the lease makes it")), (3, 3));
        fake.state().mood = Mood::Says(403);
        assert!(tokio::time::timeout(Duration::from_secs(10), &mut made).await.is_err());
        assert_eq!((lines.count("not served yet"), lines.count("cannot be read")), (4, 1));
        fake.state().mood = Mood::Well;
        fake.state().put(PLACE, json!({"metadata": {"name": "meshwright-ca"}, "data": {"root.key": "eA=="}}));
        made.await;
        assert_eq!(lines.count("not served yet"), 4);
    }
}
