//! Consumers on their way to a Gateway's proxy: those that its objects can use, in pages by a hash of their names, so that a change of one sends
//! one page. What a key in a Secret is known by is found here; of a credential that several claim among whom one object may choose the oldest
//! Consumer has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use engine::consumers::{CREDENTIALS_MAX, Digest, digest};
use proto::mesh::{self, CertificateCredential, KeyCredential, PasswordCredential, TokenCredential, certificate_credential, credential};

use super::api_key::{chosen, chosen_by};
use super::together::Together;
use super::{basic, login, secret, tokens};
use crate::translate::attach::{self, WhyNot};
use crate::translate::usable::Usable;
use crate::world::content::ContentRef;
use crate::world::edge::{Claims, Consumer, ConsumerChoice, Credential, CredentialKind, Namespaces, consumer_page, page_of};
use crate::world::key::GATEWAY_API;
use crate::world::{Index, Name, Object, ObjectKey, Spec, World, references};

/// Shortest key in a Secret: a shorter one could be guessed.
const KEY_BYTES_MIN: usize = 20;
/// Labels of a Consumer that proxies are told: one with more would have its whole page refused, and what is revoked there stay in force. By a label
/// beyond it nobody is chosen.
const LABELS_MAX: usize = 64;
/// Letters of a key of somebody's own that are told.
const TOLD_BYTES: usize = 4;

/// The content of a Consumer.
pub(in crate::translate) fn content(object: &Object) -> Option<&Consumer> {
    if let Spec::Consumer(consumer) = &object.spec { Some(consumer) } else { None }
}

/// Which consumers a Gateway's objects can use; empty: nobody asks for any.
pub(in crate::translate) fn usable(index: &Index, gateway: &Name) -> Usable {
    let (mut found, mut files) = (BTreeSet::new(), BTreeSet::new());
    let verifies = certificates_asked(index, gateway);
    if index.edge.is_empty() && !verifies {
        return Usable::default();
    }
    let (mut secrets, mut login_keys) = (BTreeSet::new(), None);
    if verifies {
        let choice = of_certificates(index, gateway);
        found.insert((choice.namespaces, choice.names, choice.labels));
    }
    for place in super::ladder::all_places(index, gateway) {
        for object in index.edge.get(&place).into_iter().flatten() {
            let choice = match &object.spec {
                Spec::ApiKeyAuth(spec) => chosen(index, object, &spec.consumers.clone().unwrap_or_default()),
                Spec::BasicAuth(spec) => {
                    files.extend(spec.users.clone());
                    chosen(index, object, &spec.consumers.clone().unwrap_or_default())
                }
                Spec::RequestAuthentication(spec) => {
                    secrets.extend(spec.introspection.iter().filter_map(|said| said.secret.clone()));
                    chosen(index, object, &tokens::choice())
                }
                Spec::OidcLogin(spec) => {
                    secrets.extend(spec.secrets().cloned());
                    login_keys = Some(gateway.0.clone());
                    chosen(index, object, &tokens::choice())
                }
                Spec::RateLimit(spec) => {
                    secrets.extend(spec.store.password().cloned());
                    continue;
                }
                _ => continue,
            };
            found.insert((choice.namespaces, choice.names, choice.labels));
        }
    }
    let lists = super::authorization::listed(index, gateway);
    Usable {
        choices: found.into_iter().collect(),
        files: files.into_iter().collect(),
        lists: lists.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
        login_keys,
    }
}

/// Whether a Gateway asks clients for certificates somewhere.
fn certificates_asked(index: &Index, gateway: &Name) -> bool {
    let found = index.gateways.get(gateway).and_then(|gateway| attach::gateway(gateway));
    found.is_some_and(|gateway| gateway.clients.all().next().is_some())
}

