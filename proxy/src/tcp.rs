//! Opaque bytes, both ways, with half-close.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use engine::failure::{Failure, Reason};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::ground::limits::{COPY_BUFFER_BYTES, COPY_BUFFERS_KEPT_MAX};
use crate::ground::patience::Wait;
use crate::io::Abrupt;
use crate::observe::Account;

type Buffer = Box<[u8; COPY_BUFFER_BYTES]>;

/// One worker's copy buffers. A connection holds one per direction only while bytes are under way, so idle ones cost none.
#[derive(Debug, Default)]
pub struct Buffers(RefCell<Vec<Buffer>>);

impl Buffers {
    fn take(&self) -> Buffer {
        self.0.borrow_mut().pop().unwrap_or_else(|| {
            let zeroed: Box<[u8]> = vec![0; COPY_BUFFER_BYTES].into_boxed_slice();
            zeroed.try_into().expect("the slice has the buffer's length")
        })
    }

    /// Frees what is kept, which comes again with the next bytes.
    pub fn forget(&self) {
        self.0.take();
    }

    fn give_back(&self, buffer: Buffer) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < COPY_BUFFERS_KEPT_MAX {
            kept.push(buffer);
        }
    }
}

/// Why copying stopped short.
#[derive(Debug)]
enum Halt {
    Reading(io::Error),
    Writing(io::Error),
}

/// One direction's state.
struct Flow {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    ended: bool,
    unflushed: bool,
    done: bool,
    /// Reading failed after bytes that are to be written first.
    broken: Option<io::Error>,
}

impl Flow {
    const fn new() -> Self {
        Self { buffer: None, start: 0, end: 0, ended: false, unflushed: false, done: false, broken: None }
    }

    /// Moves what can be moved. Ready when the reader has ended and the writer knows. `reset`: the reader's side has reset the connection,
    /// and the kernel has told who wrote to it; who reads hears of it only once, and then of an end.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        (reader, writer): (&mut R, &mut W),
        (buffers, reset): (&Buffers, bool),
        mut moved: impl FnMut(usize),
    ) -> Poll<Result<(), Halt>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let mut dry = false;
            if self.start == self.end && !self.ended {
                match self.poll_fill(cx, reader, buffers).map_err(Halt::Reading)? {
                    Filled::Nothing => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Halt::Writing)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                    Filled::All { more } => {
                        moved(self.end);
                        dry = !more;
                    }
                }
            }
            while let Some(buffer) = &self.buffer
                && self.start < self.end
            {
                let count = ready!(Pin::new(&mut *writer).poll_write(cx, &buffer[self.start..self.end])).map_err(Halt::Writing)?;
                if count == 0 {
                    return Poll::Ready(Err(Halt::Writing(io::ErrorKind::WriteZero.into())));
                }
                self.start += count;
                self.unflushed = true;
            }
            if let Some(buffer) = self.buffer.take() {
                buffers.give_back(buffer);
            }
            if self.ended && reset {
                return Poll::Ready(Err(Halt::Reading(io::ErrorKind::ConnectionReset.into())));
            }
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Halt::Writing)?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if dry {
                // The reader wakes us when there is more.
                ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Halt::Writing)?;
                self.unflushed = false;
                return Poll::Pending;
            }
        }
    }

    /// Nobody takes this direction's bytes any more.
    fn give_up(&mut self, buffers: &Buffers) {
        self.done = true;
        if let Some(buffer) = self.buffer.take() {
            buffers.give_back(buffer);
        }
    }

    /// Reads until the buffer is full or there is nothing more to read now, so that a TLS reader, which gives one record at a time, costs
    /// the writer one system call for several of them.
    fn poll_fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, reader: &mut R, buffers: &Buffers) -> io::Result<Filled> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        let mut buffer = self.buffer.take().unwrap_or_else(|| buffers.take());
        let mut free = ReadBuf::new(&mut buffer[..]);
        let mut more = true;
        while free.remaining() > 0 {
            let before = free.filled().len();
            match Pin::new(&mut *reader).poll_read(cx, &mut free) {
                Poll::Ready(Ok(())) if free.filled().len() > before => continue,
                Poll::Ready(Ok(())) => self.ended = true,
                Poll::Ready(Err(error)) => self.broken = Some(error),
                Poll::Pending => more = false,
            }
            break;
        }
        let count = free.filled().len();
        (self.start, self.end) = (0, count);
        if count > 0 {
            self.buffer = Some(buffer);
            return Ok(Filled::All { more });
        }
        buffers.give_back(buffer);
        match self.broken.take() {
            Some(error) => Err(error),
            None if self.ended => Ok(Filled::All { more }),
            None => Ok(Filled::Nothing),
        }
    }
}

