//! Who may call from outside, out of their resources: in force at once, like endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::mesh;

use super::Staged;
use crate::consumers::{BookCell, CREDENTIALS_MAX, Page};
use crate::rejected::Wrong;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    pages: BTreeMap<String, Staged<Page>>,
    changed: bool,
    pub(super) cell: Arc<BookCell>,
}

impl Consumers {
    pub(super) fn put(&mut self, name: &str, version: String, raw: &mesh::Consumers) -> Result<(), Wrong> {
        let former = self.pages.get(name).map(|staged| &staged.content);
        let content = Page::compile(raw, former)?;
        let others = self.pages.iter().filter(|(other, _)| *other != name).map(|(_, staged)| staged.content.credentials);
        let all = others.sum::<usize>() + content.credentials;
        if all > CREDENTIALS_MAX {
            return Err(Wrong::new("consumers", format!("with the others they are {all} credentials, more than {CREDENTIALS_MAX}")));
        }
        self.pages.insert(name.to_owned(), Staged { version, content });
        self.changed = true;
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.changed |= self.pages.remove(name).is_some();
    }

    pub(super) fn version(&self, name: &str) -> Option<&str> {
        self.pages.get(name).map(|staged| staged.version.as_str())
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn settle(&mut self) -> bool {
        let changed = std::mem::take(&mut self.changed);
        if changed {
            self.cell.publish(Page::bind(self.pages.values().map(|staged| &staged.content)));
        }
        changed
    }
}
