//! Addresses as objects come and go: who has which, who gets none, and who has another one than was chosen. It looks at what changed, and
//! at everything only where a range is full.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::allocations::{AddressNeeds, Allocations, gateway_name};
use super::object::{Candidate, Object, Spec};
use super::problem::{Problem, Severity};
use super::sorted::Sorted;
use super::{ObjectKey, Versions, WorldSettings, instance};

/// Every object with all its versions.
pub(super) type Slots = Sorted<ObjectKey, Versions>;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Addressing {
    pub(super) allocations: Allocations,
    /// Names for which no address was left.
    left: BTreeSet<String>,
    /// What is said of Services that have another address than was chosen.
    replaced: Sorted<ObjectKey, Vec<Problem>>,
}

impl Addressing {
    pub(super) fn new(allocations: Allocations) -> Self {
        Self { allocations, ..Self::default() }
    }

    /// Takes in that these objects may be others than they were. Returns what is wrong and was not before.
    pub(super) fn follow(
        &mut self,
        settings: &WorldSettings,
        (before, after): (&Slots, &Slots),
        changed: &BTreeSet<ObjectKey>,
    ) -> Vec<Problem> {
        let mut wanted = AddressNeeds::default();
        for key in changed {
            for address in object(before, key).into_iter().flat_map(chosen) {
                self.allocations.release(&settings.ranges, &address);
            }
            if let Some(object) = object(after, key) {
                chosen(object).iter().for_each(|address| self.allocations.choose(&settings.ranges, address));
                wanted.add(settings, object);
            }
        }
        let former = self.clone();
        // Where a range is full, whoever is gone gives its address up, and whoever got none asks again.
        if self.left.is_empty() && self.allocations.have_room(&settings.ranges, &wanted) {
            self.left = self.allocations.allocate(&settings.ranges, &wanted);
            changed.iter().for_each(|key| self.say(settings, after, key));
        } else {
            self.left = self.allocations.allocate(&settings.ranges, &all(settings, after));
            after.keys().chain(changed).for_each(|key| self.say(settings, after, key));
        }
        let left = self.left.difference(&former.left).map(none_left);
        let said = former.replaced.changes(&self.replaced).into_iter().filter_map(|(_, was, is)| Some((was, is?)));
        let fresh = said.flat_map(|(was, is)| is.iter().filter(move |problem| !was.is_some_and(|was| was.contains(problem))));
        left.chain(fresh.cloned()).collect()
    }

    /// All that is wrong.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.left.iter().map(none_left).chain(self.replaced.values().flatten().cloned())
    }

    /// Says what an object's author chose in vain.
    fn say(&mut self, settings: &WorldSettings, slots: &Slots, key: &ObjectKey) {
        let live = slots.get(key).and_then(Versions::live);
        let problems = live.map(|live| self.replaced(settings, key, live)).unwrap_or_default();
        self.replaced.edit(key, |said| *said = problems);
    }

    /// Addresses that a Service's author chose and that lead nowhere, each with what it has instead.
    fn replaced(&self, settings: &WorldSettings, key: &ObjectKey, live: &Candidate) -> Vec<Problem> {
        let Some(Spec::Service(service)) = live.object.as_ref().map(|object| &object.spec) else { return Vec::new() };
        let given = self.allocations.service(&settings.ranges, &key.path());
        let has = service.addresses(settings, given);
        let problem = |address: &IpAddr| {
            let instead = has.iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let instead = instead.map_or_else(|| "no address".to_owned(), ToString::to_string);
            let (v4, v6) = settings.ranges.services;
            let message = format!("{address} lies outside the mesh's ranges {v4} and {v6}; the Service has {instead} instead");
            let remedy = "remove it, choose one of those ranges, or move them with --service-cidr";
            Problem::of_object(Severity::Warning, (&live.file, live.line), key, "spec.clusterIP", message, remedy)
        };
        service.unserved(settings).map(problem).collect()
    }

    /// The same from nothing but what was given before.
    #[cfg(test)]
    pub(super) fn anew(settings: &WorldSettings, before: &Allocations, slots: &Slots) -> Self {
        let mut this = Self::new(serde_json::from_value(serde_json::to_value(before).unwrap()).unwrap());
        let live = slots.keys().filter_map(|key| object(slots, key));
        live.flat_map(chosen).for_each(|address| this.allocations.choose(&settings.ranges, &address));
        this.left = this.allocations.allocate(&settings.ranges, &all(settings, slots));
        slots.keys().for_each(|key| this.say(settings, slots, key));
        this
    }
}

