//! What was measured, and the table of it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::Change;

/// One change, or a start.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(super) struct Reading {
    /// CPU of the control plane until it was at rest again.
    pub(super) cpu_secs: f64,
    /// CPU of the simulated proxies until the last of them was told: it is taken from the same cores.
    pub(super) proxies_cpu_secs: f64,
    /// From the change to the last proxy that it concerns.
    pub(super) last_secs: f64,
    /// The same, the proxy in the middle.
    pub(super) p50_secs: f64,
    /// The same, all but the slowest hundredth.
    pub(super) p99_secs: f64,
}

impl Reading {
    /// Of one change, with the CPU of the control plane and of the proxies; `times` ascend.
    pub(super) fn of((cpu_secs, proxies_cpu_secs): (f64, f64), times: &[f64]) -> Self {
        let at = |place: usize| times.get(place).copied().unwrap_or_default();
        let last = times.len().saturating_sub(1);
        let (p50_secs, p99_secs) = (at(times.len() / 2), at((times.len() * 99 / 100).min(last)));
        Self { cpu_secs, proxies_cpu_secs, last_secs: at(last), p50_secs, p99_secs }
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

/// Middle and ends of some values.
struct Spread {
    middle: f64,
    ends: (f64, f64),
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        Self { middle: at(values.len() / 2), ends: (at(0), at(values.len().saturating_sub(1))) }
    }

    /// What `figure` says of readings, in milliseconds.
    fn ms(readings: &[Reading], figure: impl Fn(&Reading) -> f64) -> Self {
        Self::of(readings.iter().map(|reading| figure(reading) * 1e3).collect())
    }

    fn text(&self) -> String {
        format!("{:.1} [{:.1}..{:.1}]", self.middle, self.ends.0, self.ends.1)
    }

    /// The middle of the first as a share of this one's.
    fn share(&self, first: &Self) -> String {
        format!("{:.3}", first.middle / self.middle.max(f64::EPSILON))
    }
}

/// Medians with their ranges, and how the first control plane stands to each.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "CONTROL PLANE",
        "WHAT",
        "CPU ms",
        "CPU OF THE FIRST",
        "PROXIES' CPU ms",
        "P50 ms",
        "P99 ms",
        "P99 OF THE FIRST",
        "LAST ms",
        "MIB",
    ]);
    for row in rows {
        let first = rows.first().unwrap_or(row);
        let mib = Spread::of(row.resident_mib.clone());
        let kinds = row.changes.iter().map(|(change, readings)| (change.text(), readings, first.changes.get(change)));
        for (what, readings, of_first) in std::iter::once(("start", &row.start, Some(&first.start))).chain(kinds) {
            let of_first = of_first.unwrap_or(readings);
            let figures = [|reading: &Reading| reading.cpu_secs, |reading: &Reading| reading.p99_secs];
            let [cpu, p99] = figures.map(|figure| Spread::ms(readings, figure));
            let [cpu_share, p99_share] =
                [(&cpu, figures[0]), (&p99, figures[1])].map(|(own, figure)| own.share(&Spread::ms(of_first, figure)));
            table.add_row([
                row.control.display().to_string(),
                what.to_owned(),
                cpu.text(),
                cpu_share,
                Spread::ms(readings, |reading| reading.proxies_cpu_secs).text(),
                Spread::ms(readings, |reading| reading.p50_secs).text(),
                p99.text(),
                p99_share,
                Spread::ms(readings, |reading| reading.last_secs).text(),
                mib.text(),
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
        let reading = |cpu_secs| Reading { cpu_secs, proxies_cpu_secs: 0.005, last_secs: 0.02, p50_secs: 0.01, p99_secs: 0.02 * cpu_secs };
        let row = |name: &str, cpu: [f64; 3]| {
            let mut row = Row::new(Path::new(name));
            row.start.push(reading(1.0));
            cpu.into_iter().for_each(|cpu| row.add(Change::One, reading(cpu)));
            row
        };
        let text = table(&[row("new", [0.3, 0.1, 0.2]), row("old", [0.8, 0.8, 9.0])]).to_string();
        let line = text.lines().find(|line| line.contains("old") && line.contains("one")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let wanted = [
            "old",
            "one",
            "800.0",
            "[800.0..9000.0]",
            "0.250",
            "5.0",
            "[5.0..5.0]",
            "10.0",
            "[10.0..10.0]",
            "16.0",
            "[16.0..180.0]",
            "0.250",
        ];
        assert_eq!(words[..12], wanted, "{text}");
    }

    #[test]
    fn a_reading_is_the_last_and_the_middle() {
        // Aim: of ascending times; of none, nothing.
        let reading = Reading::of((1.0, 0.5), &[0.1, 0.2, 0.9]);
        assert_eq!((reading.p50_secs, reading.p99_secs, reading.last_secs), (0.2, 0.9, 0.9));
        let many: Vec<f64> = (0..2000).map(f64::from).collect();
        assert_eq!(Reading::of((1.0, 0.5), &many).p99_secs, 1980.0);
        assert_eq!(Reading::of((0.0, 0.0), &[]).last_secs, 0.0);
    }
}
