//! One connection to a server of the Redis protocol: commands go out together, and as many answers come back.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::fault::StoreFault;
use crate::callout::OpenWire;

/// Longest answer to one command, in bytes: the longest of ours has 100, an error in the server's own words more.
const ANSWER_BYTES_MAX: u64 = 1_024;

/// See the module. Dropped, it closes.
pub(super) struct Link {
    connection: MultiplexedConnection,
    allowed: Arc<AtomicU64>,
    /// Reads and writes; ends with the link.
    _driver: JoinSet<()>,
}

impl Link {
    /// On a connection that is open; nothing is said yet.
    pub(super) async fn new(wire: Box<dyn OpenWire>) -> Result<Self, StoreFault> {
        let allowed = Arc::<AtomicU64>::default();
        let metered = Metered { wire, allowed: Arc::clone(&allowed) };
        let silent = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let made = MultiplexedConnection::new_with_config(&silent, metered, config).await;
        let (connection, driving) = made.map_err(|error| fault(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(driving);
        Ok(Self { connection, allowed, _driver: driver })
    }

    /// Sends commands and waits for the answers of all, of which each may be an error. After a fault, or when the future was dropped, the
    /// connection is of no use any more.
    ///
    /// # Errors
    /// They do not come in time, or are none.
    pub(super) async fn exchange(&mut self, commands: impl Iterator<Item = Cmd>, within: Duration) -> Result<Vec<Value>, StoreFault> {
        let mut together = Pipeline::new();
        commands.for_each(|command| _ = together.add_command(command));
        let count = together.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        self.allowed.store(ANSWER_BYTES_MAX.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX)), Ordering::Relaxed);
        let answers = timeout(within, self.connection.send_packed_commands(&together, 0, count)).await;
        self.allowed.store(0, Ordering::Relaxed);
        match answers {
            Ok(Ok(answers)) if answers.len() == count => Ok(answers),
            Ok(Ok(_)) => Err(StoreFault::unreadable("there are more answers than questions, or less")),
            Ok(Err(error)) => Err(fault(&error)),
            Err(_) => Err(StoreFault::Silent(within)),
        }
    }
}

fn fault(error: &RedisError) -> StoreFault {
    if error.is_connection_dropped() { StoreFault::Gone } else { StoreFault::unreadable(&error.to_string()) }
}

/// A connection that says no more than it was asked for.
struct Metered {
    wire: Box<dyn OpenWire>,
    /// Bytes that may still come.
    allowed: Arc<AtomicU64>,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(cx, room))?;
        let came = u64::try_from(room.filled().len().saturating_sub(before)).unwrap_or(u64::MAX);
        let allowed = self.allowed.load(Ordering::Relaxed);
        if came > allowed {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "it says more than it was asked")));
        }
        self.allowed.store(allowed.saturating_sub(came), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
