//! Which consumers count.

use proto::mesh;

use super::consumer::Consumer;
use crate::rejected::Wrong;

/// Most namespaces, names and labels of one choice, of each.
const LISTED_MAX: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub struct ConsumerChoice {
    /// In order.
    namespaces: Vec<Box<str>>,
    /// `NAMESPACE/NAME`, in order.
    names: Vec<Box<str>>,
    labels: Vec<(Box<str>, Box<str>)>,
}

impl ConsumerChoice {
    pub(crate) fn compile(raw: &mesh::ConsumerChoice) -> Result<Self, Wrong> {
        let mesh::ConsumerChoice { namespaces, names, labels } = raw;
        for (field, count) in [("namespaces", namespaces.len()), ("names", names.len()), ("labels", labels.len())] {
            if count > LISTED_MAX {
                return Err(Wrong::new(field, format!("holds {count}, which is more than {LISTED_MAX}")));
            }
        }
        let sorted = |texts: &[String]| {
            let mut texts: Vec<Box<str>> = texts.iter().map(|text| text.as_str().into()).collect();
            texts.sort_unstable();
            texts
        };
        let labels = labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
        Ok(Self { namespaces: sorted(namespaces), names: sorted(names), labels })
    }

    /// Whether a consumer counts.
    pub fn takes(&self, consumer: &Consumer) -> bool {
        let named = |list: &[Box<str>], text: &str| list.binary_search_by(|known| (**known).cmp(text)).is_ok();
        let there = named(&self.namespaces, &consumer.namespace) || (!self.names.is_empty() && named(&self.names, &consumer.path));
        there && self.labels.iter().all(|(name, value)| consumer.labels.iter().any(|(own, said)| own == name && said == value))
    }
}
