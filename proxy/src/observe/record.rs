//! What one exchange saw: cheap for all, with more detail where it is logged or sampled.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::consumers::Consumer;
use engine::failure::{Blame, Reason};
use engine::model::{Cluster, Endpoint, InboundPort, Keep, MetricLabels, Rule, Settings, Snapshot};
use http::{HeaderMap, Version, header, request::Parts};

use super::calls::CALL_NONE;
use super::ending::{Ending, KeepCause};
use super::event::{EVENTS_LISTED_MAX, SpanEvent};
use super::labels::{CODE_NONE, Direction, GRPC_NONE, MethodLabel, MetricFamily, Wire};
use super::trace::Context;
use super::under_way::TraceLink;
use crate::tls::{Peer, TlsFacts};

/// Longest text of a request that is kept for log and span: all of them end within 64 KiB.
const TEXT_BYTES_MAX: usize = (u16::MAX as usize / WORDS) & !1;
/// Retries that are listed; further ones are only counted.
pub(super) const RETRIES_LISTED_MAX: usize = 16;
/// Notes whose texts took more than this are not used again.
const TEXT_KEPT_BYTES_MAX: usize = 1024;

/// Kept of every exchange. Only `Arc`s and numbers.
#[derive(Clone, Debug)]
pub(super) struct Outline {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) family: MetricFamily,
    pub(super) direction: Direction,
    pub(super) wire: Wire,
    pub(super) source: u32,
    pub(super) mtls: bool,
    pub(super) rule: Option<Arc<Rule>>,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) port: Option<Arc<InboundPort>>,
    pub(super) code: u16,
    pub(super) grpc: u8,
    pub(super) reason: Option<Reason>,
    pub(super) blame: Option<Blame>,
    pub(super) attempts: u32,
    /// Inbound: the row that it is counted in, if it is passed on.
    pub(super) call: u32,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// What its metrics tell.
    pub(super) labels: MetricLabels,
    /// Whether durations are counted for OTLP, too.
    pub(super) sketched: bool,
    /// Where metrics tell it.
    pub(super) method: MethodLabel,
    /// The same: who calls from outside.
    pub(super) consumer: Option<Arc<Consumer>>,
}

/// A text of an exchange, in the order in which they are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// How a client from outside is encrypted: JSON.
    ClientTls,
    Method,
    Host,
    Path,
    UserAgent,
    /// Where the client says it came from, if a line tells it.
    Referer,
    RequestId,
    /// What would have denied it, were it not on trial.
    WouldDeny,
    /// Which rules audit it.
    Audited,
    /// Who called from outside the mesh, how they proved it, and what of the credential may be told.
    Consumer,
    AuthMethod,
    Credential,
    /// Which policy denied it.
    Policy,
    /// Which limit refused it.
    Limit,
    /// What was done to it on purpose.
    Fault,
    /// Of the failure.
    Cause,
    /// Which parts of the answer are missing.
    Partial,
}

/// How many [`Word`]s there are.
pub(super) const WORDS: usize = Word::Partial as usize + 1;

/// The texts of one exchange, one behind the other in one buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Words {
    /// Where each ends.
    ends: [u16; WORDS],
    /// Which are there: an empty one is not none.
    there: u32,
}

impl Words {
    /// Adds a text, clipped; it and all later ones are replaced.
    pub(super) fn set(&mut self, buffer: &mut String, word: Word, text: &str) {
        buffer.truncate(self.start(word));
        buffer.push_str(clip(text));
        // By the bound of each it fits.
        self.ends[word as usize..].fill(u16::try_from(buffer.len()).unwrap_or(u16::MAX));
        self.there = self.there & ((1 << word as u32) - 1) | 1 << word as u32;
    }

    /// A text, in a buffer that holds this exchange's only.
    pub(super) fn get<'a>(&self, buffer: &'a str, word: Word) -> Option<&'a str> {
        if self.there & 1 << word as u32 == 0 {
            return None;
        }
        buffer.get(self.start(word)..usize::from(self.ends[word as usize]))
    }

    /// Length of all.
    pub(super) fn len(&self) -> usize {
        usize::from(self.ends[WORDS - 1])
    }

    fn start(&self, word: Word) -> usize {
        (word as usize).checked_sub(1).map_or(0, |before| usize::from(self.ends[before]))
    }
}

