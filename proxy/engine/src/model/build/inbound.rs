//! The `inbound` listener: its filter chains per port, folded into one rule per port.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Name;
use proto::xds::listener::{FilterChain, Listener as Raw};
use proto::xds::route::RouteConfiguration;
use proto::xds::tls::common_tls_context::ValidationContextType;
use proto::xds::tls::{DownstreamTlsContext, TlsParameters};
use proto::xds::{raw_buffer, tls};

use super::cluster::{config_source, socket_config};
use super::hcm::{self, End, Routes, Side};
use super::{INBOUND_CLUSTER, forward, metadata, route, stamp, unpack};
use crate::model::{MtlsMode, Protocol};
use crate::rejected::{Wrong, refuse};

/// Most chains of the listener.
const CHAINS_MAX: usize = 4096;

/// See [`crate::model::Inbound`].
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) content: u64,
    pub(super) ports: BTreeMap<u16, Port>,
    pub(super) other: Port,
}

/// See [`crate::model::InboundPort`].
#[derive(Debug)]
pub(super) struct Port {
    pub(super) mode: MtlsMode,
    pub(super) protocol: Protocol,
    pub(super) table: route::Table,
    pub(super) service_namespace: String,
    pub(super) service: String,
    pub(super) idle_timeout: Option<Duration>,
}

/// A chain's part in a port's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Mesh TLS, told by our marker in the offered ALPN.
    Marked,
    /// Mesh TLS whatever ALPN is offered.
    AnyTls,
    /// The application's own TLS.
    Passthrough,
    /// Plaintext.
    Plain,
}

struct Chain<'l> {
    field: String,
    raw: &'l FilterChain,
    role: Role,
    /// Only for what the inspector found to be HTTP.
    sniffed: bool,
    end: End,
}

pub(super) fn compile(raw: &Raw) -> Result<Inbound, Wrong> {
    refuse(raw.default_filter_chain.is_some(), "default_filter_chain")?;
    if raw.filter_chains.len() > CHAINS_MAX {
        return Err(Wrong::new("filter_chains", format!("holds more than {CHAINS_MAX} chains")));
    }
    let mut groups: BTreeMap<Option<u16>, Vec<Chain<'_>>> = BTreeMap::new();
    for (field, chain) in super::listener::chains(raw) {
        let (port, chain) = read(chain, &field).map_err(|wrong| wrong.within(&field))?;
        groups.entry(port).or_default().push(chain);
    }
    let Some(other) = groups.remove(&None) else {
        return Err(Wrong::new("filter_chains", "no chain without destination_port: the rule for every other port is missing"));
    };
    let other = fold(&other, "every other port")?;
    let port = |(port, chains): (Option<u16>, Vec<Chain<'_>>)| {
        let port = port.unwrap_or_default();
        Ok((port, fold(&chains, &format!("port {port}"))?))
    };
    Ok(Inbound { content: stamp(), ports: groups.into_iter().map(port).collect::<Result<_, Wrong>>()?, other })
}

fn read<'l>(raw: &'l FilterChain, field: &str) -> Result<(Option<u16>, Chain<'l>), Wrong> {
    let wanted = raw.filter_chain_match.clone().unwrap_or_default();
    let at = |name: &str| format!("filter_chain_match.{name}");
    refuse(!wanted.prefix_ranges.is_empty(), &at("prefix_ranges"))?;
    refuse(!wanted.server_names.is_empty(), &at("server_names"))?;
    let port = match wanted.destination_port {
        None => None,
        Some(port) => match u16::try_from(port) {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(Wrong::new(at("destination_port"), format!("{port} is not a port"))),
        },
    };
    let mesh = mesh_tls(raw)?;
    let protocols = &wanted.application_protocols;
    let marker = |name: &String| [proto::names::ALPN_H1, proto::names::ALPN_H2, proto::names::ALPN_TCP].contains(&name.as_str());
    let marked = !protocols.is_empty() && protocols.iter().all(marker);
    let (role, sniffed) = match (wanted.transport_protocol.as_str(), mesh, marked) {
        ("tls", true, true) => (Role::Marked, false),
        ("tls", true, false) => (Role::AnyTls, foreign_http(protocols)?),
        ("tls", false, false) if protocols.is_empty() => (Role::Passthrough, false),
        ("raw_buffer", false, false) => (Role::Plain, http_names(protocols)?),
        _ => return Err(Wrong::new("filter_chain_match", "is none of mesh TLS, TLS passed through and plaintext")),
    };
    let end = hcm::compile(raw, Side::Inbound)?;
    if sniffed && matches!(end, End::Tcp(_)) {
        return Err(Wrong::new(at("application_protocols"), "names HTTP for a chain that is not"));
    }
    if role == Role::Passthrough && !matches!(end, End::Tcp(_)) {
        return Err(Wrong::new("filters[0]", "the application's own TLS can only be passed through"));
    }
    Ok((port, Chain { field: field.to_owned(), raw, role, sniffed, end }))
}

