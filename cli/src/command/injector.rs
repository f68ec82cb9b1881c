//! `meshwright injector`: the admission webhook by itself, for who wants it apart from the control plane.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a command: the machine's sockets and clock")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use apiserver::client::{Access, connect};
use certs_ca::{Ca, ExternalFiles, Policy, ServerNames};
use clap::Args;
use cli::admission::{self, Signed};
use cli::hooks::{LINGER, ROLE};
use control::settings::ExternalArgs;
use injector::bundle::HookService;
use injector::serving::{Issued, Issuer};
use injector::webhook::Webhook;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::inject::SidecarArgs;
use crate::output;

/// Threads of the webhook.
const THREADS: usize = 2;

/// Arguments of `meshwright injector`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright injector --tls-cert tls.crt --tls-key tls.key --tls-ca ca.crt --patch-webhooks\n  \
        POST /inject answers a MutatingWebhookConfiguration, GET /metrics and /healthz/ready are beside it. The control plane serves the\n  \
        same at port 15017, and POST /validate, which needs its world.")]
pub(crate) struct InjectorArgs {
    /// Where API servers reach it
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:15017")]
    listen: SocketAddr,
    /// Certificate chain to serve with, PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key", required_unless_present = "ca_cert", conflicts_with = "ca_cert")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Roots by which API servers are to believe it, PEM; during a rotation the old and the new ones
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Folder for what an authority of --ca-cert has signed
    #[arg(long, value_name = "DIR", default_value = "/var/lib/meshwright", requires = "ca_cert")]
    data_dir: PathBuf,
    /// The Service by which API servers reach it
    #[arg(long, value_name = "NS/NAME", value_parser = service, default_value = "meshwright-system/meshwright-injector")]
    service: HookService,
    /// Keep the roots in all webhook configurations that ask that Service; needs an API server
    #[arg(long)]
    patch_webhooks: bool,
    /// How to reach it; in a pod its own service account is used
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// Log filter: a level or directives
    #[arg(long, env = "MESHWRIGHT_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    log_level: String,
    /// Instead of --tls-cert: the control plane's own authority, which signs the certificate; it is renewed
    #[command(flatten)]
    authority: ExternalArgs,
}

pub(crate) fn service(text: &str) -> Result<HookService, String> {
    let (namespace, name) = text.split_once('/').ok_or("give NS/NAME, for example meshwright-system/meshwright-injector")?;
    Ok(HookService { namespace: namespace.to_owned(), name: name.to_owned() })
}

pub(crate) fn run(args: InjectorArgs) -> anyhow::Result<ExitCode> {
    if args.patch_webhooks && args.tls_cert.is_some() && args.tls_ca.is_none() {
        return Err(output::usage("--patch-webhooks: which roots? give them with --tls-ca FILE".to_owned()));
    }
    output::log(&args.log_level, "injector=debug")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(serve(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: InjectorArgs) -> anyhow::Result<()> {
    let issuer = issuer(&args)?;
    let (leaving, stop) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn(leave(told_to_end()?, leaving.clone(), stop.clone()));
    let listener = tokio::net::TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("--listen {}: nobody can be heard there", args.listen))?;
    let (roots, told) = watch::channel(String::new());
    let mut settings = args.sidecar.settings();
    let mut patching = None;
    if args.patch_webhooks {
        let access = Access { kubeconfig: args.kubeconfig.clone(), context: None };
        let client = connect(&access, "injector").await.context("--patch-webhooks")?;
        if !args.sidecar.names_kubernetes() {
            let version = injector::keep::version(&client).await.map_err(anyhow::Error::msg);
            settings.kubernetes = version.context("which Kubernetes is this? say it with --kubernetes-version")?;
        }
        patching = Some(tokio::spawn(injector::keep::bundles(client, (args.service.clone(), ROLE), told, stop.clone())));
    }
    info!(kubernetes = %settings.kubernetes, native = settings.kubernetes.has_native_sidecars(), "sidecars are made for this cluster");
    info!(listen = %args.listen, service = %format!("{}/{}", args.service.namespace, args.service.name), "the injector serves");
    let unready = move || leaving.is_cancelled().then(|| "it is about to end".to_owned());
    let served = admission::open(listener, issuer, Webhook::new(settings), Arc::new(unready), roots, stop.clone()).await;
    stop.cancel();
    if let Some(patching) = patching {
        patching.await?;
    }
    served
}

/// One message for each signal that tells the process to end.
fn told_to_end() -> anyhow::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signals, sender) = (signal(kind).context("signals cannot be heard")?, sender.clone());
        tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).await.is_ok() {} });
    }
    Ok(receiver)
}

