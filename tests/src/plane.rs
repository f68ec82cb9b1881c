//! A control plane with its authority on a host of a `Wire`: the binary's own code behind doors of our own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use cli::plane::means;
use control::app::{Means, assemble};
use control::serve::listen::{Io, virtual_door};
use control::settings::{ControlArgs, ExternalArgs};
use hyper_util::rt::TokioIo;
use proto::mesh::control_client::ControlClient;
use proto::mesh::{
    ApplyRequest, CanariesRequest, Document, FindRequest, GetRequest, RootsRequest, RotateRootRequest, StatRequest, TapNews, TapRequest,
    TokenRequest,
};
use proxy::io::{Clock, Network};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Port of xDS and certificates.
pub const CONTROL_PORT: u16 = 15012;
/// Connections handed to a door and not yet taken.
const HANDED_MAX: usize = 64;
/// Bytes in a pipe to the local door.
const PIPE_BYTES: usize = 64 << 10;
/// Longest wait of a command.
const PATIENCE: Duration = Duration::from_secs(60);

type Door = mpsc::Sender<(Box<dyn Io>, SocketAddr)>;

/// Where a control plane keeps its things, and where it is.
#[derive(Clone, Debug)]
pub struct Plane {
    /// Folder of manifests.
    pub manifests: PathBuf,
    /// Data folder; outlives a restart.
    pub data: PathBuf,
    /// Its host.
    pub ip: IpAddr,
    /// The local door of the one that runs now.
    desk: Desk,
}

/// The way in for commands; follows restarts. Clones share it.
#[derive(Clone, Default)]
pub struct Desk(Arc<Mutex<Option<Door>>>);

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

impl Plane {
    /// Not running yet.
    pub fn new(manifests: &Path, data: &Path, ip: IpAddr) -> Self {
        Self { manifests: manifests.to_owned(), data: data.to_owned(), ip, desk: Desk::default() }
    }

    /// Where proxies find it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, CONTROL_PORT)
    }

    /// The way in for commands.
    pub fn desk(&self) -> Desk {
        self.desk.clone()
    }

    fn args(&self) -> ControlArgs {
        ControlArgs {
            config: Some(self.manifests.clone()),
            kubernetes: false,
            kubeconfig: None,
            data_dir: self.data.clone(),
            listen: self.address(),
            plaintext_xds: None,
            api_socket: None,
            metrics_listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 15014),
            service_cidr: Vec::new(),
            instance_cidr: Vec::new(),
            bridge_address: None,
            names: Vec::new(),
            ca_file: None,
            external: ExternalArgs::default(),
            otlp_endpoint: None,
            otlp_protocol: control::world::telemetry::OtlpProtocol::Grpc,
            log_level: "info".to_owned(),
        }
    }

    /// Runs until dropped or until one of its tasks fails.
    ///
    /// # Errors
    /// What failed.
    pub async fn run(&self, network: Network, clock: Clock) -> anyhow::Result<()> {
        self.run_with(network, self.means(clock)?).await
    }

    /// What it is given when it runs by that clock: its authority is the one of its data folder.
    ///
    /// # Errors
    /// The data folder cannot be used.
    pub fn means(&self, clock: Clock) -> anyhow::Result<Means> {
        means(&self.data, &self.args().external, clock)
    }

    /// Runs by these means until dropped or until one of its tasks fails.
    ///
    /// # Errors
    /// What failed.
    pub async fn run_with(&self, network: Network, means: Means) -> anyhow::Result<()> {
        let args = self.args();
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let mut plane = assemble(&args, means, &stop)?;
        let (remote, remote_given) = mpsc::channel(HANDED_MAX);
        let (local, local_given) = mpsc::channel(HANDED_MAX);
        let doors = [(plane.remote, virtual_door(remote_given, Some(plane.tls))), (plane.local, virtual_door(local_given, None))];
        for (routes, incoming) in doors {
            let stop = stop.clone();
            plane.tasks.spawn(async move { control::serve::serve(routes, incoming, stop).await.map_err(anyhow::Error::from) });
        }
        *self.desk.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(local);
        let mut listening = network.listen(self.address()).await.context("the control plane's port")?;
        plane.tasks.spawn(async move {
            loop {
                let accepted = listening.accept().await?;
                let given = remote.send((Box::new(accepted.socket), accepted.peer)).await;
                anyhow::ensure!(given.is_ok(), "the door is closed");
            }
        });
        match plane.tasks.join_next().await {
            Some(ended) => ended?.context("a task of the control plane ended"),
            None => bail!("the control plane has no tasks"),
        }
    }
}

impl Desk {
    async fn channel(&self) -> anyhow::Result<Channel> {
        let door = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().context("the control plane does not run")?;
        let connector = tower::service_fn(move |_: http::Uri| {
            let door = door.clone();
            async move {
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                let from = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
                door.send((Box::new(far), from)).await.map_err(|_| std::io::Error::other("the control plane is gone"))?;
                Ok::<_, std::io::Error>(TokioIo::new(near))
            }
        });
        Ok(Endpoint::from_static("http://desk").connect_with_connector(connector).await?)
    }

    async fn client(&self) -> anyhow::Result<ControlClient<Channel>> {
        Ok(ControlClient::new(self.channel().await?))
    }

    /// `apply --wait -o json`.
    ///
    /// # Errors
    /// The control plane does not run, or the change did not become live.
    pub async fn apply(&self, text: &str) -> anyhow::Result<Value> {
        self.change(text, false, true).await
    }

