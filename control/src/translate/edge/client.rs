//! ClientPolicy as proxies are told: what holds at one port of a Gateway, of its socket and of each filter chain.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::mesh::{
    self, ClientChain, ClientConnections, ClientHeaders, ClientHttp1, ClientHttp2, ClientLimits, ClientLives, ClientPaths, ClientTimeouts,
    ClientTls, ProxyProtocol,
};
use proto::names::TICKET_HOURS;
use proto::xds::listener::{ListenerFilter, listener_filter};
use proto::xds::pack;

use super::http3;
use super::ladder::{Climb, Held, Rung, Spot, places};
use crate::translate::attach::WhyNot;
use crate::translate::edge_listeners::{self, Edge, Family, Judged};
use crate::world::edge::{ClientPolicy, ClientReach};
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Spec};

/// How long clients may take to go where nobody says (edge-kinds.md, ClientPolicy).
const GO_AWAY_GRACE: Duration = Duration::from_secs(30);

impl Rung for ClientPolicy {
    const KIND: Kind = Kind::ClientPolicy;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::ClientPolicy(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        self.said().into_iter().map(|(field, _)| field).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        ClientPolicy::take(self, other, field);
    }
}

/// What holds at a listener, whatever the route; with defaults for what nobody says.
pub(in crate::translate) fn at_listener(index: &Index, gateway: &Name, judged: &Judged<'_>) -> ClientPolicy {
    held(index, &of_listener(gateway, judged)).map(|held| held.says).unwrap_or_default()
}

/// After how many hours a listener turns keys of session tickets.
pub(in crate::translate) fn ticket_hours(index: &Index, gateway: &Name, judged: &Judged<'_>) -> u32 {
    at_listener(index, gateway, judged).ticket_hours.unwrap_or(TICKET_HOURS)
}

fn held<'a>(index: &'a Index, places: &[Place]) -> Option<Held<'a, ClientPolicy>> {
    if index.edge.is_empty() {
        return None;
    }
    Climb::<ClientPolicy>::of(index, places).held()
}

fn of_listener(gateway: &Name, judged: &Judged<'_>) -> Vec<Place> {
    places(&Spot { gateway, owner: &judged.owner.key, listener: &judged.listener.name, route: None })
}

/// The Gateway itself, and the mesh: what holds where listeners cannot be told apart.
fn of_gateway(gateway: &Name) -> Vec<Place> {
    vec![Place::Object(ObjectKey::new(Kind::Gateway, &gateway.0, &gateway.1)), Place::Mesh]
}

/// What holds for a port's socket: a listener's word counts where it is alone there and the Gateway's own.
fn of_socket(edge: &Edge<'_>, port: u16, family: Family) -> Vec<Place> {
    let mut here = edge.at(port, family);
    match (here.next(), here.next()) {
        (Some((_, only)), None) if only.owner.key.kind == Kind::Gateway => of_listener(edge.name, only),
        _ => of_gateway(edge.name),
    }
}

/// A listener filter that says what holds at a port, whose chains lead to these listeners; `None`: nobody says anything.
pub(in crate::translate) fn sent(
    index: &Index,
    edge: &Edge<'_>,
    (port, family): (u16, Family),
    chains: &[(String, Option<&Judged<'_>>)],
) -> Option<ListenerFilter> {
    if index.edge.is_empty() {
        return None;
    }
    let socket = at_socket(index, edge, (port, family));
    let told = mesh::ClientPolicy {
        proxy_protocol: socket.proxy.clone().filter(|proxy| *proxy != ProxyProtocol::default()),
        connections: some(ClientConnections {
            max: socket.max.unwrap_or_default(),
            per_address: socket.per_address.unwrap_or_default(),
            new_per_second: socket.new_per_second.unwrap_or_default(),
            readiness_grace: socket.readiness_grace.filter(|grace| !grace.is_zero()).and_then(wire),
            go_away_grace: socket.go_away_grace.and_then(wire),
        }),
        http3: http3::sent(edge, (port, family), &socket),
        chains: chains
            .iter()
            .filter_map(|(name, judged)| {
                let places = judged.map_or_else(|| of_gateway(edge.name), |judged| of_listener(edge.name, judged));
                chain(name, &held(index, &places)?)
            })
            .collect(),
    };
    (told != mesh::ClientPolicy::default()).then(|| ListenerFilter {
        name: "meshwright.client_policy".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&told))),
    })
}

