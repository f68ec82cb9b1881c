//! Limits on the road: a guard counts a request, lets it on or answers it, and keeps what the answer is to say of it.

mod compile;
mod counted;
mod kept;
pub(super) mod key;
mod queued;
mod rated;
mod service;
mod told;

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::{Passed, Question};
use crate::authorize::{TruthOf, ValueOf};
use crate::failure::{LocalReply, Reason};
use crate::filter::{Exchange, HeaderOp};
use crate::limit::{
    HeadersTold, KeyStanding, LimitCounts, LimitVerdict, Memory, Now, Numbers, RemoteStore, RowState, StoreLive, Taking, UnderWayPlace,
    Wanted, retry_after,
};
use key::{Missing, Part, Seen};
use service::Served;

pub use compile::read;
pub(crate) use compile::{object, redis};
pub use key::KEY_PARTS_MAX;
pub use queued::PlaceAsk;
pub use rated::{Descriptor, RateAsk, ServiceAnswer};
pub use service::{DESCRIPTOR_BYTES_MAX, DESCRIPTOR_ENTRIES_MAX, DESCRIPTORS_MAX, ServiceLimits};

/// How often a request asks a store before it is treated as if that were away: others may spend what came for it.
const ASKS_MAX: u8 = 4;

/// All limits of a rule at one stage.
#[derive(Debug)]
pub struct LimitGuard {
    objects: Vec<Arc<ObjectLimits>>,
    /// For `RateLimit-Policy`: limits that count every request; each of the others has its own ([`Limit::policy`]).
    policy: Option<HeaderValue>,
}

/// One RateLimit.
#[derive(Debug)]
pub struct ObjectLimits {
    /// `NAMESPACE/NAME`.
    pub policy: Arc<str>,
    /// What it counted.
    pub memory: Arc<Memory>,
    /// In their order.
    pub limits: Vec<Limit>,
    concurrency: Vec<Concurrency>,
    bandwidth: Vec<Bandwidth>,
    /// What a service decides.
    pub service: Option<ServiceLimits>,
    /// Where what is shared is counted.
    pub store: Arc<StoreLive>,
    /// The store, where it is not the control plane.
    pub remote: Option<Arc<RemoteStore>>,
    /// Who says how many proxies share, whatever store they share by.
    peers: Arc<StoreLive>,
    ahead_percent: u64,
    without_store: WithoutStore,
    told: HeadersTold,
}

/// What holds while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WithoutStore {
    Share,
    Allow,
    Deny,
}

/// One limit.
#[derive(Debug)]
pub struct Limit {
    /// Its name in the object.
    pub name: Arc<str>,
    /// `NAMESPACE/NAME/LIMIT`.
    pub path: Arc<str>,
    /// By which its keys' rows are known.
    mark: u32,
    /// How much.
    pub numbers: Numbers,
    /// All proxies count together.
    pub shared: bool,
    key: Vec<Part>,
    missing: IfMissing,
    when: Option<TruthOf>,
    cost: Cost,
    /// The header of the answer that says what it took in the end.
    settled: Option<HeaderName>,
    dry_run: bool,
    /// For `RateLimit-Policy`, of one that does not count every request: nobody is told of a limit that others have.
    policy: Option<HeaderValue>,
    /// What became of requests.
    pub counts: Arc<LimitCounts>,
}

/// What one request takes.
#[derive(Debug)]
enum Cost {
    Same(u64),
    Made(ValueOf),
}

/// A part of the key is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfMissing {
    Together,
    Skip,
    Deny,
}

/// How many requests may be under way at once.
#[derive(Debug)]
struct Concurrency {
    requests: u32,
    /// How many more may wait.
    queue: u32,
    key: Vec<Part>,
    /// `NAMESPACE/NAME/concurrency`, of all of them together.
    path: Arc<str>,
    counts: Arc<LimitCounts>,
}

/// How many bytes of answers' bodies may be sent in a second.
#[derive(Debug)]
struct Bandwidth {
    bytes_per_second: u64,
    key: Vec<Part>,
}

/// Somebody's pace.
#[derive(Debug)]
struct Pace {
    memory: Arc<Memory>,
    key: u128,
    bytes_per_second: u64,
}

/// What a store is to be asked.
#[derive(Clone, Debug)]
pub struct LimitAsk {
    /// The object.
    pub object: Arc<ObjectLimits>,
    /// Which of its limits.
    pub limit: usize,
    /// Whose share.
    pub key: u128,
    /// How much.
    pub want: u64,
}

