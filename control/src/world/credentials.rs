//! Certificates of edges, by the Secret that holds them. One that vanishes, or whose Secret is spoilt, stays in force for a day: whoever
//! writes Secrets makes mistakes, and a door that closes at once tells every client of them (`edge-kinds.md`).

use std::sync::Arc;

use super::Versions;
use super::addressing::Slots;
use super::certificate::{Certificate, CertificateFault, judge};
use super::content::Contents;
use super::key::{Kind, ObjectKey};
use super::object::Spec;
use super::sorted::Sorted;

/// So long a certificate stays in force without its Secret.
pub const KEPT_MS: i64 = 24 * 60 * 60 * 1000;

/// What is known of one Secret's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCertificate {
    /// The one in force.
    pub good: Option<Arc<Certificate>>,
    /// What is wrong with the Secret as it stands, and since when, milliseconds since 1970.
    pub fault: Option<(CertificateFault, i64)>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub(super) known: Sorted<ObjectKey, KeptCertificate>,
    /// Now, milliseconds since 1970; 0: nobody has said.
    pub(super) now_ms: i64,
}

impl Credentials {
    /// Looks at Secrets that changed.
    pub(super) fn follow<'a>(&mut self, slots: &Slots, changed: impl IntoIterator<Item = &'a ObjectKey>) {
        for key in changed.into_iter().filter(|key| key.kind == Kind::Secret) {
            let former = self.known.get(key).and_then(|known| known.good.clone());
            let told = match contents(slots.get(key)) {
                Some(contents) if contents.entry("tls.crt").is_none() && contents.entry("tls.key").is_none() && former.is_none() => None,
                Some(contents) => Some(judge(contents)),
                None => former.is_some().then_some(Err(CertificateFault::NoSecret)),
            };
            match told {
                None => self.known.remove(key),
                Some(Ok(good)) => {
                    let good = good.at(self.now_ms).unwrap_or(good);
                    self.known.insert(key.clone(), KeptCertificate { good: Some(Arc::new(good)), fault: None });
                }
                Some(Err(fault)) => {
                    let since = self.known.get(key).and_then(|known| known.fault.as_ref()).map_or(self.now_ms, |(_, since)| *since);
                    self.known.insert(key.clone(), KeptCertificate { good: former, fault: Some((fault, since)) });
                }
            }
        }
    }

    /// Time goes on. Whether that makes any of them another: one that was kept for long enough is given up, and dates come and go.
    pub(super) fn turn(&mut self, now_ms: i64) -> bool {
        let before = std::mem::replace(&mut self.now_ms, now_ms);
        let over = |known: &KeptCertificate| known.fault.as_ref().is_some_and(|(_, since)| now_ms.saturating_sub(*since) >= KEPT_MS);
        let ended: Vec<ObjectKey> =
            self.known.iter().filter(|(_, known)| known.good.is_some() && over(known)).map(|(key, _)| key.clone()).collect();
        for key in &ended {
            match self.known.get(key).and_then(|known| known.fault.clone()) {
                // Nothing is left of it.
                Some((CertificateFault::NoSecret, _)) | None => self.known.remove(key),
                fault => self.known.insert(key.clone(), KeptCertificate { good: None, fault }),
            }
        }
        let mut stapled = Vec::new();
        for (key, known) in self.known.iter() {
            if let Some(good) = known.good.as_ref().and_then(|good| good.at(now_ms)) {
                stapled.push((key.clone(), KeptCertificate { good: Some(Arc::new(good)), fault: known.fault.clone() }));
            }
        }
        let others = !ended.is_empty() || !stapled.is_empty();
        for (key, known) in stapled {
            self.known.insert(key, known);
        }
        let aged = |known: &KeptCertificate| known.good.as_ref().is_some_and(|good| good.validity(before) != good.validity(now_ms));
        others || self.known.values().any(aged)
    }
}

fn contents(slot: Option<&Versions>) -> Option<&Contents> {
    match &slot?.live()?.object.as_ref()?.spec {
        Spec::Secret(contents) => Some(contents),
        _ => None,
    }
}
