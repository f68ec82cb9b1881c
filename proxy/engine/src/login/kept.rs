//! Sessions that a store of the Redis protocol keeps: what a store is asked, under which names, and what its answers come to. The browser has
//! only a sealed ticket: a drawn name, when its session began, and by what the provider may end it. What is stored is sealed as well, so that
//! whoever reads the store reads no tokens, and whoever writes there makes up no session.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::seal::{SealKeys, SealPurpose};
use super::session::{LoginSession, SKEW_SECS, SessionLives};
use super::{Login, LoginMeans, Onwards, SESSION_MAX, SeenSession, SessionSeen};
use crate::authenticate::LogoutSaid;
use crate::consumers::digest;
use crate::limit::RemoteStore;

/// What a store said of a session counts so long: what has ended elsewhere ends here by then.
pub const SESSION_FRESH_SECS: u64 = 5;
/// One replica refreshes a session; one that never comes back is given up.
const TURN_SECS: u64 = 30;

/// What names of stored things begin with, behind the prefix of the store.
const STEM: &str = "login:";

/// One thing that a store does with one key, behind the prefix of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreCommand {
    /// Says what is there.
    Get(String),
    /// It lives so many seconds from now on.
    Live(String, u64),
    /// Keeps this for so many seconds.
    Put {
        /// Under that name.
        key: String,
        /// This.
        value: String,
        /// Seconds.
        life_secs: u64,
        /// Whatever is there.
        only: PutOnly,
    },
    /// Keeps a number for so many seconds, unless a larger one is there.
    Raise(String, u64, u64),
    /// Lets go.
    Remove(String),
}

/// When something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOnly {
    /// In any case.
    Always,
    /// Where there is nothing.
    New,
    /// Where there is something.
    Known,
}

impl StoreCommand {
    /// The one key that it is about, without the prefix of the place.
    pub fn key(&self) -> &str {
        match self {
            Self::Get(key) | Self::Live(key, _) | Self::Put { key, .. } | Self::Raise(key, ..) | Self::Remove(key) => key,
        }
    }
}

/// What a store says to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreTold {
    /// There is nothing, or it was not done for what is there.
    Nothing,
    /// It is done.
    Done,
    /// What is there.
    Text(Bytes),
}

/// What a store is asked at once, in this order.
#[derive(Clone, Debug)]
pub struct StoreAsk {
    /// Which.
    pub store: Arc<RemoteStore>,
    /// Of one session all are of one server of a cluster.
    pub commands: Vec<StoreCommand>,
}

/// What a request waits for.
#[derive(Clone, Debug)]
pub struct SessionAsk {
    /// The question.
    pub ask: StoreAsk,
    login: Arc<Login>,
    step: SessionStep,
}

#[derive(Clone, Debug)]
enum SessionStep {
    Look(Arc<SessionTicket>),
    Keep(Onwards),
    End(Arc<SessionTicket>),
    Bar,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum SessionTold {
    /// The session, if there is one.
    Looked(Option<Arc<LoginSession>>),
    /// It is kept; the browser goes there.
    Kept(Onwards),
    /// It is no more; that was it.
    Ended(Option<Arc<LoginSession>>),
    /// The provider's word is noted.
    Barred,
    /// It is no word of the provider's; why.
    NotMeant(&'static str),
    /// The store does not answer.
    Away,
}

/// What a browser has of a session that a store keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionTicket {
    /// What the session is known by.
    #[serde(rename = "i")]
    pub(super) id: String,
    /// Unix time.
    #[serde(rename = "s")]
    pub(super) began_secs: u64,
    /// Under which names the provider may have ended it.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    ends: Vec<String>,
}

impl SessionTicket {
    /// Whether a session of that age goes on.
    pub(super) fn lives(&self, now_secs: u64, lives: &SessionLives) -> bool {
        now_secs < self.began_secs.saturating_add(lives.max.as_secs()) && self.began_secs <= now_secs.saturating_add(SKEW_SECS)
    }

