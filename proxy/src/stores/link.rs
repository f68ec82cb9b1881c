//! One connection to a server of the Redis protocol: commands go out together, and as many answers come back.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
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
pub(super) const ANSWER_BYTES_MAX: u64 = 1_024;

/// What an answer begins with (RESP2).
const FIRST_BYTES: &[u8] = b"+-:$*";

/// See the module. Dropped, it closes.
pub(super) struct Link {
    connection: MultiplexedConnection,
    meter: Arc<Meter>,
    /// Reads and writes; ends with the link.
    _driver: JoinSet<()>,
}

impl Link {
    /// On a connection that is open; nothing is said yet.
    pub(super) async fn new(wire: Box<dyn OpenWire>) -> Result<Self, StoreFault> {
        let meter = Arc::<Meter>::default();
        let metered = Metered { wire, meter: Arc::clone(&meter) };
        let silent = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let made = MultiplexedConnection::new_with_config(&silent, metered, config).await;
        let (connection, driving) = made.map_err(|error| meter.fault(&error))?;
        let mut driver = JoinSet::new();
        driver.spawn(driving);
        Ok(Self { connection, meter, _driver: driver })
    }

    /// Sends commands and waits for the answers of all, of which each may be an error. After a fault, or when the future was dropped, the
    /// connection is of no use any more.
    ///
    /// # Errors
    /// They do not come in time, or are none.
    pub(super) async fn exchange(&mut self, commands: impl Iterator<Item = Cmd>, within: Duration) -> Result<Vec<Value>, StoreFault> {
        self.exchange_long(commands, within, ANSWER_BYTES_MAX).await
    }

    /// The same, where an answer may be so long.
    pub(super) async fn exchange_long(
        &mut self,
        commands: impl Iterator<Item = Cmd>,
        within: Duration,
        answer_bytes_max: u64,
    ) -> Result<Vec<Value>, StoreFault> {
        let mut together = Pipeline::new();
        commands.for_each(|command| _ = together.add_command(command));
        let count = together.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        self.meter.left.store(answer_bytes_max.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX)), Ordering::Relaxed);
        self.meter.begun.store(false, Ordering::Relaxed);
        let answers = timeout(within, self.connection.send_packed_commands(&together, 0, count)).await;
        self.meter.left.store(0, Ordering::Relaxed);
        match answers {
            Ok(Ok(answers)) if answers.len() == count => Ok(answers),
            Ok(Ok(_)) => Err(StoreFault::unreadable("there are more answers than questions, or less")),
            Ok(Err(error)) => Err(self.meter.fault(&error)),
            Err(_) => Err(StoreFault::Silent(within)),
        }
    }
}

/// What may come, and what came that may not: whoever waits for an answer hears only that the connection has ended.
#[derive(Default)]
struct Meter {
    /// Bytes that may still come.
    left: AtomicU64,
    /// An answer has begun.
    begun: AtomicBool,
    wrong: OnceLock<&'static str>,
}

impl Meter {
    fn fault(&self, error: &RedisError) -> StoreFault {
        match self.wrong.get() {
            Some(wrong) => StoreFault::unreadable(wrong),
            None if error.is_connection_dropped() => StoreFault::Gone,
            None => StoreFault::unreadable(&error.to_string()),
        }
    }

    /// Judges bytes that came.
    fn takes(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let left = self.left.load(Ordering::Relaxed);
        let came = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left.store(left.saturating_sub(came), Ordering::Relaxed);
        match bytes.first() {
            Some(first) if !self.begun.swap(true, Ordering::Relaxed) && !FIRST_BYTES.contains(first) => Err("it speaks another protocol"),
            _ if came > left => Err("it says more than it was asked"),
            _ => Ok(()),
        }
    }
}

/// A connection that says no more than it was asked for.
struct Metered {
    wire: Box<dyn OpenWire>,
    meter: Arc<Meter>,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(cx, room))?;
        let came = room.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.meter.takes(came).map_err(|wrong| {
            // The first is the one that matters.
            let _ = self.meter.wrong.set(wrong);
            io::Error::new(io::ErrorKind::InvalidData, wrong)
        }))
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
