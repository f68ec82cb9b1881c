//! What of the standard's exact semantics the table covers, and what it leaves out on purpose.

use std::collections::BTreeSet;

use tests::cases::table::tables;

/// Groups of `gateway-api.md` 4.3 that concern calls between services, and the gaps of 4.4 that are not the edge's alone.
const EAST_WEST: [&str; 32] = [
    "4.3.1",
    "4.3.2",
    "4.3.3",
    "4.3.4",
    "4.3.8",
    "4.3.9",
    "4.3.10",
    "4.3.11",
    "4.3.12",
    "4.3.13",
    "4.3.14",
    "4.3.15",
    "4.3.16",
    "4.3.17",
    "4.3.18",
    "4.3.22",
    "4.3.23",
    "4.3.24",
    "4.3.25",
    "4.4:no-match",
    "4.4:really-compared",
    "4.4:consumer-beats-producer",
    "4.4:producer-from-elsewhere",
    "4.4:missing-port",
    "4.4:parent-status",
    "4.4:kinds",
    "4.4:timeouts-retries-mirrors",
    "4.4:age-ties",
    "4.4:head-options",
    "4.4:repeated-query-keys",
    "4.4:regex",
    "4.4:extension-ref",
];

/// Left out on purpose, and why.
const ELSEWHERE: [(&str, &str); 4] = [
    ("4.4:fail-closed-without-control-plane", "`sim`: a control plane that is killed or cut off; a table has nobody to kill it"),
    ("4.4:config-flap-under-load", "`it`: an edit under load; a table waits for each change"),
    ("4.4:certificate-rotation", "`sim`: leaves of a minute rotate for ten"),
    ("4.4:foreign-status-entries", "only a Kubernetes API server holds other controllers' entries"),
];

/// Aim: every group that concerns calls between services has a case, or is named here with the reason why not.
#[test]
fn every_group_has_a_case_or_a_reason() {
    let tables = tables().unwrap();
    let of_cases = tables.iter().flat_map(|table| table.all_cases().flat_map(|case| &case.refs));
    let of_statuses = tables.iter().flat_map(|table| table.all_statuses().flat_map(|case| &case.refs));
    let found: BTreeSet<&str> = of_cases.chain(of_statuses).map(String::as_str).collect();
    let missing: Vec<_> = EAST_WEST.iter().filter(|group| !found.contains(*group)).collect();
    assert!(missing.is_empty(), "no case refers to {missing:?}");
    let covered: Vec<_> = ELSEWHERE.iter().filter(|(group, _)| found.contains(group)).collect();
    assert!(covered.is_empty(), "there are cases after all: {covered:?}");
    let known = |found: &&str| EAST_WEST.contains(found) || ["traffic-policy", "contract", "edge-kinds"].contains(found);
    let unknown: Vec<_> = found.into_iter().filter(|found| !known(found)).collect();
    assert!(unknown.is_empty(), "cases refer to what is no group: {unknown:?}");
}
