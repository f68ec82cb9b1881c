//! Why a request goes where it goes, in the JSON of kinds.md (`explain -o json`): asked of the same `decide` that
//! carries requests. Pure; the shell fetches what is not yet subscribed and asks again.

pub mod dump;
mod view;
mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance;
use crate::decide::{self, RequestHead, without_port};
use crate::failure::{LocalReply, Reason};
use crate::model::{
    Action, Cluster, ClusterKind, Forward, InboundPort, MtlsMode, Outbound, Protocol, RouteTable, Rule, Settings, Snapshot, Target,
};

pub use view::{BackendView, EndpointView, Explanation, PolicyView, ReplyView, RouteView, StageView, Verb};

/// Where a URL leads as this proxy sees it: an address as written, else the mesh's answer for the name, tried as written and then
/// in the proxy's own namespace. IPv4 is preferred, as most resolvers do where the host has no global IPv6.
///
/// # Errors
/// Says which name the proxy does not know; its DNS resource may have to be subscribed first.
pub fn destination(snapshot: &Snapshot, url: &http::Uri) -> Result<SocketAddr, String> {
    let Some(host) = url.host() else {
        return Err(format!("`{url}` names no host: write http://HOST[:PORT]/PATH"));
    };
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let host = bare.trim_end_matches('.').to_ascii_lowercase();
    let own = snapshot.settings.as_ref().map(|settings| format!("{host}.{}", settings.namespace));
    let answer = snapshot.names.get(&host).or_else(|| snapshot.names.get(&own?));
    let Some(answer) = answer else {
        return Err(format!("this proxy knows no name `{host}`"));
    };
    let address = answer.addresses.iter().find(|ip| ip.is_ipv4()).or(answer.addresses.first());
    address.map(|ip| SocketAddr::new(*ip, port)).ok_or_else(|| format!("the name `{host}` has no address"))
}

/// What a request to that original destination meets on the caller's side.
pub fn outbound(snapshot: &Snapshot, destination: SocketAddr, head: &RequestHead<'_>) -> Explanation {
    let own = snapshot.settings.as_ref().filter(|settings| settings.own_addresses.contains(&destination.ip()));
    if let Some(settings) = own {
        return inbound(snapshot, destination.port(), Some(&own_identity(settings)), head);
    }
    match snapshot.outbound.get(&destination) {
        Some(listener) => along(snapshot, listener, head),
        None => unknown(snapshot, destination),
    }
}

/// What a request to a Gateway's listener port meets.
pub fn edge(snapshot: &Snapshot, port: u16, head: &RequestHead<'_>) -> Explanation {
    match snapshot.edges.get(&port) {
        Some(listener) => along(snapshot, listener, head),
        None => {
            let why = format!("this proxy has no listener on port {port}");
            Explanation::new(snapshot.epoch, "").stage("listener", "Reply", why).reply(&LocalReply::of(Reason::NoRoute))
        }
    }
}

/// What a request to the application's port meets on the server's side. `peer` is the SPIFFE identity of the caller, absent for
/// plaintext.
pub fn inbound(snapshot: &Snapshot, port: u16, peer: Option<&str>, head: &RequestHead<'_>) -> Explanation {
    let mut explanation = Explanation::new(snapshot.epoch, proto::names::INBOUND);
    let Some(inbound) = &snapshot.inbound else {
        return explanation.stage("listener", "Reply", "no inbound listener yet").reply(&LocalReply::of(Reason::ConfigPending));
    };
    let rule = inbound.port(port);
    let (verdict, why) = mtls(rule, inbound.ports.contains_key(&port), peer);
    explanation = explanation.stage("mtls", verdict, why);
    if verdict == "Close" {
        // Closed without an answer: there is no status to see.
        explanation.decision = Verb::Reply;
        explanation.reply = Some(ReplyView { status: 0, reason: Some(Reason::Denied.text()) });
        return explanation;
    }
    if rule.protocol == Protocol::Tcp {
        explanation = explanation.stage("protocol", "Continue", "declared opaque: carried as bytes unless the peer's ALPN says HTTP");
    }
    explanation = routed(explanation, &rule.http, head);
    // The inbound side's one rule has no object of its own; the Workload is what it serves.
    if let (Some(route), Some(settings)) = (&mut explanation.route, &snapshot.settings)
        && route.kind.is_empty()
    {
        "Workload".clone_into(&mut route.kind);
        route.namespace.clone_from(&settings.namespace);
        route.name.clone_from(&settings.workload);
    }
    if let (Verb::Forward, Some(settings)) = (explanation.decision, &snapshot.settings) {
        explanation.endpoints = settings.own_addresses.first().map(|ip| local_endpoint(settings, *ip, port)).into_iter().collect();
    }
    explanation
}

fn own_identity(settings: &Settings) -> String {
    format!("spiffe://{}/ns/{}/sa/{}", settings.trust_domain, settings.namespace, settings.service_account)
}

fn local_endpoint(settings: &Settings, ip: IpAddr, port: u16) -> EndpointView {
    EndpointView {
        address: SocketAddr::new(ip, port).to_string(),
        workload: format!("{}/{}", settings.namespace, settings.workload),
        weight: 1,
        health: "Healthy",
        in_flight: 0,
        chance: 1.0,
    }
}

