//! Session tickets that every proxy of a Gateway reads (RFC 5077; RFC 8446, section 4.6.1).
//!
//! A key is 80 bytes as Envoy's: a name of 16, by which a ticket says whose it is, and 64 of secret. What seals (AES-256-GCM) is derived from
//! the secret and from what the session rests on, so that a session begun by other terms, or under other authorities, is simply not
//! there: the client goes through a whole handshake.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;
use engine::model::{TICKET_KEY_BYTES, TlsTerms};
use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;

/// Bytes of a key's name.
const NAME_BYTES: usize = 16;
/// Life of a ticket, in seconds: keys stay readable for longer.
const TICKET_SECS: u32 = 6 * 3600;

struct Sealing {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

/// See the module.
pub(super) struct SharedTickets(Vec<Sealing>);

impl fmt::Debug for SharedTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTickets").finish_non_exhaustive()
    }
}

impl SharedTickets {
    /// The first key seals; all of them open.
    pub(super) fn new(keys: &[[u8; TICKET_KEY_BYTES]], binding: &[u8]) -> Self {
        let sealing = |raw: &[u8; TICKET_KEY_BYTES]| {
            let (name, secret) = raw.split_first_chunk()?;
            let derived = hmac::sign(&hmac::Key::new(HMAC_SHA256, secret), binding);
            let key = UnboundKey::new(&AES_256_GCM, derived.as_ref()).ok()?;
            Some(Sealing { name: *name, key: LessSafeKey::new(key) })
        };
        Self(keys.iter().filter_map(sealing).collect())
    }
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        !self.0.is_empty()
    }

    fn lifetime(&self) -> u32 {
        TICKET_SECS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let Sealing { name, key } = self.0.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut sealed).ok()?;
        Some([&name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let Sealing { key, .. } = self.0.iter().find(|sealing| sealing.name == *name)?;
        let mut sealed = sealed.to_vec();
        let plain = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

/// What a session rests on: which certificates the server shows, by their names (they may rotate), and whose certificates it believes.
pub(super) fn binding(terms: &TlsTerms, authorities: Option<&[CertificateDer<'_>]>) -> Vec<u8> {
    let mut hash = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(b"meshwright edge ticket 1");
    terms.certificates.iter().for_each(|cell| part(cell.name().as_bytes()));
    if let Some(clients) = &terms.clients {
        part(&[u8::from(clients.required), u8::from(clients.untrusted)]);
        authorities.unwrap_or_default().iter().for_each(|authority| part(authority));
    }
    hash.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: proxies with the same keys and terms read one another's tickets, of older keys too; others, and broken ones, read as none.
    #[test]
    fn tickets_are_read_by_who_shares_keys_and_terms() {
        let key = |byte: u8| [byte; TICKET_KEY_BYTES];
        let one = SharedTickets::new(&[key(1)], b"a");
        let ticket = one.encrypt(b"session").unwrap();
        assert_eq!(SharedTickets::new(&[key(2), key(1)], b"a").decrypt(&ticket).unwrap(), b"session");
        assert_eq!(SharedTickets::new(&[key(1)], b"b").decrypt(&ticket), None);
        assert_eq!(SharedTickets::new(&[key(2)], b"a").decrypt(&ticket), None);
        for length in 0..ticket.len() {
            assert_eq!(one.decrypt(&ticket[..length]), None);
        }
        for place in 0..ticket.len() {
            let mut broken = ticket.clone();
            broken[place] ^= 1;
            assert_eq!(one.decrypt(&broken), None, "{place}");
        }
    }
}