    /// `delete --wait -o json`.
    ///
    /// # Errors
    /// The control plane does not run, or the change did not become live.
    pub async fn delete(&self, text: &str) -> anyhow::Result<Value> {
        self.change(text, true, true).await
    }

    /// `apply -o json`: takes the change, and does not wait for the proxies.
    ///
    /// # Errors
    /// The control plane does not run, or refuses.
    pub async fn submit(&self, text: &str) -> anyhow::Result<Value> {
        self.change(text, false, false).await
    }

    /// `delete -o json`: takes the change, and does not wait for the proxies.
    ///
    /// # Errors
    /// The control plane does not run, or refuses.
    pub async fn withdraw(&self, text: &str) -> anyhow::Result<Value> {
        self.change(text, true, false).await
    }

    async fn change(&self, text: &str, delete: bool, wait: bool) -> anyhow::Result<Value> {
        let documents = vec![Document { path: "test.yaml".to_owned(), text: text.to_owned() }];
        let timeout = prost_types::Duration { seconds: 60, nanos: 0 };
        let request = ApplyRequest { documents, delete, wait, timeout: Some(timeout) };
        let mut progress = self.client().await?.apply(request).await?.into_inner();
        while let Some(message) = progress.message().await? {
            if message.done {
                if !message.ok {
                    bail!("not live: {}", message.json);
                }
                return Ok(serde_json::from_str(&message.json)?);
            }
        }
        bail!("the control plane hung up")
    }

    /// `ca rotate-root -o json`, with `--no-wait` where it is not waited for.
    ///
    /// # Errors
    /// The control plane does not run or refuses, or the rotation stops.
    pub async fn rotate(&self, wait: bool) -> anyhow::Result<Value> {
        self.rotation(RotateRootRequest { wait, ..Default::default() }).await
    }

    /// `ca rotate-root --plan -o json`.
    ///
    /// # Errors
    /// The control plane does not run.
    pub async fn plan(&self) -> anyhow::Result<Value> {
        self.rotation(RotateRootRequest { plan: true, ..Default::default() }).await
    }

    async fn rotation(&self, request: RotateRootRequest) -> anyhow::Result<Value> {
        let mut progress = self.client().await?.rotate_root(request).await?.into_inner();
        while let Some(message) = progress.message().await? {
            if message.done {
                anyhow::ensure!(message.ok, "not rotated: {}", message.json);
                return Ok(serde_json::from_str(&message.json)?);
            }
        }
        bail!("the control plane hung up")
    }

    /// `ca show -o json`.
    ///
    /// # Errors
    /// The control plane does not run.
    pub async fn roots(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.client().await?.roots(RootsRequest {}).await?.into_inner().json)?)
    }

    /// `canary status -o json` of all of them.
    ///
    /// # Errors
    /// The control plane does not run.
    pub async fn canaries(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.client().await?.canaries(CanariesRequest::default()).await?.into_inner().json)?)
    }

    /// `get KIND -o json`.
    ///
    /// # Errors
    /// The control plane does not run or refuses.
    pub async fn get(&self, kind: &str) -> anyhow::Result<Value> {
        let request = GetRequest { kind: kind.to_owned(), ..Default::default() };
        Ok(serde_json::from_str(&self.client().await?.get(request).await?.into_inner().json)?)
    }

    /// `tap`.
    ///
    /// # Errors
    /// The control plane does not run or refuses.
    pub async fn tap(&self, request: TapRequest) -> anyhow::Result<Streaming<TapNews>> {
        Ok(self.client().await?.tap(request).await?.into_inner())
    }

    /// `stat VIEW -o json` over the last 30 s.
    ///
    /// # Errors
    /// The control plane does not run or refuses.
    pub async fn stat(&self, view: &str) -> anyhow::Result<Value> {
        let window = Some(prost_types::Duration { seconds: 30, nanos: 0 });
        let request = StatRequest { view: view.to_owned(), window, ..Default::default() };
        Ok(serde_json::from_str(&self.client().await?.stat(request).await?.into_inner().json)?)
    }

    /// `explain ID -o json`.
    ///
    /// # Errors
    /// The control plane does not run or refuses.
    pub async fn find(&self, id: &str) -> anyhow::Result<Value> {
        let answer = self.client().await?.find(FindRequest { id: id.to_owned() }).await?.into_inner();
        anyhow::ensure!(answer.note.is_empty(), "{}", answer.note);
        Ok(serde_json::from_str(&answer.json)?)
    }

    /// `token create`, tried again while the manifests are not read yet.
    ///
    /// # Errors
    /// There is no such workload within a minute.
    pub async fn token(&self, workload: &str) -> anyhow::Result<String> {
        let ask = async || -> anyhow::Result<String> {
            let request = TokenRequest { workload: workload.to_owned(), ..Default::default() };
            Ok(self.client().await?.create_token(request).await?.into_inner().token)
        };
        patiently(ask).await
    }

    /// Epoch of each proxy that is connected, by instance.
    ///
    /// # Errors
    /// The control plane does not run or refuses.
    pub async fn epochs(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let proxies = self.get("proxies").await?;
        let row = |proxy: &Value| (proxy["instance"].as_str().unwrap_or_default().to_owned(), proxy["epoch"].as_u64().unwrap_or_default());
        Ok(proxies.as_array().into_iter().flatten().map(row).collect())
    }
}

/// Tries again until it works, for a minute.
///
/// # Errors
/// The last attempt's.
pub async fn patiently<T>(mut attempt: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Err(_) if tokio::time::Instant::now() < end => tokio::time::sleep(Duration::from_millis(100)).await,
            result => return result,
        }
    }
}
