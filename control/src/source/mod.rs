//! Where objects come from: the text of manifests, the folder that holds them, and clusters.

pub mod cluster;
mod folder;
mod watch;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

pub use folder::{FileChange, Folder};
pub use watch::{Watch, load};

use crate::world::ObjectKey;
use crate::world::list::parts;
use crate::world::object::{Candidate, read};
use crate::world::problem::{Problem, Severity};
use crate::world::tree::documents;

/// What a file's text holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Every document that names an object, in order, the same object at most once.
    pub candidates: Vec<Candidate>,
    /// Problems that belong to no object.
    pub problems: Vec<Problem>,
    /// Whether some document could not even be told to be which object: what is missing may be in there.
    pub unclear: bool,
    /// First line of each object found so far.
    lines: BTreeMap<ObjectKey, u32>,
}

/// Reads a file's text: YAML or JSON, one or more documents. Never fails: what is wrong is in the answer.
pub fn parse(file: &str, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for document in documents(text) {
        match document {
            Ok(node) => {
                for part in parts(file, node) {
                    parsed.add(file, part.and_then(|part| read(file, &part)));
                }
            }
            Err(error) => {
                parsed.unclear = true;
                let problem =
                    Problem::of_file(Severity::Error, file, error.line, error.message, "correct the text; the rest of the file is read");
                parsed.problems.push(problem);
            }
        }
    }
    parsed
}

impl Parsed {
    fn add(&mut self, file: &str, read: Result<Candidate, Box<Problem>>) {
        match read {
            Ok(candidate) => match self.lines.entry(candidate.key.clone()) {
                Entry::Vacant(free) => {
                    free.insert(candidate.line);
                    self.candidates.push(candidate);
                }
                Entry::Occupied(first) => {
                    let message = format!("{} stands twice in this file; the one at line {} stays", candidate.key, first.get());
                    self.problems.push(Problem::of_file(Severity::Error, file, candidate.line, message, "remove one of them"));
                }
            },
            Err(problem) => {
                self.unclear |= problem.severity == Severity::Error;
                self.problems.push(*problem);
            }
        }
    }
}