fn http_names(protocols: &[String]) -> Result<bool, Wrong> {
    super::listener::application_http(protocols).map_err(|wrong| wrong.within("filter_chain_match"))
}

/// Under Strict the inner protocol shows in the ALPN of stock clients, or in the first bytes.
fn foreign_http(protocols: &[String]) -> Result<bool, Wrong> {
    let others: Vec<String> = protocols.iter().filter(|name| *name != "h2").cloned().collect();
    Ok(http_names(&others)? || !protocols.is_empty())
}

/// Whether the chain ends mesh TLS. Certificates, trust and identities are the proxy's own affair, so a chain can only say what is so anyway.
fn mesh_tls(chain: &FilterChain) -> Result<bool, Wrong> {
    let Some(socket) = &chain.transport_socket else { return Ok(false) };
    let at = |wrong: Wrong| wrong.within("transport_socket");
    let Some(config) = socket_config(Some(socket)) else {
        return Err(Wrong::new("transport_socket.typed_config", "is missing"));
    };
    if config.type_url == raw_buffer::RawBuffer::type_url() {
        return Ok(false);
    }
    if config.type_url != DownstreamTlsContext::type_url() {
        return Err(Wrong::unsupported(format!("transport_socket `{}`", socket.name.escape_debug())));
    }
    let context: DownstreamTlsContext = unpack(config).map_err(at)?;
    if context.require_client_certificate != Some(true) {
        return Err(at(Wrong::new("require_client_certificate", "must be true: mesh TLS is mutual")));
    }
    let common = context.common_tls_context.unwrap_or_default();
    tls_context(&common).map_err(|wrong| at(wrong.within("common_tls_context")))?;
    Ok(true)
}

fn tls_context(common: &tls::CommonTlsContext) -> Result<(), Wrong> {
    for secret in &common.tls_certificate_sds_secret_configs {
        config_source(secret.sds_config.as_ref(), "tls_certificate_sds_secret_configs")?;
    }
    let inline = match &common.validation_context_type {
        Some(ValidationContextType::ValidationContext(context)) => context.trusted_ca.is_some(),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.default_validation_context.as_ref().is_some_and(|context| context.trusted_ca.is_some())
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(_)) | None => false,
    };
    refuse(inline, "validation_context.trusted_ca")?;
    let TlsParameters { tls_maximum_protocol_version: most, .. } = common.tls_params.unwrap_or_default();
    // 0 is "auto", 4 is TLS 1.3, which is all that mesh peers speak.
    refuse(!matches!(most, 0 | 4), "tls_params.tls_maximum_protocol_version")
}

