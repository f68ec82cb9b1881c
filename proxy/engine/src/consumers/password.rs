//! Passwords and their hashes. A hash that costs next to nothing, or has no salt, is refused, and so is one that would cost everybody else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use argon2::{Argon2, PasswordVerifier};
use scrypt::Scrypt;
use scrypt::phc::PasswordHash;
use zeroize::Zeroizing;

use super::digest::Digest;

/// Longest hash that is read.
const HASH_BYTES_MAX: usize = 512;
/// Most memory that one verification takes, in KiB.
const MEMORY_KIB_MAX: u32 = 256 << 10;
/// Most passes of argon2id, and most of its lanes.
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;
/// Costs of bcrypt: two to the power of it.
const BCRYPT_COST: std::ops::RangeInclusive<u32> = 4..=14;
/// Most rounds of scrypt: two to the power of it; its block size and lanes.
const SCRYPT_LN_MAX: u32 = 20;
const SCRYPT_R_MAX: u32 = 16;
const SCRYPT_P_MAX: u32 = 4;
/// Shortest salt, in bytes.
const SALT_BYTES_MIN: usize = 8;
/// Costs as much as a user's may, for names that nobody has where nobody has any (argon2id's defaults, RFC 9106 as OWASP has it).
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGhhcyB0aGlz$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Judges a hash as the proxy would.
///
/// # Errors
/// Says what is wrong with it and what would be right.
pub fn check_password_hash(text: &str) -> Result<(), String> {
    if text.len() > HASH_BYTES_MAX {
        return Err(format!("is longer than {HASH_BYTES_MAX} bytes"));
    }
    match text.split('$').nth(1) {
        Some("argon2id" | "scrypt") => phc(text),
        Some("2a" | "2b" | "2y") => bcrypt_cost(text),
        _ => {
            Err("is no hash that is taken: use argon2id, bcrypt or scrypt; a password itself, and a hash without salt, is none".to_owned())
        }
    }
}

/// A hash in the PHC format.
fn phc(text: &str) -> Result<(), String> {
    let hash = PasswordHash::new(text).map_err(|error| format!("is no PHC string: {error}"))?;
    if hash.salt.as_ref().is_none_or(|salt| salt.len() < SALT_BYTES_MIN) || hash.hash.is_none() {
        return Err(format!("has no salt of at least {SALT_BYTES_MIN} bytes, or no hash"));
    }
    let number = |name: &str, default: u32| hash.params.get_decimal(name).unwrap_or(default);
    let (fits, most) = if text.starts_with("$argon2id$") {
        let fits = number("m", 19_456) <= MEMORY_KIB_MAX && number("t", 2) <= PASSES_MAX && number("p", 1) <= LANES_MAX;
        (fits, format!("m={MEMORY_KIB_MAX}, t={PASSES_MAX}, p={LANES_MAX}"))
    } else {
        let (rounds, block, lanes) = (number("ln", 17), number("r", 8), number("p", 1));
        // 128 bytes of each block of each round.
        let memory = 1_u64.checked_shl(rounds).unwrap_or(u64::MAX).saturating_mul(u64::from(block)) / 8;
        let fits = rounds <= SCRYPT_LN_MAX && block <= SCRYPT_R_MAX && lanes <= SCRYPT_P_MAX && memory <= u64::from(MEMORY_KIB_MAX);
        (fits, format!("{MEMORY_KIB_MAX} KiB, r={SCRYPT_R_MAX}, p={SCRYPT_P_MAX}"))
    };
    if fits { Ok(()) } else { Err(format!("costs more than one verification may: use at most {most}")) }
}

fn bcrypt_cost(text: &str) -> Result<(), String> {
    let parts: bcrypt::HashParts = text.parse().map_err(|error| format!("is no bcrypt hash: {error}"))?;
    let cost = parts.get_cost();
    if BCRYPT_COST.contains(&cost) {
        return Ok(());
    }
    Err(format!("has the cost {cost}: use {} to {}", BCRYPT_COST.start(), BCRYPT_COST.end()))
}