/// Whose certificates count at a Gateway: consumers of its namespace, and of others where a ReferenceGrant lets it refer to them.
pub(super) fn of_certificates(index: &Index, gateway: &Name) -> mesh::ConsumerChoice {
    let all = ConsumerChoice { namespaces: Namespaces::All, ..ConsumerChoice::default() };
    chosen_by(index, (GATEWAY_API, "Gateway", &gateway.0), &all)
}

/// One page: `None` where nobody of it can be used.
pub(in crate::translate) fn page(world: &World, usable: &Usable, number: u8) -> Option<mesh::Consumers> {
    let index = world.index();
    let labels: BTreeSet<&String> = usable.choices.iter().flat_map(|(_, _, labels)| labels.keys()).collect();
    let claims = claims(world);
    let told = |object: &Object| {
        let consumer = content(object)?;
        usable.choices.iter().any(|choice| takes(choice, object)).then(|| sent(world, object, consumer, (&labels, claims)))
    };
    let consumers: Vec<_> = index.consumers.get(&number).into_iter().flatten().filter_map(|object| told(object)).collect();
    let on_page = |name: &str| page_of(name) == number;
    let files =
        usable.files.iter().filter(|at| on_page(&basic::file_name(at))).map(|at| basic::file(world, at, claims.room_of(at))).collect();
    let lists = usable.lists.iter().filter(|name| on_page(name)).filter_map(|name| super::authorization::list(world, name)).collect();
    let secrets = usable.secrets.iter().filter(|at| on_page(&basic::file_name(at)));
    let made = usable.login_keys.iter().filter(|_| on_page(login::MADE_KEYS)).filter_map(|namespace| made_keys(world, namespace));
    let secrets = secrets.filter_map(|at| secret::shown(world, at).ok()).chain(made).collect();
    let page = mesh::Consumers { consumers, files, lists, secrets };
    (page != mesh::Consumers::default()).then_some(page)
}

/// What sessions of a namespace's Gateways are sealed with; `None`: nothing was made yet.
fn made_keys(world: &World, namespace: &str) -> Option<mesh::ShownSecret> {
    let keys = world.login_seeds().keys(namespace);
    (!keys.is_empty()).then(|| mesh::ShownSecret { name: login::MADE_KEYS.to_owned(), value: keys.as_bytes().to_vec().into() })
}

/// The page that made keys stand on.
pub(in crate::translate) fn page_of_made_keys() -> u8 {
    page_of(login::MADE_KEYS)
}

fn takes((namespaces, names, labels): &(Vec<String>, Vec<String>, BTreeMap<String, String>), object: &Object) -> bool {
    let there = namespaces.contains(&object.key.namespace) || names.contains(&object.key.path());
    there && labels.iter().all(|(name, value)| object.label(name) == Some(value.as_str()))
}

fn sent(world: &World, object: &Object, consumer: &Consumer, (labels, claims): (&BTreeSet<&String>, &Claims)) -> mesh::Consumer {
    let lost = claims.lost_of(&object.key);
    let holds = |credential: &&Credential| !lost.iter().any(|(name, _)| *name == credential.name);
    let credentials = consumer.credentials.iter().filter(holds).filter_map(|credential| told(world, credential));
    mesh::Consumer {
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        team: consumer.team.clone().unwrap_or_else(|| object.key.namespace.clone()),
        groups: consumer.groups.clone(),
        attributes: consumer.attributes.clone(),
        labels: object
            .metadata
            .labels
            .iter()
            .filter(|(name, _)| labels.contains(name))
            .take(LABELS_MAX)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        disabled: consumer.disabled,
        expires_secs: seconds(consumer.expires_ms),
        credentials: credentials.collect(),
    }
}

