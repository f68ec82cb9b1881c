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
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::plane::external_files;

/// Between two looks whether the mesh has an authority yet.
const LOOK: Duration = Duration::from_secs(1);
/// The row of the Secret without which there is no authority.
const ROOT_KEY: &str = "root.key";
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
                let bundles = injector::keep::bundles(client.clone(), service, roots.clone(), stop.clone());
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
        let mut said = false;
        loop {
            match injector::keep::version(&self.client).await {
                Ok(version) => return version,
                Err(error) if !said => tracing::warn!(error, "the cluster's version is not known yet; webhooks wait for it"),
                Err(_) => {}
            }
            said = true;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when there is an authority: the first holder of the lease makes it.
    async fn made(&self) {
        if self.external.files().is_some() {
            return;
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        while !matches!(within(CALL_MAX, api.get(SAFE)).await, Ok(secret) if rows(&secret).contains_key(ROOT_KEY)) {
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
        }
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

    fn has_news(&self) -> bool {
        self.renewed().unwrap_or_else(|error| {
            tracing::warn!(error, "the webhook's authority cannot be read; its former certificate stays in use");
            false
        })
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
