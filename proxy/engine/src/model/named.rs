//! A server outside the mesh that proves itself by a name.

use std::sync::Arc;

use crate::raw::is_host;

/// What a TLS server must prove that is met by its name and not by an identity, and by whose word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Named {
    name: Arc<str>,
    roots: Roots,
}

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Roots {
    /// Those that the machine of the proxy believes.
    System,
    /// Below one of these, DER; none believes nobody.
    Given(Arc<[Vec<u8>]>),
}

impl Named {
    /// A server of this name (any case), or of this IP address; `None`: it is neither.
    pub fn new(name: &str, roots: Roots) -> Option<Self> {
        is_host(name).then(|| Self { name: name.to_ascii_lowercase().into(), roots })
    }

    /// What its certificate must be for: a DNS name in lower case, which it is also asked for (SNI), or an IP address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who may have said so.
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_or_addresses() {
        // Aim: what a certificate can be for is taken, in lower case; nothing else is.
        for (text, name) in [("ID.example", "id.example"), ("a", "a"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("a-b.c_d", "a-b.c_d")] {
            assert_eq!(Named::new(text, Roots::System).unwrap().name(), name);
        }
        let long = format!("{}.a", "a".repeat(64));
        for bad in ["", ".", "a.", "-a", "a-", "*.example", "a b", "10.0.0.256", "a:1", "[::1]", "ä.example", "a\0", &long] {
            assert!(Named::new(bad, Roots::System).is_none(), "{bad}");
        }
    }
}
