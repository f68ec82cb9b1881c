//! Taps: exchanges that somebody watches as they end. What a head says is judged as an exchange begins, so that notes are taken of those only
//! that may be shown; the rest when it ends. A line is what the access log would say, whether that is on or not.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::failure::Reason;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use proto::mesh::{Header, TapFilter};
use tokio::sync::mpsc;

use super::batch::{Batch, Sink};
use super::labels::{CODE_NONE, Direction, is_failure};
use super::line::Lines;
use super::record::{Detail, Outline};
use super::shape::Shape;

/// Taps of one proxy at once.
pub const TAPS_MAX: usize = 8;
/// Lines of one tap that wait to be sent; beyond, they are dropped and counted.
const LINES_AHEAD: usize = 256;
/// Most lines of one tap in a second, whatever is asked for.
const LINES_PER_SEC_MAX: u32 = 1000;
/// Headers that one tap may ask for.
const HEADERS_MAX: usize = 8;
/// Ranges of statuses that one tap may ask for.
const STATUSES_MAX: usize = 16;
/// Headers that no tap asks for: whoever may look must not guess at secrets.
const SECRET_HEADERS: [HeaderName; 3] = [http::header::AUTHORIZATION, http::header::PROXY_AUTHORIZATION, http::header::COOKIE];

/// What a tap shows: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapTerms {
    direction: Option<Direction>,
    method: Option<Method>,
    path_prefix: String,
    headers: Vec<(HeaderName, Option<HeaderValue>)>,
    statuses: Vec<RangeInclusive<u16>>,
    reason: Option<Reason>,
    failed: bool,
    slower: Option<Duration>,
    service: Option<Named>,
    route: Option<Named>,
}

/// A name, in one namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    namespace: Option<String>,
    name: String,
}

impl Named {
    fn read(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace.to_owned()), name));
        (!name.is_empty()).then(|| Self { namespace, name: name.to_owned() })
    }

    fn fits(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }
}

impl TapTerms {
    /// Reads a filter.
    ///
    /// # Errors
    /// What of it is not understood or not taken, as a sentence.
    pub fn read(filter: &TapFilter) -> Result<Self, String> {
        let direction = match filter.direction.as_str() {
            "" => None,
            "inbound" => Some(Direction::Inbound),
            "outbound" => Some(Direction::Outbound),
            other => return Err(format!("there is no direction `{other}`; there are inbound and outbound")),
        };
        if filter.statuses.len() > STATUSES_MAX || filter.headers.len() > HEADERS_MAX {
            return Err(format!("a tap takes at most {STATUSES_MAX} ranges of statuses and {HEADERS_MAX} headers"));
        }
        let status = |status: u32| u16::try_from(status).map_err(|_| format!("{status} is no status"));
        let statuses = filter.statuses.iter().map(|range| Ok(status(range.from)?..=status(range.to)?));
        let method = match filter.method.as_str() {
            "" => None,
            text => Some(Method::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is no method"))?),
        };
        let reason = match filter.reason.as_str() {
            "" => None,
            text => Some(Reason::parse(text).ok_or_else(|| format!("there is no reason `{text}`"))?),
        };
        Ok(Self {
            direction,
            method,
            path_prefix: filter.path_prefix.clone(),
            headers: filter.headers.iter().map(header).collect::<Result<_, String>>()?,
            statuses: statuses.collect::<Result<_, String>>()?,
            reason,
            failed: filter.failed,
            slower: filter.slower.and_then(|slower| Duration::try_from(slower).ok()),
            service: Named::read(&filter.service),
            route: Named::read(&filter.route),
        })
    }

    /// Whether what is known of an exchange at its beginning fits. `None`: it is no request.
    fn takes_head(&self, direction: Direction, parts: Option<&Parts>) -> bool {
        if self.direction.is_some_and(|wanted| wanted != direction) {
            return false;
        }
        let Some(parts) = parts else { return self.method.is_none() && self.path_prefix.is_empty() && self.headers.is_empty() };
        self.method.as_ref().is_none_or(|method| *method == parts.method)
            && parts.uri.path().starts_with(&self.path_prefix)
            && self.headers.iter().all(|(name, wanted)| match wanted {
                None => parts.headers.contains_key(name),
                Some(value) => parts.headers.get_all(name).iter().any(|there| there == value),
            })
    }

    /// Whether what is known at its end does.
    fn takes_end(&self, seen: &Outline, duration: Duration) -> bool {
        let status = (seen.code != CODE_NONE).then_some(seen.code);
        self.slower.is_none_or(|slower| duration >= slower)
            && self.reason.is_none_or(|reason| seen.reason == Some(reason))
            && (self.statuses.is_empty() || status.is_some_and(|status| self.statuses.iter().any(|range| range.contains(&status))))
            && (!self.failed || is_failure(seen.code, seen.grpc, seen.reason))
            && self.service.as_ref().is_none_or(|wanted| seen.destination().is_some_and(|(namespace, name)| wanted.fits(namespace, name)))
            && self.route.as_ref().is_none_or(|wanted| {
                let source = seen.rule.as_ref().map(|rule| &rule.source);
                // A Service's own default is no route.
                source.is_some_and(|source| !source.label.is_empty() && wanted.fits(&source.namespace, &source.name))
            })
    }
}

fn header(wanted: &Header) -> Result<(HeaderName, Option<HeaderValue>), String> {
    let name = HeaderName::try_from(&wanted.name).map_err(|_| format!("`{}` is no header's name", wanted.name))?;
    if SECRET_HEADERS.contains(&name) {
        return Err(format!("a tap does not ask for `{name}`: it holds secrets"));
    }
    let value = Some(&wanted.value).filter(|value| !value.is_empty());
    let value = value.map(|value| HeaderValue::try_from(value).map_err(|_| format!("`{value}` is no header's value")));
    Ok((name, value.transpose()?))
}

/// So many in a second on average, and no more than a second's worth at once (GCRA).
#[derive(Debug)]
pub(super) struct Allowance {
    nanos_each: u64,
    /// When all that was taken so far will have been due, nanoseconds since the proxy's start.
    due: AtomicU64,
}

const SECOND_NANOS: u64 = 1_000_000_000;

impl Allowance {
    pub(super) fn new(per_sec: u32) -> Self {
        Self { nanos_each: SECOND_NANOS / u64::from(per_sec.max(1)), due: AtomicU64::new(0) }
    }

