//! A connection on its way into a road.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use engine::decide::{EndedTls, First, Known, Version};
use engine::failure::{Failure, Reason};
use engine::model::{CHALLENGE_ALPN, Snapshot};
use engine::sniff::{Sniffed, may_be_request};
use http::{StatusCode, request};

use crate::ground::body::Received;
use crate::ground::limits::REFUSAL_WAIT;
use crate::http::Caller;
use crate::io::{Rewound, Socket, Stream};
use crate::observe::{Account, Direction, Downstream};
use crate::road::answer::{Answering, Answers, HttpConnection, serve};
use crate::road::attempt::OpenedTcp;
use crate::road::reply::{failed, malformed};
use crate::road::shared::Shared;
use crate::road::standing::Stand;
use crate::road::watch::{self, Said, Watched};
use crate::tcp;
use crate::tls::{Bond, PeerError, bound};

/// An accepted connection and where it was meant to go.
#[derive(Debug)]
pub struct Arrival {
    /// Its bytes.
    pub socket: Socket,
    /// Who connected.
    pub peer: SocketAddr,
    /// The destination: the original one of a redirected connection, or the one that an explicit listener stands for.
    pub destination: SocketAddr,
}

/// What a connection turned out to carry. Finding out takes a large future for a short time; what follows takes a small one for long.
pub enum Carried {
    /// Requests.
    Http(Box<HttpConnection>),
    /// Bytes.
    Opaque(Box<Opaque>),
}

/// An opaque connection with its upstream, or why there is none.
pub struct Opaque {
    /// The client's side.
    pub downstream: Rewound<Stream>,
    /// The client's, where it proved itself.
    pub bond: Option<Bond>,
    /// The server's side.
    pub opened: Result<OpenedTcp, Failure>,
    /// Silence that ends it.
    pub idle: Option<Duration>,
    /// Recorded at the end.
    pub account: Account,
    /// Resolves under an epoch that does not let it go on, which cuts it.
    pub forbidden: Option<Forbidden>,
    /// Its place among what is asked again where policies change.
    pub stand: Option<Stand>,
}

/// See [`Opaque::forbidden`].
pub type Forbidden = Pin<Box<dyn Future<Output = Failure>>>;

/// What was heard on a connection by now, in the clear or inside a peer's TLS: the shell's half of [`Known`].
#[derive(Default)]
pub struct Heard {
    first: Option<Speaker>,
    /// The client's bytes, which were taken off the stream.
    pub seen: Bytes,
    /// The upstream that was opened on suspicion, where it is of use.
    pub opened: Option<Result<OpenedTcp, Failure>>,
}

enum Speaker {
    Client(Sniffed),
    Server,
    Nobody,
}

impl Heard {
    /// Of a client of which something was read before.
    pub fn after(seen: Bytes) -> Self {
        Self { seen, ..Self::default() }
    }

    /// As the engine wants to know it. The control plane was asked before.
    pub fn known(&self) -> Known<'_> {
        Known { asked: true, first: self.first(), may_ask: self.may_ask(), ..Known::default() }
    }

    /// The same of what was heard inside a peer's TLS.
    pub fn inside(&self) -> Known<'_> {
        Known { inside: self.first(), may_ask: self.may_ask(), ..Known::default() }
    }

    fn first(&self) -> Option<First<'_>> {
        self.first.as_ref().map(|first| match first {
            Speaker::Client(sniffed) => First::Client(sniffed),
            Speaker::Server => First::Server,
            Speaker::Nobody => First::Nobody,
        })
    }

    fn may_ask(&self) -> bool {
        matches!(self.first, Some(Speaker::Client(Sniffed::NeedMore | Sniffed::Opaque))) && may_be_request(&self.seen)
    }

    /// The same of a client from outside whose TLS was ended.
    pub fn ended<'k>(&'k self, alpn: Option<&'k str>) -> Known<'k> {
        Known { ended: Some(EndedTls { alpn }), ..self.known() }
    }

    /// Whether TLS was heard.
    pub const fn is_tls(&self) -> bool {
        matches!(self.first, Some(Speaker::Client(Sniffed::Tls(_))))
    }

    /// The name that TLS asks for, lower case.
    pub fn sni(&self) -> Option<&str> {
        match &self.first {
            Some(Speaker::Client(Sniffed::Tls(hello))) => hello.sni.as_deref(),
            _ => None,
        }
    }

    /// The name for which a certificate authority asks whether it is ours (RFC 8737, section 3): it offers nothing else.
    pub fn challenged(&self) -> Option<&str> {
        match &self.first {
            Some(Speaker::Client(Sniffed::Tls(hello))) if hello.alpn.len() == 1 && hello.offers(CHALLENGE_ALPN) => hello.sni.as_deref(),
            _ => None,
        }
    }

    /// The client spoke.
    pub fn said(&mut self, said: Said) {
        (self.first, self.seen) = (Some(Speaker::Client(said.sniffed)), said.seen);
    }

    /// Somebody spoke, or nobody did.
    pub fn watched(&mut self, watched: Watched) {
        match watched {
            Watched::Client(said, opened) => {
                self.said(said);
                self.opened = opened.map(|opened| Ok(*opened));
            }
            Watched::Server(opened) => (self.first, self.opened) = (Some(Speaker::Server), Some(Ok(*opened))),
            Watched::Unreachable(failure) => (self.first, self.opened) = (Some(Speaker::Nobody), Some(Err(failure))),
        }
    }
}

