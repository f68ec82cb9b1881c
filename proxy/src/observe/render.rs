//! `/metrics`: the shards' sums, readings, the process.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::callout::{CalloutOutcome, CalloutReading};
use engine::failure::Reason;
use engine::limit::{LimitReading, StoreReading};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::edge::EdgeReadings;
use super::exposition::{Exposition, plain};
use super::labels::{BUCKET_BOUNDS_SECS, Direction, Labels, MetricFamily};
use super::process::ProcessReading;
use super::series::{BUCKETS, Exemplar, Sum};
use super::telemetry::Telemetry;
use super::trace::{hex_of_u64, hex_of_u128};

/// Everything a scrape shows, read at one moment.
#[derive(Debug)]
struct Scrape {
    sums: Vec<(Arc<Labels>, Sum)>,
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
        self.scrape(ProcessReading::read()).text(exposition)
    }

    fn scrape(&self, process: ProcessReading) -> Scrape {
        let registry = self.registry.lock();
        let limits = Arc::clone(&self.readings.limits.lock());
        let expiry = self.readings.cert_expiry_unix_secs.load(Ordering::Relaxed);
        let now = i64::try_from(since_1970(self.clock.wall()).as_secs()).unwrap_or(i64::MAX);
        Scrape {
            sums: registry.sums(),
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
        let exemplars: Vec<_> = self.of(MetricFamily::Http).flat_map(|(_, sum)| sum.exemplars).collect();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode_registry(&mut text, &registry);
        match exposition {
            Exposition::Text => plain(&text),
            Exposition::OpenMetrics => with_exemplars(text, &exemplars) + "# EOF\n",
        }
    }

    fn of(&self, family: MetricFamily) -> impl Iterator<Item = &(Arc<Labels>, Sum)> {
        self.sums.iter().filter(move |(labels, _)| labels.family == family)
    }

    fn counters(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, unit, help): (&str, Option<Unit>, &str),
        family: MetricFamily,
        wanted: impl Fn(&Labels) -> bool,
        value: impl Fn(&Sum) -> u64,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, sum) in self.of(family).filter(|(labels, _)| wanted(labels)) {
            ConstCounter::new(value(sum)).encode(metric.encode_family(&**labels)?)?;
        }
        Ok(())
    }

    fn http(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = |_: &Labels| true;
        let family = MetricFamily::Http;
        self.counters(encoder, ("meshwright_requests", None, "HTTP requests that ended"), family, all, |sum| sum.count)?;
        self.durations(encoder)?;
        let name = ("meshwright_request", Some(Unit::Bytes), "Body bytes from downstream");
        self.counters(encoder, name, family, all, |sum| sum.request_bytes)?;
        let name = ("meshwright_response", Some(Unit::Bytes), "Body bytes towards downstream");
        self.counters(encoder, name, family, all, |sum| sum.response_bytes)
    }

    #[allow(clippy::cast_precision_loss, reason = "a sum of seconds")]
    fn durations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time from a request's head to the end of its answer";
        let mut metric = encoder.encode_descriptor("meshwright_request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, sum) in self.of(MetricFamily::Http) {
            let mut buckets = [(f64::INFINITY, 0); BUCKETS];
            for (n, (bound, count)) in buckets.iter_mut().enumerate() {
                *bound = BUCKET_BOUNDS_SECS.get(n).copied().unwrap_or(f64::INFINITY);
                *count = sum.buckets[n];
            }
            let count = sum.buckets.iter().sum();
            metric.encode_family(&**labels)?.encode_histogram::<NoLabelSet>(sum.nanos as f64 / 1e9, count, &buckets, None)?;
        }
        Ok(())
    }

    fn tcp(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let family = MetricFamily::Tcp;
        let plain = |labels: &Labels| labels.reason.is_none();
        let all = |_: &Labels| true;
        let opened = ("meshwright_tcp_connections_opened", None, "Opaque connections whose upstream was chosen");
        self.counters(encoder, opened, family, plain, |sum| sum.opened)?;
        let closed =
            ("meshwright_tcp_connections_closed", None, "Opaque connections that ended; reason says why where the mesh ended them");
        self.counters(encoder, closed, family, all, |sum| sum.count)?;
        let sent = ("meshwright_tcp_sent", Some(Unit::Bytes), "Bytes of opaque connections towards downstream");
        self.counters(encoder, sent, family, plain, |sum| sum.response_bytes)?;
        let received = ("meshwright_tcp_received", Some(Unit::Bytes), "Bytes of opaque connections from downstream");
        self.counters(encoder, received, family, plain, |sum| sum.request_bytes)
    }

    fn policy(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let retries = ("meshwright_retries", None, "Attempts that were made again; reason says why");
        self.counters(encoder, retries, MetricFamily::Retry, |_| true, |sum| sum.count)?;
        let hedges = ("meshwright_hedges", None, "Second attempts that were made beside a slow first one");
        self.counters(encoder, hedges, MetricFamily::Hedge, |_| true, |sum| sum.count)?;
        number(encoder, "meshwright_ejections", "Endpoints ejected from balancing", self.ejections)?;
        number(
            encoder,
            "meshwright_mirrors_dropped",
            "Copies of requests that were not made: too many were under way",
            self.mirrors_dropped,
        )?;
        let rulings =
            ("meshwright_policy_rulings", None, "What rules of authorization policies said: denied, would_deny (on trial), audited");
        self.counters(encoder, rulings, MetricFamily::Ruling, |_| true, |sum| sum.count)?;
        let help = "Conditions of authorization policies that could not be evaluated, which counts against the caller";
        number(encoder, "meshwright_policy_conditions_failed", help, self.conditions_failed)?;
        let help = "What came of asking who calls from outside the mesh: how it was proved, and the verdict";
        let mut metric = encoder.encode_descriptor("meshwright_auth", help, None, MetricType::Counter)?;
        for (kind, verdict, count) in &self.auth {
            ConstCounter::new(*count).encode(metric.encode_family(&[("kind", *kind), ("verdict", *verdict)])?)?;
        }
        let help = "Requests and connections that a rule refused";
        let mut metric = encoder.encode_descriptor("meshwright_policy_denied", help, None, MetricType::Counter)?;
        for (labels, sum) in self.sums.iter().filter(|(labels, _)| labels.family != MetricFamily::Retry && is_denial(labels)) {
            ConstCounter::new(sum.count).encode(metric.encode_family(&**labels)?)?;
        }
        Ok(())
    }

    fn limits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.leases_away.is_none() {
            return Ok(());
        }
        let help = "Requests at limits of edges; verdict says what became of them";
        let mut metric = encoder.encode_descriptor("meshwright_limit", help, None, MetricType::Counter)?;
        for LimitReading { limit, verdict, count } in &self.limits {
            let labels = [("limit", &**limit), ("verdict", verdict.text())];
            ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
        }
        if !self.limits_waiting.is_empty() {
            let help = "Requests that wait for a place of a limit on how many are under way";
            let mut metric = encoder.encode_descriptor("meshwright_limit_waiting", help, None, MetricType::Gauge)?;
            for (limit, waiting) in &self.limits_waiting {
                let waiting = i64::try_from(*waiting).unwrap_or(i64::MAX);
                ConstGauge::new(waiting).encode(metric.encode_family(&[("limit", &**limit)])?)?;
            }
        }
        let help = "Keys of limits that were forgotten for others: an object had as many as it may";
        number(encoder, "meshwright_limit_keys_evicted", help, self.limit_keys_evicted)?;
        let help = "Connections to stores of limits, and exchanges on them, that failed";
        let mut metric = encoder.encode_descriptor("meshwright_limit_store_failures", help, None, MetricType::Counter)?;
        for StoreReading { store, away: _, failures } in &self.stores {
            ConstCounter::new(*failures).encode(metric.encode_family(&[("store", store)])?)?;
        }
        Ok(())
    }

    fn callouts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if !self.callouts.is_empty() {
            let help = "Questions to services that policies ask; outcome says what came of them, or that a request went on without";
            let mut metric = encoder.encode_descriptor("meshwright_callouts", help, None, MetricType::Counter)?;
            for reading in &self.callouts {
                for (outcome, count) in CalloutOutcome::ALL.iter().zip(reading.counts).filter(|(_, count)| *count > 0) {
                    let labels = [("kind", reading.kind.text()), ("name", &*reading.name), ("outcome", outcome.text())];
                    ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
                }
            }
            let help = "Questions to services that policies ask, now under way";
            let mut metric = encoder.encode_descriptor("meshwright_callouts_under_way", help, None, MetricType::Gauge)?;
            for reading in &self.callouts {
                let under_way = i64::try_from(reading.under_way).unwrap_or(i64::MAX);
                let labels = [("kind", reading.kind.text()), ("name", &*reading.name)];
                ConstGauge::new(under_way).encode(metric.encode_family(&labels)?)?;
            }
        }
        self.degraded(encoder)
    }

    fn degraded(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let leases = self.leases_away.map(|away| ("RateLimit", "leases", away));
        let services = self.callouts.iter().map(|reading| (reading.kind.text(), &*reading.name, reading.away));
        let stores = self.stores.iter().map(|StoreReading { store, away, failures: _ }| ("RateLimit", store.as_str(), *away));
        let all: Vec<_> = leases.into_iter().chain(stores).chain(services).collect();
        if all.is_empty() {
            return Ok(());
        }
        let help = "Whether what a kind of objects relies on is away; each goes by what it says for that";
        let mut metric = encoder.encode_descriptor("meshwright_degraded", help, None, MetricType::Gauge)?;
        for (kind, name, away) in all {
            ConstGauge::new(i64::from(away)).encode(metric.encode_family(&[("kind", kind), ("name", name)])?)?;
        }
        Ok(())
    }

    fn own(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(secs) = self.cert_expiry_secs {
            gauge(
                encoder,
                ("meshwright_cert_expiry", Some(Unit::Seconds), "Time until the leaf expires; negative after"),
                &ConstGauge::new(secs),
            )?;
        }
        let epoch = i64::try_from(self.epoch).unwrap_or(i64::MAX);
        gauge(encoder, ("meshwright_config_epoch", None, "Number of the epoch in force"), &ConstGauge::new(epoch))?;
        number(encoder, "meshwright_config_rejected", "Resources refused; the last good version stays", self.rejected)?;
        number(
            encoder,
            "meshwright_jwks_fetches_failed",
            "Fetches of token issuers' keys that failed; the last good ones stay for a day",
            self.key_fetches_failed,
        )?;
        number(encoder, "meshwright_backend_lookups", "Questions for names outside the mesh that are backends", self.outside_lookups)?;
        number(
            encoder,
            "meshwright_backend_lookups_failed",
            "Those that nobody has answered in one family at least; the last addresses stay",
            self.outside_lookups_failed,
        )?;
        number(
            encoder,
            "meshwright_metric_series_overflow",
            "Records counted in an overflow series, for want of a series of their own",
            self.overflow,
        )?;
        number(encoder, "meshwright_spans_exported", "Spans that a collector took", self.spans_exported)?;
        let help = "Spans lost to a full queue or a failing collector";
        let mut dropped = encoder.encode_descriptor("meshwright_spans_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in &self.spans_dropped {
            ConstCounter::new(*count).encode(dropped.encode_family(&[("reason", *reason)])?)?;
        }
        let help = "Access log lines lost: by a sink that failed or fell behind, or by all where too many waited to be encoded";
        let mut dropped = encoder.encode_descriptor("meshwright_access_log_dropped", help, None, MetricType::Counter)?;
        for (sink, count) in &self.lines_dropped {
            ConstCounter::new(*count).encode(dropped.encode_family(&[("sink", *sink)])?)?;
        }
        let help = "Filters of the access log that came to nothing; their lines are written";
        number(encoder, "meshwright_access_log_filter_failed", help, self.log_filters_failed)
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let label = |direction: Direction| [("direction", direction.text())];
        let help = "Downstream connections now open";
        let mut metric = encoder.encode_descriptor("meshwright_connections", help, None, MetricType::Gauge)?;
        for (direction, open, _) in self.connections {
            ConstGauge::new(i64::try_from(open).unwrap_or(i64::MAX)).encode(metric.encode_family(&label(direction))?)?;
        }
        let help = "How often a worker had as many downstream connections as it may, and let further ones wait";
        let mut metric = encoder.encode_descriptor("meshwright_connections_full", help, None, MetricType::Counter)?;
        for (direction, _, full) in self.connections {
            ConstCounter::new(full).encode(metric.encode_family(&label(direction))?)?;
        }
        gauge(encoder, ("meshwright_http2_bodies", None, "Bodies now coming in over HTTP/2"), &ConstGauge::new(self.http2_bodies))?;
        let help = "HTTP/2 connections ended because too many of their frames asked for nothing";
        number(encoder, "meshwright_http2_floods", help, self.http2_floods)
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(secs) = self.process.cpu_secs {
            let metric = encoder.encode_descriptor("process_cpu", "User and system CPU time", Some(&Unit::Seconds), MetricType::Counter)?;
            ConstCounter::new(secs).encode(metric)?;
        }
        if let Some(bytes) = self.process.resident_bytes {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            gauge(encoder, ("process_resident_memory", Some(Unit::Bytes), "Resident memory"), &ConstGauge::new(bytes))?;
        }
        if let Some(fds) = self.process.open_fds {
            let fds = i64::try_from(fds).unwrap_or(i64::MAX);
            gauge(encoder, ("process_open_fds", None, "Open file descriptors"), &ConstGauge::new(fds))?;
        }
        let start = ("process_start_time", Some(Unit::Seconds), "Start of the process, seconds since 1970");
        gauge(encoder, start, &ConstGauge::new(self.started_secs))
    }
}

impl prometheus_client::collector::Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.http(&mut encoder)?;
        self.tcp(&mut encoder)?;
        self.policy(&mut encoder)?;
        self.limits(&mut encoder)?;
        self.callouts(&mut encoder)?;
        self.own(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.edge.encode(&mut encoder)?;
        self.process(&mut encoder)
    }
}

fn is_denial(labels: &Labels) -> bool {
    matches!(labels.reason, Some(Reason::Denied | Reason::Unauthenticated | Reason::RateLimited | Reason::PolicyUnavailable))
}

fn number(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, (name, unit, help): (&str, Option<Unit>, &str), value: &impl EncodeMetric) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    value.encode(metric)
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