    fn after(&self, due: u64, now: u64) -> Option<u64> {
        let next = due.max(now) + self.nanos_each;
        (next <= now + SECOND_NANOS).then_some(next)
    }

    /// Whether one is left. `now`: nanoseconds since the proxy's start.
    fn is_left(&self, now: u64) -> bool {
        self.after(self.due.load(Ordering::Relaxed), now).is_some()
    }

    /// Takes one, if one is left.
    pub(super) fn take(&self, now: u64) -> bool {
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| self.after(due, now)).is_ok()
    }
}

/// One tap.
#[derive(Debug)]
pub(super) struct Tap {
    terms: TapTerms,
    allowance: Allowance,
    lines: mpsc::Sender<String>,
    seen: AtomicU64,
    dropped: AtomicU64,
}

impl Tap {
    /// An exchange ended; `line` makes its line, where there are notes of it.
    fn tell(&self, now: u64, line: Option<impl FnOnce() -> String>) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let line = line.filter(|_| self.allowance.take(now));
        let sent = line.is_some_and(|line| self.lines.try_send(line()).is_ok());
        self.dropped.fetch_add(u64::from(!sent), Ordering::Relaxed);
    }
}

/// All taps of this proxy.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// Another number with every change; 0 while there are none.
    turn: AtomicU32,
    open: Mutex<OpenTaps>,
}

#[derive(Debug, Default)]
struct OpenTaps {
    all: Vec<Arc<Tap>>,
    turns: u32,
}

impl OpenTaps {
    /// The number of the set that there is now.
    fn next_turn(&mut self) -> u32 {
        self.turns = self.turns.wrapping_add(1).max(1);
        if self.all.is_empty() { 0 } else { self.turns }
    }
}

