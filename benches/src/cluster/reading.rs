//! What was measured, and the table of it. Pure.

use comfy_table::{CellAlignment, ContentArrangement, Table};

/// One turn.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(super) struct Reading {
    /// From the control plane's start until everything had been read and its doors were open.
    pub(super) read_secs: f64,
    /// Its CPU until it was at rest then.
    pub(super) read_cpu_secs: f64,
    /// Its memory then.
    pub(super) read_mib: f64,
    /// The most until then.
    pub(super) read_peak_mib: f64,
    /// CPU until all proxies had their first configuration.
    pub(super) connect_cpu_secs: f64,
    /// Memory then.
    pub(super) connected_mib: f64,
    /// Pods replaced.
    pub(super) replaced: u32,
    /// How long that took.
    pub(super) churn_secs: f64,
    /// CPU meanwhile, until it was at rest again.
    pub(super) churn_cpu_secs: f64,
    /// Answers on all streams meanwhile.
    pub(super) pushes: u64,
    /// Memory then.
    pub(super) churned_mib: f64,
    /// The most of all.
    pub(super) churned_peak_mib: f64,
}

impl Reading {
    fn rows(&self) -> [(&'static str, f64); 13] {
        let each = |sum: f64, count: f64| if count > 0.0 { sum / count } else { 0.0 };
        [
            ("read everything, s", self.read_secs),
            ("CPU of that, s", self.read_cpu_secs),
            ("memory then, MiB", self.read_mib),
            ("the most until then, MiB", self.read_peak_mib),
            ("CPU until all proxies had their first configuration, s", self.connect_cpu_secs),
            ("memory then, MiB", self.connected_mib),
            ("pods replaced per second", each(f64::from(self.replaced), self.churn_secs)),
            ("pushes per second", each(self.pushes as f64, self.churn_secs)),
            ("CPU meanwhile, of one", each(self.churn_cpu_secs, self.churn_secs)),
            ("CPU per pod replaced, ms", each(self.churn_cpu_secs * 1e3, f64::from(self.replaced))),
            ("CPU per push, µs", each(self.churn_cpu_secs * 1e6, self.pushes as f64)),
            ("memory then, MiB", self.churned_mib),
            ("the most of all, MiB", self.churned_peak_mib),
        ]
    }
}

/// Medians with their ranges.
pub(super) fn table(readings: &[Reading]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["WHAT", "MEDIAN", "RANGE"]);
    let all: Vec<_> = readings.iter().map(Reading::rows).collect();
    for (row, (what, _)) in Reading::default().rows().into_iter().enumerate() {
        let mut values: Vec<f64> = all.iter().map(|rows| rows[row].1).collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        let range = format!("{:.2}..{:.2}", at(0), at(values.len().saturating_sub(1)));
        table.add_row([what.to_owned(), format!("{:.2}", at(values.len() / 2)), range]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_they_took() {
        // Aim: the table has the middle of the turns with the ends of their range; without churn nothing is divided by nothing.
        let turn = |replaced: u32| Reading { replaced, churn_secs: 2.0, churn_cpu_secs: 1.0, pushes: 4000, ..Reading::default() };
        let text = table(&[turn(10), turn(40), turn(20)]).to_string();
        let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap().split_whitespace().rev().take(2).collect::<Vec<_>>();
        assert_eq!(line("pods replaced per second"), ["5.00..20.00", "10.00"]);
        assert_eq!(line("pushes per second"), ["2000.00..2000.00", "2000.00"]);
        assert!(table(&[Reading::default()]).to_string().lines().all(|line| !line.contains("NaN") && !line.contains("inf")));
    }
}
