//! Who may call from outside: consumers and their credentials, as the control plane sends them, and the way from what a request shows to them.
//! A key is found by its SHA-256, so nothing secret is compared, and the proxy holds no key.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use http::HeaderValue;
use prost::Message as _;
use proto::mesh::{self, credential::Kind};
use smallvec::SmallVec;
use zeroize::Zeroizing;

use super::addresses::AddressList;
use super::certificate::ClientCertificate;
use super::consumer::{AuthMethod, Consumer, Credential};
use super::digest::{Digest, digest};
use super::identified::Identified;
use super::password::typical;
use crate::claims::Claims;
use crate::rejected::Wrong;
use crate::seeded::Seeded;

/// Most credentials of all consumers of a Gateway.
pub const CREDENTIALS_MAX: usize = 200_000;
/// Longest key that is looked at.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Most credentials of one consumer.
const OWN_CREDENTIALS_MAX: usize = 32;
/// Most groups of one, and attributes and labels.
const LISTED_MAX: usize = 64;
/// Longest name, group, scope, attribute.
const TEXT_BYTES_MAX: usize = 2_048;

/// Longest secret that is shown to a store or an authorization server.
pub const SECRET_BYTES_MAX: usize = 4_096;

/// A consumer and the place of one of its credentials.
pub type Owner = (Arc<Consumer>, usize);

/// A place of a consumer and one of its credential.
type Place = (u32, u32);

/// An issuer, and the name and value of a claim.
type ClaimNamed = (Box<str>, Box<str>, Box<str>);

/// Everybody who may call. Immutable; [`BookCell`] holds the one in force.
#[derive(Default)]
pub struct Book {
    consumers: Vec<Arc<Consumer>>,
    /// By name; made at the first use, which most books never see.
    names: OnceLock<HashMap<Box<str>, u32>>,
    keys: HashMap<Digest, Place, Seeded>,
    users: HashMap<Box<str>, Vec<(Place, Arc<str>)>>,
    /// A hash that costs what most of theirs do.
    typical: Option<Arc<str>>,
    /// By issuer, and the name and value of the first claim.
    tokens: HashMap<ClaimNamed, Vec<(Place, ClaimsWanted)>>,
    /// In each namespace, or wherever else consumers are used together, one at most.
    certificates: HashMap<CertificateName, SmallVec<[Place; 1]>>,
    /// Files of users: name of each, and hash of the password.
    files: HashMap<Box<str>, Users>,
    /// Lists of addresses.
    lists: HashMap<Box<str>, Arc<AddressList>>,
    /// What the proxy shows to stores and authorization servers.
    secrets: HashMap<Box<str>, ShownSecret>,
}

/// A secret that a proxy shows to a store or an authorization server.
#[derive(Clone)]
pub struct ShownSecret(Arc<Zeroizing<Vec<u8>>>);

impl std::ops::Deref for ShownSecret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ShownSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Users of a file.
#[derive(Clone, Debug)]
struct Users {
    /// By name, with the hash of each one's password.
    hashes: HashMap<Box<str>, Arc<str>>,
    /// One that costs what most of them do.
    typical: Option<Arc<str>>,
}

/// Claims that a token must have, and their values.
type ClaimsWanted = Arc<[(Box<str>, Box<str>)]>;

/// What a certificate is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum CertificateName {
    /// A URI of its alternative names.
    Uri(Box<str>),
    /// A DNS name of them.
    Dns(Box<str>),
    /// Its own hash.
    Hash(Digest),
}

impl std::fmt::Debug for Book {
    /// Nothing of it is printed: some of it is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").field("consumers", &self.consumers.len()).finish_non_exhaustive()
    }
}

impl Book {
    /// Whose key that is.
    pub fn by_key(&self, key: &Digest) -> Option<Owner> {
        self.owner(*self.keys.get(key)?)
    }

    /// All that use a username, each with the hash of its password.
    pub fn by_user(&self, user: &str) -> impl Iterator<Item = (Owner, &Arc<str>)> {
        let found = self.users.get(user).into_iter().flatten();
        found.filter_map(|(place, hash)| Some((self.owner(*place)?, hash)))
    }

    /// The hash of the password of a user of a file.
    pub fn in_file(&self, file: &str, user: &str) -> Option<&Arc<str>> {
        self.files.get(file)?.hashes.get(user)
    }

    /// A hash that costs what those of most users of a file do; of consumers, where there is no file or nobody in it.
    pub fn typical(&self, file: Option<&str>) -> Option<&Arc<str>> {
        let in_file = file.and_then(|file| self.files.get(file)?.typical.as_ref());
        in_file.or(self.typical.as_ref())
    }

