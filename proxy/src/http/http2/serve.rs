//! Serving HTTP/2 on a connection.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use engine::failure::Reason;
use engine::model::ClientRules;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Request, Response, request};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::timeout;

use super::Pump;
use super::pings::Pings;
use crate::ground::body::{Body, Received};
use crate::ground::drain::{Drain, DrainStage, Member};
use crate::ground::limits::HEAD_WAIT;
use crate::ground::line::{Interim, Line};
use crate::ground::patience::Patience;
use crate::ground::tally::{Sender, Tally};
use crate::ground::windows::{Bodies, Turned, Windows};
use crate::http::kept::{Kept, KeptTerms};
use crate::http::reply::CutOff;

use crate::io::{Attended, Gathered, Gathering, Notes, Pressure, Rewound, Stream, Unstalled, gather};

/// Serves HTTP/2 to its end; every turn of the connection ends with what it wrote on its way. Says GOAWAY when the worker drains. Dropping
/// the future cuts the connection; what is being answered on it ends by itself.
pub(crate) async fn serve<F, A>(
    stream: Rewound<Stream>,
    (bodies, patience, pressure): (&Rc<Bodies>, &Rc<Patience>, &Pressure),
    (sender, rules): (Sender, Option<&ClientRules>),
    drain: &Rc<Drain>,
    answer: F,
) where
    F: Fn(request::Parts, Received) -> A,
    A: Future<Output = Result<Response<Body>, CutOff>> + 'static,
{
    let terms = KeptTerms::of(rules, false);
    let notes = Notes::of(pressure, false, terms.stall);
    let inner = sender == Sender::Peer;
    let (stream, gathering) = gather(
        Unstalled::new(stream, Arc::clone(&notes)),
        Tally::new(sender, bodies.floods()).resets(rules.map(|rules| rules.http2.resets_per_minute)),
    );
    let windows = bodies.connection();
    let serving = async {
        let mut member = drain.join();
        let handshake = pin!(super::server_builder(&windows, sender, rules.map(|rules| &rules.http2)).handshake(stream));
        let mut kept = Kept::new(patience, notes, terms);
        // A stream that is cut says so itself, whatever its connection's end looks like.
        kept.finish(false);
        let ended = match shake_hands(handshake, &mut member, rules.map_or(HEAD_WAIT, |rules| rules.timeouts.request_headers)).await {
            Some(Ok(mut connection)) => {
                let every = rules.and_then(|rules| rules.http2.ping_every);
                let pings = every.and_then(|every| Some(Box::new(Pings::new(connection.ping_pong()?, every))));
                let conversation = Conversation {
                    connection,
                    gathering: &gathering,
                    calmed: false,
                    windows,
                    fixed: rules.is_some_and(|rules| rules.http2.windows.is_some()),
                    pings,
                    patience,
                    kept,
                    streams: Rc::new(Streams { stall_ms: terms.stall.map_or(0, millis), ..Streams::default() }),
                    begun: 0,
                    inner,
                    member,
                    told: false,
                    left: false,
                    answer,
                };
                conversation.run().await
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP/2 connection ended badly");
        }
    };
    gathering.drive(serving).await;
}

/// `None`: the drain came to its end first, or the client took too long for its preface.
async fn shake_hands(
    mut handshake: Pin<&mut h2::server::Handshake<Gathered<Attended>, Bytes>>,
    member: &mut Member,
    wait: Duration,
) -> Option<Result<Connection<Gathered<Attended>, Bytes>, h2::Error>> {
    let shaken = poll_fn(|cx| match handshake.as_mut().poll(cx) {
        Poll::Ready(shaken) => Poll::Ready(Some(shaken)),
        Poll::Pending => member.poll_stage(DrainStage::Closing, cx).map(|()| None),
    });
    timeout(wait, shaken).await.ok().flatten()
}

/// A connection and what its turns need.
struct Conversation<'a, F> {
    connection: Connection<Gathered<Attended>, Bytes>,
    gathering: &'a Gathering<Attended>,
    /// The peer was told that its frames are too many.
    calmed: bool,
    windows: Rc<Windows>,
    /// They are what the peer was told first, however many bodies there are.
    fixed: bool,
    /// Questions whether a client lives, where a ClientPolicy wants them.
    pings: Option<Box<Pings>>,
    patience: &'a Patience,
    kept: Box<Kept>,
    streams: Rc<Streams>,
    /// Streams that have begun; wraps.
    begun: u32,
    /// The peer is one of the mesh.
    inner: bool,
    member: Member,
    told: bool,
    /// It was told, and has had its time since.
    left: bool,
    answer: F,
}

