//! The one task that changes the world: events in, epochs and editions out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use proto::mesh::NodeReport;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::dates;
use super::reading::{parse_one, read_all};
use crate::canary::KeptCanary;
use crate::node::remembered;
use crate::publish::board::{Board, Errand, Receipt};
use crate::publish::edition::Edition;
use crate::publish::epoch::{Mark, Touched, UNCHANGED};
use crate::publish::plaintext::cut;
use crate::publish::trust::Roots;
use crate::serve::authority::SharedAuthority;
use crate::serve::metrics::Metrics;
use crate::store::{Page, Row, Store, StoreError};
use crate::translate::statuses;
use crate::world::canary::CanaryBook;
use crate::world::problem::{Problem, Severity};
use crate::world::sorted::Sorted;
use crate::world::{Allocations, Applied, Change, ObjectKey, Origin, Outcome, World, reported};

/// Events handled as one step at most.
const BATCH_MAX: usize = 64;
/// Before what a cluster did not take is tried again.
const UNKEPT_PAUSE: Duration = Duration::from_millis(500);

/// An applied object at rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AppliedRow {
    file: String,
    object: Value,
    over: Option<String>,
}

/// See the module.
pub(super) struct Writer {
    board: Arc<Board>,
    store: Arc<Store>,
    authority: SharedAuthority,
    metrics: Arc<Metrics>,
    world: World,
    /// Whom the mesh believes: part of an epoch, as the objects are.
    roots: Arc<Roots>,
    mark: Mark,
    serial: u64,
    /// Whole text of every applied object: what the world keeps has no secret values.
    applied: BTreeMap<ObjectKey, (String, Value)>,
    /// What must be on disk before it is seen.
    page: Page,
    /// Ages and addresses as they were written last.
    saved: Option<(Sorted<ObjectKey, i64>, Allocations)>,
    /// The highest number that may be told.
    reserved: u64,
    /// Numbers beyond the mark may have been told.
    gap: bool,
    /// What may be told before it is kept, and the page of it that is on its way.
    unkept: Page,
    keeping: JoinSet<(bool, Page)>,
    /// What runs, on its way to the disk; nobody waits for it.
    saving: JoinSet<()>,
    /// What runs has changed since.
    unsaved: bool,
}

impl Writer {
    /// Takes up where the last process left: ages and applied objects come back, numbers go on.
    ///
    /// # Errors
    /// The book cannot be read.
    pub(super) fn new(
        board: Arc<Board>,
        store: Arc<Store>,
        authority: SharedAuthority,
        metrics: Arc<Metrics>,
        mut world: World,
    ) -> Result<Self, StoreError> {
        let mut mark: Mark = store.load(Row::Epoch)?.unwrap_or_default();
        let gap = store.floor() > mark.number;
        if gap {
            // The book missed some epochs: what their objects were is unknown, their numbers are used. Of numbers that are noted ahead few
            // have been told, if any: what the book says is what was told last, or nearly so.
            let content = if store.ahead() > 0 { mark.content } else { String::new() };
            mark = Mark { number: store.floor(), content };
        }
        let mut changes = Vec::new();
        for (key, created_ms) in store.load::<Vec<(ObjectKey, i64)>>(Row::Ages)?.unwrap_or_default() {
            changes.push(Change::Age { key, created_ms });
        }
        let mut applied = BTreeMap::new();
        for row in store.load::<Vec<AppliedRow>>(Row::Applied)?.unwrap_or_default() {
            match parse_one(&row.file, &row.object) {
                Some(candidate) => {
                    applied.insert(candidate.key.clone(), (row.file, row.object));
                    changes.push(Change::Restore { candidate, over: row.over });
                }
                None => tracing::warn!(file = row.file, "an applied object from before does not read any more; it is dropped"),
            }
        }
        if let Some(report) = store.load::<String>(Row::Runtime)?.and_then(|text| decode(&text)) {
            changes.push(reported(&report));
        }
        changes.push(Change::Canaries(Arc::new(KeptCanary::book(&KeptCanary::load(&store)))));
        changes.extend(store.load(Row::Tickets)?.map(Change::Tickets));
        changes.extend(store.load(Row::LoginSeeds)?.map(Change::LoginSeeds));
        changes.push(Change::Clock { now_ms: board.clock.age_ms() });
        world.apply(changes);
        let roots = authority.roots();
        let (page, saving) = (Page::default(), JoinSet::new());
        let (reserved, unkept, keeping) = (mark.number, Page::default(), JoinSet::new());
        let (serial, unsaved) = (0, false);
        Ok(Self {
            board,
            store,
            authority,
            metrics,
            world,
            roots,
            mark,
            serial,
            applied,
            page,
            saved: None,
            reserved,
            gap,
            unkept,
            keeping,
            saving,
            unsaved,
        })
    }

