//! What a line of the access log can say, by name.

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

/// Says that there is no field of that name, and which may have been meant.
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
