//! What a proxy runs: one immutable [`Snapshot`], built from resources, swapped whole.
//!
//! Everything here is parsed, compiled and linked: nothing is looked up by string while a request waits. Live state (requests in
//! flight, health) hangs off a snapshot by `Arc` and is carried to the next one by key.

pub mod build;
mod canary;
mod cell;
mod challenge;
mod client;
mod cluster;
mod cluster_policy;
mod cookie;
mod domains;
mod edge;
mod egress;
mod endpoint;
mod hash;
mod hedge;
mod listener;
mod log_field;
mod log_fields;
mod log_filter;
mod log_format;
mod log_sink;
mod metric_label;
mod named;
mod policy;
mod priority;
mod route;
mod rule_telemetry;
mod secret;
mod session;
mod set;
mod snapshot;
mod stages;
mod trust;

pub use crate::matching::{Match, PathMatch, ValueMatch};
pub use canary::{CanaryCounts, VERSIONS_MAX, VersionCounts};
pub(crate) use cell::Home;
pub use cell::{Ejected, EndpointCell};
pub(crate) use challenge::ANSWER_BYTES_MAX;
pub use challenge::{CHALLENGE_ALPN, CHALLENGES_MAX, Challenge, Challenges};
pub use client::{
    AltSvc, CLIENT_FIELDS_MAX, CLIENT_HEAD_BYTES_MAX, ClientLimits, ClientLives, ClientPolicy, ClientRules, ClientTimeouts, EarlyHeaders,
    Ending, EscapedSlashes, Http1Rules, Http2Rules, Http3Door, PathRules, ProxyRule, Underscores,
};
pub use cluster::{Cluster, ClusterKind, ClusterLive, RESOLVED_MAX};
pub(crate) use cluster::{next_workload_id, stamp};
pub use cluster_policy::{Algorithm, Balance, ClusterPolicy, OutsideName, Prefer};
pub use domains::Domains;
pub use edge::{ApplicationProtocol, Chain, Chains, ClientCertificates, Datagrams, Edge, Port, Serves, TlsTerms, TlsVersion};
pub use egress::{Ahead, Barred, Egress, EgressMode, EgressRule, Going, ORIGINATE_PORT, Spoken};
pub(crate) use endpoint::EndpointFacts;
pub use endpoint::{Endpoint, EndpointLive, Health, InFlight};
pub use hash::{HASH_KEYS_MAX, HashCookie, HashKey};
pub use hedge::Hedge;
pub use listener::{ByServerName, Inbound, InboundPort, Outbound};
pub use log_field::{LogField, LogPiece};
pub use log_fields::{LOG_FIELDS_MAX, LogFields};
pub use log_filter::{LOG_FILTER_BYTES_MAX, LogExchange, LogFilter};
pub use log_format::{LogFormat, LogTemplate, TEMPLATE_BYTES_MAX};
pub use log_sink::{
    LOG_FILE_BYTES_DEFAULT, LOG_FILE_BYTES_RANGE, LOG_FILES_KEPT_DEFAULT, LOG_FILES_KEPT_MAX, LOG_SINKS_MAX, LogFile, LogSink, LogSinkKind,
};
pub use metric_label::{MetricLabel, MetricLabels};
pub use named::{Named, PeerName, Roots};
pub use policy::{Policy, Steps};
pub use priority::{CLASSES_MAX, Priority};
pub use proto::words::{MtlsMode, Protocol};
pub use route::{Action, Backend, Forward, Mirror, RouteTable, Rule, RuleSource, Target, VirtualHost};
pub use rule_telemetry::{Keep, RuleTelemetry};
pub use secret::{Held, Made, OwnCertificate, Secret, SecretCell, TICKET_KEY_BYTES};
pub use session::{SESSION_TIMEOUT_MIN, Session, SessionHome, SessionKept, SessionTerms, SessionToken, session_token};
pub use set::EndpointSet;
pub(crate) use set::{Spread, Tier};
pub use snapshot::{AppProbe, DnsAnswer, Locality, OtlpProtocol, Settings, Snapshot};
pub(crate) use trust::sha256;
pub use trust::{Revocation, Revoked, Trust};
