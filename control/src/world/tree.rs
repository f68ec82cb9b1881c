//! YAML (and JSON, which is YAML) as a tree whose every node knows its line. Bounded in every direction, so that no text can
//! make us slow, deep or big.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

/// Largest file we read.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most documents in one file.
pub const DOCUMENTS_MAX: usize = 10_000;
/// Deepest nesting.
const DEPTH_MAX: usize = 64;
/// Most nodes of one document, aliases expanded.
const NODES_MAX: usize = 200_000;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line in the file, from 1; of an entry of a mapping, its key's.
    pub line: u32,
    /// What stands there.
    pub value: Value,
}

/// See [`Node`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file, without repeated keys.
    Map(Vec<(String, Node)>),
}

/// The text of one object, and where it stands in its document.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The text.
    pub node: Node,
    /// `items[3]`; empty: it is the whole document.
    pub place: String,
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line in the file, from 1.
    pub line: u32,
    /// What is wrong there.
    pub message: String,
}

/// Reads every document of a file. Documents are separate: one that cannot be read does not spoil its neighbours. Empty
/// documents are left out.
pub fn documents(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > FILE_BYTES_MAX {
        return vec![Err(SyntaxError { line: 0, message: format!("the file has more than {FILE_BYTES_MAX} bytes") })];
    }
    let mut read = Vec::new();
    for (first_line, chunk) in chunks(text) {
        if chunk.lines().all(|line| matches!(line.trim_start().bytes().next(), None | Some(b'#' | b'%'))) {
            continue;
        }
        parse(first_line, chunk, &mut read);
        if read.len() > DOCUMENTS_MAX {
            read.truncate(DOCUMENTS_MAX);
            read.push(Err(SyntaxError { line: first_line, message: format!("the file has more than {DOCUMENTS_MAX} documents") }));
            break;
        }
    }
    read
}

/// Cuts a stream at its `---` lines. YAML forbids such a line inside any scalar (1.2.2, rule c-forbidden), so no content is cut.
fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut chunks = Vec::new();
    let (mut from, mut from_line, mut offset) = (0, 1, 0);
    for (line, content) in (1_u32..).zip(text.split_inclusive('\n')) {
        let marker = content.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > from {
            chunks.push((from_line, &text[from..offset]));
            (from, from_line) = (offset, line);
        }
        offset += content.len();
    }
    chunks.push((from_line, &text[from..]));
    chunks
}

/// A collection being filled.
enum Unfinished {
    List { line: u32, anchor: usize, items: Vec<Node> },
    Map { line: u32, anchor: usize, entries: Vec<(String, Node)>, key: Option<(String, u32)>, merges: Vec<Node> },
}

/// Builds one chunk's trees from the parser's events.
struct Builder {
    first_line: u32,
    stack: Vec<Unfinished>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

fn parse(first_line: u32, chunk: &str, read: &mut Vec<Result<Node, SyntaxError>>) {
    let mut builder = Builder { first_line, stack: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    for event in Parser::new_from_str(chunk) {
        let (event, line) = match event {
            Ok((event, span)) => (event, builder.line(span.start.line())),
            Err(error) => {
                let line = builder.line(error.marker().line());
                // The error's own text counts lines within the chunk; its kind alone has none.
                read.push(Err(SyntaxError { line, message: error.kind().to_string() }));
                return;
            }
        };
        let done = matches!(event, Event::DocumentEnd);
        if let Err(message) = builder.on(event, line) {
            read.push(Err(SyntaxError { line, message }));
            return;
        }
        if done {
            read.extend(builder.root.take().filter(|node| node.value != Value::Null).map(Ok));
        }
    }
}

impl Builder {
    fn line(&self, in_chunk: usize) -> u32 {
        self.first_line + u32::try_from(in_chunk.saturating_sub(1)).unwrap_or(u32::MAX / 2)
    }

    fn on(&mut self, event: Event<'_>, line: u32) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let core = tag.as_ref().map(|tag| tag.to_string());
                let value = match core.as_deref() {
                    Some("tag:yaml.org,2002:str" | "!") => Value::Text(text.into_owned()),
                    None if style != ScalarStyle::Plain => Value::Text(text.into_owned()),
                    None => plain(&text),
                    Some(tag) if tag.starts_with("tag:yaml.org,2002:") && !tag.ends_with("binary") => plain(&text),
                    Some(tag) => return Err(format!("the tag `{tag}` is not supported")),
                };
                self.add(Node { line, value }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(Unfinished::List { line, anchor, items: Vec::new() }),
            Event::MappingStart(_, anchor, _) => {
                self.open(Unfinished::Map { line, anchor, entries: Vec::new(), key: None, merges: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Unfinished::List { line, anchor, items }) => self.add(Node { line, value: Value::List(items) }, anchor),
                Some(Unfinished::Map { line, anchor, entries, merges, .. }) => {
                    self.add(Node { line, value: Value::Map(merged(entries, merges)?) }, anchor)
                }
                None => Err("a collection ends that did not start".to_owned()),
            },
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned().ok_or("an alias refers to a node that is not complete")?;
                self.nodes += size(&node);
                self.add(Node { line, ..node }, 0)
            }
            Event::UnresolvedAlias(name) => Err(format!("the alias `*{name}` refers to nothing")),
            _ => Ok(()),
        }
    }

    fn open(&mut self, open: Unfinished) -> Result<(), String> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.stack.push(open);
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(format!("the document has more than {NODES_MAX} values"));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Unfinished::List { items, .. }) => items.push(node),
            Some(Unfinished::Map { entries, key, merges, .. }) => match key.take() {
                None => *key = Some((key_text(node.value)?, node.line)),
                Some((name, _)) if name == "<<" => merges.push(node),
                // An entry stands where its key stands, also when the value starts on the next line.
                Some((name, line)) => entries.push((name, Node { line, ..node })),
            },
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
        _ => 0,
    }
}