    /// Whether a list holds an address; `None`: there is no such list.
    pub fn lists(&self, list: &str, address: std::net::IpAddr) -> Option<bool> {
        self.lists.get(list).map(|list| list.holds(address))
    }

    /// What is shown to a store or an authorization server.
    pub fn secret(&self, name: &str) -> Option<&ShownSecret> {
        self.secrets.get(name)
    }

    /// Whose certificate that is, of those that count: by itself, then by a URI of it, then by a DNS name.
    pub fn by_certificate(&self, shown: &ClientCertificate, counts: impl Fn(&Consumer) -> bool) -> Option<Owner> {
        if self.certificates.is_empty() {
            return None;
        }
        let uris = shown.uris().iter().cloned().map(CertificateName::Uri);
        let names = shown.dns_names().iter().cloned().map(CertificateName::Dns);
        let known = std::iter::once(CertificateName::Hash(*shown.hash())).chain(uris).chain(names);
        let places = known.filter_map(|name| self.certificates.get(&name)).flatten();
        places.filter_map(|place| self.owner(*place)).find(|(consumer, _)| counts(consumer))
    }

    /// Who claims a token, of those that count; `claim`: by credentials that name that claim only.
    pub fn by_token(&self, claims: &Claims, claim: Option<&str>, counts: impl Fn(&Consumer) -> bool) -> Option<Owner> {
        if self.tokens.is_empty() {
            return None;
        }
        let named = claims.content.keys().filter(|name| claim.is_none_or(|claim| claim == name.as_str()));
        let nested = claim.filter(|claim| !claims.content.contains_key(*claim));
        for name in named.map(String::as_str).chain(nested) {
            for value in claims.texts(name) {
                let key = (Box::from(&*claims.issuer), Box::from(name), Box::from(&*value));
                let says = |(name, value): &(Box<str>, Box<str>)| claims.texts(name).any(|said| *said == **value);
                let owners = self.tokens.get(&key).into_iter().flatten().filter(|(_, wanted)| wanted.iter().all(says));
                if let Some(owner) = owners.filter_map(|(place, _)| self.owner(*place)).find(|(consumer, _)| counts(consumer)) {
                    return Some(owner);
                }
            }
        }
        None
    }

    /// Whether somebody who proved who it is still has what it showed, as it was. Who is no consumer and in no file is known to nobody here.
    pub fn still_has(&self, who: &Identified) -> bool {
        if let Some((file, hash)) = &who.file {
            return who.user.as_deref().and_then(|user| self.in_file(file, user)) == Some(hash);
        }
        let (Some(consumer), Some(shown)) = (&who.consumer, who.credential()) else { return true };
        let Some(now) = self.named(&consumer.path) else { return false };
        Arc::ptr_eq(now, consumer) || (!now.disabled && now.expires_secs == consumer.expires_secs && now.credentials.contains(shown))
    }

    /// How many consumers there are.
    pub fn len(&self) -> usize {
        self.consumers.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.consumers.is_empty()
    }

    /// How many credentials there are.
    pub fn credentials(&self) -> usize {
        self.consumers.iter().map(|consumer| consumer.credentials.len()).sum()
    }

    /// The consumer of that `NAMESPACE/NAME`.
    pub fn named(&self, path: &str) -> Option<&Arc<Consumer>> {
        let of = |(number, consumer): (u32, &Arc<Consumer>)| (consumer.path.clone(), number);
        let names = self.names.get_or_init(|| (0..).zip(&self.consumers).map(of).collect());
        self.consumers.get(*names.get(path)? as usize)
    }

    fn owner(&self, (consumer, credential): Place) -> Option<Owner> {
        Some((Arc::clone(self.consumers.get(consumer as usize)?), credential as usize))
    }
}

/// The book in force, shared by all snapshots of a proxy: what is revoked is refused at once.
#[derive(Debug, Default)]
pub struct BookCell(ArcSwap<Book>);

impl BookCell {
    /// The book in force.
    pub fn load(&self) -> Arc<Book> {
        self.0.load_full()
    }

    /// Whether that is the book in force.
    pub fn is(&self, book: &Arc<Book>) -> bool {
        Arc::ptr_eq(&self.0.load(), book)
    }

    /// Looks at the book in force in place.
    pub fn with<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.0.load())
    }

    pub(crate) fn publish(&self, book: Book) {
        self.0.store(Arc::new(book));
    }
}

