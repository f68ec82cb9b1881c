//! What configuration speaks of by name and what travels beside it: certificates, authorities, keys of session tickets.

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::trust::sha256;

/// Bytes of one key of session tickets, as Envoy counts them: a name of 16, and 64 of secret.
pub const TICKET_KEY_BYTES: usize = 80;

/// The content of a [`SecretCell`].
pub enum Secret {
    /// What a server (or a client) shows, with its key.
    Certificate(OwnCertificate),
    /// Who may vouch for others.
    Authorities(Vec<CertificateDer<'static>>),
    /// What session tickets are made with: the first makes new ones, all are read.
    TicketKeys(Vec<[u8; TICKET_KEY_BYTES]>),
}

/// A certificate of ours.
pub struct OwnCertificate {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's.
    pub key: PrivateKeyDer<'static>,
    /// What its authority said of it last (RFC 6960), DER; empty: nothing.
    pub ocsp: Vec<u8>,
}

impl Secret {
    /// Tells contents apart without showing them.
    fn fingerprint(&self) -> [u8; 32] {
        let bytes = match self {
            Self::Certificate(own) => {
                own.chain.iter().map(|der| &**der).chain([own.key.secret_der(), &own.ocsp]).collect::<Vec<_>>().concat()
            }
            Self::Authorities(all) => all.iter().map(|der| &**der).collect::<Vec<_>>().concat(),
            Self::TicketKeys(keys) => keys.concat(),
        };
        sha256(&bytes)
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "certificate",
            Self::Authorities(_) => "authorities",
            Self::TicketKeys(_) => "ticket keys",
        }
    }
}

/// Shows no secret: only which one it is.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.fingerprint();
        write!(f, "{} {:08x}", self.kind(), u32::from_be_bytes([a, b, c, d]))
    }
}

/// What a cell held at one time.
#[derive(Debug, Default)]
pub struct Held {
    /// Grows with every change of any cell of this process; 0: nothing was ever there.
    pub stamp: u64,
    /// `None`: it has not come yet, or was taken away.
    pub secret: Option<Secret>,
}

/// A secret by its name. It is no part of an epoch: all that speak of the name have the same cell, and what comes is there at once.
#[derive(Debug, Default)]
pub struct SecretCell {
    name: Arc<str>,
    held: ArcSwap<Held>,
}

impl SecretCell {
    /// An empty one.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), held: ArcSwap::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it holds now.
    pub fn load(&self) -> Arc<Held> {
        self.held.load_full()
    }

    /// Its [`Held::stamp`].
    pub fn stamp(&self) -> u64 {
        self.held.load().stamp
    }

    /// Holds this from now on. `stamp` is greater than all before.
    pub fn put(&self, stamp: u64, secret: Option<Secret>) {
        self.held.store(Arc::new(Held { stamp, secret }));
    }
}

/// There is one cell of a name.
impl PartialEq for SecretCell {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for SecretCell {}

impl Hash for SecretCell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// What a shell has made of a value, for as long as the value lives: made again where a secret behind it has another stamp.
#[derive(Default)]
pub struct Made(ArcSwapOption<(u64, Arc<dyn Any + Send + Sync>)>);

impl Made {
    /// What was made last, and of which stamp.
    pub fn last<T: Send + Sync + 'static>(&self) -> Option<(u64, Arc<T>)> {
        let made = self.0.load_full()?;
        Some((made.0, Arc::clone(&made.1).downcast().ok()?))
    }

    /// Keeps what was made of a stamp.
    pub fn keep<T: Send + Sync + 'static>(&self, stamp: u64, made: Arc<T>) {
        self.0.store(Some(Arc::new((stamp, made))));
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what is printed of a secret tells it from others and holds nothing of it.
    #[test]
    fn a_secret_is_not_shown() {
        let cell = SecretCell::new("tickets/a/b");
        assert!(cell.load().secret.is_none());
        cell.put(3, Some(Secret::TicketKeys(vec![[7; TICKET_KEY_BYTES]])));
        let one = format!("{cell:?}");
        cell.put(4, Some(Secret::TicketKeys(vec![[8; TICKET_KEY_BYTES]])));
        assert!(one.contains("ticket keys") && !one.contains("7, 7"), "{one}");
        assert_ne!(one, format!("{cell:?}"));
        assert_eq!((cell.stamp(), cell.name()), (4, "tickets/a/b"));
    }

    /// Aim: what was made is there while its stamp is asked for, and of no other type.
    #[test]
    fn what_was_made_is_kept() {
        let made = Made::default();
        assert!(made.last::<u8>().is_none());
        made.keep(1, Arc::new(5_u8));
        assert_eq!(made.last::<u8>().map(|(stamp, value)| (stamp, *value)), Some((1, 5)));
        assert!(made.last::<u16>().is_none());
    }
}
