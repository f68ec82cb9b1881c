//! gRPC-Web at an edge: browsers call gRPC over any version of HTTP, with trailers in the body, plain or as base64 (gRPC's `PROTOCOL-WEB.md`).
//! What goes on to the server is gRPC.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use engine::failure::Reason;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Response, request};
use http_body::{Body as _, Frame, SizeHint};

use crate::ground::body::{Body, Cut, Source};
use crate::ground::line::Line;

const GRPC: &str = "application/grpc";
const WEB: &str = "application/grpc-web";
const TEXT: &str = "application/grpc-web-text";
/// Marks a frame that holds trailers.
const TRAILERS: u8 = 0x80;
/// Characters of base64 that stand for some bytes together.
const QUANTUM: usize = 4;

/// How a caller frames what it says and hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebForm {
    /// As bytes.
    Binary,
    /// As base64.
    Text,
}

impl WebForm {
    /// Of a request; `None`: it is no call of gRPC-Web.
    #[inline]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(CONTENT_TYPE)?.as_bytes();
        if !kind.starts_with(WEB.as_bytes()) {
            return None;
        }
        let is = |name: &str| kind.strip_prefix(name.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
        if is(TEXT) {
            return Some(Self::Text);
        }
        is(WEB).then_some(Self::Binary)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Binary => WEB,
            Self::Text => TEXT,
        }
    }

    /// Makes a request's head that of a call of gRPC.
    pub fn begin(self, parts: &mut request::Parts) {
        rename(&mut parts.headers, self.name(), GRPC);
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }

    /// A request's body, as gRPC frames it.
    pub fn request(self, body: Body) -> Body {
        match self {
            Self::Text if !body.is_end_stream() => Body::Made(Box::new(Decoded { inner: body, ahead: BytesMut::new(), over: false })),
            _ => body,
        }
    }

    /// The beginning of a request's body, as gRPC frames it; what is no base64 stays what it is.
    pub fn shown(self, bytes: &Bytes) -> Bytes {
        let whole = bytes.len() / QUANTUM * QUANTUM;
        match self {
            Self::Binary => bytes.clone(),
            Self::Text => decode(&bytes[..whole]).map_or_else(|_| bytes.clone(), Bytes::from),
        }
    }

    /// An answer as its caller reads it. One that is none of gRPC stays what it is, and so does one whose head says all.
    pub fn answer(self, response: Response<Body>) -> Response<Body> {
        let grpc = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()));
        if !grpc {
            return response;
        }
        let (mut head, body) = response.into_parts();
        rename(&mut head.headers, GRPC, self.name());
        if body.is_end_stream() {
            return Response::from_parts(head, body);
        }
        head.headers.remove(CONTENT_LENGTH);
        Response::from_parts(head, Body::Made(Box::new(Encoded { inner: body, form: self, over: false })))
    }
}

/// `application/grpc+proto` becomes `application/grpc-web+proto`, and back.
fn rename(headers: &mut HeaderMap, from: &str, to: &str) {
    let renamed = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()?.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    if let Some(value) = renamed.and_then(|kind| HeaderValue::try_from(kind).ok()) {
        headers.insert(CONTENT_TYPE, value);
    }
}

/// A request's body out of base64.
struct Decoded {
    inner: Body,
    /// Characters that are no whole quantum yet.
    ahead: BytesMut,
    over: bool,
}

impl Decoded {
    /// The bytes of all whole quanta.
    fn decode(&mut self) -> Result<Bytes, Cut> {
        let whole = self.ahead.len() / QUANTUM * QUANTUM;
        let text = self.ahead.split_to(whole);
        decode(&text).map(Bytes::from).map_err(|_| Cut::Overdue(Reason::BadRequest))
    }
}

/// The bytes of whole quanta. Each piece of it may be padded for itself.
fn decode(text: &[u8]) -> Result<Vec<u8>, base64::DecodeError> {
    let mut bytes = Vec::with_capacity(text.len() / QUANTUM * 3);
    let mut rest = text;
    while !rest.is_empty() {
        let padded = rest.iter().position(|byte| *byte == b'=').map_or(rest.len(), |at| at / QUANTUM * QUANTUM + QUANTUM);
        let (piece, behind) = rest.split_at(padded.min(rest.len()));
        STANDARD.decode_vec(piece, &mut bytes)?;
        rest = behind;
    }
    Ok(bytes)
}

impl Source for Decoded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        while !self.over {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(cut)) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(cut)));
                }
                None => {
                    self.over = true;
                    let broken = !self.ahead.is_empty();
                    return Poll::Ready(broken.then_some(Err(Cut::Overdue(Reason::BadRequest))));
                }
            };
            // There are no trailers in a request of this form.
            let Ok(data) = frame.into_data() else { continue };
            self.ahead.extend_from_slice(&data);
            let decoded = self.decode();
            self.over = decoded.is_err();
            match decoded {
                Ok(bytes) if bytes.is_empty() => {}
                decoded => return Poll::Ready(Some(decoded.map(Frame::data))),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.ahead.is_empty() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn look_ahead(&mut self) -> Option<u64> {
        None
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.inner.poll_overdue(cx)
    }

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.inner.goes_over(line);
    }
}

/// An answer's body with its trailers in it.
struct Encoded {
    inner: Body,
    form: WebForm,
    over: bool,
}

impl Encoded {
    /// Each piece is padded for itself, so that none waits for the next.
    fn encode(&self, bytes: Bytes) -> Bytes {
        match self.form {
            WebForm::Binary => bytes,
            WebForm::Text => STANDARD.encode(&bytes).into(),
        }
    }
}

