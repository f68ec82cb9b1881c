//! SPIFFE identities of the mesh: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.

use std::fmt;
use std::str::FromStr;

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

/// One workload identity. Equality is by text; the parts never contain `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

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

    /// The trust domain, lower case.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, NotAnIdentity> {
        let wrong = |why| NotAnIdentity { text: text.chars().take(300).collect(), why };
        if text.len() > 2048 {
            return Err(wrong("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| wrong("it does not start with spiffe://"))?;
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
        Ok(Self { trust_domain: trust_domain.to_owned(), namespace: namespace.to_owned(), service_account: service_account.to_owned() })
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