/// Which of PeerAuthentication's modes a port's chains spell.
fn fold(chains: &[Chain<'_>], whose: &str) -> Result<Port, Wrong> {
    let with = |role: Role| chains.iter().filter(|chain| chain.role == role).collect::<Vec<_>>();
    let (marked, any_tls, passed, plain) = (with(Role::Marked), with(Role::AnyTls), with(Role::Passthrough), with(Role::Plain));
    let (mode, deciding) = match (marked.is_empty(), any_tls.is_empty(), passed.is_empty(), plain.is_empty()) {
        (true, false, true, true) => (MtlsMode::Strict, &any_tls),
        (false, true, false, false) => (MtlsMode::Permissive, &plain),
        (true, true, true, false) => (MtlsMode::Disabled, &plain),
        _ => {
            let why = format!("the chains of {whose} spell none of Strict, Permissive and Disabled");
            return Err(Wrong::new("filter_chains", why));
        }
    };
    if passed.len() > 1 || marked.len() > 2 {
        return Err(Wrong::new("filter_chains", format!("two chains of {whose} match the same")));
    }
    let protocol = inner_protocol(deciding, whose)?;
    let (service_namespace, service) = service(deciding[0])?;
    Ok(Port { mode, protocol, table: table(chains)?, service_namespace, service, idle_timeout: idle_timeout(chains)? })
}

/// One chain declares a protocol, two leave it to the first bytes.
fn inner_protocol(chains: &[&Chain<'_>], whose: &str) -> Result<Protocol, Wrong> {
    match chains {
        [only] if !only.sniffed => Ok(match only.end {
            End::Http { protocol, .. } => protocol,
            End::Tcp(_) => Protocol::Tcp,
        }),
        [one, two] if one.sniffed != two.sniffed => {
            // Version by the first bytes: that is what "undeclared" means.
            let plain = |chain: &Chain<'_>| !matches!(chain.end, End::Http { protocol: Protocol::Http1 | Protocol::Http2, .. });
            let other = if one.sniffed { two } else { one };
            refuse(!plain(one) || !plain(two) || !matches!(other.end, End::Tcp(_)), &format!("{}.filters[0]", other.field))?;
            Ok(Protocol::Auto)
        }
        _ => Err(Wrong::new("filter_chains", format!("two chains of {whose} match the same, or the one for other bytes is missing"))),
    }
}

fn service(chain: &Chain<'_>) -> Result<(String, String), Wrong> {
    let text = metadata::text_or_empty(chain.raw.metadata.as_ref(), "service").map_err(|wrong| wrong.within(&chain.field))?;
    match text.split_once('/') {
        Some((namespace, name)) if !name.contains('/') => Ok((namespace.to_owned(), name.to_owned())),
        None if text.is_empty() => Ok((String::new(), String::new())),
        _ => Err(Wrong::new(format!("{}.metadata.service", chain.field), format!("`{}` is not NS/NAME", text.escape_debug()))),
    }
}

/// The one route table of a port's HTTP chains; a port without any still meets peers whose mesh ALPN says HTTP.
fn table(chains: &[Chain<'_>]) -> Result<route::Table, Wrong> {
    let mut found: Option<&RouteConfiguration> = None;
    for chain in chains {
        let End::Http { routes, .. } = &chain.end else { continue };
        let at = |why: &str| Wrong::new(format!("{}.filters[0]", chain.field), why);
        let Routes::Inline(raw) = routes else {
            return Err(at("inbound routes must be inline (route_config)"));
        };
        if found.is_some_and(|found| *found != **raw) {
            return Err(at("the chains of one port must have the same route_config"));
        }
        found = Some(raw);
    }
    let raw = found.cloned().unwrap_or_else(default_routes);
    route::compile(&raw, None).map_err(|wrong| wrong.within("route_config"))
}

/// Everything to the application.
fn default_routes() -> RouteConfiguration {
    use proto::xds::route::{Route, RouteAction, RouteMatch, VirtualHost, route, route_action, route_match};
    let action =
        RouteAction { cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(INBOUND_CLUSTER.to_owned())), ..Default::default() };
    let rule = Route {
        name: INBOUND_CLUSTER.to_owned(),
        r#match: Some(RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())), ..Default::default() }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost { name: INBOUND_CLUSTER.to_owned(), domains: vec!["*".to_owned()], routes: vec![rule], ..Default::default() };
    RouteConfiguration { name: INBOUND_CLUSTER.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

/// Opaque connections go to the application and nowhere else; their timeout is the same in all chains of a port.
fn idle_timeout(chains: &[Chain<'_>]) -> Result<Option<Duration>, Wrong> {
    let mut found = None;
    for chain in chains {
        let End::Tcp(raw) = &chain.end else { continue };
        let at = |wrong: Wrong| wrong.within(format!("{}.filters[0]", chain.field));
        let forward = forward::tcp(raw).map_err(at)?;
        let local = |backend: &forward::Backend| matches!(&backend.target, forward::Target::Cluster(name) if name == INBOUND_CLUSTER);
        if !matches!(forward.backends.as_slice(), [only] if local(only)) {
            return Err(at(Wrong::new("cluster", format!("must be `{INBOUND_CLUSTER}`"))));
        }
        if found.is_some_and(|found| found != forward.idle_timeout) {
            return Err(at(Wrong::new("idle_timeout", "differs between the chains of one port")));
        }
        found = Some(forward.idle_timeout);
    }
    Ok(found.unwrap_or(Some(super::IDLE_TIMEOUT_DEFAULT)))
}
