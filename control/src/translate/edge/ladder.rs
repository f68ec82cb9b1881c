//! Which objects of an edge kind hold at a place, field by field: a rule's before its route's, before those of the route's namespace, the
//! listener's, the Gateway's, the mesh's; at one place the older object's. What a locked object sets nobody below it changes. A list is
//! replaced whole, unless its field *adds up*.

use std::collections::BTreeSet;

use crate::translate::attach::{self, content};
use crate::translate::edge_listeners;
use crate::world::edge::EdgeAttachment;
use crate::world::object::attachment;
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Name, Object, ObjectKey, Spec};

/// Where a rule's requests come by.
#[derive(Clone, Copy)]
pub(in crate::translate) struct Spot<'a> {
    /// The Gateway.
    pub gateway: &'a Name,
    /// The Gateway or ListenerSet that has the listener.
    pub owner: &'a ObjectKey,
    /// The listener's own name there.
    pub listener: &'a str,
    /// The route, and the rule's name; `None`: what holds at the listener, whatever the route.
    pub route: Option<(&'a Object, Option<&'a str>)>,
}

/// The places that a spot belongs to, the narrowest first.
pub(in crate::translate) fn places(spot: &Spot<'_>) -> Vec<Place> {
    let mut places = Vec::with_capacity(6);
    if let Some((route, rule)) = spot.route {
        if let Some(rule) = rule.filter(|rule| !rule.is_empty()) {
            places.push(Place::Section(route.key.clone(), rule.to_owned()));
        }
        places.push(Place::Object(route.key.clone()));
        places.push(Place::Namespace(route.key.namespace.clone()));
    }
    places.push(Place::Section(spot.owner.clone(), spot.listener.to_owned()));
    places.push(Place::Object(spot.owner.clone()));
    let gateway = ObjectKey::new(Kind::Gateway, &spot.gateway.0, &spot.gateway.1);
    if gateway != *spot.owner {
        places.push(Place::Object(gateway));
    }
    places.push(Place::Mesh);
    places
}

/// Every place that some request at a Gateway belongs to.
pub(in crate::translate) fn all_places(index: &Index, gateway: &Name) -> BTreeSet<Place> {
    let mut all = BTreeSet::from([Place::Mesh]);
    let key = ObjectKey::new(Kind::Gateway, &gateway.0, &gateway.1);
    for judged in edge_listeners::listeners(index, gateway) {
        all.insert(Place::Section(judged.owner.key.clone(), judged.listener.name.clone()));
        all.insert(Place::Object(judged.owner.key.clone()));
    }
    all.insert(Place::Object(key));
    for route in index.routes.iter().filter(|route| attach::names_gateway(index, route, gateway)) {
        all.extend(rule_names(route).map(|rule| Place::Section(route.key.clone(), rule.to_owned())));
        all.insert(Place::Object(route.key.clone()));
        all.insert(Place::Namespace(route.key.namespace.clone()));
    }
    all
}

/// An edge kind whose fields are said at several places.
pub(in crate::translate) trait Rung: Clone + Default {
    /// The kind.
    const KIND: Kind;

    /// What an object says, if it is of the kind.
    fn of(object: &Object) -> Option<&Self>;

    /// The paths of the fields that it sets.
    fn fields(&self) -> Vec<&'static str>;

    /// Takes one field over from another object.
    fn take(&mut self, other: &Self, field: &'static str);

    /// Whether what all places say of a field holds, and not the narrowest alone.
    fn adds_up(_field: &'static str) -> bool {
        false
    }
}

/// An object that says something at one of the places; the place is its number, the narrowest 0.
struct Step<'a, T> {
    place: usize,
    object: &'a Object,
    attachment: &'a EdgeAttachment,
    says: &'a T,
}

/// All objects of a kind that say something at some places.
pub(in crate::translate) struct Climb<'a, T> {
    steps: Vec<Step<'a, T>>,
}

/// What holds, and by whom: the narrowest object first.
pub(in crate::translate) struct Held<'a, T> {
    /// What is said; fields that nobody says are the defaults'.
    pub says: T,
    /// Objects of which a field holds.
    pub by: Vec<&'a Object>,
    /// Who says each field: one, unless it adds up.
    pub fields: Vec<(&'static str, &'a Object)>,
}

