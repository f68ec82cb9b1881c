//! The folder as a set of objects. Pure: texts of files in, [`Change`]s out. It knows which file an object comes from, so that the
//! same object in two files, a file that breaks and a file that goes away each end as one clear change.

use std::collections::{BTreeMap, BTreeSet};

use super::parse;
use crate::world::problem::{Problem, Severity};
use crate::world::{Candidate, Change, ObjectKey, Origin};

/// A file that is new, changed or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// The file, as messages name it.
    pub file: String,
    /// Its text, why it cannot be read, or `None`: it is gone.
    pub text: Option<Result<String, String>>,
}

/// What one file holds.
#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectKey, Candidate>,
    problems: Vec<Problem>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, File>,
    /// The files that hold each object.
    holders: BTreeMap<ObjectKey, BTreeSet<String>>,
    owners: BTreeMap<ObjectKey, String>,
}

impl Folder {
    /// Takes in changed files, all as one step.
    pub fn update(&mut self, changes: Vec<FileChange>, now_ms: i64) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        let mut files = BTreeSet::new();
        for change in changes {
            self.read(&change, &mut touched);
            files.insert(change.file);
        }
        let mut out = Vec::new();
        for key in touched {
            let holders = self.holders.get(&key).cloned().unwrap_or_default();
            // Whoever shares an object must be told anew who has it.
            files.extend(holders.iter().cloned());
            let Some(first) = holders.first().cloned() else {
                self.holders.remove(&key);
                self.owners.remove(&key);
                out.push(Change::Remove { origin: Origin::Folder, key });
                continue;
            };
            // The one already loaded stays; at the start, the first by path.
            let stays = self.owners.get(&key).filter(|owner| holders.contains(*owner)).cloned();
            let owner = stays.unwrap_or(first);
            if let Some(candidate) = self.files.get(&owner).and_then(|file| file.objects.get(&key)) {
                out.push(Change::Put { origin: Origin::Folder, candidate: candidate.clone(), now_ms });
            }
            self.owners.insert(key, owner);
        }
        for name in files {
            let problems = self.problems(&name);
            if self.files.get(&name).is_some_and(|file| file.objects.is_empty() && file.problems.is_empty()) {
                self.files.remove(&name);
            }
            out.push(Change::File { file: name, problems });
        }
        out
    }

    /// Whether a file has what runs and nothing else, as it was and as it is: that is part of nothing, and need not wait for other files.
    pub fn runs(&self, change: &FileChange) -> bool {
        let (Some(Ok(text)), Some(before)) = (&change.text, self.files.get(&change.file)) else { return false };
        let now = parse(&change.file, text);
        let good = now.candidates.iter().all(|candidate| candidate.object.is_some() && candidate.key.kind.runs());
        good && before.objects.keys().all(|key| key.kind.runs()) && before.problems.is_empty() && now.problems.is_empty()
    }

    fn read(&mut self, change: &FileChange, touched: &mut BTreeSet<ObjectKey>) {
        let file = self.files.entry(change.file.clone()).or_default();
        for key in file.objects.keys() {
            touched.insert(key.clone());
            if let Some(holders) = self.holders.get_mut(key) {
                holders.remove(&change.file);
            }
        }
        match &change.text {
            None => *file = File::default(),
            // What cannot be read now keeps what was read before.
            Some(Err(why)) => {
                file.problems =
                    vec![Problem::of_file(Severity::Error, &change.file, 0, why, "its objects stay as they were; make the file readable")];
            }
            Some(Ok(text)) => {
                let parsed = parse(&change.file, text);
                let before = std::mem::take(&mut file.objects);
                file.objects = parsed.candidates.into_iter().map(|candidate| (candidate.key.clone(), candidate)).collect();
                file.problems = parsed.problems;
                if parsed.unclear {
                    // A document that names nothing may be any of those that are missing.
                    for (key, candidate) in before {
                        file.objects.entry(key).or_insert(candidate);
                    }
                }
            }
        }
        for key in file.objects.keys() {
            touched.insert(key.clone());
            self.holders.entry(key.clone()).or_default().insert(change.file.clone());
        }
    }

    fn problems(&self, name: &str) -> Vec<Problem> {
        let Some(file) = self.files.get(name) else { return Vec::new() };
        let mut problems = file.problems.clone();
        for (key, candidate) in &file.objects {
            if let Some(owner) = self.owners.get(key).filter(|owner| *owner != name) {
                let message = format!("the same object stands in {owner}, and that one stays");
                let place = (name, candidate.line);
                problems.push(Problem::of_object(Severity::Error, place, key, "", message, "remove one of them"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Kind, World, WorldSettings};

    fn change(file: &str, text: &str) -> FileChange {
        FileChange { file: file.to_owned(), text: Some(Ok(text.to_owned())) }
    }

    fn account(name: &str, label: &str) -> String {
        format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, labels: {{v: \"{label}\"}}}}\n---\n")
    }

    struct Case {
        folder: Folder,
        world: World,
    }

    impl Case {
        fn new() -> Self {
            Self { folder: Folder::default(), world: World::new(WorldSettings::default(), crate::world::Allocations::default()) }
        }

        /// The labels in force, and the problems, after these files changed.
        fn after(&mut self, changes: Vec<FileChange>) -> (Vec<String>, Vec<String>) {
            self.world.apply(self.folder.update(changes, 1));
            let live = self.world.live().map(|(key, object)| format!("{}={}", key.name, object.metadata.labels["v"])).collect();
            (live, self.world.problems().iter().map(ToString::to_string).collect())
        }
    }

    #[test]
    fn the_object_already_loaded_stays() {
        // Aim: of the same object in two files the loaded one stays, both files are named, and the other takes over when it goes.
        let mut case = Case::new();
        let (live, problems) = case.after(vec![change("d/b.yaml", &account("x", "b")), change("d/c.yaml", &account("x", "c"))]);
        assert_eq!(live, ["x=b"]);
        assert_eq!(
            problems,
            ["d/c.yaml:1: error: ServiceAccount default/x: the same object stands in d/b.yaml, and that one stays (remove one of them)"]
        );
        let (live, problems) = case.after(vec![change("d/a.yaml", &account("x", "a"))]);
        assert_eq!((live, problems.len()), (vec!["x=b".to_owned()], 2));
        let (live, problems) = case.after(vec![FileChange { file: "d/b.yaml".to_owned(), text: None }]);
        assert_eq!((live, problems.len()), (vec!["x=a".to_owned()], 1));
        assert!(problems[0].contains("d/c.yaml") && problems[0].contains("d/a.yaml"));
    }

    #[test]
    fn a_broken_file_keeps_what_it_said() {
        // Aim: broken text, an unreadable file and a refused object leave the last good versions in force and say why.
        let mut case = Case::new();
        case.after(vec![change("a.yaml", &(account("x", "1") + &account("y", "1")))]);
        let (live, problems) = case.after(vec![change("a.yaml", &(account("x", "2") + "kind: [\n"))]);
        assert_eq!(live, ["x=2", "y=1"]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("a.yaml:"), "{problems:?}");
        let (live, problems) = case.after(vec![FileChange { file: "a.yaml".to_owned(), text: Some(Err("permission denied".to_owned())) }]);
        assert_eq!((live.len(), problems.len()), (2, 1));
        let (live, problems) =
            case.after(vec![change("a.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x, labels: {v: 3}}\n")]);
        assert_eq!(live, ["x=2"]);
        assert_eq!(
            problems,
            ["a.yaml:3: error: ServiceAccount default/x: metadata.labels.v: expected text, found a number (put it in quotes)"]
        );
        let key = ObjectKey::new(Kind::ServiceAccount, "default", "x");
        assert!(case.world.slots()[&key].refused().is_some());
        let (live, problems) = case.after(vec![change("a.yaml", &account("x", "four"))]);
        assert_eq!((live, problems.len()), (vec!["x=four".to_owned()], 0));
    }

    #[test]
    fn what_runs_is_told_from_what_is_wanted() {
        // Aim: a file of EndpointSlices is what runs, unless it has, or had, something else, or cannot be read, or is new.
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: n, labels: {kubernetes.io/service-name: s}}\n\
            addressType: IPv4\nendpoints: []\n---\n";
        let mut folder = Folder::default();
        let both = slice.to_owned() + &account("x", "1");
        folder.update(vec![change("a.yaml", slice), change("b.yaml", &both)], 1);
        assert!(folder.runs(&change("a.yaml", &slice.replace("[]", "[{addresses: [10.0.0.1]}]"))));
        let odd = [slice.replace("IPv4", "7"), format!("{slice}kind: ["), both];
        odd.iter().for_each(|text| assert!(!folder.runs(&change("a.yaml", text)), "{text}"));
        for file in ["b.yaml", "c.yaml"] {
            assert!(!folder.runs(&change(file, slice)), "{file}");
        }
        for text in [None, Some(Err("unreadable".to_owned()))] {
            assert!(!folder.runs(&FileChange { file: "a.yaml".to_owned(), text }));
        }
    }
}
