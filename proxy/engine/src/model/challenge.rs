//! Proofs that a name is ours, which certificate authorities ask for (RFC 8555, section 8): those that are asked for just now, in force at once,
//! whatever the epoch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use proto::names;

use super::secret::OwnCertificate;
use crate::matching::without_port;

/// Where authorities look for an answer, with the token behind it (RFC 8555, section 8.3).
const ANSWER_PATH: &str = "/.well-known/acme-challenge/";
/// What an authority offers by ALPN, alone, where it looks for a certificate (RFC 8737, section 4).
pub const CHALLENGE_ALPN: &str = "acme-tls/1";
/// Most challenges that are pending at a proxy.
pub const CHALLENGES_MAX: usize = 256;
/// Longest answer: a token and the hash of a key.
pub(crate) const ANSWER_BYTES_MAX: usize = 1024;

/// How one is met.
#[derive(Clone)]
pub enum Challenge {
    /// By this answer to a request.
    Answer(Bytes),
    /// By this certificate in a handshake.
    Certificate(Arc<OwnCertificate>),
}

/// See the module. Costs whoever has none pending one load.
#[derive(Default)]
pub struct Challenges {
    any: AtomicBool,
    /// By the names of their resources.
    pending: ArcSwap<BTreeMap<String, Challenge>>,
}

/// Which ones, and nothing of what they hold.
impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Challenges {
    /// Whether there is any.
    pub fn are_pending(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// What this host, with or without a port, answers at this path, if that is one of a pending challenge for it. A Gateway's hosts may be several
    /// tenants', and an authority believes what it is answered: what proves one name is nothing at another.
    pub fn answer(&self, host: &str, path: &str) -> Option<Bytes> {
        let token = path.strip_prefix(ANSWER_PATH)?;
        let host = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        match self.pending.load().get(&names::challenge_answer(&host, token))? {
            Challenge::Answer(answer) => Some(answer.clone()),
            Challenge::Certificate(_) => None,
        }
    }

    /// What is shown to an authority that asks for this name, lower case.
    pub fn certificate(&self, name: &str) -> Option<Arc<OwnCertificate>> {
        match self.pending.load().get(&names::challenge_certificate(name))? {
            Challenge::Certificate(own) => Some(Arc::clone(own)),
            Challenge::Answer(_) => None,
        }
    }

    /// The names of their resources, in order.
    pub fn names(&self) -> Vec<String> {
        self.pending.load().keys().cloned().collect()
    }

    /// These are pending from now on, and no others.
    pub fn publish(&self, pending: BTreeMap<String, Challenge>) {
        let any = !pending.is_empty();
        self.pending.store(Arc::new(pending));
        self.any.store(any, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a pending token alone is answered, at its own path and its own host alone, however that is written; a certificate is no answer and an
    /// answer no certificate; nothing is left of what is over, and nothing is shown of what they hold.
    #[test]
    fn what_is_pending_is_answered() {
        let challenges = Challenges::default();
        let path = "/.well-known/acme-challenge/t";
        assert!(!challenges.are_pending() && challenges.answer("a.example", path).is_none());
        let answer = Challenge::Answer(Bytes::from_static(b"t.hash"));
        challenges.publish(BTreeMap::from([(names::challenge_answer("a.example", "t"), answer)]));
        assert!(challenges.are_pending());
        for host in ["a.example", "A.Example", "a.example:80", "a.example.", "a.example.:5002"] {
            assert_eq!(challenges.answer(host, path).as_deref(), Some(&b"t.hash"[..]), "{host}");
        }
        for host in ["b.example", "x.a.example", "", "a.example/t"] {
            assert!(challenges.answer(host, path).is_none(), "{host}");
        }
        for path in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/u", "/.well-known/acme-challenge/t/", "/t", "t"] {
            assert!(challenges.answer("a.example", path).is_none(), "{path}");
        }
        assert!(challenges.certificate("t").is_none());
        assert_eq!(format!("{challenges:?}"), "{\"acme/http/a.example/t\"}");
        challenges.publish(BTreeMap::new());
        assert!(!challenges.are_pending() && challenges.answer("a.example", path).is_none());
    }
}
