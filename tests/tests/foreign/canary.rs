//! The guide `docs/canary.md`: every line does what the page says.

use std::fs;

use serde_json::Value;
use tests::look::free_port;

use crate::guide;
use crate::mesh::{Mesh, root, text};

/// Manifests of an example, with another port for its edge.
fn example(name: &str) -> Vec<(String, String)> {
    let edge = format!("port: {}, protocol: HTTP", free_port());
    let entries = fs::read_dir(root().join("examples").join(name)).unwrap().map(|entry| entry.unwrap().path());
    let manifests = entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap().replace("port: 8080, protocol: HTTP", &edge);
        (path.file_name().unwrap().to_string_lossy().into_owned(), text)
    };
    manifests.map(read).collect()
}

fn start(name: &str) -> Mesh {
    let manifests = example(name);
    let borrowed: Vec<(&str, &str)> = manifests.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Mesh::start(&borrowed)
}

/// Runs a line that watches a canary to its end: whether it was promoted, and its row then.
fn watched(mesh: &Mesh, line: &str) -> (bool, Value) {
    let told = mesh.command(&[]);
    let variables = told.get_envs().map(|(name, value)| (name, value.unwrap()));
    // A canary that never ends would hold the test up for ever.
    let promoted = guide::shell(&root(), variables, &format!("timeout 300 {line}")).is_ok();
    (promoted, status(mesh))
}

fn status(mesh: &Mesh) -> Value {
    let output = mesh.command(&["canary", "status", "-n", "shop", "catalog", "-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), mesh.log());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Numbers of both versions, which stay after the end.
fn requests(row: &Value) -> [u64; 2] {
    ["stable", "candidate"].map(|version| row[version]["requests"].as_u64().unwrap())
}

/// Aim: all lines of the page, in their order, have the outcome that the page tells: weights move by hand; a version that fails is rolled back within
/// 1,000 of its requests, mended it is promoted, slow it is rolled back again; each end leaves the run's numbers to be read; people may decide.
#[test]
fn the_guide_is_true() {
    let lines = guide::lines("canary.md");
    let mut lines = lines.iter();
    assert_eq!(lines.next().unwrap(), "meshwright up examples/shop");
    let mesh = start("shop");
    let mut next = || guide::run(&mesh, &root(), lines.next().unwrap());
    let counted = next();
    assert!(counted.contains("v1") && counted.contains("v2"), "{counted}");
    assert!(next().contains(r#""version":"v2""#));
    next();
    next();
    assert!(next().contains("catalog-v2"));
    mesh.leave();

    assert_eq!(lines.next().unwrap(), "meshwright up examples/canary");
    let mesh = start("canary");
    let watch = "meshwright canary status -n shop catalog --watch";
    assert_eq!(lines.next().unwrap(), watch);
    let (promoted, row) = watched(&mesh, watch);
    assert!(!promoted && row["phase"] == "RolledBack", "{row:#}\n{}", mesh.log());
    let [stable, candidate] = requests(&row);
    assert!(stable > 100 && (20..=1_000).contains(&candidate), "{row:#}");

    for _ in 0..2 {
        guide::run(&mesh, &root(), lines.next().unwrap());
    }
    assert_eq!(lines.next().unwrap(), watch);
    let (promoted, row) = watched(&mesh, watch);
    assert!(promoted && row["phase"] == "Promoted", "{row:#}\n{}", mesh.log());
    let [stable, candidate] = requests(&row);
    assert!(stable > 100 && candidate >= 200, "{row:#}");
    let last = row["decisions"].as_array().unwrap().last().unwrap();
    assert!(last["verdict"] == "Promote" && last["candidate"]["requests"].as_u64().unwrap() > 0, "{row:#}");
    assert_eq!(guide::run(&mesh, &root(), lines.next().unwrap()).trim(), r#""version":"v2""#);

    for _ in 0..2 {
        guide::run(&mesh, &root(), lines.next().unwrap());
    }
    assert_eq!(lines.next().unwrap(), watch);
    let (promoted, row) = watched(&mesh, watch);
    assert!(!promoted && row["phase"] == "RolledBack" && requests(&row)[1] <= 1_000, "{row:#}\n{}", mesh.log());

    for phase in ["Progressing", "Paused", "RolledBack"] {
        let drawn = guide::run(&mesh, &root(), lines.next().unwrap());
        assert!(drawn.contains(phase), "{drawn}");
    }
    let rows: Value = serde_json::from_str(&guide::run(&mesh, &root(), lines.next().unwrap())).unwrap();
    assert_eq!(rows[0]["phase"], "RolledBack");
    assert!(lines.next().is_none(), "a line of the page is not run");
    mesh.leave();
}
