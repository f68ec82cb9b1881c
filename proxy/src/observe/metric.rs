//! Metrics as they are read at one moment, before anybody writes them down: what the text of a scrape and a request by OTLP are made from. Pure.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::model::MetricLabels;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::labels::{BUCKET_BOUNDS_SECS, Labels};
use super::series::{BUCKETS, Sum};

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// What it is a number of, where that is not just "how many".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricUnit {
    Seconds,
    Bytes,
}

/// Everything of one name.
#[derive(Debug)]
pub(super) struct Metric {
    /// Without unit and `_total`.
    pub(super) name: &'static str,
    pub(super) unit: Option<MetricUnit>,
    pub(super) help: &'static str,
    pub(super) kind: MetricKind,
    pub(super) points: Vec<Point>,
}

/// One number.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) labels: PointLabels,
    pub(super) reading: Reading,
    /// Since when it has been counted, if not since the proxy's start.
    pub(super) begun: Option<SystemTime>,
}

/// What tells it from others of its name.
#[derive(Debug)]
pub(super) enum PointLabels {
    Pairs(Vec<(&'static str, String)>),
    /// Of traffic, and which of them are told.
    Traffic(Arc<Labels>, MetricLabels),
}

/// A number, or more of them.
#[derive(Debug)]
pub(super) enum Reading {
    Count(u64),
    CountReal(f64),
    Gauge(i64),
    GaugeReal(f64),
    Durations(Box<Sum>),
    /// Bounds (the last is infinite) with how many were counted below each and above the one before, and the sum of all.
    Buckets(Vec<(f64, u64)>, f64),
}

impl Metric {
    pub(super) const fn new(name: &'static str, unit: Option<MetricUnit>, help: &'static str, kind: MetricKind) -> Self {
        Self { name, unit, help, kind, points: Vec::new() }
    }

    /// One counter without labels.
    pub(super) fn number(name: &'static str, help: &'static str, count: u64) -> Self {
        Self::new(name, None, help, MetricKind::Counter).with(Vec::new(), Reading::Count(count))
    }

    /// One gauge without labels.
    pub(super) fn gauge(name: &'static str, unit: Option<MetricUnit>, help: &'static str, reading: Reading) -> Self {
        Self::new(name, unit, help, MetricKind::Gauge).with(Vec::new(), reading)
    }

    /// With one more number.
    pub(super) fn with(mut self, labels: Vec<(&'static str, String)>, reading: Reading) -> Self {
        self.points.push(Point { labels: PointLabels::Pairs(labels), reading, begun: None });
        self
    }
}

/// A gauge of what cannot be below zero.
pub(super) fn level(value: u64) -> Reading {
    Reading::Gauge(i64::try_from(value).unwrap_or(i64::MAX))
}

impl PointLabels {
    /// Calls `tell` with each name and value.
    pub(super) fn each<E>(&self, mut tell: impl FnMut(&'static str, &str) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Pairs(pairs) => pairs.iter().try_for_each(|(name, value)| tell(name, value)),
            Self::Traffic(labels, selected) => labels.each(*selected, tell),
        }
    }

    fn are_none(&self) -> bool {
        matches!(self, Self::Pairs(pairs) if pairs.is_empty())
    }
}

impl EncodeLabelSet for PointLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.each(|name, value| (name, value).encode(encoder.encode_label()))
    }
}

/// All of them, for the library that writes the text.
#[derive(Debug)]
pub(super) struct MetricSet(pub(super) Vec<Metric>);

impl Collector for MetricSet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, unit, help, kind, points } in &self.0 {
            let kind = match kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
                MetricKind::Histogram => MetricType::Histogram,
            };
            let unit = unit.map(|unit| match unit {
                MetricUnit::Seconds => Unit::Seconds,
                MetricUnit::Bytes => Unit::Bytes,
            });
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            match &points[..] {
                [Point { labels, reading, .. }] if labels.are_none() => encode(reading, metric)?,
                points => points.iter().try_for_each(|Point { labels, reading, .. }| encode(reading, metric.encode_family(labels)?))?,
            }
        }
        Ok(())
    }
}

fn encode(reading: &Reading, mut metric: MetricEncoder<'_>) -> fmt::Result {
    match reading {
        Reading::Count(count) => ConstCounter::new(*count).encode(metric),
        Reading::CountReal(count) => ConstCounter::new(*count).encode(metric),
        Reading::Gauge(value) => ConstGauge::new(*value).encode(metric),
        Reading::GaugeReal(value) => ConstGauge::new(*value).encode(metric),
        Reading::Durations(sum) => {
            let mut buckets = [(f64::INFINITY, 0); BUCKETS];
            for (n, (bound, count)) in buckets.iter_mut().enumerate() {
                *bound = BUCKET_BOUNDS_SECS.get(n).copied().unwrap_or(f64::INFINITY);
                *count = sum.buckets[n];
            }
            metric.encode_histogram::<NoLabelSet>(secs(sum.nanos), sum.buckets.iter().sum(), &buckets, None)
        }
        Reading::Buckets(buckets, sum) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

/// Nanoseconds as seconds.
pub(super) const fn secs(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}
