//! Connections that stop being HTTP: WebSocket and everything else that upgrades, and CONNECT.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use engine::failure::{Failure, Reason};
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ground::patience::Patience;
use crate::io::{Abrupt, Attended, Called, Rewound, Seen, Served};
use crate::observe::Account;
use crate::tcp::{self, Buffers};

/// Both halves of an agreed upgrade.
pub struct Tunnel<D> {
    /// Becomes the client's bytes once the answer is written.
    pub downstream: OnUpgrade,
    /// Becomes the server's bytes.
    pub upstream: OnUpgrade,
    /// Recorded when the tunnel ends.
    pub account: Account,
    /// Silence that ends it.
    pub idle: Option<Duration>,
    /// Longest life, however busy.
    pub longest: Option<Duration>,
    /// Ready once it may not go on, which it has told the account.
    pub denied: D,
}

/// What was HTTP before: a connection, which can be cut, or a stream of HTTP/2, which is reset when it is dropped before its end.
enum Switched {
    Served(Box<Rewound<Served<Attended>>>),
    Called(Box<Rewound<Called<Attended>>>),
    Stream(TokioIo<Upgraded>),
}

impl From<Upgraded> for Switched {
    fn from(upgraded: Upgraded) -> Self {
        let upgraded = match upgraded.downcast::<TokioIo<Served<Attended>>>() {
            Ok(Parts { io, read_buf, .. }) => return Self::Served(Box::new(Rewound::new(read_buf, io.into_inner()))),
            Err(upgraded) => upgraded,
        };
        match upgraded.downcast::<TokioIo<Called<Attended>>>() {
            Ok(Parts { io, read_buf, .. }) => Self::Called(Box::new(Rewound::new(read_buf, io.into_inner()))),
            Err(upgraded) => Self::Stream(TokioIo::new(upgraded)),
        }
    }
}

impl Abrupt for Switched {
    fn abort(&mut self) {
        match self {
            Self::Served(connection) => connection.abort(),
            Self::Called(connection) => connection.abort(),
            Self::Stream(_) => {}
        }
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        match self {
            Self::Served(connection) => connection.poll_reset(cx),
            Self::Called(connection) => connection.poll_reset(cx),
            Self::Stream(_) => Poll::Pending,
        }
    }
}

impl AsyncRead for Switched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Served(connection) => Pin::new(connection).poll_read(cx, buf),
            Self::Called(connection) => Pin::new(connection).poll_read(cx, buf),
            Self::Stream(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Switched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Served(connection) => Pin::new(connection).poll_write(cx, buf),
            Self::Called(connection) => Pin::new(connection).poll_write(cx, buf),
            Self::Stream(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Served(connection) => Pin::new(connection).poll_flush(cx),
            Self::Called(connection) => Pin::new(connection).poll_flush(cx),
            Self::Stream(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Served(connection) => Pin::new(connection).poll_shutdown(cx),
            Self::Called(connection) => Pin::new(connection).poll_shutdown(cx),
            Self::Stream(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Carries bytes both ways until both sides have ended, one breaks off, or nothing moves for too long.
/// `held` lives as long as the tunnel.
pub async fn tunnel<H, D>(tunnel: Tunnel<D>, held: H, patience: Rc<Patience>, buffers: Rc<Buffers>)
where
    D: FnMut(&mut Account, &mut Context<'_>) -> Poll<()>,
{
    let Tunnel { downstream, upstream, mut account, idle, longest, denied } = tunnel;
    let (downstream, upstream) = match tokio::join!(downstream, upstream) {
        (Ok(downstream), Ok(upstream)) => (Switched::from(downstream), Switched::from(upstream)),
        (Err(error), _) => return account.failed(&Failure::new(Reason::ClientGone, format!("the upgrade was not completed: {error}"))),
        (_, Err(error)) => return account.failed(&Failure::new(Reason::UpstreamReset, format!("the upgrade was not completed: {error}"))),
    };
    let wait = patience.wait(idle);
    let carrying = tcp::carry(downstream, upstream, &mut account, (&wait, &buffers), denied);
    match longest {
        None => carrying.await,
        Some(longest) => {
            if tokio::time::timeout(longest, carrying).await.is_err() {
                account.failed(&Failure::new(Reason::RequestTimeout, "the tunnel lived as long as its route allows"));
            }
        }
    }
    drop(held);
}
