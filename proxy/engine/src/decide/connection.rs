//! What becomes of a connection. A pure function of snapshot, door and what is known so far: while that is not enough it says what to
//! find out next, and then what to do. The road carries it out, `explain` prints it.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::names::{ALPN_H1, ALPN_H2, ALPN_MESH};

use super::outside::{self, Fate, Said};
use crate::failure::Reason;
use crate::model::{Chain, Forward, InboundPort, MtlsMode, Outbound, Port, Protocol, Serves, Snapshot, Spoken};
use crate::sniff::{ClientHello, Sniffed};

/// The door that a connection came in by, and where it was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The application's own call to this original destination.
    Outbound(SocketAddr),
    /// A call to this port of the application.
    Inbound(u16),
    /// A call to this port of the proxy's Gateway.
    Edge(u16),
}

/// What is known of a connection by now. It begins as nothing; who carries a [`Learn`] out adds what came of it and asks again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'c> {
    /// The control plane was asked for the destination, and what is in the snapshot is all that there is now.
    pub asked: bool,
    /// Names whose DNS answers gave the destination's address to this workload: lower case, without trailing dot.
    pub names: &'c [Arc<str>],
    /// Who spoke first.
    pub first: Option<First<'c>>,
    /// The peer proved itself to be of the mesh.
    pub proved: Option<Proved<'c>>,
    /// TLS of a client from outside was ended here.
    pub ended: Option<EndedTls<'c>>,
    /// Who spoke first inside that TLS.
    pub inside: Option<First<'c>>,
    /// What the client said first, wherever, may be the beginning of a request to a lenient reader ([`crate::sniff::may_be_request`]).
    pub may_ask: bool,
}

/// Who spoke first on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First<'c> {
    /// The client, and this is what it said. [`Sniffed::NeedMore`]: it has not said enough, and is not waited for any longer.
    Client(&'c Sniffed),
    /// The server that was opened on suspicion.
    Server,
    /// Nobody: the client is silent and the server is not reached.
    Nobody,
}

/// A finished mesh handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proved<'c> {
    /// The protocol agreed on by ALPN, if any.
    pub alpn: Option<&'c str>,
}

/// TLS that was ended at an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedTls<'c> {
    /// The protocol agreed on by ALPN, if any.
    pub alpn: Option<&'c str>,
}

/// The next word on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Find this out and ask again.
    Learn(Learn),
    /// This becomes of it.
    Take(Course),
}

/// What is to be found out next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// [`Known::asked`]: what the control plane has for the destination.
    Listener,
    /// [`Known::first`]: the client's first words; it speaks first.
    Words,
    /// [`Known::first`]: the first words of either side.
    EitherSide,
    /// [`Known::proved`]: who the peer is, by a mesh handshake.
    Proof,
    /// [`Known::ended`]: what is agreed on with a client from outside, whose TLS ends here by the terms of its chain ([`chain`]).
    Termination,
    /// [`Known::inside`]: the client's first words inside TLS; it speaks first.
    WordsInside,
    /// [`Known::inside`]: the first words of either side.
    EitherSideInside,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Its requests are answered one by one (see [`super::request`]), in the version that it speaks.
    Serve(Version),
    /// HTTP is all that is served here, and this is none: the HTTP/1 server answers 400.
    Unreadable,
    /// Its bytes are carried: to where its listener says, or to the application.
    Carry,
    /// Its bytes are carried to the original destination, outside the mesh. Requests to there are [`Course::Serve`] where they are judged
    /// one by one.
    Outside,
    /// HTTP is answered with the reason, anything else is closed.
    Refuse(Reason),
    /// It is closed without an answer. Where TLS of a client from outside has asked for a name at a port that ends all of it, the client is
    /// told that nobody has it (RFC 6066, section 3).
    Close(Reason),
}

impl Course {
    /// The HTTP server that the connection is given to, if it is.
    pub const fn server(self) -> Option<Version> {
        match self {
            Self::Serve(version) => Some(version),
            Self::Unreadable => Some(Version::Http1),
            Self::Carry | Self::Outside | Self::Refuse(_) | Self::Close(_) => None,
        }
    }
}

