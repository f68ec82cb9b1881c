//! One watch: list, then follow, for ever. The `kube` runtime lists page by page, goes on from the last revision and lists again where
//! that is gone; here is what it leaves to its user: how long anything may take, what to do about an error, and kinds that are not there.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use kube::api::{Api, DynamicObject};
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::{Client, client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tower::{ServiceBuilder, service_fn};

use super::document;
use super::fault::{Fault, judge, late, place, problem, unsure};
use super::gather::Delivery;
use super::listing::{Listing, Watchable};
use super::pulse::Pulse;
use super::table::{Extent, extent, plural, resource};
use crate::clock::Clock;
use crate::world::problem::Problem;
use crate::world::{Change, Kind};

/// Objects of one page of a list.
const PAGE_ITEMS: u32 = 250;
/// Longest wait for a whole page.
const PAGE_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the head of any answer; that of a watch comes at once, whether or not anything happens.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// How long one watch lasts; the API server ends it then. One that is silent for a little longer is dead (the runtime allows five seconds),
/// so this is also how long a connection that died without a word goes unnoticed.
pub(super) const WATCH_SECS: u32 = 60;
/// How often a kind that is not there is looked for.
const ABSENT_LOOK: Duration = Duration::from_secs(30);
/// Until the second look at a kind that seems not to be there: an API server that is starting may not know all of its kinds yet.
const ABSENT_AGAIN: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Watching {
    pub(super) watch: u64,
    pub(super) subject: Watchable,
    pub(super) client: Client,
    pub(super) clock: Clock,
    pub(super) pulse: Arc<Pulse>,
    pub(super) out: mpsc::Sender<Delivery>,
}

/// Why a stream was given up.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// The kind is not there.
    Absent,
    /// To begin with a list again.
    Stale,
}

/// What a watch knows.
struct State {
    listing: Listing,
    backoff: DefaultBackoff,
    /// What is wrong now, as it was told.
    trouble: Option<Problem>,
    /// How often in a row no version of the kind was there.
    misses: u32,
}

impl Watching {
    /// Watches until nobody listens to it. Dropping the future ends it at any point.
    pub(super) async fn run(mut self) {
        self.client = bounded(self.client, self.pulse.clone());
        let listing = Listing::new(self.subject.clone());
        let mut state = State { listing, backoff: DefaultBackoff::default(), trouble: None, misses: 0 };
        let versions = self.subject.kind().versions();
        let mut at = 0;
        loop {
            match self.at_version(versions[at], &mut state).await {
                Ended::Unheard => return,
                Ended::Stale => sleep(state.backoff.next().unwrap_or(PAGE_MAX)).await,
                Ended::Absent => {
                    at = (at + 1) % versions.len();
                    if at == 0 && !self.absent(&mut state).await {
                        return;
                    }
                }
            }
        }
    }

