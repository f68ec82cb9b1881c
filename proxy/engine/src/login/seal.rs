//! What a browser keeps for us is sealed: nobody else reads it or makes one up. Two keys open, the newest seals, so that keys are turned while
//! sessions go on. Every seal has a key of its own (HKDF, RFC 5869), so there is no nonce that could come twice.

use std::io::{Read as _, Write as _};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use smallvec::SmallVec;

/// Keys that open; the first seals.
pub const SEAL_KEYS_MAX: usize = 2;
/// Shortest key: a shorter one could be guessed.
pub const SEAL_KEY_BYTES_MIN: usize = 32;
/// What is sealed has no more bytes before it is compressed, and is not opened to more.
pub const SEALED_BYTES_MAX: usize = 64 << 10;
/// How seals are made; others are none.
const VERSION: u8 = 1;
/// Bytes of what makes each seal's key its own.
const SALT_BYTES: usize = 16;

/// What is sealed. What was sealed as one is none of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SealPurpose {
    /// A session.
    Session,
    /// A login under way.
    Flow,
    /// What a browser has of a session that a store keeps.
    Ticket,
    /// A session in a store.
    Stored,
}

impl SealPurpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Session => b"meshwright login session",
            Self::Flow => b"meshwright login state",
            Self::Ticket => b"meshwright login ticket",
            Self::Stored => b"meshwright login stored session",
        }
    }
}

/// The keys of those logins that share their sessions. Never printed.
pub(super) struct SealKeys(SmallVec<[Prk; SEAL_KEYS_MAX]>);

impl SealKeys {
    /// Reads keys, one a line, the newest first. `owner`: whose sessions they are; the same lines are other keys for others.
    ///
    /// # Errors
    /// They are none; says why, without them.
    pub(super) fn read(text: &[u8], owner: &[u8]) -> Result<Self, String> {
        let lines: Vec<&[u8]> = lines(text).collect();
        if lines.is_empty() || lines.len() > SEAL_KEYS_MAX {
            return Err(format!("holds {} keys, one a line: use one, or {SEAL_KEYS_MAX}, the newest first", lines.len()));
        }
        if let Some(short) = lines.iter().find(|line| line.len() < SEAL_KEY_BYTES_MIN) {
            return Err(format!("holds a key of {} bytes, which could be guessed: use at least {SEAL_KEY_BYTES_MIN}", short.len()));
        }
        let salt = Salt::new(HKDF_SHA256, owner);
        Ok(Self(lines.into_iter().map(|line| salt.extract(line)).collect()))
    }

