//! A canary as text: where it is, both versions side by side, what it waits for, and why it came there.

use serde_json::Value;

use crate::output::terminal::harmless;
use crate::output::{Columns, milliseconds};

/// Decisions that are drawn, the newest, and last where the eye is; `-o json` has all that are kept.
const DECISIONS_SHOWN: usize = 8;
/// Width of the bar of weights.
const BAR: usize = 40;

/// Colours, or none.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn phase(self, phase: &str) -> String {
        let code = match phase {
            "Promoted" => "1;32",
            "RolledBack" => "1;31",
            "Paused" => "1;33",
            _ => "1;36",
        };
        self.with(code, phase)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// All canaries, one below the other.
pub(super) fn all(rows: &[Value], colours: bool) -> String {
    if rows.is_empty() {
        return "there is no Canary; docs/canary.md shows how to write one\n".to_owned();
    }
    rows.iter().map(|row| one(row, Paint(colours))).collect::<Vec<_>>().join("\n")
}

fn one(row: &Value, paint: Paint) -> String {
    let name = paint.bold(&format!("{}/{}", text(&row["namespace"]), text(&row["name"])));
    let phase = row["phase"].as_str().map_or_else(|| paint.phase("Not begun"), |phase| paint.phase(&harmless(phase)));
    let versions = format!("{} -> {}", text(&row["stable"]["service"]), text(&row["candidate"]["service"]));
    let mut drawn = format!("{name}   {phase}   {versions}\n\n");
    drawn += &format!("  {}\n  {}\n\n", steps(row, paint), bar(row["weight"].as_u64().unwrap_or(0)));
    drawn += &indented(&table(row));
    if let Some(tests) = tests(&row["verdict"]) {
        drawn += &format!("  {tests}\n");
    }
    for gate in row["gates"].as_array().into_iter().flatten() {
        let said = if gate["why"].is_string() { text(&gate["why"]) } else { format!("{}: not asked yet", text(&gate["gate"])) };
        drawn += &format!("  {} {said}\n", if gate["verdict"] == "Passed" { "✓" } else { "·" });
    }
    // Why nothing is decided, what it waits for, or how it ended.
    if let Some(why) = ["problem", "waiting_for", "reason"].into_iter().find_map(|field| row[field].as_str()).filter(|why| !why.is_empty())
    {
        drawn.push('\n');
        // Its parts below each other: what is drawn in place is cut at the terminal's width.
        for part in harmless(why).split_inclusive("; ") {
            drawn += &format!("  {}\n", paint.bold(part.trim_end()));
        }
    }
    let decisions = row["decisions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !decisions.is_empty() {
        drawn.push('\n');
    }
    for decision in decisions.iter().skip(decisions.len().saturating_sub(DECISIONS_SHOWN)) {
        let clock = decision["time"].as_str().and_then(|time| time.get(11..19)).unwrap_or("--:--:--");
        drawn += &format!("  {}  {}\n", paint.dim(clock), words(decision));
    }
    drawn
}

fn text(value: &Value) -> String {
    harmless(value.as_str().unwrap_or_default())
}

/// What was decided, and why.
fn words(decision: &Value) -> String {
    let why = text(&decision["why"]);
    let colon = if why.is_empty() { "" } else { ": " };
    format!("{}{colon}{why}", text(&decision["verdict"]))
}

/// One decision, as a line of its own.
pub(super) fn decision(row: &Value, decision: &Value) -> String {
    format!("{} {}/{} {}", text(&decision["time"]), text(&row["namespace"]), text(&row["name"]), words(decision))
}

