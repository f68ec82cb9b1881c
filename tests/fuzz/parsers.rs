//! libFuzzer at any of `tests::fuzz::targets`: `MESHWRIGHT_FUZZ_ONLY=dns cargo +nightly fuzz run parsers`.
//!
//! One program for all of them, because each would link the whole workspace. Without a name the first byte of an input chooses.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tests::fuzz::{Target, targets};

fn chosen() -> &'static [Target] {
    static CHOSEN: OnceLock<Vec<Target>> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let only = std::env::var("MESHWRIGHT_FUZZ_ONLY").unwrap_or_default();
        targets().into_iter().filter(|target| target.name.contains(&only)).collect()
    })
}

fuzz_target!(|bytes: &[u8]| {
    match chosen() {
        [] => panic!("MESHWRIGHT_FUZZ_ONLY names no target"),
        [target] => (target.take)(bytes),
        several => {
            if let Some((which, rest)) = bytes.split_first() {
                (several[usize::from(*which) % several.len()].take)(rest);
            }
        }
    }
});