/// `None`: nothing that a proxy would do otherwise.
fn chain(name: &str, held: &Held<'_, ClientPolicy>) -> Option<ClientChain> {
    let says = &held.says;
    let told = ClientChain {
        address: says.address.clone().and_then(some),
        timeouts: some(ClientTimeouts {
            tls_handshake: says.tls_handshake.and_then(wire),
            request_headers: says.request_headers.and_then(wire),
            body_idle: says.body_idle.and_then(wire),
            write_stall: says.write_stall.and_then(wire),
            min_bytes_per_second: says.min_bytes_per_second,
        }),
        limits: some(ClientLimits {
            header_bytes: says.header_bytes.unwrap_or_default(),
            headers: says.headers.unwrap_or_default(),
            uri_bytes: says.uri_bytes.unwrap_or_default(),
        }),
        lives: some(ClientLives {
            idle: says.idle.and_then(wire),
            max_age: says.max_age.and_then(wire),
            max_requests: says.max_requests.unwrap_or_default(),
        }),
        http1: some(ClientHttp1 {
            disabled: says.http1 == Some(false),
            refuse10: says.allow10 == Some(false),
            lower_case: says.keep_case == Some(false),
        }),
        http2: some(http2(says)),
        paths: some(ClientPaths {
            escaped_slashes: says.escaped_slashes.unwrap_or_default().into(),
            underscore_headers: says.underscores.unwrap_or_default().into(),
        }),
        headers: some(ClientHeaders {
            set: says.early_set.clone().unwrap_or_default(),
            remove: says.early_remove.clone().unwrap_or_default(),
            keep_trusted_id: says.keep_trusted_id.unwrap_or_default(),
            // Browsers count seconds.
            hsts: says.hsts.and_then(|age| wire(Duration::from_secs(age.as_secs()))),
        }),
        tls: some(ClientTls { plain_master_secret: says.plain_master_secret == Some(true) }),
        ..ClientChain::default()
    };
    let policy = held.by.first().map(|object| object.key.path()).unwrap_or_default();
    some(told).map(|told| ClientChain { chain: name.to_owned(), policy, ..told })
}

/// Fields of several objects may come together here for the first time: what does not fit keeps the default windows.
fn http2(says: &ClientPolicy) -> ClientHttp2 {
    let streams = u64::from(says.max_streams.unwrap_or(100));
    let windows = says.stream_window.zip(says.connection_window);
    let windows = windows.filter(|(stream, connection)| u64::from(*connection) >= u64::from(*stream) * streams);
    ClientHttp2 {
        disabled: says.http2 == Some(false),
        max_streams: says.max_streams.unwrap_or_default(),
        stream_window: windows.map_or(0, |(stream, _)| stream),
        connection_window: windows.map_or(0, |(_, connection)| connection),
        resets_per_minute: says.resets_per_minute.unwrap_or_default(),
        ping_interval: says.ping_interval.filter(|every| !every.is_zero()).and_then(wire),
    }
}

/// How long a proxy of a Gateway takes to end at most: until its clients are told to go, and until the last are cut. `None`: nobody says.
pub(in crate::translate) fn ending(index: &Index, gateway: &Name) -> Option<Duration> {
    let listeners = edge_listeners::listeners(index, gateway);
    let edge = listeners.iter().map(|judged| of_listener(gateway, judged)).chain([of_gateway(gateway)]);
    let (mut readiness, mut go_away) = (None, None);
    for says in edge.filter_map(|places| held(index, &places)).map(|held| held.says) {
        readiness = readiness.max(says.readiness_grace);
        go_away = go_away.max(says.go_away_grace);
    }
    (readiness.is_some() || go_away.is_some()).then(|| readiness.unwrap_or_default() + go_away.unwrap_or(GO_AWAY_GRACE))
}

