//! Accounts at authorities: made once for each directory, mailbox and key, and kept by whoever keeps the book.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, Key, NewAccount};
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;

use super::calls::{Calls, ComeAgain};
use super::trouble::{Trouble, says};
use crate::translate::AcmeName;
use crate::world::acme::ACME_NAMES_MAX;
use crate::world::content::{Contents, KeptBytes};
use crate::world::edge::AcmeTerms;

/// Accounts that are kept: no name needs more than one. Beyond them the first is made anew when it is wanted.
const ACCOUNTS_MAX: usize = ACME_NAMES_MAX;
/// Entries of an account's Secret, beside its key.
const ROOTS: &str = "ca.crt";
const BINDING: [&str; 2] = ["eab.kid", "eab.key"];
const TOKEN: &str = "dns01.token";

/// What a Secret says of an account.
#[derive(Clone, Default)]
pub(super) struct AccountSecret {
    /// The account's key, PEM.
    key: Option<KeptBytes>,
    /// Whom to believe at the directory, PEM.
    roots: Option<KeptBytes>,
    /// An account elsewhere that pays for it (RFC 8555, section 7.3.4): its id, and the key.
    binding: [Option<KeptBytes>; 2],
    /// What is shown to a webhook that writes DNS.
    token: Option<KeptBytes>,
    /// Whose Secret it is.
    namespace: Option<String>,
}

impl AccountSecret {
    /// Of what that Secret of a namespace holds, whose entry `key` is the account's key.
    pub(super) fn read(contents: &Contents, key: &str, namespace: &str) -> Self {
        let entry = |name: &str| contents.entry(name).cloned();
        Self {
            key: entry(key),
            roots: entry(ROOTS),
            binding: BINDING.map(entry),
            token: entry(TOKEN),
            namespace: Some(namespace.to_owned()),
        }
    }

    /// Whether the account is another namespace's too.
    pub(super) fn is_shared(&self, namespace: &str) -> bool {
        self.key.is_some() && self.namespace.as_deref() != Some(namespace)
    }

