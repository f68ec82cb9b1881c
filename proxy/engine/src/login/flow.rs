//! A login under way: it rides through the provider in `state`, sealed, so that any number of them may be, and nothing is left behind.

use aws_lc_rs::digest::{SHA256, digest as sha};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::LOGIN_SECS;
use super::seal::{SealKeys, SealPurpose, drawn};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LoginFlow {
    /// Proves that who asks for tokens is who began (RFC 7636).
    #[serde(rename = "v")]
    pub(super) verifier: String,
    /// Comes back in the ID token.
    #[serde(rename = "n")]
    pub(super) nonce: String,
    /// Where the browser goes then.
    #[serde(rename = "p")]
    pub(super) back: String,
    /// Unix time.
    #[serde(rename = "t")]
    began_secs: u64,
    /// What the browser that began is known by.
    #[serde(rename = "b")]
    browser: String,
}

impl LoginFlow {
    /// Begins. `None`: the system gives no random bytes.
    pub(super) fn new(back: &str, binding: &str, now_secs: u64) -> Option<Self> {
        let (verifier, nonce) = (drawn::<32>()?, drawn::<16>()?);
        Some(Self { verifier, nonce, back: back.to_owned(), began_secs: now_secs, browser: hashed(binding) })
    }

    /// The `S256` of its verifier.
    pub(super) fn challenge(&self) -> String {
        hashed(&self.verifier)
    }

    /// Whether a browser that is bound so began it.
    pub(super) fn is_of(&self, binding: &str) -> bool {
        hashed(binding) == self.browser
    }

    /// Whether it still holds.
    pub(super) fn holds(&self, now_secs: u64) -> bool {
        now_secs < self.began_secs.saturating_add(LOGIN_SECS)
    }

    pub(super) fn seal(&self, keys: &SealKeys) -> Option<String> {
        keys.seal(SealPurpose::Flow, &serde_json::to_vec(self).ok()?)
    }

    pub(super) fn open(keys: &SealKeys, state: &str) -> Option<Self> {
        serde_json::from_slice(&keys.open(SealPurpose::Flow, state)?).ok()
    }
}

fn hashed(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha(&SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_one_browsers_and_short() {
        // Aim: what was begun comes back whole, for its browser and for ten minutes; the challenge is that of RFC 7636, appendix B.
        let keys = SealKeys::read(&[b'k'; 32], b"o").unwrap();
        let flow = LoginFlow::new("/a?b", "browser", 1_000).unwrap();
        let opened = LoginFlow::open(&keys, &flow.seal(&keys).unwrap()).unwrap();
        assert_eq!(opened, flow);
        assert!(opened.is_of("browser") && !opened.is_of("other") && !opened.is_of(""));
        assert!(opened.holds(1_599) && !opened.holds(1_600));
        assert!(LoginFlow::open(&keys, "").is_none());
        assert_ne!(flow.verifier, LoginFlow::new("/", "browser", 1_000).unwrap().verifier);
        let known = LoginFlow { verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned(), ..flow };
        assert_eq!(known.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }
}
