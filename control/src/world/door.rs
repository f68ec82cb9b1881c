//! The door: how a tree of text becomes types that cannot be wrong. Whoever reads a mapping asks for each field by name; what
//! nobody asked for is unknown, and is reported with the nearest name that somebody did ask for.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::key::ObjectKey;
use super::problem::{Problem, Severity, nearest};
use super::tree::{Node, Value};

/// Who has judged an object before us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Nobody: a word that we do not know is a slip.
    Nobody,
    /// The API server that keeps it: a word of a standard kind that we do not know is a newer version's.
    ApiServer,
}

/// One object at the door: collects what is wrong with it.
pub(super) struct Intake<'a> {
    file: &'a str,
    key: ObjectKey,
    judge: Judge,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(file: &'a str, key: ObjectKey, judge: Judge) -> Self {
        Self { file, key, judge, problems: RefCell::default() }
    }

    pub(super) fn problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    fn report(&self, severity: Severity, line: u32, field: &str, message: String, remedy: String) {
        self.problems.borrow_mut().push(Problem::of_object(severity, (self.file, line), &self.key, field, message, remedy));
    }
}

/// One value and the way to it.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    node: &'a Node,
    path: String,
    door: &'a Intake<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(node: &'a Node, path: impl Into<String>, door: &'a Intake<'a>) -> Self {
        Self { node, path: path.into(), door }
    }

    pub(super) fn line(&self) -> u32 {
        self.node.line
    }

    /// Whether text stands here, for fields that take text or a number.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Text(_))
    }

    /// Whether an empty text stands here.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.node.value, Value::Text(text) if text.is_empty())
    }

    /// Whether something is so wrong with the object that it is refused.
    pub(super) fn refused(&self) -> bool {
        self.door.problems.borrow().iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether a list stands here.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// Whether fields stand here.
    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// Whether a field of that name stands here.
    pub(super) fn has(&self, field: &str) -> bool {
        self.node.get(field).is_some()
    }

    /// The object being read.
    pub(super) fn key(&self) -> &'a ObjectKey {
        &self.door.key
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn error(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.door.report(Severity::Error, self.node.line, &self.path, message.into(), remedy.into());
    }

    pub(super) fn warn(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.door.report(Severity::Warning, self.node.line, &self.path, message.into(), remedy.into());
    }

    /// For a word of a standard kind that is not in the published schema that we know.
    pub(super) fn unknown(&self, message: impl Into<String>, remedy: impl Into<String>) {
        if self.door.judge == Judge::ApiServer && !self.door.key.kind.own() {
            self.warn(message, "this version does not know it; it has no effect");
        } else {
            self.error(message, remedy);
        }
    }

    pub(super) fn info(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.door.report(Severity::Info, self.node.line, &self.path, message.into(), remedy.into());
    }

    /// For a field that exists in the published schema and has no effect here.
    pub(super) fn unsupported(&self) {
        self.error("not supported by this version", "remove it");
    }

    fn mismatch(&self, wanted: &str) {
        let remedy = match &self.node.value {
            Value::Int(_) | Value::Float(_) | Value::Bool(_) if wanted == "text" => "put it in quotes",
            _ => "",
        };
        self.error(format!("expected {wanted}, found {}", self.node.noun()), remedy);
    }

    pub(super) fn text(&self) -> Option<String> {
        let Value::Text(text) = &self.node.value else {
            self.mismatch("text");
            return None;
        };
        Some(text.clone())
    }

    pub(super) fn int(&self, range: RangeInclusive<i64>) -> Option<i64> {
        match &self.node.value {
            Value::Int(number) if range.contains(number) => Some(*number),
            Value::Int(number) => {
                self.error(format!("{number} is out of range"), format!("use {} to {}", range.start(), range.end()));
                None
            }
            _ => {
                self.mismatch("a whole number");
                None
            }
        }
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.int(1..=65535).and_then(|port| u16::try_from(port).ok())
    }

    /// What stands below, by field names joined by dots; as deep as there is something: to report at.
    pub(super) fn below(&self, path: &str) -> Self {
        let mut at = self.clone();
        for name in path.split('.') {
            let Some(node) = at.node.get(name) else { break };
            at = Self { node, path: format!("{}.{name}", at.path), door: at.door };
        }
        at
    }

    /// A number, fractions allowed.
    pub(super) fn number(&self) -> Option<f64> {
        match &self.node.value {
            #[allow(clippy::cast_precision_loss, reason = "whoever asks checks a range in which there is no loss")]
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => {
                self.mismatch("a number");
                None
            }
        }
    }

    /// A number 0 to 100, fractions allowed.
    pub(super) fn percent(&self) -> Option<f64> {
        let number = self.number()?;
        if !(0.0..=100.0).contains(&number) {
            self.error(format!("{number} is no percentage"), "use 0 to 100");
            return None;
        }
        Some(number)
    }

    pub(super) fn flag(&self) -> Option<bool> {
        let Value::Bool(flag) = &self.node.value else {
            self.mismatch("true or false");
            return None;
        };
        Some(*flag)
    }

    /// A Gateway API duration (GEP-2257): up to four numbers with a unit, no fractions.
    pub(super) fn duration(&self) -> Option<Duration> {
        let text = self.text()?;
        let parsed = duration(&text);
        if parsed.is_none() {
            self.error(format!("`{text}` is no duration"), "write numbers with h, m, s or ms, such as 1h30m or 150ms");
        }
        parsed
    }

    /// A moment (RFC 3339), milliseconds since 1970.
    pub(super) fn timestamp(&self) -> Option<i64> {
        let text = self.text()?;
        let Ok(parsed) = time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339) else {
            self.error(format!("`{text}` is no time"), "write it as 2026-01-31T12:00:00Z");
            return None;
        };
        i64::try_from(parsed.unix_timestamp_nanos() / 1_000_000).ok()
    }

    /// One of a closed set of words; anything else is an error that names the nearest.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let all = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let remedy =
            nearest(&text, words.iter().map(|(word, _)| *word)).map_or(format!("one of {all}"), |word| format!("did you mean `{word}`?"));
        self.unknown(format!("unknown value `{text}`"), remedy);
        None
    }

    /// The items of a list of at most `max`.
    pub(super) fn list(&self, max: usize) -> Vec<Self> {
        let Value::List(items) = &self.node.value else {
            self.mismatch("a list");
            return Vec::new();
        };
        if items.len() > max {
            self.error(format!("{} items", items.len()), format!("at most {max} are allowed"));
        }
        let items = items.iter().take(max).enumerate();
        items.map(|(index, node)| Self { node, path: format!("{}[{index}]", self.path), door: self.door }).collect()
    }

    pub(super) fn texts(&self, max: usize) -> Vec<String> {
        self.list(max).iter().filter_map(Self::text).collect()
    }

    /// A mapping with free keys.
    pub(super) fn entries(&self) -> Vec<(&'a str, Self)> {
        let Value::Map(entries) = &self.node.value else {
            self.mismatch("a mapping");
            return Vec::new();
        };
        let entry =
            |(name, node): &'a (String, Node)| (name.as_str(), Self { node, path: format!("{}.{name}", self.path), door: self.door });
        entries.iter().map(entry).collect()
    }

    pub(super) fn text_map(&self) -> std::collections::BTreeMap<String, String> {
        self.entries().into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.text()?))).collect()
    }

    /// A mapping with known keys.
    pub(super) fn fields(&self) -> Fields<'a> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            _ => {
                self.mismatch("a mapping");
                &[]
            }
        };
        Fields { at: self.clone(), entries, asked: Vec::new() }
    }
}

