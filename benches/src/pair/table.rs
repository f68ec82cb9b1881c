//! The report on a terminal: a table per phase, ratios, goals. Pure: text in, text out.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};

use crate::pair::catalogue::{DIRECT, OURS};
use crate::pair::goals::Goal;
use crate::pair::phase::{Kind, Phase, Unit};
use crate::pair::reading::{Figure, Run, Spread};

/// Share of the machine that others may take before a reading is called doubtful.
const FOREIGN_MAX: f64 = 0.1;
/// What stands where there is nothing.
const NONE: &str = "-";

/// Whether text may have colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// A terminal.
    Colour,
    /// A file or a pipe.
    Plain,
}

/// A pair of topologies whose figures are divided.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Quotient {
    /// Above the line.
    pub(super) over: String,
    /// Below it.
    pub(super) under: String,
}

/// The whole report.
pub(super) fn report(run: &Run, quotients: &[Quotient], goals: &[Goal], ink: Ink) -> String {
    let mut parts: Vec<String> = run.phases.iter().filter_map(|phase| phase_part(run, *phase, ink)).collect();
    parts.extend(quotients.iter().filter_map(|quotient| ratio_part(run, quotient, ink)));
    if !goals.is_empty() {
        parts.push(format!("Goals of {OURS}: ratios within a round, median [range]\n{}", goal_table(goals, ink)));
    }
    parts.extend(doubts(run));
    parts.join("\n\n") + "\n"
}

fn plain(ink: Ink, heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let head = |text: &&str| if ink == Ink::Colour { Cell::new(text).add_attribute(Attribute::Bold) } else { Cell::new(text) };
    table.set_header(heads.iter().map(head));
    if ink == Ink::Colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    table
}