    /// What is shown to a webhook that writes DNS.
    pub(super) fn token(&self) -> Option<&[u8]> {
        self.token.as_deref()
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Accounts {
    kept: Mutex<BTreeMap<String, Value>>,
    /// By name, each held by whoever makes that one, so that others who want it find it. Authorities that take their time are waited for by those
    /// alone who want an account there.
    making: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Some are not written down yet.
    fresh: AtomicBool,
}

impl Accounts {
    pub(super) fn new(kept: BTreeMap<String, Value>) -> Self {
        Self { kept: Mutex::new(kept), ..Self::default() }
    }

    /// Whether there are any that are not written down yet; they count as written from now on.
    pub(super) fn are_fresh(&self) -> bool {
        self.fresh.swap(false, Ordering::Relaxed)
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeMap<String, Value> {
        self.kept.lock().clone()
    }

    /// The account for an authority, which is made where there is none.
    pub(super) async fn open(&self, wanted: &AcmeName, secret: &AccountSecret, told: &ComeAgain) -> Result<Account, Trouble> {
        let terms = &wanted.terms;
        let name = name(terms, secret, &wanted.secret.namespace);
        if let Some(known) = self.known(&name) {
            return reopened(known, terms, secret, told).await;
        }
        let lane = self.lane(&name);
        let _making = lane.lock().await;
        if let Some(known) = self.known(&name) {
            return reopened(known, terms, secret, told).await;
        }
        let (account, credentials) = made(terms, secret, told).await?;
        let credentials = serde_json::to_value(&credentials).map_err(|error| Trouble::Failed(error.to_string()))?;
        let mut kept = self.kept.lock();
        if kept.len() >= ACCOUNTS_MAX && !kept.contains_key(&name) {
            kept.pop_first();
        }
        kept.insert(name, credentials);
        self.fresh.store(true, Ordering::Relaxed);
        tracing::info!(directory = terms.directory, "made an account at a certificate authority");
        Ok(account)
    }

    /// What is held by whoever makes an account.
    fn lane(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making.lock();
        making.retain(|_, lane| lane.strong_count() > 0);
        if let Some(lane) = making.get(name).and_then(Weak::upgrade) {
            return lane;
        }
        let lane = Arc::default();
        making.insert(name.to_owned(), Arc::downgrade(&lane));
        lane
    }

    /// `None`: there is none, or none that reads any more.
    fn known(&self, name: &str) -> Option<AccountCredentials> {
        let known = self.kept.lock().get(name).cloned()?;
        serde_json::from_value(known).ok()
    }

    /// An authority that does not know the account any more gets another one; whether that is so.
    pub(super) fn doubt(&self, wanted: &AcmeName, secret: &AccountSecret, trouble: &Trouble) -> bool {
        let unknown = matches!(trouble, Trouble::Refused(error) if says(error, "accountDoesNotExist"))
            && self.kept.lock().remove(&name(&wanted.terms, secret, &wanted.secret.namespace)).is_some();
        if unknown {
            self.fresh.store(true, Ordering::Relaxed);
        }
        unknown
    }
}

fn calls(terms: &AcmeTerms, secret: &AccountSecret, told: &ComeAgain) -> Result<Box<Calls>, Trouble> {
    Calls::new(&terms.directory, secret.roots.as_deref(), told.clone()).map(Box::new).map_err(Trouble::Failed)
}

async fn reopened(
    credentials: AccountCredentials,
    terms: &AcmeTerms,
    secret: &AccountSecret,
    told: &ComeAgain,
) -> Result<Account, Trouble> {
    Ok(Account::builder_with_http(calls(terms, secret, told)?).from_credentials(credentials).await?)
}

async fn made(terms: &AcmeTerms, secret: &AccountSecret, told: &ComeAgain) -> Result<(Account, AccountCredentials), Trouble> {
    let builder = Account::builder_with_http(calls(terms, secret, told)?);
    let contact = terms.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.as_deref().into_iter().collect();
    let Some(pem) = &secret.key else {
        let wanted = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let binding = bound(&secret.binding)?;
        return Ok(builder.create(&wanted, terms.directory.clone(), binding.as_ref()).await?);
    };
    if secret.binding.iter().any(Option::is_some) {
        let why = "a key of one's own is not bound to an external account: of the Secret that accountSecretRef names remove the account's key, or `eab.kid` and `eab.key`";
        return Err(Trouble::Failed(why.to_owned()));
    }
    let (account, credentials) = builder.create_from_key(own_key(pem)?, terms.directory.clone()).await?;
    if !contact.is_empty() {
        account.update_contacts(&contact).await?;
    }
    Ok((account, credentials))
}

/// What an account is kept by: with another key, or another account behind it, it is another one; and each namespace that has certificates ordered has
/// its own, unless it is told which. An authority remembers for weeks what an account has proved, and would give it to whoever orders next by it.
fn name(terms: &AcmeTerms, secret: &AccountSecret, namespace: &str) -> String {
    let version = |bytes: &Option<KeptBytes>| bytes.as_ref().map(|bytes| proto::epoch::version(bytes)).unwrap_or_default();
    let (own, bound) = (version(&secret.key), version(&secret.binding[0]));
    let whose = if secret.key.is_some() { "" } else { namespace };
    format!("{} {} {own} {bound} {whose}", terms.directory, terms.email.as_deref().unwrap_or_default())
}

fn own_key(pem: &[u8]) -> Result<(Key, PrivateKeyDer<'static>), Trouble> {
    let wrong =
        || Trouble::Failed("the account's key in the Secret that accountSecretRef names is no ECDSA P-256 key in PKCS #8 (PEM)".to_owned());
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| wrong())?;
    let key = Key::from_pkcs8_der(der.clone_key()).map_err(|_| wrong())?;
    Ok((key, PrivateKeyDer::Pkcs8(der)))
}

/// The external account, if one is named.
fn bound([id, key]: &[Option<KeptBytes>; 2]) -> Result<Option<ExternalAccountKey>, Trouble> {
    if id.is_none() && key.is_none() {
        return Ok(None);
    }
    let text = |bytes: &KeptBytes| std::str::from_utf8(bytes).ok().map(|text| text.trim().trim_end_matches('=').to_owned());
    let key = key.as_ref().and_then(text).and_then(|key| URL_SAFE_NO_PAD.decode(key).ok());
    let wrong = "entries `eab.kid` and `eab.key` (base64url) of the Secret that accountSecretRef names are no external account";
    let (id, key) = id.as_ref().and_then(text).zip(key).ok_or_else(|| Trouble::Failed(wrong.to_owned()))?;
    Ok(Some(ExternalAccountKey::new(id, &key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::Spec;
    use crate::world::edge::{AcmeChallenge, AcmeKeyType};

    fn secret(entries: &str) -> AccountSecret {
        let text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a, namespace: shop}}\nstringData: {{{entries}}}");
        let object = parse("s.yaml", &text).candidates.remove(0).object.unwrap();
        let Spec::Secret(contents) = &object.spec else { panic!("no Secret") };
        AccountSecret::read(contents, "account.key", "shop")
    }

    #[test]
    fn an_account_is_another_one_by_directory_mailbox_key_and_namespace() {
        // Aim: each of them tells accounts apart; roots do not. What one namespace has proved is nothing to another: it has an account of its own,
        // unless both are told to use one key, and then what was proved before does not count.
        let terms = |directory: &str, email: Option<&str>| AcmeTerms {
            directory: directory.into(),
            email: email.map(str::to_owned),
            challenge: AcmeChallenge::Http01,
            key_type: AcmeKeyType::P256,
            renew_at_percent: 66.0,
            account: None,
            dns: None,
        };
        let name = |terms: &AcmeTerms, secret: &AccountSecret| name(terms, secret, "shop");
        let plain = terms("https://a.example", None);
        let first = name(&plain, &secret(""));
        assert_eq!(first, name(&plain, &secret("ca.crt: x")));
        for other in [
            name(&terms("https://b.example", None), &secret("")),
            name(&terms("https://a.example", Some("a@b.example")), &secret("")),
            name(&plain, &secret("account.key: x")),
            name(&plain, &secret("eab.kid: x, eab.key: eHg")),
        ] {
            assert_ne!(first, other);
        }
        let own = secret("account.key: x");
        assert_ne!(first, super::name(&plain, &secret(""), "other"));
        assert_eq!(name(&plain, &own), super::name(&plain, &own, "other"));
        assert!(own.is_shared("other") && !own.is_shared("shop") && !secret("").is_shared("other"));
    }

    #[test]
    fn what_cannot_be_an_account_is_said() {
        // Aim: a key of another kind and a binding that is no base64 are refused by the name of their entries; a good key and a binding are read.
        let failed = |trouble: Trouble| if let Trouble::Failed(why) = trouble { why } else { panic!("not ours") };
        assert!(failed(own_key(b"x").err().unwrap()).contains("accountSecretRef"));
        let good = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        assert!(own_key(good.serialize_pem().as_bytes()).is_ok());
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(failed(own_key(other.serialize_pem().as_bytes()).err().unwrap()).contains("P-256"));
        assert!(bound(&secret("eab.kid: x, eab.key: eHh4").binding).is_ok_and(|bound| bound.is_some()));
        assert!(bound(&secret("").binding).is_ok_and(|bound| bound.is_none()));
        for half in ["eab.kid: x, eab.key: \"%\"", "eab.kid: x", "eab.key: eHh4"] {
            assert!(failed(bound(&secret(half).binding).err().unwrap()).contains("eab.key"), "{half}");
        }
    }
}
