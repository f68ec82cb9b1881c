//! The way to the running control plane: gRPC over the Unix socket in the state directory.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use hyper_util::rt::TokioIo;
use proto::mesh::control_client::ControlClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::state;

/// Largest answer taken from the control plane: `get` prints whole meshes.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// A client of the control plane's one API.
pub(crate) type Control = ControlClient<Channel>;

/// Connects to the mesh that the state directory names.
///
/// # Errors
/// No mesh runs there, or it does not answer; the sentence names the socket and the remedy.
pub(crate) async fn connect() -> anyhow::Result<Control> {
    let socket = state::control_socket();
    connect_to(&socket).await.map_err(|error| explain(&socket, &error))
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
    Ok(ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
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
pub(crate) fn refused(status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Cancelled => {
            anyhow!("the connection to the control plane broke ({}); `meshwright logs control` says why", status.message())
        }
        _ => anyhow!("{}", status.message()),
    }
}
