//! A client of one OTLP collector, by gRPC or HTTP. What is sent is encoded already.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use engine::model::OtlpProtocol;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prost::Message;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::collector::{CollectorPlace, Way};
use super::poster::{Poster, taken};
use super::refusal::Refusal;
use crate::tls::Carries;

/// Ports where none is given (OTLP specification, "OTLP/gRPC default port", "OTLP/HTTP default port").
const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
/// A collector that has not answered by then has failed.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Room of the transport's buffer beyond the message itself.
const FRAME_BYTES: usize = 64;
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// What is sent, by where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signal {
    call: &'static str,
    path: &'static str,
}

/// Spans.
pub(super) const TRACES: Signal = Signal { call: "/opentelemetry.proto.collector.trace.v1.TraceService/Export", path: "/v1/traces" };

/// Numbers.
pub(super) const METRICS: Signal = Signal { call: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", path: "/v1/metrics" };

/// Log records.
pub(super) const LOGS: Signal = Signal { call: "/opentelemetry.proto.collector.logs.v1.LogsService/Export", path: "/v1/logs" };

/// See the module.
#[derive(Debug)]
pub(super) struct OtlpClient {
    endpoint: String,
    protocol: OtlpProtocol,
    transport: Transport,
    /// For spans of the proxy's own tasks, which are rare.
    library: SpanExporter,
}

#[derive(Debug)]
enum Transport {
    Grpc(Grpc<Channel>),
    Http(Poster),
}

impl OtlpClient {
    /// Connects at the first use and again after each loss.
    ///
    /// # Errors
    /// The endpoint is not usable: why, and what to give.
    pub(super) fn new((endpoint, protocol): (&str, OtlpProtocol), way: &Way) -> Result<Self, String> {
        let (transport, library) = match protocol {
            OtlpProtocol::Grpc => grpc(CollectorPlace::read(endpoint, GRPC_PORT).map_err(|error| error.to_string())?, way)?,
            OtlpProtocol::Http => http(CollectorPlace::read(endpoint, HTTP_PORT).map_err(|error| error.to_string())?, way)?,
        };
        Ok(Self { endpoint: endpoint.to_owned(), protocol, transport, library })
    }

    /// As it was given.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether it is the client of that collector.
    pub(super) fn is_of(&self, (endpoint, protocol): (&str, OtlpProtocol)) -> bool {
        self.endpoint == endpoint && self.protocol == protocol
    }

    /// Sends one `Export…ServiceRequest` in two parts. How many of its records the collector took note of and refused: a partial success is
    /// final, nothing of it is sent again.
    ///
    /// # Errors
    /// It was not taken, or nobody knows.
    pub(super) async fn send(&mut self, signal: Signal, parts: [Arc<Vec<u8>>; 2], now_unix_secs: u64) -> Result<u64, Refusal> {
        let silent = || Refusal::broken(format!("no answer within {} s", ANSWER_MAX.as_secs()));
        let sent = tokio::time::timeout(ANSWER_MAX, self.transport.send(signal, parts, now_unix_secs));
        let answer = sent.await.map_err(|_| silent())??;
        Ok(answer.partial.map_or(0, |partial| u64::try_from(partial.rejected).unwrap_or(0)))
    }

    /// Sends spans of the proxy's own tasks.
    ///
    /// # Errors
    /// They were not taken. The library does not say of which kind the error is.
    pub(super) async fn send_own(&mut self, resource: &Resource, spans: Vec<SpanData>) -> Result<(), Refusal> {
        self.library.set_resource(resource);
        match tokio::time::timeout(ANSWER_MAX, self.library.export(spans)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Refusal::broken(error.to_string())),
            Err(_) => Err(Refusal::broken(format!("no answer within {} s", ANSWER_MAX.as_secs()))),
        }
    }
}

fn grpc(place: CollectorPlace, way: &Way) -> Result<(Transport, SpanExporter), String> {
    // TLS is the connector's: to the transport every collector is one in plaintext, but for what its requests say.
    let target = Endpoint::from_shared(format!("http://{}", place.authority)).map_err(|error| error.to_string())?;
    let origin: Uri = place.origin().parse().map_err(|_| "it is no URL".to_owned())?;
    let way = way.clone();
    let channel = target.origin(origin).connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (way, place) = (way.clone(), place.clone());
        async move { way.open(&place, Carries::H2).await.map(TokioIo::new) }
    }));
    let library = SpanExporter::builder().with_tonic().with_channel(channel.clone()).with_timeout(ANSWER_MAX);
    let library = library.with_retry_policy(RetryPolicy::disabled()).build().map_err(|error| error.to_string())?;
    Ok((Transport::Grpc(Grpc::new(channel)), library))
}

fn http(place: CollectorPlace, way: &Way) -> Result<(Transport, SpanExporter), String> {
    let url = format!("{}{}{}", place.origin(), place.path, TRACES.path);
    let poster = Poster::new(way.clone(), place);
    let library = SpanExporter::builder().with_http().with_http_client(poster.clone()).with_protocol(Protocol::HttpBinary);
    let library = library.with_endpoint(url).with_timeout(ANSWER_MAX).with_retry_policy(RetryPolicy::disabled());
    Ok((Transport::Http(poster), library.build().map_err(|error| error.to_string())?))
}

impl Transport {
    async fn send(&mut self, signal: Signal, parts: [Arc<Vec<u8>>; 2], now_unix_secs: u64) -> Result<Answer, Refusal> {
        match self {
            Self::Grpc(grpc) => {
                grpc.ready().await.map_err(|error| Refusal::broken(whole(&error)))?;
                let call = PathAndQuery::from_static(signal.call);
                let answer = grpc.unary(tonic::Request::new(TwoParts(parts)), call, Encoded).await;
                answer.map(tonic::Response::into_inner).map_err(|status| Refusal::of_grpc(&status))
            }
            Self::Http(poster) => {
                let mut body = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
                parts.iter().for_each(|part| body.put_slice(part));
                let answer = poster.post(signal.path, PROTOBUF, body.freeze()).await?;
                // Whoever says something else with its success has taken all.
                taken(answer, now_unix_secs).map(|bytes| Answer::decode(bytes).unwrap_or_default())
            }
        }
    }
}

/// An error with its causes: tonic's own text says next to nothing.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// `Export…ServiceResponse`, which is alike for all signals.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    partial: Option<Partial>,
}

/// `Export…PartialSuccess`.
#[derive(Clone, PartialEq, Message)]
struct Partial {
    #[prost(int64, tag = "1")]
    rejected: i64,
}

/// A request as bytes, in two parts.
#[derive(Debug, Clone)]
struct TwoParts([Arc<Vec<u8>>; 2]);

/// Requests are encoded already; answers are read as usual.
#[derive(Debug)]
struct Encoded;

impl Codec for Encoded {
    type Encode = TwoParts;
    type Decode = Answer;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Encoded {
    type Item = Answer;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Answer>, Status> {
        Answer::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Encoder for Encoded {
    type Item = TwoParts;
    type Error = Status;

    fn encode(&mut self, TwoParts([first, second]): TwoParts, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(first.len() + second.len() + FRAME_BYTES);
        to.put_slice(&first);
        to.put_slice(&second);
        Ok(())
    }
}
