//! What one exchange saw: cheap for all, with more detail where it is logged or sampled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use engine::failure::{Blame, Reason};
use engine::model::{Cluster, Endpoint, InboundPort, Rule, Settings, Snapshot};
use http::{HeaderMap, Method, Version, header, request::Parts};

use super::labels::{CODE_NONE, Direction, Family, GRPC_NONE, Wire};
use super::trace::Context;
use crate::tls::{Peer, TlsFacts};

/// Longest text of a request that is kept for log and span.
const TEXT_BYTES_MAX: usize = 4096;
/// Retries that are listed; further ones are only counted.
pub(super) const RETRIES_LISTED_MAX: usize = 16;

/// Kept of every exchange. Only `Arc`s and numbers.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) family: Family,
    pub(super) direction: Direction,
    pub(super) wire: Wire,
    pub(super) source: u32,
    pub(super) mtls: bool,
    pub(super) rule: Option<Arc<Rule>>,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) port: Option<Arc<InboundPort>>,
    pub(super) code: u16,
    pub(super) grpc: u8,
    pub(super) reason: Option<Reason>,
    pub(super) blame: Option<Blame>,
    pub(super) attempts: u32,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
}

/// The head of the request, copied before the road changes it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) scheme: &'static str,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) version: Version,
    pub(super) user_agent: Option<String>,
    pub(super) request_id: Option<String>,
}

/// Kept of an exchange that is logged or sampled.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) logged: bool,
    /// Our span, or the caller's unsampled trace.
    pub(super) context: Option<Context>,
    pub(super) head: Option<Head>,
    pub(super) downstream: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) peer: Option<Arc<Peer>>,
    pub(super) tls: Option<TlsFacts>,
    pub(super) retries: Vec<(SocketAddr, Reason)>,
    pub(super) cause: Option<String>,
    pub(super) attempt_started: Option<Instant>,
    pub(super) upstream: Option<Duration>,
}

/// A finished exchange that is logged or sampled.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) seen: &'a Seen,
    pub(super) detail: &'a Detail,
    pub(super) started: SystemTime,
    pub(super) duration: Duration,
}

/// One side of an exchange, as log and span show it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Party<'a> {
    pub(super) namespace: Option<&'a str>,
    pub(super) service: Option<&'a str>,
    pub(super) workload: Option<&'a str>,
    pub(super) identity: Option<Who<'a>>,
    pub(super) address: Option<SocketAddr>,
}

/// An identity, ours or proven.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who<'a> {
    Own(&'a Settings),
    Proven(&'a proto::identity::Identity),
}

impl std::fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own(own) => write!(f, "spiffe://{}/ns/{}/sa/{}", own.trust_domain, own.namespace, own.service_account),
            Self::Proven(identity) => write!(f, "{identity}"),
        }
    }
}

impl Seen {
    pub(super) fn new(snapshot: Arc<Snapshot>, family: Family, direction: Direction, wire: Wire, source: u32, mtls: bool) -> Self {
        Self {
            snapshot,
            family,
            direction,
            wire,
            source,
            mtls,
            rule: None,
            cluster: None,
            endpoint: None,
            port: None,
            code: CODE_NONE,
            grpc: GRPC_NONE,
            reason: None,
            blame: None,
            attempts: 0,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.snapshot.settings.as_deref()
    }

    /// The service's namespace and name, shared with the configuration.
    pub(super) fn destination(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        match self.direction {
            Direction::Inbound => self.port.as_ref().map(|port| (&port.service_namespace, &port.service)),
            Direction::Outbound => self.cluster.as_ref().map(|cluster| (&cluster.namespace, &cluster.service)),
        }
    }
}

impl Record<'_> {
    pub(super) fn source(&self) -> Party<'_> {
        match self.seen.direction {
            Direction::Outbound => Party { address: Some(self.detail.downstream), service: None, ..self.own() },
            Direction::Inbound => {
                let peer = self.detail.peer.as_deref();
                Party {
                    namespace: peer.map(|peer| peer.identity.namespace()),
                    service: None,
                    workload: peer.map(|peer| &*peer.workload),
                    identity: peer.map(|peer| Who::Proven(&peer.identity)),
                    address: Some(self.detail.downstream),
                }
            }
        }
    }

    pub(super) fn destination(&self) -> Party<'_> {
        let service = self.seen.destination().map(|(_, service)| &**service).filter(|service| !service.is_empty());
        match self.seen.direction {
            Direction::Inbound => Party { service, address: Some(self.detail.local), ..self.own() },
            Direction::Outbound => {
                let endpoint = self.seen.endpoint.as_deref();
                Party {
                    namespace: self.seen.destination().map(|(namespace, _)| &**namespace).filter(|namespace| !namespace.is_empty()),
                    service,
                    workload: endpoint.map(|endpoint| &*endpoint.workload).filter(|workload| !workload.is_empty()),
                    identity: endpoint.filter(|_| self.seen.mtls).and_then(|e| e.identity.as_deref()).map(Who::Proven),
                    address: Some(endpoint.map_or(self.detail.local, |endpoint| endpoint.address)),
                }
            }
        }
    }

    fn own(&self) -> Party<'_> {
        let own = self.seen.settings();
        Party {
            namespace: own.map(|own| own.namespace.as_str()),
            service: None,
            workload: own.map(|own| own.workload.as_str()),
            identity: own.map(Who::Own),
            address: None,
        }
    }
}

impl Head {
    /// Copies what log and span need of the request.
    pub(super) fn of(parts: &Parts, tls: bool) -> Self {
        let host = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => text(&parts.headers, &header::HOST).unwrap_or(""),
        };
        Self {
            method: parts.method.clone(),
            scheme: scheme(parts, tls),
            host: clip(host),
            path: clip(parts.uri.path_and_query().map_or("/", |path| path.as_str())),
            version: parts.version,
            user_agent: text(&parts.headers, &header::USER_AGENT).map(clip),
            request_id: None,
        }
    }
}

fn scheme(parts: &Parts, tls: bool) -> &'static str {
    match parts.uri.scheme_str() {
        Some("https") => "https",
        Some(_) => "http",
        None if tls => "https",
        None => "http",
    }
}

/// A header's text, where it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A bounded copy.
pub(super) fn clip(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
