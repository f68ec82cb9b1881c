//! The way to an OTLP/gRPC collector: through the proxy's own network, so that redirection leaves it alone.

#![allow(clippy::disallowed_methods, reason = "a door: names of collectors are the host's")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prost::Message;
use tokio::net::lookup_host;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use crate::io::{Network, Socket, one_of};

/// Port where none is given (OTLP specification, "OTLP/gRPC default port").
const PORT: u16 = 4317;
/// Longest wait for name and connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A collector that has not taken a request by then, repetitions included, has failed.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// Pause before a request is sent again; twice as long each time.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How often it is sent again.
const RETRIES_MAX: u32 = 3;
/// Room of the transport's buffer beyond the message itself.
const FRAME_BYTES: usize = 64;
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Addresses of the collector's name that are tried.
const ADDRESSES_MAX: usize = 4;

/// An endpoint that spans cannot be sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the OTLP endpoint `{endpoint}` is not usable: {why}; give http://HOST:PORT of an OTLP/gRPC collector")]
pub(super) struct BadEndpoint {
    endpoint: String,
    why: &'static str,
}

/// Why spans were not taken.
#[derive(Debug, Clone)]
pub(super) struct Undelivered {
    /// Where they were to go.
    pub(super) endpoint: String,
    /// What happened.
    pub(super) why: String,
}

/// A client of one collector.
#[derive(Debug)]
pub(super) struct Collector {
    endpoint: String,
    grpc: Grpc<Channel>,
    /// For what is rare.
    library: SpanExporter,
}

impl Collector {
    /// Connects at the first use and again after each loss.
    pub(super) fn new(endpoint: &str, network: &Network) -> Result<Self, Undelivered> {
        let refused = |why: String| Undelivered { endpoint: endpoint.to_owned(), why };
        let channel = channel(endpoint, network)?;
        let library = SpanExporter::builder().with_tonic().with_channel(channel.clone()).with_timeout(EXPORT_MAX).build();
        let library = library.map_err(|error| refused(error.to_string()))?;
        Ok(Self { endpoint: endpoint.to_owned(), grpc: Grpc::new(channel), library })
    }

    /// As it was given.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Sends spans of the proxy's own tasks.
    pub(super) async fn export_own(&mut self, resource: &Resource, spans: Vec<SpanData>) -> Result<(), Undelivered> {
        self.library.set_resource(resource);
        let why = match tokio::time::timeout(EXPORT_MAX, self.library.export(spans)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {EXPORT_MAX:?}"),
        };
        Err(Undelivered { endpoint: self.endpoint.clone(), why })
    }

    /// Sends one `ExportTraceServiceRequest` in two parts. What may be sent again (OTLP specification, "Failures") is, after the pause that
    /// the collector asks for, else a growing one. How many spans the collector took note of and refused; the others are stored.
    pub(super) async fn export(&mut self, envelope: Vec<u8>, spans: Arc<Vec<u8>>) -> Result<u64, Undelivered> {
        let message = SpanRequest { envelope: Arc::new(envelope), spans };
        let refused = |why: String| Undelivered { endpoint: self.endpoint.clone(), why };
        let sent = tokio::time::timeout(EXPORT_MAX, patiently(&mut self.grpc, message)).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => return Err(refused(format!("{:?}: {}", status.code(), status.message()))),
            Err(_) => return Err(refused(format!("no answer within {EXPORT_MAX:?}"))),
        };
        // A partial success is final: nothing of it is sent again.
        let rejected = response.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}

/// The way to a collector: connects at the first use and again after each loss.
pub(super) fn channel(endpoint: &str, network: &Network) -> Result<Channel, Undelivered> {
    let refused = |why: String| Undelivered { endpoint: endpoint.to_owned(), why };
    let uri = parse(endpoint).map_err(|error| refused(error.to_string()))?;
    let target = Endpoint::from_shared(uri.to_string()).map_err(|error| refused(error.to_string()))?;
    let network = network.clone();
    Ok(target.connect_with_connector_lazy(service_fn(move |uri: Uri| {
        let network = network.clone();
        async move {
            let opened = tokio::time::timeout(CONNECT_MAX, open(&network, &uri));
            opened.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s"))?.map(TokioIo::new)
        }
    })))
}

async fn patiently(grpc: &mut Grpc<Channel>, message: SpanRequest) -> Result<ExportTraceServiceResponse, Status> {
    let mut pause = RETRY_AFTER;
    for _ in 0..RETRIES_MAX {
        match once(grpc, message.clone()).await {
            Err(status) if may_come_again(&status) => tokio::time::sleep(asked_pause(&status).unwrap_or(pause)).await,
            other => return other,
        }
        pause *= 2;
    }
    once(grpc, message).await
}

