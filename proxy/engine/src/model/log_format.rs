//! The access log's form: which fields of an exchange make a line, and what stands between them. Compiled once, where it is configured.

use std::sync::Arc;

use super::log_fields::LogFields;

/// Longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 4096;
/// Most fields and texts of a template.
const PIECES_MAX: usize = 128;

/// The form of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, all fields in their order.
    #[default]
    Json,
    /// One JSON object a line, of some fields.
    Fields(Arc<LogFields>),
    /// As Apache's and nginx's `combined`.
    Combined,
    /// By a template.
    Text(Arc<LogTemplate>),
}

impl LogFormat {
    /// Whether a line says where the client came from (`Referer`), which most lines do not.
    pub fn tells_referer(&self) -> bool {
        match self {
            Self::Json => false,
            Self::Combined => true,
            Self::Fields(fields) => fields.pieces().contains(&LogPiece::Field(LogField::Referer)),
            Self::Text(template) => template.pieces.contains(&LogPiece::Field(LogField::Referer)),
        }
    }
}

/// A line's text with places for fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTemplate {
    pieces: Vec<LogPiece>,
}

/// A part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPiece {
    /// As it stands.
    Literal(Box<str>),
    /// What the exchange says.
    Field(LogField),
}

macro_rules! log_fields {
    ($($(#[$doc:meta])* $field:ident = $name:literal,)*) => {
        /// What a line can say of an exchange. Its names are those of the JSON line's fields, with a dot for what is nested.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum LogField {
            $($(#[$doc])* $field,)*
        }

        impl LogField {
            /// All of them by name.
            pub const ALL: &[(&'static str, Self)] = &[$(($name, Self::$field),)*];
        }
    };
}

log_fields! {
    /// When it began: RFC 3339, UTC, microseconds.
    Time = "time",
    /// The same as Apache writes it: `01/Dec/2026:10:00:00 +0000`.
    LocalTime = "local_time",
    /// `inbound` or `outbound`.
    Direction = "direction",
    /// The configuration in force.
    Epoch = "epoch",
    /// W3C trace id.
    TraceId = "trace_id",
    /// Ours, where it is sampled.
    SpanId = "span_id",
    /// HTTP method.
    Method = "method",
    /// `http` or `https`.
    Scheme = "scheme",
    /// What the client asked for.
    Host = "host",
    /// Path and query, without the secrets in it.
    Path = "path",
    /// `HTTP/1.1` and the like, or `TCP`.
    Protocol = "protocol",
    /// HTTP status.
    Status = "status",
    /// gRPC status, as a number.
    GrpcStatus = "grpc_status",
    /// Why the mesh answered it.
    Reason = "reason",
    /// Whose fault that is.
    Blame = "blame",
    /// `NAMESPACE/NAME` of the route.
    Route = "route",
    /// Its rule.
    Rule = "rule",
    /// Of the caller.
    SourceNamespace = "source.namespace",
    /// Of the caller.
    SourceWorkload = "source.workload",
    /// Of the caller.
    SourceIdentity = "source.identity",
    /// Who connected.
    SourceAddress = "source.address",
    /// Of the called.
    DestinationNamespace = "destination.namespace",
    /// Of the called.
    DestinationService = "destination.service",
    /// Of the called.
    DestinationWorkload = "destination.workload",
    /// Of the called.
    DestinationIdentity = "destination.identity",
    /// The endpoint.
    DestinationAddress = "destination.address",
    /// Of TLS inside the mesh, or of the application's client.
    TlsVersion = "mtls.version",
    /// The same.
    TlsCipher = "mtls.cipher",
    /// The same.
    TlsGroup = "mtls.group",
    /// Of the body.
    RequestBytes = "request_bytes",
    /// Of the body.
    ResponseBytes = "response_bytes",
    /// From the head of the request to the end of the answer.
    DurationMs = "duration_ms",
    /// From the last attempt to the head of its answer.
    UpstreamMs = "upstream_ms",
    /// How often it was sent.
    Attempts = "attempts",
    /// Attempts that failed and were made again: addresses, and why.
    Retries = "retries",
    /// What was done to it on purpose.
    Fault = "fault",
    /// Who asked, by ClientPolicy; else who connected.
    ClientAddress = "client_address",
    /// `NAMESPACE/NAME` of the Consumer.
    Consumer = "consumer",
    /// How it proved that.
    AuthMethod = "auth_method",
    /// What may be told of its credential: a key's prefix, a credential's name.
    Credential = "credential",
    /// Which policy refused it.
    Policy = "policy",
    /// What would have refused it, were it not on trial.
    WouldDeny = "would_deny",
    /// Which rules audit it.
    Audited = "audited",
    /// Which limit refused it.
    Limit = "limit",
    /// Which parts of an answer are missing.
    Partial = "partial",
    /// How a client from outside is encrypted: JSON.
    ClientTls = "client_tls",
    /// Who the client says it is.
    UserAgent = "user_agent",
    /// Where it says it came from, without the secrets in it.
    Referer = "referer",
    /// The request's id.
    RequestId = "request_id",
}

impl LogField {
    /// The field of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, field)| *field)
    }
}

impl LogTemplate {
    /// Its parts in order.
    pub fn pieces(&self) -> &[LogPiece] {
        &self.pieces
    }

    /// Reads `{field}` between texts; `{{` and `}}` are braces.
    ///
    /// # Errors
    /// What is wrong with it, in words: a field that is none, a brace that is left open, a line's end in it, or it is empty or too long.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty, and every line would be".to_owned());
        }
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("it has {} bytes, which is more than {TEMPLATE_BYTES_MAX}", text.len()));
        }
        if text.chars().any(|one| one.is_control() && one != '\t') {
            return Err("it holds a line's end or another control character: a line of the log is one line".to_owned());
        }
        let (mut pieces, mut literal) = (Vec::new(), String::new());
        let mut rest = text.chars();
        while let Some(one) = rest.next() {
            let doubled = rest.as_str().starts_with(one);
            match one {
                '{' | '}' if doubled => {
                    rest.next();
                    literal.push(one);
                }
                '{' => {
                    let (name, behind) = rest.as_str().split_once('}').ok_or("a `{` is never closed; a brace is written `{{`")?;
                    let field = LogField::of(name).ok_or_else(|| unknown(name))?;
                    rest = behind.chars();
                    if !literal.is_empty() {
                        pieces.push(LogPiece::Literal(std::mem::take(&mut literal).into()));
                    }
                    pieces.push(LogPiece::Field(field));
                }
                '}' => return Err("a `}` closes nothing; a brace is written `}}`".to_owned()),
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            pieces.push(LogPiece::Literal(literal.into()));
        }
        match pieces.len() {
            0..=PIECES_MAX => Ok(Self { pieces }),
            more => Err(format!("it has {more} fields and texts, which is more than {PIECES_MAX}")),
        }
    }
}

pub(super) fn unknown(name: &str) -> String {
    let near = LogField::ALL.iter().map(|(known, _)| *known).find(|known| {
        let last = known.rsplit('.').next().unwrap_or(known);
        last == name || known.replace('_', "") == name.replace(['_', '-'], "").to_ascii_lowercase()
    });
    let name = name.escape_debug();
    match near {
        Some(near) => format!("`{name}` is no field of the access log; did you mean `{near}`?"),
        None => format!("`{name}` is no field of the access log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: fields and texts come out in order, doubled braces are braces, and whatever is wrong is told in words.
    #[test]
    fn a_template_is_read_once() {
        let template = LogTemplate::parse("{{{method}}} {path}{status}\t\"é\"").unwrap();
        let literal = |text: &str| LogPiece::Literal(text.into());
        let wanted = [
            literal("{"),
            LogPiece::Field(LogField::Method),
            literal("} "),
            LogPiece::Field(LogField::Path),
            LogPiece::Field(LogField::Status),
            literal("\t\"é\""),
        ];
        assert_eq!(template.pieces(), wanted);
        for (text, wanted) in [
            ("", "empty"),
            ("a\nb", "line's end"),
            ("{method", "never closed"),
            ("method}", "closes nothing"),
            ("{nothing}", "`nothing` is no field"),
            ("{workload}", "did you mean `source.workload`?"),
            ("{useragent}", "did you mean `user_agent`?"),
            ("{}", "`` is no field"),
            (&"{path}".repeat(PIECES_MAX + 1), "more than 128"),
            (&"x".repeat(TEMPLATE_BYTES_MAX + 1), "more than 4096"),
        ] {
            let told = LogTemplate::parse(text).unwrap_err();
            assert!(told.contains(wanted), "{text}: {told}");
        }
        assert_eq!(LogField::ALL.len(), 49);
    }

    proptest::proptest! {
        /// Aim: no text makes it panic, and what is read has no empty texts.
        #[test]
        fn any_text_is_survived(text in "[{}a-z._ ]{0,40}") {
            if let Ok(template) = LogTemplate::parse(&text) {
                proptest::prop_assert!(template.pieces().iter().all(|piece| *piece != LogPiece::Literal("".into())));
            }
        }
    }
}
