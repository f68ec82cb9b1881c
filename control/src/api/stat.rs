//! `stat`: golden metrics of what is called now, as `kinds.md` prints them.

use std::time::Duration;

use proto::mesh::{Json, StatRequest};
use serde_json::{Value, json};
use tonic::Status;

use crate::publish::board::Board;
use crate::publish::stats::{Golden, StatSubject, StatView, WINDOW_SECS_MAX};

/// The window where none is said.
const WINDOW: Duration = Duration::from_secs(10);

pub(super) fn rows(board: &Board, request: &StatRequest) -> Result<Json, Status> {
    let view = match request.view.as_str() {
        "" | "services" => StatView::Services,
        "routes" => StatView::Routes,
        "workloads" => StatView::Workloads,
        other => return Err(Status::invalid_argument(format!("there is no view `{other}`; there are services, routes and workloads"))),
    };
    // What is no time at all is refused with what is too long.
    let window = request.window.map_or(WINDOW, |window| Duration::try_from(window).unwrap_or_default());
    if !(1..=WINDOW_SECS_MAX).contains(&window.as_secs()) || window.subsec_nanos() > 0 {
        let told = format!("a window has whole seconds, 1 to {WINDOW_SECS_MAX}; for longer times ask Prometheus (docs/telemetry.md)");
        return Err(Status::invalid_argument(told));
    }
    let from = match request.from.split_once('/') {
        Some((namespace, name)) => Some((namespace.to_owned(), name.to_owned())),
        None if request.from.is_empty() => None,
        None => return Err(Status::invalid_argument(format!("`{}` is not of the form NAMESPACE/WORKLOAD", request.from))),
    };
    let (rows, rest) = board.stats(|book| book.rows(view, from.as_ref(), window, board.clock.ms()));
    let fits = |subject: &StatSubject| fits(request, view, subject);
    let rows: Value = rows.iter().filter(|(subject, _)| fits(subject)).map(|(subject, golden)| row(subject, golden, window)).collect();
    let note = match rest {
        0 => String::new(),
        rest => format!("{rest} more requests are in no row: there are too many services, routes and callers to tell them all apart"),
    };
    Ok(Json { json: rows.to_string(), note })
}

fn fits(request: &StatRequest, view: StatView, subject: &StatSubject) -> bool {
    let names: [&str; 3] = match view {
        StatView::Services => [&subject.service, "", ""],
        // By its service, its route, or the route's name.
        StatView::Routes => [&subject.service, &subject.route, subject.route.rsplit('/').next().unwrap_or_default()],
        StatView::Workloads => [&subject.workload, "", ""],
    };
    (request.namespace.is_empty() || request.namespace == subject.namespace)
        && (request.name.is_empty() || names.contains(&request.name.as_str()))
}

/// `budget_left` is an SLO's, and there are none yet.
fn row(subject: &StatSubject, golden: &Golden, window: Duration) -> Value {
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let ms = |share: f64| golden.quantile_ms(share).map(|ms| (ms * 1000.0).round() / 1000.0);
    json!({
        "namespace": subject.namespace,
        "service": text(&subject.service),
        "route": text(&subject.route),
        "workload": text(&subject.workload),
        "requests": golden.requests,
        "failures": golden.failures,
        "rps": golden.requests as f64 / window.as_secs_f64(),
        "success": golden.success_percent(),
        "p50_ms": ms(0.5),
        "p95_ms": ms(0.95),
        "p99_ms": ms(0.99),
        "budget_left": null,
    })
}
