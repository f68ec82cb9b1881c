//! The Helm chart and `meshwright install` give the same objects: rendered by Helm's own engine (deploy/helm/render), compared one by one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::mesh::{meshwright, root};

/// Values of the chart, and the flags that wish the same.
const WISHES: [(&str, &[&str]); 5] = [
    ("{}", &[]),
    ("{image: registry.example/meshwright:1.2, replicas: 3}", &["--image", "registry.example/meshwright:1.2", "--replicas", "3"]),
    ("{trustDomain: mesh.example.com}", &["--trust-domain", "mesh.example.com"]),
    ("{failurePolicy: Ignore}", &["--failure-policy", "Ignore"]),
    (
        "{caSecret: corporate-ca, replicas: 1, trustDomain: mesh.example.com, failurePolicy: Ignore}",
        &["--ca-secret", "corporate-ca", "--replicas", "1", "--trust-domain", "mesh.example.com", "--failure-policy", "Ignore"],
    ),
];

fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Helm's engine; the first build takes about a minute and a half of one core.
fn renderer(folder: &Path) -> PathBuf {
    let program = folder.join("render");
    let mut build = Command::new("go");
    build.current_dir(root().join("deploy/helm/render")).args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".");
    output(&mut build);
    program
}

/// Objects by kind, namespace and name; each once.
fn by_name(text: &str) -> BTreeMap<String, Value> {
    let mut objects = BTreeMap::new();
    for document in serde_saphyr::from_multiple::<Value>(text).unwrap() {
        let Value::Object(_) = &document else { continue };
        let metadata = &document["metadata"];
        let name = format!("{} {} {}", document["kind"], metadata["namespace"], metadata["name"]);
        assert!(objects.insert(name.clone(), document).is_none(), "{name} stands twice");
    }
    objects
}

#[test]
fn the_chart_gives_what_install_prints() {
    // Aim: by default and with every value set, chart and command come to the same objects, field by field; a wrong value is refused by
    // both.
    let folder = tempfile::tempdir().unwrap();
    let (render, chart) = (renderer(folder.path()), root().join("deploy/helm/meshwright"));
    let rendered = |values: &str| {
        let file = folder.path().join("values.yaml");
        std::fs::write(&file, values).unwrap();
        let mut command = Command::new(&render);
        command.arg(&chart).arg("default").arg(file);
        command
    };
    for (values, flags) in WISHES {
        let charted = by_name(&output(&mut rendered(values)));
        let installed = by_name(&output(Command::new(meshwright()).arg("install").args(flags)));
        assert_eq!(charted.keys().collect::<Vec<_>>(), installed.keys().collect::<Vec<_>>(), "{values}");
        for (name, object) in &installed {
            assert_eq!(charted[name], *object, "{values}: {name}");
        }
    }
    for wrong in ["{replicas: 0}", "{failurePolicy: Maybe}", "{trustDomain: Upper.Case}", "{replica: 2}"] {
        assert!(!rendered(wrong).output().unwrap().status.success(), "{wrong}");
    }
    let without = by_name(&output(&mut rendered("{gatewayClass: false}")));
    assert!(without.keys().all(|name| !name.contains("GatewayClass")));
}
