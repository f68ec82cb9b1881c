//! SPIFFE identities of the mesh: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::annotations::ROOT_NAMESPACE;

/// Organizational unit in the subject of a leaf that is for the application beside a proxy: such a leaf proves who somebody is to peers, and
/// opens nothing at the control plane.
pub const APPLICATION_UNIT: &str = "application";
/// Object identifier of the attribute of a leaf's subject that holds the unique id of the pod it was issued to: `serialNumber` (X.520, 6.2.9), which
/// tells holders of one name apart. It is there where a pod's own token spoke for it, or a leaf that has it.
pub const POD_ATTRIBUTE: [u64; 4] = [2, 5, 4, 5];
/// The trust domain used when the `Mesh` object names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// The control plane's service account, in the root namespace.
pub const CONTROL_ACCOUNT: &str = "control";

/// A certificate's serial number in the one spelling by which numbers are compared: hex digits without leading zeros.
pub fn serial(hex: &str) -> &str {
    match hex.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    }
}

/// One workload identity. Equality is by text, order by its parts; the parts never contain `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// As it is written.
    text: Box<str>,
    /// Where the trust domain and the namespace end in it.
    trust_domain_end: u16,
    namespace_end: u16,
}

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";

/// Who asks for a leaf, as its request says; whether that is true is for others to judge.
#[derive(Clone, Copy, Debug)]
pub struct Applicant<'a> {
    /// The identity it wants.
    pub identity: &'a Identity,
    /// Name of its workload or Gateway.
    pub workload: &'a str,
    /// Name of its instance.
    pub instance: &'a str,
    /// A join token speaks for it, else the leaf it has.
    pub by_token: bool,
}

/// Why a text is no identity of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identity of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT: {why}")]
pub struct NotAnIdentity {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Identity {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    /// A part is empty or holds a character that the SPIFFE ID specification (section 2) does not allow.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, NotAnIdentity> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain, lower case.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.trust_domain_end) + NAMESPACE.len()..usize::from(self.namespace_end)]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + SERVICE_ACCOUNT.len()..]
    }

    /// Whether it is the control plane's own, which nobody else may have.
    pub fn is_control_plane(&self) -> bool {
        (self.namespace(), self.service_account()) == (ROOT_NAMESPACE, CONTROL_ACCOUNT)
    }

    fn parts(&self) -> [&str; 3] {
        [self.trust_domain(), self.namespace(), self.service_account()]
    }
}

impl PartialOrd for Identity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Identity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, NotAnIdentity> {
        let wrong = |why| NotAnIdentity { text: text.chars().take(300).collect(), why };
        if text.len() > 2048 {
            return Err(wrong("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not start with spiffe://"))?;
        let mut parts = rest.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong("the path is not /ns/NAMESPACE/sa/SERVICE-ACCOUNT"));
        };
        let domain_ok = !trust_domain.is_empty()
            && trust_domain.len() <= 255
            && trust_domain.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if !domain_ok {
            return Err(wrong("the trust domain may hold a-z, 0-9, '.', '-' and '_' only"));
        }
        for part in [namespace, service_account] {
            let ok = !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
            if !ok {
                return Err(wrong("namespace and service account may hold letters, digits, '.', '-' and '_' only"));
            }
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + NAMESPACE.len() + namespace.len();
        // It is short enough, as was checked above.
        let end = |end: usize| u16::try_from(end).unwrap_or(u16::MAX);
        Ok(Self { text: text.into(), trust_domain_end: end(trust_domain_end), namespace_end: end(namespace_end) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what we print is what we read, and what is not ours is refused with a reason.
    #[test]
    fn identities_round_trip_and_strangers_are_refused() {
        let id = Identity::new("cluster.local", "shop", "catalog").unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/catalog");
        assert_eq!(id.to_string().parse::<Identity>().unwrap(), id);
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("cluster.local", "shop", "catalog"));
        assert!(Identity::new("a", "shop-a", "b").unwrap() > Identity::new("a", "shop", "b").unwrap());
        for bad in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a b/sa/b",
            "spiffe://cluster.local?x/ns/a/sa/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    /// Aim: a serial number has one spelling, whatever zeros were in front.
    #[test]
    fn serial_numbers_have_one_spelling() {
        for (text, one) in [("7d35", "7d35"), ("007d35", "7d35"), ("07", "7"), ("00", "0"), ("", "0")] {
            assert_eq!(serial(text), one);
        }
    }

    proptest::proptest! {
        /// Aim: no text makes it panic, and what is an identity is printed as it was written.
        #[test]
        fn any_text_is_survived(text in "(spiffe://)?(\\PC{0,60}|[a-z.]{0,9}/ns/[a-zA-Z.]{0,9}/sa/[a-zA-Z._-]{0,9}/?)") {
            if let Ok(identity) = text.parse::<Identity>() {
                proptest::prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}
