//! System calls per request and of an idle sidecar, by name, by strace.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::book::{Budget, Tolerance};
use crate::caller::Road;
use crate::pair::{Hop, Pair, artifacts};

/// Calls before counting begins.
const WARM_UP: usize = 200;
/// Calls that are counted. One in a hundred is traced.
const COUNTED: usize = 1000;
/// What ticks, reports and traces add to a thousand requests.
const TOLERANCE: Tolerance = Tolerance::Units(0.1);
/// Over HTTP/2 a peer that writes head and body apart is read at once or twice, as it happens.
const TOLERANCE_READS: Tolerance = Tolerance::Units(0.75);
/// How long an idle sidecar is watched, and how long it may settle before. Time itself is what is measured over here: idleness has no end
/// to wait for. Within two looks of ten seconds after work, memory is given back, once.
const IDLE: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(22);
/// A report of its own, sent or not.
const IDLE_TOLERANCE: Tolerance = Tolerance::Units(20.0);

fn trace(folder: &Path, hop: Hop) -> PathBuf {
    folder.join(format!("{}.strace", hop.name()))
}

fn wrap(hop: Hop, folder: &Path) -> Vec<String> {
    let options = ["strace", "-f", "-qq", "-s", "16", "-e", "signal=none", "-o"];
    let options = options.map(str::to_owned).into_iter().chain([trace(folder, hop).display().to_string()]);
    options.collect()
}

/// Where a trace ends now.
fn marks(pair: &Pair) -> [u64; 2] {
    Hop::BOTH.map(|hop| fs::metadata(trace(pair.folder(), hop)).unwrap().len())
}

/// Calls by name since `mark`.
fn count(pair: &Pair, hop: Hop, mark: u64) -> BTreeMap<String, usize> {
    let mut file = fs::File::open(trace(pair.folder(), hop)).unwrap();
    file.seek(SeekFrom::Start(mark)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        // `PID NAME(…`; the second half of an interrupted line is `PID <... NAME resumed>…`.
        let name = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('(')).map_or("", |(name, _)| name);
        if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Names and counts, their sum among them, each divided by `by`.
fn each(counts: BTreeMap<String, usize>, by: usize) -> Vec<(String, f64)> {
    let all = counts.values().sum();
    counts.into_iter().chain([("all".to_owned(), all)]).map(|(name, count)| (name, count as f64 / by as f64)).collect()
}

/// One group of figures.
struct Found {
    group: String,
    unit: &'static str,
    tolerance: fn(&str) -> Tolerance,
    measured: Vec<(String, f64)>,
}

/// Aim: each hop reads once, writes once and waits once per direction; a call that was not made before is named.
// Ignored in a plain `cargo test`, which has no binary that ships; tests/run-all includes it, and there nothing may be missing.
#[test]
#[ignore = "needs root, strace and the binary that ships: tests/run-all budgets"]
fn requests_stay_within_their_system_calls() {
    let pair = Pair::start(wrap);
    pair.settle();
    let mut found: Vec<Found> = Vec::new();
    for road in Road::ALL {
        let mut caller = pair.caller(road).unwrap();
        caller.calls(WARM_UP);
        let before = marks(&pair);
        caller.calls(COUNTED);
        let tolerance: fn(&str) -> Tolerance = if matches!(road, Road::Http2Post | Road::Grpc) { tolerance_http2 } else { tolerance_http1 };
        for (hop, mark) in Hop::BOTH.into_iter().zip(before) {
            let group = format!("system calls/{}/{}", road.name(), hop.name());
            found.push(Found { group, unit: "per request", tolerance, measured: each(count(&pair, hop, mark), COUNTED) });
        }
    }
    let caller = pair.caller(Road::Get).unwrap();
    thread::sleep(SETTLE);
    let before = marks(&pair);
    thread::sleep(IDLE);
    for (hop, mark) in Hop::BOTH.into_iter().zip(before) {
        let group = format!("system calls/idle/{}", hop.name());
        let measured = each(count(&pair, hop, mark), 1);
        found.push(Found { group, unit: "in 10 s with one connection open", tolerance: |_| IDLE_TOLERANCE, measured });
    }
    drop(caller);
    let kept = artifacts().join("budgets");
    fs::create_dir_all(&kept).unwrap();
    for hop in Hop::BOTH {
        fs::copy(trace(pair.folder(), hop), trace(&kept, hop)).unwrap();
    }
    drop(pair);
    let look = format!("tail -n 40000 {}/HOP.strace; the roads follow one another, then idleness", kept.display());
    judge(&found, &look);
}

fn tolerance_http1(_: &str) -> Tolerance {
    TOLERANCE
}

fn tolerance_http2(name: &str) -> Tolerance {
    if matches!(name, "recvfrom" | "read" | "readv" | "epoll_wait" | "epoll_pwait2" | "all") { TOLERANCE_READS } else { TOLERANCE }
}

/// Judges every group before it fails, so that one run says all.
fn judge(found: &[Found], look: &str) {
    let holds = |one: &Found| {
        let budget = Budget { group: &one.group, unit: one.unit, tolerance: one.tolerance, look };
        std::panic::catch_unwind(|| budget.judge(&one.measured)).is_ok()
    };
    let failed: Vec<_> = found.iter().filter(|one| !holds(one)).map(|one| &one.group).collect();
    assert!(failed.is_empty(), "over budget, as said above: {failed:?}");
}
