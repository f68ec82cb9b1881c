//! The task of the lease holder that writes statuses: what changed since the last word on each object, at a bounded pace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apiserver::client::{CALL_MAX, CallError, Fault, within};
use apiserver::lease::Tenure;
use futures::StreamExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::merge::{Spoken, merged, wait_patiently};
use super::speak::{Definitions, spoken};
use crate::publish::board::Board;
use crate::publish::epoch::{Entry, moment};
use crate::rotation::AWAY_GRACE;
use crate::world::Kind;
use crate::world::key::{GATEWAY_API, OWN, ObjectKey};

/// Changes are gathered for so long.
const GATHER: Duration = Duration::from_millis(150);
/// And so long at most until proxies have acknowledged them: then one write says both.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Calls under way at once.
const CALLS_MAX: usize = 8;
/// One call begins after the other: 50 a second.
const PACE: Duration = Duration::from_millis(20);
/// A word that differs in its sentences only follows the one before so late: who is waited for changes often.
const SENTENCE_PAUSE: Duration = Duration::from_secs(10);
/// After a failed write the next attempt is so late, doubled from time to time.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Everything is compared with what is there so often, for what somebody else did to our words.
const RECHECK: Duration = Duration::from_secs(600);
/// Attempts over a fresh version, after conflicts.
const ATTEMPTS_MAX: usize = 4;
/// Objects written in one pass, about a second's: what is said of the next ones is looked up anew.
const PASS_MAX: usize = 50;
/// Where Gateway API's version is not known it is looked for so often.
const BUNDLE_PAUSE: Duration = Duration::from_secs(30);
/// Objects of one page of a list.
const PAGE_MAX: u32 = 500;

/// One of Gateway API's definitions: all of them are of one version.
const BUNDLE_DEFINITION: &str = "gatewayclasses.gateway.networking.k8s.io";
/// Its annotation with that version.
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
/// Its annotation with their channel: `standard` or `experimental`.
const BUNDLE_CHANNEL: &str = "gateway.networking.k8s.io/channel";

/// Writes statuses as long as the lease is ours.
///
/// A process that stood still may write one word after it was deposed; it is of no harm to anybody but the reader, and the next holder
/// finds it at its next look at everything.
pub struct Recorder {
    client: Client,
    board: Arc<Board>,
    tenure: Tenure,
    begun: Instant,
    said: Mutex<BTreeMap<ObjectKey, Said>>,
    /// The version that the API server serves each kind in, once known.
    versions: Mutex<BTreeMap<Kind, &'static str>>,
    /// Of which version and channel Gateway API's definitions are, and when that was looked for.
    bundle: Mutex<(Option<Definitions>, Option<Instant>)>,
}

/// The last word on an object, as far as it is there.
struct Said {
    word: Option<Spoken>,
    at: Instant,
    failures: u32,
}

/// An object's status as it was read.
#[derive(Clone, Debug)]
struct Present {
    version: String,
    status: Value,
}

impl From<DynamicObject> for Present {
    fn from(object: DynamicObject) -> Self {
        Self { version: object.resource_version().unwrap_or_default(), status: object.data.get("status").cloned().unwrap_or_default() }
    }
}

impl Recorder {
    /// One for this term.
    pub fn new(client: Client, board: Arc<Board>, tenure: Tenure) -> Self {
        let (begun, said, versions, bundle) = (Instant::now(), Mutex::default(), Mutex::default(), Mutex::default());
        Self { client, board, tenure, begun, said, versions, bundle }
    }

