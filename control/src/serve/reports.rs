//! `meshwright.v1.Reports`: what proxies tell beside ADS, and the questions put to them.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use proto::mesh::reports_server::{Reports, ReportsServer};
use proto::mesh::{Command, Report, report};
use proto::names::Mode;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admit::{admit, presented};
use crate::publish::board::{Board, Errand};
use crate::publish::concern::Concerned;
use crate::publish::peer::{Claim, Peer, peer_of};
use crate::world::Change;

/// Largest report: 256 rows of traffic, or a dump of one kind.
const REPORT_BYTES_MAX: usize = 16 << 20;
/// Rows kept of one traffic report.
const ROWS_MAX: usize = 256;

/// The service.
pub struct Desk {
    board: Arc<Board>,
    stop: CancellationToken,
}

impl Desk {
    /// To be added to a server.
    pub fn service(board: Arc<Board>, stop: CancellationToken) -> ReportsServer<Self> {
        ReportsServer::new(Self { board, stop }).max_decoding_message_size(REPORT_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Reports for Desk {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Command, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<Report>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = peer_of(request.extensions())?;
        presented(&peer)?;
        let (sender, receiver) = mpsc::channel(1);
        let (board, stop) = (self.board.clone(), self.stop.clone());
        tokio::spawn(async move {
            if let Err(status) = talk(&board, &peer, request.into_inner(), &sender, &stop).await {
                // The proxy may be gone already.
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn talk(
    board: &Arc<Board>,
    peer: &Peer,
    mut reports: Streaming<Report>,
    sender: &mpsc::Sender<Result<Command, Status>>,
    stop: &CancellationToken,
) -> Result<(), Status> {
    let first = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        first = reports.message() => first?,
    };
    let Some(Report { kind: Some(report::Kind::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first report must be a Hello"));
    };
    let node = Claim::of_hello(&hello, peer)?;
    let following = board.concerns.follow(None);
    judge(board, peer, &node, &following)?;
    let key = node.key();
    let (stream, mut commands) = board.correspond(&key, &hello.version, hello.pid);
    // A proxy that is back has stopped draining.
    leaving(board, &node, false).await;
    let end = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            report = reports.message() => match report {
                Ok(Some(Report { kind: Some(kind) })) => take(board, &node, &key, kind).await,
                Ok(Some(Report { kind: None })) => {}
                Ok(None) | Err(_) => break Ok(()),
            },
            // As on the stream of configuration: who is gone or revoked has nothing more to tell.
            () = following.woken() => if let Err(status) = judge(board, peer, &node, &following) {
                break Err(status);
            },
            command = commands.recv() => match command {
                Some(command) => if sender.send(Ok(command)).await.is_err() { break Ok(()) },
                // Another stream of the same proxy took over.
                None => break Err(Status::aborted("another Reports stream of this proxy was opened")),
            },
        }
    };
    board.hang_up(&key, stream);
    end
}

/// Judges what a proxy claims by the newest edition, and rests until another one may judge otherwise.
pub(super) fn judge(board: &Board, peer: &Peer, node: &Claim, following: &Concerned) -> Result<(), Status> {
    following.rouse();
    let Some(edition) = board.edition() else {
        return Err(Status::unavailable("the configuration has not been read yet; try again in a moment"));
    };
    admit(node, peer, &edition.world, &board.clock)?;
    if !following.rest(edition.serial, &[node.subject()]) {
        following.again();
    }
    Ok(())
}

async fn take(board: &Arc<Board>, node: &Claim, key: &str, kind: report::Kind) {
    match kind {
        report::Kind::Hello(_) => {}
        report::Kind::Answer(answer) => board.answered(key, answer),
        report::Kind::Traffic(mut traffic) => {
            traffic.services.truncate(ROWS_MAX);
            traffic.plaintext.truncate(ROWS_MAX);
            traffic.egress.truncate(ROWS_MAX);
            traffic.keys_away.truncate(ROWS_MAX);
            traffic.stores_away.truncate(ROWS_MAX);
            traffic.services_away.truncate(ROWS_MAX);
            traffic.canaries.truncate(ROWS_MAX);
            board.plaintext_seen(node, &traffic.plaintext);
            let canaries = std::mem::take(&mut traffic.canaries);
            board.versions.lock().take(key, &canaries);
            traffic.routes.truncate(ROWS_MAX);
            board.counted(node, &std::mem::take(&mut traffic.routes));
            board.summed_up(key, traffic);
        }
        report::Kind::Tapped(tapped) => board.taps.told(key, tapped),
        report::Kind::Calls(mut calls) => {
            calls.calls.truncate(ROWS_MAX);
            board.called(node, calls);
        }
        report::Kind::Certificate(certificate) => {
            board.correspondent(key, |correspondent| correspondent.certificate = Some(certificate));
        }
        report::Kind::Draining(_) => {
            tracing::info!(proxy = key, "a proxy is draining");
            leaving(board, node, true).await;
        }
    }
}

/// Callers drop an instance whose sidecar leaves; a Gateway has none that know it.
async fn leaving(board: &Arc<Board>, node: &Claim, draining: bool) {
    if node.mode == Mode::Sidecar {
        let instance = (node.namespace.clone(), node.instance.clone());
        board.send(Errand::Runtime(Change::Draining { instance, draining })).await;
    }
}