fn key_text(value: Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Int(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Null | Value::List(_) | Value::Map(_) => Err("a key of a mapping must be text".to_owned()),
    }
}

/// Refuses repeated keys and adds what `<<` brings, where the mapping does not say otherwise itself.
fn merged(mut entries: Vec<(String, Node)>, merges: Vec<Node>) -> Result<Vec<(String, Node)>, String> {
    let mut names = std::collections::HashSet::new();
    for (name, _) in &entries {
        if !names.insert(name.clone()) {
            return Err(format!("the key `{name}` stands twice in one mapping"));
        }
    }
    for node in merges {
        let sources = if let Value::List(items) = node.value { items } else { vec![node] };
        for source in sources {
            let Value::Map(more) = source.value else { return Err("`<<` merges mappings only".to_owned()) };
            for (name, node) in more {
                if names.insert(name.clone()) {
                    entries.push((name, node));
                }
            }
        }
    }
    Ok(entries)
}

/// What an unquoted word means (YAML 1.2, core schema).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let numeric = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
        && text.bytes().any(|byte| byte.is_ascii_digit());
    if numeric {
        if let Ok(number) = text.parse() {
            return Value::Int(number);
        }
        if let Some(number) = text.parse().ok().filter(|number: &f64| number.is_finite()) {
            return Value::Float(number);
        }
    }
    if let Some(number) = text.strip_prefix("0x").and_then(|digits| i64::from_str_radix(digits, 16).ok()) {
        return Value::Int(number);
    }
    if let Some(number) = text.strip_prefix("0o").and_then(|digits| i64::from_str_radix(digits, 8).ok()) {
        return Value::Int(number);
    }
    Value::Text(text.to_owned())
}

impl Node {
    /// The value of a key, if this is a mapping that has it and it is not null.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, node)| key == name && node.value != Value::Null).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, if this is text.
    pub fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// A value that was JSON already, without lines.
    ///
    /// # Errors
    /// It is deeper or has more values than a document may.
    pub fn of_json(value: serde_json::Value) -> Result<Self, String> {
        let mut room = NODES_MAX;
        Self::of_json_within(value, DEPTH_MAX, &mut room)
    }

