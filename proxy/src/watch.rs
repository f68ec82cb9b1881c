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
use engine::sniff::{SNIFF_BYTES_MAX, Sniffed, sniff};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

use crate::attempt::OpenedTcp;
use crate::drain::{Drain, Stage};
use crate::limits::{IDLE_GRACE, REFUSAL_WAIT, SNIFF_WAIT, SPECULATE_AFTER};

/// Bytes looked at per read while watching.
const LOOK_BYTES: usize = 4096;

/// What a client said first.
#[derive(Debug)]
pub struct Said {
    /// What it is; never [`Sniffed::NeedMore`].
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

/// Waits for the client's first words until they can be told from others; `wait` bounds the silence before them, and so does the end of
/// `drain`. `None`: it said nothing, or went away. On cancel, bytes taken are lost with the stream.
pub async fn client_first<S: AsyncRead + Unpin>(client: &mut S, wait: Option<Duration>, drain: &Rc<Drain>) -> Option<Said> {
    let mut seen = BytesMut::new();
    let first = match wait {
        Some(wait) => timeout(wait, first(client, &mut seen, drain)).await.ok()?,
        None => first(client, &mut seen, drain).await,
    };
    match first {
        Ok(1..) => Some(decided(client, seen).await),
        _ => None,
    }
}

/// Watches a connection whose protocol nobody declared. After a moment of silence the upstream is opened by `open`, and then whichever
/// side speaks first decides; an HTTP preface wins as long as the server has said nothing.
///
/// # Errors
/// The client went away, or `drain` has come to its end and neither side has said a word.
pub async fn both_sides<S, O>(client: &mut S, open: O, drain: &Rc<Drain>) -> io::Result<Watched>
where
    S: AsyncRead + Unpin,
    O: Future<Output = Result<OpenedTcp, Failure>>,
{
    let mut seen = BytesMut::new();
    if let Ok(count) = timeout(SPECULATE_AFTER, more(client, &mut seen)).await {
        present(count?)?;
        return Ok(Watched::Client(decided(client, seen).await, None));
    }
    let mut open = pin!(open);
    let opened = tokio::select! {
        biased;
        count = more(client, &mut seen) => {
            present(count?)?;
            return Ok(Watched::Client(decided(client, seen).await, None));
        }
        opened = &mut open => opened,
    };
    let mut opened = match opened {
        Ok(opened) => Box::new(opened),
        Err(failure) => {
            return Ok(match timeout(REFUSAL_WAIT, more(client, &mut seen)).await {
                Ok(count) => {
                    present(count?)?;
                    Watched::Client(decided(client, seen).await, None)
                }
                Err(_) => Watched::Unreachable(failure),
            });
        }
    };
    let mut greeting = BytesMut::new();
    tokio::select! {
        biased;
        count = first(client, &mut seen, drain) => present(count?)?,
        // Its end and its errors are found again by who carries the bytes.
        _ = more(&mut opened.stream, &mut greeting) => {
            opened.stream.put_back(greeting.freeze());
            return Ok(Watched::Server(opened));
        }
    }
    let said = decided(client, seen).await;
    let wanted = matches!(said.sniffed, Sniffed::Opaque | Sniffed::Tls(_));
    Ok(Watched::Client(said, wanted.then_some(opened)))
}

fn present(count: usize) -> io::Result<()> {
    if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Reads on until the first words are decided. Undecided ones are opaque when the client stops or takes too long.
async fn decided<S: AsyncRead + Unpin>(client: &mut S, mut seen: BytesMut) -> Said {
    let deciding = async {
        loop {
            match sniff(&seen) {
                Sniffed::NeedMore if seen.len() < SNIFF_BYTES_MAX => {}
                Sniffed::NeedMore => return Sniffed::Opaque,
                decided => return decided,
            }
            if !matches!(more(client, &mut seen).await, Ok(1..)) {
                return Sniffed::Opaque;
            }
        }
    };
    let sniffed = timeout(SNIFF_WAIT, deciding).await.unwrap_or(Sniffed::Opaque);
    Said { sniffed, seen: seen.freeze() }
}

/// Reads once; takes the end of a drain for the client's. Who is let in after that end has its grace, too.
async fn first<S: AsyncRead + Unpin>(client: &mut S, seen: &mut BytesMut, drain: &Rc<Drain>) -> io::Result<usize> {
    if drain.reached(Stage::Closing) {
        return timeout(IDLE_GRACE, more(client, seen)).await.unwrap_or(Ok(0));
    }
    let mut member = drain.join();
    tokio::select! {
        biased;
        count = more(client, seen) => count,
        () = member.stage(Stage::Closing) => Ok(0),
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