/// What becomes of one object's fields at some places.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::translate) struct Lost {
    /// A wider object locks it: field and owner.
    pub locked: Vec<(&'static str, ObjectKey)>,
    /// An older one of the same place says it.
    pub older: Vec<(&'static str, ObjectKey)>,
    /// Fields that hold, or that only narrower objects say otherwise.
    pub kept: usize,
}

impl<'a, T: Rung> Climb<'a, T> {
    pub(in crate::translate) fn of(index: &'a Index, places: &[Place]) -> Self
    where
        T: 'a,
    {
        let mut steps = Vec::new();
        for (place, at) in places.iter().enumerate() {
            for object in index.edge.get(at).into_iter().flatten().filter(|object| object.key.kind == T::KIND) {
                if let (Some(says), Some(attachment)) = (T::of(object), attachment(object)) {
                    steps.push(Step { place, object, attachment, says });
                }
            }
        }
        Self { steps }
    }

    /// Who has the last word on a field that does not add up: of the widest locked ones, else of the narrowest, the oldest.
    fn owner(&self, field: &'static str) -> Option<&Step<'a, T>> {
        let says = |step: &&Step<'a, T>| step.says.fields().contains(&field);
        let locked = self.steps.iter().filter(|step| step.attachment.locked).filter(says);
        // Steps of one place stand by their age: the first of the widest place.
        let widest = locked.fold(None, |best: Option<&Step<'a, T>>, step| match best {
            Some(best) if best.place >= step.place => Some(best),
            _ => Some(step),
        });
        widest.or_else(|| self.steps.iter().find(says))
    }

    /// What holds; `None`: nobody says anything.
    pub(in crate::translate) fn held(&self) -> Option<Held<'a, T>> {
        if self.steps.is_empty() {
            return None;
        }
        let mut held = Held { says: T::default(), by: Vec::new(), fields: Vec::new() };
        for step in &self.steps {
            let mut holds = step.says.fields().is_empty();
            for field in step.says.fields() {
                let owns = || self.owner(field).is_some_and(|owner| std::ptr::eq(owner, step));
                if T::adds_up(field) || owns() {
                    held.says.take(step.says, field);
                    held.fields.push((field, step.object));
                    holds = true;
                }
            }
            if holds {
                held.by.push(step.object);
            }
        }
        Some(held)
    }

    /// Where an object's word lets in what wider ones, were it not there, would not: each such field, with who says it there, else the narrowest of
    /// them. `loosens` compares its word with theirs; true: both are of one namespace.
    pub(in crate::translate) fn loosened(
        &self,
        key: &ObjectKey,
        loosens: impl Fn(&T, &T, &'static str, bool) -> bool,
    ) -> Vec<(&'static str, ObjectKey)> {
        let Some(own) = self.steps.iter().find(|step| step.object.key == *key) else { return Vec::new() };
        let wider = self.steps.iter().filter(|step| step.place > own.place);
        let again = |step: &Step<'a, T>| Step { place: step.place, object: step.object, attachment: step.attachment, says: step.says };
        let Some(held) = (Self { steps: wider.map(again).collect() }).held() else { return Vec::new() };
        let owns = |field: &&'static str| !T::adds_up(field) && self.owner(field).is_some_and(|owner| std::ptr::eq(owner, own));
        let one = |field: &'static str| {
            let said = held.fields.iter().find(|(known, _)| *known == field).map(|(_, object)| *object);
            let by = said.or(held.by.first().copied())?;
            let neighbours = by.key.namespace == own.object.key.namespace;
            loosens(own.says, &held.says, field, neighbours).then(|| (field, by.key.clone()))
        };
        own.says.fields().into_iter().filter(owns).filter_map(one).collect()
    }

    /// What becomes of the fields of one of the objects.
    pub(in crate::translate) fn lost(&self, key: &ObjectKey) -> Lost {
        let mut lost = Lost::default();
        let Some(own) = self.steps.iter().find(|step| step.object.key == *key) else { return lost };
        for field in own.says.fields() {
            let owner = if T::adds_up(field) { None } else { self.owner(field) };
            match owner {
                Some(owner) if owner.attachment.locked && owner.place > own.place => {
                    lost.locked.push((field, owner.object.key.clone()));
                }
                _ if !T::adds_up(field) => {
                    let mut older = self.steps.iter().take_while(|step| !std::ptr::eq(*step, own));
                    match older.find(|step| step.place == own.place && step.says.fields().contains(&field)) {
                        Some(winner) => lost.older.push((field, winner.object.key.clone())),
                        None => lost.kept += 1,
                    }
                }
                _ => lost.kept += 1,
            }
        }
        lost
    }
}

/// An object at one of the places of which no version was ever good.
pub(in crate::translate) fn broken<'a>(index: &'a Index, places: &[Place]) -> Option<&'a ObjectKey> {
    let objects = places.iter().flat_map(|place| index.edge.get(place).into_iter().flatten());
    objects.into_iter().find(|object| matches!(object.spec, Spec::Broken(_))).map(|object| &object.key)
}

/// The rules of a route that have names.
pub(in crate::translate) fn rule_names(route: &Object) -> impl Iterator<Item = &str> {
    content(route).into_iter().flat_map(|spec| &spec.rules).filter_map(|rule| rule.name.as_deref())
}