/// Columns of numbers stand to the right.
fn finish(mut table: Table, texts: &[usize]) -> String {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    let count = table.column_count();
    for index in (0..count).filter(|index| !texts.contains(index)) {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A number with as many places as are worth reading.
pub(super) fn number(value: f64) -> String {
    let places = match value.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    // Thousands are told apart where there are many.
    let digits = text.trim_start_matches('-');
    if value.abs() < 10_000.0 {
        return text;
    }
    let grouped: Vec<String> = digits.as_bytes().rchunks(3).rev().map(|three| String::from_utf8_lossy(three).into_owned()).collect();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, grouped.join(","))
}

fn median(spread: Option<Spread>) -> String {
    spread.map_or_else(|| NONE.to_owned(), |spread| number(spread.median))
}

fn with_range(spread: Option<Spread>) -> String {
    match spread {
        None => NONE.to_owned(),
        Some(one) if one.rounds < 2 => number(one.median),
        Some(spread) => format!("{} [{}..{}]", number(spread.median), number(spread.min), number(spread.max)),
    }
}

/// A figure that stands beside a bound: with so many places that one can see on which side it is.
fn exact(spread: Spread) -> String {
    if spread.median.abs() >= 10.0 {
        return with_range(Some(spread));
    }
    let range = if spread.rounds < 2 { String::new() } else { format!(" [{:.3}..{:.3}]", spread.min, spread.max) };
    format!("{:.3}{range}", spread.median)
}

fn phase_part(run: &Run, phase: Phase, ink: Ink) -> Option<String> {
    let took_part = |name: &&String| run.readings.iter().any(|reading| reading.phase == phase && reading.topology == **name);
    let names: Vec<&String> = run.topologies.iter().filter(took_part).collect();
    if names.is_empty() {
        return None;
    }
    let unit = match phase.unit() {
        Unit::Request => "CPU in µs per request, latency in µs",
        Unit::Connection => "CPU in µs per connection, latency in µs",
        Unit::Gigabyte => "CPU in s per GB",
        Unit::Memory if phase.kind == Kind::Mem => "MiB per proxy",
        Unit::Memory => "KiB more for each",
    };
    let body = if phase.unit() == Unit::Memory { memory_table(run, phase, &names, ink) } else { load_table(run, phase, &names, ink) };
    let lost = names.iter().filter_map(|name| run.failures(phase, name).1.map(|why| format!("\n  {name}: no reading: {why}")));
    Some(format!("{phase}: {} ({unit})\n{body}{}", phase.about(), lost.collect::<String>()))
}

fn load_table(run: &Run, phase: Phase, names: &[&String], ink: Ink) -> String {
    let bulk = phase.unit() == Unit::Gigabyte;
    let rate = if bulk { "Gbit/s" } else { "per s" };
    let mut heads = vec!["topology", rate];
    if !bulk {
        heads.extend(["p50", "p99", "+p50", "+p90", "+p99"]);
    }
    heads.extend(["client", "server", "pair [range]", "× floor [range]", "total over direct", "failed"]);
    let mut table = plain(ink, &heads);
    for name in names {
        let of = |figure| run.spread(phase, name, figure);
        let direct = name.as_str() == DIRECT;
        let above = |figure| if direct { None } else { run.above(phase, figure, name, DIRECT) };
        let proxy = |figure| if direct { None } else { of(figure) };
        let mut row = vec![(*name).clone(), median(of(if bulk { Figure::GbitPerSec } else { Figure::PerSec }))];
        if !bulk {
            row.extend([median(of(Figure::P50)), median(of(Figure::P99))]);
            row.extend([Figure::P50, Figure::P90, Figure::P99].map(|figure| median(above(figure))));
        }
        row.extend([median(proxy(Figure::CpuClient)), median(proxy(Figure::CpuServer)), with_range(proxy(Figure::CpuPair))]);
        let floor = if direct || name.as_str() == "floor" { None } else { run.ratio(phase, Figure::CpuPair, name, "floor") };
        row.extend([with_range(floor), with_range(above(Figure::CpuAll))]);
        let failed = run.failures(phase, name).0;
        let mut cells: Vec<Cell> = row.into_iter().map(Cell::new).collect();
        cells.push(verdict(&failed.to_string(), failed == 0, ink));
        table.add_row(cells);
    }
    finish(table, &[0])
}

fn memory_table(run: &Run, phase: Phase, names: &[&String], ink: Ink) -> String {
    let fresh = phase.kind == Kind::Mem;
    let columns: &[(&str, Figure)] = if fresh {
        &[
            ("resident, client", Figure::RssClient),
            ("server", Figure::RssServer),
            ("PSS, client", Figure::PssClient),
            ("server", Figure::PssServer),
            ("private dirty, client", Figure::DirtyClient),
            ("server", Figure::DirtyServer),
        ]
    } else {
        &[
            ("resident, client", Figure::RssEachClient),
            ("server", Figure::RssEachServer),
            ("private dirty, client", Figure::DirtyEachClient),
            ("server", Figure::DirtyEachServer),
        ]
    };
    let heads: Vec<&str> = std::iter::once("topology").chain(columns.iter().map(|(head, _)| *head)).chain(["failed"]).collect();
    let mut table = plain(ink, &heads);
    for name in names {
        let mut cells = vec![Cell::new(name)];
        cells.extend(columns.iter().map(|(_, figure)| Cell::new(with_range(run.spread(phase, name, *figure)))));
        let failed = run.failures(phase, name).0;
        cells.push(verdict(&failed.to_string(), failed == 0, ink));
        table.add_row(cells);
    }
    finish(table, &[0])
}

fn verdict(text: &str, good: bool, ink: Ink) -> Cell {
    let cell = Cell::new(text);
    if ink == Ink::Plain { cell } else { cell.fg(if good { Color::Green } else { Color::Red }) }
}

fn ratio_part(run: &Run, quotient: &Quotient, ink: Ink) -> Option<String> {
    let (a, b) = (quotient.over.as_str(), quotient.under.as_str());
    let columns = [
        ("CPU of the pair", Figure::CpuPair, false),
        ("total over direct", Figure::CpuAll, true),
        ("per s", Figure::PerSec, false),
        ("+p50", Figure::P50, true),
        ("+p90", Figure::P90, true),
        ("+p99", Figure::P99, true),
    ];
    let heads: Vec<&str> = std::iter::once("phase").chain(columns.iter().map(|(head, _, _)| *head)).collect();
    let mut table = plain(ink, &heads);
    let phases = run.phases.iter().filter(|phase| phase.unit() != Unit::Memory);
    for phase in phases {
        let of = |(_, figure, added): (&str, Figure, bool)| {
            if added { run.ratio_above(*phase, figure, a, b, DIRECT) } else { run.ratio(*phase, figure, a, b) }
        };
        let spreads = columns.map(of);
        if spreads.iter().any(Option::is_some) {
            table.add_row(std::iter::once(phase.to_string()).chain(spreads.map(with_range)));
        }
    }
    let empty = table.row_iter().next().is_none();
    (!empty).then(|| format!("{a} / {b}: ratios within a round, median [range]\n{}", finish(table, &[0])))
}

fn goal_table(goals: &[Goal], ink: Ink) -> String {
    let mut table = plain(ink, &["what", "phase", "measured [range]", "goal", "reached", "stretch", "reached"]);
    for goal in goals {
        let word = |reached: bool| if reached { "yes" } else { "no" };
        table.add_row([
            Cell::new(goal.what),
            Cell::new(goal.phase.to_string()),
            Cell::new(exact(goal.figure)),
            Cell::new(&goal.goal),
            verdict(word(goal.reached), goal.reached, ink),
            Cell::new(goal.stretch.as_deref().unwrap_or(NONE)),
            goal.stretch_reached.map_or_else(|| Cell::new(NONE), |reached| verdict(word(reached), reached, ink)),
        ]);
    }
    finish(table, &[0, 1, 3, 4, 5, 6])
}

/// What makes the figures doubtful.
fn doubts(run: &Run) -> Vec<String> {
    let mut found = Vec::new();
    let busy =
        run.readings.iter().filter(|reading| reading.cell.figures.get(&Figure::Foreign).is_some_and(|share| *share > FOREIGN_MAX)).count();
    if busy > 0 {
        found.push(format!(
            "{busy} of {} readings were taken while other processes took more than {:.0} % of the machine: run again when it is quiet.",
            run.readings.len(),
            FOREIGN_MAX * 100.0
        ));
    }
    if run.is_bad() {
        found.push("Some load failed; readings with more than one failure in a hundred are left out above.".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::goals::goals;
    use crate::pair::reading::tests::run;

    /// Aim: numbers have as many places as are worth reading.
    #[test]
    fn numbers_read_well() {
        let cases = [
            (0.123, "0.12"),
            (9.99, "9.99"),
            (37.64, "37.6"),
            (123.4, "123"),
            (9999.0, "9999"),
            (46012.3, "46,012"),
            (-1.5, "-1.50"),
            (1234567.0, "1,234,567"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }

    /// Aim: the whole report of a small run, as a golden text.
    #[test]
    fn a_small_report() {
        let rounds = |base: f64| [base, base * 1.1, base * 0.9];
        let mut rows = Vec::new();
        let values: Vec<_> =
            [("direct", 10.0), ("meshwright", 60.0), ("floor", 50.0), ("splice", 30.0)].map(|(name, all)| (name, rounds(all))).into();
        for (name, all) in &values {
            rows.push((*name, Figure::CpuAll, all.as_slice()));
            rows.push((*name, Figure::P50, all.as_slice()));
            rows.push((*name, Figure::PerSec, all.as_slice()));
            if *name != "direct" {
                rows.push((*name, Figure::CpuPair, all.as_slice()));
            }
        }
        let mut run = run("sat", &rows);
        let quotient = Quotient { over: "meshwright".into(), under: "floor".into() };
        run.readings[1].cell.failed = 2;
        run.readings[2].cell = crate::pair::reading::Cell::lost("the load did not end in time".into());
        insta::assert_snapshot!(report(&run, &[quotient], &goals(&run), Ink::Plain));
    }

    /// Aim: memory has its own columns, and colours only come where they are asked for.
    #[test]
    fn memory_and_colour() {
        let run = run(
            "mem",
            &[("meshwright", Figure::RssClient, &[14.0]), ("meshwright", Figure::RssServer, &[13.0]), ("floor", Figure::RssClient, &[7.0])],
        );
        insta::assert_snapshot!(report(&run, &[], &goals(&run), Ink::Plain));
        assert!(!report(&run, &[], &goals(&run), Ink::Plain).contains('\u{1b}'));
        assert!(report(&run, &[], &goals(&run), Ink::Colour).contains('\u{1b}'));
    }
}