    fn of_json_within(value: serde_json::Value, depth: usize, room: &mut usize) -> Result<Self, String> {
        use serde_json::Value as Json;
        let deeper = || depth.checked_sub(1).ok_or(format!("nested deeper than {DEPTH_MAX} levels"));
        *room = room.checked_sub(1).ok_or(format!("the document has more than {NODES_MAX} values"))?;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(flag) => Value::Bool(flag),
            Json::Number(number) => number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::MAX)), Value::Int),
            Json::String(text) => Value::Text(text),
            Json::Array(items) => {
                let depth = deeper()?;
                Value::List(items.into_iter().map(|item| Self::of_json_within(item, depth, room)).collect::<Result<_, _>>()?)
            }
            Json::Object(entries) => {
                let depth = deeper()?;
                let entry = |(name, value)| Ok::<_, String>((name, Self::of_json_within(value, depth, room)?));
                Value::Map(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { line: 0, value })
    }

    /// The same as JSON, without lines.
    pub fn json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(flag) => Json::Bool(*flag),
            Value::Int(number) => Json::from(*number),
            Value::Float(number) => serde_json::Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::json).collect()),
            Value::Map(entries) => Json::Object(entries.iter().map(|(name, node)| (name.clone(), node.json())).collect()),
        }
    }

    /// What this is, for messages.
    pub fn noun(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<Result<u32, u32>> {
        documents(text).into_iter().map(|read| read.map(|node| node.line).map_err(|error| error.line)).collect()
    }

    #[test]
    fn documents_are_separate_and_know_their_lines() {
        // Aim: empty documents vanish, a broken one is named by its line and leaves the others readable.
        assert_eq!(lines(""), []);
        assert_eq!(lines("---\n---\n# nothing\n---\n"), []);
        assert_eq!(lines("a: 1\n---\n\nb: 2\n"), [Ok(1), Ok(4)]);
        assert_eq!(lines("a: 1\n---\nb: [\n---\nc: 3\n"), [Ok(1), Err(4), Ok(5)].map(|line| line.map_err(|line: u32| line - 1)));
        assert_eq!(lines("\u{feff}%YAML 1.2\n---\r\na: 1\r\n"), [Ok(3)]);
        let text = "a: |\n  --- not a marker\n  x\nb: 1\n";
        assert_eq!(lines(text), [Ok(1)]);
    }

    #[test]
    fn scalars_mean_what_the_core_schema_says() {
        // Aim: ports are numbers, quoted ports are text, `on` is text, and JSON with tabs reads the same.
        let tree = documents("a: 80\nb: \"80\"\nc: on\nd: 1.5\ne: ~\nf: 0x10\ng: !!str 80\nh: 1e400\ni: v1\n").remove(0).unwrap();
        let Value::Map(entries) = tree.value else { panic!("a mapping") };
        let values: Vec<_> = entries.into_iter().map(|(_, node)| node.value).collect();
        let text = |text: &str| Value::Text(text.to_owned());
        let wanted =
            [Value::Int(80), text("80"), text("on"), Value::Float(1.5), Value::Null, Value::Int(16), text("80"), text("1e400"), text("v1")];
        assert_eq!(values, wanted);
        let json = documents("{\n\t\"a\": {\"b\": [1, true, null]},\n\t\"c\": \"x\\u00e9\"\n}\n").remove(0).unwrap();
        assert_eq!(json.json(), serde_json::json!({"a": {"b": [1, true, null]}, "c": "x\u{e9}"}));
    }

    #[test]
    fn anchors_and_merges_expand_within_bounds() {
        // Aim: aliases and merge keys work as kubectl's users know them, and a "billion laughs" ends early.
        let tree = documents("base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\n").remove(0).unwrap();
        assert_eq!(tree.json()["use"], serde_json::json!({"y": 3, "x": 1}));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let last = level - 1;
            bomb += &format!("a{level}: &a{level} [*a{last}, *a{last}, *a{last}, *a{last}, *a{last}, *a{last}, *a{last}, *a{last}]\n");
        }
        assert!(documents(&bomb)[0].is_err());
        assert!(documents(&"[".repeat(5_000))[0].is_err());
        assert!(documents(&"- ".repeat(5_000))[0].is_err());
        assert!(documents("a: 1\na: 2\n")[0].is_err());
        assert!(documents(&"x".repeat(FILE_BYTES_MAX + 1))[0].is_err());
        assert_eq!(documents(&"---\na: 1\n".repeat(DOCUMENTS_MAX + 5)).len(), DOCUMENTS_MAX + 1);
    }

    #[test]
    fn json_is_the_same_tree() {
        // Aim: what comes as JSON reads as the same text would, and is bounded alike.
        let json = serde_json::json!({"a": {"b": [1, true, null, 1.5, "x"]}, "c": -3});
        assert_eq!(Node::of_json(json.clone()).unwrap().json(), json);
        let nested = |levels: usize| (0..levels).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
        assert!(Node::of_json(nested(DEPTH_MAX)).is_ok() && Node::of_json(nested(DEPTH_MAX + 1)).is_err());
        let wide = |items: usize| serde_json::json!(vec![0; items]);
        assert!(Node::of_json(wide(NODES_MAX - 1)).is_ok() && Node::of_json(wide(NODES_MAX)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s)[-\\[\\]{}:&*!|>'\"#%@, a-z0-9\n\t]{0,200}|\\PC{0,200}") {
            // Aim: garbage ends as an error or as a tree, never as a panic.
            documents(&text);
        }
    }
}