impl<F, A> Conversation<'_, F>
where
    F: Fn(request::Parts, Received) -> A,
    A: Future<Output = Result<Response<Body>, CutOff>> + 'static,
{
    async fn run(mut self) -> Result<(), h2::Error> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match self.connection.poll_accept(cx) {
                // After an error of the connection there would be no end of further ones.
                Poll::Ready(Some(accepted)) => {
                    let (request, reply) = accepted?;
                    self.begin(request, reply);
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if self.has_more_to_say(cx) => {}
                Poll::Pending if self.is_dead() => return Ok(()).into(),
                // GOAWAY is said, and the library waits for an answer that nobody need give.
                Poll::Pending if self.left => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The client has not answered when it was asked: dropping the connection closes it.
    fn is_dead(&self) -> bool {
        self.pings.as_ref().is_some_and(|pings| pings.unanswered())
    }

    fn begin(&mut self, request: Request<RecvStream>, reply: SendResponse<Bytes>) {
        let (head, stream) = request.into_parts();
        let admitted = if super::too_large(&head.headers, Some(&head.uri), self.inner) {
            Err(Reason::TooLarge)
        } else if stream.is_end_stream() {
            Ok(None)
        } else if self.windows.full() {
            Err(Reason::Overflow)
        } else {
            Ok(Some(self.windows.enter()))
        };
        let line = Arc::<Line>::default();
        let received = Received::http2(stream, &head.headers, admitted, Some(Arc::clone(&line)));
        let under_way = UnderWay::begin(&self.streams);
        self.begun = self.begun.wrapping_add(1);
        let answer = (self.answer)(head, received);
        tokio::task::spawn_local(Responding::Answering { answer, reply: Some(reply), line, under_way: Some(under_way), send });
    }

    fn has_more_to_say(&mut self, cx: &mut Context<'_>) -> bool {
        if self.gathering.is_flooded() && !self.calmed {
            tracing::debug!("an HTTP/2 peer sends too many frames that ask for nothing");
            self.calmed = true;
            self.connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            return true;
        }
        if self.pings.as_mut().is_some_and(|pings| pings.poll(cx)) {
            return true;
        }
        let over = self.kept.poll_over((self.streams.count.get() > 0, self.begun), cx).is_ready();
        self.left = over && self.told;
        if !self.told && (over || self.streams.last.get() || self.member.poll_stage(DrainStage::Told, cx).is_ready()) {
            self.told = true;
            if over {
                self.kept.farewell();
            }
            self.connection.graceful_shutdown();
            return true;
        }
        if self.fixed {
            return false;
        }
        let connection = &mut self.connection;
        match self.windows.turn(self.patience.tick(), cx, |size| connection.set_initial_window_size(size).is_ok()) {
            Turned::Same => false,
            Turned::Told => true,
            Turned::Owed => {
                tracing::debug!("an HTTP/2 peer does not acknowledge SETTINGS");
                connection.abrupt_shutdown(h2::Reason::SETTINGS_TIMEOUT);
                true
            }
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// The streams of a connection.
#[derive(Debug, Default)]
struct Streams {
    count: Cell<usize>,
    /// The connection is to end in order with those that are under way.
    last: Cell<bool>,
    /// How long the peer may take nothing of an answer; 0: as long as it likes.
    stall_ms: u32,
}

/// One of them; dropped when it is over.
struct UnderWay(Rc<Streams>);

impl UnderWay {
    fn begin(streams: &Rc<Streams>) -> Self {
        streams.count.set(streams.count.get() + 1);
        Self(Rc::clone(streams))
    }

    /// Its answer is there, which wakes the connection's task.
    fn answered(&self, line: &Line) {
        self.0.last.set(self.0.last.get() || line.is_last());
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
    }
}

pin_project! {
    /// Answers one request, with the interim answers that come over `line` before, and then sends the answer. One after the other in the same
    /// room, which an `async fn` would hold twice. Who resets the stream is not waited for: the answer is dropped.
    #[project = RespondingNow]
    enum Responding<A, S> {
        Answering {
            #[pin]
            answer: A,
            reply: Option<SendResponse<Bytes>>,
            line: Arc<Line>,
            under_way: Option<UnderWay>,
            send: fn(Response<Body>, SendResponse<Bytes>, UnderWay) -> S,
        },
        Sending {
            #[pin]
            sending: S,
        },
    }
}

impl<A, S> Future for Responding<A, S>
where
    A: Future<Output = Result<Response<Body>, CutOff>>,
    S: Future<Output = ()>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sending = match self.as_mut().project() {
            RespondingNow::Sending { sending } => return sending.poll(cx),
            RespondingNow::Answering { mut answer, reply: place, line, under_way, send } => {
                let Some(reply) = place else { return Poll::Ready(()) };
                let polled = answer.as_mut().poll(cx);
                while let Poll::Ready(Interim { status, headers }) = line.poll_interim(cx) {
                    let mut head = Response::new(());
                    (*head.status_mut(), *head.headers_mut()) = (status, headers);
                    let _ = reply.send_informational(head);
                }
                let answered = match polled {
                    Poll::Ready(answered) => Some(answered),
                    Poll::Pending => {
                        let _reset = ready!(reply.poll_reset(cx));
                        None
                    }
                };
                line.answered();
                let (Some(under_way), Some(mut reply)) = (under_way.take(), place.take()) else { return Poll::Ready(()) };
                under_way.answered(line);
                match answered {
                    Some(Ok(response)) => send(response, reply, under_way),
                    Some(Err(CutOff)) => {
                        reply.send_reset(h2::Reason::INTERNAL_ERROR);
                        return Poll::Ready(());
                    }
                    None => return Poll::Ready(()),
                }
            }
        };
        self.set(Self::Sending { sending });
        self.poll(cx)
    }
}

async fn send(response: Response<Body>, mut reply: SendResponse<Bytes>, under_way: UnderWay) {
    let (mut head, body) = response.into_parts();
    super::fit(&mut head.headers, false);
    if let Body::Bytes(bytes) = &body {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes.len()));
    }
    let end = body.is_end_stream();
    match reply.send_response(Response::from_parts(head, ()), end) {
        Ok(_) if end => {}
        Ok(stream) => {
            drop(reply);
            match under_way.0.stall_ms {
                0 => Pump::new(body, stream).run().await,
                // Boxed: few are watched, and all would be as large.
                stall_ms => Box::pin(Pump::new(body, stream).run_within(stall_ms)).await,
            };
        }
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be sent");
            reply.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }
    drop(under_way);
}
