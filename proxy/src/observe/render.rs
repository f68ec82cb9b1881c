//! `/metrics`: the shards' sums, readings, the process.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::callout::{CalloutOutcome, CalloutReading};
use engine::failure::Reason;
use engine::limit::{LimitReading, StoreReading};
use engine::model::MetricLabels;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

use super::edge::EdgeReadings;
use super::exposition::{Exposition, plain};
use super::labels::{Direction, Labels, MetricFamily};
use super::load::LoadReading;
use super::metric::{Metric, MetricKind, MetricSet, MetricUnit, Point, PointLabels, Reading, level};
use super::process::ProcessReading;
use super::series::{Exemplar, Sum};
use super::telemetry::Telemetry;
use super::trace::{hex_of_u64, hex_of_u128};

/// Everything a scrape shows, read at one moment.
#[derive(Debug)]
struct Scrape {
    sums: Vec<(Arc<Labels>, Sum)>,
    /// Which labels of traffic are told.
    labels: MetricLabels,
    epoch: u64,
    cert_expiry_secs: Option<i64>,
    rejected: u64,
    ejections: u64,
    conditions_failed: u64,
    auth: Vec<(&'static str, &'static str, u64)>,
    key_fetches_failed: u64,
    outside_lookups: u64,
    outside_lookups_failed: u64,
    mirrors_dropped: u64,
    overflow: u64,
    spans_exported: u64,
    spans_dropped: Vec<(&'static str, u64)>,
    lines_dropped: Vec<(&'static str, u64)>,
    log_filters_failed: u64,
    points_exported: u64,
    points_dropped: u64,
    connections: [(Direction, u64, u64); 2],
    http2_bodies: i64,
    http2_floods: u64,
    edge: Arc<EdgeReadings>,
    limits: Vec<LimitReading>,
    limits_waiting: Vec<(Arc<str>, u64)>,
    limit_keys_evicted: u64,
    leases_away: Option<bool>,
    stores: Vec<StoreReading>,
    callouts: Vec<CalloutReading>,
    load: LoadReading,
    process: ProcessReading,
    started_secs: f64,
}

impl Telemetry {
    /// All metrics in OpenMetrics, which says most.
    pub fn render(&self) -> String {
        self.render_as(Exposition::OpenMetrics)
    }

    /// All metrics.
    pub fn render_as(&self, exposition: Exposition) -> String {
        self.scrape(false).text(exposition)
    }

    /// All metrics, with what only OTLP tells.
    pub(super) fn sketched(&self) -> Vec<Metric> {
        self.scrape(true).families()
    }

    fn scrape(&self, sketched: bool) -> Scrape {
        let (load, process) = (self.load.read(self.queues()), ProcessReading::read(&self.kernel_files));
        let mut registry = self.registry.lock();
        registry.sweep(self.clock.now());
        let limits = Arc::clone(&self.readings.limits.lock());
        let expiry = self.readings.cert_expiry_unix_secs.load(Ordering::Relaxed);
        let now = i64::try_from(since_1970(self.clock.wall()).as_secs()).unwrap_or(i64::MAX);
        Scrape {
            sums: if sketched { registry.sketched_sums() } else { registry.sums() },
            labels: self.settings.load().as_ref().map_or_else(MetricLabels::default, |settings| settings.metric_labels),
            epoch: self.readings.config_epoch.load(Ordering::Relaxed),
            cert_expiry_secs: (expiry != 0).then(|| expiry.saturating_sub(now)),
            key_fetches_failed: self.readings.key_fetches_failed.load(Ordering::Relaxed),
            outside_lookups: self.readings.outside_lookups.load(Ordering::Relaxed),
            outside_lookups_failed: self.readings.outside_lookups_failed.load(Ordering::Relaxed),
            rejected: self.readings.config_rejected.load(Ordering::Relaxed),
            ejections: self.readings.ejections.load(Ordering::Relaxed),
            conditions_failed: self.readings.conditions_failed.load(Ordering::Relaxed),
            auth: self.readings.auth.rows(),
            mirrors_dropped: self.readings.mirrors_dropped.load(Ordering::Relaxed),
            overflow: registry.total(|shard| &shard.overflow),
            spans_exported: self.spans_exported.load(Ordering::Relaxed),
            spans_dropped: self.spans_dropped.rows(registry.total(|shard| &shard.spans_dropped)),
            lines_dropped: [("all", registry.total(|shard| &shard.lines_dropped))].into_iter().chain(self.access.losses().rows()).collect(),
            log_filters_failed: self.access.filters_failed(),
            points_exported: self.points_exported.load(Ordering::Relaxed),
            points_dropped: self.points_dropped.load(Ordering::Relaxed),
            connections: [Direction::Inbound, Direction::Outbound].map(|direction| {
                let occupancy = self.readings.occupancy(direction);
                (direction, occupancy.open.load(Ordering::Relaxed), occupancy.full.load(Ordering::Relaxed))
            }),
            http2_bodies: self.readings.http2_bodies.load(Ordering::Relaxed),
            http2_floods: self.readings.http2_floods.count(),
            edge: Arc::clone(&self.readings.edge),
            leases_away: limits.is_used().then(|| limits.leases().away_since().is_some()),
            limit_keys_evicted: limits.evicted(),
            limits_waiting: limits.waiting(),
            limits: limits.readings(),
            stores: limits.store_readings(),
            callouts: self.readings.callouts.lock().readings(),
            load,
            process,
            started_secs: since_1970(self.started).as_secs_f64(),
        }
    }
}

fn since_1970(at: SystemTime) -> std::time::Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Scrape {
    fn text(self, exposition: Exposition) -> String {
        let families = self.families();
        let exemplars = exemplars(&families);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(MetricSet(families)));
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode_registry(&mut text, &registry);
        match exposition {
            Exposition::Text => plain(&text),
            Exposition::OpenMetrics => with_exemplars(text, &exemplars) + "# EOF\n",
        }
    }

    /// Everything, in the order in which it is told.
    fn families(&self) -> Vec<Metric> {
        let mut all = Vec::with_capacity(96);
        self.http(&mut all);
        self.tcp(&mut all);
        self.policy(&mut all);
        self.limits(&mut all);
        self.callouts(&mut all);
        self.own(&mut all);
        self.connections(&mut all);
        self.edge.tell(&mut all);
        self.load.tell(&mut all);
        self.process.tell(&mut all);
        let start = "Start of the process, seconds since 1970";
        all.push(Metric::gauge("process_start_time", Some(MetricUnit::Seconds), start, Reading::GaugeReal(self.started_secs)));
        all
    }

    /// One number of each label set that is wanted; those that differ only in what is dropped are one.
    fn of_traffic(
        &self,
        (name, unit, help): (&'static str, Option<MetricUnit>, &'static str),
        kind: MetricKind,
        wanted: impl Fn(&Labels) -> bool,
        reading: impl Fn(&Sum) -> Reading,
    ) -> Metric {
        let mut family = Metric::new(name, unit, help, kind);
        let mut point = |labels: Arc<Labels>, sum: &Sum| {
            let labels = PointLabels::Traffic(labels, self.labels);
            family.points.push(Point { labels, reading: reading(sum), begun: sum.begun });
        };
        let mut merged: BTreeMap<Labels, Sum> = BTreeMap::new();
        for (labels, sum) in self.sums.iter().filter(|(labels, _)| wanted(labels)) {
            match labels.blanked(self.labels) {
                None => point(Arc::clone(labels), sum),
                Some(blank) => merged.entry(blank).or_default().merge(sum),
            }
        }
        merged.into_iter().for_each(|(labels, sum)| point(Arc::new(labels), &sum));
        family
    }

    fn counters(
        &self,
        what: (&'static str, Option<MetricUnit>, &'static str),
        wanted: impl Fn(&Labels) -> bool,
        value: impl Fn(&Sum) -> u64,
    ) -> Metric {
        self.of_traffic(what, MetricKind::Counter, wanted, |sum| Reading::Count(value(sum)))
    }

    fn http(&self, all: &mut Vec<Metric>) {
        let http = |labels: &Labels| labels.family == MetricFamily::Http;
        all.push(self.counters(("meshwright_requests", None, "HTTP requests that ended"), http, |sum| sum.count));
        let help = "Time from a request's head to the end of its answer";
        let name = ("meshwright_request_duration", Some(MetricUnit::Seconds), help);
        all.push(self.of_traffic(name, MetricKind::Histogram, http, |sum| Reading::Durations(Box::new(sum.clone()))));
        let name = ("meshwright_request", Some(MetricUnit::Bytes), "Body bytes from downstream");
        all.push(self.counters(name, http, |sum| sum.request_bytes));
        let name = ("meshwright_response", Some(MetricUnit::Bytes), "Body bytes towards downstream");
        all.push(self.counters(name, http, |sum| sum.response_bytes));
    }

    fn tcp(&self, all: &mut Vec<Metric>) {
        let tcp = |labels: &Labels| labels.family == MetricFamily::Tcp;
        let plain = |labels: &Labels| tcp(labels) && labels.reason.is_none();
        let opened = ("meshwright_tcp_connections_opened", None, "Opaque connections whose upstream was chosen");
        all.push(self.counters(opened, plain, |sum| sum.opened));
        let closed =
            ("meshwright_tcp_connections_closed", None, "Opaque connections that ended; reason says why where the mesh ended them");
        all.push(self.counters(closed, tcp, |sum| sum.count));
        let sent = ("meshwright_tcp_sent", Some(MetricUnit::Bytes), "Bytes of opaque connections towards downstream");
        all.push(self.counters(sent, plain, |sum| sum.response_bytes));
        let received = ("meshwright_tcp_received", Some(MetricUnit::Bytes), "Bytes of opaque connections from downstream");
        all.push(self.counters(received, plain, |sum| sum.request_bytes));
    }

    fn policy(&self, all: &mut Vec<Metric>) {
        let of = |family: MetricFamily| move |labels: &Labels| labels.family == family;
        let retries = ("meshwright_retries", None, "Attempts that were made again; reason says why");
        all.push(self.counters(retries, of(MetricFamily::Retry), |sum| sum.count));
        let hedges = ("meshwright_hedges", None, "Second attempts that were made beside a slow first one");
        all.push(self.counters(hedges, of(MetricFamily::Hedge), |sum| sum.count));
        all.push(Metric::number("meshwright_ejections", "Endpoints ejected from balancing", self.ejections));
        let help = "Copies of requests that were not made: too many were under way";
        all.push(Metric::number("meshwright_mirrors_dropped", help, self.mirrors_dropped));
        let rulings =
            ("meshwright_policy_rulings", None, "What rules of authorization policies said: denied, would_deny (on trial), audited");
        all.push(self.counters(rulings, of(MetricFamily::Ruling), |sum| sum.count));
        let help = "Conditions of authorization policies that could not be evaluated, which counts against the caller";
        all.push(Metric::number("meshwright_policy_conditions_failed", help, self.conditions_failed));
        let help = "What came of asking who calls from outside the mesh: how it was proved, and the verdict";
        let asked = Metric::new("meshwright_auth", None, help, MetricKind::Counter);
        all.push(self.auth.iter().fold(asked, |family, (kind, verdict, count)| {
            family.with(vec![("kind", (*kind).to_owned()), ("verdict", (*verdict).to_owned())], Reading::Count(*count))
        }));
        let denied = ("meshwright_policy_denied", None, "Requests and connections that a rule refused");
        all.push(self.counters(denied, |labels| labels.family != MetricFamily::Retry && is_denial(labels), |sum| sum.count));
    }

    fn limits(&self, all: &mut Vec<Metric>) {
        if self.leases_away.is_none() {
            return;
        }
        let help = "Requests at limits of edges; verdict says what became of them";
        let met = Metric::new("meshwright_limit", None, help, MetricKind::Counter);
        all.push(self.limits.iter().fold(met, |family, LimitReading { limit, verdict, count }| {
            family.with(vec![("limit", limit.to_string()), ("verdict", verdict.text().to_owned())], Reading::Count(*count))
        }));
        if !self.limits_waiting.is_empty() {
            let help = "Requests that wait for a place of a limit on how many are under way";
            let waiting = Metric::new("meshwright_limit_waiting", None, help, MetricKind::Gauge);
            all.push(
                self.limits_waiting
                    .iter()
                    .fold(waiting, |family, (limit, waiting)| family.with(vec![("limit", limit.to_string())], level(*waiting))),
            );
        }
        let help = "Keys of limits that were forgotten for others: an object had as many as it may";
        all.push(Metric::number("meshwright_limit_keys_evicted", help, self.limit_keys_evicted));
        let help = "Connections to stores of limits, and exchanges on them, that failed";
        let failed = Metric::new("meshwright_limit_store_failures", None, help, MetricKind::Counter);
        all.push(self.stores.iter().fold(failed, |family, StoreReading { store, away: _, failures }| {
            family.with(vec![("store", store.clone())], Reading::Count(*failures))
        }));
    }

    fn callouts(&self, all: &mut Vec<Metric>) {
        if !self.callouts.is_empty() {
            let help = "Questions to services that policies ask; outcome says what came of them, or that a request went on without";
            let mut asked = Metric::new("meshwright_callouts", None, help, MetricKind::Counter);
            let help = "Questions to services that policies ask, now under way";
            let mut under_way = Metric::new("meshwright_callouts_under_way", None, help, MetricKind::Gauge);
            for reading in &self.callouts {
                let labels = || vec![("kind", reading.kind.text().to_owned()), ("name", reading.name.to_string())];
                for (outcome, count) in CalloutOutcome::ALL.iter().zip(reading.counts).filter(|(_, count)| *count > 0) {
                    let labels = labels().into_iter().chain([("outcome", outcome.text().to_owned())]).collect();
                    asked = asked.with(labels, Reading::Count(count));
                }
                under_way = under_way.with(labels(), level(reading.under_way as u64));
            }
            all.extend([asked, under_way]);
        }
        self.degraded(all);
    }

    fn degraded(&self, all: &mut Vec<Metric>) {
        let leases = self.leases_away.map(|away| ("RateLimit", "leases", away));
        let services = self.callouts.iter().map(|reading| (reading.kind.text(), &*reading.name, reading.away));
        let stores = self.stores.iter().map(|StoreReading { store, away, failures: _ }| ("RateLimit", store.as_str(), *away));
        let help = "Whether what a kind of objects relies on is away; each goes by what it says for that";
        let family = Metric::new("meshwright_degraded", None, help, MetricKind::Gauge);
        let family = leases.into_iter().chain(stores).chain(services).fold(family, |family, (kind, name, away)| {
            family.with(vec![("kind", kind.to_owned()), ("name", name.to_owned())], Reading::Gauge(i64::from(away)))
        });
        if !family.points.is_empty() {
            all.push(family);
        }
    }

    fn own(&self, all: &mut Vec<Metric>) {
        if let Some(secs) = self.cert_expiry_secs {
            let help = "Time until the leaf expires; negative after";
            all.push(Metric::gauge("meshwright_cert_expiry", Some(MetricUnit::Seconds), help, Reading::Gauge(secs)));
        }
        all.push(Metric::gauge("meshwright_config_epoch", None, "Number of the epoch in force", level(self.epoch)));
        for (name, help, count) in [
            ("meshwright_config_rejected", "Resources refused; the last good version stays", self.rejected),
            (
                "meshwright_jwks_fetches_failed",
                "Fetches of token issuers' keys that failed; the last good ones stay for a day",
                self.key_fetches_failed,
            ),
            ("meshwright_backend_lookups", "Questions for names outside the mesh that are backends", self.outside_lookups),
            (
                "meshwright_backend_lookups_failed",
                "Those that nobody has answered in one family at least; the last addresses stay",
                self.outside_lookups_failed,
            ),
            (
                "meshwright_metric_series_overflow",
                "Records counted in an overflow series, for want of a series of their own",
                self.overflow,
            ),
            ("meshwright_spans_exported", "Spans that a collector took", self.spans_exported),
            (
                "meshwright_access_log_filter_failed",
                "Filters of the access log that came to nothing; their lines are written",
                self.log_filters_failed,
            ),
            ("meshwright_metric_points_exported", "Numbers that a collector took by OTLP", self.points_exported),
            ("meshwright_metric_points_dropped", "Numbers that no collector took by OTLP; the next ones hold them", self.points_dropped),
        ] {
            all.push(Metric::number(name, help, count));
        }
        let family = |(name, help): (&'static str, &'static str), label: &'static str, rows: &[(&'static str, u64)]| {
            let family = Metric::new(name, None, help, MetricKind::Counter);
            rows.iter().fold(family, |family, (word, count)| family.with(vec![(label, (*word).to_owned())], Reading::Count(*count)))
        };
        let help = "Spans lost to a full queue or a failing collector";
        all.push(family(("meshwright_spans_dropped", help), "reason", &self.spans_dropped));
        let help = "Access log lines lost: by a sink that failed or fell behind, or by all where too many waited to be encoded";
        all.push(family(("meshwright_access_log_dropped", help), "sink", &self.lines_dropped));
        let help = "Label sets of traffic that are told apart now";
        all.push(Metric::gauge("meshwright_metric_series", None, help, level(self.sums.len() as u64)));
    }

    fn connections(&self, all: &mut Vec<Metric>) {
        let mut open = Metric::new("meshwright_connections", None, "Downstream connections now open", MetricKind::Gauge);
        let help = "How often a worker had as many downstream connections as it may, and let further ones wait";
        let mut full = Metric::new("meshwright_connections_full", None, help, MetricKind::Counter);
        for (direction, now, times) in self.connections {
            let labels = || vec![("direction", direction.text().to_owned())];
            open = open.with(labels(), level(now));
            full = full.with(labels(), Reading::Count(times));
        }
        all.extend([open, full]);
        all.push(Metric::gauge("meshwright_http2_bodies", None, "Bodies now coming in over HTTP/2", Reading::Gauge(self.http2_bodies)));
        let help = "HTTP/2 connections ended because too many of their frames asked for nothing";
        all.push(Metric::number("meshwright_http2_floods", help, self.http2_floods));
    }
}

