//! Certificates that are ordered for listeners: which Secret each will be in, how its order stands, and what proves a name meanwhile. Orders
//! themselves are the business of `crate::acme`, which alone writes them here.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroizing;

use super::Name;
use super::key::{Kind, ObjectKey};
use super::listener::Listener;

/// Names for which certificates are ordered, at most.
pub const ACME_NAMES_MAX: usize = 256;
/// Longest name of a Secret.
const NAME_BYTES_MAX: usize = 253;

/// How all orders stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AcmeBook {
    /// By the Secret that the certificate is in, or will be.
    pub orders: BTreeMap<ObjectKey, AcmeStanding>,
    /// What proves names just now, by the same.
    pub proofs: BTreeMap<ObjectKey, AcmeProof>,
}

/// How one order stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcmeStanding {
    /// What is being done.
    pub order: AcmeOrder,
    /// When something is to be done next, milliseconds since 1970; 0: nobody knows.
    pub next_try_ms: i64,
    /// Why the last try failed.
    pub problem: Option<String>,
    /// The certificate should have been renewed long ago.
    pub expiring: bool,
}

/// What is being done for a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcmeOrder {
    /// It is to be ordered.
    #[default]
    Pending,
    /// It is being ordered.
    Ordering,
    /// The last try failed, and there is another one later.
    Failing,
    /// There is nothing to do until it is renewed.
    Ready,
}

impl AcmeOrder {
    /// As `get certs` prints it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Ordering => "Ordering",
            Self::Failing => "Failing",
            Self::Ready => "Ready",
        }
    }
}

/// What proves a name to an authority.
#[derive(Clone, PartialEq, Eq)]
pub struct AcmeProof {
    /// Gateways whose proxies show it.
    pub gateways: Vec<Name>,
    /// Name of its resource.
    pub name: String,
    /// What is shown.
    pub shown: AcmeShown,
}

/// See [`AcmeProof::shown`].
#[derive(Clone, PartialEq, Eq)]
pub enum AcmeShown {
    /// This text.
    Answer(String),
    /// This certificate with its key, PEM.
    Certificate(String, Zeroizing<String>),
}

impl fmt::Debug for AcmeProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcmeProof {}", self.name)
    }
}

/// The Secret of an ordered certificate, and the host that it is for; `None`: a certificate is named, or none can be ordered. Whether one *is*
/// ordered is said by the ClientPolicy in force.
pub fn ordered<'l>(owner: &ObjectKey, listener: &'l Listener) -> Option<(ObjectKey, &'l str)> {
    let host = listener.hostname.as_deref()?;
    let wanted = match &listener.tls {
        None => true,
        Some(tls) => tls.certificates.is_empty() && !tls.acme_off && tls.mode.as_deref().is_none_or(|mode| mode == "Terminate"),
    };
    (wanted && listener.protocol == "HTTPS").then(|| (ObjectKey::new(Kind::Secret, &owner.namespace, secret_name(host)), host))
}

/// `acme-HOST`. No host begins with a hyphen, so a wildcard's name is nobody else's.
fn secret_name(host: &str) -> String {
    let name = match host.strip_prefix("*.") {
        Some(rest) => format!("acme--wildcard.{rest}"),
        None => format!("acme-{host}"),
    };
    if name.len() <= NAME_BYTES_MAX { name } else { format!("acme-{}", proto::epoch::version(host.as_bytes())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::Spec;

    fn listener(text: &str) -> Listener {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: shop}}\nspec: {{gatewayClassName: meshwright, listeners: [{{name: a, port: 443, {text}}}]}}"
        );
        let candidate = parse("g.yaml", &text).candidates.remove(0);
        let Spec::Gateway(gateway) = &candidate.object.unwrap().spec else { panic!("no Gateway") };
        gateway.listeners[0].clone()
    }

    #[test]
    fn a_listener_that_names_no_certificate_may_have_one_ordered() {
        // Aim: HTTPS that is ended here, for a host, without certificates, with or without the option; a certificate of one's own, another
        // protocol, no host or the option `off` is a no. Names of Secrets are the hosts', and valid however long those are.
        let owner = ObjectKey::new(Kind::Gateway, "shop", "g");
        for (text, wanted) in [
            ("protocol: HTTPS, hostname: a.example, tls: {options: {meshwright.dev/acme: \"on\"}}", Some("acme-a.example")),
            ("protocol: HTTPS, hostname: A.example, tls: {mode: Terminate}", Some("acme-a.example")),
            ("protocol: HTTPS, hostname: \"*.a.example\"", Some("acme--wildcard.a.example")),
            ("protocol: HTTPS, hostname: a.example, tls: {options: {meshwright.dev/acme: \"off\"}}", None),
            ("protocol: HTTPS, hostname: a.example, tls: {certificateRefs: [{name: own}]}", None),
            ("protocol: HTTPS, tls: {mode: Terminate}", None),
            ("protocol: TLS, hostname: a.example, tls: {mode: Terminate}", None),
            ("protocol: HTTP, hostname: a.example", None),
        ] {
            let listener = listener(text);
            let found = ordered(&owner, &listener).map(|(secret, _)| (secret.namespace, secret.name));
            assert_eq!(found, wanted.map(|name| ("shop".to_owned(), name.to_owned())), "{text}");
        }
        let long = format!("{}.example", ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(60)].join("."));
        let name = secret_name(&long);
        assert!(name.len() < 60 && name != secret_name(&format!("x{}", &long[1..])), "{name}");
    }
}
