//! Metrics as OTLP has them (opentelemetry-proto 1.x, `metrics/v1/metrics.proto`): sums are cumulative, each since its own beginning, and durations of
//! requests are exponential histograms. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint,
    Metric as OtlpMetric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::metric::{Metric, MetricKind, MetricUnit, Point, PointLabels, Reading, secs};
use super::series;
use super::span::scope;

/// Numbers in one request: some 400 KiB. A collector takes 4 MiB by default.
pub(super) const POINTS_MAX: usize = 1000;

/// When numbers were read, and from when on they were counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) started: SystemTime,
    pub(super) now: SystemTime,
    /// The read before this one: exemplars that it has told are not told again.
    pub(super) before: SystemTime,
}

/// The families in parts of at most [`POINTS_MAX`] numbers each.
pub(super) fn shares(families: &[Metric]) -> Vec<Vec<(&Metric, &[Point])>> {
    let (mut all, mut share, mut room) = (Vec::new(), Vec::new(), POINTS_MAX);
    for family in families {
        let mut points = &family.points[..];
        while !points.is_empty() {
            let (these, others) = points.split_at(room.min(points.len()));
            share.push((family, these));
            (points, room) = (others, room - these.len());
            if room == 0 {
                all.push(std::mem::take(&mut share));
                room = POINTS_MAX;
            }
        }
    }
    if !share.is_empty() {
        all.push(share);
    }
    all
}

/// One request, and how many numbers are in it.
pub(super) fn request(share: &[(&Metric, &[Point])], resource: Resource, window: Window) -> (ExportMetricsServiceRequest, u64) {
    let metrics: Vec<OtlpMetric> = share.iter().filter_map(|(family, points)| metric(family, points, window)).collect();
    let count = share.iter().map(|(_, points)| points.len() as u64).sum();
    let scope = Some(InstrumentationScope::from((scope(), None)));
    let scope_metrics = vec![ScopeMetrics { scope, metrics, schema_url: String::new() }];
    let resource_metrics = vec![ResourceMetrics { resource: Some(resource), scope_metrics, schema_url: String::new() }];
    (ExportMetricsServiceRequest { resource_metrics }, count)
}

fn metric(family: &Metric, points: &[Point], window: Window) -> Option<OtlpMetric> {
    let temporality = AggregationTemporality::Cumulative.into();
    let durations = points.iter().any(|point| matches!(point.reading, Reading::Durations(_)));
    let data = match family.kind {
        MetricKind::Counter => {
            let data_points = points.iter().filter_map(|point| number(point, window)).collect();
            Data::Sum(Sum { data_points, aggregation_temporality: temporality, is_monotonic: true })
        }
        MetricKind::Gauge => Data::Gauge(Gauge { data_points: points.iter().filter_map(|point| number(point, window)).collect() }),
        MetricKind::Histogram if durations => {
            let data_points = points.iter().filter_map(|point| exponential(point, window)).collect();
            Data::ExponentialHistogram(ExponentialHistogram { data_points, aggregation_temporality: temporality })
        }
        MetricKind::Histogram => {
            let data_points = points.iter().filter_map(|point| explicit(point, window)).collect();
            Data::Histogram(Histogram { data_points, aggregation_temporality: temporality })
        }
    };
    let unit = match family.unit {
        Some(MetricUnit::Seconds) => "s",
        Some(MetricUnit::Bytes) => "By",
        None => "",
    };
    Some(OtlpMetric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        unit: unit.to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    })
}

fn nanos(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Labels without a value say nothing.
fn attributes(labels: &PointLabels) -> Vec<KeyValue> {
    let mut all = Vec::new();
    // What does not fail here cannot.
    let _ = labels.each(|name, value| {
        if !value.is_empty() {
            let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
            all.push(KeyValue { key: name.to_owned(), value, ..KeyValue::default() });
        }
        Ok::<(), std::convert::Infallible>(())
    });
    all
}

fn number(point: &Point, window: Window) -> Option<NumberDataPoint> {
    let whole = |count: u64| number_data_point::Value::AsInt(i64::try_from(count).unwrap_or(i64::MAX));
    let (value, counted) = match point.reading {
        Reading::Count(count) => (whole(count), true),
        Reading::CountReal(count) => (number_data_point::Value::AsDouble(count), true),
        Reading::Gauge(value) => (number_data_point::Value::AsInt(value), false),
        Reading::GaugeReal(value) => (number_data_point::Value::AsDouble(value), false),
        Reading::Durations(_) | Reading::Buckets(..) => return None,
    };
    Some(NumberDataPoint {
        attributes: attributes(&point.labels),
        start_time_unix_nano: if counted { nanos(point.begun.unwrap_or(window.started)) } else { 0 },
        time_unix_nano: nanos(window.now),
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

/// `None`: nothing was counted since somebody wants to know it this way.
fn exponential(point: &Point, window: Window) -> Option<ExponentialHistogramDataPoint> {
    let Reading::Durations(sum) = &point.reading else { return None };
    let sketch = sum.sketch.as_deref()?;
    let new = |exemplar: &&series::Exemplar| exemplar.at > window.before;
    let exemplars = sum.exemplars.iter().flatten().filter(new).map(|exemplar| Exemplar {
        time_unix_nano: nanos(exemplar.at),
        span_id: exemplar.span_id.to_be_bytes().to_vec(),
        trace_id: exemplar.trace_id.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.duration.as_secs_f64())),
        ..Exemplar::default()
    });
    Some(ExponentialHistogramDataPoint {
        attributes: attributes(&point.labels),
        start_time_unix_nano: nanos(sketch.begun),
        time_unix_nano: nanos(window.now),
        count: sketch.count(),
        sum: Some(secs(sketch.nanos)),
        scale: sketch.scale,
        zero_count: sketch.zeroes,
        positive: Some(Buckets { offset: sketch.offset, bucket_counts: sketch.buckets.clone() }),
        exemplars: exemplars.collect(),
        ..ExponentialHistogramDataPoint::default()
    })
}

fn explicit(point: &Point, window: Window) -> Option<HistogramDataPoint> {
    let Reading::Buckets(buckets, sum) = &point.reading else { return None };
    Some(HistogramDataPoint {
        attributes: attributes(&point.labels),
        start_time_unix_nano: nanos(point.begun.unwrap_or(window.started)),
        time_unix_nano: nanos(window.now),
        count: buckets.iter().map(|(_, count)| count).sum(),
        sum: Some(*sum),
        bucket_counts: buckets.iter().map(|(_, count)| *count).collect(),
        explicit_bounds: buckets.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite()).collect(),
        ..HistogramDataPoint::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: shares hold every number once, in order, and none holds too many.
    #[test]
    fn shares_are_bounded() {
        let family = |count: usize| {
            let family = Metric::new("x", None, "", MetricKind::Counter);
            (0..count).fold(family, |family, n| family.with(Vec::new(), Reading::Count(n as u64)))
        };
        for (counts, wanted) in
            [(vec![], vec![]), (vec![3, 0, 4], vec![7]), (vec![1000], vec![1000]), (vec![999, 2, 2500], vec![1000, 1000, 1000, 501])]
        {
            let families: Vec<_> = counts.into_iter().map(family).collect();
            let shares = shares(&families);
            let sizes: Vec<usize> = shares.iter().map(|share| share.iter().map(|(_, points)| points.len()).sum()).collect();
            assert_eq!(sizes, wanted);
        }
    }
}
