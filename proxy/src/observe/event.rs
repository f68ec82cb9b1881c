//! What happened to an exchange on its way, with its time: events of spans (opentelemetry-proto, `Span.Event`).

use std::net::SocketAddr;
use std::time::Duration;

use engine::failure::Reason;

use super::wire::{bytes, field_length, fixed64, prefix, varint_field, varint_length};

/// Events of one exchange that are listed; further ones are only counted.
pub(super) const EVENTS_LISTED_MAX: usize = 48;

/// Field of `Span` that holds one event; those of `Event`; those of `KeyValue` and `AnyValue`.
const EVENTS: u32 = 11;
const TIME: u32 = 1;
const NAME: u32 = 2;
const ATTRIBUTES: u32 = 3;
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STRING: u32 = 1;
const INT: u32 = 3;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    /// An attempt began, on an endpoint or on the application itself.
    Attempt,
    /// An attempt failed, and another one is made.
    Retry,
    /// A second attempt began beside one under way.
    Hedge,
    /// The second attempt is the one whose answer counts.
    Overtaken,
    /// Something was done to it on purpose.
    Fault,
    /// A policy denied it.
    Denied,
    /// One would have denied it, were it not on trial.
    WouldDeny,
    /// A limit refused it.
    Limited,
}

impl EventKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Attempt => "meshwright.attempt",
            Self::Retry => "meshwright.retry",
            Self::Hedge => "meshwright.hedge",
            Self::Overtaken => "meshwright.overtaken",
            Self::Fault => "meshwright.fault",
            Self::Denied => "meshwright.denied",
            Self::WouldDeny => "meshwright.would_deny",
            Self::Limited => "meshwright.limited",
        }
    }

    /// What its text is, where it has one.
    const fn detail(self) -> &'static str {
        match self {
            Self::Fault => "meshwright.fault",
            Self::Limited => "meshwright.limit",
            _ => "meshwright.policy",
        }
    }
}

/// One event. Its text, if it has one, is among the words of its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanEvent {
    pub(super) kind: EventKind,
    /// Since the exchange began.
    pub(super) after: Duration,
    /// Whom it was about.
    pub(super) address: Option<SocketAddr>,
    /// Why.
    pub(super) reason: Option<Reason>,
}

impl SpanEvent {
    /// Adds it to `out`, as a field of `Span`; `one` is room. `number`: of attempts. `text`: which fault, policy or limit.
    pub(super) fn write(&self, (out, one): (&mut Vec<u8>, &mut Vec<u8>), started_nanos: u64, number: u64, (text, address): (&str, &str)) {
        one.clear();
        let after = u64::try_from(self.after.as_nanos()).unwrap_or(u64::MAX);
        fixed64(one, TIME, started_nanos.saturating_add(after));
        bytes(one, NAME, self.kind.name().as_bytes());
        if self.kind == EventKind::Attempt {
            int(one, "meshwright.attempt", number);
        }
        if let Some(peer) = self.address {
            string(one, "network.peer.address", address);
            int(one, "network.peer.port", u64::from(peer.port()));
        }
        if let Some(reason) = self.reason {
            string(one, "meshwright.reason", reason.text());
        }
        if !text.is_empty() {
            string(one, self.kind.detail(), text);
        }
        bytes(out, EVENTS, one);
    }
}

/// An attribute up to its value of so many bytes.
fn attribute(out: &mut Vec<u8>, key: &str, value: usize) {
    prefix(out, ATTRIBUTES, field_length(KEY, key.len()) + field_length(VALUE, value));
    bytes(out, KEY, key.as_bytes());
    prefix(out, VALUE, value);
}

fn string(out: &mut Vec<u8>, key: &str, value: &str) {
    attribute(out, key, field_length(STRING, value.len()));
    bytes(out, STRING, value.as_bytes());
}

fn int(out: &mut Vec<u8>, key: &str, value: u64) {
    attribute(out, key, 1 + varint_length(value));
    varint_field(out, INT, value);
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::{Span, span};
    use prost::Message;

    use super::*;

    /// Aim: an event is byte for byte what the generated code writes.
    #[test]
    fn events_are_written_as_by_prost() {
        let attribute =
            |key: &str, value| KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() };
        let text = |text: &str| Value::StringValue(text.into());
        let peer = "10.0.0.1:8080".parse().ok();
        for (event, said, attributes) in [
            (
                SpanEvent { kind: EventKind::Attempt, after: Duration::from_nanos(5), address: peer, reason: None },
                "",
                vec![
                    attribute("meshwright.attempt", Value::IntValue(300)),
                    attribute("network.peer.address", text("10.0.0.1")),
                    attribute("network.peer.port", Value::IntValue(8080)),
                ],
            ),
            (
                SpanEvent { kind: EventKind::Denied, after: Duration::from_nanos(5), address: None, reason: Some(Reason::Denied) },
                "shop/no",
                vec![attribute("meshwright.reason", text("denied")), attribute("meshwright.policy", text("shop/no"))],
            ),
        ] {
            let name = event.kind.name().to_owned();
            let wanted = span::Event { time_unix_nano: 12, name, attributes, dropped_attributes_count: 0 };
            let mut out = Vec::new();
            event.write((&mut out, &mut Vec::new()), 7, 300, (said, "10.0.0.1"));
            assert_eq!(out, Span { events: vec![wanted], ..Span::default() }.encode_to_vec());
        }
    }
}
