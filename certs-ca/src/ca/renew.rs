//! Renewals: a leaf vouches for the next one, if it is one that this authority has issued. That its chain ends in a root of ours is not
//! enough: where a key has leaked, others have issued below that root, too, and what they issued must end with it.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{Application, Ca, CaError};
use crate::held::Held;
use crate::policy::{EXPIRED_GRACE, Policy};

impl Ca {
    /// Whether a leaf may have the next one as it is asked for: for the same identity, workload, instance and pod. Returns it where it has
    /// ended, because this is to be its one renewal, and the unique id of its pod. An application's leaf renews nothing: its key is in
    /// hands that are not ours.
    pub(super) fn renews(
        &self,
        leaf: &CertificateDer<'_>,
        application: &Application<'_>,
        policy: &Policy,
        now: OffsetDateTime,
    ) -> Result<(Option<Held>, String), CaError> {
        let held = Held::read(leaf).map_err(CaError::Leaf)?;
        if held.for_application {
            return Err(CaError::Application);
        }
        let csr = application.csr;
        if (&held.identity, &held.workload) != (&csr.identity, &csr.workload) {
            let (held, asked) = (format!("{} ({})", held.identity, held.workload), format!("{} ({})", csr.identity, csr.workload));
            return Err(CaError::NotYours { held, asked });
        }
        if now >= held.not_after + EXPIRED_GRACE {
            return Err(CaError::Leaf("it expired more than a day ago; join again with a token"));
        }
        let (instance, pod_uid) = self.issued_to(&held, application)?;
        if instance != application.instance {
            let of = |instance: &str| format!("{} ({}, instance {instance})", held.identity, held.workload);
            return Err(CaError::NotYours { held: of(&instance), asked: of(application.instance) });
        }
        if !pod_uid.is_empty() && application.pod_uid.is_some_and(|now| now != pod_uid) {
            return Err(CaError::AnotherPod(instance));
        }
        self.may_have(application, policy)?;
        Ok(((now > held.not_after).then_some(held), pod_uid))
    }

    /// The instance that a leaf was issued to, and its pod: by the book, else by the audit log, which goes further back.
    fn issued_to(&self, held: &Held, application: &Application<'_>) -> Result<(String, String), CaError> {
        if let Some(entry) = self.lock().book.find(held) {
            return Ok((entry.instance.clone(), entry.pod_uid.clone()));
        }
        // The log is long, and who shows such a leaf has it at will: as often as somebody who guesses.
        self.may_try(application.from, Some(&format!("{}/{}", held.identity.namespace(), held.workload)))?;
        let row = self.store.issuance(&held.sha256)?;
        row.map(|row| (row.instance, row.pod_uid)).ok_or(CaError::NotIssued)
    }
}
