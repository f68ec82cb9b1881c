//! From a reference to what stands there: contents of Secrets and ConfigMaps in the versions in force, and their bound.

use super::World;
use super::content::{ContentError, ContentRef, Contents, KeptBytes};
use super::key::Kind;
use super::object::{Candidate, Spec};
use super::problem::{Problem, Severity};

/// Bytes of all objects' entries together, at most.
const WORLD_BYTES_MAX: usize = 64 * 1024 * 1024;

impl World {
    /// What stands at `at`, in the version in force.
    ///
    /// # Errors
    /// There is no such object or entry; the text says which.
    pub fn content(&self, at: &ContentRef) -> Result<KeptBytes, ContentError> {
        const SHOWN: usize = 5;
        let contents = self.get(&at.object).and_then(|object| contents(&object.spec));
        let contents = contents.ok_or_else(|| ContentError::NoObject(at.object.clone()))?;
        contents.entries.get(&at.key).cloned().ok_or_else(|| ContentError::NoEntry {
            object: at.object.clone(),
            key: at.key.clone(),
            others: contents.entries.keys().take(SHOWN).cloned().collect(),
        })
    }
}

impl World {
    /// Names of the entries of a Secret or ConfigMap in force.
    pub fn entries(&self, object: &super::key::ObjectKey) -> Vec<String> {
        let contents = self.get(object).and_then(|object| contents(&object.spec));
        contents.map(|contents| contents.entries.keys().cloned().collect()).unwrap_or_default()
    }
}

fn contents(spec: &Spec) -> Option<&Contents> {
    match spec {
        Spec::Secret(contents) | Spec::ConfigMap(contents) => Some(contents),
        _ => None,
    }
}

fn bytes(candidate: &Candidate) -> usize {
    candidate.object.as_ref().and_then(|object| contents(&object.spec)).map_or(0, Contents::bytes)
}

/// Refuses a version whose contents would be too much for the world.
pub(super) fn bounded(world: &World, mut candidate: Candidate) -> Candidate {
    let added = bytes(&candidate);
    if added == 0 {
        return candidate;
    }
    let others = [Kind::Secret, Kind::ConfigMap].into_iter().flat_map(|kind| world.of_kind(kind)).filter(|(key, _)| **key != candidate.key);
    let held: usize = others.flat_map(|(_, slot)| slot.good()).map(|version| bytes(version)).sum();
    if held + added > WORLD_BYTES_MAX {
        let message = format!("all Secrets and ConfigMaps together would hold more than {WORLD_BYTES_MAX} bytes");
        let place = (candidate.file.as_str(), candidate.line);
        let remedy = "remove those that nothing in the mesh refers to";
        candidate.problems.push(Problem::of_object(Severity::Error, place, &candidate.key, "", message, remedy));
        candidate.object = None;
    }
    candidate
}

#[cfg(test)]
mod tests {
    use super::WORLD_BYTES_MAX;
    use crate::source::parse;
    use crate::world::content::{ContentRef, OBJECT_BYTES_MAX};
    use crate::world::{Allocations, Change, Kind, ObjectKey, Origin, World, WorldSettings};

    fn put(world: &mut World, text: &str) -> Vec<String> {
        let changes =
            parse("f.yaml", text).candidates.into_iter().map(|candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: 0 });
        let changes = changes.collect();
        world.apply(changes).problems.iter().map(ToString::to_string).collect()
    }

    fn world() -> World {
        World::new(WorldSettings::default(), Allocations::default())
    }

    fn read(world: &World, kind: Kind, name: &str, key: &str) -> Result<String, String> {
        let at = ContentRef { object: ObjectKey::new(kind, "a", name), key: key.to_owned() };
        let content = world.content(&at).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    const BOTH: &str = "\
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: a}
data: {one: 'b25l', two: \"dH\\ndv\", three: b25l}
stringData: {three: drei}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: a}
data: {text: hello}
binaryData: {bytes: AAEC}
";

    #[test]
    fn entries_are_read_as_kubernetes_writes_them() {
        // Aim: both ways of writing, in both kinds; what is not there is named, with what is.
        let mut world = world();
        assert_eq!(put(&mut world, BOTH), Vec::<String>::new());
        let one = |kind, name, key| read(&world, kind, name, key).unwrap();
        assert_eq!(one(Kind::Secret, "s", "one"), "one");
        assert_eq!(one(Kind::Secret, "s", "two"), "two");
        assert_eq!(one(Kind::Secret, "s", "three"), "drei");
        assert_eq!(one(Kind::ConfigMap, "c", "text"), "hello");
        assert_eq!(one(Kind::ConfigMap, "c", "bytes"), "\0\u{1}\u{2}");
        assert_eq!(read(&world, Kind::Secret, "c", "text").unwrap_err(), "there is no Secret a/c");
        assert_eq!(read(&world, Kind::ConfigMap, "c", "x").unwrap_err(), "ConfigMap a/c has no entry `x`; it has bytes, text");
    }

    #[test]
    fn a_change_of_content_is_a_change_and_a_secret_is_never_shown() {
        // Aim: another value is another version of the object; nothing that is printed, stored or sent holds a Secret's value, and a
        // value that cannot be read is refused without being told, the last good one staying.
        let mut world = world();
        let text = |value: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: a}}\ndata: {{k: {value}}}\n");
        put(&mut world, &text("c2VjcmV0b25l"));
        let before = world.slots().values().next().unwrap().live().unwrap().digest.clone();
        put(&mut world, &text("c2VjcmV0dHdv"));
        let live = world.slots().values().next().unwrap().live().unwrap();
        assert_ne!(live.digest, before);
        assert_eq!(read(&world, Kind::Secret, "s", "k").unwrap(), "secrettwo");
        let shown = format!("{world:?} {}", live.raw);
        assert!(!shown.contains("secret") && !shown.contains("c2Vjcm"), "{shown}");
        let problems = put(&mut world, &text("\"%secret%\""));
        assert!(problems.len() == 1 && problems[0].contains("data.k: it is no base64"), "{problems:?}");
        assert!(!problems[0].contains("%secret%"), "{problems:?}");
        assert_eq!(read(&world, Kind::Secret, "s", "k").unwrap(), "secrettwo");
    }

    #[test]
    fn contents_are_bounded() {
        // Aim: neither one object nor all of them hold more than their bound; who is too many is told and holds nothing.
        let large = |name: &str, bytes: usize| {
            let text = "x".repeat(bytes);
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: a}}\ndata: {{k: {text}}}\n")
        };
        let mut world = world();
        let problems = put(&mut world, &large("big", OBJECT_BYTES_MAX + 1));
        assert!(problems[0].contains("it holds 1048577 bytes (at most 1048576 are allowed)"), "{problems:?}");
        for number in 0..WORLD_BYTES_MAX / OBJECT_BYTES_MAX {
            assert_eq!(put(&mut world, &large(&format!("m{number}"), OBJECT_BYTES_MAX)), Vec::<String>::new());
        }
        assert_eq!(put(&mut world, &large("m0", OBJECT_BYTES_MAX - 1)), Vec::<String>::new(), "one that changes counts once");
        let problems = put(&mut world, &large("more", 2));
        assert!(problems[0].contains("remove those that nothing in the mesh refers to"), "{problems:?}");
        assert_eq!(read(&world, Kind::ConfigMap, "more", "k").unwrap_err(), "there is no ConfigMap a/more");
    }
}
