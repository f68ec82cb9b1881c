//! `meshwright.v1.LimitLeases`: what proxies of Gateways count together. Each takes some of a key's share ahead of its requests; here are the
//! meters of all keys, in memory only: a replica that takes over goes on from what proxies know (`engine::limit::LimitBook`).

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::limit::{Grant, KeyKnown, LimitBook, Now, Numbers, OBJECT_KEYS_MAX, ShareAsk, numbers_of};
use futures::Stream;
use proto::mesh::limit_ask::Numbers as RawNumbers;
use proto::mesh::limit_leases_server::{LimitLeases, LimitLeasesServer};
use proto::mesh::{Hello, LimitAsk, LimitAsks, LimitGrant, LimitGrants};
use proto::names::Mode;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admit::presented;
use super::reports::judge;
use crate::publish::board::Board;
use crate::publish::peer::{Claim, Peer, peer_of};
use crate::world::key::GATEWAY_API;
use crate::world::{Kind, ObjectKey, Spec, World};

/// Largest batch: its questions have some 200 bytes each.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Answers to one stream that wait; beyond it no further questions of it are taken.
const ANSWERS_AHEAD: usize = 4;
/// Limits that are counted, of all objects; a further one is counted by nobody.
const LIMITS_MAX: usize = 4_096;
/// Numbers that a stream remembers having read; it forgets them all beyond that.
const NUMBERS_MAX: usize = 1_024;

/// What is counted, and by how many.
pub struct Counter {
    book: LimitBook,
    begun: Instant,
    /// Streams by Gateway.
    streams: watch::Sender<BTreeMap<String, u32>>,
    /// The edition that was looked at last for what may be forgotten.
    swept: AtomicU64,
}

/// The service.
pub struct LimitDesk {
    board: Arc<Board>,
    counter: Arc<Counter>,
    stop: CancellationToken,
}

impl Default for Counter {
    fn default() -> Self {
        let book = LimitBook::new(LIMITS_MAX, OBJECT_KEYS_MAX);
        Self { book, begun: Instant::now(), streams: watch::Sender::default(), swept: AtomicU64::new(u64::MAX) }
    }
}