/// One resource's consumers, checked.
#[derive(Default)]
pub(crate) struct Page {
    entries: Vec<(Arc<Consumer>, Vec<Secret>)>,
    files: Vec<(Box<str>, Users)>,
    lists: Vec<(Box<str>, Arc<AddressList>)>,
    secrets: Vec<(Box<str>, ShownSecret)>,
    pub(crate) credentials: usize,
}

impl std::fmt::Debug for Page {
    /// As [`Book`].
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("consumers", &self.entries.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Secret {
    Key(Digest),
    Password(Box<str>, Arc<str>),
    Token(Box<str>, ClaimsWanted),
    Certificate(CertificateName),
}

impl Page {
    /// Reads a resource; `former`: what it was before, of which consumers that are the same stay.
    pub(crate) fn compile(raw: &mesh::Consumers, former: Option<&Self>) -> Result<Self, Wrong> {
        let mut page = Self::default();
        let known: BTreeMap<&str, &Arc<Consumer>> =
            former.into_iter().flat_map(|page| &page.entries).map(|(consumer, _)| (&*consumer.path, consumer)).collect();
        for (index, raw) in raw.consumers.iter().enumerate() {
            let (consumer, secrets) = consumer(raw).map_err(|wrong| wrong.within(format!("consumers[{index}]")))?;
            page.credentials += secrets.len();
            let kept = known.get(&*consumer.path).copied().filter(|known| ***known == consumer).cloned();
            page.entries.push((kept.unwrap_or_else(|| Arc::new(consumer)), secrets));
        }
        for raw in &raw.files {
            let mesh::UserFile { name, users } = raw;
            let user = |raw: &mesh::PasswordCredential| (raw.username.as_str().into(), raw.hash.as_str().into());
            page.credentials += users.len();
            let hashes: HashMap<Box<str>, Arc<str>> = users.iter().map(user).collect();
            let typical = typical(hashes.values());
            page.files.push((name.as_str().into(), Users { hashes, typical }));
        }
        for mesh::AddressList { name, ranges } in &raw.lists {
            let list = AddressList::read(ranges).map_err(|why| Wrong::new(format!("lists[{}]", name.escape_debug()), why))?;
            page.lists.push((name.as_str().into(), Arc::new(list)));
        }
        for mesh::ShownSecret { name, value } in &raw.secrets {
            if value.is_empty() || value.len() > SECRET_BYTES_MAX {
                let why = format!("has {} bytes, not 1 to {SECRET_BYTES_MAX}", value.len());
                return Err(Wrong::new(format!("secrets[{}]", name.escape_debug()), why));
            }
            page.secrets.push((name.as_str().into(), ShownSecret(Arc::new(Zeroizing::new(value.to_vec())))));
        }
        Ok(page)
    }

    /// The book that pages come to. Of what several claim the first has it: the control plane sends no such thing.
    pub(crate) fn bind<'p>(pages: impl Iterator<Item = &'p Self>) -> Book {
        let pages: Vec<&Self> = pages.collect();
        let mut book = Book::default();
        for (name, users) in pages.iter().flat_map(|page| &page.files) {
            book.files.insert(name.clone(), users.clone());
        }
        for (name, list) in pages.iter().flat_map(|page| &page.lists) {
            book.lists.insert(name.clone(), Arc::clone(list));
        }
        for (name, secret) in pages.iter().flat_map(|page| &page.secrets) {
            book.secrets.insert(name.clone(), secret.clone());
        }
        for (consumer, secrets) in pages.iter().flat_map(|page| &page.entries) {
            let number = u32::try_from(book.consumers.len()).unwrap_or(u32::MAX);
            for (credential, secret) in (0..).zip(secrets) {
                let place = (number, credential);
                match secret {
                    Secret::Key(digest) => _ = book.keys.entry(*digest).or_insert(place),
                    Secret::Password(user, hash) => book.users.entry(user.clone()).or_default().push((place, Arc::clone(hash))),
                    Secret::Token(issuer, claims) => {
                        if let Some((name, value)) = claims.first() {
                            let key = (issuer.clone(), name.clone(), value.clone());
                            book.tokens.entry(key).or_default().push((place, Arc::clone(claims)));
                        }
                    }
                    Secret::Certificate(name) => book.certificates.entry(name.clone()).or_default().push(place),
                }
            }
            book.consumers.push(Arc::clone(consumer));
        }
        book.typical = typical(book.users.values().flatten().map(|(_, hash)| hash));
        book
    }
}

fn consumer(raw: &mesh::Consumer) -> Result<(Consumer, Vec<Secret>), Wrong> {
    let mesh::Consumer { namespace, name, team, groups, attributes, labels, disabled, expires_secs, credentials } = raw;
    for (field, count, most) in [
        ("credentials", credentials.len(), OWN_CREDENTIALS_MAX),
        ("groups", groups.len(), LISTED_MAX),
        ("attributes", attributes.len(), LISTED_MAX),
        ("labels", labels.len(), LISTED_MAX),
    ] {
        if count > most {
            return Err(Wrong::new(field, format!("holds {count}, which is more than {most}")));
        }
    }
    let pairs =
        |pairs: &BTreeMap<String, String>| pairs.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
    let mut made = Consumer {
        path: format!("{namespace}/{name}").into(),
        namespace: text(namespace, "namespace")?,
        name: text(name, "name")?,
        team: team.as_str().into(),
        groups: groups.iter().map(|group| text(group, "groups")).collect::<Result<_, _>>()?,
        attributes: pairs(attributes),
        labels: pairs(labels),
        disabled: *disabled,
        expires_secs: (*expires_secs > 0).then_some(*expires_secs),
        credentials: Vec::with_capacity(credentials.len()),
    };
    let mut secrets = Vec::with_capacity(credentials.len());
    for (index, raw) in credentials.iter().enumerate() {
        let (credential, secret) = credential(&made, raw).map_err(|wrong| wrong.within(format!("credentials[{index}]")))?;
        made.credentials.push(credential);
        secrets.push(secret);
    }
    Ok((made, secrets))
}

fn text(text: &str, field: &str) -> Result<Box<str>, Wrong> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(Wrong::new(field, format!("has {} bytes, not 1 to {TEXT_BYTES_MAX}", text.len())));
    }
    Ok(text.into())
}

