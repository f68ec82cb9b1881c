//! Lanes that speak HTTP/2: many share one connection. gRPC is a unary call with a message of its own framing and its status in trailers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use tokio::sync::Mutex;

use super::args::Protocol;
use super::fault::Fault;
use super::plan::{Plan, Target};
use super::tally::Meter;
use crate::sockets::connect;

/// Flow control windows that never stand in the way of what is measured.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Before each gRPC message: not compressed, and the length (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;
/// Bytes of a gRPC message where the arguments name no size.
const MESSAGE_BYTES: usize = 1024;

/// One connection, opened when it is first used and again when it broke.
pub(super) struct Link {
    target: Target,
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// Which connection it is by now: a lane that fails drops only the one it used.
    number: Cell<u64>,
    opening: Mutex<()>,
}

impl Link {
    /// Not open yet.
    pub(super) fn new(plan: &Plan) -> Self {
        Self { target: plan.target.clone(), sender: RefCell::default(), number: Cell::new(0), opening: Mutex::default() }
    }

    /// The connection, and its number.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) async fn sender(&self) -> Result<(SendRequest<Bytes>, u64), Fault> {
        if let Some(sender) = &*self.sender.borrow() {
            return Ok((sender.clone(), self.number.get()));
        }
        let _alone = self.opening.lock().await;
        if let Some(sender) = &*self.sender.borrow() {
            return Ok((sender.clone(), self.number.get()));
        }
        let stream = connect(self.target.address).await.map_err(|error| Fault::of_connect(&error))?;
        let (sender, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| Fault::of_h2(&error))?;
        // What breaks the connection is told to each request on it.
        tokio::task::spawn_local(async move { drop(connection.await) });
        self.number.set(self.number.get() + 1);
        *self.sender.borrow_mut() = Some(sender.clone());
        Ok((sender, self.number.get()))
    }

    /// Does without that connection from now on. It closes when no lane uses it any more.
    pub(super) fn forget(&self, number: u64) {
        if self.number.get() == number {
            self.sender.borrow_mut().take();
        }
    }
}

/// What every lane sends.
pub(super) struct Call {
    request: Request<()>,
    body: Bytes,
    grpc: bool,
}

impl Call {
    /// After `plan`.
    ///
    /// # Errors
    /// The target's host is no authority.
    pub(super) fn new(plan: &Plan) -> anyhow::Result<Self> {
        let grpc = plan.protocol == Protocol::Grpc;
        let uri: Uri =
            Uri::builder().scheme("http").authority(plan.target.host.as_str()).path_and_query(plan.target.path.as_str()).build()?;
        let body = match plan.body_bytes {
            0 if grpc => framed(MESSAGE_BYTES)?,
            bytes if grpc => framed(bytes)?,
            bytes => vec![b'x'; bytes].into(),
        };
        let mut request = Request::builder().method(if body.is_empty() { Method::GET } else { Method::POST }).uri(uri).body(())?;
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("benches"));
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else if !body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, body.len().into());
        }
        Ok(Self { request, body, grpc })
    }
}

fn framed(bytes: usize) -> anyhow::Result<Bytes> {
    let mut message = BytesMut::with_capacity(PREFIX_BYTES + bytes);
    message.put_u8(0);
    message.put_u32(bytes.try_into()?);
    message.put_bytes(b'x', bytes);
    Ok(message.freeze())
}

/// One request at a time on a shared connection.
pub(super) struct Stream {
    link: Rc<Link>,
    call: Rc<Call>,
    fresh: bool,
    meter: Rc<Meter>,
}

impl Stream {
    /// A lane on `link`; with `fresh` the link is its own.
    pub(super) fn new(link: Rc<Link>, call: Rc<Call>, fresh: bool, meter: Rc<Meter>) -> Self {
        Self { link, call, fresh, meter }
    }