impl LimitDesk {
    /// To be added to a server. It begins with nothing.
    pub fn service(board: Arc<Board>, stop: CancellationToken) -> LimitLeasesServer<Self> {
        LimitLeasesServer::new(Self { board, counter: Arc::default(), stop }).max_decoding_message_size(BATCH_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl LimitLeases for LimitDesk {
    type LeaseStream = Pin<Box<dyn Stream<Item = Result<LimitGrants, Status>> + Send>>;

    async fn lease(&self, request: Request<Streaming<LimitAsks>>) -> Result<Response<Self::LeaseStream>, Status> {
        let peer = peer_of(request.extensions())?;
        presented(&peer)?;
        let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD);
        let (board, counter, stop) = (self.board.clone(), self.counter.clone(), self.stop.clone());
        tokio::spawn(async move {
            if let Err(status) = talk((&board, &counter), &peer, request.into_inner(), &sender, &stop).await {
                // The proxy may be gone already.
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One proxy among those that count together; leaves with the stream.
struct Member<'c> {
    counter: &'c Counter,
    gateway: String,
}

impl<'c> Member<'c> {
    fn join(counter: &'c Counter, gateway: String) -> Self {
        counter.streams.send_modify(|streams| *streams.entry(gateway.clone()).or_default() += 1);
        Self { counter, gateway }
    }

    fn replicas(&self) -> u32 {
        self.counter.streams.borrow().get(&self.gateway).copied().unwrap_or(1)
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.counter.streams.send_modify(|streams| {
            if let Some(count) = streams.get_mut(&self.gateway) {
                *count -= 1;
                if *count == 0 {
                    streams.remove(&self.gateway);
                }
            }
        });
    }
}

async fn talk(
    (board, counter): (&Arc<Board>, &Counter),
    peer: &Peer,
    mut asks: Streaming<LimitAsks>,
    sender: &mpsc::Sender<Result<LimitGrants, Status>>,
    stop: &CancellationToken,
) -> Result<(), Status> {
    let first = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        first = asks.message() => first?,
    };
    let Some(LimitAsks { node_id, .. }) = first.filter(|first| !first.node_id.is_empty()) else {
        return Err(Status::invalid_argument("the first message must say who asks: node_id"));
    };
    let node = Claim::of_hello(&Hello { node_id, ..Hello::default() }, peer)?;
    if node.mode != Mode::Edge {
        return Err(Status::permission_denied("only a Gateway's proxies count together"));
    }
    let following = board.concerns.follow(None);
    judge(board, peer, &node, &following)?;
    let member = Member::join(counter, format!("{}/{}", node.namespace, node.instance));
    let mut streams = counter.streams.subscribe();
    let mut numbers = HashMap::new();
    let mut grants = Vec::new();
    loop {
        let told = LimitGrants { replicas: member.replicas(), grants: std::mem::take(&mut grants) };
        if sender.send(Ok(told)).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            // As on the stream of configuration: who is gone or revoked counts nothing any more.
            () = following.woken() => judge(board, peer, &node, &following)?,
            told = asks.message() => match told {
                Ok(Some(told)) => {
                    let now = counter.now(board);
                    counter.make_room(board);
                    grants.extend(told.asks.iter().map(|ask| counter.grant(ask, &mut numbers, now)));
                }
                Ok(None) | Err(_) => return Ok(()),
            },
            Ok(()) = streams.changed() => {}
        }
    }
}

impl Counter {
    fn now(&self, board: &Board) -> Now {
        Now { moment: engine::Moment::after_start(self.begun.elapsed()), wall_secs: board.clock.unix().as_secs() }
    }

    /// Where as many limits are counted as may be, forgets those that nobody has any more: routes come and go, and each may have its own. Once for
    /// each edition.
    fn make_room(&self, board: &Board) {
        let Some(edition) = board.edition().filter(|_| self.book.is_full()) else { return };
        if self.swept.swap(edition.serial, Ordering::Relaxed) != edition.serial {
            self.book.keep(|limit| is_there(&edition.world, limit).is_some());
        }
    }

    /// What cannot be counted is refused, and counted by each proxy on its own.
    fn grant(&self, ask: &LimitAsk, known: &mut HashMap<Vec<u8>, Numbers>, now: Now) -> LimitGrant {
        let refused = || LimitGrant { id: ask.id, refused: true, ..LimitGrant::default() };
        let (Some(numbers), Ok(key)) = (read(ask.numbers.as_ref(), known), <[u8; 16]>::try_from(&*ask.key)) else { return refused() };
        let read = |known: &proto::mesh::LimitKnown| KeyKnown {
            remaining: known.remaining,
            heard_ago: time(known.heard_ago.as_ref()),
            reset_in: time(known.reset_in.as_ref()),
        };
        let asked = ShareAsk {
            limit: format!("{}/{}", ask.memory, ask.limit).into(),
            key: u128::from_be_bytes(key),
            want: ask.want,
            back: ask.back,
            spent: ask.spent,
            known: ask.known.as_ref().map(read),
        };
        let Some(Grant { granted, lasts, standing }) = self.book.take(&asked, &numbers, now) else { return refused() };
        let sent = |time: Duration| prost_types::Duration::try_from(time).ok();
        LimitGrant {
            id: ask.id,
            granted,
            lasts: sent(lasts),
            remaining: standing.remaining,
            reset_in: sent(standing.reset),
            retry_in: sent(standing.retry),
            refused: false,
        }
    }
}

/// Whether there is a limit of that name, `NAMESPACE/NAME[@KIND NAMESPACE/ROUTE]/LIMIT`, and the route that counts apart.
fn is_there(world: &World, limit: &str) -> Option<()> {
    let (memory, own) = limit.rsplit_once('/')?;
    let (policy, route) = memory.split_once('@').map_or((memory, None), |(policy, route)| (policy, Some(route)));
    let (namespace, name) = policy.split_once('/')?;
    let Spec::RateLimit(spec) = &world.get(&ObjectKey::new(Kind::RateLimit, namespace, name))?.spec else { return None };
    spec.limits.iter().find(|limit| limit.name == own)?;
    if let Some(route) = route {
        let (kind, path) = route.split_once(' ')?;
        let (namespace, name) = path.split_once('/')?;
        world.get(&ObjectKey::new(Kind::find(GATEWAY_API, kind)?, namespace, name))?;
    }
    Some(())
}

/// Numbers as they were read before, or read now: zones are looked up once.
fn read(raw: Option<&RawNumbers>, known: &mut HashMap<Vec<u8>, Numbers>) -> Option<Numbers> {
    let raw = raw?;
    let mut text = Vec::with_capacity(32);
    raw.encode(&mut text);
    if let Some(numbers) = known.get(&text) {
        return Some(numbers.clone());
    }
    if known.len() >= NUMBERS_MAX {
        known.clear();
    }
    let numbers = numbers_of(raw).ok()?;
    known.insert(text, numbers.clone());
    Some(numbers)
}

/// A time that is none counts as no time.
fn time(raw: Option<&prost_types::Duration>) -> Duration {
    raw.and_then(|raw| Duration::try_from(*raw).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proto::mesh::{LimitQuota, LimitRate};

    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, WorldSettings};

    fn ask(id: u64, want: u64) -> LimitAsk {
        let per = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        LimitAsk {
            id,
            memory: "shop/limits".into(),
            limit: "all".into(),
            key: vec![7; 16].into(),
            want,
            numbers: Some(RawNumbers::Rate(LimitRate { requests: 5, per, burst: 5 })),
            ..LimitAsk::default()
        }
    }

    fn now(secs: u64) -> Now {
        Now { moment: engine::Moment::after_start(Duration::from_secs(secs)), wall_secs: 1_700_000_000 + secs }
    }

    #[test]
    fn grants_are_what_is_left_and_nonsense_is_refused() {
        // Aim: a key's share is given once, what comes back is given again, and what cannot be counted is told so by its number.
        let (counter, mut known) = (Counter::default(), HashMap::new());
        let granted = |ask: &LimitAsk, known: &mut _, secs| {
            let grant = counter.grant(ask, known, now(secs));
            assert_eq!(grant.id, ask.id);
            (grant.granted, grant.remaining, grant.retry_in.is_some_and(|retry| retry.seconds > 0), grant.refused)
        };
        assert_eq!(granted(&ask(1, 3), &mut known, 0), (3, 2, false, false));
        assert_eq!(granted(&ask(2, 3), &mut known, 0), (2, 0, true, false));
        assert_eq!(granted(&LimitAsk { back: 2, want: 0, ..ask(3, 0) }, &mut known, 0), (0, 2, false, false));
        assert_eq!(granted(&LimitAsk { spent: 2, ..ask(4, 1) }, &mut known, 0), (0, 0, true, false));
        assert_eq!(granted(&ask(5, 9), &mut known, 60).0, 5, "a minute later all of it is there again");
        let zone = LimitQuota { requests: 1, time_zone: "Mars/Olympus".into(), ..LimitQuota::default() };
        for broken in [
            LimitAsk { key: vec![7; 15].into(), ..ask(6, 1) },
            LimitAsk { numbers: None, ..ask(7, 1) },
            LimitAsk { numbers: Some(RawNumbers::Quota(zone)), ..ask(8, 1) },
            LimitAsk { numbers: Some(RawNumbers::Rate(LimitRate::default())), ..ask(9, 1) },
        ] {
            assert_eq!(granted(&broken, &mut known, 60), (0, 0, false, true), "{broken:?}");
        }
        assert_eq!(known.len(), 1, "only numbers that read are remembered");
    }

    #[test]
    fn limits_are_there_as_long_as_somebody_has_them() {
        // Aim: what is forgotten to make room is a limit whose object, or name in it, or route is no more; nonsense of a proxy is, too.
        let text = "apiVersion: meshwright.dev/v1alpha1\nkind: RateLimit\nmetadata: {name: l, namespace: shop}\n\
                    spec: {perTarget: true, limits: [{name: all, requests: 5, per: 1m}]}\n---\n\
                    apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n\
                    spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: s, port: 80}]}]}\n";
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) };
        world.apply(Folder::default().update(vec![change], 0));
        for (limit, there) in [
            ("shop/l/all", true),
            ("shop/l@HTTPRoute shop/r/all", true),
            ("shop/l@HTTPRoute shop/gone/all", false),
            ("shop/l@Other shop/r/all", false),
            ("shop/l@r/all", false),
            ("shop/l/other", false),
            ("shop/gone/all", false),
            ("all", false),
            ("", false),
        ] {
            assert_eq!(is_there(&world, limit).is_some(), there, "{limit}");
        }
    }

    #[test]
    fn streams_of_a_gateway_are_its_replicas() {
        // Aim: each proxy of a Gateway counts while its stream lasts, and no other Gateway's does.
        let counter = Counter::default();
        let first = Member::join(&counter, "shop/edge".to_owned());
        let second = Member::join(&counter, "shop/edge".to_owned());
        let other = Member::join(&counter, "shop/other".to_owned());
        assert_eq!((first.replicas(), other.replicas()), (2, 1));
        drop(second);
        assert_eq!(first.replicas(), 1);
        drop((first, other));
        assert!(counter.streams.borrow().is_empty());
    }
}
