//! What our pair must cost, beside what it did cost. Pure. The rows are those of the goals in the design's cost guide.

use serde::Serialize;

use crate::pair::catalogue::{DIRECT, OUR_EDGE, OURS};
use crate::pair::phase::{Kind, Phase};
use crate::pair::reading::{Figure, Run, Spread};

/// Rounds below which a 99th percentile says more about the machine than about the proxies.
const ROUNDS_P99: usize = 10;
/// What memory of a process may differ between two starts without anything having grown, KiB: an allocator's step or two.
const NOISE_KIB: f64 = 384.0;

/// How a row is made from readings.
#[derive(Debug, Clone, Copy)]
enum Measure {
    /// Ours over another topology.
    Over(&'static str),
    /// Our edge over another.
    EdgeOver(&'static str),
    /// What ours has above a base, over what another has above it.
    Above { other: &'static str, base: &'static str },
    /// A variant of ours over ours.
    Variant(&'static str),
    /// The figure itself; the greater of two.
    Plain(Figure),
    /// Growth per thing; reached when it is within noise of nothing, whatever the count.
    Nothing,
}

/// A row: what, at which phases, of which figure, how, and the bounds.
struct Row {
    what: &'static str,
    kinds: &'static [Kind],
    figure: Figure,
    measure: Measure,
    goal: Option<f64>,
    stretch: Option<(f64, Measure, &'static str)>,
}

const FLOOR: Measure = Measure::Over("floor");
const FLOOR_DIRECT: Measure = Measure::Above { other: "floor", base: DIRECT };

const fn row(what: &'static str, kinds: &'static [Kind], figure: Figure, measure: Measure, goal: f64) -> Row {
    Row { what, kinds, figure, measure, goal: Some(goal), stretch: None }
}

const fn stretch(row: Row, bound: f64, measure: Measure, than: &'static str) -> Row {
    Row { stretch: Some((bound, measure, than)), ..row }
}

const ROWS: [Row; 28] = [
    stretch(
        row("CPU of the pair, saturated, over floor", &[Kind::Sat], Figure::CpuPair, FLOOR, 1.25),
        1.0,
        Measure::Over("nginx"),
        "over nginx",
    ),
    stretch(
        row("the same above splice, over floor's", &[Kind::Sat], Figure::CpuPair, Measure::Above { other: "floor", base: "splice" }, 1.6),
        1.25,
        Measure::Above { other: "floor", base: "splice" },
        "",
    ),
    stretch(row("total CPU over direct, over floor's", &[Kind::Rate], Figure::CpuAll, FLOOR_DIRECT, 1.25), 1.0, FLOOR_DIRECT, ""),
    stretch(
        row("CPU of the pair, HTTP/2 and gRPC, over floor", &[Kind::H2Sat, Kind::H2Rate, Kind::Grpc], Figure::CpuPair, FLOOR, 1.25),
        1.0,
        FLOOR,
        "",
    ),
    row("the same over Envoy", &[Kind::H2Sat, Kind::H2Rate, Kind::Grpc], Figure::CpuPair, Measure::Over("envoy"), 0.67),
    stretch(row("added p50 over direct, over floor's", &[Kind::Rate], Figure::P50, FLOOR_DIRECT, 1.25), 1.0, FLOOR_DIRECT, ""),
    stretch(row("added p90 over direct, over floor's", &[Kind::Rate], Figure::P90, FLOOR_DIRECT, 2.3), 1.0, FLOOR_DIRECT, ""),
    row("the same over Envoy's", &[Kind::Rate], Figure::P90, Measure::Above { other: "envoy", base: DIRECT }, 0.6),
    stretch(row("added p99 over direct, over floor's", &[Kind::Rate], Figure::P99, FLOOR_DIRECT, 2.3), 1.0, FLOOR_DIRECT, ""),
    row("the same over Envoy's", &[Kind::Rate], Figure::P99, Measure::Above { other: "envoy", base: DIRECT }, 0.6),
    stretch(
        row("downloads, CPU per GB, over floor", &[Kind::Bulk], Figure::CpuPair, FLOOR, 1.1),
        1.0,
        Measure::Over("tcp-tls"),
        "over tcp-tls",
    ),
    stretch(row("new connections, CPU each, over floor", &[Kind::Conn, Kind::ConnSat], Figure::CpuPair, FLOOR, 1.25), 1.0, FLOOR, ""),
    row("new opaque TCP connections, CPU each, over tcp-tls", &[Kind::TcpConn], Figure::CpuPair, Measure::Over("tcp-tls"), 0.46),
    stretch(
        row("memory fresh, resident, MiB per sidecar", &[Kind::Mem], Figure::RssClient, Measure::Plain(Figure::RssServer), 15.0),
        10.0,
        Measure::Plain(Figure::RssServer),
        "",
    ),
    stretch(
        row("memory fresh, PSS, MiB per sidecar", &[Kind::Mem], Figure::PssClient, Measure::Plain(Figure::PssServer), 8.0),
        4.0,
        Measure::Plain(Figure::PssServer),
        "",
    ),
    row("memory per held connection, client side, over floor", &[Kind::Idle, Kind::TcpIdle], Figure::DirtyEachClient, FLOOR, 1.25),
    // Pooled connections are few at the server's side, whatever is held at the client's.
    row("the same, server side", &[Kind::TcpIdle], Figure::DirtyEachServer, FLOOR, 1.25),
    Row {
        what: "memory per service not used, KiB",
        kinds: &[Kind::Services],
        figure: Figure::DirtyEachClient,
        measure: Measure::Nothing,
        goal: None,
        stretch: None,
    },
    row("access log on, CPU of the pair, over ours", &[Kind::Sat, Kind::Rate], Figure::CpuPair, Measure::Variant("meshwright-log"), 1.08),
    row(
        "tracing at 100 %, CPU of the pair, over ours",
        &[Kind::Sat, Kind::Rate],
        Figure::CpuPair,
        Measure::Variant("meshwright-traced"),
        1.08,
    ),
    row("edge: HTTPS, HTTP/1.1, CPU over Envoy", &[Kind::Sat], Figure::CpuPair, Measure::EdgeOver("edge-envoy"), 0.45),
    row("the same over nginx", &[Kind::Sat], Figure::CpuPair, Measure::EdgeOver("edge-nginx"), 1.2),
    row("the same over haproxy", &[Kind::Sat], Figure::CpuPair, Measure::EdgeOver("edge-haproxy"), 1.2),
    row("edge: HTTPS, HTTP/2, CPU over Envoy", &[Kind::H2Sat], Figure::CpuPair, Measure::EdgeOver("edge-envoy"), 0.67),
    row("the same over nginx", &[Kind::H2Sat], Figure::CpuPair, Measure::EdgeOver("edge-nginx"), 1.2),
    // As many handshakes a second as 0.95 of nginx's.
    row("edge: full handshakes with a request, CPU over nginx", &[Kind::ConnSat], Figure::CpuPair, Measure::EdgeOver("edge-nginx"), 1.05),
    row("edge: memory per idle TLS connection, over floor", &[Kind::Idle], Figure::DirtyEachServer, Measure::EdgeOver("edge-floor"), 1.25),
    row("both, CPU of the pair, over ours", &[Kind::Sat, Kind::Rate], Figure::CpuPair, Measure::Variant("meshwright-both"), 1.12),
];

/// A goal that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Goal {
    /// What.
    pub(super) what: &'static str,
    /// Where.
    pub(super) phase: Phase,
    /// What it came to, over rounds.
    pub(super) figure: Spread,
    /// The bound, in words.
    pub(super) goal: String,
    /// Whether the median is within it.
    pub(super) reached: bool,
    /// The further bound, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stretch: Option<String>,
    /// Whether the median is within that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stretch_reached: Option<bool>,
}

/// Every row for which the run has readings.
pub(super) fn goals(run: &Run) -> Vec<Goal> {
    let rows = ROWS.iter().filter(|row| row.figure != Figure::P99 || run.rounds() >= ROUNDS_P99);
    rows.flat_map(|row| run.phases.iter().filter(|phase| row.kinds.contains(&phase.kind)).filter_map(|phase| goal(run, row, *phase)))
        .collect()
}

fn goal(run: &Run, row: &Row, phase: Phase) -> Option<Goal> {
    let figure = measured(run, row.measure, phase, row.figure)?;
    let (goal, reached) = match row.goal {
        Some(bound) => (format!("≤ {bound}"), figure.median <= bound),
        None => ("0".to_owned(), figure.median * f64::from(phase.number.unwrap_or(1)) <= NOISE_KIB),
    };
    let further = row.stretch.and_then(|(bound, measure, than)| {
        let figure = measured(run, measure, phase, row.figure)?;
        let words = if than.is_empty() { format!("≤ {bound}") } else { format!("≤ {bound} {than} ({:.2})", figure.median) };
        Some((words, figure.median <= bound))
    });
    let (stretch, stretch_reached) = further.unzip();
    Some(Goal { what: row.what, phase, figure, goal, reached, stretch, stretch_reached })
}

fn measured(run: &Run, measure: Measure, phase: Phase, figure: Figure) -> Option<Spread> {
    match measure {
        Measure::Over(other) => run.ratio(phase, figure, OURS, other),
        Measure::EdgeOver(other) => run.ratio(phase, figure, OUR_EDGE, other),
        Measure::Above { other, base } => run.ratio_above(phase, figure, OURS, other, base),
        Measure::Variant(name) => run.ratio(phase, figure, name, OURS),
        Measure::Plain(second) => {
            let (one, other) = (run.spread(phase, OURS, figure)?, run.spread(phase, OURS, second)?);
            Some(if one.median >= other.median { one } else { other })
        }
        Measure::Nothing => run.spread(phase, OURS, figure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::reading::tests::run;

    fn reached(run: &Run) -> Vec<(&'static str, f64, bool, Option<bool>)> {
        goals(run).into_iter().map(|goal| (goal.what, goal.figure.median, goal.reached, goal.stretch_reached)).collect()
    }

    /// Aim: rows that were measured appear with their verdict, the others do not.
    #[test]
    fn measured_goals_have_verdicts() {
        let cpu = Figure::CpuPair;
        let sat = run("sat", &[("direct", cpu, &[0.0]), (OURS, cpu, &[36.0]), ("floor", cpu, &[30.0]), ("splice", cpu, &[20.0])]);
        assert_eq!(
            reached(&sat),
            [("CPU of the pair, saturated, over floor", 1.2, true, None), ("the same above splice, over floor's", 1.6, true, Some(false))]
        );
        let with_nginx = run("sat", &[(OURS, cpu, &[36.0]), ("floor", cpu, &[20.0]), ("nginx", cpu, &[40.0])]);
        assert_eq!(reached(&with_nginx), [("CPU of the pair, saturated, over floor", 1.8, false, Some(true))]);
        assert_eq!(goals(&with_nginx)[0].stretch.as_deref(), Some("≤ 1 over nginx (0.90)"));
    }

    /// Aim: the worse of two sidecars counts, growth of nothing is judged by its sum, and p99 needs ten rounds.
    #[test]
    fn goals_of_their_own_kind() {
        let mem = run("mem", &[(OURS, Figure::RssClient, &[12.0]), (OURS, Figure::RssServer, &[15.5])]);
        assert_eq!(reached(&mem), [("memory fresh, resident, MiB per sidecar", 15.5, false, Some(false))]);
        for (each, good) in [(0.2, true), (-0.1, true), (1.0, false)] {
            let services = run("services:1000", &[(OURS, Figure::DirtyEachClient, &[each])]);
            assert_eq!(reached(&services), [("memory per service not used, KiB", each, good, None)]);
        }
        let p99 = |rounds| {
            run(
                "rate:4000",
                &[
                    (OURS, Figure::P99, &vec![3.0; rounds]),
                    ("floor", Figure::P99, &vec![2.0; rounds]),
                    (DIRECT, Figure::P99, &vec![1.0; rounds]),
                ],
            )
        };
        assert_eq!((reached(&p99(9)).len(), reached(&p99(10)).len()), (0, 1));
    }
}
