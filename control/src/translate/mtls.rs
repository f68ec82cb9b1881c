//! Which mTLS mode each inbound port has. More specific wins (workload, namespace, mesh), per field; at one place the oldest that
//! sets the field wins. A place's exception for a port goes before its general mode, and never reaches over a more specific place.

use std::collections::{BTreeMap, BTreeSet};

use proto::words::MtlsMode;

use crate::world::own::PeerAuthentication;
use crate::world::{Index, Object, Spec, World};

/// Whether a port of a meshed workload refuses plaintext; `None`: there is no such workload.
pub fn is_strict(world: &World, (namespace, workload): (&str, &str), port: u16) -> Option<bool> {
    let index = world.index();
    let name = index.workloads.get(&(namespace.to_owned(), workload.to_owned()))?.first()?;
    let instance = index.instances.get(name).filter(|instance| instance.meshed)?;
    Some(Modes::new(index, namespace, instance.labels()).of(port) == MtlsMode::Strict)
}

/// Where a policy of ours applies, most specific first (`kinds.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AppliesTo {
    /// Workloads by selector.
    Workload,
    /// A whole namespace.
    Namespace,
    /// The whole mesh.
    Mesh,
}

/// Where an object with this selector applies.
pub(super) fn place(object: &Object, selector: &crate::world::own::Selector) -> AppliesTo {
    match selector {
        Some(_) => AppliesTo::Workload,
        None if object.key.namespace == proto::annotations::ROOT_NAMESPACE => AppliesTo::Mesh,
        None => AppliesTo::Namespace,
    }
}

/// Whether it applies to a workload of that namespace with those labels.
pub(super) fn applies(object: &Object, selector: &crate::world::own::Selector, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    match selector {
        Some(wanted) => object.key.namespace == namespace && wanted.iter().all(|(name, value)| labels.get(name) == Some(value)),
        None => object.key.namespace == namespace || object.key.namespace == proto::annotations::ROOT_NAMESPACE,
    }
}

/// The content of a PeerAuthentication.
pub(super) fn content(object: &Object) -> Option<&PeerAuthentication> {
    if let Spec::PeerAuthentication(spec) = &object.spec { Some(spec) } else { None }
}

/// What one place says: its general mode, and exceptions by port.
#[derive(Debug, Default)]
struct PortModes {
    mode: Option<MtlsMode>,
    ports: BTreeMap<u16, MtlsMode>,
}

/// The modes of one workload.
#[derive(Debug, Default)]
pub(super) struct Modes {
    /// The most specific place first.
    places: BTreeMap<AppliesTo, PortModes>,
}

impl Modes {
    pub(super) fn new(index: &Index, namespace: &str, labels: &BTreeMap<String, String>) -> Self {
        let mut modes = Self::default();
        // The oldest first: who comes later only fills what is still open.
        for object in index.peer_authentications.iter() {
            let Some(spec) = content(object).filter(|spec| applies(object, &spec.selector, namespace, labels)) else { continue };
            let said = modes.places.entry(place(object, &spec.selector)).or_default();
            said.mode = said.mode.or(spec.mode);
            for (port, mode) in &spec.ports {
                said.ports.entry(*port).or_insert(*mode);
            }
        }
        modes
    }

    /// Ports with a mode of their own.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        self.places.values().flat_map(|said| said.ports.keys().copied()).collect()
    }

    /// The mode of a port.
    pub(super) fn of(&self, port: u16) -> MtlsMode {
        let said = self.places.values().find_map(|said| said.ports.get(&port).copied().or(said.mode));
        said.unwrap_or(MtlsMode::Permissive)
    }

    /// The mode of a port that nobody names.
    pub(super) fn other(&self) -> MtlsMode {
        self.places.values().find_map(|said| said.mode).unwrap_or(MtlsMode::Permissive)
    }
}