/// What is kept of a request's head besides its texts; copied before the road changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) https: bool,
    pub(super) version: Version,
}

/// Notes on an exchange that is logged or sampled, while it lives.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) logged: bool,
    /// Our span, or the caller's unsampled trace.
    pub(super) context: Option<Context>,
    /// What makes a span of it that was not sampled.
    pub(super) keep: Keep,
    /// Why one was made of it.
    pub(super) kept: Option<KeepCause>,
    /// How it came by its trace.
    pub(super) link: TraceLink,
    pub(super) head: Option<Head>,
    pub(super) downstream: SocketAddr,
    pub(super) local: SocketAddr,
    /// Who asked, where a proxy in front of an edge may have said that.
    pub(super) client: Option<IpAddr>,
    pub(super) caller: Option<Arc<Peer>>,
    pub(super) tls: Option<TlsFacts>,
    pub(super) retries: Vec<(SocketAddr, Reason)>,
    /// What happened, for its span.
    pub(super) events: Vec<SpanEvent>,
    /// How many more.
    pub(super) events_dropped: u32,
    pub(super) attempt_started: Option<Instant>,
    pub(super) upstream: Option<Duration>,
    pub(super) words: Words,
    pub(super) text: String,
}

impl Outline {
    pub(super) fn new(snapshot: Arc<Snapshot>, family: MetricFamily, direction: Direction, wire: Wire, source: u32, mtls: bool) -> Self {
        let settings = snapshot.settings.as_deref();
        let (labels, sketched) = settings.map_or_else(Default::default, |own| (own.metric_labels, own.metrics_otlp.is_some()));
        Self {
            snapshot,
            family,
            direction,
            wire,
            source,
            mtls,
            rule: None,
            cluster: None,
            endpoint: None,
            port: None,
            code: CODE_NONE,
            grpc: GRPC_NONE,
            reason: None,
            blame: None,
            attempts: 0,
            call: CALL_NONE,
            request_bytes: 0,
            response_bytes: 0,
            labels,
            sketched,
            method: MethodLabel::default(),
            consumer: None,
        }
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.snapshot.settings.as_deref()
    }

    /// How it ended.
    pub(super) fn ending(&self) -> Ending {
        Ending { server: self.direction == Direction::Inbound, code: self.code, grpc: self.grpc, reason: self.reason }
    }

    /// The service's namespace and name, shared with the configuration.
    pub(super) fn destination(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        destination(self.direction, self.port.as_deref(), self.cluster.as_deref())
    }
}

/// The service's namespace and name, shared with the configuration.
pub(super) fn destination<'a>(
    direction: Direction,
    port: Option<&'a InboundPort>,
    cluster: Option<&'a Cluster>,
) -> Option<(&'a Arc<str>, &'a Arc<str>)> {
    match direction {
        Direction::Inbound => port.map(|port| (&port.service_namespace, &port.service)),
        Direction::Outbound => cluster.map(|cluster| (&cluster.namespace, &cluster.service)),
    }
}

impl Detail {
    /// Notes without anything in them; addresses are set by whoever begins.
    pub(super) fn new(downstream: SocketAddr, local: SocketAddr) -> Self {
        Self {
            logged: false,
            context: None,
            keep: Keep::default(),
            kept: None,
            link: TraceLink::None,
            head: None,
            downstream,
            local,
            client: None,
            caller: None,
            tls: None,
            retries: Vec::new(),
            events: Vec::new(),
            events_dropped: 0,
            attempt_started: None,
            upstream: None,
            words: Words::default(),
            text: String::new(),
        }
    }

