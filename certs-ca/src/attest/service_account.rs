//! Kubernetes service-account tokens. Who can tell whether one is good is another's matter ([`ServiceAccountVerifier`]: in a cluster the
//! API server, by TokenReview); what it admits is decided here.

use proto::identity::Identity;

use crate::csr::Csr;

/// The audience that a token must be bound to, so that one which an application hands around admits nobody here.
pub const AUDIENCE: &str = proto::annotations::TOKEN_AUDIENCE;
/// Longest token that is passed on to the verifier: projected tokens have about a kilobyte.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Namespace of the account, and of the pod.
    pub namespace: String,
    /// The account.
    pub account: String,
    /// The pod it is bound to; absent in tokens that are bound to none.
    pub pod: Option<Pod>,
    /// For whom the token is, as the verifier confirmed.
    pub audiences: Vec<String>,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name: the instance.
    pub name: String,
    /// Its unique id.
    pub uid: String,
}

/// Why a token admits nobody, or not this caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAccountError {
    /// This control plane does not run beside a cluster.
    #[error(
        "this control plane verifies no service-account tokens, it does not run with --kubernetes; join with a token of `meshwright token create`"
    )]
    NoVerifier,
    /// Larger than [`TOKEN_BYTES_MAX`].
    #[error("the service-account token has {0} bytes; at most {TOKEN_BYTES_MAX} are read")]
    TooLarge(usize),
    /// The verifier says no, in its own words.
    #[error("the service-account token was refused: {0}")]
    Refused(String),
    /// The verifier could not say.
    #[error("the service-account token could not be verified now: {0}")]
    Unreachable(String),
    /// For somebody else.
    #[error("the service-account token is for the audience {found:?}, not for `{AUDIENCE}`; project one with that audience")]
    Audience {
        /// For whom it is.
        found: Vec<String>,
    },
    /// Bound to no pod, so it does not say which instance holds it.
    #[error("the service-account token is bound to no pod; use a projected one, not one of a Secret")]
    Unbound,
    /// Another's.
    #[error("the service-account token is for {granted}, the request is for {asked}")]
    Other {
        /// What it admits.
        granted: String,
        /// What was asked for.
        asked: String,
    },
}

/// Says whether a service-account token is good, and whose it is. Blocking: it is asked off the runtime, and bounds its own wait.
pub trait ServiceAccountVerifier: Send + Sync {
    /// Judges signature, end and audience of a token.
    ///
    /// # Errors
    /// [`ServiceAccountError::Refused`] with the reason, or [`ServiceAccountError::Unreachable`]: the same request may be good later.
    fn verify(&self, token: &str, audience: &str) -> Result<ServiceAccount, ServiceAccountError>;
}

impl ServiceAccount {
    /// Whether this account may have the leaf that the request asks for, as that instance. Pure.
    ///
    /// # Errors
    /// [`ServiceAccountError::Audience`], [`ServiceAccountError::Unbound`] or [`ServiceAccountError::Other`].
    pub fn covers(&self, csr: &Csr, instance: &str, trust_domain: &str) -> Result<(), ServiceAccountError> {
        if !self.audiences.iter().any(|audience| audience == AUDIENCE) {
            return Err(ServiceAccountError::Audience { found: self.audiences.clone() });
        }
        let other = |granted: String, asked: String| Err(ServiceAccountError::Other { granted, asked });
        let Ok(granted) = Identity::new(trust_domain, &self.namespace, &self.account) else {
            return other(format!("{}/{}", self.namespace, self.account), csr.identity.to_string());
        };
        if granted != csr.identity {
            return other(granted.to_string(), csr.identity.to_string());
        }
        match &self.pod {
            None => Err(ServiceAccountError::Unbound),
            Some(pod) if pod.name != instance => other(format!("pod `{}`", pod.name), format!("instance `{instance}`")),
            Some(_) => Ok(()),
        }
    }
}
