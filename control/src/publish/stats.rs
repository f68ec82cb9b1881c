//! What is called now: rates, failures and latencies of the last minute per service, route and workload, as proxies tell them. In memory only;
//! a proxy that ended tells nothing more, and what it told is gone after that minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proto::defaults::BUCKET_BOUNDS_SECS;
use proto::mesh::RouteTraffic;
use proto::names::Mode;

use super::board::Board;
use super::peer::Claim;
use crate::world::Name;

/// Rows of all proxies; what further ones count is told as a whole.
const ROWS_MAX: usize = 10_000;
/// Longest window, in whole seconds.
pub const WINDOW_SECS_MAX: u64 = 60;
/// Longest name that is taken from a proxy.
const TEXT_BYTES_MAX: usize = 512;
/// What a proxy calls callers that prove nothing, or that the mesh does not know.
const UNKNOWN: &str = "unknown";
/// Buckets of a histogram, the unbounded one included.
const BUCKETS: usize = BUCKET_BOUNDS_SECS.len() + 1;

/// See the module.
#[derive(Debug, Default)]
pub struct StatBook {
    rows: BTreeMap<RowKey, Slices>,
    /// Requests that no row has.
    rest: Slices,
    /// When rows were looked through last, in seconds.
    swept_secs: u64,
}

/// What a row is about, and who tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    /// It was told by the caller's side.
    outbound: bool,
    /// Who tells: (namespace, workload), and whether that is a Gateway.
    own: (Name, bool),
    /// The service called, (namespace, name).
    service: Name,
    /// `NAMESPACE/NAME`; empty: a Service's own default.
    route: String,
    /// Inbound: who called.
    caller: Name,
}

/// By second, the oldest first.
type Slices = VecDeque<(u64, Golden)>;

/// What was counted of something in some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Golden {
    /// Requests that ended.
    pub requests: u64,
    /// Of them, those that failed by the server's or the mesh's fault.
    pub failures: u64,
    buckets: [u64; BUCKETS],
}

impl Golden {
    fn of(row: &RouteTraffic) -> Self {
        let mut buckets = [0; BUCKETS];
        for (bucket, count) in buckets.iter_mut().zip(&row.duration_buckets) {
            *bucket = *count;
        }
        Self { requests: row.requests, failures: row.failures.min(row.requests), buckets }
    }

    fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.failures = self.failures.saturating_add(more.failures);
        for (bucket, more) in self.buckets.iter_mut().zip(more.buckets) {
            *bucket = bucket.saturating_add(more);
        }
    }

    /// Share of requests that did not fail, in per cent; `None`: there were none.
    pub fn success_percent(&self) -> Option<f64> {
        (self.requests > 0).then(|| 100.0 * (1.0 - self.failures as f64 / self.requests as f64))
    }

    /// The latency, in milliseconds, that so great a share (0 to 1) of requests stays below: between the bounds of the histogram as if a
    /// bucket's requests were spread evenly, and 10 s where it is longer. `None`: there were none.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let total: u64 = self.buckets.iter().fold(0, |total, count| total.saturating_add(*count));
        if total == 0 {
            return None;
        }
        let wanted = share * total as f64;
        let (mut before, mut from_secs) = (0.0, 0.0);
        for (count, bound_secs) in self.buckets.iter().zip(BUCKET_BOUNDS_SECS) {
            let count = *count as f64;
            if count > 0.0 && before + count >= wanted {
                let within = ((wanted - before) / count).clamp(0.0, 1.0);
                return Some(1000.0 * (from_secs + within * (bound_secs - from_secs)));
            }
            (before, from_secs) = (before + count, bound_secs);
        }
        Some(1000.0 * from_secs)
    }
}

/// What rows are shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatView {
    /// One for each service called.
    Services,
    /// One for each service and route.
    Routes,
    /// One for each workload that is called, and each Gateway.
    Workloads,
}

