//! What many exchanges have in common: who called, what was meant, how it was encrypted. A worker knows a shape again by comparing a few
//! pointers; what log and span say of it is written down once, by whoever encodes the first record of it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use engine::model::{Action, Cluster, Endpoint, InboundPort, Rule, Settings};

use super::labels::Direction;
use super::record::{Detail, Outline, destination};
use super::secrets::Secret;
use crate::tls::{Peer, TlsFacts};

/// See the module.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) direction: Direction,
    pub(super) mtls: bool,
    pub(super) tls: Option<TlsFacts>,
    pub(super) settings: Option<Arc<Settings>>,
    pub(super) rule: Option<Arc<Rule>>,
    cluster: Option<Arc<Cluster>>,
    endpoint: Option<Arc<Endpoint>>,
    port: Option<Arc<InboundPort>>,
    caller: Option<Arc<Peer>>,
    /// What the access log says of it.
    pub(super) line: OnceLock<LineParts>,
    /// What spans say of it.
    pub(super) span: OnceLock<SpanParts>,
    /// Parameters of queries in which its policies look for credentials.
    parameters: OnceLock<Vec<Box<str>>>,
}

/// What all lines of a shape have in common, in order.
#[derive(Debug)]
pub(super) struct LineParts {
    pub(super) text: Vec<u8>,
    /// Ends of what stands before the epoch, before the source's address, before the destination's; the destination's, if it is the
    /// shape's, is in it.
    pub(super) ends: [usize; 3],
    pub(super) destination_known: bool,
}

/// What all spans of a shape have in common.
#[derive(Debug)]
pub(super) struct SpanParts {
    /// Attributes.
    pub(super) attributes: Vec<u8>,
    /// The name without its method.
    pub(super) name: String,
    /// What the rule says of paths; empty: nothing.
    pub(super) template: String,
    /// The callee's address is among the attributes, or is not to be.
    pub(super) destination_known: bool,
}

/// One side of an exchange, as log and span show it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Party<'a> {
    pub(super) namespace: Option<&'a str>,
    pub(super) service: Option<&'a str>,
    pub(super) workload: Option<&'a str>,
    pub(super) identity: Option<Who<'a>>,
    /// Where it is the same for all exchanges of the shape.
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

impl Shape {
    pub(super) fn of(seen: &Outline, detail: &Detail) -> Self {
        Self {
            direction: seen.direction,
            mtls: seen.mtls,
            tls: detail.tls,
            settings: seen.snapshot.settings.clone(),
            rule: seen.rule.clone(),
            cluster: seen.cluster.clone(),
            endpoint: seen.endpoint.clone(),
            port: seen.port.clone(),
            caller: detail.caller.clone(),
            line: OnceLock::new(),
            span: OnceLock::new(),
            parameters: OnceLock::new(),
        }
    }

    /// Of the cluster that was chosen; empty: none was.
    pub(super) fn cluster_name(&self) -> &str {
        self.cluster.as_deref().map_or("", |cluster| &cluster.name)
    }

    /// What nobody is to read in a query.
    pub(super) fn secret_parameters(&self) -> Secret<'_> {
        let named = self.parameters.get_or_init(|| match self.rule.as_deref().map(|rule| &rule.action) {
            Some(Action::Forward(forward)) => forward.secret_parameters().into_iter().map(Into::into).collect(),
            Some(Action::Reply(_)) | None => Vec::new(),
        });
        // Where no rule holds nobody has said which of them are credentials.
        Secret { named, all: self.rule.is_none() && self.cluster.is_none() && self.direction == Direction::Outbound }
    }

    /// Whether an exchange has this shape. What it was made of is held, so an address cannot have come to mean something else.
    pub(super) fn fits(&self, seen: &Outline, detail: &Detail) -> bool {
        self.direction == seen.direction
            && self.mtls == seen.mtls
            && same(&self.settings, &seen.snapshot.settings)
            && same(&self.rule, &seen.rule)
            && same(&self.cluster, &seen.cluster)
            && same(&self.endpoint, &seen.endpoint)
            && same(&self.port, &seen.port)
            && same(&self.caller, &detail.caller)
            && self.tls == detail.tls
    }

    /// The caller.
    pub(super) fn source(&self) -> Party<'_> {
        match self.direction {
            Direction::Outbound => self.own(),
            Direction::Inbound => {
                let caller = self.caller.as_deref();
                Party {
                    namespace: caller.map(|caller| caller.identity.namespace()),
                    service: None,
                    workload: caller.map(|caller| &*caller.workload),
                    identity: caller.map(|caller| Who::Proven(&caller.identity)),
                    address: None,
                }
            }
        }
    }

    /// Who was called.
    pub(super) fn destination(&self) -> Party<'_> {
        let named = destination(self.direction, self.port.as_deref(), self.cluster.as_deref());
        let service = named.map(|(_, service)| &**service).filter(|service| !service.is_empty());
        match self.direction {
            Direction::Inbound => Party { service, ..self.own() },
            Direction::Outbound => {
                let endpoint = self.endpoint.as_deref();
                Party {
                    namespace: named.map(|(namespace, _)| &**namespace).filter(|namespace| !namespace.is_empty()),
                    service,
                    workload: endpoint.map(|endpoint| &*endpoint.workload).filter(|workload| !workload.is_empty()),
                    identity: endpoint.filter(|_| self.mtls).and_then(|endpoint| endpoint.identity.as_deref()).map(Who::Proven),
                    address: endpoint.map(|endpoint| endpoint.address),
                }
            }
        }
    }

    fn own(&self) -> Party<'_> {
        let own = self.settings.as_deref();
        Party {
            namespace: own.map(|own| own.namespace.as_str()),
            service: None,
            workload: own.map(|own| own.workload.as_str()),
            identity: own.map(Who::Own),
            address: None,
        }
    }
}

fn same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
    address(a) == address(b)
}

pub(super) fn address<T>(value: &Option<Arc<T>>) -> usize {
    value.as_ref().map_or(0, |value| Arc::as_ptr(value).addr())
}
