//! What a rule's stages make of the request that is asked about: pure ones are run on a copy of its head, rate limits are asked without
//! taking anything, and of what depends on chance the chance is told.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderValue, Request, Uri, header, request};
use proto::identity::Identity;

use super::{Asked, Explanation, LimitView};
use crate::authenticate::{Authentication, Remembered};
use crate::consumers::{AuthMethod, Book, BookCell, Identified, Verified};
use crate::decide::{Caller, Version};
use crate::failure::{LocalReply, Reason};
use crate::filter::guard::{Counted, Denied, Found, Guard, Passed, Watch};
use crate::filter::{Called, Exchange, Filter, Outlook, Remote, Stage, Verdict};
use crate::model::{Forward, HashKey, SessionHome, SessionTerms, Settings, Snapshot};

/// The request, and who asks where.
pub(super) struct Way<'a> {
    pub(super) asked: &'a Asked<'a>,
    pub(super) caller: Option<&'a Identity>,
    /// Who has connected, where it is known: the client, or a proxy in front of an edge.
    pub(super) peer: Option<IpAddr>,
    /// The client's address, where it is known.
    pub(super) address: Option<IpAddr>,
    pub(super) called: Called,
    pub(super) settings: Option<&'a Settings>,
    /// Whose policies judge whom, on the server's side.
    pub(super) judged: Option<(&'a Snapshot, Caller<'a>)>,
    /// Whose ports judge addresses, at an edge.
    pub(super) door: Option<&'a Snapshot>,
    /// Who may call from outside, at an edge.
    pub(super) book: Option<&'a BookCell>,
    /// `NAMESPACE/NAME` of the consumer that is taken to call, whatever the request shows.
    pub(super) consumer: Option<&'a str>,
    /// The rules for tokens, at the side that has some.
    pub(super) tokens: Option<&'a Authentication>,
}

/// What of the request itself says where it goes.
#[derive(Default)]
pub(super) struct Drawn {
    /// Its client's session.
    pub(super) home: Option<SessionHome>,
    /// What it is balanced by.
    pub(super) hash: Option<u64>,
}

/// How a request ends on its way.
enum End {
    Reply(LocalReply),
    Close,
}

impl Way<'_> {
    /// What the request says of where it goes.
    pub(super) fn drawn(&self, forward: &Forward) -> Drawn {
        let policy = &forward.policy;
        let home = policy.session.as_ref().zip(self.settings).and_then(|(session, settings)| {
            let terms = SessionTerms { key: &settings.session_key, wall_secs: self.asked.wall_secs, secure: self.called.tls };
            // Without a key the mesh keeps no sessions.
            let kept = session.wanted(self.asked.head.headers, terms).filter(|_| !settings.session_key.is_empty())?;
            forward.home(&kept.token)
        });
        if policy.hash.is_empty() || (self.address.is_none() && policy.hash.contains(&HashKey::SourceAddress)) {
            return Drawn { home, hash: None };
        }
        let mut parts = head(self.asked);
        Drawn { home, hash: policy.sure_hash(&self.exchange(&mut parts)) }
    }

    fn exchange<'e>(&'e self, request: &'e mut request::Parts) -> Exchange<'e> {
        Exchange {
            request,
            caller: self.caller,
            address: self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            called: self.called,
            watch: None,
            now: self.asked.now,
            draw: 0,
        }
    }

    /// Tells every stage on the way to a place, to the first that ends it. True where one does.
    pub(super) fn told(&self, mut explanation: Explanation, forward: &Forward, place: Option<usize>) -> (Explanation, bool) {
        let mut parts = head(self.asked);
        let book = self.book.map(BookCell::load).unwrap_or_default();
        let (mut tokens, mut verified, mut found) = (Remembered::new(0), Verified::new([0; 32]), Found::default());
        let peer = self.peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut exchange = self.exchange(&mut parts);
        let mut counted = Counted::default();
        exchange.watch = Some(Watch {
            book: &book,
            tokens: &mut tokens,
            peer,
            port: 0,
            certificate: None,
            verified: &mut verified,
            wall_secs: self.asked.wall_secs.into(),
            found: &mut found,
            counted: &mut counted,
        });
        for stage in forward.gates(place) {
            if let (Stage::Guard(Guard::Identify(_)), Some(path)) = (stage, self.consumer) {
                let taken = taken(&book, path);
                let why = match &taken {
                    Some(found) => format!("taken to be {} of {path}", found.method.text()),
                    None => format!("there is no consumer {path} that counts at this Gateway: nobody calls"),
                };
                explanation = explanation.stage(stage.name(), "Continue", why);
                if let (Some(found), Some(watch)) = (taken, exchange.watch.as_mut()) {
                    watch.found.identify(found);
                }
                continue;
            }
            if let Stage::Guard(Guard::Limit(limits, _)) = stage {
                explanation.limits.extend(limits.outlook(&exchange).into_iter().map(LimitView::of));
            }
            let (end, why) = gate(stage, &mut exchange);
            match end {
                None => explanation = explanation.stage(stage.name(), "Continue", why),
                Some(End::Reply(reply)) => return (explanation.stage(stage.name(), "Reply", why).reply(&reply), true),
                Some(End::Close) => return (explanation.stage(stage.name(), "Close", why).closed(Reason::Fault), true),
            }
        }
        for filter in forward.changes(place) {
            let end = ended(filter.on_request(&mut exchange));
            match end {
                Some(End::Reply(reply)) => return (explanation.stage(filter.name(), "Reply", filter.story()).reply(&reply), true),
                _ => explanation = explanation.stage(filter.name(), "Continue", filter.story()),
            }
        }
        (explanation, false)
    }
}

