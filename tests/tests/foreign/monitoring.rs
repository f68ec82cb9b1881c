//! Stock Prometheus and its promtool on a running mesh: what `deploy/monitoring` says is checked against the metrics that are really there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;
use tests::look::free_port;

use crate::mesh::{Mesh, eventually, root, said, text};
use crate::shop::shop;

/// Metrics that this mesh has no occasion for: a quota, a cluster, limits and logins of an edge, HTTP/3, datagrams, retries. That they exist all the
/// same is looked up in the source.
const WITHOUT_OCCASION: [&str; 16] = [
    "meshwright_cgroup_",
    "meshwright_http3_",
    "meshwright_udp_",
    "meshwright_edge_",
    "meshwright_auth_total",
    "meshwright_limit_total",
    "meshwright_callouts_total",
    "meshwright_degraded",
    "meshwright_hedges_total",
    "meshwright_retries_total",
    "meshwright_policy_denied_total",
    "meshwright_control_cluster_",
    "meshwright_control_acme_expiry_seconds",
    "meshwright_control_config_rejected_total",
    "meshwright_control_resources_refused_total",
    "grpc_code!=\"\"",
];

fn monitoring() -> PathBuf {
    root().join("deploy/monitoring")
}

/// Runs promtool, which must find nothing wrong.
fn promtool(args: &[&str]) -> String {
    let output =
        Command::new("promtool").args(args).current_dir(monitoring()).output().expect("promtool is there: tests/run-all installs it");
    assert!(output.status.success(), "promtool {args:?}: {}", said(&output));
    said(&output)
}

/// A dashboard's or an alert's expression, and where it stands.
struct Query {
    place: String,
    expr: String,
}

/// Of all dashboards; variables stand for everything.
fn dashboard_queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for entry in fs::read_dir(monitoring().join("dashboards")).unwrap() {
        let path = entry.unwrap().path();
        let board: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(board["schemaVersion"], 39, "{name}");
        assert_eq!(board["templating"]["list"][0]["type"], "datasource", "{name}: the data source is the reader's");
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: two panels are {}", panel["id"]);
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expr = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
                let expr = ["$namespace", "$service", "$instance"].iter().fold(expr, |expr, variable| expr.replace(variable, ".*"));
                assert!(!expr.contains('$'), "{name}: a variable that is not declared in {expr}");
                queries.push(Query { place: format!("{name}: {}", panel["title"]), expr });
            }
        }
    }
    assert!(queries.len() > 60, "{} queries", queries.len());
    queries
}

/// Of all alerts, without what they are compared with. Their file is written plainly: an expression is one line, or the lines that are indented below.
fn alert_queries() -> Vec<Query> {
    static COMPARED: OnceLock<Regex> = OnceLock::new();
    let compared = COMPARED.get_or_init(|| Regex::new(r"\s*(==|<|>)\s*[0-9.]+( \* [0-9]+)?\s*$").unwrap());
    let rules = fs::read_to_string(monitoring().join("alerts.yaml")).unwrap();
    let mut queries = Vec::new();
    for rule in rules.split("- alert: ").skip(1) {
        let place = rule.lines().next().unwrap().to_owned();
        let (_, after) = rule.split_once("expr:").unwrap();
        let whole = match after.strip_prefix(" |\n") {
            Some(block) => block.lines().take_while(|line| line.starts_with("          ")).collect::<Vec<_>>().join("\n"),
            None => after.lines().next().unwrap().trim().to_owned(),
        };
        let expr = compared.replace(&whole, "").into_owned();
        assert_ne!(expr, whole, "{place}: nothing to compare with");
        queries.push(Query { place, expr: ["[5m]", "[10m]", "[15m]"].iter().fold(expr, |expr, span| expr.replace(span, "[1m]")) });
    }
    assert!(queries.len() > 15, "{} alerts", queries.len());
    queries
}

/// Names of metrics in an expression.
fn names(expr: &str) -> BTreeSet<String> {
    static NAME: OnceLock<Regex> = OnceLock::new();
    let name = NAME.get_or_init(|| Regex::new(r"\b(meshwright|process)_[a-z0-9_]+\b").unwrap());
    name.find_iter(expr).map(|found| found.as_str().to_owned()).collect()
}

