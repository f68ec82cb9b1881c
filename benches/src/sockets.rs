//! What every program here does with sockets.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that wait to be accepted.
const ACCEPT_BACKLOG: u32 = 4096;
/// Pause after a failed accept, which is most often a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Lets this process open as many files as it may. Where that fails, the present limit holds, and connections beyond it fail by name.
pub(crate) fn raise_open_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        eprintln!("the limit of open files stays as it is: {error}");
    }
}

/// A listener with a long queue.
///
/// # Errors
/// The address cannot be listened on; the error names it.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(ACCEPT_BACKLOG)
    };
    open().with_context(|| format!("listening on {address}"))
}

/// The next connection, without Nagle's algorithm.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // What fails here fails again at the first write, where it is noticed.
                drop(stream.set_nodelay(true));
                return stream;
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Dials, without Nagle's algorithm.
///
/// # Errors
/// Those of the kernel.
pub(crate) async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
