//! `health`: what traffic tells, and what probes tell.

use std::time::Duration;

use engine::model::build::INTERVAL_MIN;
use proto::mesh::active_check::Kind as Check;
use proto::mesh::{ActiveCheck, GrpcCheck, HttpCheck, TcpCheck};

use super::{TrafficSettings, each_once, positive, whole, wire};
use crate::world::door::{Cursor, Fields};

/// Highest count of failures in a row.
const CONSECUTIVE_MAX: u32 = 1_000_000;
/// Highest count of probes in a row.
const PROBES_MAX: u32 = 1_000;
/// Most codes that a probe takes for success.
const EXPECT_MAX: usize = 32;
/// Longest path of a probe, and longest name of a gRPC service.
const TEXT_BYTES_MAX: usize = 1024;
/// Largest factor of latency.
const LATENCY_FACTOR_MAX: f64 = 1_000.0;

pub(super) fn read(mut fields: Fields<'_>, into: &mut TrafficSettings) {
    if let Some(at) = fields.get("outlier") {
        outlier(at.fields(), into);
    }
    into.active = fields.get("active").and_then(|at| active(&at));
    fields.done();
}

fn outlier(mut fields: Fields<'_>, into: &mut TrafficSettings) {
    into.consecutive_errors = fields.get("consecutiveErrors").and_then(|at| whole(&at, 0..=CONSECUTIVE_MAX));
    into.consecutive_connect_failures = fields.get("consecutiveConnectFailures").and_then(|at| whole(&at, 0..=CONSECUTIVE_MAX));
    into.success_rate_percent = fields.get("successRateMinPercent").and_then(|at| at.percent());
    if let Some(at) = fields.get("latencyFactor") {
        into.latency_factor = at.number();
        let fits = into.latency_factor.is_none_or(|factor| factor == 0.0 || (factor > 1.0 && factor <= LATENCY_FACTOR_MAX));
        if !fits {
            at.error("a factor is 0 (off) or more than 1", format!("write for example 3; at most {LATENCY_FACTOR_MAX}"));
        }
    }
    into.outlier_interval = fields.get("interval").and_then(|at| pace(&at));
    into.eject_for = fields.get("ejectFor").and_then(|at| pace(&at));
    into.max_ejected_percent = fields.get("maxEjectedPercent").and_then(|at| at.percent());
    fields.done();
}

/// A time that is not absurdly short.
fn pace(at: &Cursor<'_>) -> Option<Duration> {
    let read = positive(at)?;
    if read < INTERVAL_MIN {
        at.error("it is too short", format!("use at least {}ms", INTERVAL_MIN.as_millis()));
        return None;
    }
    Some(read)
}

fn active(at: &Cursor<'_>) -> Option<ActiveCheck> {
    let mut fields = at.fields();
    let mut kinds = Vec::new();
    if let Some(at) = fields.get("http") {
        kinds.push(Check::Http(http(at.fields())));
    }
    if let Some(at) = fields.get("grpc") {
        let mut grpc = at.fields();
        let service = grpc.get("service").and_then(|at| short(&at)).unwrap_or_default();
        grpc.done();
        kinds.push(Check::Grpc(GrpcCheck { service }));
    }
    if let Some(at) = fields.get("tcp") {
        at.fields().done();
        kinds.push(Check::Tcp(TcpCheck {}));
    }
    let mut time = |name, default: u64| {
        let read = fields.get(name).and_then(|at| pace(&at));
        wire(read.unwrap_or(Duration::from_secs(default)))
    };
    let (interval, timeout) = (time("interval", 5), time("timeout", 1));
    let healthy_after = fields.get("healthyAfter").and_then(|at| whole(&at, 1..=PROBES_MAX)).unwrap_or(2);
    let unhealthy_after = fields.get("unhealthyAfter").and_then(|at| whole(&at, 1..=PROBES_MAX)).unwrap_or(3);
    fields.done();
    if kinds.len() != 1 {
        at.error("a probe is exactly one of http, grpc and tcp", "write for example `tcp: {}`");
        return None;
    }
    Some(ActiveCheck { kind: kinds.pop(), interval, timeout, healthy_after, unhealthy_after })
}

/// The host is the Service's, and is filled in where the Service is known.
fn http(mut fields: Fields<'_>) -> HttpCheck {
    let mut check = HttpCheck { path: "/".to_owned(), expect: vec![200], host: String::new() };
    if let Some(at) = fields.get("path")
        && let Some(path) = short(&at)
    {
        let fits = path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok() && !path.contains('#');
        if !fits {
            at.error(format!("`{path}` is no path"), "start with `/`");
        }
        check.path = path;
    }
    if let Some(at) = fields.get("expect") {
        let listed = at.list(EXPECT_MAX);
        if listed.is_empty() {
            at.error("no answer would be a success", "list codes, such as 200");
        }
        check.expect = each_once(listed.into_iter().filter_map(|at| whole(&at, 200..=599).map(|code| (at, code))).collect());
    }
    fields.done();
    check
}

fn short(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.len() > TEXT_BYTES_MAX {
        at.error("it is too long", format!("at most {TEXT_BYTES_MAX} bytes"));
        return None;
    }
    Some(text)
}
