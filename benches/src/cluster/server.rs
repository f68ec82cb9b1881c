//! The API server: `tests/kube-api` as a process of its own, and the calls that fill it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use apiserver::client::{Access, connect};
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::objects::{self, NAMESPACES, NODES, Size};

/// Calls under way at a time.
const CALLS_MAX: usize = 16;
/// How often a call is tried again: a namespace's first account comes a moment after it.
const ATTEMPTS_MAX: u32 = 50;
/// Pause before the next attempt.
const AGAIN: Duration = Duration::from_millis(200);

/// A running API server; ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    _folder: TempDir,
    pub(super) kubeconfig: PathBuf,
}

impl Server {
    /// Starts one with an empty store.
    ///
    /// # Errors
    /// It does not become ready.
    pub(super) fn start(program: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let mut child = Command::new(program)
            .arg("--dir")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let about: Value = serde_json::from_str(&line).unwrap_or_default();
        let Some(kubeconfig) = about["kubeconfig"].as_str().map(PathBuf::from) else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{} did not become ready: {}", program.display(), std::fs::read_to_string(&log).unwrap_or_default());
        };
        Ok(Self { child, _folder: folder, kubeconfig })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls of an API server.
#[derive(Clone)]
pub(super) struct Calls {
    client: Client,
    size: Size,
}

impl Calls {
    /// As whoever the kubeconfig says.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) async fn new(kubeconfig: &Path, size: Size) -> anyhow::Result<Self> {
        let client = connect(&Access { kubeconfig: Some(kubeconfig.to_owned()), context: None }, "benches").await?;
        Ok(Self { client, size })
    }

    /// Makes everything.
    ///
    /// # Errors
    /// The API server refuses something.
    pub(super) async fn fill(&self) -> anyhow::Result<()> {
        all((0..NAMESPACES).map(|number| self.create("/api/v1/namespaces".to_owned(), objects::namespace_object(number)))).await?;
        all((0..NODES).map(|number| self.create("/api/v1/nodes".to_owned(), objects::node_object(number)))).await?;
        let size = self.size;
        let of = move |service: u32| size.pods().filter(move |pod| pod.service == service).map(|pod| (pod, true)).collect::<Vec<_>>();
        let services = (0..self.size.services).map(|service| async move {
            let namespace = objects::namespace(service);
            self.create(format!("/api/v1/namespaces/{namespace}/services"), objects::service_object(service)).await?;
            let slice = objects::slice_object(service, &self.size.endpoints(&of(service)));
            self.create(format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), slice).await
        });
        all(services).await?;
        let pods = self.size.pods().map(|pod| async move {
            self.make(pod).await?;
            self.tell(pod, true).await
        });
        all(pods).await
    }

    /// Makes a pod, which does not run yet.
    pub(super) async fn make(&self, pod: objects::Pod) -> anyhow::Result<()> {
        self.create(format!("/api/v1/namespaces/{}/pods", objects::namespace(pod.service)), pod.object()).await
    }

    /// Tells that a pod runs.
    pub(super) async fn tell(&self, pod: objects::Pod, ready: bool) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", objects::namespace(pod.service), pod.name());
        self.call(Method::PATCH, &path, &self.size.status(pod, ready)).await
    }

    /// Takes a pod away.
    pub(super) async fn delete(&self, pod: objects::Pod) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", objects::namespace(pod.service), pod.name());
        self.call(Method::DELETE, &path, &json!({"gracePeriodSeconds": 0})).await
    }

    /// Tells who is behind a Service.
    pub(super) async fn serve(&self, service: u32, pods: &[(objects::Pod, bool)]) -> anyhow::Result<()> {
        let (namespace, name) = (objects::namespace(service), objects::slice_name(service));
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}");
        self.call(Method::PATCH, &path, &json!({"endpoints": self.size.endpoints(pods)})).await
    }

    async fn create(&self, path: String, object: Value) -> anyhow::Result<()> {
        let mut attempts = 0;
        loop {
            match self.call(Method::POST, &path, &object).await {
                Err(_) if attempts < ATTEMPTS_MAX => tokio::time::sleep(AGAIN).await,
                done => return done,
            }
            attempts += 1;
        }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<()> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, kind).body(serde_json::to_vec(body)?)?;
        self.client.request::<Value>(request).await.with_context(|| path.to_owned())?;
        Ok(())
    }
}

/// Makes calls, some at a time.
async fn all<F: Future<Output = anyhow::Result<()>>>(calls: impl Iterator<Item = F>) -> anyhow::Result<()> {
    let mut calls = futures::stream::iter(calls).buffer_unordered(CALLS_MAX);
    while let Some(done) = calls.next().await {
        done?;
    }
    Ok(())
}
