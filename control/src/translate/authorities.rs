//! Whose certificates are believed, as Gateways and policies refer to them. Grants come before existence, so that a stranger cannot ask what exists.

use super::attach::WhyNot;
use crate::world::certificate;
use crate::world::external_backend::ExternalBackend;
use crate::world::key::CORE;
use crate::world::listener::ObjectRef;
use crate::world::{Index, Kind, Object, ObjectKey};

/// The entry of a ConfigMap (or Secret) that holds CAs.
const CAS: &str = "ca.crt";

/// Whether one object may refer to another by the standard's rules.
pub(super) fn granted(index: &Index, from: &ObjectKey, to: &ObjectKey) -> Result<(), WhyNot> {
    let referrer = (from.kind.group(), from.kind.text(), from.namespace.as_str());
    if from.namespace == to.namespace || index.granted(referrer, &to.namespace, (CORE, to.kind.text(), &to.name)) {
        return Ok(());
    }
    let message =
        format!("no ReferenceGrant in {} lets {} of {} refer to {} {}", to.namespace, from.kind, from.namespace, to.kind, to.name);
    Err(WhyNot::new("RefNotPermitted", message))
}

/// All CAs that references lead to, as one PEM text, and the first thing that is wrong with them. `reasons`: of what cannot be read, and
/// of another kind.
pub(super) fn cas(index: &Index, from: &ObjectKey, refs: &[ObjectRef], reasons: (&'static str, &'static str)) -> (Vec<u8>, Option<WhyNot>) {
    let (mut pem, mut wrong, mut count) = (Vec::new(), None, 0);
    for to in refs {
        match one_ca(index, from, to, reasons) {
            Ok((_, some)) if count + some > certificate::CAS_MAX => {
                let message = format!("with {} they are more than {} certificates; it is left out", to.name, certificate::CAS_MAX);
                _ = wrong.get_or_insert(WhyNot::new(reasons.0, message));
            }
            Ok((found, some)) => {
                count += some;
                pem.extend_from_slice(&found);
                pem.push(b'\n');
            }
            Err(refusal) => _ = wrong.get_or_insert(refusal),
        }
    }
    (pem, wrong)
}

/// The CAs of one reference, and how many there are.
fn one_ca(index: &Index, from: &ObjectKey, to: &ObjectRef, reasons: (&'static str, &'static str)) -> Result<(Vec<u8>, usize), WhyNot> {
    let Some(object) = to.object(&from.namespace) else {
        let message = format!("CAs are read from ConfigMaps and Secrets, not from a {} of group \"{}\"", to.kind, to.group);
        return Err(WhyNot::new(reasons.1, message));
    };
    granted(index, from, &object)?;
    let wrong = |message: String| WhyNot::new(reasons.0, message);
    let Some(contents) = index.content(&object) else { return Err(wrong(format!("there is no {object}"))) };
    let entry = contents.entry(CAS).ok_or_else(|| wrong(format!("{object} has no entry `{CAS}`")))?;
    let count = certificate::cas(entry).ok_or_else(|| wrong(format!("entry `{CAS}` of {object} holds no certificates as PEM")))?;
    Ok((entry.to_vec(), count))
}

/// The Secret that a certificate's reference names, if it may; `reason`: what the standard calls it where it cannot be.
pub(super) fn secret_of(index: &Index, from: &ObjectKey, to: &ObjectRef, reason: &'static str) -> Result<ObjectKey, WhyNot> {
    let object = to.object(&from.namespace).filter(|object| object.kind == Kind::Secret);
    let Some(object) = object else {
        return Err(WhyNot::new(reason, format!("a certificate is a Secret, not a {} of group \"{}\"", to.kind, to.group)));
    };
    granted(index, from, &object).map(|()| object)
}

/// The Secret that an XBackend is shown, if it may be; `None`: it says nothing of that.
pub(super) fn shown_outside(index: &Index, object: &Object, spec: &ExternalBackend) -> Option<Result<ObjectKey, WhyNot>> {
    Some(secret_of(index, &object.key, spec.certificate.as_ref()?, "InvalidClientCertificateRef"))
}
