//! Finding out what a connection carries, by watching both sides and never by guessing from time alone.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::failure::Failure;
use engine::model::build::OPAQUE_IDLE_DEFAULT;
use engine::sniff::{SNIFF_BYTES_MAX, Sniffed, sniff};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

use crate::ground::drain::{Drain, DrainStage};
use crate::ground::limits::{IDLE_GRACE, KEPT_WAIT, REFUSAL_WAIT, SNIFF_WAIT, SPECULATE_AFTER};
use crate::io::Abrupt as _;
use crate::road::attempt::OpenedTcp;

/// Bytes looked at per read while watching.
const LOOK_BYTES: usize = 4096;

/// What a client said first.
#[derive(Debug)]
pub struct Said {
    /// What it is; [`Sniffed::NeedMore`]: it did not say enough in time, or has ended.
    pub sniffed: Sniffed,
    /// The bytes, which were taken off the stream.
    pub seen: Bytes,
}

/// How watching ended.
pub enum Watched {
    /// The client spoke first. What was opened on suspicion is there if its bytes are opaque.
    Client(Said, Option<Box<OpenedTcp>>),
    /// The server spoke first; what it said comes first out of the connection.
    Server(Box<OpenedTcp>),
    /// The client said nothing and the server cannot be reached.
    Unreachable(Failure),
}

/// Waits for the client's first words until they can be told from others; `wait` bounds the silence before them (`None`: [`KEPT_WAIT`], as for
/// every connection without an exchange), and so does the end of `drain`. `None`: it said nothing, or went away. On cancel, bytes taken are lost with the stream.
pub async fn client_first<S: AsyncRead + Unpin>(client: &mut S, wait: Option<Duration>, drain: &Rc<Drain>) -> Option<Said> {
    let mut seen = BytesMut::new();
    match timeout(wait.unwrap_or(KEPT_WAIT), first(client, &mut seen, drain)).await.ok()? {
        Ok(FirstSign::Word) => Some(decided(client, seen).await),
        _ => None,
    }
}

/// The same of a client of which something was read before.
pub async fn client_goes_on<S: AsyncRead + Unpin>(client: &mut S, seen: Bytes) -> Said {
    decided(client, BytesMut::from(&seen[..])).await
}

/// Watches a connection whose protocol nobody declared. After a moment of silence the upstream is opened by `open`, and then whichever
/// side speaks first decides; an HTTP preface wins as long as the server has said nothing. A client that ends its side without a word
/// may wait for the server's: its bytes are opaque, and none.
///
/// # Errors
/// The client broke off, `drain` has come to its end and neither side has said a word, or neither has for as long as opaque bytes may rest.
pub async fn both_sides<S, O>(client: &mut S, open: O, drain: &Rc<Drain>) -> io::Result<Watched>
where
    S: AsyncRead + Unpin,
    O: Future<Output = Result<OpenedTcp, Failure>>,
{
    let mut seen = BytesMut::new();
    if let Ok(count) = timeout(SPECULATE_AFTER, more(client, &mut seen)).await {
        return Ok(Watched::Client(spoken(client, count?, seen).await, None));
    }
    let mut open = pin!(open);
    let opened = tokio::select! {
        biased;
        count = more(client, &mut seen) => return Ok(Watched::Client(spoken(client, count?, seen).await, None)),
        opened = &mut open => opened,
    };
    let mut opened = match opened {
        Ok(opened) => Box::new(opened),
        Err(failure) => {
            return Ok(match timeout(REFUSAL_WAIT, more(client, &mut seen)).await {
                Ok(count) => Watched::Client(spoken(client, count?, seen).await, None),
                Err(_) => Watched::Unreachable(failure),
            });
        }
    };
    let mut greeting = BytesMut::new();
    let said = tokio::select! {
        biased;
        first = timeout(OPAQUE_IDLE_DEFAULT, first(client, &mut seen, drain)) => match first {
            Ok(Ok(FirstSign::Word)) => decided(client, seen).await,
            Ok(Ok(FirstSign::End)) => Said::nothing(),
            Ok(Ok(FirstSign::Drained)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => {
                opened.stream.abort();
                return Err(error);
            }
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        },
        // Its end and its errors are found again by who carries the bytes.
        _ = more(&mut opened.stream, &mut greeting) => {
            opened.stream.put_back(greeting.freeze());
            return Ok(Watched::Server(opened));
        }
    };
    let wanted = !matches!(said.sniffed, Sniffed::Http1 | Sniffed::Http2);
    Ok(Watched::Client(said, wanted.then_some(opened)))
}

impl Said {
    /// The client has ended its side.
    fn nothing() -> Self {
        Self { sniffed: Sniffed::Opaque, seen: Bytes::new() }
    }
}

async fn spoken<S: AsyncRead + Unpin>(client: &mut S, count: usize, seen: BytesMut) -> Said {
    if count == 0 { Said::nothing() } else { decided(client, seen).await }
}

/// Reads on until the first words are decided, the client stops or takes too long.
async fn decided<S: AsyncRead + Unpin>(client: &mut S, mut seen: BytesMut) -> Said {
    let deciding = async {
        loop {
            match sniff(&seen) {
                Sniffed::NeedMore if seen.len() < SNIFF_BYTES_MAX => {}
                Sniffed::NeedMore => return Sniffed::NeedMore,
                decided => return decided,
            }
            if !matches!(more(client, &mut seen).await, Ok(1..)) {
                return Sniffed::NeedMore;
            }
        }
    };
    let sniffed = timeout(SNIFF_WAIT, deciding).await.unwrap_or(Sniffed::NeedMore);
    Said { sniffed, seen: seen.freeze() }
}

/// What came first.
enum FirstSign {
    /// Bytes.
    Word,
    /// The client's end.
    End,
    /// The end of the drain. Who is let in after that end has its grace, too.
    Drained,
}

/// Reads once, until the end of a drain.
async fn first<S: AsyncRead + Unpin>(client: &mut S, seen: &mut BytesMut, drain: &Rc<Drain>) -> io::Result<FirstSign> {
    let of = |count: usize| if count == 0 { FirstSign::End } else { FirstSign::Word };
    if drain.reached(DrainStage::Closing) {
        return timeout(IDLE_GRACE, more(client, seen)).await.map_or(Ok(FirstSign::Drained), |count| count.map(of));
    }
    let mut member = drain.join();
    tokio::select! {
        biased;
        count = more(client, seen) => count.map(of),
        () = member.stage(DrainStage::Closing) => Ok(FirstSign::Drained),
    }
}

/// Reads once, without room of its own while it waits. Cancel-safe.
async fn more<S: AsyncRead + Unpin>(stream: &mut S, seen: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut room = [MaybeUninit::uninit(); LOOK_BYTES];
        let mut look = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut look))?;
        seen.extend_from_slice(look.filled());
        Poll::Ready(Ok(look.filled().len()))
    })
    .await
}
