//! What each of our kinds looks like: the types that its schema is made of. No value of them is ever made: manifests are read by the
//! world's own door, which tells lines and remedies, and the tests beside this hold the two together.
#![allow(dead_code, reason = "they say what a schema is, and nothing else")]

mod canary;
mod clients;
mod edge;
mod external;
mod fault;
mod limits;
mod login;
mod mesh;
mod parts;
mod security;
mod traffic;
mod workload;

pub(super) use canary::CanarySpec;
pub(super) use clients::ClientPolicySpec;
pub(super) use edge::{ApiKeyAuthSpec, BasicAuthSpec, ConsumerSpec};
pub(super) use external::ExternalAuthSpec;
pub(super) use limits::RateLimitSpec;
pub(super) use login::OidcLoginSpec;
pub(super) use mesh::{MeshSpec, TelemetrySpec};
pub(super) use security::{AuthorizationPolicySpec, EgressPolicySpec, PeerAuthenticationSpec, RequestAuthenticationSpec, RevocationSpec};
pub(super) use traffic::TrafficPolicySpec;
pub(super) use workload::WorkloadSpec;
