//! The listeners of a Gateway, each judged: which are served, and why the others are not.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::ports;

use super::refusal::{self, WhyNot};
use crate::world::gateway::Gateway;
use crate::world::key::GATEWAY_API;
use crate::world::listener::{From, Listener, ListenerSet};
use crate::world::{Index, Kind, Name, Object, Spec};

/// Ports that an edge proxy needs for itself (contract, section 3).
const RESERVED: [u16; 6] = [15000, 15001, 15006, ports::METRICS, ports::HEALTH, 15053];
/// Listeners of one Gateway, with those of its ListenerSets; what comes later is refused.
pub(super) const LISTENERS_MAX: usize = 1024;

/// What shares a port's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// HTTP, told apart by the host that is asked for.
    Http,
    /// TLS, by the name that it asks for.
    Tls,
    /// Bytes.
    Tcp,
    /// Datagrams, which have ports of their own.
    Udp,
}

impl Family {
    pub(super) fn of(protocol: &str) -> Option<Self> {
        match protocol {
            "HTTP" => Some(Self::Http),
            "HTTPS" | "TLS" => Some(Self::Tls),
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// A listener and what became of it.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    /// The listener.
    pub listener: &'a Listener,
    /// The Gateway or ListenerSet that has it.
    pub owner: &'a Arc<Object>,
    /// Why it is not served.
    pub refused: Option<WhyNot>,
    /// Kinds of routes that may attach.
    pub kinds: Vec<Kind>,
    /// Kinds it names that nothing here can carry.
    pub invalid_kinds: Vec<String>,
}

impl Judged<'_> {
    /// Refused because another listener has its place.
    pub(super) fn conflicted(&self) -> bool {
        self.refused.as_ref().is_some_and(|refusal| matches!(refusal.reason, "HostnameConflict" | "ProtocolConflict"))
    }

    /// Which one it is, for all listeners of the Gateway.
    pub(super) fn name(&self) -> String {
        let key = &self.owner.key;
        match key.kind {
            Kind::ListenerSet => format!("{}/{}/{}", key.namespace, key.name, self.listener.name),
            _ => self.listener.name.clone(),
        }
    }

    /// The name by which policies may mean it: of a ListenerSet's they cannot.
    pub(super) fn section(&self) -> &str {
        if self.owner.key.kind == Kind::Gateway { &self.listener.name } else { "" }
    }

    /// The hosts that it serves; `*`: any.
    pub(super) fn host(&self) -> &str {
        self.listener.hostname.as_deref().unwrap_or("*")
    }

    /// Whether it ends its clients' TLS.
    pub(super) fn terminates(&self) -> bool {
        Family::of(&self.listener.protocol) == Some(Family::Tls) && !self.passes()
    }

    /// Whether it passes its clients' TLS on as it is.
    pub(super) fn passes(&self) -> bool {
        self.listener.protocol == "TLS" && mode(self.listener) == "Passthrough"
    }
}

fn mode(listener: &Listener) -> &str {
    listener.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate")
}

/// Why a Gateway as a whole is not served.
pub(super) fn refused(index: &Index, gateway: &Gateway) -> Option<WhyNot> {
    for (kind, value) in &gateway.addresses {
        if kind != "IPAddress" {
            return Some(WhyNot::new("UnsupportedAddress", format!("addresses of type {kind} are not supported")));
        }
        if index.in_cluster {
            return Some(WhyNot::new("UnsupportedAddress", "in a cluster a Gateway's addresses are those of the Services in front of it"));
        }
        if value.parse::<std::net::IpAddr>().is_err() {
            return Some(WhyNot::new("UnsupportedAddress", format!("`{value}` is no IP address")));
        }
    }
    gateway.parameters.then(|| WhyNot::new("InvalidParameters", "this controller has no parameters"))
}

/// The content of a ListenerSet.
pub(super) fn set(object: &Object) -> Option<&ListenerSet> {
    if let Spec::ListenerSet(set) = &object.spec { Some(set) } else { None }
}

/// Why a ListenerSet does not attach to the Gateway that it names.
pub(super) fn set_refused(index: &Index, gateway: &Object, set: &Object) -> Option<WhyNot> {
    let content = refusal::gateway(gateway)?;
    if !admits(index, &gateway.key.namespace, &content.sets, &set.key.namespace) {
        let message = format!("{} takes no ListenerSets from namespace {} (allowedListeners)", gateway.key, set.key.namespace);
        return Some(WhyNot::new("NotAllowed", message));
    }
    refused(index, content).map(|refusal| WhyNot::new("ParentNotAccepted", format!("{} is not accepted: {}", gateway.key, refusal.message)))
}

/// Whether objects of a namespace may attach, where `own` is that of the object which says so.
pub(super) fn admits(index: &Index, own: &str, from: &From, namespace: &str) -> bool {
    match from {
        From::All => true,
        From::Same => own == namespace,
        From::Selector(selector) => index.namespaces.get(namespace).is_some_and(|view| selector.matches(&view.labels)),
        From::None | From::Unknown(_) => false,
    }
}

/// Judges every listener of a Gateway of ours, in order: its own, then those of the ListenerSets that attach, the oldest first.
pub(super) fn listeners<'a>(index: &'a Index, name: &Name) -> Vec<Judged<'a>> {
    let Some(object) = index.gateways.get(name) else { return Vec::new() };
    let Some(gateway) = refusal::gateway(object) else { return Vec::new() };
    let mut judged: Vec<Judged<'a>> = gateway.listeners.iter().map(|listener| judge(object, listener)).collect();
    let own = judged.len();
    for owner in index.gateway_sets.get(name).into_iter().flatten() {
        let Some(content) = set(owner).filter(|_| set_refused(index, object, owner).is_none()) else { continue };
        judged.extend(content.listeners.iter().map(|listener| judge(owner, listener)));
    }
    for late in judged.iter_mut().skip(LISTENERS_MAX) {
        let message = format!("the Gateway has more than {LISTENERS_MAX} listeners, and those of its other ListenerSets come first");
        late.refused = Some(WhyNot::new("TooManyListeners", message));
    }
    settle(&mut judged, own);
    judged
}