/// Every source in which metrics are named.
fn source() -> String {
    fn gather(folder: &Path, all: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => gather(&path, all),
                false if path.extension().is_some_and(|extension| extension == "rs") => all.push_str(&fs::read_to_string(&path).unwrap()),
                false => {}
            }
        }
    }
    let mut all = String::new();
    for folder in ["proxy/src/observe", "control/src"] {
        gather(&root().join(folder), &mut all);
    }
    all
}

/// Aim: rules, their unit tests and both configurations are what Prometheus takes, the operator's form says the same, and each alert's runbook is there.
#[test]
fn promtool_finds_nothing_wrong() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["check", "config", "prometheus.yaml"]);
    let tested = promtool(&["test", "rules", "alerts-test.yaml"]);
    assert!(tested.contains("SUCCESS"), "{tested}");
    // Debian builds it without the discovery of Kubernetes.
    let cluster = fs::read_to_string(monitoring().join("prometheus-kubernetes.yaml")).unwrap();
    let discovery = Regex::new(r"(?m)^    kubernetes_sd_configs:\n(      .*\n)+").unwrap();
    let elsewhere = discovery.replace_all(&cluster, "    file_sd_configs:\n      - files: [targets.json]\n").into_owned();
    assert_eq!(elsewhere.matches("file_sd_configs").count(), 2);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(monitoring().join("alerts.yaml"), folder.path().join("alerts.yaml")).unwrap();
    fs::write(folder.path().join("prometheus.yaml"), elsewhere).unwrap();
    promtool(&["check", "config", folder.path().join("prometheus.yaml").to_str().unwrap()]);
    let plain = fs::read_to_string(monitoring().join("alerts.yaml")).unwrap();
    let object = fs::read_to_string(monitoring().join("prometheus-rule.yaml")).unwrap();
    let (_, groups) = plain.split_once("\ngroups:\n").unwrap();
    let (_, spec) = object.split_once("\n  groups:\n").unwrap();
    let indented: String = groups.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }).collect();
    assert_eq!(spec, indented, "prometheus-rule.yaml is alerts.yaml, two steps to the right");
    let runbook = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    for Query { place, .. } in alert_queries() {
        assert!(runbook.contains(&format!("\n### {place}\n")), "docs/troubleshooting.md has no `### {place}`");
    }
}

/// Aim: no dashboard and no alert asks for a metric that nobody has.
#[test]
fn every_metric_that_is_asked_for_exists() {
    let source = source();
    for Query { place, expr } in dashboard_queries().into_iter().chain(alert_queries()) {
        for name in names(&expr) {
            let bare = ["_bucket", "_total", "_seconds", "_bytes"]
                .iter()
                .fold(name.as_str(), |name, suffix| name.strip_suffix(suffix).unwrap_or(name));
            let control = bare.strip_prefix("meshwright_control_").unwrap_or(bare);
            let whole = name.strip_prefix("meshwright_control_").unwrap_or(&name);
            let known = [bare, control, whole].iter().any(|name| source.contains(&format!("\"{name}\"")));
            assert!(known, "{place}: {name} is no metric of ours");
        }
    }
}

