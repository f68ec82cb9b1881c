//! What sets two worlds apart.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::world::instance::family;
use crate::world::object::Object;
use crate::world::{Name, ObjectKey, Versions, World};

/// What sets two worlds apart.
#[derive(Default)]
pub(super) struct Difference<'a> {
    /// Objects that are in force no more, former versions included.
    pub gone: Vec<&'a Arc<Object>>,
    /// Objects that are in force now, and were not.
    pub come: Vec<&'a Arc<Object>>,
    /// Services whose allocated address is another one.
    pub services: BTreeSet<Name>,
    /// Gateways likewise.
    pub gateways: BTreeSet<Name>,
    /// Namespaces and [`family`] of instances of which something runs otherwise.
    pub families: BTreeSet<Name>,
}

/// Something before and after.
pub(super) struct Changed<T> {
    pub name: Name,
    pub was: Option<Arc<T>>,
    pub is: Option<Arc<T>>,
}

impl<'a> Difference<'a> {
    pub(super) fn between(former: &'a World, world: &'a World) -> Self {
        let mut this = Self::default();
        this.objects(former, world);
        let mut runs = |(namespace, name): &Name| _ = this.families.insert((namespace.clone(), family(name).to_owned()));
        if !Arc::ptr_eq(&former.instances, &world.instances) {
            let ready = |world: &'a World| world.instances.iter().filter(|(_, state)| state.ready).map(|(name, _)| name).collect();
            let (before, after): (BTreeSet<&Name>, BTreeSet<&Name>) = (ready(former), ready(world));
            before.symmetric_difference(&after).for_each(|name| runs(name));
        }
        former.draining.changes(&world.draining).into_iter().for_each(|(name, ..)| runs(name));
        let [services, instances, gateways] = former.allocations().changes(world.allocations());
        instances.iter().for_each(runs);
        this.services.extend(services);
        this.gateways.extend(gateways);
        this
    }

    fn objects(&mut self, former: &'a World, world: &'a World) {
        for (_, was, is) in former.slots.apart(&world.slots) {
            let live = |slot: Option<&'a Versions>| slot?.standing();
            let (was, is) = (live(was), live(is));
            let same = |(was, is): (&Arc<Object>, &Arc<Object>)| {
                Arc::ptr_eq(was, is) || was == is && former.created_ms(was) == world.created_ms(is)
            };
            if !was.zip(is).is_some_and(same) {
                self.gone.extend(was);
                self.come.extend(is);
            }
        }
    }
}

/// An object's (namespace, name).
pub(super) fn name_of(key: &ObjectKey) -> Name {
    (key.namespace.clone(), key.name.clone())
}
