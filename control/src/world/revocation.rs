//! Whose word counts no more: identities, and single certificates by serial number.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use proto::annotations::ROOT_NAMESPACE;
use proto::identity::Identity;

use super::door::{Cursor, Fields};
use super::key::ObjectKey;

/// Identities, and serial numbers, that one object revokes at most.
const ENTRIES_MAX: usize = 1000;
/// Identities, and serial numbers, that all objects together revoke at most: every proxy holds them all.
const REVOKED_MAX: usize = 10_000;
/// Bytes of a serial number; RFC 5280, section 4.1.2.2.
const SERIAL_BYTES_MAX: usize = 20;

/// The content of a Revocation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Revocation {
    /// Revoked with every certificate, present and future.
    pub identities: BTreeSet<Identity>,
    /// Revoked certificates: lower-case hex without leading zeros.
    pub serials: BTreeSet<String>,
    /// From then on they count again, seconds since 1970; `None`: never.
    pub until_secs: Option<u64>,
}

impl Revocation {
    pub(super) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self::default();
        if fields.at().key().namespace != ROOT_NAMESPACE {
            let remedy = format!("put it into namespace `{ROOT_NAMESPACE}`");
            fields.at().error("whom the mesh believes is decided in its root namespace only", remedy);
        }
        let (identities, serials) = (fields.get("identities"), fields.get("serials"));
        if identities.is_none() && serials.is_none() {
            fields.at().error("it revokes nothing", "add `identities` or `serials`");
        }
        for at in identities.map(|at| at.list(ENTRIES_MAX)).unwrap_or_default() {
            read.identities.extend(identity(&at));
        }
        for at in serials.map(|at| at.list(ENTRIES_MAX)).unwrap_or_default() {
            read.serials.extend(serial(&at));
        }
        if let Some(at) = fields.get("until") {
            read.until_secs = at.timestamp().map(|ms| u64::try_from(ms / 1000).unwrap_or(0));
        }
        fields.done();
        Some(read)
    }
}

/// Who revokes something, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// The object.
    pub object: ObjectKey,
    /// See [`Revocation::until_secs`].
    pub until_secs: Option<u64>,
}

impl Sentence {
    /// Whether it is still in force.
    pub fn holds(&self, now_secs: u64) -> bool {
        self.until_secs.is_none_or(|until| now_secs < until)
    }

    fn outlasts(&self, other: &Self) -> bool {
        self.until_secs.unwrap_or(u64::MAX) > other.until_secs.unwrap_or(u64::MAX)
    }
}

/// All that is revoked. Where several objects revoke the same, the one that holds longest counts, of equals the oldest.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// By identity.
    pub identities: BTreeMap<Identity, Sentence>,
    /// By serial number, as [`proto::identity::serial`] spells it.
    pub serials: BTreeMap<String, Sentence>,
    /// Objects that are not in force because those before them revoke as much as may be.
    pub excess: BTreeSet<ObjectKey>,
}

impl Revoked {
    /// Joins Revocations, the oldest first.
    pub(super) fn of<'r>(objects: impl Iterator<Item = (&'r ObjectKey, &'r Revocation)>) -> Self {
        let mut revoked = Self::default();
        for (key, spec) in objects {
            let full = |held: usize, more: usize| held + more > REVOKED_MAX;
            if full(revoked.identities.len(), spec.identities.len()) || full(revoked.serials.len(), spec.serials.len()) {
                revoked.excess.insert(key.clone());
                continue;
            }
            let sentence = Sentence { object: key.clone(), until_secs: spec.until_secs };
            spec.identities.iter().for_each(|identity| longest(revoked.identities.entry(identity.clone()), &sentence));
            spec.serials.iter().for_each(|serial| longest(revoked.serials.entry(serial.clone()), &sentence));
        }
        revoked
    }

    /// What revokes an identity, or the certificate of that serial number (any spelling), at that moment.
    pub fn find(&self, identity: &Identity, serial: &str, now_secs: u64) -> Option<&Sentence> {
        let found = [self.identities.get(identity), self.serials.get(proto::identity::serial(serial))];
        found.into_iter().flatten().find(|sentence| sentence.holds(now_secs))
    }
}

fn longest<K: Ord>(entry: Entry<'_, K, Sentence>, sentence: &Sentence) {
    let held = entry.or_insert_with(|| sentence.clone());
    if sentence.outlasts(held) {
        *held = sentence.clone();
    }
}

fn identity(at: &Cursor<'_>) -> Option<Identity> {
    let text = at.text()?;
    match text.parse::<Identity>() {
        Ok(identity) if identity.is_control_plane() => {
            at.error("this is the control plane, which would no longer reach any proxy", "remove it; `ca rotate-root` ends leaked keys");
            None
        }
        Ok(identity) => Some(identity),
        Err(error) => {
            at.error(error.to_string(), "write the whole SPIFFE identity, without `*`");
            None
        }
    }
}

