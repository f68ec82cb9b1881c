//! What a proxy remembers of sessions beside what browsers keep: those that it opened lately, and those that are being refreshed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kept::{SESSION_FRESH_SECS, SessionTicket};
use super::session::LoginSession;
use crate::callout::{CalloutKind, CalloutLive, Callouts};
use crate::consumers::Digest;

/// Sessions that are opened without being unsealed again, of one login.
pub const SESSIONS_KNOWN_MAX: usize = 2_000;
/// Of sessions that a store keeps: what browsers have of them, and what the store said last, of one login.
pub const STORED_KNOWN_MAX: usize = 2_000;
/// Sessions of which a refresh is remembered, of one login; beyond it the oldest are refreshed again.
pub const REFRESHES_MAX: usize = 10_000;
/// After a refresh the next one waits so long, whatever it brought: a provider whose tokens live for no time is not asked again and again.
pub const REFRESH_PAUSE_SECS: u64 = 10;

/// What is remembered of those logins that share their sessions.
#[derive(Debug)]
pub struct LoginLive {
    /// How the provider answers.
    pub(super) callouts: Arc<CalloutLive>,
    known: Mutex<Halves<Digest, Arc<LoginSession>>>,
    refreshes: Mutex<Halves<String, Refreshed>>,
    tickets: Mutex<Halves<Digest, Arc<SessionTicket>>>,
    /// What a store said, and when.
    stored: Mutex<Halves<String, (Arc<LoginSession>, u64)>>,
}

/// What is known of one session's refreshes.
#[derive(Clone, Debug, Default)]
struct Refreshed {
    stage: RefreshStage,
    /// What the last one that succeeded made of it.
    newest: Option<Arc<LoginSession>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum RefreshStage {
    #[default]
    Idle,
    /// Since then.
    UnderWay(u64),
    /// There was no answer; not again before then.
    Paused(u64),
    /// The provider has refused what was due at that time: whoever has that is not logged in any more. Another replica may have been given
    /// newer tokens, which are not meant.
    Refused(Option<u64>),
}

/// Longest that a provider has us wait for its next word.
pub const REFRESH_PAUSE_SECS_MAX: u64 = 300;
/// How long it takes another replica, as a rule.
pub(super) const ELSEWHERE_SECS: u64 = 2;

/// What came of a refresh.
pub(super) enum RefreshOutcome {
    /// This is the session by now.
    Done(Arc<LoginSession>),
    /// The provider refuses what was due at that time.
    Refused(Option<u64>),
    /// There was no answer, or another replica is at it; not again before that time.
    Waits(u64),
}

/// What a due session comes to.
pub(super) enum SessionTurn {
    /// It goes on as it is.
    AsItIs,
    /// Whoever asks is to refresh this; the request goes on with it meanwhile.
    Refresh(Option<Arc<LoginSession>>),
    /// This is it by now.
    By(Arc<LoginSession>),
    /// It is over.
    Over,
}

/// When the younger half is full it becomes the older, which is forgotten.
#[derive(Debug)]
struct Halves<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Halves<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: std::hash::Hash + Eq, V: Clone> Halves<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).cloned()
    }

    fn put(&mut self, key: K, value: V, most: usize) {
        if self.young.len() >= most / 2 && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

impl LoginLive {
    pub(crate) fn new(name: &str, callouts: &Callouts) -> Arc<Self> {
        Arc::new(Self {
            callouts: callouts.adopt(CalloutKind::OidcLogin, name),
            known: Mutex::default(),
            refreshes: Mutex::default(),
            tickets: Mutex::default(),
            stored: Mutex::default(),
        })
    }

    pub(super) fn ticket(&self, by: &Digest) -> Option<Arc<SessionTicket>> {
        held(&self.tickets).get(by)
    }

    pub(super) fn know_ticket(&self, by: Digest, ticket: Arc<SessionTicket>) {
        held(&self.tickets).put(by, ticket, STORED_KNOWN_MAX);
    }

    /// What a store said of a session lately.
    pub(super) fn fresh(&self, id: &String, now_secs: u64) -> Option<Arc<LoginSession>> {
        let (session, said_secs) = held(&self.stored).get(id)?;
        let fresh = (said_secs..said_secs.saturating_add(SESSION_FRESH_SECS)).contains(&now_secs);
        fresh.then_some(session)
    }

    /// A store says that there is this session.
    pub(super) fn keep(&self, session: &Arc<LoginSession>, now_secs: u64) {
        held(&self.stored).put(session.kept.id.clone(), (Arc::clone(session), now_secs), STORED_KNOWN_MAX);
    }

    /// There is no such session any more.
    pub(super) fn forget(&self, id: &String) {
        held(&self.stored).remove(id);
        held(&self.refreshes).remove(id);
    }

    pub(super) fn known(&self, by: &Digest) -> Option<Arc<LoginSession>> {
        held(&self.known).get(by)
    }

    pub(super) fn know(&self, by: Digest, session: Arc<LoginSession>) {
        held(&self.known).put(by, session, SESSIONS_KNOWN_MAX);
    }

    /// What becomes of a session that is due. One asker of each is told to refresh it; one that never comes back is given up after `patience_secs`.
    pub(super) fn turn(&self, session: &LoginSession, now_secs: u64, patience_secs: u64) -> SessionTurn {
        let mut refreshes = held(&self.refreshes);
        let known = refreshes.get(&session.kept.id).unwrap_or_default();
        let newer = known.newest.clone().filter(|newest| newest.kept.due_secs > session.kept.due_secs);
        let waits = match known.stage {
            RefreshStage::Refused(due_secs) if session.kept.due_secs <= due_secs => return SessionTurn::Over,
            RefreshStage::Refused(_) => false,
            RefreshStage::UnderWay(since) => now_secs < since.saturating_add(patience_secs),
            RefreshStage::Paused(until) => now_secs < until,
            RefreshStage::Idle => false,
        };
        match newer {
            Some(newer) if waits || !newer.is_due(now_secs) => SessionTurn::By(newer),
            None if waits => SessionTurn::AsItIs,
            newer => {
                let under_way = Refreshed { stage: RefreshStage::UnderWay(now_secs), newest: known.newest };
                refreshes.put(session.kept.id.clone(), under_way, REFRESHES_MAX);
                SessionTurn::Refresh(newer)
            }
        }
    }

    /// What came of a refresh.
    pub(super) fn turned(&self, id: &str, came: RefreshOutcome) {
        let mut refreshes = held(&self.refreshes);
        let mut known = refreshes.get(&id.to_owned()).unwrap_or_default();
        match came {
            RefreshOutcome::Done(session) => known = Refreshed { stage: RefreshStage::Idle, newest: Some(session) },
            RefreshOutcome::Refused(due_secs) => known = Refreshed { stage: RefreshStage::Refused(due_secs), newest: None },
            RefreshOutcome::Waits(until) => known.stage = RefreshStage::Paused(until),
        }
        refreshes.put(id.to_owned(), known, REFRESHES_MAX);
    }

    /// The newest that is known of a session.
    pub(super) fn newest(&self, id: &str) -> Option<Arc<LoginSession>> {
        held(&self.refreshes).get(&id.to_owned())?.newest
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
