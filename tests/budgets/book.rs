//! The book of budgets: what a hop may cost, recorded in `budgets.json` beside this file and compared by the tests of two crates.
//!
//! A figure that is worse by more than its tolerance fails. A better one passes and asks to be recorded: a budget that lies above what is
//! spent guards nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};

use serde_json::Value;

/// Recorded figures, one a line.
const BOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/budgets/budgets.json");
/// Where it is set, figures are recorded and not compared.
const RECORD: &str = "MESHWRIGHT_RECORD";
/// How to record.
const COMMAND: &str = "MESHWRIGHT_RECORD=1 tests/run-all budgets";

/// By how much a figure may be worse, and how far it must be better to be worth recording.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tolerance {
    /// In the figure's own unit.
    Units(f64),
    /// As a share of the figure.
    Share(f64),
}

impl Tolerance {
    fn of(self, figure: f64) -> f64 {
        match self {
            Self::Units(units) => units,
            Self::Share(share) => (figure * share).ceil(),
        }
    }
}

/// What the book says of one name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry {
    /// What was measured when it was recorded.
    pub(crate) figure: f64,
    /// By how much it may be worse, in the figure's unit.
    pub(crate) tolerance: f64,
}

/// All entries by name: `GROUP/NAME`.
pub(crate) type Book = BTreeMap<String, Entry>;

/// Figures of one kind that are judged together.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    /// What was counted and on which road, `instructions/h1 GET`.
    pub(crate) group: &'a str,
    /// What one is.
    pub(crate) unit: &'a str,
    /// How exact the measurement is, by name.
    pub(crate) tolerance: fn(&str) -> Tolerance,
    /// The command that shows where a figure comes from.
    pub(crate) look: &'a str,
}

/// What comparing found, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) worse: Vec<String>,
    pub(crate) better: Vec<String>,
}

impl Budget<'_> {
    /// Compares `measured` (name below the group, figure) with the book, or records it there where `MESHWRIGHT_RECORD` is set.
    ///
    /// # Panics
    /// A figure is worse than recorded, or none is recorded; the message says by how much, and what to do.
    pub(crate) fn judge(&self, measured: &[(String, f64)]) {
        for (name, figure) in measured {
            loud(&format!("budget  {}/{name}: {} {}", self.group, rounded(*figure), self.unit));
        }
        if std::env::var_os(RECORD).is_some() {
            self.record(measured);
            return;
        }
        let findings = self.compare(&read(), measured);
        if !findings.better.is_empty() {
            loud(&format!("BETTER  record it with `{COMMAND}`:\n  {}", findings.better.join("\n  ")));
        }
        assert!(
            findings.worse.is_empty(),
            "over budget:\n  {}\nlook:   {}\nmeant?  {COMMAND}, and say why in the commit",
            findings.worse.join("\n  "),
            self.look
        );
    }

    /// The same as a value. What is recorded in this group and was not measured counts as 0, what is measured and not recorded as new.
    pub(crate) fn compare(&self, book: &Book, measured: &[(String, f64)]) -> Findings {
        let prefix = format!("{}/", self.group);
        let recorded: BTreeMap<_, _> = book.iter().filter_map(|(name, entry)| Some((name.strip_prefix(&prefix)?, *entry))).collect();
        let mut findings = Findings::default();
        if recorded.is_empty() {
            findings.worse.push(format!("{}: nothing is recorded", self.group));
            return findings;
        }
        let gone = recorded.keys().filter(|name| measured.iter().all(|(other, _)| other != *name)).map(|name| ((*name).to_owned(), 0.0));
        for (name, figure) in measured.iter().cloned().chain(gone) {
            let entry = recorded.get(name.as_str()).copied();
            let Entry { figure: before, tolerance } = entry.unwrap_or(Entry { figure: 0.0, tolerance: (self.tolerance)(&name).of(0.0) });
            let more = figure - before;
            let mut line = format!("{prefix}{name}: {} {}, recorded {}", rounded(figure), self.unit, rounded(before));
            let _ =
                write!(line, " (tolerance {}): {} {}", rounded(tolerance), rounded(more.abs()), if more > 0.0 { "more" } else { "less" });
            match entry {
                Some(_) if before > 0.0 => _ = write!(line, " ({:+.1} %)", 100.0 * more / before),
                Some(_) => {}
                None => line += ", not seen when the book was written",
            }
            if more > tolerance {
                findings.worse.push(line);
            } else if -more > tolerance {
                findings.better.push(line);
            }
        }
        findings
    }

    /// Replaces the group in the book. Figures within their tolerance of 0 are noise and left out.
    fn record(&self, measured: &[(String, f64)]) {
        let lock = File::open(BOOK).expect("tests/budgets/budgets.json");
        lock.lock().expect("the book can be locked");
        let prefix = format!("{}/", self.group);
        let mut book = read();
        book.retain(|name, _| !name.starts_with(&prefix));
        for (name, figure) in measured {
            let tolerance = (self.tolerance)(name).of(*figure);
            if *figure > tolerance || *figure == 0.0 {
                book.insert(format!("{prefix}{name}"), Entry { figure: rounded(*figure), tolerance });
            }
        }
        fs::write(BOOK, text(&book)).expect("the book can be written");
        loud(&format!("recorded {}", self.group));
    }
}

/// To the terminal past the test runner's capture, so that what passes is heard too.
fn loud(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Two decimals below 100, none above.
fn rounded(figure: f64) -> f64 {
    if figure.abs() < 100.0 { (figure * 100.0).round() / 100.0 } else { figure.round() }
}

fn read() -> Book {
    let text = fs::read_to_string(BOOK).expect("tests/budgets/budgets.json");
    parse(&text).unwrap_or_else(|why| panic!("tests/budgets/budgets.json: {why}"))
}

/// # Errors
/// What is wrong, and where.
pub(crate) fn parse(text: &str) -> Result<Book, String> {
    let values: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let entry = |(name, value): (String, Value)| {
        let number = |key: &str| value[key].as_f64().ok_or_else(|| format!("`{name}` has no number `{key}`"));
        let entry = Entry { figure: number("figure")?, tolerance: number("tolerance")? };
        Ok((name, entry))
    };
    values.into_iter().map(entry).collect()
}

/// The book as it is written: sorted, one entry a line, so that a change is a line of a diff.
pub(crate) fn text(book: &Book) -> String {
    let line = |(name, entry): (&String, &Entry)| {
        format!("  {}: {{\"figure\": {}, \"tolerance\": {}}}", Value::from(name.as_str()), entry.figure, entry.tolerance)
    };
    format!("{{\n{}\n}}\n", book.iter().map(line).collect::<Vec<_>>().join(",\n"))
}