    /// Opens the connection, if there is none.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) async fn open(&self) -> Result<(), Fault> {
        self.link.sender().await.map(drop)
    }

    /// One request and its whole answer. Dropped midway, the stream is reset and the connection stays.
    ///
    /// # Errors
    /// Why there is no right answer.
    pub(super) async fn exchange(&self) -> Result<(), Fault> {
        let (sender, number) = self.link.sender().await?;
        let outcome = match sender.ready().await {
            Ok(sender) => self.call(sender).await,
            Err(error) => Err(error.into()),
        };
        // A stream's own error leaves the connection to the others.
        if self.fresh || matches!(&outcome, Err(Broken { connection: true, .. })) {
            self.link.forget(number);
        }
        outcome.map_err(|broken| broken.fault)
    }

    async fn call(&self, mut sender: SendRequest<Bytes>) -> Result<(), Broken> {
        let Call { request, body, grpc } = &*self.call;
        let (response, mut upload) = sender.send_request(request.clone(), body.is_empty())?;
        drop(sender);
        if !body.is_empty() {
            upload.send_data(body.clone(), true)?;
        }
        let (head, mut content) = response.await?.into_parts();
        let mut message = Message::default();
        while let Some(part) = content.data().await {
            let part = part?;
            content.flow_control().release_capacity(part.len())?;
            self.meter.bytes(part.len());
            if *grpc {
                message.feed(&part);
            }
        }
        if !head.status.is_success() {
            return Err(Fault::Status(head.status.as_u16()).into());
        }
        if *grpc {
            let trailers = content.trailers().await?;
            status(trailers.as_ref().unwrap_or(&head.headers))?;
            message.check(body.len())?;
        }
        Ok(())
    }
}

/// A failure, and whether the connection is gone with it.
struct Broken {
    fault: Fault,
    connection: bool,
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self { fault, connection: false }
    }
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self { fault: Fault::of_h2(&error), connection: !error.is_reset() }
    }
}

fn status(trailers: &HeaderMap) -> Result<(), Fault> {
    let Some(value) = trailers.get("grpc-status") else { return Err(Fault::GrpcStatusMissing) };
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(0) => Ok(()),
        Some(code) => Err(Fault::GrpcStatus(code)),
        None => Err(Fault::Malformed),
    }
}

/// The length-prefixed message of an answer.
#[derive(Default)]
struct Message {
    prefix: [u8; PREFIX_BYTES],
    total: usize,
}

impl Message {
    fn feed(&mut self, part: &[u8]) {
        for (slot, byte) in self.prefix.iter_mut().skip(self.total).zip(part) {
            *slot = *byte;
        }
        self.total += part.len();
    }

    /// Whole, not compressed, and as long as what was sent.
    fn check(&self, sent: usize) -> Result<(), Fault> {
        let [compressed, length @ ..] = self.prefix;
        let announced = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_add(PREFIX_BYTES);
        if self.total < PREFIX_BYTES || self.total < announced {
            return Err(Fault::ShortBody);
        }
        if self.total > announced || compressed != 0 {
            return Err(Fault::Malformed);
        }
        if self.total == sent { Ok(()) } else { Err(Fault::NotAnEcho) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_answers_are_whole_or_fail() {
        // Aim: a message cut short, of another length or without status is no right answer, however it was cut into frames.
        let sent = framed(10).unwrap();
        let judge = |text: &[u8]| {
            let mut message = Message::default();
            text.chunks(3).for_each(|part| message.feed(part));
            message.check(sent.len())
        };
        assert_eq!(judge(&sent), Ok(()));
        assert_eq!(judge(&sent[..9]), Err(Fault::ShortBody));
        assert_eq!(judge(&sent[..2]), Err(Fault::ShortBody));
        assert_eq!(judge(&[&sent[..], b"y"].concat()), Err(Fault::Malformed));
        assert_eq!(judge(&framed(9).unwrap()), Err(Fault::NotAnEcho));
        let told = |text: &'static str| status(&HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(text))]));
        assert_eq!((told("0"), told("14"), told("x")), (Ok(()), Err(Fault::GrpcStatus(14)), Err(Fault::Malformed)));
        assert_eq!(status(&HeaderMap::new()), Err(Fault::GrpcStatusMissing));
    }
}
