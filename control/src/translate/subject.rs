//! What views depend on, and what changes are about.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use crate::world::Name;

/// One thing that a part of a view depends on. 64 bits stand for it: two that share them are touched together, which costs a look at what
/// has not changed and is never wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(u64);

impl Subject {
    /// A Service: what it says, and what routes and policies say of it.
    pub fn service((namespace, name): &Name) -> Self {
        Self::of(0, namespace, name)
    }

    /// What is behind a Service.
    pub fn endpoints((namespace, name): &Name) -> Self {
        Self::of(1, namespace, name)
    }

    /// An instance, as declared; not whether it is ready, which is its Services' matter.
    pub fn instance((namespace, name): &Name) -> Self {
        Self::of(2, namespace, name)
    }

    /// A Gateway: what it says, and what routes and policies say of it.
    pub fn gateway((namespace, name): &Name) -> Self {
        Self::of(3, namespace, name)
    }

    /// A page of Consumers.
    pub fn consumers(page: u8) -> Self {
        Self::hashed((5_u8, page))
    }

    /// Who has an address.
    pub fn address(address: IpAddr) -> Self {
        Self::hashed((4_u8, address))
    }

    fn of(kind: u8, namespace: &str, name: &str) -> Self {
        Self::hashed((kind, namespace, name))
    }

    fn hashed(what: impl Hash) -> Self {
        // Without a key: the same in every process, so that what is woken is, too.
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What one world has otherwise than the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affected {
    /// Something that nobody can attribute: everybody looks.
    All,
    /// These alone.
    Some(BTreeSet<Subject>),
}

impl Affected {
    /// Whether something that depends on these subjects may be otherwise.
    pub fn concerns(&self, subjects: &[Subject]) -> bool {
        match self {
            Self::All => true,
            Self::Some(touched) => subjects.iter().any(|subject| touched.contains(subject)),
        }
    }
}
