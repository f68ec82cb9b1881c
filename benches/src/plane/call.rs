//! A gRPC stream on a connection of its own, in one task. It decodes no more of an answer than its acknowledgement needs: what simulated
//! proxies cost is taken from the cores of the control plane that is measured.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{Builder, Connection, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Request, header};
use prost::Message;
use proto::xds::discovery::DeltaDiscoveryRequest;
use tokio::net::TcpStream;
use tonic::Status;

use crate::sockets::connect;

/// What is asked for.
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Flow control windows, those of tonic's clients.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// See [`STREAM_WINDOW_BYTES`].
const CONNECTION_WINDOW_BYTES: u32 = 5 << 20;
/// Before each message: not compressed, and the length (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;

/// What is read of a `DeltaDiscoveryResponse`; all else is passed over.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
}

/// The connection, to be driven, and who asks on it.
pub(super) type Dialled = (SendRequest<Bytes>, Connection<TcpStream>);

/// Dials.
///
/// # Errors
/// Nobody listens, or speaks HTTP/2.
pub(super) async fn dial(address: SocketAddr) -> anyhow::Result<Dialled> {
    let socket = connect(address).await?;
    let dialled = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_push(false)
        .handshake(socket)
        .await?;
    Ok(dialled)
}

/// An open stream.
pub(super) struct Call {
    requests: SendStream<Bytes>,
    answers: RecvStream,
    /// Of answers that are not whole yet.
    received: BytesMut,
}

impl Call {
    /// Opens one, and says these first.
    ///
    /// # Errors
    /// It is refused, or the connection breaks.
    pub(super) async fn open(
        client: &SendRequest<Bytes>,
        address: SocketAddr,
        first: impl Iterator<Item = DeltaDiscoveryRequest>,
    ) -> Result<Self, Status> {
        let request = Request::post(format!("http://{address}{METHOD}"))
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
            .header(header::TE, HeaderValue::from_static("trailers"))
            .body(())
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut client = client.clone().ready().await.map_err(broken)?;
        let (head, mut requests) = client.send_request(request, false).map_err(broken)?;
        let mut said = BytesMut::new();
        first.for_each(|request| frame(&request, &mut said));
        requests.send_data(said.freeze(), false).map_err(broken)?;
        let (head, answers) = head.await.map_err(broken)?.into_parts();
        match Status::from_header_map(&head.headers) {
            Some(status) => Err(status),
            None => Ok(Self { requests, answers, received: BytesMut::new() }),
        }
    }

    /// The next answer; `None` at the stream's end.
    ///
    /// # Errors
    /// It ended with a status, or the connection broke.
    pub(super) async fn answer(&mut self) -> Result<Option<Answer>, Status> {
        loop {
            if let Some(answer) = whole(&mut self.received)? {
                return Ok(Some(answer));
            }
            match self.answers.data().await {
                Some(data) => {
                    let data = data.map_err(broken)?;
                    self.answers.flow_control().release_capacity(data.len()).map_err(broken)?;
                    self.received.extend_from_slice(&data);
                }
                None => {
                    let trailers = self.answers.trailers().await.map_err(broken)?;
                    return match trailers.as_ref().and_then(Status::from_header_map) {
                        Some(status) if status.code() != tonic::Code::Ok => Err(status),
                        _ => Ok(None),
                    };
                }
            }
        }
    }

    /// Acknowledges.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn acknowledge(&mut self, answer: Answer) -> Result<(), Status> {
        let mut said = BytesMut::new();
        let Answer { type_url, nonce } = answer;
        frame(&DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..DeltaDiscoveryRequest::default() }, &mut said);
        self.requests.send_data(said.freeze(), false).map_err(broken)
    }
}

/// Takes the first answer, if all of it is there.
fn whole(received: &mut BytesMut) -> Result<Option<Answer>, Status> {
    let Some((&[compressed, a, b, c, d], rest)) = received.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    if compressed != 0 {
        return Err(Status::internal("a compressed answer, which was not asked for"));
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if rest.len() < length {
        return Ok(None);
    }
    received.advance(PREFIX_BYTES);
    let answer = Answer::decode(&received[..length]).map_err(|error| Status::internal(error.to_string()))?;
    received.advance(length);
    Ok(Some(answer))
}

fn frame(request: &DeltaDiscoveryRequest, out: &mut BytesMut) {
    let length = request.encoded_len();
    out.reserve(PREFIX_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room.
    let _ = request.encode(out);
}

#[allow(clippy::needless_pass_by_value, reason = "what `map_err` hands over")]
fn broken(error: h2::Error) -> Status {
    Status::unknown(format!("the connection broke: {error}"))
}

#[cfg(test)]
mod tests {
    use proto::xds::discovery::{DeltaDiscoveryResponse, Resource};

    use super::*;

    #[test]
    fn of_an_answer_only_its_name_and_number_are_read() {
        // Aim: answers come in any pieces; each is taken once all of it is there, whatever else it has, and one that is compressed is told.
        let resources = vec![Resource { name: "x".repeat(300), ..Resource::default() }];
        let response = |nonce: &str| DeltaDiscoveryResponse {
            type_url: "some".to_owned(),
            nonce: nonce.to_owned(),
            resources: resources.clone(),
            removed_resources: vec!["gone".to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        let mut bytes = Vec::new();
        for nonce in ["1", "2"] {
            let message = response(nonce).encode_to_vec();
            bytes.push(0);
            bytes.put_u32(u32::try_from(message.len()).unwrap());
            bytes.extend(message);
        }
        for size in [1, 7, bytes.len()] {
            let (mut received, mut answers) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(size) {
                received.extend_from_slice(piece);
                while let Some(answer) = whole(&mut received).unwrap() {
                    answers.push((answer.type_url, answer.nonce));
                }
            }
            assert_eq!(answers, ["1", "2"].map(|nonce| ("some".to_owned(), nonce.to_owned())), "{size}");
        }
        assert!(whole(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
    }
}