/// A consumer as if it had shown the first of its credentials.
fn taken(book: &Book, path: &str) -> Option<Identified> {
    let consumer = book.named(path)?;
    let credential = consumer.credentials.first();
    let method = credential.map_or(AuthMethod::ApiKey, |credential| credential.method);
    let consumer = Some(Arc::clone(consumer));
    Some(Identified { method, consumer, credential: credential.map(|_| 0), user: None, file: None, claims: None, until_secs: None })
}

fn gate(stage: &Stage, exchange: &mut Exchange<'_>) -> (Option<End>, String) {
    let story = stage.story();
    match stage {
        Stage::Remote(Remote::Delay(delay)) => (None, hits(delay.outlook(exchange), story)),
        Stage::Local(Filter::Abort(abort)) => {
            let outlook = abort.outlook(exchange);
            let end = || abort.reply().cloned().map_or(End::Close, End::Reply);
            ((outlook == Outlook::Certain).then(end), hits(outlook, story))
        }
        Stage::Local(Filter::RateLimit(limit)) => match limit.would_answer(exchange) {
            Some(reply) => (Some(End::Reply(reply)), format!("{story}; nothing is left now")),
            None => (None, story),
        },
        // Nothing is taken: what it says is told beside.
        Stage::Guard(Guard::Limit(limits, _)) => {
            let end = if limits.outlook(exchange).iter().any(|limit| limit.verdict == "refused") {
                Some(Reason::RateLimited.into())
            } else {
                None
            };
            (end.map(End::Reply), story)
        }
        Stage::Guard(guard) => guarded(guard, exchange, story),
        Stage::Local(filter) => (ended(filter.on_request(exchange)), story),
    }
}

/// What a guard says; what it would have to find out first is not found out.
fn guarded(guard: &Guard, exchange: &mut Exchange<'_>, story: String) -> (Option<End>, String) {
    let passed = guard.on_request(exchange);
    let found = exchange.watch.as_ref().map(|watch| &*watch.found);
    let denied = found.and_then(Found::denied).map(Denied::text);
    let who = found.and_then(Found::identified).map(|found| {
        let whom =
            found.consumer.as_ref().map_or_else(|| found.subject().unwrap_or_default().into_owned(), |consumer| consumer.path.to_string());
        format!("{} of {whom}", found.method.text())
    });
    let why = [Some(story.as_str()), denied, who.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("; ");
    match passed {
        Passed::On => (None, why),
        Passed::Answered(reply) if reply.status.is_redirection() => (Some(End::Reply(*reply)), format!("{why}; would redirect")),
        Passed::Answered(reply) => (Some(End::Reply(*reply)), why),
        Passed::Asks(_) => (None, format!("{why}; would ask")),
    }
}

fn hits(outlook: Outlook, story: String) -> String {
    if outlook == Outlook::Never { format!("{story}; not for this request") } else { story }
}

fn ended(verdict: Verdict) -> Option<End> {
    match verdict {
        Verdict::Go => None,
        Verdict::Answer(reply) => Some(End::Reply(*reply)),
        Verdict::Reset => Some(End::Close),
    }
}

/// A copy of the head, as far as it can be written down.
fn head(asked: &Asked<'_>) -> request::Parts {
    let head = &asked.head;
    let mut parts = Request::new(()).into_parts().0;
    let target = match head.query {
        Some(query) => format!("{}?{query}", head.path),
        None => head.path.to_owned(),
    };
    parts.uri = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
    parts.method = head.method.clone();
    parts.headers = head.headers.clone();
    if asked.version == Version::Http2 {
        parts.version = http::Version::HTTP_2;
    }
    if !parts.headers.contains_key(header::HOST)
        && let Ok(host) = HeaderValue::from_str(head.host)
    {
        parts.headers.insert(header::HOST, host);
    }
    parts
}