    /// Compresses and seals. `None`: it is too long, or the system gives no random bytes.
    pub(super) fn seal(&self, purpose: SealPurpose, plain: &[u8]) -> Option<String> {
        if plain.len() > SEALED_BYTES_MAX {
            return None;
        }
        let mut deflate = DeflateEncoder::new(Vec::with_capacity(plain.len() / 2 + 64), Compression::best());
        deflate.write_all(plain).ok()?;
        let mut content = deflate.finish().ok()?;
        let mut salt = [0; SALT_BYTES];
        rand::fill(&mut salt).ok()?;
        let key = key(self.0.first()?, purpose, &salt)?;
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(purpose.label()), &mut content).ok()?;
        let mut sealed = Vec::with_capacity(1 + SALT_BYTES + content.len() + tag.as_ref().len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(&content);
        sealed.extend_from_slice(tag.as_ref());
        Some(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens what one of the keys has sealed for that purpose.
    pub(super) fn open(&self, purpose: SealPurpose, sealed: &str) -> Option<Vec<u8>> {
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (head, content) = sealed.split_at_checked(1 + SALT_BYTES)?;
        let (version, salt) = head.split_first()?;
        if *version != VERSION {
            return None;
        }
        let deflated = self.0.iter().find_map(|prk| {
            let mut content = content.to_vec();
            let opened = key(prk, purpose, salt)?.open_in_place(nonce(), Aad::from(purpose.label()), &mut content).ok()?.len();
            content.truncate(opened);
            Some(content)
        })?;
        let mut plain = Vec::new();
        // One byte more says that there is more than may be.
        DeflateDecoder::new(deflated.as_slice()).take(SEALED_BYTES_MAX as u64 + 1).read_to_end(&mut plain).ok()?;
        (plain.len() <= SEALED_BYTES_MAX).then_some(plain)
    }
}

/// Why these are no keys to seal with.
///
/// # Errors
/// Says why, without them.
pub fn check_seal_keys(text: &[u8]) -> Result<(), String> {
    SealKeys::read(text, b"").map(|_| ())
}

/// So many random bytes as text. `None`: the system gives none.
pub(super) fn drawn<const N: usize>() -> Option<String> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn key(prk: &Prk, purpose: SealPurpose, salt: &[u8]) -> Option<LessSafeKey> {
    let info = [purpose.label(), salt];
    Some(LessSafeKey::new(UnboundKey::from(prk.expand(&info, &AES_256_GCM).ok()?)))
}

/// Each key seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; aws_lc_rs::aead::NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[u8] = b"one-key-of-more-than-32-bytes-indeed";
    const TWO: &[u8] = b"two-key-of-more-than-32-bytes-indeed";

    fn keys(lines: &[&[u8]]) -> SealKeys {
        SealKeys::read(&lines.join(&b'\n'), b"owner").unwrap()
    }

    #[test]
    fn what_is_sealed_only_its_owner_opens() {
        // Aim: a seal opens with one of the keys, for its purpose and owner, whole and unchanged, and for nothing else; equal content looks different
        // each time; the newest key seals.
        let (one, both) = (keys(&[ONE]), keys(&[TWO, ONE]));
        let sealed = one.seal(SealPurpose::Session, b"content").unwrap();
        assert_ne!(sealed, one.seal(SealPurpose::Session, b"content").unwrap());
        assert_eq!(one.open(SealPurpose::Session, &sealed).unwrap(), b"content");
        assert_eq!(both.open(SealPurpose::Session, &sealed).unwrap(), b"content");
        assert!(one.open(SealPurpose::Flow, &sealed).is_none());
        assert!(keys(&[TWO]).open(SealPurpose::Session, &sealed).is_none());
        assert!(SealKeys::read(ONE, b"other").unwrap().open(SealPurpose::Session, &sealed).is_none());
        assert!(one.open(SealPurpose::Session, &both.seal(SealPurpose::Session, b"content").unwrap()).is_none());
        let bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(one.open(SealPurpose::Session, &URL_SAFE_NO_PAD.encode(&changed)).is_none(), "byte {place}");
            assert!(one.open(SealPurpose::Session, &URL_SAFE_NO_PAD.encode(&bytes[..place])).is_none(), "cut at {place}");
        }
        assert!(["", "A", "not base64!", "AQ"].iter().all(|text| one.open(SealPurpose::Session, text).is_none()));
    }

    #[test]
    fn seals_have_a_bound_both_ways() {
        // Aim: what is too long is not sealed; what would open to more than may be is not opened, however small it is.
        let keys = keys(&[ONE]);
        let most = vec![b'a'; SEALED_BYTES_MAX];
        assert_eq!(keys.open(SealPurpose::Flow, &keys.seal(SealPurpose::Flow, &most).unwrap()).unwrap(), most);
        assert!(keys.seal(SealPurpose::Flow, &[&most[..], b"a"].concat()).is_none());
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
        deflate.write_all(&vec![0; 100 * SEALED_BYTES_MAX]).unwrap();
        let mut content = deflate.finish().unwrap();
        let salt = [7; SALT_BYTES];
        let key = key(&keys.0[0], SealPurpose::Flow, &salt).unwrap();
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(SealPurpose::Flow.label()), &mut content).unwrap();
        let bomb = URL_SAFE_NO_PAD.encode([&[VERSION][..], &salt, &content, tag.as_ref()].concat());
        assert!(bomb.len() < SEALED_BYTES_MAX && keys.open(SealPurpose::Flow, &bomb).is_none());
    }

    #[test]
    fn keys_are_one_or_two_lines() {
        // Aim: what could be guessed, none and too many are refused without the text.
        for (text, said) in [("", "holds 0 keys"), ("short", "of 5 bytes"), ("\n \n", "holds 0 keys")] {
            assert!(SealKeys::read(text.as_bytes(), b"").err().unwrap().contains(said), "{text}");
        }
        let three = [ONE, TWO, ONE].join(&b'\n');
        let why = check_seal_keys(&three).unwrap_err();
        assert!(why.contains("holds 3 keys") && !why.contains("indeed"));
        check_seal_keys(&[ONE, b"", TWO, b""].join(&b'\n')).unwrap();
    }
}