/// How a request would stand at a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitOutlook {
    /// `NAMESPACE/NAME/LIMIT`.
    pub path: Arc<str>,
    /// Whose share; `None`: it is not counted.
    pub key: Option<u128>,
    /// What is left, as far as this proxy knows.
    pub remaining: u64,
    /// What would become of it.
    pub verdict: &'static str,
}

/// What is known of a request at limits; nothing for most.
#[derive(Debug, Default)]
pub struct Counted(Option<Box<Count>>);

#[derive(Debug, Default)]
struct Count {
    tightest: Option<(Arc<ObjectLimits>, usize, KeyStanding)>,
    policies: SmallVec<[HeaderValue; 2]>,
    refused: Option<Arc<str>>,
    /// How often stores were asked for it, and that one did not answer.
    asked: u8,
    silent: bool,
    /// What is to be asked of stores beside the road.
    aside: Vec<LimitAsk>,
    places: Vec<UnderWayPlace>,
    /// Places that it has waited for, until it goes on.
    given: Vec<UnderWayPlace>,
    /// What was taken and is settled with the answer: the limit's object and place, whose, how much.
    open: Vec<(Arc<ObjectLimits>, usize, u128, u64)>,
    paces: Vec<Pace>,
    /// What services were asked, and what they have to say to the backend.
    served: SmallVec<[Served; 1]>,
    for_backend: Vec<(HeaderName, HeaderValue)>,
    /// What services and other guards have to say on the answer.
    said: Vec<HeaderOp>,
}

/// What was taken so far, to be put back if a later limit says no.
type Taken<'l> = SmallVec<[(&'l Arc<ObjectLimits>, usize, u128, u64, KeyStanding); 4]>;

/// Why a request goes no further.
enum Stop {
    Refused(KeyStanding),
    NoKey,
    Away,
    Ask(u128, u64),
}

impl LimitGuard {
    /// Of these objects, the narrowest first; `None`: there are none.
    pub(crate) fn new(objects: Vec<Arc<ObjectLimits>>) -> Option<Self> {
        let policy = told::policy(&objects);
        (!objects.is_empty()).then_some(Self { objects, policy })
    }

    /// The objects.
    pub fn objects(&self) -> &[Arc<ObjectLimits>] {
        &self.objects
    }