/// The pages on which something is what an object's content says: keys and passwords of Consumers, files of users, lists of addresses, what
/// proxies show to stores and authorization servers.
pub(in crate::translate) fn pages_of(index: &Index, content: &ObjectKey) -> BTreeSet<u8> {
    let refers = |object: &Arc<Object>| object.key.namespace == content.namespace && references(object).contains(content);
    let consumers = index.consumers.iter().filter(|(_, objects)| objects.iter().any(refers));
    let mut pages: BTreeSet<u8> = consumers.map(|(page, _)| *page).collect();
    for object in index.edge.values().flatten().filter(|object| references(object).contains(content)) {
        match &object.spec {
            Spec::BasicAuth(spec) => pages.extend(spec.users.iter().map(|at| page_of(&basic::file_name(at)))),
            Spec::RequestAuthentication(spec) => {
                let secrets = spec.introspection.iter().filter_map(|said| said.secret.as_ref());
                pages.extend(secrets.map(|at| page_of(&basic::file_name(at))));
            }
            Spec::OidcLogin(spec) => pages.extend(spec.secrets().map(|at| page_of(&basic::file_name(at)))),
            Spec::RateLimit(spec) => pages.extend(spec.store.password().map(|at| page_of(&basic::file_name(at)))),
            _ => _ = pages.insert(page_of(&content.path())),
        }
    }
    pages
}

/// Whole seconds; what ends within the first second of 1970 has ended.
fn seconds(at_ms: Option<i64>) -> u64 {
    at_ms.map_or(0, |at| u64::try_from(at / 1_000).unwrap_or(1).max(1))
}

/// As proxies are told; `None`: what it refers to is not there, and it counts no more.
fn told(world: &World, credential: &Credential) -> Option<mesh::Credential> {
    use credential::Kind;
    let kind = match &credential.kind {
        CredentialKind::Key { sha256, prefix } => Kind::ApiKey(KeyCredential { sha256: sha256.to_vec().into(), prefix: prefix.clone() }),
        CredentialKind::KeyIn(at) => {
            let (digest, prefix) = key_in(world, at).ok()?;
            Kind::ApiKey(KeyCredential { sha256: digest.to_vec().into(), prefix })
        }
        CredentialKind::Basic { username, hash } => {
            Kind::Basic(PasswordCredential { username: username.clone(), hash: password_in(world, hash).ok()? })
        }
        CredentialKind::Jwt { issuer, claims } => Kind::Jwt(TokenCredential { issuer: issuer.clone(), claims: claims.clone() }),
        CredentialKind::CertificateUri(uri) => certificate(certificate_credential::Kind::Uri(uri.clone())),
        CredentialKind::CertificateDns(dns) => certificate(certificate_credential::Kind::Dns(dns.clone())),
        CredentialKind::CertificateHash(hash) => certificate(certificate_credential::Kind::Sha256(hash.to_vec().into())),
    };
    Some(mesh::Credential {
        name: credential.name.clone(),
        not_before_secs: seconds(credential.not_before_ms),
        expires_secs: seconds(credential.expires_ms),
        scopes: credential.scopes.clone(),
        kind: Some(kind),
    })
}

fn certificate(kind: certificate_credential::Kind) -> credential::Kind {
    credential::Kind::Certificate(CertificateCredential { kind: Some(kind) })
}

/// What a key in a Secret is known by, and what of it may be told.
///
/// # Errors
/// There is none, or it is none; the text says so without it.
fn key_in(world: &World, at: &ContentRef) -> Result<(Digest, String), String> {
    let bytes = world.content(at).map_err(|error| error.to_string())?;
    let key = bytes.trim_ascii();
    if key.len() < KEY_BYTES_MIN {
        return Err(format!("{at} has {} bytes, which could be guessed: use at least {KEY_BYTES_MIN}", key.len()));
    }
    if key.len() > engine::consumers::KEY_BYTES_MAX || !key.iter().all(u8::is_ascii_graphic) {
        return Err(format!("{at} is no key: use up to {} visible characters", engine::consumers::KEY_BYTES_MAX));
    }
    let told = key.iter().take(TOLD_BYTES).map(|byte| *byte as char).filter(|letter| letter.is_ascii_alphanumeric()).collect();
    Ok((digest(key), told))
}

