//! What it costs a busy proxy that somebody watches.

use std::fs;

use crate::caller::Road;
use crate::instructions::{counted, order, wrap};
use crate::pair::{Hop, Pair, artifacts};

/// What a tap of one destination may add to a request that it cannot show, since there are more than it may. The goal is 1.03; 1.031 was
/// seen.
const BUSY_MAX: f64 = 1.05;
/// The same where any request might be one that is looked for, so that notes are taken of each: what the access log may cost without its lines.
const LOOKING_MAX: f64 = 1.12;

/// Aim: watching a busy proxy costs a request little; looking for failures among all requests, less than the access log; and when nobody
/// watches any more, nothing.
#[test]
#[ignore = "needs root, valgrind and the binary that ships: tests/run-all budgets"]
fn a_tap_stays_within_its_instructions() {
    let pair = Pair::start(wrap);
    let kept = artifacts().join("budgets");
    fs::create_dir_all(&kept).unwrap();
    pair.settle();
    for hop in Hop::BOTH {
        order(&pair, hop, &["instrumentation", "on"]);
    }
    let sum = || counted(&pair, Road::Get, &kept).iter().map(|(_, each)| each).sum::<f64>();
    let plain = sum();
    for (what, filter, max) in [
        ("a tap of one Service", &["--service", "bench/web", "--rate", "1"][..], BUSY_MAX),
        ("a tap of failures", &["--status", "5xx"], LOOKING_MAX),
    ] {
        let tap = pair.tap(filter);
        let ratio = sum() / plain;
        drop(tap);
        println!("{what} takes {ratio:.4} times the instructions of {}", Road::Get.name());
        assert!(ratio <= max, "{what} costs {ratio:.4}, {max} at most");
    }
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ratio = sum() / plain;
    println!("a tap that has ended takes {ratio:.4} times the instructions");
    assert!(ratio <= 1.01, "a tap that has ended costs {ratio:.4}");
}
