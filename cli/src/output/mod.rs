//! What people see: errors as sentences, aligned tables, progress on a terminal, JSON and YAML.

mod error;
mod log;
mod progress;
pub(crate) mod requests;
mod table;
pub(crate) mod terminal;

use std::io::{self, Write};

use anyhow::Context;
use clap::ValueEnum;

pub(crate) use error::{install_panic_hook, print_error, usage};
pub(crate) use log::{log, log_beside};
pub(crate) use progress::ProgressLine;
pub(crate) use table::Columns;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// The stable JSON of the documentation, one value.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The same choice where the answer is short enough to need no YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum TextOrJson {
    /// For people.
    #[default]
    Text,
    /// The stable JSON of the documentation, one value.
    Json,
}

/// How manifests are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Manifests {
    /// One document per object.
    #[default]
    Yaml,
    /// One List.
    Json,
}

impl Manifests {
    /// The text of objects, the same for the same objects.
    ///
    /// # Errors
    /// Never of what was JSON before.
    pub(crate) fn text(self, objects: &[serde_json::Value]) -> anyhow::Result<String> {
        if self == Self::Json {
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
            return serde_json::to_string_pretty(&list).context("cannot write the manifests as JSON");
        }
        let mut text = String::new();
        for object in objects {
            text += "---\n";
            text += &serde_saphyr::to_string(object).context("cannot write the manifests as YAML")?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// Prints a text on stdout; a reader that went away (`| head`) ends the program quietly.
///
/// # Errors
/// Stdout cannot be written for another reason, e.g. a full disk.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let newline: &[u8] = if text.ends_with('\n') || text.is_empty() { b"" } else { b"\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(newline)).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("cannot write to stdout"),
    }
}

/// Says on stderr what an answer leaves out, whatever form it is printed in; nothing, where it leaves out nothing.
pub(crate) fn note(text: &str) {
    if !text.is_empty() {
        eprintln!("note: {text}");
    }
}

/// JSON text as YAML.
///
/// # Errors
/// The text is no JSON: the control plane is of another version than this program.
pub(crate) fn yaml(json: &str) -> anyhow::Result<String> {
    serde_saphyr::to_string(&parse(json)?).context("cannot write the answer as YAML")
}

/// The control plane's JSON, read.
///
/// # Errors
/// The text is no JSON: the control plane is of another version than this program.
pub(crate) fn parse(json: &str) -> anyhow::Result<serde_json::Value> {
    serde_json::from_str(json).context("the control plane's answer is not JSON; are `meshwright` and the running mesh of the same version?")
}

/// Runs a command's conversation with the control plane on this thread.
///
/// # Errors
/// The conversation's own, or the runtime cannot start.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the asynchronous runtime")?.block_on(work)
}

/// Milliseconds as people read them: `12.3 ms`, `4.2 s`.
pub(crate) fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.1} ms") } else { format!("{:.1} s", ms / 1000.0) }
}