/// A password that somebody shows, to be verified by whoever has time for it.
pub struct Password {
    secret: Zeroizing<Vec<u8>>,
    /// `None`: nobody has any.
    hash: Option<Arc<str>>,
    /// Nobody is called so: the hash is somebody else's, and what it says does not count.
    of_nobody: bool,
    /// By which the answer is known again.
    pub(crate) key: Digest,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a password")
    }
}

impl Password {
    /// One to be verified by a hash; `None`: nobody is called so, and it takes as long. `key`: by which the answer is known again.
    pub fn new(secret: &[u8], hash: Option<Arc<str>>, key: Digest) -> Self {
        Self { secret: Zeroizing::new(secret.to_vec()), of_nobody: hash.is_none(), hash, key }
    }

    /// One of a name that nobody has: it takes as long as one of whose hash is `like`.
    pub fn of_nobody(secret: &[u8], like: Option<Arc<str>>, key: Digest) -> Self {
        Self { secret: Zeroizing::new(secret.to_vec()), hash: like, of_nobody: true, key }
    }

    /// Whether it is the user's. Takes as long where nobody is called so.
    pub fn verify(&self) -> bool {
        let good = verify(self.hash.as_deref().unwrap_or(NOBODY), &self.secret);
        good && !self.of_nobody
    }
}

/// A hash that costs what most of them do: a name that nobody has is not told from others by the time that it takes. `None`: there are none.
pub(super) fn typical<'h>(hashes: impl Iterator<Item = &'h Arc<str>>) -> Option<Arc<str>> {
    let mut counts: BTreeMap<&str, (usize, &Arc<str>)> = BTreeMap::new();
    for hash in hashes {
        counts.entry(cost(hash)).or_insert((0, hash)).0 += 1;
    }
    counts.into_values().max_by_key(|(count, _)| *count).map(|(_, hash)| Arc::clone(hash))
}

/// What of a hash says how long it takes: all but salt and hash.
fn cost(hash: &str) -> &str {
    match hash.split('$').nth(1) {
        Some("argon2id" | "scrypt") => hash.rsplitn(3, '$').nth(2).unwrap_or(hash),
        _ => hash.split('$').nth(2).unwrap_or(hash),
    }
}

fn verify(hash: &str, secret: &[u8]) -> bool {
    match hash.split('$').nth(1) {
        Some("argon2id") => {
            let argon = Argon2::default();
            PasswordHash::new(hash).is_ok_and(|hash| PasswordVerifier::<PasswordHash>::verify_password(&argon, secret, &hash).is_ok())
        }
        Some("scrypt") => PasswordHash::new(hash).is_ok_and(|hash| Scrypt::default().verify_password(secret, &hash).is_ok()),
        _ => bcrypt::verify(secret, hash).unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_nobody_has_costs_what_most_users_do() {
        // Aim: the hash that an unknown user is verified by is one of the kind and cost that most have, and never lets anybody in, whoever's it is.
        let bcrypt = |cost: u32, salt: u8| Arc::<str>::from(bcrypt::hash_with_salt("secret", cost, [salt; 16]).unwrap().to_string());
        let argon = Arc::<str>::from(NOBODY);
        let (cheap, dear) = ([bcrypt(4, 1), bcrypt(4, 2)], bcrypt(5, 3));
        for (hashes, wanted) in [
            (vec![&argon, &cheap[0], &dear, &cheap[1]], Some("04")),
            (vec![&argon, &argon, &dear], Some("$argon2id$v=19$m=19456,t=2,p=1")),
            (Vec::new(), None),
        ] {
            let found = typical(hashes.into_iter());
            assert_eq!(found.as_deref().map(cost), wanted);
        }
        let key = [0; 32];
        assert!(Password::new(b"secret", Some(Arc::clone(&dear)), key).verify());
        assert!(!Password::of_nobody(b"secret", Some(dear), key).verify());
    }
}