/// Not ready from the first word on, and serving for [`LINGER`] after it, as the control plane's webhooks do; a second word ends it at once.
async fn leave(mut told: mpsc::Receiver<()>, leaving: CancellationToken, stop: CancellationToken) {
    told.recv().await;
    leaving.cancel();
    info!(seconds = LINGER.as_secs(), "told to end: not ready, and served until API servers have heard of it");
    tokio::select! {
        _ = told.recv() => {}
        () = tokio::time::sleep(LINGER) => {}
    }
    stop.cancel();
}

fn issuer(args: &InjectorArgs) -> anyhow::Result<Arc<dyn Issuer>> {
    if let Some((certificate, key, roots)) = args.authority.files() {
        let files = ExternalFiles { certificate, key, roots };
        let ca = Ca::open_external(&args.data_dir, &files, Policy::default(), Arc::new(OffsetDateTime::now_utc))?;
        let HookService { namespace, name } = &args.service;
        let names = [format!("{name}.{namespace}.svc"), format!("{name}.{namespace}.svc.cluster.local"), name.clone()];
        return Ok(Arc::new(Signed { ca: Arc::new(ca), names: ServerNames { dns: names.into(), addresses: Vec::new() } }));
    }
    let (Some(certificate), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else {
        return Err(output::usage("give --tls-cert and --tls-key, or --ca-cert, --ca-key and --ca-root".to_owned()));
    };
    let files = TlsFiles { certificate, key, roots: args.tls_ca.clone() };
    // What is wrong at the start is wrong with the command line.
    files.issue().map_err(anyhow::Error::msg)?;
    Ok(Arc::new(files))
}

/// A certificate that somebody else renews.
struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    roots: Option<PathBuf>,
}

fn read(flag: &str, file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{flag}: {} cannot be read: {error}", file.display()))
}

impl Issuer for TlsFiles {
    fn issue(&self) -> Result<Issued, String> {
        let pem = read("--tls-cert", &self.certificate)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("--tls-cert: {} is no PEM file of certificates: {error}", self.certificate.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&read("--tls-key", &self.key)?)
            .map_err(|error| format!("--tls-key: {} is no PEM file of a key: {error}", self.key.display()))?;
        Issued::read(chain, key).map_err(|why| format!("--tls-cert: {}: {why}", self.certificate.display()))
    }

    fn roots(&self) -> Result<String, String> {
        let Some(file) = &self.roots else { return Ok(String::new()) };
        String::from_utf8(read("--tls-ca", file)?).map_err(|_| format!("--tls-ca: {} is no PEM file", file.display()))
    }

    fn has_news(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    /// Aim: the first word makes the webhook unready at once and ends it five seconds later; a second one does not wait.
    #[tokio::test(start_paused = true)]
    async fn it_lingers_until_api_servers_have_heard() {
        for (second, wanted) in [(None, LINGER), (Some(Duration::from_secs(1)), Duration::from_secs(1))] {
            let (sender, told) = mpsc::channel(1);
            let (leaving, stop) = (CancellationToken::new(), CancellationToken::new());
            let left = tokio::spawn(leave(told, leaving.clone(), stop.clone()));
            let begun = Instant::now();
            sender.send(()).await.unwrap();
            leaving.cancelled().await;
            assert!(begun.elapsed().is_zero() && !stop.is_cancelled());
            if let Some(after) = second {
                tokio::time::sleep(after).await;
                sender.send(()).await.unwrap();
            }
            left.await.unwrap();
            assert!(stop.is_cancelled());
            assert_eq!(begun.elapsed(), wanted);
        }
    }
}
