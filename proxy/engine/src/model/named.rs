//! A server outside the mesh that proves itself by a name.

use std::sync::Arc;

use super::SecretCell;
use crate::raw::is_host;

/// What a TLS server must prove that is met by its name and not by an identity, and by whose word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Named {
    name: Arc<str>,
    roots: Roots,
    /// What its certificate must be for one of, in place of the name; none: the name.
    proves: Arc<[PeerName]>,
    /// What we show.
    shows: Option<Arc<SecretCell>>,
}

/// A name that a certificate is for (RFC 5280, section 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// A DNS name in lower case, or `*.SUFFIX` for all below it.
    Dns(Arc<str>),
    /// A URI, byte for byte.
    Uri(Arc<str>),
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
        let named = || Self { name: name.to_ascii_lowercase().into(), roots, proves: Arc::new([]), shows: None };
        is_host(name).then(named)
    }

    /// The same, whose certificate must be for one of these names instead; none: for its own.
    #[must_use]
    pub fn proving(self, proves: impl IntoIterator<Item = PeerName>) -> Self {
        Self { proves: proves.into_iter().collect(), ..self }
    }

    /// The same, which is shown this certificate where it asks for one.
    #[must_use]
    pub fn shown(self, certificate: Option<Arc<SecretCell>>) -> Self {
        Self { shows: certificate, ..self }
    }

    /// What its certificate must be for one of, in place of [`Named::name`]; none: that.
    pub fn proves(&self) -> &[PeerName] {
        &self.proves
    }

    /// What it is shown where it asks for a certificate.
    pub const fn shows(&self) -> Option<&Arc<SecretCell>> {
        self.shows.as_ref()
    }

    /// What it is asked for (SNI), a DNS name in lower case, or an IP address; its certificate must be for it, unless it proves others.
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
