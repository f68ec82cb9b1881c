//! An edge's ports: HTTP in plaintext, bytes, or TLS by name.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Name as _;
use proto::mesh::{self, UdpCluster, UdpProxy};
use proto::xds::core::TransportSocket;
use proto::xds::listener::{Filter, FilterChain, FilterChainMatch, ListenerFilter, UdpListenerConfig, filter, listener_filter};

use super::chains::{SERVER_NAMES_MAX, TableSource, application_http, of_tls, placed, plaintext, server_names, source};
use super::hcm::{self, End, Facing};
use super::policy::{Link, Policies};
use super::secret::Secrets;
use super::{forward, metadata, stamp, tls, unpack};
use crate::authorize::{self, Authorization};
use crate::model::{Chain, Chains, ClientPolicy, ClientRules, Datagrams, Domains, Forward, Port, Protocol, Serves, TlsTerms};
use crate::rejected::{Wrong, refuse};

/// What is served there, while it is staged.
type PortDraft = Port<Forward<Link>, Chains<Serves<Link, TableSource>>, TableSource>;

/// An edge's port while it is staged.
#[derive(Debug)]
pub(super) struct EdgeDraft {
    pub(super) content: u64,
    pub(super) port: PortDraft,
    pub(super) clients: Arc<ClientPolicy>,
}

pub(super) fn compile(
    (listed, rest): (&[FilterChain], Option<&FilterChain>),
    clients: Arc<ClientPolicy>,
    policies: &mut Policies,
    secrets: &mut Secrets,
) -> Result<EdgeDraft, Wrong> {
    refuse(rest.is_some(), "default_filter_chain")?;
    // One without a chain serves TLS of names that nobody leads anywhere yet.
    if listed.is_empty() || listed.iter().any(of_tls) {
        let chains = by_server_name(listed, &clients, policies, secrets)?;
        let requests = |chain: &Arc<Chain<_>>| chain.terms.is_some() && matches!(chain.serves, Serves::Http(_));
        if clients.http3.is_some() && !listed.is_empty() && !chains.all().any(requests) {
            return Err(no_http3());
        }
        return Ok(EdgeDraft { content: stamp(), port: Port::Tls(chains), clients });
    }
    if clients.http3.is_some() {
        return Err(no_http3());
    }
    let [only] = listed else {
        return Err(Wrong::new("filter_chains", "are several in plaintext: a client's first words do not tell them apart"));
    };
    let port = in_plaintext(only, policies).map_err(|wrong| wrong.within("filter_chains[0]"))?;
    Ok(EdgeDraft { content: stamp(), port, clients })
}

fn no_http3() -> Wrong {
    Wrong::new("listener_filters", "ask for HTTP/3, where no chain ends TLS and carries requests")
}

fn in_plaintext(chain: &FilterChain, policies: &mut Policies) -> Result<PortDraft, Wrong> {
    // The name is a label.
    let FilterChain { filter_chain_match, filters, metadata, transport_socket, name: _ } = chain;
    if let Some(raw) = filter_chain_match {
        let FilterChainMatch { destination_port, prefix_ranges, server_names, transport_protocol, application_protocols } = raw;
        let at = |wrong: Wrong| wrong.within("filter_chain_match");
        refuse(destination_port.is_some(), "destination_port").map_err(at)?;
        refuse(!prefix_ranges.is_empty(), "prefix_ranges").map_err(at)?;
        refuse(!server_names.is_empty(), "server_names").map_err(at)?;
        refuse(!matches!(transport_protocol.as_str(), "" | "raw_buffer"), "transport_protocol").map_err(at)?;
        refuse(application_http(application_protocols).map_err(at)?, "application_protocols").map_err(at)?;
    }
    plaintext(transport_socket.as_ref())?;
    metadata::only(metadata.as_ref(), &[])?;
    match hcm::compile(filters, Facing::Edge)? {
        End::Http { routes, tells_client, .. } => {
            if tells_client {
                return Err(Wrong::new("filters[0].forward_client_cert_details", "in plaintext nobody shows a certificate: SANITIZE"));
            }
            source(routes, policies).map(Port::Http)
        }
        End::Tcp(raw) => forward::tcp(&raw, policies).map(Port::Bytes).map_err(|wrong| wrong.within("filters[0]")),
    }
}

