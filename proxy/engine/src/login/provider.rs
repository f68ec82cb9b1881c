//! The provider of a login: where it is asked for what (OpenID Connect Discovery 1.0), and the keys that it signs with. It is kept fresh in the
//! background, and requests see what is at hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use serde_json::Value;

use crate::authenticate::{KeySet, KeysUri, MISSED_PAUSE_SECS};

/// Largest document that says where a provider is asked.
pub const DISCOVERY_BYTES_MAX: usize = 256 << 10;
/// Where that document is, below the issuer (OpenID Connect Discovery 1.0, section 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Where a provider is asked for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Where browsers go to log in.
    pub authorization: KeysUri,
    /// Where codes and refresh tokens are exchanged.
    pub token: KeysUri,
    /// Where its keys are.
    pub jwks: KeysUri,
    /// Where browsers go to log out; `None`: it ends no sessions.
    pub end_session: Option<KeysUri>,
    /// Its answers say whose they are (RFC 9207).
    pub says_issuer: bool,
}

/// A provider as it was found last.
#[derive(Debug)]
pub struct Provider {
    /// Where it is asked.
    pub endpoints: Endpoints,
    /// What it signs with.
    pub keys: Arc<KeySet>,
}

/// One provider, by its issuer. It lives as long as a login names it, whatever else changes.
#[derive(Debug)]
pub struct ProviderCell {
    issuer: KeysUri,
    name: Arc<str>,
    given: Option<Endpoints>,
    current: ArcSwapOption<Provider>,
    /// The last attempt to find it failed.
    away: AtomicBool,
    missed: AtomicBool,
    asked_secs: AtomicU64,
}

impl Endpoints {
    /// Reads what a provider says of itself.
    ///
    /// # Errors
    /// It is no such document, is of another issuer, or names places that are not to be trusted; says why.
    pub fn discovered(text: &[u8], issuer: &str, at: &KeysUri) -> Result<Self, String> {
        let Ok(Value::Object(said)) = serde_json::from_slice::<Value>(text) else {
            return Err("what it says of itself is no JSON object".to_owned());
        };
        let field = |name: &str| said.get(name).and_then(Value::as_str);
        // OpenID Connect Discovery 1.0, section 4.3: else one provider could speak for another.
        if field("issuer") != Some(issuer) {
            return Err(format!(
                "it says that its issuer is `{:.200}`, not `{issuer}`",
                field("issuer").unwrap_or_default().escape_debug()
            ));
        }
        let read = |text: &str| match trusted(text, at)? {
            place if place.is_loopback() && !at.is_loopback() => Err("is of this machine, and its issuer is not"),
            place => Ok(place),
        };
        let place = |name: &str| field(name).map(|text| read(text).map_err(|why| format!("its {name} {why}"))).transpose();
        let needed = |name: &str| place(name)?.ok_or_else(|| format!("it does not say its {name}"));
        Ok(Self {
            authorization: needed("authorization_endpoint")?,
            token: needed("token_endpoint")?,
            jwks: needed("jwks_uri")?,
            end_session: place("end_session_endpoint")?,
            says_issuer: said.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)),
        })
    }
}

/// An address of a provider. One that proves itself names no place that does not.
///
/// # Errors
/// What is wrong with it.
pub fn trusted(text: &str, issuer: &KeysUri) -> Result<KeysUri, &'static str> {
    let read = KeysUri::read(text)?;
    if !read.is_secure() && (issuer.is_secure() || !read.is_loopback()) {
        return Err("is not of https");
    }
    Ok(read)
}

/// The address of an issuer: of https, or of this machine.
///
/// # Errors
/// What is wrong with it.
pub fn issuer_address(text: &str) -> Result<KeysUri, &'static str> {
    let read = KeysUri::read(text)?;
    if !read.is_secure() && !read.is_loopback() {
        return Err("is not of https, so whoever is between could say who logs in");
    }
    if text.contains(['?', '#']) {
        return Err("has a query or a fragment, which no issuer has");
    }
    Ok(read)
}

impl ProviderCell {
    /// Not found yet. `given`: it need not be asked where it is.
    pub(crate) fn new(name: &str, issuer: KeysUri, given: Option<Endpoints>) -> Arc<Self> {
        Arc::new(Self {
            issuer,
            name: name.into(),
            given,
            current: ArcSwapOption::empty(),
            away: AtomicBool::default(),
            missed: AtomicBool::default(),
            asked_secs: AtomicU64::new(0),
        })
    }

    /// Its issuer, as tokens name it.
    pub fn issuer(&self) -> &str {
        &self.name
    }

    /// Its issuer's address.
    pub const fn at(&self) -> &KeysUri {
        &self.issuer
    }

    /// Where it is asked, where that is given by hand.
    pub const fn given(&self) -> Option<&Endpoints> {
        self.given.as_ref()
    }

