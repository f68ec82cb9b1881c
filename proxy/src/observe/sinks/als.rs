//! Lines to a Service of the mesh that takes Envoy's access log stream (`envoy.service.accesslog.v3`).

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BufMut as _;
use engine::model::LogSinkKind;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use proto::xds::accesslog::stream_access_logs_message::Identifier;
use proto::xds::accesslog::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use proto::xds::core::Node;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::super::collector::Duplex;
use super::SinkMeans;
use super::complaint::Complaint;
use super::queue::{Sheet, SheetQueue};

const CALL: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// What the log is called there.
const LOG_NAME: &str = "meshwright";
/// Messages handed to the connection ahead of its window: those are lost uncounted where the stream breaks.
const MESSAGES_AHEAD: usize = 1;
/// First pause after a failure; twice as long each time, and no longer than the second. A stream that lived as long begins anew at the first.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A service that says nothing to a ping for so long is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_MAX: Duration = Duration::from_secs(10);
/// How long the end of the last stream is waited for.
const END_MAX: Duration = Duration::from_millis(500);

/// The way to Services of the mesh.
#[async_trait]
pub trait ToServices: Send + Sync + fmt::Debug {
    /// Who this proxy is, as the control plane knows it.
    fn node(&self) -> &str;

    /// A connection that is to carry HTTP/2 to what `http://HOST:PORT` names, by mesh TLS where that has an identity.
    ///
    /// # Errors
    /// It is not reached: why.
    async fn open(&self, url: &str) -> Result<Box<dyn Duplex>, String>;
}

/// See the module.
#[derive(Debug)]
pub(super) struct AlsSink {
    address: String,
    /// `NAMESPACE/WORKLOAD`.
    workload: String,
    means: SinkMeans,
    complaint: Complaint,
}

/// How a stream ended.
enum Ended {
    /// There is no more to be sent.
    Done,
    Broken(String),
}

impl AlsSink {
    pub(super) fn new(address: String, workload: String, means: SinkMeans) -> Self {
        let complaint = Complaint::new(means.clock);
        Self { address, workload, means, complaint }
    }

    /// Sends until there will be no more: one stream after the other.
    pub(super) async fn run(mut self, mut queue: SheetQueue) {
        let mut pause = PAUSE;
        let mut kept = None;
        loop {
            let Some(first) = (match kept.take() {
                Some(sheet) => Some(sheet),
                None => queue.next().await,
            }) else {
                return;
            };
            let began = Instant::now();
            kept = Some(first);
            let Ended::Broken(why) = self.stream(&mut kept, &mut queue).await else { return };
            self.complain(&why);
            if queue.is_closed() {
                // The process ends, or goes on without this sink.
                self.means.losses.add(LogSinkKind::Als, kept.map_or(0, |sheet| sheet.lines));
                return;
            }
            if began.elapsed() >= PAUSE_MAX {
                pause = PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One stream, as long as it lives. `next` is sent next; what could not be is left there.
    async fn stream(&self, next: &mut Option<Sheet>, queue: &mut SheetQueue) -> Ended {
        let mut grpc = match self.client().await {
            Ok(grpc) => grpc,
            Err(why) => return Ended::Broken(why),
        };
        let (messages, sent) = mpsc::channel(MESSAGES_AHEAD);
        let call = grpc.client_streaming(tonic::Request::new(ReceiverStream::new(sent)), PathAndQuery::from_static(CALL), Encoded);
        let mut call = pin!(call);
        let broken = |ended: Result<tonic::Response<StreamAccessLogsResponse>, Status>| match ended {
            Ok(_) => Ended::Broken("the service ended the stream".to_owned()),
            Err(status) => Ended::Broken(format!("{:?}: {}", status.code(), status.message())),
        };
        // The identifier stands before the first message.
        let mut head = self.identifier();
        loop {
            if next.is_some() {
                tokio::select! {
                    biased;
                    ended = &mut call => return broken(ended),
                    room = messages.reserve() => match (room, next.take()) {
                        (Ok(room), Some(sheet)) => {
                            let mut message = std::mem::take(&mut head);
                            message.extend_from_slice(&sheet.bytes);
                            room.send(message);
                        }
                        (_, unsent) => {
                            *next = unsent;
                            return Ended::Broken("the connection was lost".to_owned());
                        }
                    },
                }
            } else {
                tokio::select! {
                    biased;
                    ended = &mut call => return broken(ended),
                    sheet = queue.next() => match sheet {
                        Some(sheet) => *next = Some(sheet),
                        None => break,
                    },
                }
            }
        }
        drop(messages);
        let _ = timeout(END_MAX, call).await;
        Ended::Done
    }

    /// A connection of its own for each stream: the name may lead elsewhere by now.
    async fn client(&self) -> Result<Grpc<Channel>, String> {
        let services = self.means.services.get().ok_or("the proxy has not started yet")?.clone();
        let address = self.address.clone();
        let target = Endpoint::from_shared(self.address.clone()).map_err(|error| error.to_string())?;
        let target = target.http2_keep_alive_interval(PING_EVERY).keep_alive_timeout(PONG_MAX).keep_alive_while_idle(true);
        let connect = target.connect_with_connector(service_fn(move |_: Uri| {
            let (services, address) = (Arc::clone(&services), address.clone());
            async move { services.open(&address).await.map(TokioIo::new).map_err(std::io::Error::other) }
        }));
        let channel = connect.await.map_err(|error| whole(&error))?;
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.map_err(|error| whole(&error))?;
        Ok(grpc)
    }

    fn identifier(&self) -> Vec<u8> {
        let id = self.means.services.get().map(|services| services.node().to_owned()).unwrap_or_default();
        let node = Node { id, cluster: self.workload.clone(), ..Node::default() };
        let identifier = Identifier { node: Some(node), log_name: LOG_NAME.to_owned() };
        StreamAccessLogsMessage { identifier: Some(identifier), log_entries: None }.encode_to_vec()
    }

    fn complain(&mut self, why: &str) {
        if self.complaint.is_due() {
            tracing::warn!(address = %self.address, error = %why,
                "the access log's stream to its service is broken; lines wait for the next one, and are dropped beyond a bound (said once a minute)");
        }
    }
}

/// An error with its causes: tonic's own text says next to nothing.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Messages are encoded already; the answer is read as usual.
#[derive(Debug)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = StreamAccessLogsResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(message.len());
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = StreamAccessLogsResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<StreamAccessLogsResponse>, Status> {
        StreamAccessLogsResponse::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
