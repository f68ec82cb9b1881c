//! A finished exchange as a log record of OTLP: its line as the body, its fields as attributes, by the names of OpenTelemetry's semantic
//! conventions where those have one.

use engine::failure::Blame;
use engine::model::LogField;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use prost::encoding::message;

use super::super::finished::{Finished, LogValue};
use super::super::span::host_and_port;

/// Field of `ScopeLogs` that holds one record.
const LOG_RECORDS: u32 = 2;
const EVENT_NAME: &str = "meshwright.access";
/// `LogRecordFlags`: the trace is sampled.
const SAMPLED: u32 = 1;
/// Lowest status that is the server's fault, and the client's.
const SERVER_ERRORS: u16 = 500;
const CLIENT_ERRORS: u16 = 400;

/// Adds a record, as a field of `ScopeLogs`.
pub(super) fn push(out: &mut Vec<u8>, told: &Finished<'_>, line: &str) {
    let record = told.record;
    let nanos = u64::try_from(record.duration.as_nanos()).unwrap_or(u64::MAX);
    let severity = severity(told);
    let sampled = told.told_context();
    let record = LogRecord {
        time_unix_nano: record.started_nanos,
        observed_time_unix_nano: record.started_nanos.saturating_add(nanos),
        severity_number: severity.into(),
        severity_text: severity.as_str_name().trim_start_matches("SEVERITY_NUMBER_").to_owned(),
        body: Some(any(Value::StringValue(line.to_owned()))),
        attributes: attributes(told),
        flags: sampled.map_or(0, |_| SAMPLED),
        trace_id: record.context.map(|context| context.trace_id.to_be_bytes().to_vec()).unwrap_or_default(),
        span_id: sampled.map(|context| context.span_id.to_be_bytes().to_vec()).unwrap_or_default(),
        event_name: EVENT_NAME.to_owned(),
        ..LogRecord::default()
    };
    message::encode(LOG_RECORDS, &record, out);
}

/// What the mesh or a server did wrong is an error, what a client did or a policy forbade a warning.
fn severity(told: &Finished<'_>) -> SeverityNumber {
    let code = told.record.code;
    match told.record.blame {
        Some(Blame::Client | Blame::Policy) => SeverityNumber::Warn,
        Some(_) => SeverityNumber::Error,
        None if code >= SERVER_ERRORS => SeverityNumber::Error,
        None if code >= CLIENT_ERRORS => SeverityNumber::Warn,
        None => SeverityNumber::Info,
    }
}

fn attributes(told: &Finished<'_>) -> Vec<KeyValue> {
    let mut all = Vec::with_capacity(LogField::ALL.len());
    let mut put = |key: &str, value: Value| all.push(KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() });
    for (name, field) in LogField::ALL {
        let said = told.said(*field);
        match (field, said) {
            // The record says these by itself, and of the path there are two.
            (LogField::Time | LogField::LocalTime | LogField::TraceId | LogField::SpanId, _)
            | (_, LogValue::Nothing | LogValue::Retries([])) => {}
            (LogField::Path, LogValue::Text(target)) => {
                let (path, query) = target.split_once('?').unwrap_or((&target, ""));
                put("url.path", Value::StringValue(path.to_owned()));
                if !query.is_empty() {
                    put("url.query", Value::StringValue(query.to_owned()));
                }
            }
            (LogField::Host, LogValue::Text(host)) => {
                let (name, port) = host_and_port(&host);
                put("server.address", Value::StringValue(name.to_owned()));
                if let Some(port) = port {
                    put("server.port", Value::IntValue(port.into()));
                }
            }
            (LogField::Protocol, LogValue::Text(protocol)) => {
                let (name, version) = protocol.split_once('/').unwrap_or((&protocol, ""));
                put("network.protocol.name", Value::StringValue(name.to_ascii_lowercase()));
                if !version.is_empty() {
                    put("network.protocol.version", Value::StringValue(version.to_owned()));
                }
            }
            (LogField::SourceAddress | LogField::DestinationAddress, LogValue::Address(address)) => {
                let side = if *field == LogField::SourceAddress { "source" } else { "destination" };
                put(&format!("{side}.address"), Value::StringValue(address.ip().to_string()));
                put(&format!("{side}.port"), Value::IntValue(address.port().into()));
            }
            (_, said) => {
                let value = value(said);
                match semantic(*field) {
                    Some(key) => put(key, value),
                    None => put(&format!("meshwright.{name}"), value),
                }
            }
        }
    }
    if let Some(reason) = told.record.reason {
        put("error.type", Value::StringValue(reason.text().to_owned()));
    }
    all
}

/// The convention's name for a field.
const fn semantic(field: LogField) -> Option<&'static str> {
    Some(match field {
        LogField::Method => "http.request.method",
        LogField::Scheme => "url.scheme",
        LogField::Status => "http.response.status_code",
        LogField::RequestBytes => "http.request.body.size",
        LogField::ResponseBytes => "http.response.body.size",
        LogField::UserAgent => "user_agent.original",
        LogField::ClientAddress => "client.address",
        _ => return None,
    })
}

fn value(said: LogValue<'_>) -> Value {
    match said {
        LogValue::Whole(number) => Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)),
        LogValue::Time(time) => Value::DoubleValue(time.as_secs_f64() * 1000.0),
        other => Value::StringValue(other.into_text()),
    }
}

const fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}
