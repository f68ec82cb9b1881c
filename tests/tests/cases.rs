//! The case table (`tests/cases`), by every consumer that needs neither rights nor other processes; `docs/cases.md`.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "what stands beside the product may use the machine's own clock")]

#[path = "cases/coverage.rs"]
mod coverage;
#[path = "cases/property.rs"]
mod property;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tests::cases::table::{Table, tables};
use tests::cases::{live, unit};

/// Tables that run beside each other.
const AT_ONCE: usize = 4;

/// Runs every table, or those whose name holds `MESHWRIGHT_CASES`, and fails with everything that is wrong in any.
fn every_table(run: impl Fn(&Table) -> anyhow::Result<usize> + Sync) -> usize {
    let wanted = std::env::var("MESHWRIGHT_CASES").unwrap_or_default();
    let tables: Vec<Table> = tables().unwrap().into_iter().filter(|table| table.name.contains(&wanted)).collect();
    let (next, count, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(table) = tables.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(table) {
                        Ok(cases) => _ = count.fetch_add(cases, Ordering::Relaxed),
                        Err(error) => wrong.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{}:\n{error:#}", table.name)),
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    count.into_inner()
}

/// Aim: translator and engine choose, change and answer as every case wants, and as the oracle says that the standard wants.
#[test]
fn translator_and_engine_do_as_the_table_says() {
    println!("{} cases", every_table(unit::run));
}

/// Aim: in a whole mesh, control plane and proxies at both ends, every case comes to what it wants.
#[test]
fn a_mesh_does_as_the_table_says() {
    println!("{} cases", every_table(live::run));
}

/// Aim: names in the tables are of one case each, so that a failure names its case.
#[test]
fn cases_have_names_of_their_own() {
    for table in tables().unwrap() {
        let names = table.all_cases().map(|case| &case.name).chain(table.all_statuses().map(|case| &case.name));
        let mut seen = BTreeSet::new();
        let twice: Vec<&String> = names.filter(|name| !seen.insert(*name)).collect();
        assert!(twice.is_empty(), "{}: {twice:?}", table.name);
    }
}