/// What holds for a port's socket; with defaults for what nobody says.
fn at_socket(index: &Index, edge: &Edge<'_>, (port, family): (u16, Family)) -> ClientPolicy {
    held(index, &of_socket(edge, port, family)).map(|held| held.says).unwrap_or_default()
}

fn some<M: Default + PartialEq>(message: M) -> Option<M> {
    (message != M::default()).then_some(message)
}

fn wire(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// Fields of an object that cannot hold at the listeners it names there: a socket is its Gateway's, and in plaintext the listeners of one port
/// are not told apart before a request is read.
pub(in crate::translate) fn misplaced(index: &Index, object: &Object, gateway: &Name) -> Option<WhyNot> {
    let says = ClientPolicy::of(object)?;
    let (mut fields, mut why) = (BTreeSet::new(), "");
    let listeners = edge_listeners::listeners(index, gateway);
    for target in &says.attachment.targets {
        let key = target.key(&object.key.namespace);
        let named = |judged: &&Judged<'_>| {
            judged.owner.key == key && target.section.as_deref().is_none_or(|section| judged.listener.name == section)
        };
        let whole = key.kind == Kind::Gateway && target.section.is_none();
        for judged in listeners.iter().filter(named).filter(|_| !whole) {
            let family = Family::of(&judged.listener.protocol);
            let here = |other: &&Judged<'_>| {
                other.refused.is_none() && other.listener.port == judged.listener.port && Family::of(&other.listener.protocol) == family
            };
            let shared = listeners.iter().filter(here).count() > 1;
            let of = |reach: ClientReach| says.said().into_iter().filter(move |(_, of)| *of == reach).map(|(field, _)| field);
            if shared || key.kind == Kind::ListenerSet {
                fields.extend(of(ClientReach::Socket));
                why = "a port's socket is its Gateway's";
            }
            if shared && family == Some(Family::Http) {
                fields.extend(of(ClientReach::Listener));
                why = "in plaintext the listeners of a port are not told apart before a request is read";
            }
        }
    }
    let told = fields.into_iter().collect::<Vec<_>>().join(", ");
    (!told.is_empty()).then(|| WhyNot::new("UnsupportedValue", format!("{told}: {why}")))
}

/// The ports of a Gateway that have HTTP/3.
pub(in crate::translate) fn http3_ports(index: &Index, gateway: &Name) -> BTreeSet<u16> {
    if index.edge.is_empty() {
        return BTreeSet::new();
    }
    let Some(edge) = Edge::of(index, gateway) else { return BTreeSet::new() };
    let with = |at: &(u16, Family)| http3::sent(&edge, *at, &at_socket(index, &edge, *at)).is_some();
    edge.ports(index).into_iter().filter(with).map(|(port, _)| port).collect()
}

/// What stands in the way of an object that asks for HTTP/3 at a Gateway.
pub(in crate::translate) fn hindered(index: &Index, object: &Object, gateway: &Name) -> Option<WhyNot> {
    let says = ClientPolicy::of(object).filter(|says| says.http3 == Some(true) && !says.attachment.targets.is_empty())?;
    let edge = Edge::of(index, gateway)?;
    let of_https = |(_, judged): (usize, &Judged<'_>)| (judged.listener.protocol == "HTTPS").then_some(judged.listener.port);
    let https: BTreeSet<u16> = edge.served().filter_map(of_https).collect();
    let hindrance = |port: u16| {
        let socket = at_socket(index, &edge, (port, Family::Tls));
        http3::hindrance(&edge, port, &socket).filter(|_| socket.http3 == says.http3)
    };
    let why = match https.is_empty() {
        true => Some("the Gateway has no listener for HTTPS".to_owned()),
        false => https.into_iter().find_map(hindrance),
    };
    why.map(|why| WhyNot::new("UnsupportedValue", format!("http3.enabled: {why}")))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
