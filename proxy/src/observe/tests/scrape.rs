//! What real scrapers need, row by row (facts about prometheus 2.42 and `prometheus_client` 0.25.2).

use std::collections::{BTreeMap, BTreeSet};

use super::busy_world;
use crate::observe::Exposition;

/// Lines of metadata as (word, name, rest).
fn metadata(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().filter_map(|line| line.strip_prefix("# ")).filter_map(|line| {
        let mut parts = line.splitn(3, ' ');
        Some((parts.next()?, parts.next()?, parts.next()?))
    })
}

/// A sample's name, label text and value.
fn samples(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let name = line.split(['{', ' ']).next().unwrap();
        let labels = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')).and_then(|rest| rest.split_once('}'));
        let (labels, value) = labels.unwrap_or(("", &line[name.len()..]));
        (name, labels, value.trim().split(' ').next().unwrap())
    })
}

/// Aim: `prometheus_client` adds `_total` and the unit to names that already have them, a full stop to HELP, and writes buckets in the
/// order given: ours are bare, without the stop, and sorted.
#[tokio::test(start_paused = true)]
async fn names_are_bare_and_buckets_sorted() {
    let world = busy_world().await;
    for exposition in [Exposition::OpenMetrics, Exposition::Text] {
        let text = world.render_as(exposition);
        for (_, name, help) in metadata(&text).filter(|(word, ..)| *word == "HELP") {
            assert!(!help.ends_with('.'), "{name}: {help}");
        }
        for name in samples(&text).map(|(name, ..)| name).chain(metadata(&text).map(|(_, name, _)| name)) {
            for twice in ["_total_total", "_seconds_seconds", "_bytes_bytes"] {
                assert!(!name.contains(twice), "{name}");
            }
        }
        let mut bounds: BTreeMap<String, Vec<(f64, u64)>> = BTreeMap::new();
        for (_, labels, value) in samples(&text).filter(|(name, ..)| name.ends_with("_bucket")) {
            let (bound, rest) = labels.strip_prefix("le=\"").unwrap().split_once('"').unwrap();
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            bounds.entry(rest.to_owned()).or_default().push((bound, value.parse().unwrap()));
        }
        assert!(!bounds.is_empty());
        for (labels, buckets) in bounds {
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{labels}: {buckets:?}");
            assert_eq!(buckets.last().unwrap().0, f64::INFINITY);
        }
    }
}

/// Aim: prometheus drops a target for CRLF, for a UNIT that is no suffix of its name, for `# TYPE x info` in text, and for a missing
/// `# EOF` in OpenMetrics.
#[tokio::test(start_paused = true)]
async fn prometheus_keeps_the_target() {
    let world = busy_world().await;
    let (open_metrics, text) = (world.render_as(Exposition::OpenMetrics), world.render_as(Exposition::Text));
    assert!(open_metrics.ends_with("\n# EOF\n") && open_metrics.matches("# EOF").count() == 1);
    for (exposition, text) in [("OpenMetrics", &open_metrics), ("text", &text)] {
        assert!(!text.contains('\r') && text.ends_with('\n'), "{exposition}");
        let mut kinds = BTreeMap::new();
        for (word, name, rest) in metadata(text) {
            match word {
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{name} {rest}"),
                "TYPE" => assert!(kinds.insert(name, rest).is_none(), "{name} twice"),
                "HELP" => assert!(!kinds.contains_key(name), "HELP of {name} after its TYPE"),
                other => panic!("{exposition}: {other}"),
            }
        }
        assert!(kinds.values().all(|kind| ["counter", "gauge", "histogram"].contains(kind)), "{kinds:?}");
        for (name, ..) in samples(text) {
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix).filter(|of| kinds.contains_key(of)));
            let counter = name.strip_suffix("_total").filter(|of| kinds.contains_key(of));
            assert!(kinds.contains_key(family.or(counter).unwrap_or(name)), "{exposition}: {name} has no TYPE");
        }
    }
}

/// Aim: the two formats say the same of the same: each sample with the same value; exemplars and units are OpenMetrics' alone.
#[tokio::test(start_paused = true)]
async fn both_formats_say_the_same() {
    let world = busy_world().await;
    let (open_metrics, text) = (world.render_as(Exposition::OpenMetrics), world.render_as(Exposition::Text));
    let steady = |text: &str| -> BTreeSet<String> {
        samples(text).filter(|(name, ..)| !super::measured(name)).map(|sample| format!("{sample:?}")).collect()
    };
    assert_eq!(steady(&open_metrics), steady(&text));
    assert!(open_metrics.contains(" # {trace_id=") && !text.contains(" # {"), "{text}");
    assert!(
        text.contains("# TYPE meshwright_requests_total counter\n") && text.contains("# HELP meshwright_requests_total HTTP"),
        "{text}"
    );
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
}