fn credential(consumer: &Consumer, raw: &mesh::Credential) -> Result<(Credential, Secret), Wrong> {
    let mesh::Credential { name, not_before_secs, expires_secs, scopes, kind } = raw;
    if scopes.len() > LISTED_MAX {
        return Err(Wrong::new("scopes", format!("holds {}, which is more than {LISTED_MAX}", scopes.len())));
    }
    let hash =
        |bytes: &[u8], field: &str| Digest::try_from(bytes).map_err(|_| Wrong::new(field, format!("has {} bytes, not 32", bytes.len())));
    let (method, prefix, secret) = match kind {
        None => return Err(Wrong::new("kind", "is missing: api_key, basic, jwt or certificate")),
        Some(Kind::ApiKey(mesh::KeyCredential { sha256, prefix })) => {
            (AuthMethod::ApiKey, prefix.as_str(), Secret::Key(hash(sha256, "api_key.sha256")?))
        }
        Some(Kind::Basic(mesh::PasswordCredential { username, hash })) => {
            (AuthMethod::Basic, username.as_str(), Secret::Password(text(username, "basic.username")?, hash.as_str().into()))
        }
        Some(Kind::Jwt(mesh::TokenCredential { issuer, claims })) => {
            if claims.is_empty() || claims.len() > LISTED_MAX {
                return Err(Wrong::new("jwt.claims", format!("holds {}, not 1 to {LISTED_MAX}", claims.len())));
            }
            let claims = claims.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
            (AuthMethod::Jwt, "", Secret::Token(text(issuer, "jwt.issuer")?, claims))
        }
        Some(Kind::Certificate(mesh::CertificateCredential { kind })) => {
            use mesh::certificate_credential::Kind as By;
            let name = match kind {
                Some(By::Uri(uri)) => CertificateName::Uri(text(uri, "certificate.uri")?),
                Some(By::Dns(dns)) => CertificateName::Dns(text(&dns.to_ascii_lowercase(), "certificate.dns")?),
                Some(By::Sha256(bytes)) => CertificateName::Hash(hash(bytes, "certificate.sha256")?),
                None => return Err(Wrong::new("certificate", "is missing: uri, dns or sha256")),
            };
            (AuthMethod::Cert, "", Secret::Certificate(name))
        }
    };
    let groups = consumer.groups.iter().map(|group| &**group).collect::<Vec<_>>().join(",");
    let told = |method: AuthMethod| HeaderValue::try_from(format!("{};groups={groups};method={}", consumer.path, method.text())).ok();
    // What a token says an ID token of a login may say as well.
    let told_of_login = if method == AuthMethod::Jwt { told(AuthMethod::Login) } else { None };
    let made = Credential {
        name: name.as_str().into(),
        prefix: prefix.into(),
        method,
        not_before_secs: *not_before_secs,
        expires_secs: (*expires_secs > 0).then_some(*expires_secs),
        scopes: scopes.iter().map(|scope| scope.as_str().into()).collect(),
        told: told(method),
        told_of_login,
        mark: digest(&raw.encode_to_vec()),
    };
    Ok((made, secret))
}
