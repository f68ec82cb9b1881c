//! Why a request goes where it goes, in the JSON of kinds.md (`explain -o json`): the client's connection and its request are walked
//! through the same [`decide::connection`] and [`decide::admit`] that the road carries out, and every step is told. Pure; the shell fetches
//! what is not yet subscribed and asks again.

pub mod dump;
mod edge;
pub mod limits;
mod outside;
mod policies;
mod view;
mod way;
mod words;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proto::identity::Identity;
use proto::names::{ALPN_H1, ALPN_H2, ALPN_TCP};

use crate::Moment;
use crate::authenticate::{Remembered, TokenVerdict};
use crate::balance;
use crate::claims::Claims;
use crate::decide::{
    self, Course, Door, EndedTls, Facts, Fault, First, Known, Learn, Proved, RequestHead, Step, Terms, Version, without_port,
};
use crate::failure::{LocalReply, Reason};
use crate::filter::Called;
use crate::model::{
    Action, Backend, Cluster, ClusterKind, Forward, InboundPort, MtlsMode, Outbound, Protocol, RouteTable, Rule, Settings, Snapshot, Target,
};
use crate::sniff::{ClientHello, Sniffed};

use way::{Drawn, Way};

/// Most server names that are told in one sentence.
const NAMES_TOLD_MAX: usize = 8;

pub use edge::{EdgeOrigin, edge};
pub use view::{BackendView, EndpointView, Explanation, LimitView, PolicyView, ReplyView, RouteView, StageView, StandingView, Verb};

/// A request as a client sends it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'r> {
    /// Its head.
    pub head: RequestHead<'r>,
    /// The HTTP that the client speaks.
    pub version: Version,
    /// It speaks that inside TLS of its own, which asks for the head's host.
    pub tls: bool,
    /// See [`Facts::fault`].
    pub fault: Option<Fault>,
    /// When it would come.
    pub now: Moment,
    /// The same by the wall clock, in seconds since 1970: sessions end by it.
    pub wall_secs: u32,
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
    outbound_named(snapshot, (destination, &[]), asked)
}

/// The same, with the names whose DNS answers gave the destination's address (lower case, without trailing dot).
pub fn outbound_named(snapshot: &Snapshot, (destination, names): (SocketAddr, &[Arc<str>]), asked: &Asked<'_>) -> Explanation {
    let name = snapshot.outbound.get(&destination).map_or("", |listener| &*listener.name);
    let explanation = Explanation::new(snapshot.epoch, name);
    let door = Door::Outbound(destination);
    let client = Visitor::from_outside(asked);
    let (course, _) = walk(snapshot, door, &client, names);
    let address = own_address(snapshot, destination);
    let called = Called { port: destination.port(), tls: false };
    let settings = snapshot.settings.as_deref();
    let way = Way {
        asked,
        caller: None,
        peer: address,
        address,
        called,
        settings,
        judged: None,
        door: None,
        book: None,
        consumer: None,
        tokens: None,
    };
    match course {
        Course::Outside | Course::Serve(_) | Course::Refuse(Reason::Denied) | Course::Close(Reason::Denied)
            if !snapshot.outbound.contains_key(&destination) =>
        {
            outside::told(explanation, (snapshot, destination, names), (course, &client), &way)
        }
        Course::Refuse(reason) => {
            let why = refused(snapshot, destination, reason);
            explanation.stage("listener", "Reply", why).reply(&LocalReply::of(reason))
        }
        course => {
            let listener = snapshot.outbound.get(&destination).filter(|listener| listener.tls.is_some());
            let explanation = match listener {
                Some(listener) => by_server_name(explanation, listener, &client),
                None => explanation,
            };
            taken(explanation, (course, Terms::of(snapshot, door)), &way, false)
        }
    }
}

/// Who calls the application.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'o> {
    /// The SPIFFE identity of a caller that comes by mesh TLS; absent for plaintext.
    pub identity: Option<&'o str>,
    /// Its workload; empty: it says none.
    pub workload: &'o str,
    /// Its address, where it is known.
    pub address: Option<IpAddr>,
}