/// The hash of a password in a Secret.
///
/// # Errors
/// There is none, or it is none that holds.
pub(super) fn password_in(world: &World, at: &ContentRef) -> Result<String, String> {
    let bytes = world.content(at).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(bytes.trim_ascii()).map_err(|_| format!("{at} is no text"))?;
    basic::check_password(text).map_err(|why| format!("{at} {why}"))?;
    Ok(text.to_owned())
}

/// What a credential is known by, whoever has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Known {
    Key(Digest),
    User(String),
    Token(String, BTreeMap<String, String>),
    Certificate(CredentialName),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum CredentialName {
    Uri(String),
    Dns(String),
    Hash(Digest),
}

/// Found once per world.
pub(in crate::translate) fn claims(world: &World) -> &Claims {
    world.index().claims.get_or_init(|| Arc::new(find(world, CREDENTIALS_MAX)))
}

/// Among whom a credential is one consumer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Among<'a> {
    /// Proxies find a key or a certificate before they know by which object.
    Everybody,
    /// Whom objects with one choice may use.
    Chosen(u32),
    /// Nobody uses it.
    Itself(&'a ObjectKey),
}

/// Who or what takes of the room for credentials.
#[derive(Clone, Copy)]
enum Claimant<'a> {
    Consumer(&'a Object),
    Users(&'a ContentRef),
}

/// All of them, the oldest first. A file is as old as the oldest object that refers to it.
fn claimants<'a>(world: &World, index: &'a Index) -> Vec<Claimant<'a>> {
    let mut files: BTreeMap<&ContentRef, i64> = BTreeMap::new();
    for object in index.edge.values().flatten() {
        if let Spec::BasicAuth(spec) = &object.spec
            && let Some(at) = &spec.users
        {
            let age = world.created_ms(object);
            files.entry(at).and_modify(|known| *known = age.min(*known)).or_insert(age);
        }
    }
    let consumers = index.consumers.values().flatten();
    let consumers = consumers.map(|object| ((world.created_ms(object), object.key.path()), Claimant::Consumer(object)));
    let files = files.into_iter().map(|(at, age)| ((age, basic::file_name(at)), Claimant::Users(at)));
    let mut all: Vec<_> = consumers.chain(files).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all.into_iter().map(|(_, claimant)| claimant).collect()
}

/// Among whom a consumer's name, or what its tokens say, is its own.
fn among<'a>(together: &Together, object: &'a Object) -> Vec<Among<'a>> {
    let found: Vec<Among<'a>> = together.taking(object).into_iter().map(Among::Chosen).collect();
    if found.is_empty() { vec![Among::Itself(&object.key)] } else { found }
}