fn mtls(rule: &InboundPort, declared: bool, peer: Option<&str>) -> (&'static str, String) {
    let whose = if declared { "this port" } else { "every other port" };
    let mode = rule.mode.text();
    match (rule.mode, peer) {
        (MtlsMode::Strict | MtlsMode::Permissive, Some(peer)) => ("Continue", format!("{mode} for {whose}: mTLS with {peer}")),
        (MtlsMode::Strict, None) => ("Close", format!("{mode} for {whose}: plaintext is closed without an answer")),
        (MtlsMode::Permissive, None) => ("Continue", format!("{mode} for {whose}: plaintext is taken")),
        (MtlsMode::Disabled, None) => ("Continue", format!("{mode} for {whose}: plaintext")),
        (MtlsMode::Disabled, Some(_)) => ("Continue", format!("{mode} for {whose}: mesh peers speak plaintext here too")),
    }
}

/// No listener for the destination: not yet known, outside the mesh, or kept inside.
fn unknown(snapshot: &Snapshot, destination: SocketAddr) -> Explanation {
    let explanation = Explanation::new(snapshot.epoch, "");
    let Some(settings) = &snapshot.settings else {
        return explanation.stage("listener", "Reply", "no configuration yet").reply(&LocalReply::of(Reason::ConfigPending));
    };
    if settings.mesh_holds(destination.ip()) {
        let why = format!("{destination} lies in the mesh's ranges, but no listener is known for it");
        return explanation.stage("listener", "Reply", why).reply(&LocalReply::of(Reason::ConfigPending));
    }
    if settings.outside_mesh_denied {
        let why = format!("{destination} is outside the mesh, and outsideMesh is Deny");
        return explanation.stage("listener", "Reply", why).reply(&LocalReply::of(Reason::Denied));
    }
    explanation.stage("listener", "Continue", format!("{destination} is outside the mesh: passed through as it is"))
}

fn along(snapshot: &Snapshot, listener: &Outbound, head: &RequestHead<'_>) -> Explanation {
    let explanation = Explanation::new(snapshot.epoch, &listener.name);
    match (&listener.http, &listener.tcp) {
        (Some(table), _) => routed(explanation, table, head),
        (None, Some(forward)) => {
            let explanation = explanation.stage("protocol", "Continue", "declared opaque: carried as bytes");
            towards(explanation, forward)
        }
        (None, None) => {
            let why = "the address is the mesh's, but nothing is served at this port: its Service or Gateway does not declare it";
            explanation.stage("listener", "Reply", why).reply(&LocalReply::of(Reason::NoRoute))
        }
    }
}

fn routed(mut explanation: Explanation, table: &RouteTable, head: &RequestHead<'_>) -> Explanation {
    let Some(rules) = decide::rules(table, head.host) else {
        let why = format!("no virtual host of {} is for `{}`", table.name, without_port(head.host));
        return explanation.stage("route", "Reply", why).reply(&LocalReply::of(Reason::NoRoute));
    };
    let Some(index) = rules.iter().position(|rule| decide::matching::matches(&rule.matches, head)) else {
        let why = format!("no rule of {} matches{}", table.name, words::passed_over(rules, head));
        return explanation.stage("route", "Reply", why).reply(&LocalReply::of(Reason::NoRoute));
    };
    let rule = &rules[index];
    explanation.route = Some(RouteView {
        kind: rule.source.kind.to_string(),
        namespace: rule.source.namespace.to_string(),
        name: rule.source.name.to_string(),
        rule: rule.source.rule.to_string(),
        why: format!("{}{}", words::matched(&rule.matches), words::passed_over(&rules[..index], head)),
    });
    acted(explanation, rule)
}

fn acted(explanation: Explanation, rule: &Rule) -> Explanation {
    match &rule.action {
        Action::Reply(reply) => explanation.reply(reply),
        Action::Forward(forward) => towards(explanation, forward),
    }
}

/// All that a split may lead to, each with its chance; the decision shown is the likeliest backend's.
fn towards(mut explanation: Explanation, forward: &Forward) -> Explanation {
    let Some(likeliest) = forward.backends.iter().reduce(|best, next| if next.weight > best.weight { next } else { best }) else {
        return explanation.stage("backends", "Reply", "no backend has a weight above 0").reply(&LocalReply::of(Reason::BadBackend));
    };
    for stage in likeliest.stages.iter().chain(&forward.stages) {
        let crate::filter::Stage::Local(filter) = stage;
        explanation = explanation.stage(filter.name(), "Continue", filter.story());
    }
    for backend in &forward.backends {
        let chance = backend.weight as f64 / forward.weight_total as f64;
        let (cluster, reply) = match &backend.target {
            Target::Cluster(cluster) => {
                explanation.endpoints.extend(endpoints(cluster, chance));
                (Some(cluster.name.to_string()), None)
            }
            Target::Reply(reply) => (None, Some(ReplyView::of(reply))),
        };
        explanation.backends.push(BackendView { cluster, reply, weight: backend.weight, chance });
    }
    match &likeliest.target {
        Target::Reply(reply) => explanation.reply(reply),
        Target::Cluster(cluster) => {
            explanation.cluster = Some(cluster.name.to_string());
            if cluster.kind == ClusterKind::Endpoints && cluster.endpoints.0.load().ready.is_empty() {
                return explanation.reply(&LocalReply::of(Reason::NoEndpoints));
            }
            explanation
        }
    }
}

/// Ready endpoints with their chance, known others with none.
fn endpoints(cluster: &Arc<Cluster>, share: f64) -> Vec<EndpointView> {
    let set = cluster.endpoints.0.load();
    let chances = balance::chances(&set).into_iter().map(|chance| chance * share).chain(std::iter::repeat(0.0));
    set.ready.iter().chain(&set.other).zip(chances).map(|(endpoint, chance)| EndpointView::of(endpoint, chance)).collect()
}

#[cfg(test)]
mod tests;
