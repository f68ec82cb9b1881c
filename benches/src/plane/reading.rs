//! What was measured, and the table of it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::Change;

/// One change, or a start.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Reading {
    /// CPU of the control plane until it was at rest again.
    pub(super) cpu_secs: f64,
    /// From the change to the last proxy that it concerns.
    pub(super) last_secs: f64,
    /// The same, the proxy in the middle.
    pub(super) p50_secs: f64,
}

impl Reading {
    /// Of one change; `times` ascend.
    pub(super) fn of(cpu_secs: f64, times: &[f64]) -> Self {
        let at = |place: usize| times.get(place).copied().unwrap_or_default();
        Self { cpu_secs, last_secs: at(times.len().saturating_sub(1)), p50_secs: at(times.len() / 2) }
    }
}

/// All of one control plane.
#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Row {
    /// The program.
    pub(super) control: PathBuf,
    /// From listening until every proxy had its first configuration.
    pub(super) start: Vec<Reading>,
    /// Changes.
    pub(super) changes: BTreeMap<Change, Vec<Reading>>,
    /// Memory at the end of a turn.
    pub(super) resident_mib: Vec<f64>,
}

impl Row {
    /// Nothing yet.
    pub(super) fn new(control: &Path) -> Self {
        Self { control: control.to_owned(), start: Vec::new(), changes: BTreeMap::new(), resident_mib: Vec::new() }
    }

    /// One more reading.
    pub(super) fn add(&mut self, change: Change, reading: Reading) {
        self.changes.entry(change).or_default().push(reading);
    }
}

/// Middle of what `figure` says of the readings.
fn median(readings: &[Reading], figure: impl Fn(&Reading) -> f64) -> f64 {
    middle(readings.iter().map(figure).collect())
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Medians, and how the first control plane stands to each.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["CONTROL PLANE", "WHAT", "CPU ms", "P50 ms", "LAST ms", "CPU OF THE FIRST", "MIB"]);
    for row in rows {
        let first = rows.first().unwrap_or(row);
        let mib = format!("{:.0}", middle(row.resident_mib.clone()));
        let kinds = row.changes.iter().map(|(change, readings)| (change.text(), readings, first.changes.get(change)));
        for (what, readings, of_first) in std::iter::once(("start", &row.start, Some(&first.start))).chain(kinds) {
            let cpu = median(readings, |reading| reading.cpu_secs);
            let base = of_first.map_or(cpu, |readings| median(readings, |reading| reading.cpu_secs));
            table.add_row([
                row.control.display().to_string(),
                what.to_owned(),
                format!("{:.1}", cpu * 1e3),
                format!("{:.1}", median(readings, |reading| reading.p50_secs) * 1e3),
                format!("{:.1}", median(readings, |reading| reading.last_secs) * 1e3),
                format!("{:.3}", base / cpu.max(f64::EPSILON)),
                mib.clone(),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_stand_beside_the_first() {
        // Aim: the table has the middle of each figure, and the first control plane's CPU as a share of the other's.
        let reading = |cpu_secs| Reading { cpu_secs, last_secs: 0.02, p50_secs: 0.01 };
        let row = |name: &str, cpu: [f64; 3]| {
            let mut row = Row::new(Path::new(name));
            row.start.push(reading(1.0));
            cpu.into_iter().for_each(|cpu| row.add(Change::One, reading(cpu)));
            row
        };
        let text = table(&[row("new", [0.3, 0.1, 0.2]), row("old", [0.8, 0.8, 9.0])]).to_string();
        let line = text.lines().find(|line| line.contains("old") && line.contains("one")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[..6], ["old", "one", "800.0", "10.0", "20.0", "0.250"], "{text}");
    }

    #[test]
    fn a_reading_is_the_last_and_the_middle() {
        // Aim: of ascending times; of none, nothing.
        let reading = Reading::of(1.0, &[0.1, 0.2, 0.9]);
        assert_eq!((reading.p50_secs, reading.last_secs), (0.2, 0.9));
        assert_eq!(Reading::of(0.0, &[]).last_secs, 0.0);
    }
}
