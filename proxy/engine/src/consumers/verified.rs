//! Passwords that were verified before.

use std::collections::{HashMap, VecDeque};

use aws_lc_rs::hmac;

use super::digest::Digest;

/// Most pairs that one worker remembers, of all objects.
pub const VERIFIED_MAX: usize = 10_000;

/// Pairs that one worker has seen verified.
#[derive(Debug)]
pub struct Verified {
    key: hmac::Key,
    /// Until when each holds, in seconds since 1970.
    until: HashMap<Digest, u64>,
    order: VecDeque<Digest>,
}

impl Verified {
    /// Nothing yet. `seed` is by chance, and nobody outside knows it.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &seed), until: HashMap::new(), order: VecDeque::new() }
    }

    /// By what a pair is known. The hash is in it: another one, and nobody is remembered.
    pub(crate) fn known_by(&self, user: &str, secret: &[u8], hash: &str) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user.as_bytes(), hash.as_bytes(), secret] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }

    pub(crate) fn holds(&self, key: &Digest, now_secs: u64) -> bool {
        self.until.get(key).is_some_and(|until| now_secs < *until)
    }

    pub(crate) fn keep(&mut self, key: Digest, until_secs: u64) {
        if self.until.insert(key, until_secs).is_some() {
            return;
        }
        self.order.push_back(key);
        while self.order.len() > VERIFIED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.until.remove(&oldest);
            }
        }
    }
}
