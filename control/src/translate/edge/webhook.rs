//! The Service that writes DNS records for ordered certificates: where it is, and how it is met. It is the control plane that calls it.

use std::net::SocketAddr;

use proto::words::MtlsMode;
use proto::xds::core::HealthStatus;

use super::external;
use crate::translate::attach::WhyNot;
use crate::translate::backend_tls::{self, CalledTls};
use crate::translate::endpoint::{self, ClusterEndpoint};
use crate::translate::mtls::Modes;
use crate::world::edge::AcmeDns;
use crate::world::{Index, Name, World};

/// Endpoints that are tried, one after the other, until one takes a call.
const ENDPOINTS_MAX: usize = 4;

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeWebhook {
    /// Its Service and port, as people name it.
    pub service: String,
    /// What it is called by.
    pub authority: String,
    /// Its endpoints.
    pub addresses: Vec<SocketAddr>,
    /// How it is met by TLS; `None`: in plaintext.
    pub tls: Option<CalledTls>,
}

/// Where the webhook of a policy is.
///
/// # Errors
/// It is not there, it may not be referred to, or it cannot be met.
pub(super) fn resolve(world: &World, dns: &AcmeDns) -> Result<AcmeWebhook, String> {
    let index = world.index();
    let policy = world.get(&dns.policy).ok_or_else(|| format!("there is no {}", dns.policy))?;
    let backend = external::resolve(index, policy, &dns.webhook).map_err(told)?;
    let (namespace, name) = &backend.service;
    let service = format!("{namespace}/{name}:{}", backend.port);
    let tls = backend_tls::called(index, &backend).map_err(told)?;
    let view = index.services.get(&backend.service);
    let encrypted =
        view.and_then(|view| endpoint::port_of(view, backend.port)?.app_protocol.as_deref()).is_some_and(|word| word == "https");
    if encrypted && tls.is_none() {
        return Err(format!("Service {service} speaks https, and no BackendTLSPolicy says whom to believe there"));
    }
    let addresses = called_endpoints(index, &backend.service, backend.port)?;
    let authority = match &tls {
        Some(tls) => format!("{}:{}", tls.name, backend.port),
        None => format!("{name}.{namespace}:{}", backend.port),
    };
    Ok(AcmeWebhook { service, authority, addresses, tls })
}

/// Ready endpoints of a Service's port that the control plane itself may call, a few.
///
/// # Errors
/// There are none, or they take nobody without an identity of the mesh.
pub(crate) fn called_endpoints(index: &Index, name: &Name, port: u16) -> Result<Vec<SocketAddr>, String> {
    let service = format!("{}/{}:{port}", name.0, name.1);
    let view = index.services.get(name);
    let found = view.and_then(|view| Some(endpoint::targets(index, view, endpoint::port_of(view, port)?))).unwrap_or_default();
    let (closed, open): (Vec<_>, Vec<_>) =
        found.into_iter().filter(|target| target.health == HealthStatus::Healthy).partition(|target| is_closed(index, target));
    if open.is_empty() && !closed.is_empty() {
        return Err(format!(
            "the pods of Service {service} take mesh TLS alone, and the control plane has none: make that port Permissive in a PeerAuthentication"
        ));
    }
    let addresses: Vec<SocketAddr> = open.into_iter().map(|target| target.address).take(ENDPOINTS_MAX).collect();
    if addresses.is_empty() {
        return Err(format!("Service {service} has no ready endpoint"));
    }
    Ok(addresses)
}

fn told(why: WhyNot) -> String {
    why.message
}

/// Whether it lets in who has an identity of the mesh alone.
fn is_closed(index: &Index, target: &ClusterEndpoint) -> bool {
    let instance = index.instances.get(&(target.namespace.clone(), target.instance.clone()));
    let mode = |labels| Modes::new(index, &target.namespace, labels).of(target.address.port());
    target.identity.is_some() && instance.is_some_and(|instance| mode(instance.labels()) == MtlsMode::Strict)
}
