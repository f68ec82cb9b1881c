//! Why a request goes where it goes, in the JSON of kinds.md (`explain -o json`): the client's connection and its request are walked
//! through the same [`decide::connection`] and [`decide::admit`] that the road carries out, and every step is told. Pure; the shell fetches
//! what is not yet subscribed and asks again.

pub mod dump;
mod view;
mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto::names::{ALPN_H1, ALPN_H2, ALPN_TCP};

use crate::balance;
use crate::decide::{self, Course, Door, Facts, Fault, First, Known, Learn, Proved, RequestHead, Step, Terms, Version, without_port};
use crate::failure::{LocalReply, Reason};
use crate::model::{Action, Cluster, ClusterKind, Forward, InboundPort, MtlsMode, Protocol, RouteTable, Rule, Settings, Snapshot, Target};
use crate::sniff::{ClientHello, Sniffed};

pub use view::{BackendView, EndpointView, Explanation, PolicyView, ReplyView, RouteView, StageView, Verb};

/// A request as a client sends it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'r> {
    /// Its head.
    pub head: RequestHead<'r>,
    /// The HTTP that the client speaks.
    pub version: Version,
    /// See [`Facts::fault`].
    pub fault: Option<Fault>,
}

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

/// What a request to that original destination meets on the caller's side. What is not in the snapshot is taken for unknown.
pub fn outbound(snapshot: &Snapshot, destination: SocketAddr, asked: &Asked<'_>) -> Explanation {
    let name = snapshot.outbound.get(&destination).map_or("", |listener| &*listener.name);
    let explanation = Explanation::new(snapshot.epoch, name);
    let door = Door::Outbound(destination);
    let (course, _) = walk(snapshot, door, &Visitor::plaintext(asked.version));
    match course {
        Course::Outside => outside(snapshot, destination, asked, explanation),
        Course::Refuse(reason) => {
            let why = refused(snapshot, destination, reason);
            explanation.stage("listener", "Reply", why).reply(&LocalReply::of(reason))
        }
        course => taken(explanation, (course, Terms::of(snapshot, door)), asked, false),
    }
}

/// What a request to a Gateway's listener port meets.
pub fn edge(snapshot: &Snapshot, port: u16, asked: &Asked<'_>) -> Explanation {
    let name = snapshot.edges.get(&port).map_or("", |listener| &*listener.name);
    let explanation = Explanation::new(snapshot.epoch, name);
    let explanation = match name {
        "" => explanation.stage("listener", "Reply", format!("this proxy has no listener on port {port}")),
        _ => explanation,
    };
    let door = Door::Edge(port);
    let (course, proved) = walk(snapshot, door, &Visitor::plaintext(asked.version));
    taken(explanation, (course, Terms::of(snapshot, door)), asked, proved)
}