/// A version of HTTP on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// The version of first words that are HTTP.
    pub const fn of(sniffed: &Sniffed) -> Option<Self> {
        match sniffed {
            Sniffed::Http1 => Some(Self::Http1),
            Sniffed::Http2 => Some(Self::Http2),
            Sniffed::NeedMore | Sniffed::Tls(_) | Sniffed::Opaque => None,
        }
    }
}

/// Decides about one connection, as far as what is known allows.
pub fn connection(snapshot: &Snapshot, door: Door, known: &Known<'_>) -> Step {
    match door {
        Door::Outbound(destination) => outbound(snapshot, destination, known),
        Door::Inbound(port) => inbound(snapshot, port, known),
        Door::Edge(port) => edge(snapshot, port, known),
    }
}

/// Whether the Gateway has such a port (still) is every request's own question.
fn edge(snapshot: &Snapshot, port: u16, known: &Known<'_>) -> Step {
    match (snapshot.edges.get(&port).map(|edge| &edge.port), known.first) {
        (Some(Port::Bytes(_)), _) => Step::Take(Course::Carry),
        (_, None) => Step::Learn(Learn::Words),
        (None | Some(Port::Http(_)), Some(first)) => serve(first.version()),
        (Some(Port::Tls(chains)), Some(First::Client(Sniffed::Tls(hello)))) => match chains.lookup(hello.sni.as_deref()) {
            None => Step::Take(Course::Close(Reason::NoRoute)),
            Some(chain) => match (&chain.serves, &chain.terms, known.ended) {
                (_, Some(_), None) => Step::Learn(Learn::Termination),
                (Serves::Http(_), _, ended) => Step::Take(Course::Serve(agreed(ended))),
                (Serves::Bytes(_), ..) => Step::Take(Course::Carry),
            },
        },
        (Some(Port::Tls(_)), Some(_)) => Step::Take(Course::Close(Reason::NoRoute)),
    }
}

/// Who offers nothing by ALPN speaks HTTP/1.1.
fn agreed(ended: Option<EndedTls<'_>>) -> Version {
    if ended.is_some_and(|ended| ended.alpn == Some("h2")) { Version::Http2 } else { Version::Http1 }
}

/// The chain of an edge's port for TLS that asks for this name (lower case), or for none.
pub fn chain<'s>(snapshot: &'s Snapshot, port: u16, name: Option<&str>) -> Option<&'s Arc<Chain>> {
    match &snapshot.edges.get(&port)?.port {
        Port::Tls(chains) => chains.lookup(name),
        Port::Http(_) | Port::Bytes(_) => None,
    }
}

/// Where HTTP is all that is served.
const fn serve(version: Option<Version>) -> Step {
    Step::Take(match version {
        Some(version) => Course::Serve(version),
        None => Course::Unreadable,
    })
}