    /// The same notes for another exchange, with the room they have; `None`: they have grown too large to be kept.
    pub(super) fn emptied(mut self: Box<Self>) -> Option<Box<Self>> {
        if self.text.capacity() > TEXT_KEPT_BYTES_MAX {
            return None;
        }
        let (mut text, mut retries) = (std::mem::take(&mut self.text), std::mem::take(&mut self.retries));
        let mut events = std::mem::take(&mut self.events);
        text.clear();
        retries.clear();
        events.clear();
        *self = Self { text, retries, events, ..Self::new(self.downstream, self.local) };
        Some(self)
    }

    /// Whether it was sampled.
    pub(super) fn is_sampled(&self) -> bool {
        self.context.is_some_and(|context| context.sampled)
    }

    /// Whether a span leaves.
    pub(super) fn has_span(&self) -> bool {
        self.is_sampled() || self.kept.is_some()
    }

    /// Notes an event, where there may be a span.
    pub(super) fn happened(&mut self, event: impl FnOnce() -> SpanEvent) {
        if !self.is_sampled() && !self.keep.is_any() {
            return;
        }
        if self.events.len() < EVENTS_LISTED_MAX {
            self.events.push(event());
        } else {
            self.events_dropped += 1;
        }
    }

    /// Copies what log and span need of the request's head. `tls`: it came encrypted by the application's own doing. `referer`: lines tell it.
    pub(super) fn read_head(&mut self, parts: &Parts, tls: bool, referer: bool) {
        let host = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => text(&parts.headers, &header::HOST).unwrap_or(""),
        };
        self.head = Some(Head { https: is_https(parts, tls), version: parts.version });
        self.word(Word::Method, parts.method.as_str());
        self.word(Word::Host, host);
        self.word(Word::Path, parts.uri.path_and_query().map_or("/", |path| path.as_str()));
        if let Some(agent) = text(&parts.headers, &header::USER_AGENT) {
            self.word(Word::UserAgent, agent);
        }
        if let Some(from) = text(&parts.headers, &header::REFERER).filter(|_| referer) {
            self.word(Word::Referer, from);
        }
    }

    /// A text.
    pub(super) fn get(&self, word: Word) -> Option<&str> {
        self.words.get(&self.text, word)
    }

    /// Adds a text.
    pub(super) fn word(&mut self, word: Word, text: &str) {
        self.words.set(&mut self.text, word, text);
    }

    /// Adds to a text.
    pub(super) fn more(&mut self, word: Word, text: &str) {
        match self.words.get(&self.text, word) {
            Some(before) => {
                let whole = format!("{before}, {text}");
                self.word(word, &whole);
            }
            None => self.word(word, text),
        }
    }
}

fn is_https(parts: &Parts, tls: bool) -> bool {
    match parts.uri.scheme_str() {
        Some(scheme) => scheme == "https",
        None => tls,
    }
}

/// A header's text, where it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A bounded part of it.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: each text is found again, empty is not none, a later word replaces what it was, and all are bounded.
    #[test]
    fn words_lie_one_behind_the_other() {
        let (mut words, mut buffer) = (Words::default(), String::new());
        words.set(&mut buffer, Word::Method, "GET");
        words.set(&mut buffer, Word::Host, "");
        words.set(&mut buffer, Word::RequestId, "r1");
        words.set(&mut buffer, Word::Cause, "refused, at length");
        words.set(&mut buffer, Word::Cause, "refused");
        let get = |word| words.get(&buffer, word);
        assert_eq!((get(Word::Method), get(Word::Host), get(Word::Path)), (Some("GET"), Some(""), None));
        assert_eq!((get(Word::UserAgent), get(Word::RequestId), get(Word::Cause)), (None, Some("r1"), Some("refused")));
        assert_eq!((words.len(), buffer.as_str()), (12, "GETr1refused"));
        let long = "é".repeat(TEXT_BYTES_MAX);
        let mut all = Words::default();
        buffer.clear();
        for word in [Word::Method, Word::Host, Word::Path, Word::UserAgent, Word::RequestId, Word::Fault, Word::Cause] {
            all.set(&mut buffer, word, &format!("x{long}"));
            assert_eq!(all.get(&buffer, word).unwrap().len(), TEXT_BYTES_MAX - 1);
        }
    }
}
