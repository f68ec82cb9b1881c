//! `meshwright identity`: a workload's certificate, key and trust bundle as files, for programs that have no sidecar.

mod files;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use proxy::identity::{Agent, Bearer, Bundles, Exposed, Subject, TokenFile, follow};
use proxy::io::{Clock, Draw, Network};
use proxy::shell::settings::read_roots;
use proxy::snapshots::Snapshots;
use proxy::tls::dial::{ControlAddress, Dialer};
use proxy::tls::{ControlTls, Credential, CredentialCell, TrustCell, WallTime};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::time_provider::TimeProvider;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::files::{Files, Identity};
use super::token;
use crate::{duration, output};

/// How soon files that could not be written are tried again.
const WRITE_RETRY: Duration = Duration::from_secs(5);

/// Arguments of `meshwright identity`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright identity --control control.example:15012 --control-ca ca.pem --token-file token --dir /etc/nginx/identity --watch"
)]
pub(crate) struct IdentityArgs {
    /// Control plane
    #[arg(long, env = "MESHWRIGHT_CONTROL", value_name = "HOST:PORT")]
    control: ControlAddress,
    /// Roots that the control plane's certificate must end in, PEM
    #[arg(long, env = "MESHWRIGHT_CONTROL_CA", value_name = "FILE")]
    control_ca: PathBuf,
    /// File with a one-time join token, read again at each attempt
    #[arg(long, env = "MESHWRIGHT_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
    /// Folder for cert.pem, key.pem and bundle.pem
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Go on and keep the files fresh; without it the command ends with the first certificate
    #[arg(long)]
    watch: bool,
    /// Workload that the identity is for; default: the token's
    #[arg(long, env = "MESHWRIGHT_WORKLOAD", value_name = "NS/NAME", value_parser = token::workload)]
    workload: Option<String>,
    /// Instance of the workload; default: the workload's name
    #[arg(long, env = "MESHWRIGHT_INSTANCE", value_name = "NAME")]
    instance: Option<String>,
    /// Longest wait for the first certificate
    #[arg(long, value_name = "DURATION", value_parser = duration::positive, default_value = "60s")]
    timeout: Duration,
    /// Log filter: a level or directives
    #[arg(long, env = "MESHWRIGHT_LOG_LEVEL", value_name = "FILTER", default_value = "warn")]
    log_level: String,
}

pub(crate) fn run(args: IdentityArgs) -> anyhow::Result<ExitCode> {
    output::log(&args.log_level, "proxy=debug")?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(keep(args))?;
    Ok(ExitCode::SUCCESS)
}

/// What the files are made of, each told by its own source.
struct Sources {
    exposed: watch::Receiver<Option<Arc<Exposed>>>,
    bundles: watch::Receiver<Option<Arc<Bundles>>>,
    trust: Arc<TrustCell>,
    hurry: Arc<Notify>,
}

async fn keep(args: IdentityArgs) -> anyhow::Result<()> {
    let files = Files::open(&args.dir)?;
    let known = files.read().and_then(|(chain, key)| earlier(&chain, &key));
    let subject = subject(&args, known.as_ref())?;
    let (credentials, trust) = (Arc::new(CredentialCell::default()), Arc::new(TrustCell::default()));
    let time: Arc<dyn TimeProvider> = Arc::new(WallTime(Clock::System));
    let tls = ControlTls::new(read_roots(&args.control_ca)?, &credentials, &trust, &time).context("--control-ca")?;
    let dialer = Dialer::new(Network::Kernel { mark: None }, args.control.clone(), tls);
    if let Some(known) = known.filter(|known| is_of(known, &subject)) {
        info!(serial = known.serial, "going on with the certificate in {}", args.dir.display());
        credentials.publish(Arc::new(known));
    }
    let (exposed, told) = (watch::Sender::new(None), watch::Sender::new(None));
    let mut sources = Sources { exposed: exposed.subscribe(), bundles: told.subscribe(), trust: Arc::clone(&trust), hurry: Arc::default() };
    let agent = Agent {
        dialer: dialer.clone(),
        bearer: Arc::clone(&credentials),
        exposed: Some(exposed),
        hurry: Arc::clone(&sources.hurry),
        credentials: Arc::clone(&credentials),
        trust,
        snapshots: Snapshots::default(),
        clock: Clock::System,
        subject,
        token: Some(TokenFile::new(&args.token_file)),
    };
    let stop = CancellationToken::new();
    tokio::spawn(agent.run(Draw::from_entropy(), stop.clone()));
    let came = tokio::time::timeout(args.timeout, sources.exposed.wait_for(Option::is_some)).await.is_ok();
    if !came {
        bail!("no certificate within {}; what was tried stands above, `--log-level debug` says more", duration::show(args.timeout));
    }
    sources.write(&files)?;
    if args.watch {
        tokio::spawn(follow(dialer, (credentials, Arc::clone(&sources.hurry)), told, Draw::from_entropy(), stop.clone()));
        sources.watch(&files).await?;
    }
    stop.cancel();
    Ok(())
}

