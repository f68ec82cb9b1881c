//! Lines of the access log as rows for people: aligned, coloured where a terminal is, with the path cut where that is narrow. Pure.

use serde_json::Value;

use super::milliseconds;
use super::terminal::{fitted, harmless};

/// Between two columns.
const GAP: &str = "  ";
/// A path, and who calls whom, are never cut shorter.
const PATH_CHARACTERS_MIN: usize = 12;
const PARTIES_CHARACTERS_MIN: usize = 20;
/// A column grows no wider than this; a longer cell stands out.
const CELL_CHARACTERS_MAX: usize = 48;
const COLUMNS: usize = 10;
/// Numbers of columns: who calls whom, the path, the status. Those behind the reason give way where there is no room.
const PARTIES: usize = 2;
const PATH: usize = 4;
const STATUS: usize = 5;
const REASON: usize = 6;
/// Headings, and how wide each column is at first.
const HEADS: [(&str, usize); COLUMNS] = [
    ("TIME", 12),
    ("", 1),
    ("SOURCE → DESTINATION", 30),
    ("METHOD", 6),
    ("PATH", 20),
    ("STATUS", 6),
    ("REASON", 6),
    ("LATENCY", 8),
    ("BYTES", 5),
    ("TRIES", 5),
];

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Rows of one output; columns grow with what they hold.
#[derive(Debug)]
pub(crate) struct RequestRows {
    widths: [usize; COLUMNS],
    /// Of the terminal; `None`: nothing is cut.
    columns: Option<usize>,
    colours: bool,
}

impl RequestRows {
    /// For a terminal of so many columns, or a pipe.
    pub(crate) fn new(columns: Option<usize>, colours: bool) -> Self {
        Self { widths: HEADS.map(|(head, width)| width.max(head.chars().count())), columns, colours }
    }

    /// The terminal has another width now.
    pub(crate) fn resize(&mut self, columns: Option<usize>) {
        self.columns = columns;
    }

    /// The headings.
    pub(crate) fn head(&self) -> String {
        self.set(&HEADS.map(|(head, _)| head.to_owned()), None)
    }