    /// Where it says where it is asked.
    ///
    /// # Errors
    /// The issuer is too long for that.
    pub fn document(&self) -> Result<KeysUri, &'static str> {
        KeysUri::read(&format!("{}{WELL_KNOWN}", self.name.trim_end_matches('/')))
    }

    /// As it was found last.
    pub fn current(&self) -> Option<Arc<Provider>> {
        self.current.load_full()
    }

    /// Whether the last attempt to find it failed, or there was none yet.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed) || self.current.load().is_none()
    }

    /// It is looked for now.
    pub fn asked(&self, now_secs: u64) {
        self.asked_secs.store(now_secs, Ordering::Relaxed);
        self.missed.store(false, Ordering::Relaxed);
    }

    /// It was found.
    ///
    /// # Errors
    /// Its keys are none; says why.
    pub fn publish(&self, endpoints: Endpoints, keys: &[u8]) -> Result<Arc<Provider>, String> {
        let keys = Arc::new(KeySet::read(keys)?);
        let found = Arc::new(Provider { endpoints, keys });
        self.current.store(Some(Arc::clone(&found)));
        self.away.store(false, Ordering::Relaxed);
        Ok(found)
    }

    /// It was not found: what was found before stays.
    pub fn failed(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    /// Somebody needs it anew: a key that is not at hand, or no answer. Looked for once per [`MISSED_PAUSE_SECS`].
    pub(super) fn miss(&self, now_secs: u64) {
        let asked = self.asked_secs.load(Ordering::Relaxed);
        if now_secs < asked || now_secs >= asked.saturating_add(MISSED_PAUSE_SECS) {
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether somebody needs it anew.
    pub fn is_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_speaks_for_itself_alone() {
        // Aim: each word of the document that could lead elsewhere, or nowhere, is refused by its name; what is not needed may be absent.
        let issuer = "https://id.example/realms/shop";
        let at = issuer_address(issuer).unwrap();
        let good = serde_json::json!({
            "issuer": issuer, "authorization_endpoint": "https://id.example/auth", "token_endpoint": "https://token.example/token",
            "jwks_uri": "https://id.example/keys", "end_session_endpoint": "https://id.example/end",
            "authorization_response_iss_parameter_supported": true,
        });
        let found = Endpoints::discovered(good.to_string().as_bytes(), issuer, &at).unwrap();
        assert!(found.says_issuer && found.end_session.is_some() && found.token.host() == "token.example");
        for (field, value, said) in [
            ("issuer", serde_json::json!("https://id.example/realms/other"), "its issuer is"),
            ("issuer", serde_json::json!(7), "its issuer is"),
            ("authorization_endpoint", Value::Null, "does not say its authorization_endpoint"),
            ("token_endpoint", serde_json::json!("http://id.example/token"), "its token_endpoint is not of https"),
            ("token_endpoint", serde_json::json!("http://127.0.0.1/token"), "its token_endpoint is not of https"),
            ("jwks_uri", serde_json::json!("https://127.0.0.1:8443/keys"), "its jwks_uri is of this machine"),
            ("token_endpoint", serde_json::json!("https://localhost/token"), "its token_endpoint is of this machine"),
            ("jwks_uri", serde_json::json!("file:///etc/passwd"), "its jwks_uri is no URI"),
            ("jwks_uri", serde_json::json!("ftp://id.example/keys"), "its jwks_uri is not of the form"),
            ("end_session_endpoint", serde_json::json!("https://a@b/"), "its end_session_endpoint holds a user"),
        ] {
            let mut changed = good.clone();
            changed[field] = value;
            let why = Endpoints::discovered(changed.to_string().as_bytes(), issuer, &at).unwrap_err();
            assert!(why.contains(said), "{field}: {why}");
        }
        for text in ["", "[]", "{", "<html>"] {
            assert!(Endpoints::discovered(text.as_bytes(), issuer, &at).is_err());
        }
    }

    #[test]
    fn issuers_prove_themselves() {
        // Aim: https, or this machine; nothing that is no issuer.
        for (issuer, good) in [
            ("https://id.example", true),
            ("https://id.example/realms/a", true),
            ("http://127.0.0.1:9000", true),
            ("http://localhost:9000/a", true),
            ("http://[::1]:9000", true),
            ("http://id.example", false),
            ("https://id.example?a=b", false),
            ("https://user:pass@id.example", false),
            ("id.example", false),
        ] {
            assert_eq!(issuer_address(issuer).is_ok(), good, "{issuer}");
        }
        let cell = ProviderCell::new("https://id.example/a/", issuer_address("https://id.example/a/").unwrap(), None);
        assert_eq!(cell.document().unwrap().uri().to_string(), "https://id.example/a/.well-known/openid-configuration");
        assert!(cell.is_away() && !cell.is_missed());
        cell.asked(100);
        cell.miss(105);
        assert!(!cell.is_missed());
        cell.miss(110);
        assert!(cell.is_missed());
    }
}
