//! What of the mesh runs as it is declared: the half of "live" that proxies do not acknowledge.

use std::collections::BTreeSet;

use proto::names::Mode;

use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::publish::epoch::{Entry, Touched};
use crate::publish::peer::of_key;
use crate::translate::{gateway_ports, instance_fingerprint};
use crate::world::{Kind, Name, World};

/// What a line says of a Gateway, and of nothing else.
const GATEWAY_DOWN: &str = "Gateway not ready";

/// Of which instances and Gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All that are declared.
    Mesh,
    /// Those that these objects declare: a Workload its instances, a Gateway itself.
    Change {
        /// Workloads.
        workloads: BTreeSet<Name>,
        /// Gateways.
        gateways: BTreeSet<Name>,
    },
}

impl Scope {
    /// Of nothing: what is taken back has nothing to start.
    pub(super) fn none() -> Self {
        Self::Change { workloads: BTreeSet::new(), gateways: BTreeSet::new() }
    }

    /// What a change declares.
    pub(super) fn of(objects: &[Touched]) -> Self {
        let named = |kind: Kind| {
            let fits = objects.iter().filter(move |object| object.kind == kind.text() && object.result != "deleted");
            fits.map(|object| (object.namespace.clone(), object.name.clone())).collect()
        };
        Self::Change { workloads: named(Kind::Workload), gateways: named(Kind::Gateway) }
    }

    fn has_workload(&self, namespace: &str, name: &str) -> bool {
        match self {
            Self::Mesh => true,
            Self::Change { workloads, .. } => workloads.contains(&(namespace.to_owned(), name.to_owned())),
        }
    }

    fn has_gateway(&self, key: &Name) -> bool {
        match self {
            Self::Mesh => true,
            Self::Change { gateways, .. } => gateways.contains(key),
        }
    }
}

/// Instances and Gateways that are not started and ready as they are declared now, each with what it lacks. What still runs as it was
/// declared before a change is not ready.
pub(super) fn unready(edition: &Edition, scope: &Scope) -> Vec<String> {
    let (world, mut lines) = (&edition.world, Vec::new());
    let index = world.index();
    for (key, instance) in index.instances.iter() {
        let started = instance.workload().is_some_and(|workload| !workload.command.is_empty());
        if !started || !scope.has_workload(&instance.namespace, &instance.workload) {
            continue;
        }
        if let Some((what, message)) = instance_lacks(world, key) {
            lines.push(line(key, what, &message));
        }
    }
    for key in index.gateways.keys().filter(|key| scope.has_gateway(key)) {
        if let Some((what, message)) = gateway_lacks(world, key) {
            lines.push(line(key, what, &message));
        }
    }
    lines
}

/// Proxies that have not answered an epoch, each with why; what is down has no proxy either, and is named once.
pub(super) fn silent(board: &Board, entry: &Entry, down: &[String]) -> Vec<String> {
    let named = |proxy: &&String| of_key(proxy).is_some_and(|place| down.iter().any(|line| is_of(line, place)));
    let why = |proxy: &String| {
        if board.is_present(proxy) {
            format!("has not acknowledged epoch {}", entry.number)
        } else {
            "its proxy is not connected".to_owned()
        }
    };
    entry.waiting().filter(|proxy| !named(proxy)).map(|proxy| format!("{proxy} ({})", why(proxy))).collect()
}

/// Proxies that have not answered all of an edition, endpoints among it, which no epoch waits for: of an instance that is ready nobody may know yet.
pub(super) fn behind(board: &Board, serial: u64) -> Vec<String> {
    board.concerns.behind(serial).into_iter().map(|proxy| format!("{proxy} (has not taken the newest endpoints)")).collect()
}

/// Whether a line of those that are down is of that instance or Gateway.
fn is_of(line: &str, (namespace, name, mode): (&str, &str, Mode)) -> bool {
    let told = line.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('/')?.strip_prefix(name)?.strip_prefix(" ("));
    told.is_some_and(|what| what.starts_with(GATEWAY_DOWN) == (mode == Mode::Edge))
}

/// What keeps an instance from being ready, and the node agent's words on it.
fn instance_lacks(world: &World, key: &Name) -> Option<(&'static str, String)> {
    let instance = world.index().instances.get(key)?;
    let state = world.instance_states().get(key);
    let message = state.map(|state| state.message.clone()).unwrap_or_default();
    let Some(wanted) = instance_fingerprint(world, instance) else {
        return Some(("not started", "no address is left for it; use a larger --instance-cidr".to_owned()));
    };
    let Some(state) = state.filter(|state| state.started) else { return Some(("not started", message)) };
    if state.fingerprint != wanted {
        return Some(("not started", "it still runs as it was declared before".to_owned()));
    }
    let silent = instance.workload().is_some_and(|workload| workload.ports.is_empty());
    (!instance.ready && !silent).then_some(("not ready", message))
}

/// A Gateway serves when its proxy is ready and every port that it declares is open.
fn gateway_lacks(world: &World, key: &Name) -> Option<(&'static str, String)> {
    let what = GATEWAY_DOWN;
    if gateway_ports(world, key).is_empty() {
        return Some((what, "none of its listeners can be served; `meshwright get objects` says why".to_owned()));
    }
    let Some(state) = world.gateway_states().get(key) else { return Some((what, String::new())) };
    if !state.ready {
        return Some((what, state.message.clone()));
    }
    let closed = gateway_ports(world, key).into_iter().filter(|port| !state.bound.contains_key(port));
    let closed: Vec<String> = closed.map(|(port, udp)| if udp { format!("{port}/udp") } else { port.to_string() }).collect();
    (!closed.is_empty()).then(|| {
        let why = if state.message.is_empty() { String::new() } else { format!(": {}", state.message) };
        (what, format!("port {} is not open yet{why}", closed.join(", ")))
    })
}

fn line((namespace, name): &Name, what: &str, message: &str) -> String {
    let colon = if message.is_empty() { "" } else { ": " };
    format!("{namespace}/{name} ({what}{colon}{message})")
}
