//! What the spans of an epoch say. Pure, but for the tracer that is told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, Span as _, SpanContext, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use crate::publish::epoch::{Cause, Entry};

/// Objects, refusals and late proxies that one span names; of more, their number is told.
const NAMED_MAX: usize = 32;

fn at(us: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(us)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn texts(texts: impl Iterator<Item = String>) -> Value {
    Value::Array(Array::String(texts.take(NAMED_MAX).map(StringValue::from).collect()))
}

/// The change that an epoch stands for: from when it was taken up to when it was published. Returns what its push is linked to.
pub(super) fn change(tracer: &SdkTracer, entry: &Entry, cause: &Cause) -> SpanContext {
    let objects = entry.objects.iter().map(|object| match object.namespace.as_str() {
        "" => format!("{} {} {}", object.kind, object.name, object.result),
        namespace => format!("{} {namespace}/{} {}", object.kind, object.name, object.result),
    });
    let attributes = [
        KeyValue::new("meshwright.epoch", i64::try_from(entry.number).unwrap_or(i64::MAX)),
        KeyValue::new("meshwright.change.from", cause.from),
        KeyValue::new("meshwright.change.objects", texts(objects)),
        KeyValue::new("meshwright.change.object_count", count(entry.objects.len())),
    ];
    let began = at(cause.began_us.min(entry.accepted_us));
    let builder = tracer.span_builder("change").with_start_time(began).with_attributes(attributes);
    let mut span = tracer.build_with_context(builder, &Context::new());
    span.end_with_timestamp(at(entry.accepted_us));
    span.span_context().clone()
}

/// How an epoch came to the proxies: from when it was published to the last answer, or until `given_up_us`.
pub(super) fn push(tracer: &SdkTracer, entry: &Entry, change: &SpanContext, given_up_us: u64) {
    let late: Vec<String> = entry.waiting().take(NAMED_MAX).cloned().collect();
    let mut attributes = vec![
        KeyValue::new("meshwright.epoch", i64::try_from(entry.number).unwrap_or(i64::MAX)),
        KeyValue::new("meshwright.live", entry.live()),
        KeyValue::new("meshwright.proxies.concerned", count(entry.concerned)),
        KeyValue::new("meshwright.proxies.acknowledged", count(entry.acknowledged)),
        KeyValue::new("meshwright.proxies.unaffected", count(entry.unaffected)),
        KeyValue::new("meshwright.proxies.late_count", count(entry.waiting().len())),
    ];
    if !late.is_empty() {
        attributes.push(KeyValue::new("meshwright.proxies.late", texts(late.into_iter())));
    }
    let ended = at(entry.live_ms.map_or(given_up_us, |ms| entry.accepted_us + (ms * 1000.0) as u64));
    let refusal = |refused: &crate::publish::epoch::ProxyRefusal| {
        let about = [("meshwright.proxy", &refused.proxy), ("meshwright.object", &refused.object), ("meshwright.reason", &refused.reason)];
        let about = about.into_iter().map(|(name, value)| KeyValue::new(name, value.clone())).collect();
        Event::new("refused", ended, about, 0)
    };
    let events = entry.refused.iter().take(NAMED_MAX).map(refusal).collect();
    let status = match (entry.refused.first(), entry.settled()) {
        (Some(refused), _) => Status::error(format!("{} refuses {}", refused.proxy, refused.object)),
        (None, false) => Status::error(format!("{} proxies have not answered", entry.waiting().len())),
        (None, true) => Status::Unset,
    };
    let builder = tracer
        .span_builder("push")
        .with_start_time(at(entry.accepted_us))
        .with_attributes(attributes)
        .with_events(events)
        .with_links(vec![Link::new(change.clone(), Vec::new(), 0)]);
    let mut span = tracer.build_with_context(builder, &Context::new().with_remote_span_context(change.clone()));
    span.set_status(status);
    span.end_with_timestamp(ended);
}
