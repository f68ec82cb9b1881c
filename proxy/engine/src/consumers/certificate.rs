//! The certificate of a client from outside, as far as it says who calls.

use std::fmt::Write as _;

/// Names of a certificate that was verified, and of whom it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    hash: [u8; 32],
    subject: Box<str>,
    uris: Vec<Box<str>>,
    dns: Vec<Box<str>>,
}

/// Most names that are looked at, of each kind.
const NAMES_MAX: usize = 64;

impl ClientCertificate {
    /// `hash` is that of its DER; names are those of its alternative names, the first of each kind count.
    pub fn new(hash: [u8; 32], subject: &str, uris: impl IntoIterator<Item = Box<str>>, dns: impl IntoIterator<Item = Box<str>>) -> Self {
        let dns = dns.into_iter().take(NAMES_MAX).map(|name| name.to_ascii_lowercase().into_boxed_str());
        Self { hash, subject: subject.into(), uris: uris.into_iter().take(NAMES_MAX).collect(), dns: dns.collect() }
    }

    /// SHA-256 of it.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The same, hex.
    pub fn hash_hex(&self) -> String {
        self.hash.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Its URIs.
    pub fn uris(&self) -> &[Box<str>] {
        &self.uris
    }

    /// Its DNS names, in lower case.
    pub fn dns_names(&self) -> &[Box<str>] {
        &self.dns
    }

    /// Whom it is about in one word, as Envoy chooses it: the first URI, else the first DNS name, else its subject.
    pub fn principal(&self) -> &str {
        self.uris.first().or(self.dns.first()).unwrap_or(&self.subject)
    }
}