/// Of listeners in one another's way a Gateway's own are all refused (the standard has no winner there), those of ListenerSets by all
/// that come before.
fn settle(judged: &mut [Judged<'_>], own: usize) {
    let mut families: BTreeMap<(u16, bool), BTreeMap<Family, usize>> = BTreeMap::new();
    let mut hosts: BTreeMap<(u16, Family, String), usize> = BTreeMap::new();
    let place = |one: &Judged<'_>| {
        let family = Family::of(&one.listener.protocol).filter(|_| one.refused.is_none())?;
        let host = if matches!(family, Family::Http | Family::Tls) { one.host() } else { "*" };
        Some(((one.listener.port, family == Family::Udp), family, host.to_owned()))
    };
    for one in &judged[..own] {
        let Some((port, family, host)) = place(one) else { continue };
        *families.entry(port).or_default().entry(family).or_default() += 1;
        *hosts.entry((port.0, family, host)).or_default() += 1;
    }
    let clash = |others: bool, twice: bool, who: &str| {
        if others {
            Some(WhyNot::new("ProtocolConflict", format!("{who} has the same port, and another protocol that cannot share it")))
        } else {
            twice.then(|| WhyNot::new("HostnameConflict", format!("{who} has the same port, protocol and hostname")))
        }
    };
    for (number, one) in judged.iter_mut().enumerate() {
        let Some((port, family, host)) = place(one) else { continue };
        let at = families.entry(port).or_default();
        let others = at.keys().any(|known| *known != family);
        let same = hosts.entry((port.0, family, host)).or_default();
        if number < own {
            one.refused = clash(others, *same > 1, "another listener");
            continue;
        }
        one.refused = clash(others, *same > 0, "a listener that goes first");
        if one.refused.is_none() {
            *at.entry(family).or_default() += 1;
            *same += 1;
        }
    }
}

fn judge<'a>(owner: &'a Arc<Object>, listener: &'a Listener) -> Judged<'a> {
    let carried = carried(&listener.protocol);
    let mut judged = Judged { listener, owner, refused: unserved(listener), kinds: carried.to_vec(), invalid_kinds: Vec::new() };
    if let Some(kinds) = &listener.kinds {
        let named = |wanted: &Kind, group: &str, kind: &str| group == GATEWAY_API && kind == wanted.text();
        judged.kinds.retain(|known| kinds.iter().any(|(group, kind)| named(known, group, kind)));
        let other = kinds.iter().filter(|(group, kind)| !carried.iter().any(|known| named(known, group, kind)));
        judged.invalid_kinds = other.map(|(_, kind)| kind.clone()).collect();
    }
    judged
}

/// The kinds of routes that a listener of that protocol can carry.
fn carried(protocol: &str) -> &'static [Kind] {
    match protocol {
        "HTTP" | "HTTPS" => &[Kind::HTTPRoute, Kind::GRPCRoute],
        "TLS" => &[Kind::TLSRoute],
        "TCP" => &[Kind::TCPRoute],
        "UDP" => &[Kind::UDPRoute],
        _ => &[],
    }
}

fn unserved(listener: &Listener) -> Option<WhyNot> {
    let unsupported = |message: String| Some(WhyNot::new("UnsupportedValue", message));
    let Some(family) = Family::of(&listener.protocol) else {
        let message = format!("the protocol {} is not supported by this version", listener.protocol);
        return Some(WhyNot::new("UnsupportedProtocol", message));
    };
    if family != Family::Udp && RESERVED.contains(&listener.port) {
        return Some(WhyNot::new("PortUnavailable", format!("the proxy needs port {} for itself", listener.port)));
    }
    if let From::Unknown(word) = &listener.from {
        return unsupported(format!("unknown value `{word}` of allowedRoutes.namespaces.from"));
    }
    match (listener.protocol.as_str(), mode(listener)) {
        ("HTTPS", "Terminate") | ("TLS", "Terminate" | "Passthrough") => None,
        ("HTTPS" | "TLS", mode) => unsupported(format!("a listener for {} has no tls.mode `{mode}`", listener.protocol)),
        (protocol, _) if listener.tls.is_some() => unsupported(format!("a listener for {protocol} has no `tls`")),
        (protocol @ ("TCP" | "UDP"), _) if listener.hostname.is_some() => {
            unsupported(format!("a listener for {protocol} has no `hostname`"))
        }
        _ => None,
    }
}
