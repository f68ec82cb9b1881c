//! One connection to a server of the Redis protocol: commands go out together, and as many answers come back.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use redis::{Cmd, RedisError, Value, ValueCodec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::fault::StoreFault;
use crate::callout::Wire;

/// Longest answer to one command, in bytes: the longest of ours has 100, an error of the server's own words more.
const ANSWER_BYTES_MAX: u64 = 1_024;

/// See the module.
pub(super) struct Link(Framed<Metered, ValueCodec>);

impl Link {
    pub(super) fn new(wire: Box<dyn Wire>) -> Self {
        Self(Framed::new(Metered { wire, left: 0 }, ValueCodec::default()))
    }

    /// Sends commands and waits for the answers of all. After an error, or when the future was dropped, the connection is of no use any more.
    ///
    /// # Errors
    /// They do not come in time, or are none. An error that the server answers is an answer.
    pub(super) async fn exchange<'c>(
        &mut self,
        commands: impl Iterator<Item = &'c Cmd>,
        within: Duration,
    ) -> Result<Vec<Value>, StoreFault> {
        let (mut packed, mut count) = (Vec::new(), 0);
        for command in commands {
            packed.extend_from_slice(&command.get_packed_command());
            count += 1;
        }
        self.0.get_mut().left = ANSWER_BYTES_MAX.saturating_mul(count);
        timeout(within, self.exchange_unbounded(packed, count)).await.unwrap_or(Err(StoreFault::Silent(within)))
    }

    async fn exchange_unbounded(&mut self, packed: Vec<u8>, count: u64) -> Result<Vec<Value>, StoreFault> {
        self.0.send(packed).await.map_err(|error| fault(&error))?;
        let mut answers = Vec::new();
        for _ in 0..count {
            match self.0.next().await {
                Some(Ok(answer)) => answers.push(answer),
                Some(Err(error)) => return Err(fault(&error)),
                None => return Err(StoreFault::Gone),
            }
        }
        // The next answers would be taken for those of other questions.
        if self.0.read_buffer().is_empty() { Ok(answers) } else { Err(StoreFault::unreadable("it says more than it was asked")) }
    }
}

fn fault(error: &RedisError) -> StoreFault {
    if error.is_connection_dropped() { StoreFault::Gone } else { StoreFault::unreadable(&error.to_string()) }
}

/// A connection that is read up to a bound.
struct Metered {
    wire: Box<dyn Wire>,
    left: u64,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long")));
        }
        let before = room.filled().len();
        let read = Pin::new(&mut self.wire).poll_read(cx, room);
        let came = room.filled().len().saturating_sub(before);
        self.left = self.left.saturating_sub(u64::try_from(came).unwrap_or(u64::MAX));
        read
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
