//! Every parser, for a while: see `tests::fuzz`.

use std::env;
use std::time::Duration;

use tests::fuzz::{drive, targets};

/// For each target in CI.
const SECS: u64 = 10;
/// On the two cores that CI has.
const THREADS: usize = 2;

/// Aim: no bytes make a parser panic, go on for seconds, or break what it promises. Its seed is the day's, printed and taken from
/// `MESHWRIGHT_FUZZ_SEED`; `MESHWRIGHT_FUZZ_SECS` says how long each target runs, `MESHWRIGHT_FUZZ_ONLY` which one.
#[test]
fn parsers_survive() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let today = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
    let (secs, seed) = (number("MESHWRIGHT_FUZZ_SECS").unwrap_or(SECS), number("MESHWRIGHT_FUZZ_SEED").unwrap_or(today));
    let only = env::var("MESHWRIGHT_FUZZ_ONLY").unwrap_or_default();
    let chosen: Vec<_> = targets().into_iter().filter(|target| target.name.contains(&only)).collect();
    let ran = drive(&chosen, Duration::from_secs(secs), THREADS, seed);
    assert_eq!(ran.len(), chosen.len(), "a thread was lost");
    let mut broken = Vec::new();
    for ran in ran {
        println!("{}: {} inputs in {secs} s, the slowest {:?}", ran.name, ran.inputs, ran.slowest);
        if let Some((input, said)) = ran.broken {
            broken.push(format!("{} (MESHWRIGHT_FUZZ_SEED={seed}): {said}\n{:?}", ran.name, String::from_utf8_lossy(&input)));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}