    /// Handles events until `stop`. Never ends on bad input. Whatever the disk does, streams are served and states of what runs travel.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Errand>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        self.tick().await;
        let mut clock = interval_at(Instant::now() + dates::PERIOD, dates::PERIOD);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.world.synced() {
            // Whoever stood by has read everything before its turn came.
            self.begin().await;
        }
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = self.saving.join_next() => {
                    self.save_runtime();
                    continue;
                }
                Some(kept) = self.keeping.join_next() => {
                    self.kept(kept.ok());
                    self.keep();
                    continue;
                }
                _ = clock.tick() => {
                    self.tick().await;
                    continue;
                }
                count = events.recv_many(&mut batch, BATCH_MAX) => if count == 0 { break },
            }
            // States of what runs are common and cheap: those in a row are one edition.
            let mut runtime = Vec::new();
            let mut events = batch.drain(..).peekable();
            while let Some(event) = events.next() {
                if let Errand::Runtime(change) = event {
                    runtime.push(change);
                    continue;
                }
                self.runtime(std::mem::take(&mut runtime));
                match event {
                    Errand::Runtime(_) => {}
                    Errand::Objects(mut changes) => {
                        // What came while the last edition was made is one step.
                        while let Some(Errand::Objects(more)) = events.next_if(|next| matches!(next, Errand::Objects(_))) {
                            changes.extend(more);
                        }
                        self.objects(changes).await;
                    }
                    // Whoever asked may have given up.
                    Errand::Roots { roots, reply } => drop(reply.send(self.believe(roots).await)),
                    Errand::Canaries { book, kept, changed, reply } => drop(reply.send(self.canaries((book, kept), &changed).await)),
                    Errand::Apply { documents, delete, reply } => drop(reply.send(self.apply(&documents, delete).await)),
                }
            }
            self.runtime(runtime);
        }
        while self.saving.join_next().await.is_some() {
            self.save_runtime();
        }
        self.close().await;
    }

    /// Gives back the numbers that nobody was told, so that the next holder goes on with the same epoch. Where that fails it skips them.
    async fn close(mut self) {
        if self.store.ahead() == 0 || self.serial == 0 {
            // Either there are none, or nothing was told by us.
            return;
        }
        self.keeping.shutdown().await;
        let (mut page, store) = (std::mem::take(&mut self.unkept), self.store.clone());
        page.put(Row::Epoch, &self.mark);
        page.raise_floor(self.mark.number);
        // What becomes of it is told by the store.
        let _ = spawn_blocking(move || store.write(page)).await;
    }

    /// Time goes on.
    async fn tick(&mut self) {
        let (changes, turned) = dates::due(&self.world, self.board.clock.age_ms());
        if let Some(seeds) = &turned.tickets {
            self.page.put(Row::Tickets, seeds);
        }
        if let Some(seeds) = &turned.logins {
            self.page.put(Row::LoginSeeds, seeds);
        }
        if turned.tickets.is_some() || turned.logins.is_some() {
            self.write().await;
        }
        if self.world.apply(changes).runtime && self.serial > 0 {
            self.publish(None);
        }
    }

    fn runtime(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() && self.world.apply(changes).runtime {
            self.publish(None);
            self.unsaved = true;
            self.save_runtime();
        }
    }

    /// Begins to write what runs, unless an earlier state is still being written: then it follows that one.
    fn save_runtime(&mut self) {
        if !self.unsaved || !self.saving.is_empty() {
            return;
        }
        self.unsaved = false;
        let (mut page, store) = (Page::default(), self.store.clone());
        page.put(Row::Runtime, &STANDARD.encode(remembered(&self.world).encode_to_vec()));
        self.saving.spawn_blocking(move || {
            // What runs is told whatever becomes of it.
            let _ = store.write(page);
        });
    }

    /// Writes the page, and returns when it may be told. Where a cluster does not take it, it is tried again for as long as this task lives:
    /// who has lost the lease has nothing to tell, and is ended.
    ///
    /// A cluster's number is noted ahead, and then nobody waits for the rest.
    async fn write(&mut self) {
        let mut page = std::mem::take(&mut self.page);
        if page.is_empty() {
            return;
        }
        if self.store.ahead() > 0 {
            if page.floor().is_none() {
                self.unkept = page.over(std::mem::take(&mut self.unkept));
                return self.keep();
            }
            // An older page must not come after this one.
            while let Some(kept) = self.keeping.join_next().await {
                self.kept(kept.ok());
            }
            page = page.over(std::mem::take(&mut self.unkept));
        }
        loop {
            let (page, store) = (page.clone(), self.store.clone());
            match spawn_blocking(move || (store.write(page), store.failure().is_some())).await {
                Ok((true, failed)) => {
                    // With the next change all of it is tried again.
                    self.saved.take_if(|_| failed);
                    return;
                }
                Ok((false, _)) => sleep(UNKEPT_PAUSE).await,
                Err(error) => {
                    tracing::error!(%error, "writing the control plane's book ended unexpectedly");
                    return;
                }
            }
        }
    }

    /// Begins to write what may be told before it is kept, unless an earlier page is on its way: then it follows that one.
    fn keep(&mut self) {
        if self.unkept.is_empty() || !self.keeping.is_empty() {
            return;
        }
        let (page, store) = (std::mem::take(&mut self.unkept), self.store.clone());
        self.keeping.spawn(async move {
            let writing = page.clone();
            let taken = spawn_blocking(move || store.write(writing)).await.unwrap_or(false);
            if !taken {
                sleep(UNKEPT_PAUSE).await;
            }
            (taken, page)
        });
    }

    /// A page has come to its end; one that was not taken is written again with what came after it.
    fn kept(&mut self, ended: Option<(bool, Page)>) {
        match ended {
            Some((true, page)) => {
                self.reserved = self.reserved.max(page.floor().unwrap_or(0));
                let failed = self.store.failure().is_some();
                self.saved.take_if(|_| failed);
            }
            Some((false, page)) => self.unkept = std::mem::take(&mut self.unkept).over(page),
            None => {
                self.saved = None;
                tracing::error!("writing the control plane's book ended unexpectedly");
            }
        }
    }

    /// What folder and cluster say.
    async fn objects(&mut self, changes: Vec<Change>) {
        // Before the first edition nobody has seen anything, and a copy of all objects for each page of a list would be dear.
        let before = self.world.synced().then(|| self.world.clone());
        let applied = self.world.apply(changes);
        for problem in &applied.problems {
            say(problem);
        }
        match before {
            None if self.world.synced() => self.begin().await,
            None => {}
            Some(before) => {
                for line in cut(&before, &self.world, &self.board.plaintext()) {
                    tracing::warn!("{line}");
                }
                self.step(&applied).await;
            }
        }
    }

    /// Every origin has been read once: the same objects as before the restart are the same epoch.
    async fn begin(&mut self) {
        let content = content(&self.world, &self.roots);
        let same = self.mark.content == content && self.mark.number > 0;
        if !same || std::mem::take(&mut self.gap) {
            self.turn(content);
        }
        let authored = self.world.live().filter(|(key, _)| !self.world.is_running(key));
        let all = authored.map(|(key, _)| touched(key, if same { UNCHANGED } else { "created" })).collect();
        self.save();
        self.write().await;
        tracing::info!(epoch = self.mark.number, objects = self.world.live().count(), same, "the objects have been read");
        self.publish(Some(all));
    }

    /// The next number, on disk before anybody sees it. Half of the way through those that are noted ahead the next ones are.
    fn turn(&mut self, content: String) {
        let (number, ahead) = (self.mark.number + 1, self.store.ahead());
        self.mark = Mark { number, content };
        self.page.put(Row::Epoch, &self.mark);
        if number > self.reserved {
            self.reserved = number + ahead;
            self.page.raise_floor(self.reserved);
        } else if number + ahead / 2 > self.reserved {
            self.unkept.raise_floor(self.reserved + ahead);
        }
    }

    /// After any change of objects: an epoch if the objects in force differ, and an edition in any case.
    async fn step(&mut self, applied: &Applied) {
        if !self.world.synced() {
            return;
        }
        let idle = applied.changed.is_empty();
        if idle && !applied.runtime && !applied.shown && applied.problems.is_empty() {
            // An API server sends an object again for much that is none of ours.
            return;
        }
        let content = if idle { self.mark.content.clone() } else { content(&self.world, &self.roots) };
        let fresh = content != self.mark.content;
        if fresh {
            self.turn(content);
        }
        if applied.book {
            self.save();
        }
        self.write().await;
        let opened = fresh.then(|| {
            let rows = applied.outcomes.iter().filter(|(key, _)| applied.changed.contains(key));
            let rows: Vec<_> = rows.filter_map(|(key, outcome)| Some(touched(key, word(*outcome)?))).collect();
            tracing::info!(epoch = self.mark.number, objects = rows.len(), "accepted a change");
            rows
        });
        self.publish(opened);
    }

    /// Takes over whom the mesh believes, as an epoch of its own where that is something else; returns the epoch that holds it.
    async fn believe(&mut self, roots: Arc<Roots>) -> u64 {
        let before = std::mem::replace(&mut self.roots, roots);
        if self.world.synced() && before.digest() != self.roots.digest() {
            self.turn(content(&self.world, &self.roots));
            self.write().await;
            let rows = believed(&before, &self.roots);
            tracing::info!(epoch = self.mark.number, roots = self.roots.digest(), "whom the mesh believes has changed");
            self.publish(Some(rows));
        }
        self.mark.number
    }

    /// How canaries stand from now on, kept before it is in force; another way for requests is an epoch. Returns the newest.
    async fn canaries(&mut self, (book, kept): (Arc<CanaryBook>, Value), changed: &BTreeSet<ObjectKey>) -> u64 {
        let applied = self.world.apply(vec![Change::Canaries(book)]);
        self.page.put(Row::Canaries, &kept);
        let content = content(&self.world, &self.roots);
        let fresh = self.world.synced() && content != self.mark.content;
        if fresh {
            self.turn(content);
        }
        self.write().await;
        if applied.runtime {
            let there = || changed.iter().filter(|key| self.world.get(key).is_some());
            let opened = fresh.then(|| there().map(|key| touched(key, "changed")).collect());
            self.publish(opened);
        }
        self.mark.number
    }

    /// All or nothing: a file with an error changes nothing.
    async fn apply(&mut self, files: &[(String, String)], delete: bool) -> Result<Receipt, String> {
        if self.world.settings().in_cluster {
            return Err("this mesh's objects are in Kubernetes; use `kubectl apply` and `kubectl delete`".to_owned());
        }
        if !self.world.synced() {
            return Err("the manifests have not been read yet; try again in a moment".to_owned());
        }
        let (candidates, problems) = read_all(files);
        let errors: Vec<String> = problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string).collect();
        if !errors.is_empty() && !delete {
            return Err(errors.join("\n"));
        }
        let mut changes = Vec::new();
        let now_ms = self.board.clock.age_ms();
        for (candidate, object) in candidates {
            let key = candidate.key.clone();
            if delete {
                self.applied.remove(&key);
                changes.push(Change::Remove { origin: Origin::Applied, key });
            } else {
                self.applied.insert(key, (candidate.file.clone(), object));
                changes.push(Change::Put { origin: Origin::Applied, candidate, now_ms });
            }
        }
        let before = self.world.clone();
        let applied = self.world.apply(changes);
        self.save_applied();
        self.step(&applied).await;
        let rows: Vec<_> = applied.outcomes.iter().filter_map(|(key, outcome)| Some(touched(key, word(*outcome)?))).collect();
        let mut warnings: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if !delete {
            let known: Vec<String> = applied.problems.iter().map(ToString::to_string).filter(|line| !warnings.contains(line)).collect();
            warnings.extend(known);
            warnings.extend(self.unmet(&applied));
        }
        // Also what is taken back may have kept a port open.
        warnings.extend(cut(&before, &self.world, &self.board.plaintext()));
        if delete {
            let still = |(key, _): &&(ObjectKey, Outcome)| self.world.get(key).is_some();
            let folder =
                |(key, _): &(ObjectKey, Outcome)| format!("{key} is in the folder too, and stays as it is there; remove it from its file");
            warnings.extend(applied.outcomes.iter().filter(still).map(folder));
        }
        Ok(Receipt { epoch: self.mark.number, objects: rows, warnings })
    }

    /// Conditions of the applied objects that do not hold.
    fn unmet(&self, applied: &Applied) -> Vec<String> {
        let statuses = statuses(&self.world);
        let mut lines = Vec::new();
        for (key, _) in &applied.outcomes {
            let Some(status) = statuses.get(key) else { continue };
            let parents = status.parents.iter().flat_map(|parent| &parent.conditions);
            let listeners = status.listeners.iter().flat_map(|listener| &listener.conditions);
            let ancestors = status.ancestors.iter().flat_map(|ancestor| &ancestor.conditions);
            for condition in status.conditions.iter().chain(parents).chain(listeners).chain(ancestors) {
                // Programmed and Live follow; what the author can mend comes first.
                if condition.status == "False" && matches!(condition.kind.as_str(), "Accepted" | "ResolvedRefs") {
                    lines.push(format!("{key}: {} is False, {}: {}", condition.kind, condition.reason, condition.message));
                }
            }
        }
        lines.dedup();
        lines
    }

    fn save(&mut self) {
        let (ages, allocations) = (self.world.ages(), self.world.allocations());
        if !self.saved.as_ref().is_some_and(|(saved, _)| saved.is_same(ages)) {
            let young = |(key, _): &(&ObjectKey, &i64)| self.world.get(key).is_none_or(|object| object.metadata.created_ms.is_none());
            // A cluster's objects say their age themselves, and one object has not room for all of them.
            let ages: Vec<_> = ages.iter().filter(|age| !self.world.settings().in_cluster || young(age)).collect();
            self.page.put(Row::Ages, &ages);
        }
        if !self.saved.as_ref().is_some_and(|(_, saved)| saved.is_same(allocations)) {
            self.page.put(Row::Allocations, allocations);
        }
        self.saved = Some((ages.clone(), allocations.clone()));
        // The folder's new content may have ended what was applied over the old.
        if self.applied.keys().any(|key| self.world.slots().get(key).is_none_or(|slot| slot.held(Origin::Applied).is_none())) {
            self.save_applied();
        }
    }

    fn save_applied(&mut self) {
        let slots = self.world.slots();
        let over = |key: &ObjectKey| slots.get(key).and_then(|slot| slot.held(Origin::Applied)).map(|held| held.over.clone());
        self.applied.retain(|key, _| over(key).is_some());
        let rows: Vec<_> = self
            .applied
            .iter()
            .map(|(key, (file, object))| AppliedRow { file: file.clone(), object: object.clone(), over: over(key).flatten() })
            .collect();
        self.page.put(Row::Applied, &rows);
    }

    /// An edition. `opened`: the objects of the epoch that begins with it.
    fn publish(&mut self, opened: Option<Vec<Touched>>) {
        if !self.world.synced() {
            return;
        }
        self.authority.follow(&self.world.index().mesh);
        self.serial += 1;
        self.metrics.epoch.set(i64::try_from(self.mark.number).unwrap_or(i64::MAX));
        let edition = Edition { world: self.world.clone(), epoch: self.mark.number, serial: self.serial, roots: self.roots.clone() };
        self.metrics.ready.store(true, Ordering::Relaxed);
        match opened {
            Some(objects) => self.board.open_epoch(edition, objects),
            None => self.board.publish(edition),
        }
    }
}

