//! References to what serves: of backends, and of whom copies go to.

use crate::world::door::{Fields, is_label};

/// What a reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// As written; `None`: the route's own.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port.
    pub port: Option<u16>,
    /// Line in the file.
    pub line: u32,
}

impl Reference {
    /// Reads its fields of a mapping that may have others.
    pub(in crate::world) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let group = fields.get("group").map_or(Some(String::new()), |at| at.text());
        let kind = fields.get("kind").map_or(Some("Service".to_owned()), |at| at.text());
        let namespace = fields.get("namespace").and_then(|at| at.text());
        let name = fields.need("name").and_then(|at| at.text());
        let port = fields.get("port").and_then(|at| at.port());
        let (group, kind) = (group?, kind?);
        let at = fields.at();
        if port.is_none() && group.is_empty() && kind == "Service" {
            at.error("a reference to a Service needs a port", "add `port`");
        }
        if namespace.as_ref().is_some_and(|namespace| !is_label(namespace)) {
            at.error("the namespace is no valid name", "");
        }
        Some(Self { group, kind, namespace, name: name?, port, line: at.line() })
    }
}
