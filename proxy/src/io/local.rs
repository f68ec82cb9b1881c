//! A Unix socket for programs of this machine.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::warn;

/// After an accept that failed (out of descriptors), wait this long.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Connections accepted and not yet taken up.
const READY_MAX: usize = 4;

/// A listening Unix socket. Its file stays behind: whoever opened it may have given up the right to remove it.
#[derive(Debug)]
pub struct LocalDoor(net::UnixListener);

impl LocalDoor {
    /// Opens a socket file with that mode, in the place of one that nobody serves any more.
    ///
    /// # Errors
    /// The kernel's; `AddrInUse` where somebody serves there, or the file is no socket.
    pub fn open(path: &Path, mode: u32) -> io::Result<Self> {
        if let Ok(facts) = fs::symlink_metadata(path) {
            if !facts.file_type().is_socket() || net::UnixStream::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        let listener = net::UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Accepts until `stop`, `connections_max` at a time; more wait in the kernel's queue.
    ///
    /// # Errors
    /// Outside of a runtime.
    pub fn accept(self, connections_max: usize, stop: CancellationToken) -> io::Result<ReceiverStream<io::Result<LocalStream>>> {
        let listener = UnixListener::from_std(self.0)?;
        let (sender, receiver) = mpsc::channel(READY_MAX);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(connections_max));
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let accepted = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    // The receiver is gone only while we stop.
                    Ok((stream, _)) => drop(sender.send(Ok(LocalStream { stream, _place: place })).await),
                    Err(error) => {
                        warn!(%error, "a local connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

/// One accepted connection; its place is free again when it drops.
#[derive(Debug)]
pub struct LocalStream {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for LocalStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a socket that was left behind is replaced, one that is served or a plain file is not, and only its owner may connect.
    #[test]
    fn a_socket_is_taken_over_only_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = LocalDoor::open(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(LocalDoor::open(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        LocalDoor::open(&path, 0o600).unwrap();
        let file = folder.path().join("f");
        fs::write(&file, "x").unwrap();
        assert_eq!(LocalDoor::open(&file, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