/// What a row of an answer is about; what it is not about is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatSubject {
    /// Of the service or workload.
    pub namespace: String,
    /// The service called; empty where it ended before one was chosen.
    pub service: String,
    /// `NAMESPACE/NAME`.
    pub route: String,
    /// The workload called, or `gateway/NAME`.
    pub workload: String,
}

impl StatBook {
    /// Takes what a proxy counted since it told last.
    pub fn take(&mut self, claim: &Claim, rows: &[RouteTraffic], now_ms: u64) {
        let now_secs = now_ms / 1000;
        if self.swept_secs != now_secs {
            self.sweep(now_secs);
        }
        let own = ((claim.namespace.clone(), claim.workload.clone()), claim.mode == Mode::Edge);
        for row in rows.iter().filter(|row| row.requests > 0) {
            let counted = Golden::of(row);
            let key = Some(row).filter(|row| !row.rest).and_then(|row| read(own.clone(), row));
            let known = key.as_ref().is_some_and(|key| self.rows.contains_key(key));
            let slices = match key {
                Some(key) if known || self.rows.len() < ROWS_MAX => self.rows.entry(key).or_default(),
                _ => &mut self.rest,
            };
            add(slices, now_secs, &counted);
        }
    }

    /// Lets go of what is older than any window.
    fn sweep(&mut self, now_secs: u64) {
        self.swept_secs = now_secs;
        let oldest = now_secs.saturating_sub(WINDOW_SECS_MAX + 1);
        let fresh = |slices: &mut Slices| {
            while slices.front().is_some_and(|(second, _)| *second < oldest) {
                slices.pop_front();
            }
            !slices.is_empty()
        };
        self.rows.retain(|_, slices| fresh(slices));
        fresh(&mut self.rest);
    }

    /// What was counted in the whole seconds of `window` before now, by what `view` shows; with rows that counted nothing in it but did in the
    /// last minute. `from`: only what that workload calls. Then requests that no row has.
    pub fn rows(&self, view: StatView, from: Option<&Name>, window: Duration, now_ms: u64) -> (BTreeMap<StatSubject, Golden>, u64) {
        let now_secs = now_ms / 1000;
        let since = now_secs.saturating_sub(window.as_secs());
        let sum = |slices: &Slices| {
            let mut sum = Golden::default();
            slices.iter().filter(|(second, _)| (since..now_secs).contains(second)).for_each(|(_, counted)| sum.add(counted));
            sum
        };
        let mut rows: BTreeMap<StatSubject, Golden> = BTreeMap::new();
        for (key, slices) in &self.rows {
            if let Some(subject) = key.subject(view, from) {
                rows.entry(subject).or_default().add(&sum(slices));
            }
        }
        (rows, sum(&self.rest).requests)
    }
}

impl RowKey {
    /// What it counts for in a view; `None`: it is no part of it. Every request counts once: as its caller saw it, who also sees what never
    /// reached a server, or as its server did, where the caller is none of the mesh.
    fn subject(&self, view: StatView, from: Option<&Name>) -> Option<StatSubject> {
        let ((namespace, workload), edge) = &self.own;
        let subject = |service: &Name, route: &str, workload: String| StatSubject {
            namespace: service.0.clone(),
            service: service.1.clone(),
            route: route.to_owned(),
            workload,
        };
        match view {
            StatView::Services | StatView::Routes => {
                let counts = match from {
                    Some(from) => self.outbound && self.own.0 == *from,
                    None => self.outbound || self.caller.1 == UNKNOWN,
                };
                let route = if view == StatView::Routes { &self.route } else { "" };
                counts.then(|| subject(&self.service, route, String::new()))
            }
            StatView::Workloads if self.outbound => {
                let shown = *edge && from.is_none_or(|from| self.own.0 == *from);
                shown.then(|| subject(&(namespace.clone(), String::new()), "", format!("gateway/{workload}")))
            }
            StatView::Workloads => {
                let shown = from.is_none_or(|from| self.caller == *from);
                shown.then(|| subject(&(namespace.clone(), String::new()), "", workload.clone()))
            }
        }
    }
}