/// What a request to the application's port meets on the server's side.
pub fn inbound(snapshot: &Snapshot, port: u16, origin: Origin<'_>, asked: &Asked<'_>) -> Explanation {
    let peer = origin.identity;
    let explanation = Explanation::new(snapshot.epoch, proto::names::INBOUND);
    let Some(inbound) = &snapshot.inbound else {
        let why = "no inbound listener yet: connections are closed without an answer";
        return explanation.stage("listener", "Close", why).closed(Reason::ConfigPending);
    };
    let rule = inbound.port(port);
    let client = if peer.is_some() { Visitor::mesh(asked, rule) } else { Visitor::from_outside(asked) };
    let (course, proved) = walk(snapshot, Door::Inbound(port), &client, &[]);
    let (verdict, why) = mtls(rule, inbound.ports.contains_key(&port), (peer, proved), course);
    let caller: Option<Identity> = peer.filter(|_| proved).and_then(|peer| peer.parse().ok());
    let called = Called { port, tls: proved };
    // An address that nobody knows is in no range but that of all.
    let source = SocketAddr::new(origin.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0);
    let judged = decide::Caller { peer: caller.as_ref(), workload: if proved { origin.workload } else { "" }, source, port };
    let way = Way {
        asked,
        caller: caller.as_ref(),
        peer: origin.address,
        address: origin.address,
        called,
        settings: snapshot.settings.as_deref(),
        judged: Some((snapshot, judged)),
        door: None,
        book: None,
        consumer: None,
        tokens: snapshot.authentication.as_deref(),
    };
    let mut explanation = taken(explanation.stage("mtls", verdict, why), (course, Terms::Inbound(rule)), &way, proved);
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
    /// One that is no peer of the mesh: plaintext, or TLS of its own.
    fn from_outside(asked: &Asked<'_>) -> Self {
        let first = if asked.tls {
            let host = without_port(asked.head.host).to_ascii_lowercase();
            let alpn: &[u8] = match asked.version {
                Version::Http1 => b"http/1.1",
                Version::Http2 => b"h2",
            };
            let sni = Some(host).filter(|host| !host.is_empty());
            Sniffed::Tls(ClientHello { sni, alpn: vec![alpn.to_vec()], ..ClientHello::default() })
        } else {
            words_of(asked.version)
        };
        Self { first, inside: words_of(asked.version), alpn: None }
    }

    /// What its TLS comes to where that is ended: what it offers.
    fn agreed(&self) -> Option<&'static str> {
        let Sniffed::Tls(hello) = &self.first else { return None };
        ["h2", "http/1.1"].into_iter().find(|name| hello.offers(name))
    }

    /// The proxy of a peer. It was told of the same declaration, so it carries bytes where the port declares them.
    fn mesh(asked: &Asked<'_>, port: &InboundPort) -> Self {
        let alpn = match (port.protocol, asked.version) {
            (Protocol::Tcp, _) => ALPN_TCP,
            _ if asked.tls => ALPN_TCP,
            (_, Version::Http1) => ALPN_H1,
            (_, Version::Http2) => ALPN_H2,
        };
        let hello = ClientHello { alpn: vec![alpn.as_bytes().to_vec()], ..ClientHello::default() };
        let inside = if asked.tls { Sniffed::Tls(ClientHello::default()) } else { words_of(asked.version) };
        Self { first: Sniffed::Tls(hello), inside, alpn: Some(alpn) }
    }
}

const fn words_of(version: Version) -> Sniffed {
    match version {
        Version::Http1 => Sniffed::Http1,
        Version::Http2 => Sniffed::Http2,
    }
}

/// Walks a connection to its course; whether the client proved itself on the way. Each step learns what was not known before, so it ends.
fn walk(snapshot: &Snapshot, door: Door, client: &Visitor, names: &[Arc<str>]) -> (Course, bool) {
    let mut known = Known { asked: true, names, ..Known::default() };
    loop {
        match decide::connection(snapshot, door, &known) {
            Step::Take(course) => return (course, known.proved.is_some()),
            Step::Learn(Learn::Listener) => known.asked = true,
            Step::Learn(Learn::Words | Learn::EitherSide) => known.first = Some(First::Client(&client.first)),
            Step::Learn(Learn::Proof) => known.proved = Some(Proved { alpn: client.alpn }),
            Step::Learn(Learn::Termination) => known.ended = Some(EndedTls { alpn: client.agreed() }),
            Step::Learn(Learn::WordsInside | Learn::EitherSideInside) => known.inside = Some(First::Client(&client.inside)),
        }
    }
}

