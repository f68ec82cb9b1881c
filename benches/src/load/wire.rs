//! Lanes that speak HTTP/1.1 or raw TCP: one connection, one request at a time, one write and one read of the kernel for each.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fault::Fault;
use super::framing::Head;
use super::plan::{Plan, Target};
use super::tally::Meter;
use crate::sockets::connect;

/// Read at once; a response's head must fit.
const BUFFER_BYTES: usize = 16 << 10;
/// The same for big bodies.
const BULK_BUFFER_BYTES: usize = 256 << 10;

/// What one request is.
pub(super) enum Talk {
    /// HTTP/1.1.
    Http,
    /// As many bytes back as were sent, and the same ones.
    Echo,
}

/// One connection.
pub(super) struct Wire {
    address: SocketAddr,
    talk: Talk,
    request: Rc<[u8]>,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    fresh: bool,
    meter: Rc<Meter>,
}

/// The bytes of a request after `plan`.
pub(super) fn request(plan: &Plan, talk: &Talk) -> Rc<[u8]> {
    let body = vec![b'x'; plan.body_bytes];
    let Talk::Http = talk else { return body.into() };
    let Target { host, path, .. } = &plan.target;
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: benches\r\naccept: */*\r\n");
    if plan.fresh {
        text.push_str("connection: close\r\n");
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    [text.as_bytes(), &body].concat().into()
}

impl Wire {
    /// A lane without a connection yet.
    pub(super) fn new(plan: &Plan, talk: Talk, request: Rc<[u8]>, meter: Rc<Meter>) -> Self {
        let room = match talk {
            Talk::Http if plan.mode == super::Mode::Bulk => BULK_BUFFER_BYTES,
            Talk::Http => BUFFER_BYTES,
            Talk::Echo => plan.body_bytes,
        };
        Self { address: plan.target.address, talk, request, stream: None, buffer: vec![0; room], fresh: plan.fresh, meter }
    }

    /// Opens the connection, if there is none.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) async fn open(&mut self) -> Result<(), Error> {
        if self.stream.is_none() {
            self.stream = Some(connect(self.address).await?);
        }
        Ok(())
    }

    /// Closes the connection.
    pub(super) fn close(&mut self) {
        self.stream = None;
    }

    /// One request and its whole answer. When it fails, or is dropped midway, the connection must be closed.
    ///
    /// # Errors
    /// Why there is no right answer.
    pub(super) async fn exchange(&mut self) -> Result<(), Fault> {
        if self.stream.as_ref().is_some_and(|stream| !is_quiet(stream)) {
            self.close();
        }
        self.open().await.map_err(|error| Fault::of_connect(&error))?;
        let Some(stream) = &mut self.stream else { return Err(Fault::Closed) };
        stream.write_all(&self.request).await.map_err(|error| Fault::of_io(&error))?;
        let keep = match self.talk {
            Talk::Http => response(stream, &mut self.buffer, &self.meter).await?,
            Talk::Echo => {
                stream.read_exact(&mut self.buffer).await.map_err(|error| Fault::of_io(&error))?;
                self.meter.bytes(self.buffer.len());
                if *self.buffer != *self.request {
                    return Err(Fault::NotAnEcho);
                }
                true
            }
        };
        if self.fresh || !keep {
            self.close();
        }
        Ok(())
    }
}

/// Whether an idle connection can take a request: a peer that closed it, or spoke unasked, has made it readable. Without a system call
/// as long as nothing came.
fn is_quiet(stream: &TcpStream) -> bool {
    let mut one = [0];
    matches!(stream.try_read(&mut one), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Reads a response to its end; says whether the connection may be kept.
async fn response(stream: &mut TcpStream, buffer: &mut [u8], meter: &Meter) -> Result<bool, Fault> {
    let mut filled = 0;
    let head = loop {
        let room = &mut buffer[filled..];
        if room.is_empty() {
            return Err(Fault::Malformed);
        }
        match stream.read(room).await.map_err(|error| Fault::of_io(&error))? {
            0 if filled == 0 => return Err(Fault::Closed),
            0 => return Err(Fault::ShortBody),
            count => filled += count,
        }
        if let Some(head) = Head::parse(&buffer[..filled])? {
            break head;
        }
    };
    let mut body = head.body;
    meter.bytes(body.feed(&buffer[head.bytes..filled])?);
    while !body.is_whole() {
        match stream.read(buffer).await.map_err(|error| Fault::of_io(&error))? {
            0 if body.may_close() => break,
            0 => return Err(Fault::ShortBody),
            count => meter.bytes(body.feed(&buffer[..count])?),
        }
    }
    if !(200..300).contains(&head.status) {
        return Err(Fault::Status(head.status));
    }
    Ok(head.keep)
}