/// Exemplars of the histogram of requests, in the order of its buckets.
fn exemplars(families: &[Metric]) -> Vec<Option<Exemplar>> {
    let points = families.iter().flat_map(|family| &family.points);
    let sums = points.filter_map(|point| if let Reading::Durations(sum) = &point.reading { Some(sum) } else { None });
    sums.flat_map(|sum| sum.exemplars).collect()
}

fn is_denial(labels: &Labels) -> bool {
    matches!(labels.reason, Some(Reason::Denied | Reason::Unauthenticated | Reason::RateLimited | Reason::PolicyUnavailable))
}

/// Appends exemplars to the histogram's bucket lines, which come in the order of `exemplars`. (An exemplar of `prometheus_client`
/// can only be made by observing a value, which a sum of shards cannot do.)
fn with_exemplars(text: String, exemplars: &[Option<Exemplar>]) -> String {
    if exemplars.iter().all(Option::is_none) {
        return text;
    }
    let mut exemplars = exemplars.iter();
    let mut out = String::with_capacity(text.len() + 4096);
    for line in text.lines() {
        out.push_str(line);
        if line.starts_with("meshwright_request_duration_seconds_bucket{")
            && let Some(Some(exemplar)) = exemplars.next()
        {
            let (trace_id, span_id) = (hex_of_u128(exemplar.trace_id), hex_of_u64(exemplar.span_id));
            let (trace_id, span_id) = (String::from_utf8_lossy(&trace_id), String::from_utf8_lossy(&span_id));
            let (value, at) = (exemplar.duration.as_secs_f64(), since_1970(exemplar.at).as_secs_f64());
            let _ = write!(out, " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {value} {at:.3}");
        }
        out.push('\n');
    }
    out
}