    async fn at_version(&self, version: &str, state: &mut State) -> Ended {
        let resource = resource(self.subject.kind(), version);
        let config = watcher::Config::default().timeout(WATCH_SECS).page_size(PAGE_ITEMS);
        let client = self.client.clone();
        let whole = |object: DynamicObject| (object.metadata, object.data);
        match &self.subject {
            Watchable::All(kind) if extent(*kind) == Extent::Metadata => {
                let stream = watcher::watcher(Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &resource), config);
                self.follow(stream, |object| (object.metadata, Value::Null), version, state).await
            }
            Watchable::All(_) => {
                let stream = watcher::watcher(Api::<DynamicObject>::all_with(client, &resource), config);
                self.follow(stream, whole, version, state).await
            }
            Watchable::One(key) => {
                let api = Api::<DynamicObject>::namespaced_with(client, &key.namespace, &resource);
                let stream = watcher::watcher(api, config.fields(&format!("metadata.name={}", key.name)));
                self.follow(stream, whole, version, state).await
            }
        }
    }

    /// No version of the kind is there. That is believed at the second look, where the API server says it of itself, and told once; then it
    /// is looked for now and then. Otherwise what is known stays: something in front of an API server may say 404 to everything.
    async fn absent(&self, state: &mut State) -> bool {
        if state.misses == 0 {
            state.misses = 1;
            return self.pause(ABSENT_AGAIN).await;
        }
        let doubt = match self.is_served().await {
            Ok(false) => None,
            Ok(true) => Some(unsure(&self.subject, None)),
            // Who forbids to ask that is an API server, and its 404 its own.
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            Err(error) => Some(unsure(&self.subject, Some(error))),
        };
        if let Some(doubt) = doubt {
            self.pulse.errors.fetch_add(1, Ordering::Relaxed);
            let pause = state.backoff.next().unwrap_or(PAGE_MAX);
            return self.trouble(doubt, state).await && self.pause(pause).await;
        }
        state.misses = state.misses.saturating_add(1);
        if state.misses == 2 {
            tracing::info!("the cluster has no {}; they are looked for every {} s", self.subject, ABSENT_LOOK.as_secs());
        }
        state.listing.begin();
        let changes = state.listing.end().into_iter().chain(self.cleared(state)).collect();
        self.pulse.objects.store(0, Ordering::Relaxed);
        if !self.deliver(changes, true).await {
            return false;
        }
        // Not all kinds at once.
        let jitter = state.backoff.next().unwrap_or_default();
        state.backoff.reset();
        self.pause(ABSENT_LOOK + jitter).await
    }

    /// Whether the kind is among what the API server says that it serves, at any version that we read. One that serves nothing at all is
    /// none.
    async fn is_served(&self) -> kube::Result<bool> {
        let kind = self.subject.kind();
        let groups = self.client.list_api_groups().await?.groups;
        let versions = groups.iter().filter(|group| group.name == kind.group()).flat_map(|group| &group.versions);
        for version in versions.filter(|version| kind.versions().contains(&version.version.as_str())) {
            let served = self.client.list_api_group_resources(&version.group_version).await?;
            if served.resources.iter().any(|resource| resource.name == plural(kind)) {
                return Ok(true);
            }
        }
        Ok(groups.is_empty())
    }

    async fn follow<K: Send>(
        &self,
        stream: impl Stream<Item = watcher::Result<Event<K>>> + Send,
        split: impl Fn(K) -> (ObjectMeta, Value) + Send + Sync,
        version: &str,
        state: &mut State,
    ) -> Ended {
        let mut stream = pin!(stream);
        loop {
            let bound = if state.listing.is_open() { PAGE_MAX } else { Duration::MAX };
            let event = tokio::select! {
                biased;
                () = self.out.closed() => return Ended::Unheard,
                () = self.pulse.answered.notified(), if state.trouble.is_some() => {
                    let cleared = self.cleared(state).into_iter().collect();
                    if !self.deliver(cleared, false).await { return Ended::Unheard }
                    continue;
                }
                event = timeout(bound, stream.next()) => event,
            };
            let error = match event {
                Ok(Some(Ok(event))) => {
                    self.pulse.beat();
                    if !self.take(event, &split, version, state).await {
                        return Ended::Unheard;
                    }
                    continue;
                }
                Ok(Some(Err(error))) => error,
                // A watcher's stream has no end.
                Ok(None) => return Ended::Stale,
                Err(_) => {
                    self.pulse.errors.fetch_add(1, Ordering::Relaxed);
                    let told = self.trouble(late(&self.subject, PAGE_MAX), state).await;
                    return if told { Ended::Stale } else { Ended::Unheard };
                }
            };
            let pause = match judge(self.subject.kind(), &error) {
                Fault::Absent => return Ended::Absent,
                Fault::Stale => return Ended::Stale,
                Fault::Later(least) => state.backoff.next().unwrap_or(PAGE_MAX).max(least),
            };
            self.pulse.errors.fetch_add(1, Ordering::Relaxed);
            if !self.trouble(problem(&self.subject, &error), state).await || !self.pause(pause).await {
                return Ended::Unheard;
            }
        }
    }

    /// Takes in what came; whether anybody still listens.
    async fn take<K: Send>(
        &self,
        event: Event<K>,
        split: impl Fn(K) -> (ObjectMeta, Value) + Send + Sync,
        version: &str,
        state: &mut State,
    ) -> bool {
        let kind = self.subject.kind();
        let (change, listed) = match event {
            Event::Init => {
                state.listing.begin();
                (None, false)
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let (metadata, rest) = split(object);
                (self.read(kind, version, metadata, rest, &mut state.listing), false)
            }
            Event::Delete(object) => (document::key(kind, &split(object).0).and_then(|key| state.listing.remove(key)), false),
            Event::InitDone => {
                self.pulse.relists.fetch_add(1, Ordering::Relaxed);
                state.backoff.reset();
                if std::mem::take(&mut state.misses) > 1 {
                    tracing::info!("the cluster has {} now", self.subject);
                }
                (state.listing.end(), true)
            }
        };
        self.pulse.objects.store(state.listing.len() as u64, Ordering::Relaxed);
        if change.is_none() && !listed {
            return true;
        }
        self.deliver(change.into_iter().collect(), listed).await
    }

    fn read(&self, kind: Kind, version: &str, metadata: ObjectMeta, rest: Value, listing: &mut Listing) -> Option<Change> {
        let key = document::key(kind, &metadata)?;
        match document::candidate(kind, version, metadata, rest) {
            Ok(candidate) => listing.put(candidate, self.clock.age_ms()),
            Err(problem) => {
                tracing::warn!("{problem}");
                listing.unreadable(key);
                None
            }
        }
    }

    /// Tells what is wrong, unless that is known.
    async fn trouble(&self, problem: Problem, state: &mut State) -> bool {
        if state.trouble.as_ref() == Some(&problem) {
            return true;
        }
        // What was answered before the error is no sign that it is over.
        let _ = self.pulse.answered.notified().now_or_never();
        state.trouble = Some(problem.clone());
        self.deliver(vec![Change::File { file: place(&self.subject), problems: vec![problem] }], false).await
    }

    /// Tells that nothing is wrong any more.
    fn cleared(&self, state: &mut State) -> Option<Change> {
        state.trouble.take()?;
        tracing::info!("{} are watched again", self.subject);
        Some(Change::File { file: place(&self.subject), problems: Vec::new() })
    }

    async fn deliver(&self, changes: Vec<Change>, listed: bool) -> bool {
        self.out.send(Delivery { watch: self.watch, changes, listed }).await.is_ok()
    }

    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.out.closed() => false,
            () = sleep(pause) => true,
        }
    }
}

/// The same client, whose calls are answered in time or fail, and whose answers are noted.
fn bounded(client: Client, pulse: Arc<Pulse>) -> Client {
    let note = move |response: http::Response<client::Body>| {
        pulse.answer(response.status());
        response
    };
    let send = service_fn(move |request| {
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(ServiceBuilder::new().map_response(note).timeout(HEAD_MAX).service(send), "default")
}