/// Whose identity it is: what the command line says, else the token, else the certificate of an earlier run.
fn subject(args: &IdentityArgs, known: Option<&Credential>) -> anyhow::Result<Subject> {
    let workload = match (&args.workload, TokenFile::new(&args.token_file).read(), known) {
        (Some(workload), _, _) => workload.clone(),
        (None, Ok(Bearer::Join(token)), _) => token.workload,
        (None, Ok(Bearer::Account(_)), None) => bail!("a service-account token names no workload: say which with --workload NS/NAME"),
        (None, _, Some(known)) => format!("{}/{}", known.identity.namespace(), known.workload),
        (None, Err(error), None) => return Err(error).context("--token-file"),
    };
    let (namespace, name) = workload.split_once('/').context("the token names no workload; make one with `meshwright token create`")?;
    Ok(Subject {
        namespace: namespace.to_owned(),
        workload: name.to_owned(),
        instance: args.instance.clone().unwrap_or_else(|| name.to_owned()),
        // The token says it, and afterwards the certificate.
        service_account: "default".to_owned(),
    })
}

/// The credential of an earlier run: it renews itself, as long as the authority lets it.
fn earlier(chain: &[u8], key: &[u8]) -> Option<Credential> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().ok()?;
    Credential::new(chain, PrivateKeyDer::from_pem_slice(key).ok()?).ok()
}

fn is_of(known: &Credential, subject: &Subject) -> bool {
    known.identity.namespace() == subject.namespace && *known.workload == *subject.workload
}

impl Sources {
    /// Writes what is known now.
    fn write(&self, files: &Files) -> anyhow::Result<()> {
        let exposed = self.exposed.borrow().clone().context("there is no certificate yet")?;
        let roots = self.trust.roots();
        let chain = exposed.credential.chain();
        files.write(&Identity {
            chain: chain.iter().map(AsRef::as_ref).collect(),
            key_pkcs8: &exposed.key_pkcs8,
            bundle: roots.iter().map(AsRef::as_ref).collect(),
        })?;
        info!(identity = %exposed.credential.identity, serial = exposed.credential.serial, "identity files written");
        Ok(())
    }

    /// Writes again whenever certificate or bundle change, until SIGTERM or SIGINT. A disk that is full is tried again.
    async fn watch(mut self, files: &Files) -> anyhow::Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut unwritten = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                Ok(()) = self.exposed.changed() => {}
                Ok(()) = self.bundles.changed() => if !self.take_bundles() { continue },
                () = tokio::time::sleep(WRITE_RETRY), if unwritten => {}
                else => bail!("nothing is left to watch"),
            }
            let written = self.write(files);
            unwritten = written.is_err();
            if let Err(error) = written {
                warn!("{error:#}");
            }
        }
    }

    /// Takes over the roots that the authority told; whether that changed something. Other roots may mean another issuer: the certificate
    /// is renewed at once.
    fn take_bundles(&self) -> bool {
        let Some(bundles) = self.bundles.borrow().clone() else { return false };
        let issuer_changed = bundles.roots.first() != self.trust.roots().first();
        match self.trust.publish(bundles.roots.clone()) {
            Ok(changed) => {
                if changed && issuer_changed {
                    self.hurry.notify_one();
                }
                changed
            }
            Err(error) => {
                warn!("the control plane told a bundle that is not taken: {error}");
                false
            }
        }
    }
}
