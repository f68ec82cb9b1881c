//! From open to least privilege, as `docs/least-privilege.md` goes: what the mesh has seen becomes policies that let just that pass.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::look::free_port;

use crate::mesh::{Mesh, eventually, root, text};

/// How long the mesh may take to tell what it has seen.
const TOLD: Duration = Duration::from_secs(20);

fn shop(edge: u16) -> Mesh {
    let mut manifests = Vec::new();
    for entry in fs::read_dir(root().join("examples/shop")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap().replace("port: 8080, protocol: HTTP", &format!("port: {edge}, protocol: HTTP"));
            manifests.push((path.file_name().unwrap().to_string_lossy().into_owned(), text));
        }
    }
    let borrowed: Vec<(&str, &str)> = manifests.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Mesh::start(&borrowed)
}

/// Status of a page of the edge, as somebody outside sees it.
fn visit(edge: u16, path: &str) -> String {
    let url = format!("http://127.0.0.1:{edge}{path}");
    let output =
        std::process::Command::new("curl").args(["-s", "-o", "/dev/null", "-m", "20", "-w", "%{http_code}", &url]).output().unwrap();
    text(&output.stdout)
}

/// Whether every call of a purchase is answered well: the frontend's answer holds those of all that it called.
fn buys(edge: u16) -> bool {
    let url = format!("http://127.0.0.1:{edge}/buy");
    let output = std::process::Command::new("curl").args(["-sf", "-m", "20", &url]).output().unwrap();
    let body = text(&output.stdout);
    output.status.success() && body.contains("220 store ready") && !body.contains("\"error\"")
}

/// Whether the store greets a workload.
fn greets(mesh: &Mesh, workload: &str) -> bool {
    let output = mesh.exec(workload, &["curl", "-sm", "3", "telnet://store.vault:7000"]).output().unwrap();
    text(&output.stdout).contains("220 store ready")
}

/// Calls of which nobody has seen any before the policies.
fn others_are_shut_out(mesh: &Mesh) {
    for (workload, url) in
        [("shop/frontend", "http://catalog/admin"), ("shop/checkout", "http://catalog/items"), ("outside/legacy", "http://frontend.shop/")]
    {
        let [status, reason, _] = mesh.curl(workload, url);
        assert_eq!((status.as_str(), reason.as_str()), ("403", "denied"), "{workload} {url}");
    }
    assert!(!greets(mesh, "shop/frontend"), "the store greets a stranger");
}

/// Aim: suggest, apply, and the same traffic passes while all other is denied; a dry run before denies nothing and says what it would.
#[test]
fn what_was_seen_passes_and_nothing_else() {
    let edge = free_port();
    let mesh = shop(edge);
    eventually("the shop sells", TOLD, || (visit(edge, "/") == "200" && buys(edge)).then_some(()));
    let seen = |mesh: &Mesh| {
        let output = mesh.command(&["policy", "suggest", "-o", "json"]).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        let name = |policy: &Value| policy["object"]["metadata"]["name"].as_str().map(str::to_owned);
        let names: Vec<String> = answer["policies"].as_array()?.iter().filter_map(name).collect();
        (names == ["catalog-callers", "checkout-callers", "frontend-callers", "store-callers"]).then_some(())
    };
    eventually("all that is called is seen", TOLD, || seen(&mesh));

    let trial = mesh.run(&["policy", "suggest", "--dry-run"]);
    mesh.apply(&trial);
    assert_eq!(mesh.curl("shop/checkout", "http://catalog/items")[0], "200", "a trial denies");
    assert!(buys(edge));

    // What was tried above has been seen, too: it is no reason to allow it.
    let policies = trial.replace("dryRun: true", "dryRun: false");
    let applied = mesh.apply(&policies);
    assert_eq!(applied["live"], true, "{applied}");
    assert_eq!(visit(edge, "/"), "200");
    assert!(buys(edge), "{}", mesh.log());
    others_are_shut_out(&mesh);
    mesh.leave();
}

/// What somebody without an identity, as a kubelet is, hears of a probe of a workload.
fn probed(mesh: &Mesh, workload: &str, probe: &str) -> String {
    let addresses = mesh.inside(workload, &["hostname", "-I"]);
    let address = addresses.split_whitespace().find(|address| address.starts_with("10.77.")).expect("its own address");
    mesh.curl("outside/legacy", &format!("http://{address}:15021/app-health/{probe}"))[0].clone()
}

/// Aim: the policies of the example let the shop sell, and nobody else in.
#[test]
fn the_example_is_true() {
    let edge = free_port();
    let mesh = shop(edge);
    eventually("the shop sells", TOLD, || buys(edge).then_some(()));
    let applied = mesh.apply(&fs::read_to_string(root().join("examples/zero-trust/policies.yaml")).unwrap());
    assert_eq!(applied["live"], true, "{applied}");
    assert_eq!(visit(edge, "/"), "200");
    assert!(buys(edge), "{}", mesh.log());
    others_are_shut_out(&mesh);
    // Nobody who has no identity may call, and kubelets have none: they ask the sidecars.
    for (workload, probe, status) in [
        ("shop/frontend", "8080/healthz", "200"),
        ("shop/frontend", "8080/items", "404"),
        ("shop/frontend", "8080/healthz?status=500", "404"),
        ("vault/store", "tcp/7000", "200"),
        ("vault/store", "tcp/22", "404"),
    ] {
        assert_eq!(probed(&mesh, workload, probe), status, "{workload} {probe}");
    }
    mesh.leave();
}