/// All steps, those that are done ticked, and the one that it is at marked.
fn steps(row: &Value, paint: Paint) -> String {
    let over = row["phase"] == "Promoted";
    let current = row["step"].as_u64().unwrap_or(0);
    let step = |(at, step): (u64, &Value)| {
        let what = match (step["weight"].as_u64(), step["mirror_percent"].as_f64()) {
            (Some(weight), _) => format!("{weight} %"),
            (None, Some(percent)) => format!("mirror {percent} %"),
            (None, None) => {
                step["match"].as_array().into_iter().flatten().filter_map(Value::as_str).map(harmless).collect::<Vec<_>>().join(" ")
            }
        };
        let what = if step["approve"] == true { format!("{what} (approve)") } else { what };
        match at.cmp(&current) {
            _ if over => format!("✓ {what}"),
            std::cmp::Ordering::Less => format!("✓ {what}"),
            std::cmp::Ordering::Equal if row["phase"] == "RolledBack" => paint.with("1;31", &format!("✗ {what}")),
            std::cmp::Ordering::Equal => paint.bold(&format!("▶ {what}")),
            std::cmp::Ordering::Greater => paint.dim(&format!("· {what}")),
        }
    };
    let listed = row["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    (1..).zip(listed).map(step).collect::<Vec<_>>().join("   ")
}

fn bar(weight: u64) -> String {
    let full = usize::try_from(weight.min(100)).unwrap_or(0) * BAR / 100;
    format!("{}{}  {weight} % to the candidate", "█".repeat(full), "░".repeat(BAR - full))
}

/// Both versions, in the run's own numbers.
fn table(row: &Value) -> String {
    let mut table = Columns::new(&[("", ""), ("REQUESTS", ""), ("FAILED", ""), ("P50", ""), ("P99", "")]);
    for name in ["stable", "candidate"] {
        let version = &row[name];
        let (requests, errors) = (version["requests"].as_u64().unwrap_or(0), version["errors"].as_u64().unwrap_or(0));
        let failed = if requests == 0 { "-".to_owned() } else { format!("{:.2} %", errors as f64 * 100.0 / requests as f64) };
        let ms = |field: &str| version[field].as_f64().map_or_else(|| "-".to_owned(), milliseconds);
        table.cells([name.to_owned(), requests.to_string(), failed, ms("p50_ms"), ms("p99_ms")]);
    }
    table.render("")
}

/// How sure it is that the candidate is worse.
fn tests(verdict: &Value) -> Option<String> {
    let told = |field: &str, name: &str| verdict[field].as_f64().map(|p_value| format!("{name}: p = {}", p_words(p_value)));
    let told: Vec<String> = [told("p_value_errors", "more errors"), told("p_value_latency", "slower")].into_iter().flatten().collect();
    (!told.is_empty()).then(|| format!("worse?  {}", told.join("   ")))
}

fn p_words(p_value: f64) -> String {
    if p_value < 1e-4 { format!("{p_value:.0e}") } else { format!("{p_value:.4}") }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(phase: &str, step: u64, weight: u64) -> Value {
        let steps = json!([
            {"match": ["x-beta: 1"]}, {"mirror_percent": 10.0}, {"weight": 20, "hold_ms": 10_000.0}, {"weight": 50, "approve": true}, {"weight": 100}
        ]);
        let over = matches!(phase, "Promoted" | "RolledBack");
        let verdict = json!({"p_value_errors": 0.000_012, "p_value_latency": 0.44, "words": "not enough evidence yet"});
        json!({
            "namespace": "shop", "name": "catalog", "phase": phase, "step": step, "weight": weight, "steps": steps,
            "stable": {"service": "catalog-v1", "requests": 1940, "errors": 2, "p50_ms": 1.9, "p99_ms": 8.41},
            "candidate": {"service": "catalog-v2", "requests": 481, "errors": 24, "p50_ms": 2.0, "p99_ms": 8.1},
            "verdict": if over { Value::Null } else { verdict },
            "reason": "worse: 4.99 % of 481 requests failed, 0.10 % of the stable version's 1940",
            "waiting_for": if over { Value::Null } else { json!("not enough evidence yet: needs about 230 more requests of the candidate") },
            "gates": [
                {"gate": "webhook http://tests/", "verdict": "NotAsked", "why": null},
                {"gate": "prometheus http://p:9090", "verdict": "Passed", "why": "prometheus http://p:9090: 0.2"},
            ],
            "decisions": [
                {"time": "2026-12-01T12:31:07Z", "verdict": "Advance", "why": "step 2 is over"},
                {"time": "2026-12-01T12:31:19.123Z", "verdict": "Rollback", "why": "worse: \u{1b}[2J4.99 % failed"},
            ],
        })
    }

    /// Aim: somebody who looks sees where the canary is, both versions' numbers, what it waits for, and why it came there, the newest last; after the
    /// end the same numbers.
    #[test]
    fn canaries_read_as() {
        insta::assert_snapshot!("progressing", all(&[row("Progressing", 3, 20)], false));
        insta::assert_snapshot!("rolled_back", all(&[row("RolledBack", 3, 0)], false));
        insta::assert_snapshot!("promoted", all(&[row("Promoted", 5, 100)], false));
        assert!(all(&[], false).starts_with("there is no Canary"));
    }

    /// Aim: colours change nothing but colours, and nothing that others said reaches the terminal as a control.
    #[test]
    fn colours_are_only_colours() {
        let (plain, coloured) = (all(&[row("Paused", 4, 50)], false), all(&[row("Paused", 4, 50)], true));
        assert!(!plain.contains('\u{1b}') && coloured.contains("\u{1b}[1;33mPaused\u{1b}[0m"), "{coloured}");
        let bare: String = coloured
            .split('\u{1b}')
            .map(|part| part.strip_prefix('[').and_then(|part| part.split_once('m')).map_or(part, |(_, rest)| rest))
            .collect();
        assert_eq!(bare, plain);
    }

    /// Aim: what is not known yet is a dash, not a zero.
    #[test]
    fn what_is_not_known_is_a_dash() {
        let row = json!({"namespace": "a", "name": "b", "phase": "Progressing", "step": 1, "steps": [{"weight": 5}], "weight": 5});
        let text = all(&[row], false);
        assert!(text.contains("stable      0          -        -     -"), "{text}");
    }

    /// Aim: in a pipe each decision is a line with its time and whose it is.
    #[test]
    fn decisions_are_lines() {
        let row = row("Progressing", 3, 20);
        assert_eq!(decision(&row, &row["decisions"][0]), "2026-12-01T12:31:07Z shop/catalog Advance: step 2 is over");
    }
}