/// A frame that holds trailers: a byte, the length, and lines as HTTP/1 has them.
fn trailing(trailers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(lines.len() + 5);
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    frame.freeze()
}

impl Source for Encoded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            ended => {
                self.over = true;
                return Poll::Ready(ended);
            }
        };
        let bytes = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                self.over = true;
                trailing(&frame.into_trailers().unwrap_or_default())
            }
        };
        Poll::Ready(Some(Ok(Frame::data(self.encode(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn look_ahead(&mut self) -> Option<u64> {
        None
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.inner.poll_overdue(cx)
    }

    fn goes_over(&mut self, line: &Arc<Line>) {
        self.inner.goes_over(line);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Gives these frames, one at a time.
    struct Given(Vec<Frame<Bytes>>);

    impl Source for Given {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
            Poll::Ready((!self.0.is_empty()).then(|| Ok(self.0.remove(0))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::default()
        }

        fn look_ahead(&mut self) -> Option<u64> {
            None
        }

        fn poll_overdue(&mut self, _: &mut Context<'_>) -> Poll<Cut> {
            Poll::Pending
        }

        fn goes_over(&mut self, _: &Arc<Line>) {}
    }

    fn given(pieces: &[&str]) -> Body {
        Body::Made(Box::new(Given(pieces.iter().map(|piece| Frame::data(Bytes::from((*piece).to_owned()))).collect())))
    }

    /// All data of a body; `None`: it was cut.
    async fn read(mut body: Body) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            all.extend_from_slice(&frame.ok()?.into_data().expect("data alone"));
        }
        Some(all)
    }

    #[test]
    fn the_form_is_in_the_content_type() {
        // Aim: both forms with any message format, and nothing else.
        for (kind, form) in [
            ("application/grpc-web", Some(WebForm::Binary)),
            ("application/grpc-web+proto", Some(WebForm::Binary)),
            ("application/grpc-web-text+proto", Some(WebForm::Text)),
            ("application/grpc-web-text", Some(WebForm::Text)),
            ("application/grpc-web; charset=utf-8", Some(WebForm::Binary)),
            ("application/grpc-website", None),
            ("application/grpc", None),
            ("application/grpc+proto", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            assert_eq!(WebForm::of(&headers), form, "{kind}");
        }
        let mut parts =
            http::Request::post("/a.B/C").header(CONTENT_TYPE, "application/grpc-web-text+proto").body(()).unwrap().into_parts().0;
        WebForm::Text.begin(&mut parts);
        assert_eq!(
            (&parts.headers[CONTENT_TYPE], &parts.headers[TE]),
            (&"application/grpc+proto".parse().unwrap(), &"trailers".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn text_is_decoded_however_it_is_cut() {
        // Aim: pieces that are padded for themselves, cut anywhere; what is no base64 cuts the body.
        let text = "AAAAAAU=aGVsbG8h";
        let wanted = b"\0\0\0\0\x05hello!".to_vec();
        for cut in 0..text.len() {
            let body = WebForm::Text.request(given(&[&text[..cut], &text[cut..]]));
            assert_eq!(read(body).await, Some(wanted.clone()), "{cut}");
        }
        for broken in ["AAA", "A*AA", "=AAA"] {
            assert_eq!(read(WebForm::Text.request(given(&[broken]))).await, None, "{broken}");
        }
        assert_eq!(read(WebForm::Binary.request(given(&["as it is"]))).await, Some(b"as it is".to_vec()));
    }

    #[test]
    fn a_beginning_is_shown_as_grpc_has_it() {
        // Aim: whoever is asked about a call sees its messages and not their base64, as far as they have come.
        let shown = |form: WebForm, text: &'static str| form.shown(&Bytes::from_static(text.as_bytes()));
        assert_eq!(shown(WebForm::Text, "AAAAAAU=aGVsbG8h"), &b"\0\0\0\0\x05hello!"[..]);
        assert_eq!(shown(WebForm::Text, "AAAAAAU=aGVsb"), &b"\0\0\0\0\x05hel"[..]);
        assert_eq!(shown(WebForm::Text, "*AAA"), "*AAA");
        assert_eq!(shown(WebForm::Binary, "AAAA"), "AAAA");
    }

    #[tokio::test]
    async fn trailers_are_the_last_frame_of_the_body() {
        // Aim: length and lines, in both forms; what is no gRPC is not touched.
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let answer = |kind: &'static str| {
            let frames = vec![Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers.clone())];
            Response::builder().header(CONTENT_TYPE, kind).body(Body::Made(Box::new(Given(frames)))).unwrap()
        };
        let binary = WebForm::Binary.answer(answer("application/grpc+proto"));
        assert_eq!(binary.headers()[CONTENT_TYPE], "application/grpc-web+proto");
        let wanted = b"hello\x80\0\0\0\x10grpc-status: 0\r\n".to_vec();
        assert_eq!(read(binary.into_body()).await.unwrap(), wanted);
        let text = WebForm::Text.answer(answer("application/grpc"));
        assert_eq!(text.headers()[CONTENT_TYPE], "application/grpc-web-text");
        let encoded = format!("{}{}", STANDARD.encode("hello"), STANDARD.encode(&wanted[5..]));
        assert_eq!(read(text.into_body()).await.unwrap(), encoded.into_bytes());
        let other = Response::builder().header(CONTENT_TYPE, "text/html").body(given(&["<p>"])).unwrap();
        assert_eq!(read(WebForm::Text.answer(other).into_body()).await.unwrap(), b"<p>");
    }
}
