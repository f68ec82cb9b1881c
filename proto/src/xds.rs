//! The Envoy v3 subset under short names, its type URLs, and the way in and out of `Any`.
//!
//! Packages and field numbers are the published ones, so a stock xDS client understands every byte we send.

use prost::{DecodeError, Message, Name};
use prost_types::Any;

pub use crate::generated::envoy::config::cluster::v3 as cluster;
pub use crate::generated::envoy::config::core::v3 as core;
pub use crate::generated::envoy::config::endpoint::v3 as endpoint;
pub use crate::generated::envoy::config::listener::v3 as listener;
pub use crate::generated::envoy::config::route::v3 as route;
pub use crate::generated::envoy::data::accesslog::v3 as exchange;
pub use crate::generated::envoy::extensions::common::ratelimit::v3 as descriptor;
pub use crate::generated::envoy::extensions::filters::http::router::v3 as router;
pub use crate::generated::envoy::extensions::filters::listener::http_inspector::v3 as http_inspector;
pub use crate::generated::envoy::extensions::filters::listener::original_dst::v3 as original_dst;
pub use crate::generated::envoy::extensions::filters::listener::tls_inspector::v3 as tls_inspector;
pub use crate::generated::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
pub use crate::generated::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
pub use crate::generated::envoy::extensions::load_balancing_policies::least_request::v3 as least_request;
pub use crate::generated::envoy::extensions::load_balancing_policies::round_robin::v3 as round_robin;
pub use crate::generated::envoy::extensions::transport_sockets::raw_buffer::v3 as raw_buffer;
pub use crate::generated::envoy::extensions::transport_sockets::tls::v3 as tls;
pub use crate::generated::envoy::extensions::upstreams::http::v3 as upstream_http;
pub use crate::generated::envoy::service::accesslog::v3 as accesslog;
pub use crate::generated::envoy::service::auth::v3 as auth;
pub use crate::generated::envoy::service::discovery::v3 as discovery;
pub use crate::generated::envoy::service::ratelimit::v3 as ratelimit;
pub use crate::generated::envoy::r#type::matcher::v3 as matcher;
pub use crate::generated::envoy::r#type::v3 as types;
pub use crate::generated::google::rpc;

/// Type URL of [`listener::Listener`].
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of [`route::RouteConfiguration`].
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of [`cluster::Cluster`].
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of [`endpoint::ClusterLoadAssignment`].
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of [`tls::Secret`].
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// Why an `Any` is not the message we wanted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// It holds some other message.
    #[error("expected {expected}, found `{found}`")]
    Type {
        /// The type URL we can read.
        expected: String,
        /// The type URL it carries.
        found: String,
    },
    /// It names the right message, but its bytes do not decode.
    #[error("malformed {name}: {source}")]
    Malformed {
        /// Full name of the message.
        name: String,
        /// What the decoder stumbled over.
        source: DecodeError,
    },
}

/// Wraps a message. Equal messages give equal bytes: every generated map is ordered, and fields go out in declared order.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Unwraps a message, provided the type URL names it. Only the part after the last `/` counts, as `Any` prescribes.
///
/// # Errors
/// [`UnpackError::Type`] when another message is inside, [`UnpackError::Malformed`] when the bytes do not decode.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    let name = M::full_name();
    if any.type_url.rsplit_once('/').is_none_or(|(_, found)| found != name) {
        return Err(UnpackError::Type { expected: M::type_url(), found: any.type_url.clone() });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Malformed { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the type URLs we compare with are the messages' own.
    #[test]
    fn type_urls_are_those_of_the_messages() {
        assert_eq!(LISTENER, listener::Listener::type_url());
        assert_eq!(ROUTE, route::RouteConfiguration::type_url());
        assert_eq!(CLUSTER, cluster::Cluster::type_url());
        assert_eq!(ENDPOINT, endpoint::ClusterLoadAssignment::type_url());
        assert_eq!(SECRET, tls::Secret::type_url());
    }

    /// Aim: what we send is what we read.
    #[test]
    fn what_is_packed_unpacks() {
        let cluster = cluster::Cluster { name: "reviews".into(), ..Default::default() };
        assert_eq!(unpack::<cluster::Cluster>(&pack(&cluster)), Ok(cluster));
    }

    /// Aim: a resource of another type is refused, naming both.
    #[test]
    fn another_type_is_refused() {
        let any = pack(&cluster::Cluster::default());
        let error = unpack::<listener::Listener>(&any).unwrap_err();
        assert_eq!(error, UnpackError::Type { expected: LISTENER.into(), found: CLUSTER.into() });
    }

    /// Aim: a type URL has its prefix.
    #[test]
    fn a_bare_name_is_no_type_url() {
        let any = Any { type_url: cluster::Cluster::full_name(), value: Vec::new() };
        assert!(matches!(unpack::<cluster::Cluster>(&any), Err(UnpackError::Type { .. })));
    }

    /// Aim: an error names the message that could not be read.
    #[test]
    fn broken_bytes_are_named() {
        let any = Any { type_url: CLUSTER.into(), value: vec![0xff] };
        assert!(unpack::<cluster::Cluster>(&any).unwrap_err().to_string().starts_with("malformed envoy.config.cluster.v3.Cluster"));
    }
}