/// By (address, port), never by Host.
fn outbound(snapshot: &Snapshot, destination: SocketAddr, known: &Known<'_>) -> Step {
    let Some(listener) = snapshot.outbound.get(&destination) else {
        if !known.asked {
            return Step::Learn(Learn::Listener);
        }
        return match &snapshot.settings {
            None => Step::Take(Course::Refuse(Reason::ConfigPending)),
            // Inside the mesh's ranges it means "not yet", never "outside".
            Some(settings) if settings.mesh_holds(destination.ip()) => Step::Take(Course::Refuse(Reason::ConfigPending)),
            Some(settings) => {
                let said = known.first.map(|first| first.version().map_or(Said::Other(first.spoken()), |_| Said::Http));
                match outside::fate(snapshot, settings, (destination, known.names), said) {
                    Fate::Words => Step::Learn(Learn::EitherSide),
                    Fate::Requests => serve(known.first.and_then(First::version)),
                    Fate::Carry => Step::Take(Course::Outside),
                    Fate::Refuse => Step::Take(Course::Refuse(Reason::Denied)),
                    Fate::Cut => Step::Take(Course::Close(Reason::Denied)),
                }
            }
        };
    };
    let carry = match &listener.tcp {
        Some(_) => Step::Take(Course::Carry),
        None => Step::Take(Course::Refuse(Reason::NoRoute)),
    };
    match (listener.protocol, known.first) {
        _ if listener.leads_nowhere() => Step::Take(Course::Refuse(Reason::NoRoute)),
        (_, None) if listener.tls.is_some() => Step::Learn(Learn::Words),
        (_, first) if listener.tls.is_some() => Step::Take(match carried(listener, first) {
            Some(_) => Course::Carry,
            None => Course::Close(Reason::NoRoute),
        }),
        (Protocol::Tcp, _) => carry,
        (Protocol::Http | Protocol::Http1 | Protocol::Http2, None) => Step::Learn(Learn::Words),
        // The version is the caller's choice; what the application speaks is converted to.
        (Protocol::Http | Protocol::Http1 | Protocol::Http2, Some(first)) => serve(first.version()),
        (Protocol::Auto, None) => Step::Learn(Learn::EitherSide),
        (Protocol::Auto, Some(first)) => first.version().map_or(carry, |version| serve(Some(version))),
    }
}

/// Where bytes go that an outbound connection carries, by who spoke first and what; `None`: nowhere.
pub fn carried<'s>(listener: &'s Outbound, first: Option<First<'_>>) -> Option<&'s Arc<Forward>> {
    match (&listener.tls, first) {
        (None, _) => listener.tcp.as_ref(),
        (Some(names), Some(First::Client(Sniffed::Tls(hello)))) => names.lookup(hello.sni.as_deref()),
        (Some(_), _) => None,
    }
}

/// Where bytes go that an edge's connection carries, by what its client said first; `None`: nowhere.
pub fn carried_at_edge<'s>(snapshot: &'s Snapshot, port: u16, first: Option<First<'_>>) -> Option<&'s Arc<Forward>> {
    match (&snapshot.edges.get(&port)?.port, first) {
        (Port::Bytes(forward), _) => Some(forward),
        (Port::Tls(chains), Some(First::Client(Sniffed::Tls(hello)))) => match &chains.lookup(hello.sni.as_deref())?.serves {
            Serves::Bytes(forward) => Some(forward),
            Serves::Http(_) => None,
        },
        (Port::Tls(_) | Port::Http(_), _) => None,
    }
}

/// Under the mode of the port. Plaintext only: TLS is bytes like any other. Strict: mesh TLS or nothing. Permissive: mesh TLS where the
/// client offers mesh ALPN, the application's own TLS passed through, plaintext as the port declares it.
fn inbound(snapshot: &Snapshot, port: u16, known: &Known<'_>) -> Step {
    let Some(inbound) = &snapshot.inbound else {
        return Step::Take(Course::Close(Reason::ConfigPending));
    };
    let port = inbound.port(port);
    let of_tokens = snapshot.authentication.is_some();
    if let Some(proved) = known.proved {
        return inside(port, proved, known, of_tokens);
    }
    let carry = Step::Take(Course::Carry);
    let Some(first) = known.first else {
        return match (port.mode, port.protocol) {
            (MtlsMode::Strict, _) | (_, Protocol::Http | Protocol::Http1 | Protocol::Http2) => Step::Learn(Learn::Words),
            (MtlsMode::Disabled, Protocol::Tcp) => carry,
            // The application may speak first; a client of the mesh speaks TLS although the port is opaque.
            (MtlsMode::Permissive, Protocol::Tcp) | (_, Protocol::Auto) => Step::Learn(Learn::EitherSide),
        };
    };
    match (port.mode, first) {
        (MtlsMode::Strict, First::Client(Sniffed::Tls(_))) => Step::Learn(Learn::Proof),
        (MtlsMode::Strict, _) => Step::Take(Course::Close(Reason::Denied)),
        (MtlsMode::Permissive, First::Client(Sniffed::Tls(hello))) if of_mesh(hello) => Step::Learn(Learn::Proof),
        (MtlsMode::Permissive, First::Client(Sniffed::Tls(_))) => carry,
        _ => match (port.protocol, first.version()) {
            (Protocol::Tcp, _) => carry,
            (Protocol::Auto, None) => undeclared(known, of_tokens),
            (_, version) => serve(version),
        },
    }
}

