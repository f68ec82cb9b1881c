//! Protobuf's wire format, as much of it as spans need (protobuf.dev, "Encoding"). Pure.

/// Wire types.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// Field of `Span` that holds one attribute; those of `KeyValue`; those of `AnyValue`.
const ATTRIBUTES: u32 = 9;
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STRING: u32 = 1;
const BOOL: u32 = 2;
const INT: u32 = 3;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that a varint takes.
pub(super) const fn varint_length(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Bytes that a field with a length takes.
pub(super) const fn field_length(field: u32, length: usize) -> usize {
    varint_length((field << 3) as u64) + varint_length(length as u64) + length
}

/// Begins a field of so many bytes.
pub(super) fn prefix(out: &mut Vec<u8>, field: u32, length: usize) {
    varint(out, u64::from(field << 3 | LENGTH));
    varint(out, length as u64);
}

/// Bytes, a text, or a message.
pub(super) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    prefix(out, field, value.len());
    out.extend_from_slice(value);
}

/// A number or an enumeration's value.
pub(super) fn varint_field(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3 | VARINT));
    varint(out, value);
}

/// Eight bytes.
pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3 | FIXED64));
    out.extend_from_slice(&value.to_le_bytes());
}

/// Four bytes.
pub(super) fn fixed32(out: &mut Vec<u8>, field: u32, value: u32) {
    varint(out, u64::from(field << 3 | FIXED32));
    out.extend_from_slice(&value.to_le_bytes());
}

/// An attribute up to its value of so many bytes.
fn attribute(out: &mut Vec<u8>, key: &str, value: usize) {
    prefix(out, ATTRIBUTES, field_length(KEY, key.len()) + field_length(VALUE, value));
    bytes(out, KEY, key.as_bytes());
    prefix(out, VALUE, value);
}

/// An attribute of a span.
pub(super) fn text_attribute(out: &mut Vec<u8>, key: &str, value: &str) {
    attribute(out, key, field_length(STRING, value.len()));
    bytes(out, STRING, value.as_bytes());
}

/// The same with a number; one beyond what OTLP knows is the highest it knows.
pub(super) fn int_attribute(out: &mut Vec<u8>, key: &str, value: u64) {
    let value = value.min(i64::MAX as u64);
    attribute(out, key, 1 + varint_length(value));
    varint_field(out, INT, value);
}

/// The same with yes or no.
pub(super) fn true_or_false_attribute(out: &mut Vec<u8>, key: &str, value: bool) {
    attribute(out, key, 2);
    varint_field(out, BOOL, u64::from(value));
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::Span;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        /// Aim: what is written by hand is byte for byte what the generated code writes.
        #[test]
        fn spans_are_written_as_by_prost(
            id in proptest::collection::vec(any::<u8>(), 1..200), start in 1_u64.., flags in 1_u32.., kind in 1..6,
            key in "[a-z.]{1,200}", text: String, number: u64, yes: bool,
        ) {
            let value = |value| Some(AnyValue { value: Some(value) });
            let number = number.min(i64::MAX as u64);
            let values = [Value::StringValue(text.clone()), Value::IntValue(number.cast_signed()), Value::BoolValue(yes)];
            let attributes = values.map(|v| KeyValue { key: key.clone(), value: value(v), ..KeyValue::default() }).to_vec();
            let span = Span { trace_id: id.clone(), kind, start_time_unix_nano: start, attributes, flags, ..Span::default() };
            let mut out = Vec::new();
            bytes(&mut out, 1, &id);
            varint_field(&mut out, 6, u64::from(kind.unsigned_abs()));
            fixed64(&mut out, 7, start);
            text_attribute(&mut out, &key, &text);
            int_attribute(&mut out, &key, number);
            true_or_false_attribute(&mut out, &key, yes);
            fixed32(&mut out, 16, flags);
            prop_assert_eq!(out, span.encode_to_vec());
        }

        /// Aim: lengths are told before what they measure is written.
        #[test]
        fn lengths_are_foretold(field in 1_u32..2000, length in 0_usize..70_000, value: u64) {
            let mut out = Vec::new();
            bytes(&mut out, field, &vec![0; length]);
            prop_assert_eq!(out.len(), field_length(field, length));
            out.clear();
            varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_length(value));
        }
    }
}