    /// Counts a request. Where one says no, nothing is taken from the others.
    pub(crate) fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        let Some(wall_secs) = exchange.watch.as_ref().map(|watch| watch.wall_secs) else { return Passed::On };
        let now = Now { moment: exchange.now, wall_secs };
        let mut count = exchange.watch.as_mut().and_then(|watch| watch.counted.0.take()).unwrap_or_default();
        let passed = self.pass(&Seen::of(exchange), &mut count, now);
        if matches!(passed, Passed::On) {
            // What a client says there is not the service's word. One that says a name twice means both.
            for (name, _) in &count.for_backend {
                exchange.request.headers.remove(name);
            }
            for (name, value) in count.for_backend.drain(..) {
                exchange.request.headers.append(name, value);
            }
        }
        if let Some(watch) = exchange.watch.as_mut() {
            watch.counted.0 = Some(count);
        }
        passed
    }

    fn pass(&self, seen: &Seen<'_, '_>, count: &mut Count, now: Now) -> Passed {
        let mut taken = Taken::new();
        for object in &self.objects {
            for (place, limit) in object.limits.iter().enumerate() {
                let stopped = match object.take((place, limit), (seen, &mut *count), now) {
                    Ok(None) => continue,
                    Ok(Some((key, cost, standing))) => {
                        taken.push((object, place, key, cost, standing));
                        continue;
                    }
                    Err(stopped) => stopped,
                };
                if limit.dry_run {
                    match stopped {
                        // On trial it keeps nobody waiting.
                        Stop::Ask(key, want) => count.aside.push(LimitAsk { object: Arc::clone(object), limit: place, key, want }),
                        _ => limit.counts.add(LimitVerdict::WouldRefuse),
                    }
                    continue;
                }
                put_back(&taken, now);
                if matches!(stopped, Stop::Refused(_)) {
                    self.tell_policies(count, |_, _, limit| limit.counts_this(seen));
                }
                return self.stop((object, place), stopped, count);
            }
        }
        if let Err(passed) = self.served(seen, count, now.moment) {
            put_back(&taken, now);
            return passed;
        }
        let places = match self.enter(seen, count) {
            Ok(places) => places,
            Err(passed) => {
                put_back(&taken, now);
                return passed;
            }
        };
        count.places.extend(places);
        count.paces.extend(self.paces(seen));
        self.tell_policies(count, |object, place, _| taken.iter().any(|of| Arc::ptr_eq(of.0, object) && of.1 == place));
        for (object, place, key, cost, standing) in taken {
            if let Some(limit) = object.limits.get(place) {
                limit.counts.add(LimitVerdict::Allowed);
                if limit.settled.is_some() {
                    count.open.push((Arc::clone(object), place, key, cost));
                }
            }
            count.met(object, place, standing);
        }
        Passed::On
    }

    /// Places among the requests under way.
    ///
    /// # Errors
    /// There is none left of a limit, or it has to be waited for. Meanwhile the request has none of the others' places, but those that it has
    /// waited for before.
    fn enter(&self, seen: &Seen<'_, '_>, count: &mut Count) -> Result<Vec<UnderWayPlace>, Passed> {
        let (mut places, mut given) = (Vec::new(), Vec::new());
        for object in &self.objects {
            for (index, limit) in object.concurrency.iter().enumerate() {
                let Ok(key) = seen.key(CONCURRENCY.get(index).copied().unwrap_or_default(), &limit.key, true) else { continue };
                if let Some(at) = count.given.iter().position(|place| object.memory.has_given(place, key)) {
                    given.push(count.given.swap_remove(at));
                    continue;
                }
                match object.memory.enter(key, limit.requests, limit.queue) {
                    Wanted::Place(place) => places.push(place),
                    Wanted::Wait(waiting) => {
                        limit.counts.add(LimitVerdict::Queued);
                        count.given.append(&mut given);
                        return Err(Passed::Asks(Box::new(Question::Place(PlaceAsk::new(waiting, limit)))));
                    }
                    Wanted::Full => {
                        limit.counts.add(LimitVerdict::Refused);
                        count.refused = Some(Arc::clone(&limit.path));
                        return Err(Passed::Answered(Box::new(no_place())));
                    }
                }
            }
        }
        let limits = self.objects.iter().flat_map(|object| &object.concurrency);
        limits.for_each(|limit| limit.counts.add(LimitVerdict::Allowed));
        places.append(&mut given);
        Ok(places)
    }

    /// At which pace its answer is sent.
    fn paces(&self, seen: &Seen<'_, '_>) -> Vec<Pace> {
        let mut paces = Vec::new();
        for object in &self.objects {
            for (index, limit) in object.bandwidth.iter().enumerate() {
                let Ok(key) = seen.key(BANDWIDTH.get(index).copied().unwrap_or_default(), &limit.key, true) else { continue };
                paces.push(Pace { memory: Arc::clone(&object.memory), key, bytes_per_second: limit.bytes_per_second });
            }
        }
        paces
    }

    /// The end of a request's way.
    fn stop(&self, (object, place): (&Arc<ObjectLimits>, usize), stopped: Stop, count: &mut Count) -> Passed {
        let limit = object.limits.get(place);
        let verdict = |verdict| {
            if let Some(limit) = limit {
                limit.counts.add(verdict);
            }
        };
        let answer = match stopped {
            Stop::Ask(key, want) => {
                count.asked += 1;
                let ask = LimitAsk { object: Arc::clone(object), limit: place, key, want };
                return Passed::Asks(Box::new(Question::Limit(ask)));
            }
            Stop::Refused(standing) => {
                verdict(LimitVerdict::Refused);
                count.tightest = Some((Arc::clone(object), place, standing));
                let mut answer = LocalReply::of(Reason::RateLimited);
                answer.headers.push(retry_after(&standing));
                count.tell(|name, value| answer.headers.push((name, value)));
                answer
            }
            Stop::NoKey => {
                verdict(LimitVerdict::NoKey);
                LocalReply::of(Reason::Denied)
            }
            Stop::Away => {
                verdict(LimitVerdict::StoreAwayRefused);
                LocalReply::of(Reason::PolicyUnavailable)
            }
        };
        count.refused = limit.map(|limit| Arc::clone(&limit.path));
        // It has been told, or there is nothing to tell.
        count.tightest = None;
        Passed::Answered(Box::new(answer))
    }

    /// How a request stands, without taking anything and without asking anybody.
    pub(crate) fn outlook(&self, exchange: &Exchange<'_>) -> Vec<LimitOutlook> {
        let Some(wall_secs) = exchange.watch.as_ref().map(|watch| watch.wall_secs) else { return Vec::new() };
        let (now, seen) = (Now { moment: exchange.now, wall_secs }, Seen::of(exchange));
        let all = self.objects.iter().flat_map(|object| object.limits.iter().map(move |limit| (object, limit)));
        let served = self.objects.iter().filter_map(|object| object.service.as_ref()).map(|service| LimitOutlook {
            path: Arc::clone(service.path()),
            key: None,
            remaining: 0,
            verdict: "would_ask",
        });
        all.map(|(object, limit)| object.outlook(limit, &seen, now)).chain(served).collect()
    }

    /// What it does, in words.
    pub(crate) fn story(&self) -> String {
        let one = |object: &Arc<ObjectLimits>| {
            let limits = object.limits.iter().map(Limit::story);
            let waiting = |limit: &Concurrency| match limit.queue {
                0 => String::new(),
                queue => format!(", up to {queue} more wait"),
            };
            let busy = object.concurrency.iter().map(|limit| format!("{} at once{}{}", limit.requests, each(&limit.key), waiting(limit)));
            let wide = object.bandwidth.iter().map(|limit| format!("{} bytes a second{}", limit.bytes_per_second, each(&limit.key)));
            format!(
                "{}: {}",
                object.policy,
                limits.chain(busy).chain(wide).chain(object.service.as_ref().map(ServiceLimits::story)).collect::<Vec<_>>().join(", ")
            )
        };
        self.objects.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

/// All places are taken.
fn no_place() -> LocalReply {
    let mut answer = LocalReply::of(Reason::RateLimited);
    answer.headers.push(retry_after(&KeyStanding::default()));
    answer
}

/// Sets keys of concurrency limits apart from those of others, and from one another.
const CONCURRENCY: [&str; 8] = ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7"];
/// The same of bandwidths.
const BANDWIDTH: [&str; 8] = ["B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7"];
/// Most limits of requests under way of one object.
pub const CONCURRENCY_MAX: usize = CONCURRENCY.len();
/// Most requests of one key that wait for a place of such a limit.
pub const QUEUE_MAX: u32 = 1000;

/// What was taken of a limit, or that it does not count this request.
type Took = Option<(u128, u64, KeyStanding)>;

impl ObjectLimits {
    fn take(self: &Arc<Self>, (place, limit): (usize, &Limit), (seen, count): (&Seen<'_, '_>, &mut Count), now: Now) -> Result<Took, Stop> {
        if limit.when.as_ref().is_some_and(|when| !seen.call(|call| when.holds(call))) {
            return Ok(None);
        }
        let key = match seen.key(&limit.name, &limit.key, limit.missing == IfMissing::Together) {
            Ok(key) => key,
            Err(Missing) if limit.missing == IfMissing::Skip => return Ok(None),
            Err(Missing) => return Err(Stop::NoKey),
        };
        let cost = limit.cost(seen);
        if !limit.shared {
            let taken = self.memory.rows.with(key, |row| limit.numbers.take(row.of(limit.mark).own(), cost, now));
            return taken.map(|standing| Some((key, cost, standing))).map_err(Stop::Refused);
        }
        if self.store.away_since().is_some() || count.silent || count.asked > ASKS_MAX {
            return self.take_alone(limit, (key, cost), now);
        }
        let ahead = limit.ahead(self.ahead_percent);
        let session = self.store.session();
        let (taking, tells) = self.memory.rows.with(key, |row| {
            let held = row.of(limit.mark).shared().under(&limit.numbers);
            let mut taking = held.take(cost, ahead, now.moment);
            if let Taking::Empty(standing) = &mut taking {
                standing.retry = held.until(cost, &limit.numbers, now.moment);
            }
            let tells = matches!(taking, Taking::Empty(_)) && held.tells(session, now.moment);
            (taking, tells)
        });
        if tells {
            count.aside.push(LimitAsk { object: Arc::clone(self), limit: place, key, want: 0 });
        }
        match taking {
            Taking::Taken { standing, more } => {
                if more > 0 {
                    count.aside.push(LimitAsk { object: Arc::clone(self), limit: place, key, want: more });
                }
                Ok(Some((key, cost, standing)))
            }
            Taking::Empty(standing) => Err(Stop::Refused(standing)),
            Taking::Ask(want) => Err(Stop::Ask(key, want)),
        }
    }

    fn outlook(&self, limit: &Limit, seen: &Seen<'_, '_>, now: Now) -> LimitOutlook {
        let said = |key, remaining, verdict| LimitOutlook { path: Arc::clone(&limit.path), key, remaining, verdict };
        if limit.when.as_ref().is_some_and(|when| !seen.call(|call| when.holds(call))) {
            return said(None, limit.numbers.whole(), "not_counted");
        }
        let key = match seen.key(&limit.name, &limit.key, limit.missing == IfMissing::Together) {
            Ok(key) => key,
            Err(Missing) if limit.missing == IfMissing::Skip => return said(None, limit.numbers.whole(), "not_counted"),
            Err(Missing) => return said(None, 0, LimitVerdict::NoKey.text()),
        };
        let cost = limit.cost(seen);
        let known = self.memory.rows.peek(key, |row| match &row.state {
            RowState::Fresh | RowState::Pace(_) => None,
            RowState::Own(meter) => Some((limit.numbers.look(&mut meter.clone(), cost, now), true)),
            RowState::Shared(held) => Some((held.standing(now.moment), held.have() >= cost || held.is_empty(now.moment))),
        });
        let (remaining, sure) = match known.flatten() {
            Some((standing, sure)) => (standing.remaining, sure),
            None => (limit.numbers.whole(), !limit.shared),
        };
        let refuses = if limit.dry_run { LimitVerdict::WouldRefuse } else { LimitVerdict::Refused };
        let verdict = match (sure, remaining >= cost) {
            (true, true) => LimitVerdict::Allowed.text(),
            (true, false) => refuses.text(),
            (false, _) => "would_ask",
        };
        said(Some(key), remaining, verdict)
    }
}

impl Limit {
    /// What comes to nothing, or to no number, counts as a request like others.
    fn cost(&self, seen: &Seen<'_, '_>) -> u64 {
        match &self.cost {
            Cost::Same(cost) => *cost,
            Cost::Made(value) => seen.call(|call| value.of(call)).and_then(|text| text.parse().ok()).unwrap_or(1),
        }
    }

    /// What a proxy takes ahead of its requests.
    fn ahead(&self, percent: u64) -> u64 {
        (self.numbers.whole() * percent).div_ceil(100)
    }

    fn story(&self) -> String {
        let much = match &self.numbers {
            Numbers::Rate(rate) => {
                let (amount, per) = rate.pace();
                format!("{amount} in {per:?}, {} at once", rate.burst())
            }
            Numbers::Quota(quota) => format!("{} in each {:?} of {}", quota.amount(), quota.calendar().every(), quota.calendar().zone()),
        };
        let whose = if self.shared { "" } else { " at each proxy" };
        let dry = if self.dry_run { " (only counted)" } else { "" };
        format!("`{}` lets through {much}{}{whose}{dry}", self.name, each(&self.key))
    }
}

/// In words, whose share it is.
fn each(key: &[Part]) -> String {
    let parts: Vec<String> = key.iter().map(Part::story).collect();
    if parts.is_empty() { String::new() } else { format!(" for each {}", parts.join(" and ")) }
}

/// Nothing stays taken of a request that is not let on.
fn put_back(taken: &Taken<'_>, now: Now) {
    for (object, place, key, cost, _) in taken {
        let Some(limit) = object.limits.get(*place) else { continue };
        object.memory.rows.peek(*key, |row| match &mut row.state {
            RowState::Own(meter) => limit.numbers.give_back(meter, *cost, now),
            RowState::Shared(held) => held.untake(*cost),
            RowState::Fresh | RowState::Pace(_) => {}
        });
    }
}

impl Count {
    /// One more limit lets it on: the tightest is told.
    fn met(&mut self, object: &Arc<ObjectLimits>, place: usize, standing: KeyStanding) {
        // Of a store's own word nobody knows how large it is.
        let whole = |object: &ObjectLimits, place: usize| object.limits.get(place).map_or(1, |limit| u128::from(limit.numbers.whole()));
        let tighter = self.tightest.as_ref().is_none_or(|(known, at, than)| {
            u128::from(standing.remaining) * whole(known, *at) < u128::from(than.remaining) * whole(object, place)
        });
        if tighter && object.limits.get(place).is_some_and(|limit| !limit.dry_run) {
            self.tightest = Some((Arc::clone(object), place, standing));
        }
    }

    fn tell(&self, mut say: impl FnMut(HeaderName, HeaderValue)) {
        let Some((object, place, standing)) = &self.tightest else { return };
        let Some(limit) = object.limits.get(*place) else { return };
        object.told.tell(&mut say, (&limit.name, limit.numbers.whole()), standing, &self.policies);
    }
}
