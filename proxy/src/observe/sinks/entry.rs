//! A finished exchange as an entry of Envoy's access log service (`envoy.data.accesslog.v3`). What that knows no field for is told by name in
//! `custom_tags`, as our own lines name it.

use std::net::SocketAddr;
use std::time::Duration;

use engine::failure::Reason;
use engine::model::LogField;
use http::Version;
use prost::encoding::message;
use proto::xds::core::socket_address::PortSpecifier;
use proto::xds::core::{Address, RequestMethod, SocketAddress, address};
use proto::xds::exchange::http_access_log_entry::HttpVersion;
use proto::xds::exchange::response_flags::{Unauthorized, unauthorized};
use proto::xds::exchange::tls_properties::certificate_properties::{SubjectAltName, subject_alt_name};
use proto::xds::exchange::tls_properties::{CertificateProperties, TlsVersion};
use proto::xds::exchange::{
    AccessLogCommon, AccessLogType, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties, HttpResponseProperties, ResponseFlags,
    TcpAccessLogEntry, TlsProperties,
};

use super::super::finished::{Finished, LogValue};
use super::super::labels::{CODE_NONE, Direction};

/// Field of either kind of entries that holds one.
const LOG_ENTRY: u32 = 1;
const NANOS_PER_SEC: u64 = 1_000_000_000;
/// What is told by name.
const TAGS: [LogField; 28] = [
    LogField::Direction,
    LogField::Epoch,
    LogField::TraceId,
    LogField::SpanId,
    LogField::GrpcStatus,
    LogField::Reason,
    LogField::Blame,
    LogField::SourceNamespace,
    LogField::SourceWorkload,
    LogField::SourceIdentity,
    LogField::DestinationNamespace,
    LogField::DestinationService,
    LogField::DestinationWorkload,
    LogField::DestinationIdentity,
    LogField::TlsVersion,
    LogField::TlsCipher,
    LogField::TlsGroup,
    LogField::UpstreamMs,
    LogField::Retries,
    LogField::Fault,
    LogField::Consumer,
    LogField::AuthMethod,
    LogField::Credential,
    LogField::Policy,
    LogField::WouldDeny,
    LogField::Audited,
    LogField::Limit,
    LogField::Partial,
];

/// Adds a request, as a field of `HTTPAccessLogEntries`.
pub(super) fn push_request(out: &mut Vec<u8>, told: &Finished<'_>, version: Version) {
    let text = |field| told.said(field).into_text();
    let record = told.record;
    let protocol = match version {
        Version::HTTP_10 => HttpVersion::Http10,
        Version::HTTP_2 => HttpVersion::Http2,
        Version::HTTP_3 => HttpVersion::Http3,
        _ => HttpVersion::Http11,
    };
    let request = HttpRequestProperties {
        request_method: RequestMethod::from_str_name(&text(LogField::Method)).unwrap_or_default().into(),
        scheme: text(LogField::Scheme),
        authority: text(LogField::Host),
        path: text(LogField::Path),
        user_agent: text(LogField::UserAgent),
        referer: text(LogField::Referer),
        request_id: text(LogField::RequestId),
        request_body_bytes: record.request_bytes,
    };
    let response = HttpResponseProperties {
        response_code: (record.code != CODE_NONE).then(|| record.code.into()),
        response_body_bytes: record.response_bytes,
        response_code_details: record.reason.map_or("via_upstream", Reason::text).to_owned(),
    };
    let entry = HttpAccessLogEntry {
        common_properties: Some(common(told, AccessLogType::DownstreamEnd)),
        protocol_version: protocol.into(),
        request: Some(request),
        response: Some(response),
    };
    message::encode(LOG_ENTRY, &entry, out);
}

/// Adds an opaque connection, as a field of `TCPAccessLogEntries`.
pub(super) fn push_connection(out: &mut Vec<u8>, told: &Finished<'_>) {
    let properties = ConnectionProperties { received_bytes: told.record.request_bytes, sent_bytes: told.record.response_bytes };
    let entry = TcpAccessLogEntry {
        common_properties: Some(common(told, AccessLogType::TcpConnectionEnd)),
        connection_properties: Some(properties),
    };
    message::encode(LOG_ENTRY, &entry, out);
}

