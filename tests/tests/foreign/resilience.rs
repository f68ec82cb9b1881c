//! The guide `docs/resilience.md`: every line does what the page says.

use std::fs;

use crate::guide;
use crate::mesh::{Mesh, root};

/// Runs a line as somebody would who has `meshwright` in the path, in the repository.
fn run(mesh: &Mesh, line: &str) -> String {
    guide::run(mesh, &root(), line)
}

/// Two times in seconds.
fn times(output: &str) -> [f64; 2] {
    let times: Vec<f64> = output.lines().map(|line| line.parse().unwrap()).collect();
    times.try_into().unwrap()
}

/// How often `uniq -c` has counted that.
fn count(output: &str, what: &str) -> u64 {
    output.lines().filter_map(|line| line.trim().split_once(' ')).find(|(_, said)| *said == what).map_or(0, |(n, _)| n.parse().unwrap())
}

/// Aim: all lines of the page, in their order, have the outcome that the page tells.
#[test]
fn the_guide_is_true() {
    let files = ["namespace", "client", "catalog", "reviews", "ratings"].map(|name| format!("{name}.yaml"));
    let texts = files.each_ref().map(|file| fs::read_to_string(root().join("examples/resilience").join(file)).unwrap());
    assert_eq!(fs::read_dir(root().join("examples/resilience")).unwrap().count(), files.len());
    let manifests: Vec<(&str, &str)> = files.iter().map(String::as_str).zip(texts.iter().map(String::as_str)).collect();
    let mesh = Mesh::start(&manifests);
    let lines = guide::lines("resilience.md");
    let mut lines = lines.iter();
    assert_eq!(lines.next().unwrap(), "meshwright up examples/resilience");
    let mut next = || run(&mesh, lines.next().unwrap());

    let [_, slow] = times(&next());
    assert!(slow >= 0.3, "the slow replica does not show: {slow}");
    next();
    let [_, quick] = times(&next());
    assert!(quick < 0.2, "the slow replica still shows: {quick}");
    let explained = next();
    assert!(explained.contains("a second attempt after the 90 % quantile") && explained.contains("catalog-slow"), "{explained}");

    let codes = next();
    assert!(count(&codes, "503") >= 5 && count(&codes, "200") > 40, "{codes}");
    let endpoints = next();
    let row = endpoints.lines().find(|line| line.contains("reviews-flaky")).unwrap_or_default();
    assert!(row.contains("Ejected"), "{endpoints}");
    next();
    next();
    let codes = next();
    assert_eq!((count(&codes, "200"), codes.lines().count()), (60, 1), "{codes}");
    assert!(next().trim().parse::<u64>().unwrap() >= 1);

    next();
    let codes = next();
    assert!(count(&codes, "503 low") >= 1 && count(&codes, "200 low") >= 1, "{codes}");
    assert_eq!((count(&codes, "200 high"), codes.matches("high").count()), (20, 1), "{codes}");

    next();
    let slow = next();
    let (status, time) = slow.trim().split_once(' ').unwrap();
    assert!(status == "200" && time.parse::<f64>().unwrap() >= 0.4, "{slow}");
    assert_eq!(next().trim(), "503 fault");
    assert_eq!(next().trim(), "200");
    let log = next();
    for fault in [r#""delay 400ms by resilience/fault""#, r#""abort 503 by resilience/fault""#, "null"] {
        assert!(log.contains(&format!(r#""fault":{fault}"#)), "{log}");
    }
    assert!(lines.next().is_none(), "a line of the page is not run");
    mesh.leave();
}
