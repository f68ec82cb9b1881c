//! The run as a picture: a panel per phase, a bar per topology, whiskers for the range over rounds. Pure.

use std::fmt::Write;

use crate::pair::catalogue::{DIRECT, OURS};
use crate::pair::phase::{Kind, Phase, Unit};
use crate::pair::reading::{Figure, Run, Spread};
use crate::pair::table::number;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Room of the topologies' names.
const NAMES: f64 = 150.0;
/// Room of a number behind its bar.
const NUMBER: f64 = 86.0;
/// Gap between the two charts of a panel.
const GAP: f64 = 28.0;
/// Share of the width that the first chart has.
const FIRST: f64 = 0.58;
const ROW: f64 = 22.0;
const BAR: f64 = 13.0;
/// Above the rows of a panel: title and heads.
const HEAD: f64 = 52.0;
/// Between panels.
const BELOW: f64 = 22.0;
const TITLE: f64 = 64.0;

/// Light by default, dark where the reader's screen is.
const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#2b3138}\
.title{font-size:18px;font-weight:600}.panel{font-size:14px;font-weight:600}.soft{fill:#66707a}.end{text-anchor:end}.ours{font-weight:600}\
.paper{fill:#fff}.client{fill:#3d6fb4}.server{fill:#93b4dd}.other{fill:#8a9099}.client.ours{fill:#0f8a6d}.server.ours{fill:#73c7b0}.other.ours{fill:#0f8a6d}\
.whisker{stroke:#2b3138;stroke-width:1.2;fill:none}.axis{stroke:#c9ced4;stroke-width:1}\
@media (prefers-color-scheme:dark){text{fill:#dfe4e9}.soft{fill:#98a2ac}.paper{fill:#14181c}.client{fill:#5b8fd6}.server{fill:#2f4f7a}\
.client.ours{fill:#2bb594}.server.ours{fill:#1b6a58}.other.ours{fill:#2bb594}.other{fill:#77808a}.whisker{stroke:#dfe4e9}.axis{stroke:#3a4149}}";

/// One bar: a length, of which the first part is the client's if it is told apart, and a range.
struct Bar {
    first_part: Option<f64>,
    whole: Spread,
}

/// One chart: a head, and a bar or nothing per topology.
struct Chart {
    head: String,
    bars: Vec<Option<Bar>>,
}

/// The picture as an SVG document.
pub(super) fn picture(run: &Run, subtitle: &str) -> String {
    let mut body = String::new();
    let mut top = TITLE + MARGIN;
    for phase in &run.phases {
        let names: Vec<&String> = run.topologies.iter().filter(|name| shown(run, *phase, name)).collect();
        if names.is_empty() {
            continue;
        }
        panel(&mut body, run, *phase, &names, top);
        top += HEAD + ROW * names.len() as f64 + BELOW;
    }
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" role=\"img\">\n\
         <title>What sidecar pairs cost</title>\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" height=\"{top}\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"36\">What sidecar pairs cost</text>\n<text class=\"soft\" x=\"{MARGIN}\" y=\"58\">{}</text>\n\
         {}{body}</svg>\n",
        escape(subtitle),
        legend()
    );
    out
}

fn legend() -> String {
    let left = WIDTH - MARGIN - 250.0;
    let entry = |class: &str, x: f64, text: &str| {
        format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"26\" width=\"12\" height=\"12\"/><text class=\"soft\" x=\"{}\" y=\"36\">{text}</text>\n",
            x + 17.0
        )
    };
    entry("client", left, "client proxy") + &entry("server", left + 96.0, "server proxy") + &entry("client ours", left + 194.0, "ours")
}

/// Whether a topology has a bar in a phase.
fn shown(run: &Run, phase: Phase, name: &str) -> bool {
    charts(run, phase, &[name]).iter().any(|chart| chart.bars.iter().any(Option::is_some))
}

fn charts(run: &Run, phase: Phase, names: &[&str]) -> Vec<Chart> {
    let chart =
        |head: &str, bar: &dyn Fn(&str) -> Option<Bar>| Chart { head: head.to_owned(), bars: names.iter().map(|name| bar(name)).collect() };
    let pair = |name: &str, first: Figure, whole: Option<Spread>| {
        if name == DIRECT { None } else { Some(Bar { first_part: run.spread(phase, name, first).map(|s| s.median), whole: whole? }) }
    };
    let sum = |name: &str, client: Figure, server: Figure| {
        let (client, server) = (run.spread(phase, name, client)?, run.spread(phase, name, server)?);
        Some(Spread { median: client.median + server.median, min: client.min + server.min, max: client.max + server.max, ..client })
    };
    let plain = |spread: Option<Spread>| spread.map(|whole| Bar { first_part: None, whole });
    let cpu = |head: &str| chart(head, &|name| pair(name, Figure::CpuClient, run.spread(phase, name, Figure::CpuPair)));
    let rate = |head: &str, figure: Figure| chart(head, &|name| plain(run.spread(phase, name, figure)));
    match (phase.unit(), phase.kind) {
        (Unit::Memory, Kind::Mem) => vec![
            chart("resident, MiB of both", &|name| pair(name, Figure::RssClient, sum(name, Figure::RssClient, Figure::RssServer))),
            chart("PSS, MiB of both", &|name| pair(name, Figure::PssClient, sum(name, Figure::PssClient, Figure::PssServer))),
        ],
        (Unit::Memory, _) => vec![
            chart("resident, KiB each", &|name| pair(name, Figure::RssEachClient, sum(name, Figure::RssEachClient, Figure::RssEachServer))),
            chart("private dirty, KiB each", &|name| {
                pair(name, Figure::DirtyEachClient, sum(name, Figure::DirtyEachClient, Figure::DirtyEachServer))
            }),
        ],
        (Unit::Gigabyte, _) => vec![cpu("CPU, s per GB"), rate("Gbit/s", Figure::GbitPerSec)],
        (_, Kind::Sat | Kind::H2Sat | Kind::ConnSat) => vec![cpu("CPU, µs each"), rate("per second", Figure::PerSec)],
        _ => vec![
            cpu("CPU, µs each"),
            chart("added p50 over direct, µs", &|name| {
                if name == DIRECT { None } else { plain(run.above(phase, Figure::P50, name, DIRECT)) }
            }),
        ],
    }
}

fn panel(out: &mut String, run: &Run, phase: Phase, names: &[&String], top: f64) {
    let plain: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    let _ = writeln!(
        out,
        "<text class=\"panel\" x=\"{MARGIN}\" y=\"{}\">{phase}</text><text class=\"soft\" x=\"{}\" y=\"{}\">{}</text>",
        top + 14.0,
        MARGIN + NAMES,
        top + 14.0,
        phase.about()
    );
    for (index, name) in plain.iter().enumerate() {
        let class = if is_ours(name) { "end ours" } else { "end" };
        let y = top + HEAD + ROW * index as f64 + BAR - 2.0;
        let _ = writeln!(out, "<text class=\"{class}\" x=\"{}\" y=\"{y}\">{}</text>", MARGIN + NAMES - 12.0, escape(name));
    }
    let room = WIDTH - 2.0 * MARGIN - NAMES - GAP;
    let mut left = MARGIN + NAMES;
    for (chart, share) in charts(run, phase, &plain).iter().zip([FIRST, 1.0 - FIRST]) {
        draw(out, chart, &plain, left, room * share, top);
        left += room * share + GAP;
    }
}

fn draw(out: &mut String, chart: &Chart, names: &[&str], left: f64, width: f64, top: f64) {
    let longest = chart.bars.iter().flatten().map(|bar| bar.whole.max).fold(0.0, f64::max);
    let _ = writeln!(out, "<text class=\"soft\" x=\"{left}\" y=\"{}\">{}</text>", top + 38.0, escape(&chart.head));
    let below = top + HEAD + ROW * chart.bars.len() as f64 - 4.0;
    let _ = writeln!(out, "<path class=\"axis\" d=\"M{left} {} V{below}\"/>", top + HEAD - 5.0);
    if longest <= 0.0 {
        return;
    }
    let long = |value: f64| value.max(0.0) / longest * (width - NUMBER);
    for (index, bar) in chart.bars.iter().enumerate() {
        let Some(bar) = bar else { continue };
        let y = top + HEAD + ROW * index as f64;
        let ours = if is_ours(names[index]) { " ours" } else { "" };
        let whole = long(bar.whole.median);
        let mut rect = |class: &str, x: f64, width: f64| {
            let _ = writeln!(out, "<rect class=\"{class}{ours}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\"/>");
        };
        match bar.first_part.map(long) {
            Some(first) => {
                rect("client", left, first.min(whole));
                rect("server", left + first.min(whole), (whole - first).max(0.0));
            }
            None => rect("other", left, whole),
        }
        let (low, high) = (left + long(bar.whole.min), left + long(bar.whole.max));
        if bar.whole.rounds > 1 {
            let middle = y + BAR / 2.0;
            let _ = writeln!(
                out,
                "<path class=\"whisker\" d=\"M{low:.1} {middle} H{high:.1} M{low:.1} {} v6 M{high:.1} {} v6\"/>",
                middle - 3.0,
                middle - 3.0
            );
        }
        let x = high.max(left + whole) + 8.0;
        let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{}\">{}</text>", y + BAR - 2.0, number(bar.whole.median));
    }
}

/// Our pair and its variants.
fn is_ours(name: &str) -> bool {
    name.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::reading::tests::run;

    /// Aim: the picture of a small run, as a golden text.
    #[test]
    fn a_small_picture() {
        let rows = [
            ("direct", Figure::PerSec, [80_000.0, 90_000.0].as_slice()),
            ("meshwright", Figure::CpuClient, &[20.0, 21.0]),
            ("meshwright", Figure::CpuPair, &[38.0, 40.0]),
            ("meshwright", Figure::PerSec, &[30_000.0, 31_000.0]),
            ("a<b", Figure::CpuPair, &[30.0]),
        ];
        insta::assert_snapshot!(picture(&run("sat", &rows), "2 rounds & more"));
    }

    /// Aim: a run without any figure is a picture without panels, and still a document.
    #[test]
    fn an_empty_picture() {
        let text = picture(&Run::default(), "");
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n") && !text.contains("NaN"));
    }
}