/// Hex, in capitals or not, with or without colons, as tools print it.
fn serial(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let digits: String = text.chars().filter(|letter| *letter != ':').map(|letter| letter.to_ascii_lowercase()).collect();
    let good = !digits.is_empty() && digits.len() <= 2 * SERIAL_BYTES_MAX + 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !good {
        let shown: String = text.chars().take(80).collect();
        at.error(format!("`{shown}` is no serial number"), "write it in hex, as `meshwright get certs` shows it");
        return None;
    }
    Some(proto::identity::serial(&digits).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::{Kind, Spec};

    fn read(namespace: &str, spec: &str) -> Result<Revocation, String> {
        let text = format!(
            "apiVersion: meshwright.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: r, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        );
        let candidate = parse("f.yaml", &text).candidates.remove(0);
        match candidate.object.as_ref().map(|object| &object.spec) {
            Some(Spec::Revocation(revocation)) => Ok(revocation.clone()),
            _ => Err(candidate.problems.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_revocation_is_read_as_tools_print_it() {
        // Aim: serial numbers in every usual spelling are one number; the end is a moment, and before it the revocation holds.
        let identities = "identities: ['spiffe://cluster.local/ns/shop/sa/old']";
        let revocation =
            read(ROOT_NAMESPACE, &format!("{identities}, serials: ['00:7D:35', '7d35'], until: 2027-01-01T00:00:00Z")).unwrap();
        assert_eq!(revocation.serials.iter().collect::<Vec<_>>(), ["7d35"]);
        assert_eq!(revocation.identities.len(), 1);
        assert_eq!(revocation.until_secs, Some(1_798_761_600));
    }

    #[test]
    fn the_longest_revocation_counts_and_ends_by_the_clock() {
        // Aim: two objects about one identity add up to the longer; the clock alone ends it; any spelling of a number finds it; objects
        // beyond the bound are left out whole.
        let object = |name: &str, spec: Revocation| (ObjectKey::new(Kind::Revocation, ROOT_NAMESPACE, name), spec);
        let joined = |objects: &[(ObjectKey, Revocation)]| Revoked::of(objects.iter().map(|(key, spec)| (key, spec)));
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/old".parse().unwrap();
        let other: Identity = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
        let until = |until_secs| Revocation { identities: [identity.clone()].into(), until_secs, ..Revocation::default() };
        let serials = |serials: Vec<String>| Revocation { serials: serials.into_iter().collect(), ..Revocation::default() };
        let many = |name: &str, from: usize, count: usize| object(name, serials((from..from + count).map(|n| format!("{n}")).collect()));
        let revoked = joined(&[object("a", until(Some(100))), object("b", until(Some(200))), many("c", 1, 1)]);
        let by = |identity: &Identity, serial, now| revoked.find(identity, serial, now).map(|sentence| sentence.object.name.as_str());
        assert_eq!((by(&identity, "9", 150), by(&identity, "9", 199), by(&identity, "9", 200)), (Some("b"), Some("b"), None));
        assert_eq!((by(&other, "9", 0), by(&other, "0001", u64::MAX)), (None, Some("c")));
        let revoked = joined(&[many("a", 1, REVOKED_MAX - 1), many("b", REVOKED_MAX, 2), many("c", REVOKED_MAX, 1)]);
        assert_eq!(revoked.serials.len(), REVOKED_MAX);
        assert_eq!(revoked.excess.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        // Aim: the wrong place, nothing, no identity, a pattern, no number, no time and the control plane itself: each told with its remedy.
        for (namespace, spec, why) in [
            ("shop", "serials: ['7d']", "in its root namespace only"),
            (ROOT_NAMESPACE, "", "it revokes nothing"),
            (ROOT_NAMESPACE, "identities: ['*/sa/old']", "spec.identities[0]"),
            (ROOT_NAMESPACE, "identities: ['spiffe://cluster.local/ns/shop/sa/*']", "without `*`"),
            (ROOT_NAMESPACE, "identities: ['spiffe://x/ns/meshwright-system/sa/control']", "no longer reach any proxy"),
            (ROOT_NAMESPACE, "serials: ['7g']", "`7g` is no serial number"),
            (ROOT_NAMESPACE, "serials: ['']", "is no serial number"),
            (ROOT_NAMESPACE, "serials: ['7d'], until: tomorrow", "`tomorrow` is no time"),
            (ROOT_NAMESPACE, "serials: ['7d'], util: 2027-01-01T00:00:00Z", "did you mean `until`?"),
            (ROOT_NAMESPACE, &format!("serials: [{}]", "'7d',".repeat(ENTRIES_MAX + 1)), "at most 1000 are allowed"),
        ] {
            let problems = read(namespace, spec).unwrap_err();
            assert!(problems.contains(why), "wanted `{why}` in `{problems}`");
        }
    }
}
