//! Who has which address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::difference::Changed;
use crate::world::index::{Address, AddressClaim, Index, Name, ServiceView};
use crate::world::instance::Instance;
use crate::world::object::Object;
use crate::world::{Spec, World, gateway_name};

/// Who claims addresses, and which.
type Claimant<'a> = (&'a Arc<Object>, &'a Vec<IpAddr>);

/// Ranks of claims.
const GATEWAY: u8 = 0;
const SERVICE: u8 = 1;
const INSTANCE: u8 = 2;

impl Index {
    /// Who has which address, after these changes.
    pub(super) fn address(
        &mut self,
        (former, world): (&World, &World),
        gateways: &BTreeSet<Name>,
        services: &[Changed<ServiceView>],
        instances: &[Changed<Instance>],
    ) {
        let ranges = &world.settings().ranges;
        let mut claims: Vec<(IpAddr, AddressClaim)> = Vec::new();
        let mut claim =
            |addresses: &[IpAddr], claim: AddressClaim| claims.extend(addresses.iter().map(|address| (*address, claim.clone())));
        for name in gateways {
            for address in self.gateway_addresses.get(name).cloned().unwrap_or_default() {
                self.disclaim(world, address, (GATEWAY, name));
            }
            self.gateway_addresses.remove(name);
            if self.gateways.contains_key(name) {
                let given = world.allocations().instance(ranges, &gateway_name(&name.0, &name.1));
                let given: Vec<IpAddr> = given.into_iter().flatten().collect();
                claim(&given, AddressClaim { rank: GATEWAY, declared: false, created_ms: 0, name: name.clone() });
                self.gateway_addresses.insert(name.clone(), given);
            }
        }
        for Changed { name, was, is } in services {
            let (was, is) =
                (was.as_deref().map(|view| (&view.object, &view.addresses)), is.as_deref().map(|view| (&view.object, &view.addresses)));
            self.reclaim((former, world), (SERVICE, name), (was, is), &mut claim);
        }
        for Changed { name, was, is } in instances {
            let (was, is) = (was.as_deref().and_then(own), is.as_deref().and_then(own));
            self.reclaim((former, world), (INSTANCE, name), (was, is), &mut claim);
        }
        for (address, claim) in claims {
            self.claim(world, address, claim);
        }
    }

    fn reclaim(
        &mut self,
        (former, world): (&World, &World),
        (rank, name): (u8, &Name),
        (was, is): (Option<Claimant<'_>>, Option<Claimant<'_>>),
        claim: &mut impl FnMut(&[IpAddr], AddressClaim),
    ) {
        let claimed = |world: &World, claimant: Option<Claimant<'_>>| {
            claimant.map(|(object, addresses)| (AddressClaim::of(world, rank, object, name), addresses.clone()))
        };
        let (was, is) = (claimed(former, was), claimed(world, is));
        if was == is {
            return;
        }
        was.iter().flat_map(|(_, addresses)| addresses).for_each(|address| self.disclaim(world, *address, (rank, name)));
        if let Some((one, addresses)) = is {
            claim(&addresses, one);
        }
    }

    /// Who has it, as a claim.
    fn owner(&self, world: &World, address: IpAddr) -> Option<AddressClaim> {
        // One that is just gone is asked for to take its addresses away.
        let of = |rank, object: Option<&Arc<Object>>, name: &Name| match object {
            Some(object) => AddressClaim::of(world, rank, object, name),
            None => AddressClaim { rank, declared: false, created_ms: 0, name: name.clone() },
        };
        Some(match self.addresses.get(&address)? {
            Address::Gateway(name) => of(GATEWAY, None, name),
            Address::Service(name) => of(SERVICE, self.services.get(name).map(|view| &view.object), name),
            Address::Instance(name) => of(INSTANCE, self.instances.get(name).map(|instance| &instance.object), name),
        })
    }

    fn claim(&mut self, world: &World, address: IpAddr, claim: AddressClaim) {
        let Some(owner) = self.owner(world, address) else {
            self.addresses.insert(address, claim.owner());
            return;
        };
        self.contested.edit(&address, |claims| {
            for claim in [owner, claim] {
                if !claims.contains(&claim) {
                    claims.push(claim);
                }
            }
            claims.sort();
        });
        if let Some(first) = self.contested.get(&address).and_then(|claims| claims.first()) {
            self.addresses.insert(address, first.owner());
        }
    }

    fn disclaim(&mut self, world: &World, address: IpAddr, (rank, name): (u8, &Name)) {
        let mut left = self.contested.get(&address).cloned().unwrap_or_default();
        left.retain(|claim| (claim.rank, &claim.name) != (rank, name));
        match left.first() {
            Some(first) => self.addresses.insert(address, first.owner()),
            None if self.owner(world, address).is_some_and(|owner| (owner.rank, &owner.name) == (rank, name)) => {
                self.addresses.remove(&address)
            }
            None => {}
        }
        // One alone contests nothing.
        let left = if left.len() > 1 { left } else { Vec::new() };
        self.contested.edit(&address, |claims| *claims = left);
    }
}

/// What shares its node's network has no address of its own.
fn own(instance: &Instance) -> Option<Claimant<'_>> {
    let own = instance.pod().is_none_or(|pod| !pod.host_network);
    own.then_some((&instance.object, &instance.addresses))
}

impl AddressClaim {
    fn of(world: &World, rank: u8, object: &Object, name: &Name) -> Self {
        let declared = matches!(object.spec, Spec::Workload(_));
        Self { rank, declared, created_ms: world.created_ms(object), name: name.clone() }
    }

    fn owner(&self) -> Address {
        match self.rank {
            GATEWAY => Address::Gateway(self.name.clone()),
            SERVICE => Address::Service(self.name.clone()),
            _ => Address::Instance(self.name.clone()),
        }
    }
}
