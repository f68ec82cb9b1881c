//! Consumers on their way to a Gateway's proxy: those that its objects can use, in pages by a hash of their names, so that a change of one sends
//! one page. What a key in a Secret is known by is found here; of a credential that several claim the oldest Consumer has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use engine::consumers::{CREDENTIALS_MAX, Digest, digest};
use proto::mesh::{self, CertificateCredential, KeyCredential, PasswordCredential, TokenCredential, certificate_credential, credential};

use super::api_key::chosen;
use super::basic;
use crate::translate::attach::WhyNot;
use crate::translate::usable::Usable;
use crate::world::content::ContentRef;
use crate::world::edge::{Claims, Consumer, ConsumerChoice, Credential, CredentialKind, Namespaces, page_of};
use crate::world::{Index, Name, Object, ObjectKey, Spec, World};

/// Shortest key in a Secret: a shorter one could be guessed.
const KEY_BYTES_MIN: usize = 20;
/// Letters of a key of somebody's own that are told.
const TOLD_BYTES: usize = 4;

/// The content of a Consumer.
pub(in crate::translate) fn content(object: &Object) -> Option<&Consumer> {
    if let Spec::Consumer(consumer) = &object.spec { Some(consumer) } else { None }
}

/// Which consumers a Gateway's objects can use; empty: nobody asks for any.
pub(in crate::translate) fn usable(index: &Index, gateway: &Name) -> Usable {
    let (mut found, mut files, mut secrets) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    if index.edge.is_empty() {
        return Usable::default();
    }
    for place in super::ladder::all_places(index, gateway) {
        for object in index.edge.get(&place).into_iter().flatten() {
            let choice = match &object.spec {
                Spec::ApiKeyAuth(spec) => chosen(index, object, &spec.consumers.clone().unwrap_or_default()),
                Spec::BasicAuth(spec) => {
                    files.extend(spec.users.clone());
                    chosen(index, object, &spec.consumers.clone().unwrap_or_default())
                }
                // A token's consumers may be declared wherever a grant lets them be.
                Spec::RequestAuthentication(_) => {
                    chosen(index, object, &ConsumerChoice { namespaces: Namespaces::All, ..ConsumerChoice::default() })
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
    }
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
    let files = usable.files.iter().filter(|at| on_page(&basic::file_name(at))).map(|at| basic::file(world, at)).collect();
    let lists = usable.lists.iter().filter(|name| on_page(name)).map(|name| super::authorization::list(world, name)).collect();
    let secrets = usable.secrets.iter().filter(|at| on_page(&basic::file_name(at)));
    let secrets = secrets.filter_map(|at| super::limits::password(world, at).ok()).collect();
    let page = mesh::Consumers { consumers, files, lists, secrets };
    (page != mesh::Consumers::default()).then_some(page)
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
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        disabled: consumer.disabled,
        expires_secs: seconds(consumer.expires_ms),
        credentials: credentials.collect(),
    }
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
    world.index().claims.get_or_init(|| Arc::new(find(world)))
}

fn find(world: &World) -> Claims {
    let index = world.index();
    let mut consumers: Vec<_> = index.consumers.values().flatten().collect();
    consumers.sort_by_cached_key(|object| (world.created_ms(object), object.key.path()));
    let mut owners: HashMap<Known, &ObjectKey> = HashMap::new();
    let mut claims = Claims::default();
    for object in consumers {
        for credential in content(object).into_iter().flat_map(|consumer| &consumer.credentials) {
            let Some(known) = known(world, &credential.kind) else { continue };
            let full = owners.len() >= CREDENTIALS_MAX;
            let winner = owners.get(&known).map(|winner| (*winner).clone());
            if winner.is_none() && !full {
                owners.insert(known, &object.key);
                continue;
            }
            claims.lost.entry(object.key.clone()).or_default().push((credential.name.clone(), winner));
        }
    }
    claims
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