/// What is no HTTP, at a port that nobody declared. What stalls within a request line, or hides one, would come to the application past the
/// workload's rules for tokens, and with the claims that only they may fill in.
const fn undeclared(known: &Known<'_>, of_tokens: bool) -> Step {
    Step::Take(if of_tokens && known.may_ask { Course::Close(Reason::Denied) } else { Course::Carry })
}

/// The peer has proved itself; its ALPN says what comes. That it is bytes is not taken on its word where that would spare it what requests
/// meet: at a port declared HTTP, and where tokens are judged.
fn inside(port: &InboundPort, proved: Proved<'_>, known: &Known<'_>, of_tokens: bool) -> Step {
    match (proved.alpn, known.inside) {
        (Some(ALPN_H1 | "http/1.1"), _) => serve(Some(Version::Http1)),
        (Some(ALPN_H2 | "h2"), _) => serve(Some(Version::Http2)),
        _ if port.protocol == Protocol::Tcp => Step::Take(Course::Carry),
        (_, None) if port.protocol.is_http() => Step::Learn(Learn::WordsInside),
        (_, Some(first)) if port.protocol.is_http() => serve(first.version()),
        (_, None) if of_tokens => Step::Learn(Learn::EitherSideInside),
        (_, Some(first)) => first.version().map_or_else(|| undeclared(known, of_tokens), |version| serve(Some(version))),
        (_, None) => Step::Take(Course::Carry),
    }
}

/// Whether a client offers the ALPN of mesh peers.
fn of_mesh(hello: &ClientHello) -> bool {
    ALPN_MESH.iter().any(|name| hello.offers(name))
}

