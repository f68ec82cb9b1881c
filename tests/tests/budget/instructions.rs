//! User-space instructions per request, by valgrind's callgrind: only calls between two marks are counted, so start-up, handshakes and the
//! first use of a connection are not in it.
//!
//! Figures repeat to about 1 % on one machine. Another processor may take other paths of memcpy and of the cipher (valgrind shows none
//! its AVX-512, which levels most of it), another libc others again; hence [`TOLERANCE`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::look::until;

use crate::book::{Budget, Tolerance};
use crate::caller::Road;
use crate::pair::{Hop, Pair, artifacts};

/// Twice what one machine shows, and room for a processor of another make.
pub(crate) const TOLERANCE: Tolerance = Tolerance::Share(0.04);
/// Calls before counting begins.
pub(crate) const WARM_UP: usize = 200;
/// Calls that are counted. One in a hundred is traced.
pub(crate) const COUNTED: usize = 1500;
/// What a hundred rules at both ends may add to a request.
const RULES_MAX: f64 = 1.03;
/// How long vgdb is asked, where a proxy is too busy to hear it.
const HEARD_MAX: Duration = Duration::from_secs(10);

pub(crate) fn wrap(hop: Hop, folder: &Path) -> Vec<String> {
    let folder = folder.display();
    let out = format!("--callgrind-out-file={folder}/{}.callgrind", hop.name());
    let options = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--trace-children=yes", "--dump-line=no", "--combine-dumps=no"];
    let options = options.map(str::to_owned).into_iter().chain([out, format!("--vgdb-prefix={folder}/vgdb")]);
    options.collect()
}

/// Gives valgrind an order. vgdb says nothing when a busy proxy can hear it again, so it is asked again.
pub(crate) fn order(pair: &Pair, hop: Hop, words: &[&str]) {
    let heard = until(HEARD_MAX, || {
        let mut command = Command::new("vgdb");
        command.arg(format!("--pid={}", pair.pid(hop))).arg(format!("--vgdb-prefix={}/vgdb", pair.folder().display()));
        let output = command.arg("--wait=60").args(words).output().expect("vgdb, of valgrind; tests/run-all installs it");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    heard.unwrap_or_else(|last| panic!("vgdb {words:?} to the {} proxy: {last}", hop.name()));
}

fn dumps(pair: &Pair, hop: Hop) -> BTreeSet<PathBuf> {
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{}.callgrind.", hop.name())));
    fs::read_dir(pair.folder()).unwrap().map(|entry| entry.unwrap().path()).filter(named).collect()
}

/// Writes down what was counted since the last zero, keeps the profile, and returns the sum.
pub(crate) fn dump(pair: &Pair, hop: Hop, keep: &Path) -> u64 {
    let before = dumps(pair, hop);
    order(pair, hop, &["dump"]);
    let new = dumps(pair, hop).difference(&before).last().cloned().expect("a dump of callgrind");
    fs::copy(&new, keep).unwrap();
    let text = fs::read_to_string(&new).unwrap();
    let sum = text.lines().rev().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    sum.and_then(|sum| sum.trim().parse().ok()).expect("the sum of a dump")
}

/// Instructions of each hop per call of one road.
pub(crate) fn counted(pair: &Pair, road: Road, kept: &Path) -> [(String, f64); 2] {
    let mut caller = pair.caller(road).unwrap();
    caller.calls(WARM_UP);
    for hop in Hop::BOTH {
        order(pair, hop, &["zero"]);
    }
    caller.calls(COUNTED);
    Hop::BOTH.map(|hop| {
        let keep = kept.join(format!("{}.{}.callgrind", road.name().replace(' ', "-"), hop.name()));
        (format!("{}/{}", road.name(), hop.name()), dump(pair, hop, &keep) as f64 / COUNTED as f64)
    })
}

/// Aim: what a request costs each hop in user space, on every road, with routing from a real snapshot, mTLS, identity check, metrics and
/// tracing at 1 %; and that a hundred rules of who may call add 3 % at most.
// Ignored in a plain `cargo test`, which has no binary that ships; tests/run-all includes it, and there nothing may be missing.
#[test]
#[ignore = "needs root, valgrind and the binary that ships: tests/run-all budgets"]
fn requests_stay_within_their_instructions() {
    let mut pair = Pair::start(wrap);
    let kept = artifacts().join("budgets");
    fs::create_dir_all(&kept).unwrap();
    pair.settle();
    for hop in Hop::BOTH {
        order(&pair, hop, &["instrumentation", "on"]);
    }
    let mut measured: Vec<_> = Road::ALL.into_iter().flat_map(|road| counted(&pair, road, &kept)).collect();
    // Once more: how much room the header maps of a pooled connection have depends on what it has carried.
    let plain = counted(&pair, Road::Get, &kept);
    pair.guard();
    let guarded = counted(&pair, Road::GuardedGet, &kept);
    drop(pair);
    let sum = |hops: &[(String, f64); 2]| hops.iter().map(|(_, each)| each).sum::<f64>();
    let ratio = sum(&guarded) / sum(&plain);
    println!("{} takes {ratio:.4} times the instructions of {}", Road::GuardedGet.name(), Road::Get.name());
    measured.extend(guarded);
    let look = format!(
        "callgrind_annotate --inclusive=yes {}/ROAD.HOP.callgrind | head -60   (instructions of {COUNTED} requests by function; without --inclusive each function's own)",
        kept.display()
    );
    Budget { group: "instructions", unit: "per request", tolerance: |_| TOLERANCE, look: &look }.judge(&measured);
    assert!(ratio <= RULES_MAX, "rules cost {ratio:.4}, {RULES_MAX} at most\nlook:   {look}");
}
