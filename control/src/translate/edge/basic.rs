//! BasicAuth as proxies are told.

use std::time::Duration;

use proto::mesh::{self, PasswordCredential, UserFile};

use super::api_key::choice_of;
use super::ladder::{Held, Rung};
use crate::world::content::ContentRef;
use crate::world::edge::{BasicAuth, FailureLimit, FilledHeader};
use crate::world::{Index, Kind, Object, Spec, World};

/// How long a verified pair is remembered where nobody says so.
const REMEMBERED: Duration = Duration::from_secs(60);
/// What clients show to their users where nobody says so.
const REALM: &str = "meshwright";
/// Most users of one file.
const USERS_MAX: usize = 10_000;

impl Rung for BasicAuth {
    const KIND: Kind = Kind::BasicAuth;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::BasicAuth(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        let Self { attachment: _, optional, consumers, users, realm, remembered, failures, scopes, forward } = self;
        let set = [
            ("mode", optional.is_some()),
            ("consumers", consumers.is_some()),
            ("users", users.is_some()),
            ("realm", realm.is_some()),
            ("verifyCache", remembered.is_some()),
            ("failures", failures.is_some()),
            ("scopes", scopes.is_some()),
            ("forward.credential", forward.keep.is_some()),
            ("forward.headers", forward.headers.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        match field {
            "mode" => self.optional = other.optional,
            "consumers" => self.consumers.clone_from(&other.consumers),
            "users" => self.users.clone_from(&other.users),
            "realm" => self.realm.clone_from(&other.realm),
            "verifyCache" => self.remembered = other.remembered,
            "failures" => self.failures.clone_from(&other.failures),
            "scopes" => self.scopes.clone_from(&other.scopes),
            "forward.credential" => self.forward.keep = other.forward.keep,
            _ => self.forward.headers.clone_from(&other.forward.headers),
        }
    }
}

/// What holds, defaults filled in.
pub(super) fn sent(index: &Index, held: &Held<'_, BasicAuth>) -> mesh::BasicAuth {
    let BasicAuth { attachment: _, optional, consumers, users, realm, remembered, failures, scopes, forward } = &held.says;
    let limit = |limit: &FailureLimit| mesh::FailureLimit {
        per_minute: limit.per_minute,
        client_address: limit.address.is_some(),
        ipv6_prefix: limit.address.unwrap_or_default().into(),
        username: limit.user,
    };
    mesh::BasicAuth {
        policy: held.by.first().map(|object| object.key.path()).unwrap_or_default(),
        optional: optional.unwrap_or_default(),
        consumers: Some(choice_of(index, held, consumers.as_ref())),
        users: users.as_ref().map(file_name).unwrap_or_default(),
        realm: realm.clone().unwrap_or_else(|| REALM.to_owned()),
        remembered: prost_types::Duration::try_from(remembered.unwrap_or(REMEMBERED)).ok(),
        failures: failures.clone().unwrap_or_else(|| Some(FailureLimit::default())).as_ref().map(limit),
        scopes: scopes.clone().unwrap_or_default(),
        keep: forward.keep.unwrap_or_default(),
        headers: forward.headers.iter().flatten().map(FilledHeader::sent).collect(),
    }
}

/// What proxies know a file of users by.
pub(super) fn file_name(at: &ContentRef) -> String {
    format!("{}/{}/{}", at.object.namespace, at.object.name, at.key)
}

/// The users of a file (htpasswd: `NAME:HASH`, one a line), as many as there is room for. Lines that cannot be taken let nobody in.
pub(super) fn file(world: &World, at: &ContentRef, room: usize) -> UserFile {
    let users = lines(world, at).into_iter().flatten().filter_map(Result::ok).take(USERS_MAX.min(room));
    UserFile { name: file_name(at), users: users.map(|(username, hash)| PasswordCredential { username, hash }).collect() }
}

/// How many users of a file proxies are told, where there is room.
pub(super) fn users(world: &World, at: &ContentRef) -> usize {
    lines(world, at).into_iter().flatten().filter(Result::is_ok).take(USERS_MAX).count()
}

/// Why a file, or its first line that cannot be taken, lets nobody in.
pub(super) fn fault(world: &World, at: &ContentRef) -> Option<String> {
    match lines(world, at) {
        Err(why) => Some(why),
        Ok(lines) if lines.len() > USERS_MAX => Some(format!("{at} has more than {USERS_MAX} users; those beyond are left out")),
        Ok(lines) => lines.into_iter().find_map(Result::err).map(|why| format!("{at}, {why}")),
    }
}

type Line = Result<(String, String), String>;

fn lines(world: &World, at: &ContentRef) -> Result<Vec<Line>, String> {
    let bytes = world.content(at).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{at} is no text"))?;
    let line = |(number, line): (usize, &str)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let Some((user, hash)) = line.split_once(':') else { return Some(Err(format!("line {}: it is not NAME:HASH", number + 1))) };
        Some(match check_password(hash.trim()) {
            Ok(()) => Ok((user.to_owned(), hash.trim().to_owned())),
            Err(why) => Err(format!("line {}: the hash {why}", number + 1)),
        })
    };
    Ok(text.lines().enumerate().filter_map(line).collect())
}

/// Judges a hash as the proxy would.
pub(super) fn check_password(hash: &str) -> Result<(), String> {
    engine::consumers::check_password_hash(hash)
}