impl<'c> First<'c> {
    /// As it is judged by name where it goes past the mesh; `None`: nobody is there.
    pub const fn spoken(self) -> Option<Spoken<'c>> {
        match self {
            Self::Client(Sniffed::Tls(hello)) => Some(Spoken::Tls(hello)),
            // Still to become something: the wait for it is over.
            Self::Client(Sniffed::NeedMore) => Some(Spoken::Undecided),
            Self::Client(_) | Self::Server => Some(Spoken::Bytes),
            Self::Nobody => None,
        }
    }

    /// The version of HTTP that the client speaks, if it is HTTP.
    const fn version(self) -> Option<Version> {
        match self {
            Self::Client(sniffed) => Version::of(sniffed),
            Self::Server | Self::Nobody => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    /// What is decided, in a word.
    fn word(step: Step) -> String {
        match step {
            Step::Learn(learn) => format!("{learn:?}"),
            Step::Take(Course::Serve(version)) => format!("{version:?}"),
            Step::Take(Course::Refuse(reason)) => format!("Refuse {}", reason.text()),
            Step::Take(Course::Close(reason)) => format!("Close {}", reason.text()),
            Step::Take(course) => format!("{course:?}"),
        }
    }

    fn hello(alpn: &str) -> Sniffed {
        Sniffed::Tls(ClientHello { alpn: vec![alpn.as_bytes().to_vec()], ..ClientHello::default() })
    }

    #[test]
    fn an_outbound_connection_is_decided_step_by_step() {
        // Aim: fetched first, then as declared; only what nobody declared is watched from both sides.
        let mut parts = fixture::shop();
        let tcp = |at: &str| proto::xds::listener::Listener {
            filter_chains: vec![fixture::chain(&fixture::tcp_to("c"))],
            ..fixture::out_http(at, "")
        };
        fixture::put(&mut parts, "out/10.0.0.2:80", &tcp("10.0.0.2:80")).unwrap();
        fixture::put(&mut parts, "out/10.0.0.3:80", &fixture::out_auto("10.0.0.3:80", "shop/catalog:80", "c")).unwrap();
        fixture::put(&mut parts, "out/10.0.0.4:80", &fixture::out_nowhere("10.0.0.4:80")).unwrap();
        let snapshot = parts.assemble(1, &Snapshot::default());
        let at = |address: &str, known: Known<'_>| word(connection(&snapshot, Door::Outbound(address.parse().unwrap()), &known));
        let own = hello("h2");
        let said = |sniffed| Known { first: Some(First::Client(sniffed)), ..Known::default() };
        assert_eq!(at("10.0.0.9:80", Known::default()), "Listener");
        assert_eq!(at("10.0.0.9:80", Known { asked: true, ..Known::default() }), "Refuse config_pending");
        assert_eq!(at("10.0.0.4:80", Known::default()), "Refuse no_route");
        assert_eq!(at("10.0.0.2:80", Known::default()), "Carry");
        assert_eq!(at("10.0.0.1:80", Known::default()), "Words");
        assert_eq!(at("10.0.0.1:80", said(&Sniffed::Http2)), "Http2");
        assert_eq!(at("10.0.0.1:80", said(&Sniffed::Opaque)), "Unreadable");
        assert_eq!(at("10.0.0.3:80", Known::default()), "EitherSide");
        assert_eq!(at("10.0.0.3:80", said(&Sniffed::Http1)), "Http1");
        assert_eq!(at("10.0.0.3:80", said(&own)), "Carry");
        assert_eq!(at("10.0.0.3:80", Known { first: Some(First::Server), ..Known::default() }), "Carry");
        let edge = |known| word(connection(&snapshot, Door::Edge(80), &known));
        assert_eq!((edge(Known::default()), edge(said(&Sniffed::Http1))), ("Words".into(), "Http1".into()));
    }

    #[test]
    fn a_call_to_an_edge_is_decided_by_its_port_and_its_name() {
        // Aim: bytes need no word; TLS is told apart by name, ended or passed, and ALPN says what comes; the rest is closed.
        let mut parts = fixture::shop();
        let ended = fixture::edge_tls(&["tls/shop/a"], None, &["h2", "http/1.1"]);
        let inside = fixture::edge_tls(&["tls/shop/a"], None, &[]);
        let chains = vec![
            fixture::by_name("https", &["a.example"], Some(&ended), fixture::chain(&fixture::rds("t"))),
            fixture::by_name("tls", &["b.example"], Some(&inside), fixture::chain(&fixture::tcp_to("c"))),
            fixture::by_name("pass", &["*.c.example"], None, fixture::chain(&fixture::tcp_to("c"))),
        ];
        fixture::put(&mut parts, "edge/443", &fixture::edge(443, chains)).unwrap();
        fixture::put(&mut parts, "edge/5432", &fixture::edge(5432, vec![fixture::chain(&fixture::tcp_to("c"))])).unwrap();
        let snapshot = parts.assemble(1, &Snapshot::default());
        let at = |port, first: Option<&Sniffed>, ended: Option<EndedTls<'_>>| {
            let known = Known { first: first.map(First::Client), ended, ..Known::default() };
            word(connection(&snapshot, Door::Edge(port), &known))
        };
        let hello =
            |name: &str| Sniffed::Tls(ClientHello { sni: Some(name.to_owned()).filter(|name| !name.is_empty()), ..ClientHello::default() });
        let alpn = |alpn| Some(EndedTls { alpn });
        assert_eq!(at(5432, None, None), "Carry");
        assert_eq!(at(443, None, None), "Words");
        for (name, ended, wanted) in [
            ("a.example", None, "Termination"),
            ("a.example", alpn(Some("h2")), "Http2"),
            ("a.example", alpn(Some("http/1.1")), "Http1"),
            ("a.example", alpn(None), "Http1"),
            ("b.example", None, "Termination"),
            ("b.example", alpn(None), "Carry"),
            ("x.c.example", None, "Carry"),
            ("c.example", None, "Close no_route"),
            ("", None, "Close no_route"),
        ] {
            assert_eq!(at(443, Some(&hello(name)), ended), wanted, "{name}");
        }
        for other in [Sniffed::Http1, Sniffed::Http2, Sniffed::Opaque, Sniffed::NeedMore] {
            assert_eq!(at(443, Some(&other), None), "Close no_route", "{other:?}");
        }
        let carried = |name: &str| carried_at_edge(&snapshot, 443, Some(First::Client(&hello(name)))).is_some();
        assert_eq!([carried("a.example"), carried("b.example"), carried("x.c.example"), carried("x")], [false, true, true, false]);
    }

    #[test]
    fn tls_is_told_apart_by_the_name_it_asks_for() {
        // Aim: the words come first; exact before wildcard, the longer wildcard before the shorter, the rest to who takes any; what is no
        // TLS or has no match is closed; names are compared without regard to case.
        let mut parts = fixture::shop();
        let named = [("a.b.example", "exact"), ("*.b.example", "long"), ("*.example", "short")];
        fixture::put(&mut parts, "out/10.0.0.2:443", &fixture::out_tls("10.0.0.2:443", &named)).unwrap();
        let any = [("a.example", "exact"), ("", "any")];
        fixture::put(&mut parts, "out/10.0.0.3:443", &fixture::out_tls("10.0.0.3:443", &any)).unwrap();
        for cluster in ["exact", "long", "short", "any"] {
            fixture::put(&mut parts, cluster, &fixture::cluster(cluster)).unwrap();
        }
        let snapshot = parts.assemble(1, &Snapshot::default());
        let asks = |name: &str| {
            let sni = Some(name.to_owned()).filter(|name| !name.is_empty());
            Sniffed::Tls(ClientHello { sni, ..ClientHello::default() })
        };
        let goes = |at: &str, words: &Sniffed| {
            let at = at.parse().unwrap();
            let first = Some(First::Client(words));
            let listener = &snapshot.outbound[&at];
            let known = Known { first, ..Known::default() };
            let to = carried(listener, first).map(|forward| match &forward.backends[0].target {
                crate::model::Target::Cluster(cluster) => cluster.name.to_string(),
                crate::model::Target::Reply(_) => unreachable!(),
            });
            let step = word(connection(&snapshot, Door::Outbound(at), &known));
            assert_eq!(step, if to.is_some() { "Carry" } else { "Close no_route" });
            to.unwrap_or_default()
        };
        for (name, cluster) in [
            ("a.b.example", "exact"),
            ("c.b.example", "long"),
            ("x.a.b.example", "long"),
            ("b.example", "short"),
            ("x.y.example", "short"),
            ("example", ""),
            ("other", ""),
            ("", ""),
        ] {
            assert_eq!(goes("10.0.0.2:443", &asks(name)), cluster, "{name}");
        }
        for (words, cluster) in
            [(asks("a.example"), "exact"), (asks("b.example"), "any"), (asks(""), "any"), (Sniffed::Http1, ""), (Sniffed::Opaque, "")]
        {
            assert_eq!(goes("10.0.0.3:443", &words), cluster, "{words:?}");
        }
        let silent = word(connection(&snapshot, Door::Outbound("10.0.0.3:443".parse().unwrap()), &Known::default()));
        assert_eq!(silent, "Words");
    }

    #[test]
    fn an_inbound_connection_is_decided_by_mode_and_alpn() {
        // Aim: per mode and first words: proof, plaintext, the application's own TLS, or the door shut.
        let plain = fixture::inbound_chain(Some(80), "raw_buffer", &[], false, fixture::to_application());
        let chains = [vec![plain], fixture::strict(Some(81)), fixture::permissive(None), fixture::strict_auto(Some(82))].concat();
        let mut parts = crate::model::build::Parts::default();
        fixture::put(&mut parts, "inbound", &fixture::inbound(chains)).unwrap();
        let snapshot = parts.assemble(1, &Snapshot::default());
        let at = |port, known: Known<'_>| word(connection(&snapshot, Door::Inbound(port), &known));
        let (mesh, own) = (hello(ALPN_H1), hello("h2"));
        for (first, disabled, strict, permissive) in [
            (None, "Words", "Words", "EitherSide"),
            (Some(First::Client(&Sniffed::Http1)), "Http1", "Close denied", "Http1"),
            (Some(First::Client(&Sniffed::Opaque)), "Unreadable", "Close denied", "Carry"),
            (Some(First::Client(&mesh)), "Unreadable", "Proof", "Proof"),
            (Some(First::Client(&own)), "Unreadable", "Proof", "Carry"),
            (Some(First::Server), "Unreadable", "Close denied", "Carry"),
        ] {
            let known = Known { first, ..Known::default() };
            assert_eq!([at(80, known), at(81, known), at(1, known)], [disabled, strict, permissive], "{first:?}");
        }
        let proved = |alpn, inside: Option<&'static Sniffed>| Known {
            proved: Some(Proved { alpn }),
            inside: inside.map(First::Client),
            ..Known::default()
        };
        for (alpn, inside, declared, undeclared) in [
            (Some(ALPN_H1), None, "Http1", "Http1"),
            (Some("h2"), None, "Http2", "Http2"),
            (Some("mw-tcp"), None, "WordsInside", "Carry"),
            (Some("mw-tcp"), Some(&Sniffed::Http1), "Http1", "Http1"),
            (Some("mw-tcp"), Some(&Sniffed::NeedMore), "Unreadable", "Carry"),
            (None, None, "WordsInside", "Carry"),
            (None, Some(&Sniffed::Http2), "Http2", "Http2"),
            (None, Some(&Sniffed::Opaque), "Unreadable", "Carry"),
        ] {
            let known = proved(alpn, inside);
            assert_eq!([at(81, known), at(82, known)], [declared, undeclared], "{alpn:?} {inside:?}");
        }
        assert_eq!(word(connection(&Snapshot::default(), Door::Inbound(80), &Known::default())), "Close config_pending");
    }

    #[test]
    fn where_tokens_are_judged_nothing_that_may_be_a_request_is_carried() {
        // Aim: with a RequestAuthentication, at a port of undeclared protocol, bytes are looked at however they come, requests are served as
        // such, what may become one is closed, and all else is carried.
        let chains = [fixture::permissive(None), fixture::strict_auto(Some(82))].concat();
        let mut parts = crate::model::build::Parts::default();
        fixture::put(&mut parts, "inbound", &fixture::inbound(chains)).unwrap();
        let rules = crate::authenticate::Authentication::default();
        let snapshot = Snapshot { authentication: Some(Arc::new(rules)), ..parts.assemble(1, &Snapshot::default()) };
        let at = |port, known: Known<'_>| word(connection(&snapshot, Door::Inbound(port), &known));
        let silent = Known { proved: Some(Proved { alpn: Some("mw-tcp") }), ..Known::default() };
        assert_eq!((at(82, silent), at(1, Known::default())), ("EitherSideInside".into(), "EitherSide".into()));
        for (first, may_ask, wanted) in [
            (First::Client(&Sniffed::Http1), false, "Http1"),
            (First::Client(&Sniffed::NeedMore), true, "Close denied"),
            (First::Client(&Sniffed::Opaque), true, "Close denied"),
            (First::Client(&Sniffed::Opaque), false, "Carry"),
            (First::Server, false, "Carry"),
            (First::Nobody, false, "Carry"),
        ] {
            assert_eq!(at(1, Known { first: Some(first), may_ask, ..Known::default() }), wanted, "{first:?} {may_ask}");
            assert_eq!(at(82, Known { inside: Some(first), may_ask, ..silent }), wanted, "inside: {first:?} {may_ask}");
        }
    }
}