/// A mapping while it is read.
pub(super) struct Fields<'a> {
    at: Cursor<'a>,
    entries: &'a [(String, Node)],
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The mapping itself, to report at.
    pub(super) fn at(&self) -> &Cursor<'a> {
        &self.at
    }

    /// A label of the object, where this mapping is the whole document.
    pub(super) fn label(&self, name: &str) -> Option<String> {
        self.at.node.get("metadata")?.get("labels")?.get(name)?.text().map(str::to_owned)
    }

    /// A field that may be absent (null counts as absent).
    pub(super) fn get(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        self.asked.push(name);
        let (_, node) = self.entries.iter().find(|(key, node)| key == name && node.value != Value::Null)?;
        Some(self.child(name, node))
    }

    /// Whether a field is there, read or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, node)| key == name && node.value != Value::Null)
    }

    /// A field that must be there.
    pub(super) fn need(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        let found = self.get(name);
        if found.is_none() {
            self.at.error(format!("`{name}` is missing"), format!("add `{name}`"));
        }
        found
    }

    /// Fields of the published schema that mean nothing to a mesh.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        self.asked.extend_from_slice(names);
    }

    /// Fields of the published schema that would mean something, and do not yet.
    pub(super) fn unsupported(&mut self, names: &[&'static str]) {
        for name in names {
            if let Some(field) = self.get(name) {
                field.unsupported();
            }
        }
    }

    /// The same in a standard kind, where the object stays in force without them: a line for `analyze`.
    pub(super) fn without(&mut self, names: &[&'static str]) {
        for name in names {
            if let Some(field) = self.get(name) {
                field.warn("not supported by this version; it has no effect", "remove it");
            }
        }
    }

    /// Reports every field that nobody asked for: an error in our own kinds, a warning in the standard ones.
    pub(super) fn done(self) {
        let severity = if self.at.door.key.kind.own() { Severity::Error } else { Severity::Warning };
        for (name, node) in self.entries {
            if self.asked.contains(&name.as_str()) {
                continue;
            }
            let meant = nearest(name, self.asked.iter().copied());
            let remedy = meant.map_or_else(|| "remove it".to_owned(), |meant| format!("did you mean `{meant}`?"));
            let shown: String = name.chars().take(80).collect();
            self.at.door.report(severity, node.line, &self.child(name, node).path, format!("unknown field `{shown}`"), remedy);
        }
    }

    fn child(&self, name: &str, node: &'a Node) -> Cursor<'a> {
        let path = if self.at.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at.path) };
        Cursor { node, path, door: self.at.door }
    }
}

/// GEP-2257: `^([0-9]{1,5}(h|m|s|ms)){1,4}$`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, millis) =
            [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)].into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * millis);
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

/// A DNS label (RFC 1123): what names of Services and namespaces must be.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels joined by dots: what names of other objects must be.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_the_grammar() {
        // Aim: GEP-2257, no more and no less.
        for (text, millis) in [
            ("1h30m", 5_400_000),
            ("150ms", 150),
            ("0s", 0),
            ("10s500ms", 10_500),
            ("5ms1h", 3_600_005),
            ("1s1s", 2_000),
            ("0ms", 0),
            ("87600h", 315_360_000_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "0", "1", "1.5s", "-1s", "1us", "123456s", "1h1m1s1ms1h", "s", "1 s", "\u{661}s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}|([0-9]{1,6}(h|m|s|ms|x)?){0,6}|[a-z0-9.-]{0,300}") {
            // Aim: no duration or name makes it panic.
            let _ = (duration(&text), is_label(&text));
            proptest::prop_assert!(!is_label(&text) || is_subdomain(&text));
        }
    }
}
