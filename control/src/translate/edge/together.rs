//! Which consumers one object may use together. A username, or what a token says, is one consumer's among those alone: what somebody writes in a
//! namespace of which no object uses consumers together with another's takes nothing away there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proto::mesh::ConsumerChoice;

use crate::world::{Index, Object, ObjectKey};

/// Everybody that objects of one kind choose.
#[derive(Debug, Default)]
pub(super) struct Together {
    /// By number of the choice: the labels that it asks for.
    labels: Vec<BTreeMap<String, String>>,
    /// Choices that take consumers of a namespace.
    namespaces: HashMap<String, Vec<u32>>,
    /// Choices that take a consumer by its `NAMESPACE/NAME`.
    names: HashMap<String, Vec<u32>>,
}

impl Together {
    /// What all objects of a kind choose: those of which `chosen` says something. A namespace that has none of that kind counts as one that has
    /// one without a word about consumers, so that what is in conflict is told before it is used.
    pub(super) fn of(index: &Index, chosen: impl Fn(&Object) -> Option<ConsumerChoice>) -> Self {
        let objects: BTreeMap<&ObjectKey, &Object> = index.edge.values().flatten().map(|object| (&object.key, &**object)).collect();
        let all = objects.values().filter_map(|object| Some((object.key.namespace.as_str(), chosen(object)?)));
        Self::of_choices(index, all)
    }

    /// The same of these choices, each made in a namespace.
    pub(super) fn of_choices<'a>(index: &Index, all: impl Iterator<Item = (&'a str, ConsumerChoice)>) -> Self {
        let (mut own, mut choices) = (BTreeSet::new(), BTreeSet::new());
        for (namespace, ConsumerChoice { namespaces, names, labels }) in all {
            own.insert(namespace);
            choices.insert((namespaces, names, labels));
        }
        let theirs: BTreeSet<&str> = index.consumers.values().flatten().map(|object| object.key.namespace.as_str()).collect();
        choices.extend(theirs.difference(&own).map(|namespace| (vec![(*namespace).to_owned()], Vec::new(), BTreeMap::new())));
        let mut found = Self::default();
        for (number, (namespaces, names, labels)) in (0..).zip(choices) {
            found.labels.push(labels);
            namespaces.into_iter().for_each(|namespace| found.namespaces.entry(namespace).or_default().push(number));
            names.into_iter().for_each(|name| found.names.entry(name).or_default().push(number));
        }
        found
    }

    /// The numbers of the choices that take a consumer, each once.
    pub(super) fn taking(&self, consumer: &Object) -> Vec<u32> {
        let there = self.namespaces.get(&consumer.key.namespace).into_iter().flatten();
        let named = (!self.names.is_empty()).then(|| self.names.get(&consumer.key.path())).flatten().into_iter().flatten();
        let asks = |number: u32| self.labels.get(number as usize).into_iter().flatten();
        let mut found: Vec<u32> = there.chain(named).copied().collect();
        found.retain(|number| asks(*number).all(|(name, value)| consumer.label(name) == Some(value.as_str())));
        found.sort_unstable();
        found.dedup();
        found
    }
}
