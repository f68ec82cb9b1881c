//! What a call to a Gateway's port meets.

use std::net::IpAddr;

use super::{Asked, Explanation, NAMES_TOLD_MAX, Visitor, taken, towards, walk};
use crate::decide::{self, Course, Door, EdgeDoor, First, Terms};
use crate::explain::way::{Drawn, Way};
use crate::filter::Called;
use crate::model::{Chain, Chains, Port, Snapshot, TlsTerms};
use crate::sniff::Sniffed;

/// Who calls a Gateway.
#[derive(Clone, Copy, Debug, Default)]
pub struct EdgeOrigin<'o> {
    /// The client's address, where it is known.
    pub address: Option<IpAddr>,
    /// `NAMESPACE/NAME` of the consumer that is taken to call, whatever the request shows.
    pub consumer: Option<&'o str>,
}

/// What a request to a Gateway's listener port meets.
pub fn edge(snapshot: &Snapshot, port: u16, origin: EdgeOrigin<'_>, asked: &Asked<'_>) -> Explanation {
    let found = snapshot.edges.get(&port);
    let explanation = Explanation::new(snapshot.epoch, found.map_or("", |edge| &*edge.name));
    let explanation = match found {
        None => explanation.stage("listener", "Reply", format!("this proxy has no listener on port {port}")),
        Some(_) => explanation,
    };
    let client = Visitor::from_outside(asked);
    let (course, _) = walk(snapshot, Door::Edge(port), &client, &[]);
    let name = if let Sniffed::Tls(hello) = &client.first { hello.sni.as_deref() } else { None };
    let chain = decide::chain(snapshot, port, name);
    let explanation = match found.map(|edge| &edge.port) {
        Some(Port::Tls(chains)) => by_server_name(explanation, chains, &client, chain.map(|chain| &**chain)),
        _ => explanation,
    };
    let terms = chain.and_then(|chain| chain.terms.as_ref());
    let door = match terms {
        Some(terms) => EdgeDoor::Tls { name, clients: terms.clients.as_ref() },
        None => EdgeDoor::Plaintext,
    };
    if course == Course::Carry {
        let explanation = explanation.stage("protocol", "Continue", "opaque: carried as bytes");
        let explanation = match chain.and_then(|chain| chain.policies.as_deref()) {
            Some(policies) => explanation.stage("authorization", "Continue", policies.story()),
            None => explanation,
        };
        let explanation = match decide::carried_at_edge(snapshot, port, Some(First::Client(&client.first))) {
            Some(forward) => towards(explanation, forward, &Drawn::default()),
            None => explanation,
        };
        return match explanation.reply.as_ref().map(|reply| reply.reason) {
            Some(reason) => explanation.unanswered(reason),
            None => explanation,
        };
    }
    let called = Called { port, tls: terms.is_some() };
    let (settings, book) = (snapshot.settings.as_deref(), Some(&*snapshot.consumers));
    let EdgeOrigin { address, consumer } = origin;
    let way = Way { asked, caller: None, address, called, settings, judged: None, door: Some(snapshot), book, consumer, tokens: None };
    taken(explanation, (course, Terms::of_edge(snapshot, port, &door)), &way, false)
}

/// Which listener the client's name leads to, and what TLS meets there.
fn by_server_name(explanation: Explanation, chains: &Chains, client: &Visitor, chain: Option<&Chain>) -> Explanation {
    let served = || {
        let all = chains.rows().flat_map(|(names, _)| names);
        all.take(NAMES_TOLD_MAX).collect::<Vec<_>>().join(", ")
    };
    let Sniffed::Tls(hello) = &client.first else {
        let why = format!("only TLS is served here, by the name it asks for ({}), and this is plaintext", served());
        return explanation.stage("tls", "Close", why);
    };
    let asked = hello.sni.as_deref().map_or_else(|| "no name".to_owned(), |name| format!("`{name}`"));
    match chain {
        None => {
            let told = if chains.passes() { "reset" } else { "unrecognized_name" };
            explanation.stage("tls", "Close", format!("asks for {asked}, and only {} are served here: {told}", served()))
        }
        Some(Chain { name, terms: None, .. }) => {
            explanation.stage("tls", "Continue", format!("asks for {asked}, which listener {name} is for; it passes untouched"))
        }
        Some(Chain { name, terms: Some(terms), .. }) => {
            let why = format!("asks for {asked}, which listener {name} is for; TLS ends here: {}", story(terms));
            explanation.stage("tls", "Continue", why)
        }
    }
}

/// How TLS is ended, in words.
fn story(terms: &TlsTerms) -> String {
    let certificates: Vec<_> = terms.certificates.iter().map(|cell| told(cell.name(), cell.load().secret.is_some())).collect();
    let alpn: Vec<_> = terms.alpn.iter().map(|protocol| protocol.text()).collect();
    let alpn = if alpn.is_empty() { String::new() } else { format!(", ALPN {}", alpn.join(" ")) };
    let clients = terms.clients.as_ref().map(|clients| {
        let wanted = match (clients.required, clients.untrusted) {
            (true, _) => "a client certificate is required",
            (false, true) => "a client certificate is asked for, and need not be valid",
            (false, false) => "a client certificate is asked for",
        };
        format!(", {wanted} ({})", told(clients.authorities.name(), clients.authorities.load().secret.is_some()))
    });
    let (min, max) = terms.versions;
    format!("TLS {} to {} with {}{alpn}{}", min.text(), max.text(), certificates.join(", "), clients.unwrap_or_default())
}

fn told(name: &str, there: bool) -> String {
    if there { name.to_owned() } else { format!("{name} (which has not come yet)") }
}