impl Taps {
    /// See [`Taps::turn`]; all that an exchange costs while nobody watches.
    pub(super) fn turn(&self) -> u32 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Begins a tap. `None`: there are [`TAPS_MAX`] already.
    pub(super) fn begin(self: &Arc<Self>, terms: TapTerms, lines_per_sec: u32) -> Option<TapFeed> {
        let (sender, lines) = mpsc::channel(LINES_AHEAD);
        let tap = Arc::new(Tap {
            terms,
            allowance: Allowance::new(lines_per_sec.min(LINES_PER_SEC_MAX)),
            lines: sender,
            seen: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let mut open = self.open.lock();
        if open.all.len() >= TAPS_MAX {
            return None;
        }
        open.all.push(Arc::clone(&tap));
        self.turn.store(open.next_turn(), Ordering::Relaxed);
        Some(TapFeed { taps: Arc::clone(self), tap, lines })
    }

    fn remove(&self, tap: &Arc<Tap>) {
        let mut open = self.open.lock();
        open.all.retain(|other| !Arc::ptr_eq(other, tap));
        self.turn.store(open.next_turn(), Ordering::Relaxed);
    }
}

/// The taps as one worker knows them.
#[derive(Debug, Default)]
pub(super) struct KnownTaps {
    turn: u32,
    all: Rc<Vec<Arc<Tap>>>,
}

/// An exchange that taps may show.
#[derive(Debug)]
pub(super) struct Watched {
    taps: Rc<Vec<Arc<Tap>>>,
    /// Of which the head fits.
    fitting: u8,
    /// Whether it is worth taking notes.
    pub(super) noted: bool,
}

impl KnownTaps {
    /// Judges the head of an exchange, while there are taps. `now`: nanoseconds since the proxy's start.
    #[cold]
    pub(super) fn judge(&mut self, taps: &Taps, now: u64, direction: Direction, parts: Option<&Parts>) -> Option<Watched> {
        if self.turn != taps.turn() {
            let open = taps.open.lock();
            *self = Self { turn: taps.turn(), all: Rc::new(open.all.clone()) };
        }
        let (mut fitting, mut noted) = (0, false);
        for (place, tap) in self.all.iter().enumerate().filter(|(_, tap)| tap.terms.takes_head(direction, parts)) {
            fitting |= 1 << place;
            noted |= tap.allowance.is_left(now);
        }
        (fitting != 0).then(|| Watched { taps: Rc::clone(&self.all), fitting, noted })
    }
}

impl Watched {
    /// The exchange has ended. `detail`: notes on it, where they were taken; `now` as before.
    #[cold]
    pub(super) fn ended(&self, now: u64, seen: &Outline, detail: Option<&Detail>, times: (Duration, SystemTime)) {
        let fits = |place: usize| self.fitting & 1 << place != 0;
        let mut line = None;
        for (_, tap) in self.taps.iter().enumerate().filter(|(place, tap)| fits(*place) && tap.terms.takes_end(seen, times.0)) {
            tap.tell(now, detail.map(|detail| || line.get_or_insert_with(|| line_of(seen, detail, times)).clone()));
        }
    }
}

/// What the access log says of an exchange, as JSON, without the line's end.
pub(super) fn line_of(seen: &Outline, detail: &Detail, (duration, ended): (Duration, SystemTime)) -> String {
    let started = ended.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(duration);
    let mut batch = Batch::default();
    let shape = batch.add_shape(Arc::new(Shape::of(seen, detail)));
    batch.add((shape, Sink::Log), seen, detail, (u64::try_from(started.as_nanos()).unwrap_or(u64::MAX), duration));
    let mut lines = Lines::default();
    batch.records.iter().for_each(|record| lines.push(&batch, record));
    String::from_utf8_lossy(lines.bytes()).trim_end().to_owned()
}

/// Where a tap's lines come out; it ends when this is dropped.
#[derive(Debug)]
pub struct TapFeed {
    taps: Arc<Taps>,
    tap: Arc<Tap>,
    lines: mpsc::Receiver<String>,
}

impl TapFeed {
    /// The next line, when there is one.
    pub async fn line(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// The next line, if there is one.
    pub fn line_now(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Exchanges that fitted, and how many of these have no line, since this was asked last.
    pub fn counts(&self) -> (u64, u64) {
        (self.tap.seen.swap(0, Ordering::Relaxed), self.tap.dropped.swap(0, Ordering::Relaxed))
    }
}

impl Drop for TapFeed {
    fn drop(&mut self) {
        self.taps.remove(&self.tap);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proto::mesh::StatusRange;

    use super::*;

    fn parts(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method).uri(path);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap().into_parts().0
    }

    fn filter(edit: impl FnOnce(&mut TapFilter)) -> TapFilter {
        let mut filter = TapFilter::default();
        edit(&mut filter);
        filter
    }

    fn terms(edit: impl FnOnce(&mut TapFilter)) -> TapTerms {
        TapTerms::read(&filter(edit)).unwrap()
    }

    fn wants(name: &str, value: &str) -> Header {
        Header { name: name.to_owned(), value: value.to_owned() }
    }

    /// Aim: each word about a head takes just what it says; what is no request meets none that ask for one.
    #[test]
    fn heads_are_judged() {
        let get = parts("GET", "/cart/1?x=/cart", &[("x-beta", "1"), ("x-beta", "2")]);
        for (terms, request, connection) in [
            (terms(|_| {}), true, true),
            (terms(|f| f.direction = "inbound".into()), true, true),
            (terms(|f| f.direction = "outbound".into()), false, false),
            (terms(|f| f.method = "GET".into()), true, false),
            (terms(|f| f.method = "POST".into()), false, false),
            (terms(|f| f.path_prefix = "/cart".into()), true, false),
            (terms(|f| f.path_prefix = "/cart/2".into()), false, false),
            (terms(|f| f.headers = vec![wants("X-Beta", "")]), true, false),
            (terms(|f| f.headers = vec![wants("x-beta", "2")]), true, false),
            (terms(|f| f.headers = vec![wants("x-beta", "3")]), false, false),
            (terms(|f| f.headers = vec![wants("x-beta", "1"), wants("x-other", "")]), false, false),
        ] {
            assert_eq!(terms.takes_head(Direction::Inbound, Some(&get)), request, "{terms:?}");
            assert_eq!(terms.takes_head(Direction::Inbound, None), connection, "{terms:?}");
        }
    }

    /// Aim: a filter that cannot be carried out is refused by a sentence, secrets are not asked for, and bounds are kept.
    #[test]
    fn filters_are_read_or_refused() {
        let many = |count: usize| vec![StatusRange { from: 500, to: 599 }; count];
        for (wrong, why) in [
            (filter(|f| f.direction = "up".into()), "no direction `up`"),
            (filter(|f| f.method = "G T".into()), "`G T` is no method"),
            (filter(|f| f.reason = "because".into()), "no reason `because`"),
            (filter(|f| f.headers = vec![wants("a b", "")]), "`a b` is no header's name"),
            (filter(|f| f.headers = vec![wants("a", "\n")]), "is no header's value"),
            (filter(|f| f.headers = vec![wants("Authorization", "x")]), "holds secrets"),
            (filter(|f| f.headers = vec![wants("cookie", "")]), "holds secrets"),
            (filter(|f| f.headers = vec![wants("a", ""); HEADERS_MAX + 1]), "at most"),
            (filter(|f| f.statuses = many(STATUSES_MAX + 1)), "at most"),
            (filter(|f| f.statuses = vec![StatusRange { from: 70_000, to: 1 }]), "70000 is no status"),
        ] {
            let refused = TapTerms::read(&wrong).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert_eq!(terms(|f| f.statuses = many(1)).statuses, [500..=599]);
        assert!(Named::read("").is_none() && Named::read("shop/").is_none());
        let (any, one) = (Named::read("catalog").unwrap(), Named::read("shop/catalog").unwrap());
        assert!(any.fits("other", "catalog") && one.fits("shop", "catalog") && !one.fits("other", "catalog") && !any.fits("shop", "cart"));
    }

    /// Aim: a second's worth goes at once, then as many a second as are allowed, however long nobody came before.
    #[test]
    fn lines_come_at_a_rate() {
        let allowance = Allowance::new(10);
        let taken = |now: u64| (0..100).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(5 * SECOND_NANOS), 10);
        assert!(!allowance.is_left(5 * SECOND_NANOS));
        assert_eq!(taken(5 * SECOND_NANOS + SECOND_NANOS / 2), 5);
        assert_eq!(taken(3600 * SECOND_NANOS), 10);
    }
}