async fn once(grpc: &mut Grpc<Channel>, message: SpanRequest) -> Result<ExportTraceServiceResponse, Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(whole(&error)))?;
    let answer = grpc.unary(tonic::Request::new(message), PathAndQuery::from_static(EXPORT), SpanCodec).await?;
    Ok(answer.into_inner())
}

/// An error with its causes: tonic's own text says next to nothing.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// OTLP specification, "OTLP/gRPC Throttling" and "Failures".
pub(super) fn may_come_again(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => true,
        Code::ResourceExhausted => asked_pause(status).is_some(),
        _ => false,
    }
}

/// `google.rpc.Status` in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct Details {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The pause that a collector asks for.
pub(super) fn asked_pause(status: &Status) -> Option<Duration> {
    let details = Details::decode(status.details()).ok()?.details;
    let told = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    RetryInfo::decode(&told.value[..]).ok()?.retry_delay.and_then(|delay| delay.try_into().ok())
}

/// A request as bytes: what stands before the spans, and the spans.
#[derive(Debug, Clone)]
struct SpanRequest {
    envelope: Arc<Vec<u8>>,
    spans: Arc<Vec<u8>>,
}

/// Requests are encoded already; answers are read as usual.
#[derive(Debug)]
struct SpanCodec;

impl Codec for SpanCodec {
    type Encode = SpanRequest;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Copied;
    type Decoder = Self;

    fn encoder(&mut self) -> Copied {
        Copied
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for SpanCodec {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<ExportTraceServiceResponse>, Status> {
        ExportTraceServiceResponse::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Encodes by copying.
#[derive(Debug)]
struct Copied;

impl Encoder for Copied {
    type Item = SpanRequest;
    type Error = Status;

    fn encode(&mut self, item: SpanRequest, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.envelope.len() + item.spans.len() + FRAME_BYTES);
        to.put_slice(&item.envelope);
        to.put_slice(&item.spans);
        Ok(())
    }
}

/// With a scheme and a port; only plaintext collectors are spoken to.
fn parse(endpoint: &str) -> Result<Uri, BadEndpoint> {
    let bad = |why| BadEndpoint { endpoint: endpoint.to_owned(), why };
    let text = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let uri: Uri = text.parse().map_err(|_| bad("it is no URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(bad("TLS to collectors is not spoken")),
        _ => return Err(bad("its scheme is not http")),
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("it names no host"))?;
    let port = uri.port_u16().unwrap_or(PORT);
    format!("http://{host}:{port}").parse().map_err(|_| bad("it is no URL"))
}

async fn open(network: &Network, uri: &Uri) -> io::Result<Socket> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(PORT);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse() {
        return network.connect(std::net::SocketAddr::new(ip, port)).await;
    }
    let until = Instant::now() + CONNECT_MAX;
    let addresses: Vec<_> = lookup_host((bare, port)).await?.take(ADDRESSES_MAX).collect();
    one_of(&addresses, until, |address| network.connect(address)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: RetryInfo is honoured; without it what is transient is sent again, and exhaustion is not.
    #[test]
    fn collectors_say_when_to_come_again() {
        let asked = RetryInfo { retry_delay: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }) };
        let any = prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: asked.encode_to_vec() };
        let details = bytes::Bytes::from(Details { details: vec![any] }.encode_to_vec());
        for (code, with, again) in [
            (Code::Unavailable, false, true),
            (Code::Unavailable, true, true),
            (Code::ResourceExhausted, false, false),
            (Code::ResourceExhausted, true, true),
            (Code::InvalidArgument, false, false),
            (Code::InvalidArgument, true, false),
            (Code::Unimplemented, false, false),
        ] {
            let status = if with { Status::with_details(code, "later", details.clone()) } else { Status::new(code, "later") };
            assert_eq!(may_come_again(&status), again, "{code:?} {with}");
            assert_eq!(asked_pause(&status), with.then_some(Duration::from_millis(1500)));
        }
    }

    /// Aim: every usual spelling leads to one form; what cannot work is refused with the reason, never spoken to in another way.
    #[test]
    fn endpoints_are_read_or_refused() {
        for (given, wanted) in [
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317/"),
            ("http://collector.telemetry", "http://collector.telemetry:4317/"),
            ("10.77.0.1:4317", "http://10.77.0.1:4317/"),
            ("http://[fd00::1]:4317/v1/traces", "http://[fd00::1]:4317/"),
        ] {
            assert_eq!(parse(given).unwrap().to_string(), wanted);
        }
        for (given, why) in [("https://c:4317", "TLS"), ("ftp://c", "scheme"), ("http://", "URL"), ("", "URL"), ("http://a b", "URL")] {
            assert!(parse(given).unwrap_err().why.contains(why), "{given}: {:?}", parse(given));
        }
    }
}