    fn life_secs(&self, now_secs: u64, lives: &SessionLives) -> u64 {
        let rest = self.began_secs.saturating_add(lives.max.as_secs()).saturating_sub(now_secs);
        lives.idle.as_secs().min(rest).max(1)
    }
}

/// Names nothing that somebody could guess or read: of what a browser has only a digest is in the store. In braces: all of a session is at one server.
fn key(id: &str) -> String {
    format!("{STEM}{{{}}}", hashed(&[b"session", id.as_bytes()]))
}

fn turn_key(id: &str) -> String {
    format!("{}:turn", key(id))
}

fn hashed(parts: &[&[u8]]) -> String {
    URL_SAFE_NO_PAD.encode(&digest(&parts.join(&0))[..16])
}

impl SessionAsk {
    /// What the answers come to, one for each command; `None`: the store does not answer.
    pub fn told(self, answers: Option<&[StoreTold]>, means: LoginMeans<'_>) -> SessionTold {
        let Some(answers) = answers else { return SessionTold::Away };
        let Self { login, step, ask: _ } = self;
        match step {
            SessionStep::Look(ticket) => SessionTold::Looked(login.looked(&ticket, answers, means)),
            SessionStep::Keep(onwards) => SessionTold::Kept(onwards),
            SessionStep::End(ticket) => {
                login.live.forget(&ticket.id);
                SessionTold::Ended(login.opened(&ticket, answers, means))
            }
            SessionStep::Bar => SessionTold::Barred,
        }
    }
}

impl Login {
    /// What a browser has of a session that goes on, as far as its age says.
    pub(super) fn ticket(&self, headers: &HeaderMap, means: LoginMeans<'_>) -> Option<Arc<SessionTicket>> {
        let sealed = self.cookies.session(headers)?;
        let secret = means.book.secret(&self.keys)?;
        // With the keys, so that what none of them opens any more is not known either.
        let known_by = digest(&[&secret[..], &[0], sealed.as_bytes()].concat());
        let ticket = match self.live.ticket(&known_by) {
            Some(ticket) => ticket,
            None => {
                let plain = self.sealing(means)?.open(SealPurpose::Ticket, &sealed)?;
                let ticket = Arc::new(serde_json::from_slice::<SessionTicket>(&plain).ok()?);
                self.live.know_ticket(known_by, Arc::clone(&ticket));
                ticket
            }
        };
        ticket.lives(means.now_secs, &self.lives).then_some(ticket)
    }

    /// The session that a request shows which a store keeps.
    pub(super) fn seen_stored(
        self: &Arc<Self>,
        store: &Arc<RemoteStore>,
        headers: &HeaderMap,
        means: LoginMeans<'_>,
        told: Option<SessionTold>,
    ) -> SessionSeen {
        let Some(ticket) = self.ticket(headers, means) else { return SessionSeen::Nobody };
        let session = match told {
            Some(SessionTold::Looked(session)) => session,
            Some(_) => return SessionSeen::Away,
            None => match self.live.fresh(&ticket.id, means.now_secs) {
                Some(session) => Some(session),
                None => return SessionSeen::Asks(Box::new(self.look(store, ticket, means.now_secs))),
            },
        };
        let turned = session.and_then(|session| self.in_turn(session, means));
        let Some((session, _, refresh)) = turned else { return SessionSeen::Nobody };
        SessionSeen::Somebody(SeenSession { session, cookies: self.is_kept(headers).into_iter().collect(), refresh })
    }

    fn asking(self: &Arc<Self>, store: &Arc<RemoteStore>, commands: Vec<StoreCommand>, step: SessionStep) -> SessionAsk {
        SessionAsk { ask: StoreAsk { store: Arc::clone(store), commands }, login: Arc::clone(self), step }
    }

    /// Asks for a session, which lives on by that.
    pub(super) fn look(self: &Arc<Self>, store: &Arc<RemoteStore>, ticket: Arc<SessionTicket>, now_secs: u64) -> SessionAsk {
        let key = key(&ticket.id);
        let mut commands = vec![StoreCommand::Get(key.clone()), StoreCommand::Live(key, ticket.life_secs(now_secs, &self.lives))];
        commands.extend(ticket.ends.iter().cloned().map(StoreCommand::Get));
        self.asking(store, commands, SessionStep::Look(ticket))
    }

    /// Keeps a session, instead of the one that was before; then its browser goes on.
    pub(super) fn keep(
        self: &Arc<Self>,
        store: &Arc<RemoteStore>,
        (session, sealed): (&LoginSession, String),
        former: Option<&SessionTicket>,
        (onwards, now_secs): (Onwards, u64),
    ) -> SessionAsk {
        let life_secs = session.life_secs(now_secs, &self.lives);
        let put = StoreCommand::Put { key: key(&session.kept.id), value: sealed, life_secs, only: PutOnly::Always };
        let former = former.map(|former| StoreCommand::Remove(key(&former.id)));
        self.asking(store, std::iter::once(put).chain(former).collect(), SessionStep::Keep(onwards))
    }

    /// Ends a session.
    pub(super) fn end(self: &Arc<Self>, store: &Arc<RemoteStore>, ticket: Arc<SessionTicket>) -> SessionAsk {
        let key = key(&ticket.id);
        self.asking(store, vec![StoreCommand::Get(key.clone()), StoreCommand::Remove(key)], SessionStep::End(ticket))
    }

    /// What a browser gets of a session that is kept.
    pub(super) fn ticket_of(&self, session: &LoginSession) -> SessionTicket {
        let said = |claim: &str| session.claims.content.get(claim).and_then(serde_json::Value::as_str);
        let ends = [("sid", said("sid")), ("sub", said("sub"))];
        let ends = ends.into_iter().filter_map(|(what, value)| Some(self.ended_by(what, value?)));
        let ends = if self.back_channel_path.is_some() { ends.collect() } else { Vec::new() };
        SessionTicket { id: session.kept.id.clone(), began_secs: session.kept.began_secs, ends }
    }

    /// Where it is noted that a provider has ended somebody's sessions with one client.
    fn ended_by(&self, what: &str, value: &str) -> String {
        let parts = [self.issuer.as_bytes(), self.client_id.as_bytes(), what.as_bytes(), value.as_bytes()];
        format!("{STEM}{what}:{}", hashed(&parts))
    }

