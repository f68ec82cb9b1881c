//! The ADS service: one task per stream feeds a [`Session`] and writes what it says, one response at a time.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use proto::xds;
use proto::xds::discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use proto::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admit::{admit, presented};
use super::metrics::Metrics;
use crate::publish::board::{Board, Seated};
use crate::publish::cache::{Composition, Vetted};
use crate::publish::concern::Concerned;
use crate::publish::edition::Edition;
use crate::publish::peer::{Claim, Entrance, Peer, peer_of};
use crate::publish::session::{Content, Session, Withheld};
use crate::translate::{Audience, TRUST};

/// Largest request: all names of one type at once.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Refusals of one NACK that are written to the log.
const REFUSALS_SAID_MAX: usize = 16;

/// The service.
pub struct Ads {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Ads {
    /// To be added to a server.
    pub fn service(board: Arc<Board>, metrics: Arc<Metrics>, stop: CancellationToken) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(Self { board, metrics, stop }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Boxed<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Boxed<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let peer = peer_of(request.extensions())?;
        presented(&peer)?;
        Err(Status::unimplemented("state-of-the-world streams are not served yet; use DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = peer_of(request.extensions())?;
        presented(&peer)?;
        if self.board.edition().is_none() {
            return Err(Status::unavailable("the configuration has not been read yet; try again in a moment"));
        }
        // One response at a time: what is not sent yet is not computed yet.
        let (sender, receiver) = mpsc::channel(1);
        let stream = Delta {
            board: self.board.clone(),
            metrics: self.metrics.clone(),
            peer,
            session: Session::new(),
            wants: BTreeSet::new(),
            seen: Seen::default(),
            caught: 0,
            seat: None,
        };
        let stop = self.stop.clone();
        tokio::spawn(async move { stream.run(request.into_inner(), sender, stop).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One delta stream.
struct Delta {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    peer: Peer,
    session: Session,
    /// [`Session::wants`].
    wants: BTreeSet<String>,
    seen: Seen,
    /// Serial of the newest edition of which the client has answered all.
    caught: u64,
    seat: Option<Identified>,
}

/// What the stream was shown last. Not the edition itself: a stream that nothing concerns would keep an old world.
#[derive(Default)]
struct Seen {
    serial: u64,
    epoch: u64,
    /// What it was put together from.
    shown: Option<Composition>,
    /// The engine refuses a part of it, which is told again with each edition.
    refused: bool,
}

/// Known once the first request has come.
struct Identified {
    claim: Claim,
    key: String,
    /// The book goes by its answers.
    counts: bool,
    audience: Option<Audience>,
    following: Arc<Concerned>,
    _present: Seated,
}

impl Delta {
    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
        stop: CancellationToken,
    ) {
        self.metrics.streams.inc();
        let mut more = false;
        let end = loop {
            self.catch_up();
            let following = self.seat.as_ref().map(|seat| seat.following.clone());
            tokio::select! {
                biased;
                () = stop.cancelled() => break Some(Status::unavailable("the control plane is stopping; connect again")),
                request = requests.message() => match request {
                    Ok(Some(request)) => match self.request(request) {
                        Ok(()) => more = !self.session.is_settled(),
                        Err(status) => break Some(status),
                    },
                    Ok(None) => break None,
                    Err(status) => {
                        tracing::debug!(%status, "an ADS stream broke");
                        break None;
                    }
                },
                () = woken(following.as_deref()) => match self.look() {
                    Ok(()) => more = !self.session.is_settled(),
                    Err(status) => break Some(status),
                },
                permit = sender.reserve(), if more => match permit {
                    Ok(permit) => match self.session.next_response() {
                        Some(response) => {
                            self.metrics.pushed(&response.type_url);
                            permit.send(Ok(response));
                            more = !self.session.is_settled();
                        }
                        None => more = false,
                    },
                    Err(_) => break None,
                },
            }
        };
        self.metrics.streams.dec();
        if let Some(status) = end {
            if let Some(seat) = &self.seat {
                tracing::info!(proxy = seat.key, reason = status.message(), "ended an ADS stream");
            }
            // The client may be gone already.
            let _ = sender.try_send(Err(status));
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if self.seat.is_none() {
            let claim = Claim::of_node(request.node.as_ref())?;
            self.sit(claim)?;
        }
        let url = request.type_url.clone();
        let heard = self.session.request(request).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let Some((key, counts)) = self.seat.as_ref().map(|seat| (seat.key.clone(), seat.counts)) else {
            return Ok(());
        };
        if let Some(url) = heard.unknown_type {
            tracing::info!(proxy = key, url, "a client asks for a type that we do not serve");
        }
        if let Some(reason) = heard.rejected {
            self.metrics.nacked(&url);
            tracing::warn!(proxy = key, url, reason, "a proxy refused resources");
        }
        if let Some(number) = heard.acknowledged.filter(|_| counts) {
            self.board.write(|book, now| book.acknowledged(&key, number, now));
        }
        if let Some((number, message)) = heard.refused {
            self.metrics.nacked(&url);
            for refusal in proto::refusal::read(&message).into_iter().take(REFUSALS_SAID_MAX) {
                let (resource, reason) = (refusal.resource, refusal.reason);
                self.metrics.resource_refused(&resource);
                tracing::error!(proxy = key, epoch = number, resource, reason, "a proxy runs the epoch without what it refused");
            }
            if counts {
                self.board.write(|book, now| book.refused(&key, number, &message, now));
            }
        }
        if heard.wants_changed {
            self.wants = self.session.wants();
            self.seen.shown = None;
            return self.look();
        }
        self.rest();
        Ok(())
    }

    fn sit(&mut self, claim: Claim) -> Result<(), Status> {
        let Some(edition) = self.board.edition() else {
            return Err(Status::unavailable("the configuration has not been read yet; try again in a moment"));
        };
        let audience = admit(&claim, &self.peer, &edition.world, &self.board.clock)?;
        let identity = self.peer.proven.as_ref().map(|proven| proven.identity.to_string()).unwrap_or_default();
        let door = self.peer.door;
        let (key, counts) = (claim.key_by(door), claim.counts_by(door));
        // Before anybody counts it as present: an epoch that begins waits for whom it wakes.
        let following = Arc::new(self.board.concerns.follow(counts.then(|| key.clone())));
        let present =
            self.board.arrive(claim.clone(), door, identity).map_err(|crowded| Status::resource_exhausted(crowded.to_string()))?;
        present.came_below(self.peer.proven.as_ref().and_then(|proven| proven.below));
        tracing::info!(proxy = key, client = claim.client.text(), epoch = edition.epoch, "a client connected");
        if claim.ours() {
            self.session.asks_for_all();
        }
        if audience.is_none() {
            tracing::warn!(
                proxy = key,
                client = claim.client.text(),
                "stock clients are not served yet; this one gets an empty configuration"
            );
        }
        self.seat = Some(Identified { claim, key, counts, audience, following, _present: present });
        // What it is first told is no change.
        self.seen = Seen { serial: edition.serial, epoch: edition.epoch, ..Seen::default() };
        self.look()
    }

    /// Looks at the newest edition, and tells the book whether it concerns this proxy.
    fn look(&mut self) -> Result<(), Status> {
        let Some(seat) = &mut self.seat else { return Ok(()) };
        // Before it is known which edition is the newest.
        seat.following.rouse();
        let Some(edition) = self.board.edition() else { return Ok(()) };
        let fresh = edition.epoch > self.seen.epoch;
        if edition.serial > self.seen.serial {
            // The claim is judged again: the workload may be gone, revoked, or no longer be meshed.
            seat.audience = admit(&seat.claim, &self.peer, &edition.world, &self.board.clock)?;
        }
        let (key, counts) = (seat.key.clone(), seat.counts);
        let began = Instant::now();
        let concerned = self.show(&edition);
        self.metrics.translated.observe(began.elapsed().as_secs_f64());
        if fresh && counts {
            let number = edition.epoch;
            self.board.write(|book, now| if concerned { book.concerned(&key, number) } else { book.unaffected(&key, number, now) });
        }
        self.rest();
        Ok(())
    }

    /// Says when the client has answered all that it should have by now.
    fn catch_up(&mut self) {
        if let Some(seat) = &self.seat
            && self.caught < self.seen.serial
            && self.session.endpoints_taken()
        {
            self.caught = self.seen.serial;
            seat.following.caught_up(self.caught);
        }
    }

    /// Rests, if nothing is owed to this client and its view says what it depends on.
    fn rest(&self) {
        let Some(seat) = &self.seat else { return };
        let subjects = self.seen.shown.as_ref().map(|shown| shown.subjects.as_slice()).unwrap_or_default();
        if !self.session.at_rest() || self.seen.refused || seat.audience.is_none() {
            seat.following.rouse();
        } else if !seat.following.rest(self.seen.serial, subjects) {
            seat.following.again();
        }
    }

    /// Computes what this stream should have now and shows it to the session.
    fn show(&mut self, edition: &Edition) -> bool {
        let before = std::mem::replace(&mut self.seen, Seen { serial: edition.serial, epoch: edition.epoch, ..Seen::default() });
        let Some(audience) = self.seat.as_ref().and_then(|seat| seat.audience.as_ref()) else {
            self.session.withhold(Withheld::new());
            return self.session.show(Content::new(), edition.epoch);
        };
        // Most changes are another version of something that it has.
        if let Some(mut shown) = before.shown.filter(|_| !before.refused)
            && let Some(patch) = self.board.cache.patch(edition, audience, &mut shown, self.session.content())
        {
            self.seen.shown = Some(shown);
            return self.session.patch(patch, edition.epoch);
        }
        let (content, shown) = self.board.cache.content(edition, audience, &self.wants);
        let Vetted { mut content, withheld, whole } = self.board.cache.vetted(edition.serial, content, self.session.content());
        if self.peer.door == Entrance::Plaintext {
            // Believed for routing only (contract, section 4).
            content.remove(xds::SECRET);
            content.remove(TRUST);
        }
        (self.seen.shown, self.seen.refused) = (Some(shown), !whole);
        self.session.withhold(withheld);
        self.session.show(content, edition.epoch)
    }
}

/// Waits until an edition concerns the stream; before it is known who it is, none does.
async fn woken(following: Option<&Concerned>) {
    match following {
        Some(following) => following.woken().await,
        None => std::future::pending().await,
    }
}