fn decode(text: &str) -> Option<NodeReport> {
    NodeReport::decode(STANDARD.decode(text).ok()?.as_slice()).ok()
}

/// A digest of every object in force, of whom the mesh believes, and of where canaries are: what an epoch number stands for.
fn content(world: &World, roots: &Roots) -> String {
    let canaries = world.index().canaried.digest();
    proto::epoch::version(format!("objects {:032x} roots {}{canaries}", world.content_hash(), roots.digest()).as_bytes())
}

fn touched(key: &ObjectKey, result: &'static str) -> Touched {
    Touched { kind: key.kind.text().to_owned(), namespace: key.namespace.clone(), name: key.name.clone(), result }
}

/// Roots as objects of an epoch: one that is believed anew is created, one that issues from now on is changed, one that is dropped deleted.
fn believed(before: &Roots, after: &Roots) -> Vec<Touched> {
    let (former, now) = (before.fingerprints(), after.fingerprints());
    let row = |name: &String, result| Touched { kind: "Root".to_owned(), namespace: String::new(), name: name.clone(), result };
    let created = now.iter().filter(|root| !former.contains(root)).map(|root| row(root, "created"));
    let issues = now.first().filter(|root| former.contains(root) && former.first() != Some(root)).map(|root| row(root, "changed"));
    let deleted = former.iter().filter(|root| !now.contains(root)).map(|root| row(root, "deleted"));
    created.chain(issues).chain(deleted).collect()
}

/// As `apply -o json` says it; a refused version is no result.
fn word(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Created => Some("created"),
        Outcome::Changed => Some("changed"),
        Outcome::Unchanged => Some(UNCHANGED),
        Outcome::Deleted => Some("deleted"),
        Outcome::Refused => None,
    }
}

/// One problem on stderr.
fn say(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!("{problem}"),
        Severity::Warning => tracing::warn!("{problem}"),
        Severity::Info => tracing::info!("{problem}"),
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