/// What a course comes to for the request.
fn taken(explanation: Explanation, (course, view): (Course, Terms<'_>), way: &Way<'_>, proved: bool) -> Explanation {
    match course {
        Course::Serve(_) => served(explanation, view, way, proved),
        Course::Unreadable => {
            let why = "HTTP in plaintext is all that is served here, and this is TLS";
            explanation.stage("protocol", "Reply", why).reply(&LocalReply::of(Reason::BadRequest))
        }
        Course::Carry => {
            let (explanation, refused) =
                policies::told(explanation.stage("protocol", "Continue", "opaque: carried as bytes"), way, (None, None));
            match refused {
                Some(reason) => explanation.closed(reason),
                None => carried(explanation, view, way.asked),
            }
        }
        Course::Outside => explanation,
        Course::Refuse(reason) => explanation.reply(&LocalReply::of(reason)),
        Course::Close(reason) => explanation.closed(reason),
    }
}

/// Which name of a listener's the client asks for, and so where its TLS goes.
fn by_server_name(explanation: Explanation, listener: &Outbound, client: &Visitor) -> Explanation {
    let names = || {
        let all = listener.tls.iter().flat_map(|tls| tls.rows()).flat_map(|(names, _)| names);
        all.take(NAMES_TOLD_MAX).collect::<Vec<_>>().join(", ")
    };
    let Sniffed::Tls(hello) = &client.first else {
        let why = format!("only TLS is served here, by the name it asks for ({}), and this is plaintext", names());
        return explanation.stage("tls", "Close", why);
    };
    let asked = hello.sni.as_deref().map_or_else(|| "no name".to_owned(), |name| format!("`{name}`"));
    match decide::carried(listener, Some(First::Client(&client.first))) {
        Some(forward) => {
            let rows = listener.tls.iter().flat_map(|tls| tls.rows());
            let own = rows.filter(|(_, other)| Arc::ptr_eq(other, forward)).flat_map(|(names, _)| names);
            let own = own.take(NAMES_TOLD_MAX).collect::<Vec<_>>().join(", ");
            explanation.stage("tls", "Continue", format!("asks for {asked}, which {own} is for; it passes untouched"))
        }
        None => explanation.stage("tls", "Close", format!("asks for {asked}, and only {} are served here", names())),
    }
}

fn carried(mut explanation: Explanation, view: Terms<'_>, asked: &Asked<'_>) -> Explanation {
    match view {
        Terms::Outbound(listener) => {
            let first = Visitor::from_outside(asked).first;
            let explanation = match decide::carried(listener, Some(First::Client(&first))) {
                Some(forward) => towards(explanation, forward, &Drawn::default()),
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
        Terms::Edge(_) | Terms::Misdirected | Terms::NoPort | Terms::Unconfigured | Terms::Outside(_) => explanation,
    }
}

fn served(explanation: Explanation, view: Terms<'_>, way: &Way<'_>, proved: bool) -> Explanation {
    let asked = way.asked;
    match decide::admit(view, Facts { proved, fault: asked.fault }) {
        Ok(table) => {
            let (explanation, claims) = match authenticated(explanation, way) {
                Ok(believed) => believed,
                Err(answered) => return *answered,
            };
            match policies::told(explanation, way, (Some(&asked.head), claims.as_deref())) {
                (explanation, Some(reason)) => explanation.reply(&LocalReply::of(reason)),
                (explanation, None) => routed(explanation, table, way),
            }
        }
        Err(refusal) => {
            let explanation = match asked.fault {
                Some(fault) if fault.reason == refusal.reason => explanation.stage("head", "Reply", fault.why),
                _ => explanation,
            };
            explanation.reply(&refusal.reply())
        }
    }
}

/// What the request's token comes to, where tokens are looked at, and what it says.
///
/// # Errors
/// The request is answered here.
fn authenticated(explanation: Explanation, way: &Way<'_>) -> Result<(Explanation, Option<Arc<Claims>>), Box<Explanation>> {
    let Some(rules) = way.tokens else { return Ok((explanation, None)) };
    let verdict = rules.judge(&way.asked.head, &mut Remembered::new(0), way.asked.wall_secs.into());
    Ok(match verdict {
        TokenVerdict::Without => (explanation.stage("authentication", "Continue", "shows no token"), None),
        TokenVerdict::Accepted(accepted) => {
            let bearer = accepted.claims.texts("sub").next().unwrap_or_default();
            let (issuer, policy) = (&accepted.claims.issuer, rules.policy(&accepted));
            let why = format!("shows a token of {issuer} for `{bearer}`, which RequestAuthentication {policy} accepts");
            (explanation.stage("authentication", "Continue", why), Some(Arc::clone(&accepted.claims)))
        }
        TokenVerdict::Refused(fault) => {
            return Err(Box::new(explanation.stage("authentication", "Reply", fault.text()).reply(fault.reply())));
        }
    })
}

/// The address that the application beside the proxy calls from.
fn own_address(snapshot: &Snapshot, destination: SocketAddr) -> Option<IpAddr> {
    let own = &snapshot.settings.as_ref()?.own_addresses;
    own.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4()).copied()
}

fn refused(snapshot: &Snapshot, destination: SocketAddr, reason: Reason) -> String {
    match reason {
        Reason::NoRoute => {
            "the address is the mesh's, but nothing is served at this port: its Service or Gateway does not declare it".to_owned()
        }
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
        standing: StandingView::default(),
        tier: Some(0),
        ewma_ms: None,
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

fn routed(mut explanation: Explanation, table: &RouteTable, way: &Way<'_>) -> Explanation {
    let head = &way.asked.head;
    let Some(host) = decide::host(table, head.host) else {
        let why = format!("no virtual host of {} is for `{}`", table.name, without_port(head.host));
        return explanation.stage("route", "Reply", why).reply(&LocalReply::of(Reason::NoRoute));
    };
    let rules = host.rules.as_slice();
    let Some(index) = decide::first(host, head) else {
        let why = format!("no rule of {} matches{}", table.name, words::passed_over(rules, head));
        return explanation.stage("route", "Reply", why).reply(&LocalReply::of(Reason::NoRoute));
    };
    let rule = &rules[index];
    explanation.route = Some(RouteView {
        kind: rule.source.kind.to_string(),
        namespace: rule.source.namespace.to_string(),
        name: rule.source.name.to_string(),
        rule: rule.source.rule.to_string(),
        why: format!("{}{}", words::matched(&rule.matches, head), words::passed_over(&rules[..index], head)),
    });
    acted(explanation, rule, way)
}

fn acted(explanation: Explanation, rule: &Rule, way: &Way<'_>) -> Explanation {
    match &rule.action {
        Action::Reply(reply) => explanation.reply(reply),
        Action::Forward(forward) => {
            let drawn = way.drawn(forward);
            let place = drawn.home.as_ref().map(|home| home.place);
            let (mut explanation, ended) = way.told(explanation, forward, place.or_else(|| likeliest(forward).map(|(place, _)| place)));
            if ended {
                return explanation;
            }
            for (name, why) in words::policy(forward) {
                let why = match (&drawn.home, name) {
                    (Some(home), "session") => format!("{why}; goes back to {}", home.endpoint.address),
                    _ => why,
                };
                explanation = explanation.stage(name, "Continue", why);
            }
            towards(explanation, forward, &drawn)
        }
    }
}

/// The backend that most requests go to.
fn likeliest(forward: &Forward) -> Option<(usize, &Backend)> {
    let drawn = forward.backends.iter().enumerate().filter(|(_, backend)| backend.weight > 0);
    drawn.reduce(|best, next| if next.1.weight > best.1.weight { next } else { best })
}

/// All that a split may lead to, each with its chance; the decision shown is the likeliest backend's.
fn towards(mut explanation: Explanation, forward: &Forward, drawn: &Drawn) -> Explanation {
    let home = drawn.home.as_ref();
    let Some(likeliest) = home.and_then(|home| forward.backends.get(home.place)).or(likeliest(forward).map(|(_, backend)| backend)) else {
        return explanation.stage("backends", "Reply", "no backend has a weight above 0").reply(&LocalReply::of(Reason::BadBackend));
    };
    for (place, backend) in forward.backends.iter().enumerate() {
        let chance = match home {
            Some(home) => f64::from(u8::from(home.place == place)),
            None => backend.weight as f64 / forward.weight_total.max(1) as f64,
        };
        let (cluster, reply) = match &backend.target {
            Target::Cluster(cluster) => {
                explanation.endpoints.extend(endpoints(cluster, chance, drawn));
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
            // Where the proxy finds out the endpoints, whoever explains may not have asked.
            let listed = cluster.kind == ClusterKind::Endpoints && cluster.policy.resolves.is_none();
            if listed && cluster.endpoints.load().ready.is_empty() {
                return explanation.reply(&LocalReply::of(Reason::NoEndpoints));
            }
            explanation
        }
    }
}

/// Ready endpoints with their chance, known others with none.
fn endpoints(cluster: &Arc<Cluster>, share: f64, drawn: &Drawn) -> Vec<EndpointView> {
    let set = cluster.endpoints.load();
    let chances: Vec<f64> = match &drawn.home {
        Some(home) => set.ready.iter().map(|endpoint| f64::from(u8::from(endpoint.address == home.endpoint.address))).collect(),
        None => balance::chances(&set, drawn.hash),
    };
    let chances = chances.into_iter().map(|chance| chance * share);
    let places = chances.zip(set.distances().map(Some)).chain(std::iter::repeat((0.0, None)));
    let known = set.ready.iter().chain(&set.other).zip(places);
    known.map(|(endpoint, (chance, tier))| EndpointView::of(endpoint, chance, tier)).collect()
}

#[cfg(test)]
mod tests;
