//! ApiKeyAuth: whose keys open a route.

use std::collections::BTreeMap;

use super::value::{CredentialPlace, FilledHeader, name};
use super::{Cursor, EdgeAttachment};
use crate::world::door::Fields;

/// Most places, scopes and headers of one object, each.
const LISTED_MAX: usize = 16;

/// Who shows an API key. Fields that are absent are said by the next wider object, else by the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiKeyAuth {
    /// Where it holds.
    pub attachment: EdgeAttachment,
    /// Whether a request without a key is let through.
    pub optional: Option<bool>,
    /// Where keys stand.
    pub from: Option<Vec<CredentialPlace>>,
    /// Whose keys count.
    pub consumers: Option<ConsumerChoice>,
    /// What the key must be good for.
    pub scopes: Option<Vec<String>>,
    /// What the backend sees.
    pub forward: Forward,
}

/// What the backend sees of a credential, and of who shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forward {
    /// Whether it sees the credential.
    pub keep: Option<bool>,
    /// Headers that are filled.
    pub headers: Option<Vec<FilledHeader>>,
}

impl Forward {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let mut forward = at.fields();
        let keep = forward.get("credential").and_then(|at| at.word(&[("Strip", false), ("Keep", true)]));
        let headers = forward.get("headers").map(|at| at.list(LISTED_MAX));
        let headers = headers.map(|headers| headers.iter().filter_map(FilledHeader::read).collect());
        forward.done();
        Self { keep, headers }
    }
}

/// Whose credentials count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConsumerChoice {
    /// In which namespaces.
    pub namespaces: Namespaces,
    /// With all these labels.
    pub labels: BTreeMap<String, String>,
}

/// Where consumers may be declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namespaces {
    /// In the object's own namespace.
    #[default]
    Same,
    /// There, and wherever a ReferenceGrant lets them be referred to from.
    All,
}

impl ApiKeyAuth {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { attachment: EdgeAttachment::read(&mut fields), optional: mode(&mut fields), ..Self::default() };
        if let Some(at) = fields.get("from") {
            let items = at.list(LISTED_MAX);
            if items.is_empty() && at.is_list() {
                at.error("an empty list: no key would ever be found", "name a place, or remove the list");
            }
            read.from = Some(items.iter().filter_map(CredentialPlace::read).collect());
        }
        read.consumers = fields.get("consumers").map(|at| ConsumerChoice::read(&at));
        read.scopes = fields.get("scopes").map(|at| at.list(LISTED_MAX).iter().filter_map(name).collect());
        read.forward = fields.get("forward").map(|at| Forward::read(&at)).unwrap_or_default();
        fields.done();
        Some(read)
    }
}

/// Reads `mode`: whether it is Optional.
pub(super) fn mode(fields: &mut Fields<'_>) -> Option<bool> {
    fields.get("mode").and_then(|at| at.word(&[("Required", false), ("Optional", true)]))
}

impl ConsumerChoice {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let words = [("Same", Namespaces::Same), ("All", Namespaces::All)];
        let namespaces = fields.get("namespaces").and_then(|at| at.word(&words)).unwrap_or_default();
        let labels = fields.get("selector").map(|at| {
            let mut selector = at.fields();
            let labels = selector.get("matchLabels").map(|labels| labels.text_map()).unwrap_or_default();
            selector.done();
            labels
        });
        fields.done();
        Self { namespaces, labels: labels.unwrap_or_default() }
    }
}