/// What a row is about. `None`: no proxy of ours says that.
fn read(own: (Name, bool), row: &RouteTraffic) -> Option<RowKey> {
    let outbound = row.direction == "outbound";
    let texts = [&row.namespace, &row.service, &row.route, &row.source_namespace, &row.source_workload];
    let fine = (outbound || row.direction == "inbound") && texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX);
    fine.then(|| RowKey {
        outbound,
        own,
        service: (row.namespace.clone(), row.service.clone()),
        route: row.route.clone(),
        caller: (row.source_namespace.clone(), row.source_workload.clone()),
    })
}

fn add(slices: &mut Slices, now_secs: u64, counted: &Golden) {
    match slices.back_mut() {
        // A clock that goes back counts on where it was.
        Some((second, sum)) if *second >= now_secs => sum.add(counted),
        _ => slices.push_back((now_secs, counted.clone())),
    }
}

impl Board {
    /// A proxy tells what it counted.
    pub fn counted(&self, claim: &Claim, rows: &[RouteTraffic]) {
        if !rows.is_empty() {
            self.stats.lock().take(claim, rows, self.clock.ms());
        }
    }

    /// Looks at what is called.
    pub fn stats<T>(&self, look: impl FnOnce(&StatBook) -> T) -> T {
        look(&self.stats.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::peer::Dialect;

    fn claim(workload: &str, mode: Mode) -> Claim {
        let text = |text: &str| text.to_owned();
        Claim {
            client: Dialect::Meshwright,
            mode,
            namespace: text("shop"),
            workload: text(workload),
            instance: text(workload),
            replica: String::new(),
        }
    }

    /// A row of calls that took 1 to 2.5 ms.
    fn row(direction: &str, service: &str, route: &str, caller: &str, (requests, failures): (u64, u64)) -> RouteTraffic {
        RouteTraffic {
            direction: direction.to_owned(),
            route: route.to_owned(),
            namespace: "shop".to_owned(),
            service: service.to_owned(),
            source_namespace: if caller.is_empty() { String::new() } else { "shop".to_owned() },
            source_workload: caller.to_owned(),
            requests,
            failures,
            duration_buckets: vec![0, 0, requests],
            rest: false,
        }
    }

    const TEN: Duration = Duration::from_secs(10);

    fn book() -> StatBook {
        let mut book = StatBook::default();
        let outbound = [row("outbound", "catalog", "shop/catalog", "", (90, 9)), row("outbound", "store", "", "", (10, 0))];
        book.take(&claim("frontend", Mode::Sidecar), &outbound, 100_500);
        book.take(&claim("edge", Mode::Edge), &[row("outbound", "frontend", "shop/frontend", "", (50, 0))], 100_700);
        let inbound = [row("inbound", "catalog", "", "frontend", (81, 0)), row("inbound", "catalog", "", "unknown", (5, 5))];
        book.take(&claim("catalog-v1", Mode::Sidecar), &inbound, 101_000);
        book
    }

    fn shown(book: &StatBook, view: StatView, from: Option<&str>, now_ms: u64) -> Vec<(String, u64, u64)> {
        let from = from.map(|from| ("shop".to_owned(), from.to_owned()));
        let (rows, _) = book.rows(view, from.as_ref(), TEN, now_ms);
        let name = |subject: &StatSubject| [subject.service.as_str(), &subject.route, &subject.workload].concat();
        rows.iter().map(|(subject, sum)| (name(subject), sum.requests, sum.failures)).collect()
    }

    /// Aim: every request counts once, where its caller saw it; those of callers outside the mesh where their server did.
    #[test]
    fn requests_count_once() {
        let (book, now) = (book(), 102_000);
        let owned =
            |rows: &[(&str, u64, u64)]| rows.iter().map(|(name, all, failed)| ((*name).to_owned(), *all, *failed)).collect::<Vec<_>>();
        for (view, from, wanted) in [
            (StatView::Services, None, &[("catalog", 95, 14), ("frontend", 50, 0), ("store", 10, 0)][..]),
            (StatView::Services, Some("frontend"), &[("catalog", 90, 9), ("store", 10, 0)]),
            (StatView::Services, Some("catalog-v1"), &[]),
            (
                StatView::Routes,
                None,
                &[("catalog", 5, 5), ("catalogshop/catalog", 90, 9), ("frontendshop/frontend", 50, 0), ("store", 10, 0)],
            ),
            (StatView::Workloads, None, &[("catalog-v1", 86, 5), ("gateway/edge", 50, 0)]),
            (StatView::Workloads, Some("frontend"), &[("catalog-v1", 81, 0)]),
        ] {
            assert_eq!(shown(&book, view, from, now), owned(wanted), "{view:?} {from:?}");
        }
    }

    /// Aim: a window holds its whole seconds and no others; what stays silent counts nothing, and is gone after a minute.
    #[test]
    fn windows_end() {
        let mut book = book();
        let catalog = |book: &StatBook, now_ms: u64| {
            shown(book, StatView::Services, None, now_ms).into_iter().find(|(name, ..)| name == "catalog").map(|(_, requests, _)| requests)
        };
        // The second that is not over yet is no part of it.
        for (now_ms, requests) in [(100_900, 0), (101_000, 90), (102_000, 95), (110_999, 95), (111_000, 5), (112_000, 0)] {
            assert_eq!(catalog(&book, now_ms), Some(requests), "{now_ms}");
        }
        book.take(&claim("other", Mode::Sidecar), &[row("outbound", "other", "", "", (1, 0))], 170_000);
        assert_eq!(catalog(&book, 171_000), None);
        assert_eq!(book.rows.len(), 1);
    }

    /// Aim: rows are bounded and nothing is lost of the whole; what no proxy of ours says counts as that.
    #[test]
    fn rows_are_bounded() {
        let mut book = StatBook::default();
        for n in 0..ROWS_MAX + 10 {
            book.take(&claim("web", Mode::Sidecar), &[row("outbound", &format!("s{n}"), "", "", (2, 0))], 1000);
        }
        let rest = RouteTraffic { rest: true, ..row("outbound", "", "", "", (7, 0)) };
        let wrong = [row("sideways", "a", "", "", (1, 0)), row("outbound", &"x".repeat(TEXT_BYTES_MAX + 1), "", "", (1, 0)), rest];
        book.take(&claim("web", Mode::Sidecar), &wrong, 1000);
        let (rows, rest) = book.rows(StatView::Services, None, TEN, 2000);
        assert_eq!((rows.len(), rest), (ROWS_MAX, 29));
    }

    /// Aim: quantiles lie within their bucket, and beyond the last bound they are that bound.
    #[test]
    fn quantiles_are_between_bounds() {
        let golden = |buckets: &[(usize, u64)]| {
            let mut golden = Golden::default();
            buckets.iter().for_each(|(at, count)| golden.buckets[*at] = *count);
            golden
        };
        for (buckets, share, wanted) in [
            (&[][..], 0.5, None),
            (&[(0, 10)], 0.5, Some(0.25)),
            (&[(2, 100)], 0.5, Some(1.75)),
            (&[(2, 99), (13, 1)], 0.99, Some(2.5)),
            (&[(2, 98), (7, 2)], 0.99, Some(75.0)),
            (&[(14, 5)], 0.5, Some(10_000.0)),
        ] {
            let got = golden(buckets).quantile_ms(share);
            assert!(got.zip(wanted).map_or(got == wanted, |(got, wanted)| (got - wanted).abs() < 1e-6), "{buckets:?}: {got:?}");
        }
        assert_eq!(Golden { requests: 200, failures: 1, ..Golden::default() }.success_percent(), Some(99.5));
        assert_eq!(Golden::default().success_percent(), None);
    }
}