fn common(told: &Finished<'_>, kind: AccessLogType) -> AccessLogCommon {
    let (record, shape) = (told.record, told.shape);
    let client = record.client.map_or(record.downstream, |client| SocketAddr::new(client, 0));
    let duration = prost_types::Duration::try_from(record.duration).ok();
    let route = shape.rule.as_ref().map(|rule| &rule.source);
    let tagged = |field: &LogField| {
        let (name, _) = LogField::ALL.iter().find(|(_, known)| known == field)?;
        match told.said(*field) {
            LogValue::Nothing | LogValue::Retries([]) => None,
            said => Some(((*name).to_owned(), said.into_text())),
        }
    };
    AccessLogCommon {
        sample_rate: told.share(),
        downstream_remote_address: Some(socket(client)),
        downstream_direct_remote_address: Some(socket(record.downstream)),
        downstream_local_address: Some(socket(record.local)),
        tls_properties: (shape.mtls && shape.direction == Direction::Inbound).then(|| tls(told)),
        start_time: Some(moment(record.started_nanos)),
        time_to_last_downstream_tx_byte: duration,
        upstream_remote_address: shape.destination().address.map(socket),
        upstream_cluster: shape.cluster_name().to_owned(),
        response_flags: record.reason.map(flags),
        route_name: route.map_or(String::new(), |of| format!("{}/{}/{}/{}", of.kind, of.namespace, of.name, of.rule)),
        custom_tags: TAGS.iter().filter_map(tagged).collect(),
        duration,
        upstream_request_attempt_count: record.attempts,
        access_log_type: kind.into(),
    }
}

/// Who proved themselves to one another.
fn tls(told: &Finished<'_>) -> TlsProperties {
    let certificate = |field| {
        let san = subject_alt_name::San::Uri(told.said(field).into_text());
        Some(CertificateProperties { subject_alt_name: vec![SubjectAltName { san: Some(san) }] })
    };
    let version = match told.shape.tls.as_ref().map(|tls| tls.version) {
        Some("TLSv1.3") => TlsVersion::TlSv13,
        Some("TLSv1.2") => TlsVersion::TlSv12,
        _ => TlsVersion::VersionUnspecified,
    };
    TlsProperties {
        tls_version: version.into(),
        local_certificate_properties: certificate(LogField::DestinationIdentity),
        peer_certificate_properties: certificate(LogField::SourceIdentity),
    }
}

fn socket(of: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: of.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(of.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn moment(nanos: u64) -> prost_types::Timestamp {
    let moment = Duration::from_nanos(nanos);
    let seconds = i64::try_from(nanos / NANOS_PER_SEC).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: moment.subsec_nanos().cast_signed() }
}

/// Our reasons in Envoy's words; those that it has no word for are in the tags and in the code's details.
fn flags(reason: Reason) -> ResponseFlags {
    let mut flags = ResponseFlags::default();
    match reason {
        Reason::NoRoute | Reason::Misdirected => flags.no_route_found = true,
        Reason::BadBackend => flags.no_cluster_found = true,
        Reason::NoEndpoints => flags.no_healthy_upstream = true,
        Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed | Reason::IdentityMismatch => {
            flags.upstream_connection_failure = true;
        }
        Reason::UpstreamReset => flags.upstream_remote_reset = true,
        Reason::UpstreamProtocol => flags.upstream_protocol_error = true,
        Reason::AttemptTimeout => flags.upstream_request_timeout = true,
        Reason::RequestTimeout | Reason::IdleTimeout => flags.duration_timeout = true,
        Reason::ClientGone => flags.downstream_connection_termination = true,
        Reason::Overflow => flags.upstream_overflow = true,
        Reason::RateLimited => flags.rate_limited = true,
        Reason::Denied | Reason::Unauthenticated | Reason::PolicyUnavailable => {
            flags.unauthorized_details = Some(Unauthorized { reason: unauthorized::Reason::ExternalService.into() });
        }
        Reason::Fault => flags.fault_injected = true,
        Reason::BadRequest | Reason::TooLarge => flags.downstream_protocol_error = true,
        Reason::ConfigPending | Reason::Draining | Reason::Maintenance => flags.overload_manager = true,
    }
    flags
}