/// What a request to the application's port meets on the server's side. `peer` is the SPIFFE identity of a caller that comes by mesh TLS,
/// absent for plaintext.
pub fn inbound(snapshot: &Snapshot, port: u16, peer: Option<&str>, asked: &Asked<'_>) -> Explanation {
    let explanation = Explanation::new(snapshot.epoch, proto::names::INBOUND);
    let Some(inbound) = &snapshot.inbound else {
        let why = "no inbound listener yet: connections are closed without an answer";
        return explanation.stage("listener", "Close", why).closed(Reason::ConfigPending);
    };
    let rule = inbound.port(port);
    let client = if peer.is_some() { Visitor::mesh(asked.version, rule) } else { Visitor::plaintext(asked.version) };
    let (course, proved) = walk(snapshot, Door::Inbound(port), &client);
    let (verdict, why) = mtls(rule, inbound.ports.contains_key(&port), (peer, proved), course);
    let mut explanation = taken(explanation.stage("mtls", verdict, why), (course, Terms::Inbound(rule)), asked, proved);
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

/// A client whose connection is walked: what it says first, and after a mesh handshake.
struct Visitor {
    first: Sniffed,
    inside: Sniffed,
    alpn: Option<&'static str>,
}

impl Visitor {
    const fn plaintext(version: Version) -> Self {
        Self { first: words_of(version), inside: words_of(version), alpn: None }
    }

    /// The proxy of a peer. It was told of the same declaration, so it carries bytes where the port declares them.
    fn mesh(version: Version, port: &InboundPort) -> Self {
        let alpn = match (port.protocol, version) {
            (Protocol::Tcp, _) => ALPN_TCP,
            (_, Version::Http1) => ALPN_H1,
            (_, Version::Http2) => ALPN_H2,
        };
        let hello = ClientHello { sni: None, alpn: vec![alpn.as_bytes().to_vec()] };
        Self { first: Sniffed::Tls(hello), inside: words_of(version), alpn: Some(alpn) }
    }
}

const fn words_of(version: Version) -> Sniffed {
    match version {
        Version::Http1 => Sniffed::Http1,
        Version::Http2 => Sniffed::Http2,
    }
}

/// Walks a connection to its course; whether the client proved itself on the way. Each step learns what was not known before, so it ends.
fn walk(snapshot: &Snapshot, door: Door, client: &Visitor) -> (Course, bool) {
    let mut known = Known { asked: true, ..Known::default() };
    loop {
        match decide::connection(snapshot, door, &known) {
            Step::Take(course) => return (course, known.proved.is_some()),
            Step::Learn(Learn::Listener) => known.asked = true,
            Step::Learn(Learn::Words | Learn::EitherSide) => known.first = Some(First::Client(&client.first)),
            Step::Learn(Learn::Proof) => known.proved = Some(Proved { alpn: client.alpn }),
            Step::Learn(Learn::WordsInside) => known.inside = Some(&client.inside),
        }
    }
}

/// What a course comes to for the request.
fn taken(explanation: Explanation, (course, view): (Course, Terms<'_>), asked: &Asked<'_>, proved: bool) -> Explanation {
    match course {
        Course::Serve(_) => served(explanation, view, asked, proved),
        Course::Unreadable => {
            let why = "HTTP in plaintext is all that is served here, and this is TLS";
            explanation.stage("protocol", "Reply", why).reply(&LocalReply::of(Reason::BadRequest))
        }
        Course::Carry => carried(explanation.stage("protocol", "Continue", "opaque: carried as bytes"), view),
        Course::Outside => explanation,
        Course::Refuse(reason) => explanation.reply(&LocalReply::of(reason)),
        Course::Close(reason) => explanation.closed(reason),
    }
}

fn carried(mut explanation: Explanation, view: Terms<'_>) -> Explanation {
    match view {
        Terms::Outbound(listener) | Terms::Edge(listener) => {
            let explanation = match &listener.tcp {
                Some(forward) => towards(explanation, forward),
                None => explanation,
            };
            // Bytes get no answer that says why.
            match explanation.reply.as_ref().map(|reply| reply.reason) {
                Some(reason) => explanation.unanswered(reason),
                None => explanation,
            }
        }
        Terms::Inbound(_) => {
            explanation.cluster = Some(proto::names::INBOUND.to_owned());
            explanation
        }
        Terms::NoPort | Terms::Unconfigured => explanation,
    }
}

fn served(explanation: Explanation, view: Terms<'_>, asked: &Asked<'_>, proved: bool) -> Explanation {
    match decide::admit(view, Facts { proved, fault: asked.fault }) {
        Ok(table) => routed(explanation, table, &asked.head),
        Err(refusal) => {
            let explanation = match asked.fault {
                Some(fault) if fault.reason == refusal.reason => explanation.stage("head", "Reply", fault.why),
                _ => explanation,
            };
            explanation.reply(&refusal.reply())
        }
    }
}

/// Past the mesh; but the instance's own address is reached by way of its inbound side.
fn outside(snapshot: &Snapshot, destination: SocketAddr, asked: &Asked<'_>, explanation: Explanation) -> Explanation {
    let own = snapshot.settings.as_ref().is_some_and(|settings| settings.own_addresses.contains(&destination.ip()));
    if own && snapshot.inbound.is_some() {
        return inbound(snapshot, destination.port(), None, asked);
    }
    explanation.stage("listener", "Continue", format!("{destination} is outside the mesh: passed through as it is"))
}

fn refused(snapshot: &Snapshot, destination: SocketAddr, reason: Reason) -> String {
    match reason {
        Reason::NoRoute => {
            "the address is the mesh's, but nothing is served at this port: its Service or Gateway does not declare it".to_owned()
        }
        Reason::Denied => format!("{destination} is outside the mesh, and outsideMesh is Deny"),
        _ if snapshot.settings.is_none() => "no configuration yet".to_owned(),
        _ => format!("{destination} lies in the mesh's ranges, but no listener is known for it"),
    }
}

fn local_endpoint(settings: &Settings, ip: IpAddr, port: u16) -> EndpointView {
    EndpointView {
        address: SocketAddr::new(ip, port).to_string(),
        workload: format!("{}/{}", settings.namespace, settings.workload),
        identity: None,
        weight: 1,
        health: "Healthy",
        in_flight: 0,
        chance: 1.0,
    }
}

/// Verdict and story of the port's mode. `peer`: who calls by mesh TLS, and whether it was asked to prove it.
fn mtls(rule: &InboundPort, declared: bool, peer: (Option<&str>, bool), course: Course) -> (&'static str, String) {
    let whose = if declared { "this port" } else { "every other port" };
    let mode = rule.mode.text();
    match (course, peer) {
        (Course::Close(_), _) => ("Close", format!("{mode} for {whose}: plaintext is closed without an answer")),
        (_, (Some(peer), true)) => ("Continue", format!("{mode} for {whose}: mTLS with {peer}")),
        (_, (Some(_), false)) => ("Continue", format!("{mode} for {whose}: TLS is not ended here, it is bytes like any other")),
        (_, (None, _)) if rule.mode == MtlsMode::Disabled => ("Continue", format!("{mode} for {whose}: plaintext")),
        (_, (None, _)) => ("Continue", format!("{mode} for {whose}: plaintext is taken")),
    }
}

fn routed(mut explanation: Explanation, table: &RouteTable, head: &RequestHead<'_>) -> Explanation {
    let Some(rules) = decide::rules(table, head.host) else {
        let why = format!("no virtual host of {} is for `{}`", table.name, without_port(head.host));
        return explanation.stage("route", "Reply", why).reply(&LocalReply::of(Reason::NoRoute));
    };
    let Some(index) = decide::first(rules, head) else {
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
