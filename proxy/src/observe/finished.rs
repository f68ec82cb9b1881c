//! A finished exchange as lines, records and filters look at it: one value for each field of the access log.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use engine::failure::{Blame, Reason};
use engine::model::{LogExchange, LogField, LogFilter};
use http::Version;

use super::batch::{Batch, Record};
use super::labels::{CODE_NONE, GRPC_NONE, Wire, went_well};
use super::record::Word;
use super::secrets::without_user;
use super::shape::{Party, Shape};
use super::trace::{Context, hex_of_u64, hex_of_u128};

/// A share of 2^32 that is all.
const ALL: u64 = 1 << 32;

/// One of a batch's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished<'a> {
    pub(super) batch: &'a Batch,
    pub(super) record: &'a Record,
    pub(super) shape: &'a Shape,
}

/// What a field says; secrets are out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogValue<'a> {
    /// It is not there.
    Nothing,
    Text(Cow<'a, str>),
    Whole(u64),
    Time(Duration),
    Address(SocketAddr),
    Client(IpAddr),
    /// Nanoseconds since 1970.
    Moment(u64),
    /// The same, as Apache writes it.
    LocalMoment(u64),
    TraceId(u128),
    SpanId(u64),
    Retries(&'a [(SocketAddr, Reason)]),
    /// JSON as it stands.
    Json(&'a str),
}

impl<'a> Finished<'a> {
    pub(super) fn of(batch: &'a Batch, record: &'a Record) -> Self {
        Self { batch, record, shape: batch.shape(record) }
    }

    /// Which exchanges its rule wants to be told of, or where that says nothing, its proxy's settings.
    pub(super) fn filter(&self) -> Option<&'a LogFilter> {
        let of_rule = self.shape.rule.as_deref().and_then(|rule| rule.telemetry()?.log_filter.as_deref());
        of_rule.or(self.shape.settings.as_deref().and_then(|settings| settings.log_filter.as_deref()))
    }

    /// The share of exchanges that ended as it did of which there are lines: above 0, and 1 at most.
    #[allow(clippy::cast_precision_loss, reason = "of 2^32")]
    pub(super) fn share(&self) -> f64 {
        let Record { code, grpc, reason, .. } = *self.record;
        let of_rule = self.shape.rule.as_deref().and_then(|rule| rule.telemetry()?.log_success_threshold);
        let said = of_rule.or(self.shape.settings.as_deref().map(|settings| settings.log_success_threshold));
        match said {
            Some(threshold @ 1..ALL) if went_well(code, grpc, reason) => threshold as f64 / ALL as f64,
            _ => 1.0,
        }
    }

    /// Its trace, where there is a span of ours in it.
    pub(super) fn told_context(&self) -> Option<Context> {
        self.record.context.filter(|context| context.sampled || self.record.kept.is_some())
    }

    /// What a field says.
    pub(super) fn said(&self, field: LogField) -> LogValue<'a> {
        let (record, shape) = (self.record, self.shape);
        match field {
            LogField::Time => LogValue::Moment(record.started_nanos),
            LogField::LocalTime => LogValue::LocalMoment(record.started_nanos),
            LogField::Direction => fixed(Some(shape.direction.text())),
            LogField::Epoch => LogValue::Whole(record.epoch),
            LogField::TraceId => record.context.map_or(LogValue::Nothing, |context| LogValue::TraceId(context.trace_id)),
            LogField::SpanId => self.told_context().map_or(LogValue::Nothing, |context| LogValue::SpanId(context.span_id)),
            LogField::Scheme => fixed(record.version.map(|_| if record.https { "https" } else { "http" })),
            LogField::Host => fixed(self.batch.word(record, Word::Host).map(without_user)),
            LogField::Path => self.target(Word::Path),
            LogField::Referer => self.target(Word::Referer),
            LogField::Protocol => fixed(Some(self.protocol())),
            LogField::Status => whole(record.code != CODE_NONE, record.code),
            LogField::GrpcStatus => whole(record.grpc != GRPC_NONE && record.wire == Wire::Grpc, record.grpc),
            LogField::Reason => fixed(record.reason.map(Reason::text)),
            LogField::Blame => fixed(record.blame.map(Blame::text)),
            LogField::Route => fixed(shape.rule.as_ref().map(|rule| &*rule.source.label)),
            LogField::Rule => fixed(shape.rule.as_ref().map(|rule| &*rule.source.rule)),
            LogField::RequestBytes => LogValue::Whole(record.request_bytes),
            LogField::ResponseBytes => LogValue::Whole(record.response_bytes),
            LogField::DurationMs => LogValue::Time(record.duration),
            LogField::UpstreamMs => record.upstream.map_or(LogValue::Nothing, LogValue::Time),
            LogField::Attempts => LogValue::Whole(record.attempts.into()),
            LogField::Retries => LogValue::Retries(self.batch.retries(record)),
            LogField::TlsVersion => fixed(shape.tls.as_ref().map(|tls| tls.version)),
            LogField::TlsCipher => fixed(shape.tls.as_ref().map(|tls| tls.cipher)),
            LogField::TlsGroup => fixed(shape.tls.as_ref().map(|tls| tls.group)),
            LogField::ClientAddress => LogValue::Client(record.client.unwrap_or_else(|| record.downstream.ip())),
            LogField::SourceAddress | LogField::DestinationAddress => LogValue::Address(self.address(field)),
            LogField::ClientTls => self.batch.word(record, Word::ClientTls).map_or(LogValue::Nothing, LogValue::Json),
            _ => self.told(field),
        }
    }

    /// Of the two sides, and in the words of clients and policies.
    fn told(&self, field: LogField) -> LogValue<'a> {
        let word = match field {
            LogField::SourceNamespace => return fixed(self.shape.source().namespace),
            LogField::SourceWorkload => return fixed(self.shape.source().workload),
            LogField::SourceIdentity => return identity(&self.shape.source()),
            LogField::DestinationNamespace => return fixed(self.shape.destination().namespace),
            LogField::DestinationService => return fixed(self.shape.destination().service),
            LogField::DestinationWorkload => return fixed(self.shape.destination().workload),
            LogField::DestinationIdentity => return identity(&self.shape.destination()),
            LogField::Method => Word::Method,
            LogField::Fault => Word::Fault,
            LogField::Consumer => Word::Consumer,
            LogField::AuthMethod => Word::AuthMethod,
            LogField::Credential => Word::Credential,
            LogField::Policy => Word::Policy,
            LogField::WouldDeny => Word::WouldDeny,
            LogField::Audited => Word::Audited,
            LogField::Limit => Word::Limit,
            LogField::Partial => Word::Partial,
            LogField::UserAgent => Word::UserAgent,
            _ => Word::RequestId,
        };
        fixed(self.batch.word(self.record, word))
    }

    /// A path or an address, without the secrets in it.
    fn target(&self, word: Word) -> LogValue<'a> {
        let secret = self.shape.secret_parameters();
        self.batch.word(self.record, word).map_or(LogValue::Nothing, |text| LogValue::Text(secret.redact(text)))
    }

    pub(super) const fn protocol(&self) -> &'static str {
        match self.record.version {
            None => "TCP",
            Some(Version::HTTP_10) => "HTTP/1.0",
            Some(Version::HTTP_2) => "HTTP/2",
            Some(Version::HTTP_3) => "HTTP/3",
            Some(_) => "HTTP/1.1",
        }
    }
}