/// What one round of reading brought.
enum Filled {
    /// Nothing; the reader wakes us.
    Nothing,
    /// What there was, or the end. `more`: there may be more; else the reader wakes us.
    All { more: bool },
}

/// The streams of a connection while bytes are under way. Dropped before both directions have come to their end, whatever the reason, it
/// cuts both: a reader must not take what has come so far for all.
struct Copying<D: Abrupt, U: Abrupt> {
    downstream: D,
    upstream: U,
    ended: bool,
}

impl<D: Abrupt, U: Abrupt> Drop for Copying<D, U> {
    fn drop(&mut self) {
        if !self.ended {
            self.downstream.abort();
            self.upstream.abort();
        }
    }
}

/// Carries bytes both ways until both directions have ended, one side breaks off, or nothing moves for as long as `wait` allows. What a side
/// said before it stopped listening still arrives: servers turn clients away with a word and a reset. Tells `exchange` the bytes and how
/// it ended. The streams are closed on return. A cut stays a cut: where one side broke off, nothing moved for too long, or the future is
/// dropped, the other side is aborted and not closed. So it is where `denied` says that it may not go on, which tells `account` why.
pub async fn carry<D, U>(
    downstream: D,
    upstream: U,
    account: &mut Account,
    (wait, buffers): (&Wait, &Rc<Buffers>),
    mut denied: impl FnMut(&mut Account, &mut Context<'_>) -> Poll<()>,
) where
    D: AsyncRead + AsyncWrite + Abrupt + Unpin,
    U: AsyncRead + AsyncWrite + Abrupt + Unpin,
{
    let mut pair = Copying { downstream, upstream, ended: false };
    let Copying { downstream, upstream, ended } = &mut pair;
    let (mut up, mut down) = (Flow::new(), Flow::new());
    let (mut deaf, mut reset) = (None, [false; 2]);
    let failure = poll_fn(|cx| {
        // Before a byte is moved: it may be forbidden by now.
        if denied(account, cx).is_ready() {
            return Poll::Ready(None);
        }
        if !up.done {
            let moved = |bytes: usize| {
                wait.touch();
                account.add_request_bytes(bytes as u64);
            };
            match up.poll(cx, (&mut *downstream, &mut *upstream), (buffers, reset[0]), moved) {
                Poll::Ready(Err(Halt::Writing(error))) => {
                    reset[1] = is_reset(&error);
                    up.give_up(buffers);
                    deaf.get_or_insert_with(|| failure(Halt::Writing(error), ReadFrom::Downstream));
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Some(failure(broken, ReadFrom::Downstream))),
                _ => {}
            }
        }
        if !down.done {
            let moved = |bytes: usize| {
                wait.touch();
                account.add_response_bytes(bytes as u64);
            };
            match down.poll(cx, (&mut *upstream, &mut *downstream), (buffers, reset[1]), moved) {
                Poll::Ready(Err(Halt::Writing(error))) => {
                    reset[0] = is_reset(&error);
                    down.give_up(buffers);
                    deaf.get_or_insert_with(|| failure(Halt::Writing(error), ReadFrom::Upstream));
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Some(failure(broken, ReadFrom::Upstream))),
                _ => {}
            }
        }
        if up.done && down.done {
            *ended = true;
            return Poll::Ready(deaf.take());
        }
        wait.poll_overdue(cx).map(|()| Some(Failure::new(Reason::IdleTimeout, "nothing was sent by either side for too long")))
    })
    .await;
    if let Some(failure) = failure {
        account.failed(&failure);
    }
}

fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

/// Who was being read from.
#[derive(Clone, Copy)]
enum ReadFrom {
    Downstream,
    Upstream,
}

fn failure(broken: Halt, reading_from: ReadFrom) -> Failure {
    match (broken, reading_from) {
        (Halt::Reading(error), ReadFrom::Downstream) | (Halt::Writing(error), ReadFrom::Upstream) => {
            Failure::new(Reason::ClientGone, format!("the client broke off: {error}"))
        }
        (Halt::Reading(error), ReadFrom::Upstream) | (Halt::Writing(error), ReadFrom::Downstream) => {
            Failure::new(Reason::UpstreamReset, format!("the server broke off: {error}"))
        }
    }
}
