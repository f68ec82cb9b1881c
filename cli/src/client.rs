//! The way to the control plane's one API: gRPC over the Unix socket in the state directory, or over TLS with a token.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use hyper_util::rt::TokioIo;
use proto::mesh::control_client::ControlClient;
use proxy::io::Network;
use proxy::shell::settings::read_roots;
use proxy::tls::ControlTls;
use proxy::tls::dial::{ControlAddress, Dialer};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::state;

/// Largest answer taken from the control plane: `get` prints whole meshes.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// A client of the control plane's one API.
pub(crate) type Control = ControlClient<InterceptedService<Channel, Bearer>>;

/// Shows the API token, where one is needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Which mesh a command means.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "A mesh elsewhere")]
pub(crate) struct WhichMesh {
    /// Its control plane's TLS port; the mesh that runs on this machine where not given
    #[arg(long, value_name = "HOST:PORT", requires = "control_ca", requires = "token_file")]
    control: Option<ControlAddress>,
    /// Its trust bundle: `ca.pem` of the control plane's data folder
    #[arg(long, value_name = "FILE", requires = "control")]
    control_ca: Option<PathBuf>,
    /// Its API token: of the control plane's data folder `api-read.token`, which looks, or `api-write.token`, which also changes
    #[arg(long, value_name = "FILE", requires = "control")]
    token_file: Option<PathBuf>,
}

/// Why there is no connection, and whether it is worth another try.
pub(crate) enum Unreached {
    /// Nobody answers there now.
    Absent(anyhow::Error),
    /// Something is wrong with what was given.
    Wrong(anyhow::Error),
}

impl From<Unreached> for anyhow::Error {
    fn from(unreached: Unreached) -> Self {
        let (Unreached::Absent(error) | Unreached::Wrong(error)) = unreached;
        error
    }
}

impl WhichMesh {
    /// Connects once.
    ///
    /// # Errors
    /// No mesh runs there, or it does not answer; the sentence names the place and the remedy.
    pub(crate) async fn connect(&self) -> Result<Control, Unreached> {
        let (Some(target), Some(roots), Some(token)) = (&self.control, &self.control_ca, &self.token_file) else {
            let socket = state::control_socket();
            return connect_to(&socket).await.map_err(|error| Unreached::Absent(explain(&socket, &error)));
        };
        let (dialer, bearer) = remote(target, roots, token).map_err(Unreached::Wrong)?;
        let channel = dialer.connect(false).await.map_err(|error| Unreached::Absent(error.into()))?;
        Ok(client(channel, bearer))
    }

    /// Whether the mesh of this machine is meant.
    pub(crate) const fn is_here(&self) -> bool {
        self.control.is_none()
    }

    /// As a sentence names it.
    pub(crate) fn shown(&self) -> String {
        match &self.control {
            Some(target) => format!("asked the control plane at {target}"),
            None => format!("looked in {}", state::find().display()),
        }
    }
}

fn remote(target: &ControlAddress, roots: &Path, token: &Path) -> anyhow::Result<(Dialer, Bearer)> {
    let unread = || format!("--token-file: {} cannot be read", token.display());
    let mode = fs::metadata(token).with_context(unread)?.permissions().mode();
    proto::private::judged("--token-file:", token, mode).map_err(|told| anyhow!(told))?;
    let text = fs::read_to_string(token).with_context(unread)?;
    let wrong = || {
        format!(
            "--token-file: {} holds no token; give the control plane's file api-read.token (to look) or api-write.token (to change)",
            token.display()
        )
    };
    let text = Some(text.trim()).filter(|text| !text.is_empty()).with_context(wrong)?;
    let bearer = format!("Bearer {text}").parse().ok().with_context(wrong)?;
    let time: Arc<dyn TimeProvider> = Arc::new(DefaultTimeProvider);
    let tls = ControlTls::new(read_roots(roots)?, &Arc::default(), &Arc::default(), &time).context("--control-ca")?;
    Ok((Dialer::new(Network::Kernel { mark: None }, target.clone(), tls), Bearer(Some(bearer))))
}

fn client(channel: Channel, bearer: Bearer) -> Control {
    ControlClient::with_interceptor(channel, bearer)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Connects once to the socket given.
///
/// # Errors
/// The operating system's, for a caller that wants to try again.
pub(crate) async fn connect_to(socket: &Path) -> io::Result<Control> {
    let path: PathBuf = socket.to_owned();
    // One try by hand: tonic hides the operating system's reason in its own.
    drop(UnixStream::connect(&path).await?);
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://control.sock").connect_with_connector(connector).await.map_err(io::Error::other)?;
    Ok(client(channel, Bearer::default()))
}

fn explain(socket: &Path, error: &io::Error) -> anyhow::Error {
    let place = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no mesh is running here (nobody listens on {place}); start one with `meshwright up`, or point {} at the state directory of the one you mean",
            state::STATE_DIR_ENV
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!("{place} belongs to another user; run the command as the user who started the mesh")
        }
        _ => anyhow!("the control plane at {place} does not answer: {error}; look at `meshwright logs control`"),
    }
}

/// A status of the control plane as a sentence.
pub(crate) fn refused(status: &Status) -> anyhow::Error {
    match status.code() {
        Code::Unavailable | Code::Cancelled => {
            anyhow!("the connection to the control plane broke ({}); `meshwright logs control` says why", status.message())
        }
        _ => anyhow!("{}", status.message()),
    }
}