fn fixed(text: Option<&str>) -> LogValue<'_> {
    text.map_or(LogValue::Nothing, |text| LogValue::Text(Cow::Borrowed(text)))
}

fn whole<'a>(there: bool, number: impl Into<u64>) -> LogValue<'a> {
    if there { LogValue::Whole(number.into()) } else { LogValue::Nothing }
}

fn identity<'a>(party: &Party<'_>) -> LogValue<'a> {
    party.identity.map_or(LogValue::Nothing, |identity| LogValue::Text(Cow::Owned(identity.to_string())))
}

impl LogValue<'_> {
    /// As a text, for those who know no other; empty: it is not there.
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Text(text) => text.into_owned(),
            Self::Whole(number) | Self::Moment(number) | Self::LocalMoment(number) => number.to_string(),
            Self::Time(time) => (time.as_secs_f64() * 1000.0).to_string(),
            Self::Address(address) => address.to_string(),
            Self::Client(address) => address.to_string(),
            Self::TraceId(id) => String::from_utf8_lossy(&hex_of_u128(id)).into_owned(),
            Self::SpanId(id) => String::from_utf8_lossy(&hex_of_u64(id)).into_owned(),
            Self::Retries(retries) => {
                let one = |(address, reason): &(SocketAddr, Reason)| format!("{address}={}", reason.text());
                retries.iter().map(one).collect::<Vec<_>>().join(",")
            }
            Self::Json(json) => json.to_owned(),
            Self::Nothing => String::new(),
        }
    }
}

impl LogExchange for Finished<'_> {
    fn text(&self, field: LogField) -> Cow<'_, str> {
        match self.said(field) {
            LogValue::Text(text) => text,
            LogValue::Nothing => Cow::Borrowed(""),
            other => Cow::Owned(other.into_text()),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "numbers of exchanges are compared as such")]
    fn number(&self, field: LogField) -> f64 {
        match self.said(field) {
            LogValue::Whole(number) => number as f64,
            LogValue::Time(time) => time.as_secs_f64() * 1000.0,
            _ => 0.0,
        }
    }

    fn address(&self, field: LogField) -> SocketAddr {
        match field {
            LogField::SourceAddress => self.record.downstream,
            _ => self.shape.destination().address.unwrap_or(self.record.local),
        }
    }

    fn is_mtls(&self) -> bool {
        self.shape.mtls
    }

    fn is_sampled(&self) -> bool {
        self.told_context().is_some()
    }
}
