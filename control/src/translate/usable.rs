//! Which consumers a Gateway may need.

use std::collections::BTreeMap;

use crate::world::content::ContentRef;

/// Namespaces, further names, labels.
type Chosen = (Vec<String>, Vec<String>, BTreeMap<String, String>);

/// Which consumers a Gateway's objects can use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Usable {
    /// Namespaces, further names, labels.
    pub(super) choices: Vec<Chosen>,
    /// Files of users.
    pub(super) files: Vec<ContentRef>,
    /// ConfigMaps with lists of addresses.
    pub(super) lists: Vec<String>,
    /// Entries of Secrets that its proxies show to stores and authorization servers.
    pub(super) secrets: Vec<ContentRef>,
    /// The namespace of whose Gateways its sessions of logins are, where nobody says what they are sealed with.
    pub(super) login_keys: Option<String>,
}
