//! What Secrets and ConfigMaps hold, for objects that refer to an entry of one.
//!
//! Contents are never printed: [`KeptBytes`] says only how long it is, and a Secret's text stands nowhere else in the world
//! (`object::read` takes it out of what is shown and stored). The bytes are zeroized when the last version that holds them goes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::door::{Cursor, Fields};
use super::key::{Kind, ObjectKey};

/// Bytes of one object's entries together, at most: what Kubernetes takes.
pub(super) const OBJECT_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of one entry. A clone shares them.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptBytes(Arc<Zeroizing<Vec<u8>>>);

impl KeptBytes {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }
}

impl Deref for KeptBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeptBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The entries of a Secret or a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub(super) entries: BTreeMap<String, KeptBytes>,
}

impl Contents {
    pub(super) fn secret(fields: &mut Fields<'_>) -> Self {
        fields.ignore(&["type", "immutable"]);
        // As in Kubernetes, `stringData` has the last word.
        Self::read(fields, &[("data", encoded), ("stringData", plain)])
    }

    pub(super) fn config_map(fields: &mut Fields<'_>) -> Self {
        fields.ignore(&["immutable"]);
        Self::read(fields, &[("data", plain), ("binaryData", encoded)])
    }

    fn read(fields: &mut Fields<'_>, parts: &[(&'static str, ReadEntry)]) -> Self {
        let mut contents = Self::default();
        for (part, read) in parts {
            let Some(part) = fields.get(part) else { continue };
            for (name, at) in part.entries() {
                if let Some(content) = read(&at) {
                    contents.entries.insert(name.to_owned(), content);
                }
            }
        }
        if contents.bytes() > OBJECT_BYTES_MAX {
            fields.at().error(format!("it holds {} bytes", contents.bytes()), format!("at most {OBJECT_BYTES_MAX} are allowed"));
        }
        contents
    }

    /// One entry.
    pub fn entry(&self, name: &str) -> Option<&KeptBytes> {
        self.entries.get(name)
    }

    /// Bytes of all entries together.
    pub(super) fn bytes(&self) -> usize {
        self.entries.values().map(|content| content.len()).sum()
    }
}

type ReadEntry = fn(&Cursor<'_>) -> Option<KeptBytes>;

fn plain(at: &Cursor<'_>) -> Option<KeptBytes> {
    Some(KeptBytes::new(at.text()?.into_bytes()))
}

/// Base64, with line breaks anywhere. What is wrong with it is told without it.
fn encoded(at: &Cursor<'_>) -> Option<KeptBytes> {
    let text = Zeroizing::new(at.text()?);
    let joined: Zeroizing<Vec<u8>> = Zeroizing::new(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect());
    let Ok(bytes) = STANDARD.decode(joined.as_slice()) else {
        at.error("it is no base64", "encode it, or put it below `stringData` (of a ConfigMap: `data`) as it is");
        return None;
    };
    Some(KeptBytes::new(bytes))
}

/// An entry of a Secret or a ConfigMap, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentRef {
    /// The Secret or ConfigMap.
    pub object: ObjectKey,
    /// Name of the entry.
    pub key: String,
}

impl fmt::Display for ContentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry `{}` of {}", self.key, self.object)
    }
}

impl ContentRef {
    /// Reads `{configMapRef: {name, key}}` or `{secretRef: {name, key}}`, in the namespace of the object that says it.
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let refs = [(Kind::ConfigMap, fields.get("configMapRef")), (Kind::Secret, fields.get("secretRef"))];
        fields.done();
        let [(kind, named)] =
            refs.into_iter().filter_map(|(kind, at)| Some((kind, at?))).collect::<Vec<_>>().try_into().ok().or_else(|| {
                at.error("it does not name one place", "say either `configMapRef` or `secretRef`");
                None
            })?;
        let mut fields = named.fields();
        let (name, key) = (fields.need("name").and_then(|at| at.text()), fields.need("key").and_then(|at| at.text()));
        fields.done();
        Some(Self { object: ObjectKey::new(kind, &at.key().namespace, name?), key: key? })
    }
}

/// Why there is nothing at a [`ContentRef`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// There is no such object, or all its versions were refused.
    #[error("there is no {0}")]
    NoObject(ObjectKey),
    /// The object has other entries.
    #[error("{object} has no entry `{key}`{}", listed(.others))]
    NoEntry {
        /// The object.
        object: ObjectKey,
        /// What was looked for.
        key: String,
        /// What it has, the first few.
        others: Vec<String>,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { ": it is empty".to_owned() } else { format!("; it has {}", names.join(", ")) }
}