    /// Runs until `stop` or the loss of the lease. Whatever the API server does, this goes on; what it refuses is logged.
    pub async fn run(self, stop: CancellationToken) {
        let lost = self.tenure.lost().clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = lost.cancelled() => {}
            () = self.record() => {}
        }
    }

    async fn record(&self) {
        let mut turns = self.board.turns();
        let mut recheck_at = Instant::now();
        let mut there = BTreeMap::new();
        loop {
            if Instant::now() >= recheck_at {
                there = self.list().await;
                self.said.lock().clear();
                self.bundle.lock().1 = None;
                recheck_at = Instant::now() + RECHECK;
            }
            turns.mark_unchanged();
            let next = self.pass(&mut there).await;
            let pause = next.unwrap_or(RECHECK).min(recheck_at.saturating_duration_since(Instant::now()));
            if let Ok(Ok(())) = timeout(pause, turns.changed()).await {
                sleep(GATHER).await;
                self.settled().await;
            }
        }
    }

    /// Waits until the newest epoch is acknowledged or refused, for a moment.
    async fn settled(&self) {
        let mut turns = self.board.turns();
        let wait = async {
            while !self.board.read(|book| book.newest().is_none_or(Entry::settled)) {
                if turns.changed().await.is_err() {
                    return;
                }
            }
        };
        // Whoever takes longer is told of when it is so.
        let _ = timeout(SETTLE_MAX, wait).await;
    }

    /// Writes what is due, as much as one pass takes; returns after how long the next thing is. `there` is what was found on a list, as far as
    /// nothing was written over it.
    async fn pass(&self, there: &mut BTreeMap<ObjectKey, Present>) -> Option<Duration> {
        let edition = self.board.edition()?;
        self.look_for_bundle().await;
        let words = spoken(&self.board, &edition, self.bundle.lock().0.as_ref());
        self.said.lock().retain(|key, _| words.contains_key(key));
        let (mut due, mut next) = (Vec::new(), self.patience());
        for (key, mut word) in words {
            let last = self.last(&key, &mut word);
            match self.wait(&key, &word) {
                Some(wait) if wait.is_zero() => due.push((last, key, word)),
                Some(wait) => next = Some(next.map_or(wait, |next| next.min(wait))),
                None => {}
            }
        }
        // Who was told longest ago goes first: nobody is passed over again and again.
        due.sort_by_key(|(last, ..)| *last);
        if due.len() > PASS_MAX {
            due.truncate(PASS_MAX);
            next = Some(Duration::ZERO);
        }
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pace = tokio::sync::Mutex::new(pace);
        let writes = due.into_iter().map(|(_, key, word)| {
            let (pace, present) = (&pace, there.remove(&key));
            async move {
                let outcome = self.write(&key, word, present, pace).await;
                self.note(key, outcome)
            }
        });
        let waits: Vec<Option<Duration>> = futures::stream::iter(writes).buffer_unordered(CALLS_MAX).collect().await;
        if next != Some(Duration::ZERO) {
            there.clear();
        }
        waits.into_iter().chain([next]).flatten().min()
    }

    /// How long proxies still have for coming back to a new holder.
    fn patience(&self) -> Option<Duration> {
        let left = AWAY_GRACE.saturating_sub(self.begun.elapsed());
        (!left.is_zero()).then_some(left)
    }

    /// When something was said of an object. While we are patient, that stays in the word.
    fn last(&self, key: &ObjectKey, word: &mut Spoken) -> Option<Instant> {
        let said = self.said.lock();
        let last = said.get(key)?;
        if let Some(before) = last.word.as_ref().filter(|before| before.uid == word.uid && self.is_patient(word)) {
            wait_patiently(&mut word.status, &json!(before.status));
        }
        Some(last.at)
    }

    /// Whether what is there counts for what proxies have not said to us.
    fn is_patient(&self, word: &Spoken) -> bool {
        word.resumed || self.patience().is_some()
    }

    /// How long the word on an object has to wait; `None`: it has been said.
    fn wait(&self, key: &ObjectKey, word: &Spoken) -> Option<Duration> {
        let said = self.said.lock();
        let Some(last) = said.get(key) else { return Some(Duration::ZERO) };
        let since = last.at.elapsed();
        match &last.word {
            None => Some(retry(last.failures).saturating_sub(since)),
            Some(before) if before == word => None,
            Some(before) if silent(before) == silent(word) => Some(SENTENCE_PAUSE.saturating_sub(since)),
            Some(_) => Some(Duration::ZERO),
        }
    }

    /// Remembers what came of a write; returns after how long it is tried again.
    fn note(&self, key: ObjectKey, outcome: Result<Spoken, CallError>) -> Option<Duration> {
        let mut said = self.said.lock();
        let failures = said.get(&key).map_or(0, |last| last.failures);
        let at = Instant::now();
        match outcome {
            Ok(word) => {
                said.insert(key, Said { word: Some(word), at, failures: 0 });
                None
            }
            Err(error) => {
                // What is gone, or of the mesh's own making, is nothing to complain of; it may be there again before anybody tells.
                if failures == 0 && error.fault != Fault::Missing {
                    tracing::warn!(object = %key, "its status could not be written: {error}");
                }
                let failures = failures.saturating_add(1);
                said.insert(key, Said { word: None, at, failures });
                Some(retry(failures))
            }
        }
    }

    /// Brings one object's status up to the word, and returns what it says now. Over conflicts it reads again what is there.
    async fn write(
        &self,
        key: &ObjectKey,
        mut word: Spoken,
        mut present: Option<Present>,
        pace: &tokio::sync::Mutex<tokio::time::Interval>,
    ) -> Result<Spoken, CallError> {
        let mut last = CallError { fault: Fault::Later, text: "somebody else writes it all the time".to_owned() };
        for _ in 0..ATTEMPTS_MAX {
            let before = match present.take() {
                Some(present) => present,
                None => {
                    pace.lock().await.tick().await;
                    self.read(key).await?
                }
            };
            let now = moment(self.board.clock.ms() / 1000 * 1000);
            if self.is_patient(&word) {
                wait_patiently(&mut word.status, &before.status);
            }
            let Some(status) = merged(key.kind, &word, &before.status, &now) else { return Ok(word) };
            pace.lock().await.tick().await;
            if !self.tenure.holds() {
                return Err(CallError { fault: Fault::Later, text: "the lease is lost".to_owned() });
            }
            let patch = Patch::Merge(json!({"metadata": {"resourceVersion": before.version}, "status": status}));
            let api = self.api(key.kind, &key.namespace, self.version(key.kind));
            match within(CALL_MAX, api.patch_status(&key.name, &PatchParams::default(), &patch)).await {
                Ok(_) => return Ok(word),
                Err(error) if error.fault == Fault::Conflict => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Asks Gateway API's definitions for their version and channel, unless that is known since the last look at everything.
    async fn look_for_bundle(&self) {
        let due = match &*self.bundle.lock() {
            (_, None) => true,
            (Some(_), Some(_)) => false,
            (None, Some(at)) => at.elapsed() >= BUNDLE_PAUSE,
        };
        if !due {
            return;
        }
        let definitions = ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"));
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &definitions);
        let found = within(CALL_MAX, api.get_metadata(BUNDLE_DEFINITION)).await;
        let mut bundle = self.bundle.lock();
        bundle.1 = Some(Instant::now());
        match found {
            Ok(definition) => {
                let told = definition.annotations();
                let channel = told.get(BUNDLE_CHANNEL).cloned();
                bundle.0 = told.get(BUNDLE_VERSION).map(|version| Definitions { version: version.clone(), channel });
            }
            Err(error) if error.fault == Fault::Missing => bundle.0 = None,
            // What was known is more likely than nothing.
            Err(error) => tracing::debug!("the version of Gateway API's definitions cannot be read: {error}"),
        }
    }

    async fn read(&self, key: &ObjectKey) -> Result<Present, CallError> {
        let api = self.api(key.kind, &key.namespace, self.version(key.kind));
        Ok(within(CALL_MAX, api.get(&key.name)).await?.into())
    }

    /// The statuses of all objects of our kinds, as far as the API server has the kinds. What is left out is read one by one.
    async fn list(&self) -> BTreeMap<ObjectKey, Present> {
        let mut there = BTreeMap::new();
        for kind in Kind::ALL.into_iter().filter(|kind| matches!(kind.group(), GATEWAY_API | OWN)) {
            for version in kind.versions() {
                match self.list_kind(kind, version, &mut there).await {
                    Ok(()) => {
                        self.versions.lock().insert(kind, version);
                        break;
                    }
                    Err(error) if error.fault == Fault::Missing => {}
                    Err(error) => {
                        tracing::debug!(%kind, "statuses cannot be listed: {error}");
                        break;
                    }
                }
            }
        }
        there
    }

    async fn list_kind(&self, kind: Kind, version: &str, there: &mut BTreeMap<ObjectKey, Present>) -> Result<(), CallError> {
        let api = self.api(kind, "", version);
        let mut params = ListParams::default().limit(PAGE_MAX);
        loop {
            let page = within(CALL_MAX, api.list(&params)).await?;
            let more = page.metadata.continue_.filter(|more| !more.is_empty());
            for object in page.items {
                let key = ObjectKey { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
                there.insert(key, object.into());
            }
            let Some(more) = more else { return Ok(()) };
            params = ListParams::default().limit(PAGE_MAX).continue_token(&more);
        }
    }

    fn version(&self, kind: Kind) -> &'static str {
        let known = self.versions.lock().get(&kind).copied();
        known.or_else(|| kind.versions().first().copied()).unwrap_or("v1")
    }

    /// The kind's objects of a namespace; of none: all of them, or those outside namespaces.
    fn api(&self, kind: Kind, namespace: &str, version: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group(), version, kind.text()));
        match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }
}

fn retry(failures: u32) -> Duration {
    (RETRY_MIN * 2_u32.saturating_pow(failures.saturating_sub(1).min(6))).min(RETRY_MAX)
}

/// A word without its sentences.
fn silent(word: &Spoken) -> Spoken {
    let mut word = word.clone();
    let status = &mut word.status;
    let parents = status.parents.iter_mut().map(|parent| &mut parent.conditions);
    let ancestors = status.ancestors.iter_mut().map(|ancestor| &mut ancestor.conditions);
    let listeners = status.listeners.iter_mut().map(|listener| &mut listener.conditions);
    for condition in [&mut status.conditions].into_iter().chain(parents).chain(ancestors).chain(listeners).flatten() {
        condition.message.clear();
    }
    word
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
