//! What is wrong with a manifest, in the shape that `analyze -o json` prints.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::key::ObjectKey;

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    /// The object (or the part named) is refused.
    Error,
    /// It is in force, but something in it probably does not do what its author wants.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// As the JSON spells it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Error => "Error",
            Self::Warning => "Warning",
            Self::Info => "Info",
        }
    }
}

/// One finding (`kinds.md`, `analyze -o json`). Ordered by file and line, so that sorted output reads top to bottom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file, as it was named to us; empty where an object has none.
    pub file: String,
    /// Line in the file, from 1; 0 where none is meant.
    pub line: u32,
    /// How bad it is.
    pub severity: Severity,
    /// Kind of the object; empty for a file's own problems.
    pub kind: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Path of the field, such as `spec.rules[0].filters[1].type`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(severity: Severity, file: &str, line: u32, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            severity,
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            field: String::new(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// A problem of one object, at one place.
    pub fn of_object(
        severity: Severity,
        (file, line): (&str, u32),
        key: &ObjectKey,
        field: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            kind: key.kind.text().to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            field: field.into(),
            ..Self::of_file(severity, file, line, message, remedy)
        }
    }

    /// Whether it is one of that object.
    pub fn is_of(&self, key: &ObjectKey) -> bool {
        self.kind == key.kind.text() && self.namespace == key.namespace && self.name == key.name
    }
}

impl fmt::Display for Problem {
    /// One line for a terminal: file, line, object, field, what is wrong, what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}", self.file)?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}: ", self.severity.text().to_lowercase())?;
        if !self.kind.is_empty() {
            f.write_str(&self.kind)?;
            if !self.name.is_empty() {
                let slash = if self.namespace.is_empty() { "" } else { "/" };
                write!(f, " {}{slash}{}", self.namespace, self.name)?;
            }
            f.write_str(": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

/// The known word nearest to a wrong one, if one is near enough to be meant: at most a third of its letters differ (at least two).
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(2);
    let lower = wrong.to_lowercase();
    known
        .into_iter()
        .map(|word| (distance(&lower, &word.to_lowercase()), word))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, word)| word)
}

/// Edit distance (insert, delete, replace), over the first 64 letters of each: longer words are no slips of the hand.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_hand_find_their_word() {
        // Aim: a typing error names the word that was meant; a strange word names none.
        let known = ["serviceAccount", "replicas", "command", "ports"];
        for (wrong, meant) in [
            ("serviceaccount", Some("serviceAccount")),
            ("serviceAcount", Some("serviceAccount")),
            ("replica", Some("replicas")),
            ("port", Some("ports")),
            ("comand", Some("command")),
            ("banana", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, known), meant, "{wrong}");
        }
    }
}