/// Prometheus inside a workload's namespace: it sees the mesh as a program beside it does.
struct Prometheus<'a> {
    mesh: &'a Mesh,
    child: Child,
    _folder: TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(mesh: &'a Mesh, proxies: &[String], control: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(monitoring().join("prometheus.yaml")).unwrap();
        let list = |targets: &[String]| targets.iter().map(|target| format!("'{target}'")).collect::<Vec<_>>().join(", ");
        let targets = Regex::new(r"targets: \[.*\]").unwrap();
        let mut places = [list(proxies), list(&[control.to_owned()])].into_iter();
        let config = targets.replace_all(&config, |_: &regex::Captures<'_>| format!("targets: [{}]", places.next().unwrap())).into_owned();
        let config = config
            .replace("scrape_interval: 15s", "scrape_interval: 1s")
            .replace("alerts.yaml", monitoring().join("alerts.yaml").to_str().unwrap());
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let (config, data) =
            (format!("--config.file={}", file.display()), format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        let child = mesh
            .exec(
                "outside/legacy",
                &["prometheus", &config, &data, "--web.listen-address=127.0.0.1:9090", "--enable-feature=exemplar-storage"],
            )
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let this = Self { mesh, child, _folder: folder };
        eventually("Prometheus answers", Duration::from_secs(30), || this.ask("query", "up").ok());
        this
    }

    /// What an API of it answers, or how it refuses.
    fn ask(&self, api: &str, query: &str) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:9090/api/v1/{api}");
        let query = format!("query={query}");
        let output = self.mesh.exec("outside/legacy", &["curl", "-sG", &url, "--data-urlencode", &query]).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {}", said(&output)))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer.to_string()) }
    }

    /// How many rows a query has.
    fn rows(&self, query: &str) -> Result<usize, String> {
        Ok(self.ask("query", query)?["result"].as_array().map_or(0, Vec::len))
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Address of a workload's instance, as it sees itself.
fn address(mesh: &Mesh, workload: &str) -> String {
    let all = mesh.inside(workload, &["hostname", "-I"]);
    all.split_whitespace().find(|address| !address.contains(':')).expect("an IPv4 address").to_owned()
}

/// Aim: stock Prometheus scrapes every proxy and the control plane of a working mesh, promtool finds the proxies' metrics well-formed, and every query of every
/// dashboard and every alert has data, as far as this mesh has an occasion for it.
#[test]
fn dashboards_and_alerts_have_data() {
    let edge = free_port();
    let mesh = shop(edge, free_port());
    let proxies: Vec<String> =
        ["shop/frontend", "shop/catalog-v1-0", "shop/catalog-v1-1", "shop/catalog-v2", "shop/checkout", "vault/store"]
            .iter()
            .map(|workload| format!("{}:15020", address(&mesh, workload)))
            .collect();
    // The control plane is on the bridge.
    let control = "10.77.0.1:15014".to_owned();
    let prometheus = Prometheus::start(&mesh, &proxies, &control);
    let traffic = || {
        mesh.inside("shop/frontend", &["curl", "-sf", "http://catalog/items?n=[1-20]"]);
        for url in ["http://catalog/?status=503", "http://catalog:1234/", "http://catalog/?status=404"] {
            mesh.curl("shop/frontend", url);
        }
        mesh.exec("shop/checkout", &["timeout", "1", "curl", "-s", "telnet://store.vault:7000"]).output().unwrap();
        let _ = Command::new("curl").args(["-s", "-o", "/dev/null", &format!("http://127.0.0.1:{edge}/buy")]).output();
    };
    // Something for the authority and the writer to do meanwhile.
    let route = fs::read_to_string(mesh.folder().join("catalog-route.yaml")).unwrap();
    for weight in [80, 70] {
        mesh.apply(&route.replace("weight: 90", &format!("weight: {weight}")));
        traffic();
    }
    eventually("everything is scraped", Duration::from_secs(30), || {
        traffic();
        (prometheus.rows("up == 1") == Ok(proxies.len() + 1)
            && prometheus.rows("count_over_time(meshwright_requests_total[1m]) > 5").ok()? > 0)
            .then_some(())
    });
    let mut empty = Vec::new();
    for Query { place, expr } in dashboard_queries().into_iter().chain(alert_queries()) {
        match prometheus.rows(&expr) {
            Err(refused) => panic!("{place}: {expr}: {refused}"),
            Ok(0) if !WITHOUT_OCCASION.iter().any(|name| expr.contains(name)) => empty.push(format!("{place}: {expr}")),
            Ok(_) => {}
        }
    }
    assert!(empty.is_empty(), "without data:\n{}", empty.join("\n"));
    // The control plane speaks OpenMetrics alone, which promtool 2.42 does not read as such.
    for target in &proxies {
        let url = format!("http://{target}/metrics");
        let lint = mesh
            .exec("outside/legacy", &["sh", "-c", &format!("curl -sf -H 'accept: text/plain' {url} | promtool check metrics")])
            .output()
            .unwrap();
        assert!(lint.status.success(), "{url}: {}", said(&lint));
    }
    let exemplars = prometheus.ask("query_exemplars", "meshwright_request_duration_seconds_bucket").unwrap();
    let linked = text(exemplars.to_string().as_bytes()).contains("trace_id");
    assert!(linked, "no trace of a single request: {exemplars}");
    drop(prometheus);
    mesh.leave();
}
