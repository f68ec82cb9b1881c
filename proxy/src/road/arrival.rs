//! A connection on its way into a road.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use engine::decide::{First, Known, Version};
use engine::failure::{Failure, Reason};
use engine::model::Snapshot;
use engine::sniff::Sniffed;
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
    /// The server's side.
    pub opened: Result<OpenedTcp, Failure>,
    /// Silence that ends it.
    pub idle: Option<Duration>,
    /// Recorded at the end.
    pub account: Account,
    /// Its place among what is asked again where policies change.
    pub stand: Option<Stand>,
}

/// What was heard on a connection by now, in the clear: the shell's half of [`Known`].
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
    /// As the engine wants to know it. The control plane was asked before.
    pub fn known(&self) -> Known<'_> {
        let first = self.first.as_ref().map(|first| match first {
            Speaker::Client(sniffed) => First::Client(sniffed),
            Speaker::Server => First::Server,
            Speaker::Nobody => First::Nobody,
        });
        Known { asked: true, first, ..Known::default() }
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
    let Opaque { downstream, opened, idle, mut account, mut stand } = opaque;
    match opened {
        Ok(opened) => {
            opened.tell(&mut account);
            let OpenedTcp { stream, in_flight, pass, .. } = opened;
            let wait = shared.patience.wait(idle);
            let denied = |account: &mut Account, cx: &mut Context<'_>| match &mut stand {
                None => Poll::Pending,
                Some(stand) => stand.poll_denied(cx).map(|denial| account.denied(denial.reason, denial.ruling.as_ref())),
            };
            tcp::carry(downstream, stream, &mut account, (&wait, &shared.buffers), denied).await;
            drop((in_flight, pass));
        }
        Err(failure) => {
            tracing::debug!(%failure, "an opaque connection could not be carried");
            account.failed(&failure);
        }
    }
}

/// Refuses a connection: HTTP gets an answer that says why, everything else is closed.
pub async fn refuse(
    shared: Rc<Shared>,
    mut stream: Stream,
    direction: Direction,
    snapshot: Arc<Snapshot>,
    downstream: Downstream,
    reason: Reason,
) {
    let said = watch::client_first(&mut stream, Some(REFUSAL_WAIT), shared.drain.of(direction)).await;
    let Some(said) = said else { return };
    let Some(version) = Version::of(&said.sniffed) else {
        let mut account = shared.observer.begin_tcp(direction, &snapshot, &downstream);
        account.failed(&why(reason, &downstream));
        return;
    };
    let refused = Refused { shared: Rc::clone(&shared), snapshot, direction, downstream, reason };
    serve(Box::new(HttpConnection { stream: Rewound::new(said.seen, stream), version, connection: Rc::new(refused) }), &shared).await;
}

fn why(reason: Reason, downstream: &Downstream) -> Failure {
    let cause = match reason {
        Reason::Denied => "the mesh forbids calls to addresses it does not know (Mesh spec.outsideMesh: Deny)",
        Reason::ConfigPending => "nothing is known yet about this destination: the control plane has not answered",
        Reason::NoRoute => "the mesh serves nothing at this port of the address: its Service or Gateway does not declare it",
        _ => "refused",
    };
    Failure::new(reason, format!("{}: {cause}", downstream.local))
}

/// A connection whose every request gets the same answer.
struct Refused {
    shared: Rc<Shared>,
    snapshot: Arc<Snapshot>,
    direction: Direction,
    downstream: Downstream,
    reason: Reason,
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
        Answering::Ready(Box::new(failed(&self.shared, &why(self.reason, &self.downstream), head.version, account)))
    }

    fn malformed(&self, status: StatusCode) {
        malformed(&self.shared, self.direction, &self.snapshot, &self.downstream, status);
    }
}
