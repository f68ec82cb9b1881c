//! The book itself: what counts as worse, and how it says so. Runs everywhere.

use crate::book::{Book, Budget, Entry, Findings, Tolerance, parse, text};

const BUDGET: Budget<'static> =
    Budget { group: "calls/GET/client", unit: "per request", tolerance: |_| Tolerance::Units(0.1), look: "look" };

fn book(entries: &[(&str, f64, f64)]) -> Book {
    entries.iter().map(|(name, figure, tolerance)| ((*name).to_owned(), Entry { figure: *figure, tolerance: *tolerance })).collect()
}

fn compare(entries: &[(&str, f64, f64)], measured: &[(&str, f64)]) -> Findings {
    let measured: Vec<_> = measured.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect();
    BUDGET.compare(&book(entries), &measured)
}

#[test]
fn a_worse_figure_says_by_how_much() {
    // Aim: more than the tolerance above the record is worse, less below it is better, between is neither.
    let recorded = [("calls/GET/client/read", 2.0, 0.1), ("calls/GET/server/read", 9.0, 0.1)];
    assert_eq!(compare(&recorded, &[("read", 2.05)]), Findings::default());
    let worse = compare(&recorded, &[("read", 3.0)]);
    assert_eq!(worse.worse, ["calls/GET/client/read: 3 per request, recorded 2 (tolerance 0.1): 1 more (+50.0 %)"]);
    let better = compare(&recorded, &[("read", 1.0)]);
    assert_eq!(better.better, ["calls/GET/client/read: 1 per request, recorded 2 (tolerance 0.1): 1 less (-50.0 %)"]);
    assert_eq!(better.worse, Vec::<String>::new());
}

#[test]
fn what_is_new_is_named() {
    // Aim: a call that was never made before is worse, one that is no longer made is better, and an empty book guards nothing.
    let recorded = [("calls/GET/client/read", 2.0, 0.1)];
    let new = compare(&recorded, &[("read", 2.0), ("futex", 1.0), ("brk", 0.01)]);
    assert_eq!(
        new.worse,
        ["calls/GET/client/futex: 1 per request, recorded 0 (tolerance 0.1): 1 more, not seen when the book was written"]
    );
    assert_eq!(compare(&recorded, &[]).better.len(), 1);
    assert_eq!(compare(&[], &[("read", 2.0)]).worse, ["calls/GET/client: nothing is recorded"]);
}

#[test]
fn a_book_is_read_as_it_is_written() {
    // Aim: recording and comparing agree on the file, and a broken one says where.
    let one = book(&[("a \"b\"/c", 51_234.0, 2050.0), ("d", 0.25, 0.0)]);
    assert_eq!(parse(&text(&one)).unwrap(), one);
    assert!(parse("{\"a\": {\"figure\": 1}}").unwrap_err().contains("`a` has no number `tolerance`"));
}
