//! Objects that come as text: those that somebody applies, and those that were applied before a restart.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::world::ObjectKey;
use crate::world::list::parts;
use crate::world::object::{Candidate, read};
use crate::world::problem::{Problem, Severity};
use crate::world::tree::documents;

/// Every object of every file with its whole content, and what is wrong with the files.
pub(super) fn read_all(files: &[(String, String)]) -> (Vec<(Candidate, Value)>, Vec<Problem>) {
    let (mut found, mut problems) = (Vec::<(Candidate, Value)>::new(), Vec::new());
    let mut places: BTreeMap<ObjectKey, (String, u32)> = BTreeMap::new();
    for (file, text) in files {
        for document in documents(text) {
            let parts = match document {
                Ok(node) => parts(file, node),
                Err(error) => {
                    problems.push(Problem::of_file(Severity::Error, file, error.line, error.message, "correct the text"));
                    continue;
                }
            };
            for part in parts {
                let read = part.and_then(|part| read(file, &part).map(|candidate| (candidate, part.node.json())));
                match read {
                    Err(problem) => problems.push(*problem),
                    Ok((candidate, whole)) => {
                        problems.extend(candidate.problems.iter().cloned());
                        if let Some((first, line)) = places.get(&candidate.key) {
                            let message = format!("{} was given before, in {first}:{line}", candidate.key);
                            problems.push(Problem::of_file(Severity::Error, file, candidate.line, message, "remove one of them"));
                        } else {
                            places.insert(candidate.key.clone(), (file.clone(), candidate.line));
                            found.push((candidate, whole));
                        }
                    }
                }
            }
        }
    }
    (found, problems)
}

/// One object from the book, if it still reads as a good one.
pub(super) fn parse_one(file: &str, object: &Value) -> Option<Candidate> {
    // JSON is YAML: the same door reads both.
    let node = documents(&object.to_string()).into_iter().next()?.ok()?;
    let part = parts(file, node).into_iter().next()?.ok()?;
    read(file, &part).ok().filter(|candidate| candidate.object.is_some())
}