    /// One line of the log.
    pub(crate) fn row(&mut self, line: &Value) -> String {
        let cells = cells(line);
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count().min(CELL_CHARACTERS_MAX));
        }
        self.set(&cells, self.colours.then(|| colour(line)))
    }

    /// How wide each column is, and how many there are: a narrow terminal first cuts paths, then leaves out what matters least, then cuts names.
    fn layout(&self) -> ([usize; COLUMNS], usize) {
        let (mut widths, mut shown) = (self.widths, COLUMNS);
        let Some(columns) = self.columns else { return (widths, shown) };
        let beyond = |widths: &[usize; COLUMNS], shown: usize| {
            let all: usize = widths[..shown].iter().sum::<usize>() + GAP.len() * (shown - 1);
            all.saturating_sub(columns)
        };
        widths[PATH] = widths[PATH].saturating_sub(beyond(&widths, shown)).max(PATH_CHARACTERS_MIN.min(widths[PATH]));
        while beyond(&widths, shown) > 0 && shown > REASON + 1 {
            shown -= 1;
        }
        widths[PARTIES] = widths[PARTIES].saturating_sub(beyond(&widths, shown)).max(PARTIES_CHARACTERS_MIN);
        (widths, shown)
    }

    fn set(&self, cells: &[String; COLUMNS], colour: Option<&str>) -> String {
        let (widths, shown) = self.layout();
        let mut text = String::new();
        for (at, (cell, width)) in cells.iter().zip(widths).take(shown).enumerate() {
            let cuts = self.columns.is_some() && matches!(at, PATH | PARTIES);
            let cell = if cuts { fitted(cell, width) } else { cell.clone() };
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match colour.filter(|_| at == STATUS) {
                Some(colour) => text += &format!("{colour}{cell}{PLAIN}{pad}"),
                None => text += &format!("{cell}{pad}"),
            }
            text += GAP;
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn cells(line: &Value) -> [String; COLUMNS] {
    let number = |field: &str| line[field].as_u64().unwrap_or_default();
    let path = line["path"].as_str().map_or_else(|| "-".to_owned(), harmless);
    let method = line["method"].as_str().or(line["protocol"].as_str()).map_or_else(|| "-".to_owned(), harmless);
    [
        line["time"].as_str().and_then(|time| time.get(11..23)).map_or_else(|| "-".to_owned(), harmless),
        if line["direction"] == "inbound" { "←" } else { "→" }.to_owned(),
        format!("{} → {}", party(&line["source"]), party(&line["destination"])),
        method,
        path,
        status(line),
        line["reason"].as_str().map_or_else(|| "-".to_owned(), harmless),
        line["duration_ms"].as_f64().map_or_else(|| "-".to_owned(), milliseconds),
        bytes(number("response_bytes")),
        number("attempts").to_string(),
    ]
}

/// `NAMESPACE/WORKLOAD`, else what is known of it.
fn party(party: &Value) -> String {
    let text = |field: &str| party[field].as_str().filter(|text| !text.is_empty());
    let name = match (text("workload"), text("service")) {
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => return text("address").map_or_else(|| "-".to_owned(), harmless),
    };
    let whole = text("namespace").map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    harmless(&whole)
}

/// `503`, of gRPC `200/14`, `-` where nothing was answered.
fn status(line: &Value) -> String {
    let status = line["status"].as_u64().map_or_else(|| "-".to_owned(), |status| status.to_string());
    line["grpc_status"].as_u64().map_or_else(|| status.clone(), |grpc| format!("{status}/{grpc}"))
}

fn colour(line: &Value) -> &'static str {
    match (failed(line), line["status"].as_u64()) {
        (true, _) | (_, None) => RED,
        (_, Some(status)) if status >= 400 => YELLOW,
        _ => GREEN,
    }
}

/// By the server's or the mesh's fault, as metrics count failures.
pub(crate) fn failed(line: &Value) -> bool {
    let status = line["status"].as_u64();
    let unanswered = status.is_none() && line["reason"].is_string() && line["blame"] != "client";
    unanswered || status.is_some_and(|status| status >= 500) || matches!(line["grpc_status"].as_u64(), Some(2 | 4 | 12 | 13 | 14 | 15))
}

fn bytes(count: u64) -> String {
    let steps = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")];
    let step = steps.into_iter().find(|(size, _)| count >= *size);
    step.map_or_else(|| count.to_string(), |(size, unit)| format!("{:.1}{unit}", count as f64 / size as f64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line() -> Value {
        json!({
            "time": "2026-12-01T10:00:00.123456Z", "direction": "outbound", "method": "GET", "path": "/items/a-rather-long-path?x=1",
            "protocol": "HTTP/1.1", "status": 503, "grpc_status": null, "reason": "no_endpoints", "blame": "mesh",
            "source": {"namespace": "shop", "workload": "frontend", "address": "10.77.0.2:1"},
            "destination": {"namespace": "shop", "service": "catalog", "workload": null, "address": null},
            "response_bytes": 2048, "duration_ms": 12.34, "attempts": 2,
        })
    }

    /// Aim: a row stands under its headings, with the mesh's reason.
    #[test]
    fn rows_are_aligned() {
        let mut rows = RequestRows::new(None, false);
        let row = rows.row(&line());
        let head = rows.head();
        insta::assert_snapshot!("row", format!("{head}\n{row}"));
        for (head_word, cell) in
            [("METHOD", "GET"), ("PATH", "/items"), ("STATUS", "503"), ("REASON", "no_endpoints"), ("LATENCY", "12.3 ms")]
        {
            let at = |text: &str, word: &str| text[..text.find(word).unwrap()].chars().count();
            assert_eq!(at(&head, head_word), at(&row, cell), "{head_word}\n{head}\n{row}");
        }
    }

    /// Aim: a narrow terminal cuts the path, then loses what matters least, and never wraps; a pipe cuts nothing and has no colours.
    #[test]
    fn narrow_terminals_cut_the_path() {
        let at = |columns: usize| RequestRows::new(Some(columns), false).row(&line());
        let row = at(120);
        assert!(row.contains("/items/a-r") && row.contains('…') && row.ends_with('2'), "{row}");
        let row = at(100);
        assert!(row.contains("/items/a-ra…") && row.contains("no_endpoints") && !row.contains("2.0k"), "{row}");
        for columns in [90, 100, 110, 120, 140, 200] {
            assert!(at(columns).chars().count() <= columns, "{columns}: {}", at(columns));
        }
        let wide = RequestRows::new(None, false).row(&line());
        assert!(wide.contains("/items/a-rather-long-path?x=1") && !wide.contains('\x1b'), "{wide}");
    }

    /// Aim: only the status is coloured, by what it means; what others wrote does nothing to a terminal.
    #[test]
    fn colours_say_what_is_wrong() {
        for (status, grpc, colour) in [
            (json!(200), json!(null), GREEN),
            (json!(404), json!(null), YELLOW),
            (json!(null), json!(null), RED),
            (json!(200), json!(14), RED),
        ] {
            let mut value = line();
            (value["status"], value["grpc_status"], value["path"]) = (status, grpc, "/\x1b[2Jx".into());
            let row = RequestRows::new(None, true).row(&value);
            assert_eq!(row.matches('\x1b').count(), 2, "{row:?}");
            assert!(row.contains(colour), "{row:?}");
        }
    }

    /// Aim: failures are what metrics call failures: a client that went away is none.
    #[test]
    fn failures_are_those_of_metrics() {
        for (value, is) in [
            (json!({"status": 200, "grpc_status": null}), false),
            (json!({"status": 499}), false),
            (json!({"status": 500}), true),
            (json!({"status": 200, "grpc_status": 14}), true),
            (json!({"status": null, "reason": "client_gone", "blame": "client"}), false),
            (json!({"status": null, "reason": "upstream_reset", "blame": "server"}), true),
            (json!({"status": null, "reason": null}), false),
        ] {
            assert_eq!(failed(&value), is, "{value}");
        }
        assert_eq!([0, 1023, 1024, 5 << 20].map(bytes), ["0", "1023", "1.0k", "5.0M"]);
    }
}