    /// Notes what the provider ends: one of its sessions, or all of somebody who logged in up to then. Twice is as once, and an older word takes
    /// nothing back.
    pub(super) fn bar(self: &Arc<Self>, store: &Arc<RemoteStore>, said: &LogoutSaid) -> SessionAsk {
        let name = match (&said.session, &said.subject) {
            (Some(session), _) => self.ended_by("sid", session),
            (None, Some(subject)) => self.ended_by("sub", subject),
            (None, None) => return self.asking(store, Vec::new(), SessionStep::Bar),
        };
        // As long as the longest session that it may be about.
        self.asking(store, vec![StoreCommand::Raise(name, said.issued_secs, SESSION_MAX.as_secs() + SKEW_SECS)], SessionStep::Bar)
    }

    fn opened(&self, ticket: &SessionTicket, answers: &[StoreTold], means: LoginMeans<'_>) -> Option<Arc<LoginSession>> {
        let Some(StoreTold::Text(sealed)) = answers.first() else { return None };
        let session = LoginSession::stored(&self.sealing(means)?, std::str::from_utf8(sealed).ok()?, &self.issuer)?;
        // Nobody puts one's session in another's place.
        (session.kept.id == ticket.id && session.kept.began_secs == ticket.began_secs).then(|| Arc::new(session))
    }

    /// What a store says of a session, which counts for a while.
    fn looked(&self, ticket: &SessionTicket, answers: &[StoreTold], means: LoginMeans<'_>) -> Option<Arc<LoginSession>> {
        let session = self.opened(ticket, answers, means)?;
        let ended = ticket.ends.iter().zip(answers.iter().skip(2)).any(|(name, answer)| {
            let StoreTold::Text(text) = answer else { return false };
            // A session of the provider's has ended for good; a user may have logged in since.
            let until = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
            !name.starts_with(SUBJECT) || until.is_none_or(|until| session.kept.issued_secs <= until)
        });
        if ended {
            self.live.forget(&ticket.id);
            return None;
        }
        self.live.keep(&session, means.now_secs);
        Some(session)
    }
}

/// What the names begin with under which somebody's end is noted.
const SUBJECT: &str = "login:sub:";

/// How a session that several replicas have is refreshed by one of them.
pub(super) struct SharedTurn {
    pub(super) store: Arc<RemoteStore>,
    pub(super) keys: SealKeys,
}

/// What comes of asking for the turn.
pub(super) enum TurnTold {
    /// It is ours.
    Ours,
    /// Somebody else has it.
    Theirs,
    /// Somebody else was quicker: that is the session by now.
    Done(Arc<LoginSession>),
    /// There is no session any more.
    Over,
    /// The store does not answer.
    Away,
}

impl SharedTurn {
    fn asking(&self, commands: Vec<StoreCommand>) -> StoreAsk {
        StoreAsk { store: Arc::clone(&self.store), commands }
    }

    /// Asks for it, and for what the session is by then.
    pub(super) fn take(&self, session: &LoginSession) -> StoreAsk {
        let id = &session.kept.id;
        let turn = StoreCommand::Put { key: turn_key(id), value: "1".to_owned(), life_secs: TURN_SECS, only: PutOnly::New };
        self.asking(vec![turn, StoreCommand::Get(key(id))])
    }

    /// Reads what a store says to that.
    pub(super) fn taken(&self, session: &LoginSession, answers: Option<&[StoreTold]>) -> TurnTold {
        match answers {
            Some([StoreTold::Nothing, _]) => TurnTold::Theirs,
            Some([_, StoreTold::Text(sealed)]) => {
                let sealed = std::str::from_utf8(sealed).ok();
                let known = sealed.and_then(|sealed| LoginSession::stored(&self.keys, sealed, &session.claims.issuer));
                match known.filter(|known| known.kept.id == session.kept.id) {
                    Some(known) if known.kept.due_secs > session.kept.due_secs => TurnTold::Done(Arc::new(known)),
                    Some(_) => TurnTold::Ours,
                    None => TurnTold::Over,
                }
            }
            Some([_, _]) => TurnTold::Over,
            _ => TurnTold::Away,
        }
    }

    /// Gives it back, with nothing changed.
    pub(super) fn give_back(&self, id: &str) -> StoreAsk {
        self.asking(vec![StoreCommand::Remove(turn_key(id))])
    }

    /// Gives it back with the session that came of it; one that was ended meanwhile stays so.
    pub(super) fn put(&self, session: &LoginSession, (now_secs, lives): (u64, &SessionLives)) -> Option<StoreAsk> {
        let id = &session.kept.id;
        let (value, life_secs) = (session.seal_stored(&self.keys, now_secs)?, session.life_secs(now_secs, lives));
        let put = StoreCommand::Put { key: key(id), value, life_secs, only: PutOnly::Known };
        Some(self.asking(vec![put, StoreCommand::Remove(turn_key(id))]))
    }

    /// The provider ends it.
    pub(super) fn end(&self, id: &str) -> StoreAsk {
        self.asking(vec![StoreCommand::Remove(key(id)), StoreCommand::Remove(turn_key(id))])
    }
}