/// What meets no chain is sent away, so there is no rest.
fn by_server_name(
    listed: &[FilterChain],
    clients: &ClientPolicy,
    policies: &mut Policies,
    secrets: &mut Secrets,
) -> Result<Chains<Serves<Link, TableSource>>, Wrong> {
    if listed.len() > SERVER_NAMES_MAX {
        return Err(Wrong::new("filter_chains", format!("are more than {SERVER_NAMES_MAX}")));
    }
    let (mut names, mut all, mut taken) = (Domains::default(), Vec::with_capacity(listed.len()), HashSet::new());
    for (place, (field, raw)) in placed(listed).enumerate() {
        let at = |wrong: Wrong| wrong.within(&field);
        let wanted = raw.filter_chain_match.as_ref();
        let wanted = wanted.ok_or_else(|| at(Wrong::new("filter_chain_match", "must be for tls, as its neighbours'")))?;
        server_names(wanted, place, &mut names).map_err(|wrong| at(wrong.within("filter_chain_match")))?;
        if raw.name.is_empty() || !taken.insert(raw.name.as_str()) {
            return Err(at(Wrong::new("name", "is missing, or another chain's")));
        }
        all.push(Arc::new(chain(raw, clients.on(&raw.name), policies, secrets).map_err(at)?));
    }
    Ok(Chains { names: Arc::new(names), all })
}

fn chain(
    raw: &FilterChain,
    clients: &ClientRules,
    policies: &mut Policies,
    secrets: &mut Secrets,
) -> Result<Chain<Serves<Link, TableSource>>, Wrong> {
    let FilterChain { filter_chain_match: _, filters, metadata, transport_socket, name } = raw;
    metadata::only(metadata.as_ref(), &[])?;
    let ended = |socket: &TransportSocket| {
        tls::terms(socket, clients.plain_master_secret, secrets).map_err(|wrong| wrong.within("transport_socket"))
    };
    let terms = transport_socket.as_ref().map(ended).transpose()?.flatten();
    let name = name.as_str().into();
    let (asked, filters) = asked(filters).map_err(|wrong| wrong.within("filters[0]"))?;
    match hcm::compile(filters, Facing::Edge)? {
        End::Http { protocol, routes, tells_client } => {
            refuse(asked.is_some(), "filters[0]")?;
            inside(terms.as_deref(), protocol, tells_client)?;
            Ok(Chain { name, terms, serves: Serves::Http(source(routes, policies)?), tells_client, policies: None })
        }
        End::Tcp(raw) => {
            if terms.as_ref().is_some_and(|terms| !terms.alpn.is_empty()) {
                return Err(Wrong::new("transport_socket.common_tls_context.alpn_protocols", "must be none where bytes are inside"));
            }
            let forward = forward::tcp(&raw, policies).map_err(|wrong| wrong.within("filters[0]"))?;
            Ok(Chain { name, terms, serves: Serves::Bytes(Arc::new(forward)), tells_client: false, policies: asked })
        }
    }
}

/// Who may, which a chain asks first, and its other filters.
fn asked(filters: &[Filter]) -> Result<(Option<Arc<Authorization>>, &[Filter]), Wrong> {
    // The name is a label; the type decides.
    if let [Filter { name: _, config_type: Some(filter::ConfigType::TypedConfig(config)) }, rest @ ..] = filters
        && config.type_url == mesh::Authorization::type_url()
    {
        let raw: mesh::Authorization = unpack(config)?;
        return Ok((Some(Arc::new(authorize::compile(&raw)?)), rest));
    }
    Ok((None, filters))
}

/// Whether requests can be inside.
fn inside(terms: Option<&TlsTerms>, protocol: Protocol, tells_client: bool) -> Result<(), Wrong> {
    let Some(terms) = terms else {
        return Err(Wrong::new("filters", "TLS passes untouched here: must be a TcpProxy"));
    };
    if tells_client && terms.clients.is_none() {
        return Err(Wrong::new("filters[0].forward_client_cert_details", "nobody is asked for a certificate here: SANITIZE"));
    }
    debug_assert_eq!(protocol, Protocol::Http, "an edge's codec is AUTO");
    Ok(())
}

/// A port for datagrams.
pub(super) fn datagrams(
    name: &str,
    (config, filters): (Option<&UdpListenerConfig>, &[ListenerFilter]),
    policies: &mut Policies,
) -> Result<Datagrams<Link>, Wrong> {
    let Some(UdpListenerConfig {}) = config else {
        return Err(Wrong::new("udp_listener_config", "is missing"));
    };
    // The name is a label.
    let [ListenerFilter { name: _, config_type: Some(listener_filter::ConfigType::TypedConfig(config)) }] = filters else {
        return Err(Wrong::new("listener_filters", "must be one, a UdpProxy"));
    };
    let at = |wrong: Wrong| wrong.within("listener_filters[0].typed_config");
    if config.type_url != UdpProxy::type_url() {
        return Err(at(Wrong::new("", "is no UdpProxy")));
    }
    let UdpProxy { clusters, idle_timeout } = unpack(config).map_err(at)?;
    let weights = clusters.into_iter().map(|UdpCluster { cluster, weight }| (cluster, weight));
    let forward = forward::udp(weights, idle_timeout.as_ref(), policies).map_err(at)?;
    Ok(Datagrams { name: name.into(), forward: Arc::new(forward), content: stamp() })
}
