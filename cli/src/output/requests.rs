//! Lines of the access log as rows for people: aligned, coloured where a terminal is, with the path cut where that is narrow. Pure.

use serde_json::Value;

use super::milliseconds;
use super::terminal::{fitted, harmless};

/// Between two columns.
const GAP: &str = "  ";
/// A path is never cut shorter.
const PATH_CHARACTERS_MIN: usize = 12;
/// A column grows no wider than this; a longer cell stands out.
const CELL_CHARACTERS_MAX: usize = 48;
/// Number of the path among the columns.
const PATH: usize = 4;
/// Number of the status.
const STATUS: usize = 5;
const COLUMNS: usize = 10;
/// Headings, and how wide each column is at first.
const HEADS: [(&str, usize); COLUMNS] = [
    ("TIME", 12),
    ("", 1),
    ("SOURCE → DESTINATION", 36),
    ("METHOD", 6),
    ("PATH", 20),
    ("STATUS", 6),
    ("REASON", 8),
    ("LATENCY", 8),
    ("BYTES", 6),
    ("ATTEMPTS", 0),
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

    /// How wide the path is: on a terminal, what the others leave.
    fn path_width(&self) -> usize {
        let Some(columns) = self.columns else { return self.widths[PATH] };
        let others: usize = self.widths.iter().enumerate().filter(|(at, _)| *at != PATH).map(|(_, width)| width).sum();
        columns.saturating_sub(others + GAP.len() * (COLUMNS - 1)).clamp(PATH_CHARACTERS_MIN, self.widths[PATH])
    }

    fn set(&self, cells: &[String; COLUMNS], colour: Option<&str>) -> String {
        let mut text = String::new();
        for (at, cell) in cells.iter().enumerate() {
            let width = if at == PATH { self.path_width() } else { self.widths[at] };
            let cell = if at == PATH && self.columns.is_some() { fitted(cell, width) } else { cell.clone() };
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

    /// Aim: a narrow terminal cuts the path and nothing else; a pipe cuts nothing and has no colours.
    #[test]
    fn narrow_terminals_cut_the_path() {
        let narrow = RequestRows::new(Some(100), false).row(&line());
        assert!(narrow.contains("/items/a-ra…") && narrow.contains("no_endpoints") && narrow.contains("12.3 ms"), "{narrow}");
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