/// Carries opaque bytes to where a connection was opened to; or records why there is none, and closes.
pub async fn carry(shared: &Rc<Shared>, opaque: Opaque) {
    let Opaque { downstream, bond, opened, idle, mut account, forbidden, mut stand } = opaque;
    match opened {
        Ok(opened) => {
            opened.tell(&mut account);
            let OpenedTcp { stream, in_flight, pass, bond: peer, .. } = opened;
            let wait = shared.patience.wait(idle);
            let denied = |account: &mut Account, cx: &mut Context<'_>| match &mut stand {
                None => Poll::Pending,
                Some(stand) => stand.poll_denied(cx).map(|denial| account.denied(denial.reason, denial.ruling.as_ref())),
            };
            let carrying = unless(forbidden, tcp::carry(downstream, stream, &mut account, (&wait, &shared.buffers), denied));
            match bound([bond, peer], carrying).await {
                Ok(None) => {}
                Ok(Some(failure)) => {
                    tracing::debug!(%failure, "an opaque connection is cut under a newer epoch");
                    account.failed(&failure);
                }
                Err(broken) => account.failed(&cut(&broken)),
            }
            drop((in_flight, pass));
        }
        Err(failure) => {
            tracing::debug!(%failure, "an opaque connection could not be carried");
            account.failed(&failure);
        }
    }
}

/// Awaits the work, unless it is forbidden before it is done: then why. The work is dropped in any case, which cuts what it carries.
async fn unless(mut forbidden: Option<Forbidden>, work: impl Future<Output = ()>) -> Option<Failure> {
    let mut work = pin!(work);
    poll_fn(|cx| match (work.as_mut().poll(cx), &mut forbidden) {
        (Poll::Ready(()), _) => Poll::Ready(None),
        (Poll::Pending, Some(forbidden)) => forbidden.as_mut().poll(cx).map(Some),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

/// A connection whose other end is no longer believed.
pub fn cut(broken: &PeerError) -> Failure {
    tracing::debug!(%broken, "a connection was cut");
    Failure::new(Reason::Denied, format!("the connection was cut: {broken}"))
}

/// Refuses a connection for `why`: HTTP gets an answer that says its reason, everything else is closed.
pub async fn refuse(
    shared: Rc<Shared>,
    mut stream: Stream,
    direction: Direction,
    snapshot: Arc<Snapshot>,
    downstream: Downstream,
    why: Failure,
) {
    let said = watch::client_first(&mut stream, Some(REFUSAL_WAIT), shared.drain.of(direction)).await;
    let Some(said) = said else { return };
    let Some(version) = Version::of(&said.sniffed) else {
        let mut account = shared.observer.begin_tcp(direction, &snapshot, &downstream);
        account.failed(&why);
        return;
    };
    let refused = Refused { shared: Rc::clone(&shared), snapshot, direction, downstream, why };
    serve(Box::new(HttpConnection { stream: Rewound::new(said.seen, stream), bond: None, version, connection: Rc::new(refused) }), &shared)
        .await;
}

/// A connection whose every request gets the same answer.
struct Refused {
    shared: Rc<Shared>,
    snapshot: Arc<Snapshot>,
    direction: Direction,
    downstream: Downstream,
    why: Failure,
}

impl Answers for Refused {
    fn caller(&self) -> Caller {
        Caller::Anybody
    }

    fn direction(&self) -> Direction {
        self.direction
    }

    fn answer(self: Rc<Self>, mut head: request::Parts, _: Received) -> Answering {
        let account = self.shared.observer.begin_http(self.direction, &self.snapshot, &mut head, &self.downstream);
        Answering::Ready(Box::new(failed(&self.shared, &self.why, head.version, account)))
    }

    fn malformed(&self, status: StatusCode) {
        malformed(&self.shared, self.direction, &self.snapshot, &self.downstream, status);
    }
}