/// Who has what, of so many credentials at most, those of files included.
pub(super) fn find(world: &World, most: usize) -> Claims {
    let index = world.index();
    let claimants = claimants(world, index);
    if claimants.is_empty() {
        return Claims::default();
    }
    let of_users = Together::of(index, |object| match &object.spec {
        Spec::BasicAuth(spec) => Some(chosen(index, object, &spec.consumers.clone().unwrap_or_default())),
        _ => None,
    });
    let of_tokens = Together::of(index, |object| {
        matches!(object.spec, Spec::RequestAuthentication(_) | Spec::OidcLogin(_)).then(|| chosen(index, object, &tokens::choice()))
    });
    let mut owners: HashMap<(Known, Among<'_>), &ObjectKey> = HashMap::new();
    let mut claims = Claims::default();
    let mut room = most;
    for claimant in claimants {
        let object = match claimant {
            Claimant::Consumer(object) => object,
            Claimant::Users(at) => {
                let users = basic::users(world, at);
                if users > room {
                    claims.short.insert(at.clone(), room);
                }
                room = room.saturating_sub(users);
                continue;
            }
        };
        for credential in content(object).into_iter().flat_map(|consumer| &consumer.credentials) {
            let Some(known) = known(world, &credential.kind) else { continue };
            let scopes = match known {
                Known::Key(_) | Known::Certificate(_) => vec![Among::Everybody],
                Known::User(_) => among(&of_users, object),
                Known::Token(..) => among(&of_tokens, object),
            };
            let winner = scopes.iter().find_map(|scope| owners.get(&(known.clone(), *scope)).map(|winner| (*winner).clone()));
            if winner.is_none() && room > 0 {
                room -= 1;
                owners.extend(scopes.into_iter().map(|scope| ((known.clone(), scope), &object.key)));
                continue;
            }
            claims.lost.entry(object.key.clone()).or_default().push((credential.name.clone(), winner));
        }
    }
    claims
}

/// Why some users of a file do not count, for want of room.
pub(super) fn crowded(world: &World, at: &ContentRef) -> Option<String> {
    let room = claims(world).short.get(at)?;
    Some(format!(
        "there are {CREDENTIALS_MAX} older credentials already: of the users of {at} the first {room} count; remove consumers or users that nobody needs"
    ))
}

/// Pages that are otherwise because somebody else has a credential by now, or because there is more room, or less.
pub(in crate::translate) fn contested(before: &World, after: &World) -> BTreeSet<u8> {
    let (was, is) = (claims(before), claims(after));
    if std::ptr::eq(was, is) || was == is {
        return BTreeSet::new();
    }
    let consumers = was.lost.keys().chain(is.lost.keys()).filter(|key| was.lost_of(key) != is.lost_of(key)).map(consumer_page);
    let files = was.short.keys().chain(is.short.keys()).filter(|at| was.room_of(at) != is.room_of(at));
    consumers.chain(files.map(|at| page_of(&basic::file_name(at)))).collect()
}

fn known(world: &World, kind: &CredentialKind) -> Option<Known> {
    Some(match kind {
        CredentialKind::Key { sha256, .. } => Known::Key(*sha256),
        CredentialKind::KeyIn(at) => Known::Key(key_in(world, at).ok()?.0),
        CredentialKind::Basic { username, .. } => Known::User(username.clone()),
        CredentialKind::Jwt { issuer, claims } => Known::Token(issuer.clone(), claims.clone()),
        CredentialKind::CertificateUri(uri) => Known::Certificate(CredentialName::Uri(uri.clone())),
        CredentialKind::CertificateDns(dns) => Known::Certificate(CredentialName::Dns(dns.clone())),
        CredentialKind::CertificateHash(hash) => Known::Certificate(CredentialName::Hash(*hash)),
    })
}

/// Why a Consumer is not what it says: an older one has a credential of it, or there is no room.
pub(in crate::translate) fn refusal(world: &World, object: &Object) -> Option<WhyNot> {
    let lost = claims(world).lost_of(&object.key);
    let (name, winner) = lost.first()?;
    let rest = if lost.len() > 1 { format!(", and {} more likewise", lost.len() - 1) } else { String::new() };
    Some(match winner {
        Some(winner) if *winner == object.key => {
            WhyNot::new("Conflicted", format!("its credential `{name}` stands twice{rest}; the first counts"))
        }
        Some(winner) => {
            WhyNot::new("Conflicted", format!("{winner} is older and has the credential `{name}`{rest}; it does not count here"))
        }
        None => WhyNot::new("Invalid", format!("there are {CREDENTIALS_MAX} older credentials already: `{name}`{rest} does not count")),
    })
}

/// Why the first credential of a Consumer that refers to a Secret does not count; `None`: it refers to none.
pub(in crate::translate) fn resolved(world: &World, consumer: &Consumer) -> Option<Result<(), String>> {
    consumer.refers().next()?;
    let failing = consumer.credentials.iter().find_map(|credential| match &credential.kind {
        CredentialKind::KeyIn(at) => key_in(world, at).err(),
        CredentialKind::Basic { hash, .. } => password_in(world, hash).err(),
        _ => None,
    });
    Some(failing.map_or(Ok(()), Err))
}
