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

/// Groups of `gateway-api.md` 4.3 and gaps of 4.4 that only calls from outside meet.
const NORTH_SOUTH: [&str; 5] = ["4.3.5", "4.3.6", "4.3.7", "4.3.19", "4.4:sni-absent"];

/// What a table has no words for at an edge: where it is tried, as a file of this repository and a test in it.
const EDGE_ELSEWHERE: [(&str, &str, &str); 17] = [
    ("4.3.20: certificates of clients", "proxy/src/tests/edge/clients.rs", "a_connection_ends_with_the_authority_of_its_client"),
    ("4.3.21: BackendTLSPolicy", "proxy/src/tests/edge/backends.rs", "a_backend_must_prove_what_its_policy_says"),
    ("HTTP/3, by a stock client", "tests/tests/foreign/http3.rs", "a_stock_client_of_http3_is_served"),
    ("HTTP/3, by clients that mean harm", "proxy/src/tests/edge/http3/strict.rs", "a_client_that_moves_comes_anew"),
    ("logins", "tests/tests/foreign/login.rs", "a_browser_logs_in_at_a_real_provider"),
    ("certificates by ACME", "tests/tests/foreign/acme.rs", "certificates_are_ordered_from_a_real_authority"),
    ("the PROXY protocol, both versions", "proxy/src/tests/edge/client_policy.rs", "a_balancer_says_who_comes"),
    ("gRPC-Web, its trailers and its text", "proxy/src/tests/edge/client_policy.rs", "a_browser_calls_grpc_over_http1"),
    ("WebSocket and server-sent events, in a browser", "tests/tests/foreign/browser.rs", "a_browser_walks_through_the_shop"),
    ("datagrams, carried", "proxy/src/tests/edge/datagrams.rs", "each_client_has_a_session_of_its_own"),
    ("TLS that ends in bytes, carried", "proxy/src/tests/edge/bytes.rs", "ended_tls_carries_bytes"),
    ("profiles of TLS", "tests/tests/foreign/tls.rs", "what_an_edge_speaks_is_what_its_page_says"),
    ("services that are asked, and are away", "tests/tests/foreign/callouts.rs", "whoever_is_asked_may_be_away_in_every_way"),
    ("answers beside those without an edge", "tests/tests/foreign/curl.rs", "curl_gets_what_it_asks_for"),
    ("who shows which certificate", "proxy/src/tests/edge/tls.rs", "a_name_leads_to_its_chain_and_no_name_to_none"),
    ("a body of any length and a slow client", "tests/tests/foreign/curl.rs", "nothing_long_is_held"),
    ("bounds of a port's clients", "proxy/src/tests/edge/client_policy.rs", "more_than_may_come_are_closed"),
];

/// What nobody tries yet, and why.
const UNCOVERED: [(&str, &str); 2] = [
    (
        "datagrams and HTTP/3 in the whole mesh",
        "its network is memory pipes, which carry no datagrams; the table has datagrams by translator and engine",
    ),
    (
        "coalescing across two Gateways on one address",
        "hosts of a mesh have one proxy each; across the listeners of one Gateway it is in the table",
    ),
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
    let missing: Vec<_> = EAST_WEST.iter().chain(&NORTH_SOUTH).filter(|group| !found.contains(*group)).collect();
    assert!(missing.is_empty(), "no case refers to {missing:?}");
    let covered: Vec<_> = ELSEWHERE.iter().filter(|(group, _)| found.contains(group)).collect();
    assert!(covered.is_empty(), "there are cases after all: {covered:?}");
    let known = |found: &&str| {
        EAST_WEST.contains(found) || NORTH_SOUTH.contains(found) || ["traffic-policy", "contract", "edge-kinds"].contains(found)
    };
    let unknown: Vec<_> = found.into_iter().filter(|found| !known(found)).collect();
    assert!(unknown.is_empty(), "cases refer to what is no group: {unknown:?}");
}

/// Aim: the edge's half says how many cases it has, of what, where the rest is tried, and what nobody tries; who is named for it is there.
#[test]
fn the_edges_half_says_what_it_covers() {
    let tables: Vec<_> = tables().unwrap().into_iter().filter(|table| table.name.starts_with("edge-")).collect();
    let asked: usize = tables.iter().map(|table| table.all_cases().count()).sum();
    let told: usize = tables.iter().map(|table| table.all_statuses().count()).sum();
    let of_cases = tables.iter().flat_map(|table| table.all_cases().flat_map(|case| &case.refs));
    let of_statuses = tables.iter().flat_map(|table| table.all_statuses().flat_map(|case| &case.refs));
    let groups: BTreeSet<&String> = of_cases.chain(of_statuses).collect();
    println!("the edge's half: {asked} requests and {told} statuses, of {} groups: {groups:?}", groups.len());
    for (what, file, test) in EDGE_ELSEWHERE {
        let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file));
        assert!(text.is_ok_and(|text| text.contains(&format!("fn {test}"))), "{what}: {file} has no {test}");
        println!("elsewhere: {what}: {file}");
    }
    for (what, why) in UNCOVERED {
        println!("uncovered: {what}: {why}");
    }
}