impl AddressNeeds {
    /// What an object needs.
    fn add(&mut self, settings: &WorldSettings, Object { key, spec, .. }: &Object) {
        match spec {
            Spec::Service(service) if service.wants_address(settings) => _ = self.services.insert(key.path()),
            Spec::Workload(workload) if workload.addresses.is_empty() => {
                self.instances.extend(instance::names(&key.name, workload).map(|name| format!("{}/{name}", key.namespace)));
            }
            // In a cluster a Gateway's proxy runs where the cluster lets it, at an address of the cluster's.
            Spec::Gateway(_) if !settings.in_cluster => _ = self.instances.insert(gateway_name(&key.namespace, &key.name)),
            _ => {}
        }
    }
}

/// What all objects need.
fn all(settings: &WorldSettings, slots: &Slots) -> AddressNeeds {
    let mut wanted = AddressNeeds::default();
    slots.keys().filter_map(|key| object(slots, key)).for_each(|object| wanted.add(settings, object));
    wanted
}

/// Addresses that an object's author chose.
fn chosen(object: &Object) -> BTreeSet<IpAddr> {
    match &object.spec {
        Spec::Service(service) => service.cluster_ips.iter().copied().collect(),
        Spec::Workload(workload) => workload.addresses.iter().copied().collect(),
        _ => BTreeSet::new(),
    }
}

fn object<'a>(slots: &'a Slots, key: &ObjectKey) -> Option<&'a Object> {
    slots.get(key)?.live()?.object.as_deref()
}

fn none_left(name: &String) -> Problem {
    Problem::of_file(Severity::Error, "", 0, format!("no address is left for {name}"), "use a larger range")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};

    use super::*;
    use crate::world::{Change, Origin, Ranges, World};

    fn candidate(text: &str) -> Candidate {
        crate::source::parse("f.yaml", text).candidates.remove(0)
    }

    #[test]
    fn what_is_kept_up_is_what_would_be_found_anew() {
        // Aim: in ranges that are full at times and at times not, after whatever change of Services and Workloads, everybody has the address,
        // and everything is said, that a look at all objects would come to; and what is said first is what was not said before.
        let v4 = |net: u8, bits| Ipv4Net::new_assert(Ipv4Addr::new(10, net, 0, 0), bits);
        let v6 = |net: u16| Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 0), 108);
        let ranges = Ranges { services: (v4(1, 29), v6(1)), instances: (v4(2, 28), v6(2)) };
        let mut world = World::new(WorldSettings { ranges, ..WorldSettings::default() }, Allocations::default());
        let mut seed = 11_u64;
        let mut draw = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut full, mut replaced) = (0, 0);
        for _ in 0..3_000 {
            let (name, choice) = (draw(6), draw(3));
            let text = match draw(2) {
                0 => {
                    let chosen = ["", "clusterIP: 10.1.0.3, ", "clusterIP: 192.0.2.1, "][usize::try_from(choice).unwrap()];
                    format!(
                        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{name}, namespace: a}}\nspec: {{{chosen}ports: [{{port: 80}}]}}\n"
                    )
                }
                _ => {
                    let spec = ["command: [x]", "command: [x], replicas: 3", "addresses: [10.2.0.12]"][usize::try_from(choice).unwrap()];
                    format!(
                        "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{name}, namespace: a}}\nspec: {{{spec}}}\n"
                    )
                }
            };
            let candidate = candidate(&text);
            let own = candidate.problems.clone();
            let change = match draw(3) {
                0 => Change::Remove { origin: Origin::Folder, key: candidate.key },
                _ => Change::Put { origin: Origin::Folder, candidate, now_ms: 0 },
            };
            let (former, said) = (world.clone(), format!("{change:?}"));
            let applied = world.apply(vec![change]);
            let anew = Addressing::anew(world.settings(), former.allocations(), &world.slots);
            if applied.changed.is_empty() {
                assert_eq!(world.addressing, former.addressing);
            } else {
                assert_eq!(world.addressing, anew, "{said}");
            }
            let told: BTreeSet<Problem> = applied.problems.into_iter().filter(|problem| !own.contains(problem)).collect();
            let before: BTreeSet<Problem> = former.addressing.problems().collect();
            assert_eq!(told, world.addressing.problems().filter(|problem| !before.contains(problem)).collect(), "{said}");
            full += usize::from(!world.addressing.left.is_empty());
            replaced += world.addressing.replaced.len();
        }
        assert!((300..2_700).contains(&full) && replaced > 300, "{full} {replaced}");
    }
}
