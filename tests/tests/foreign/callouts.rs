//! What becomes of a request while whoever its policies ask is away: each kind of service, each way not to answer, each `onError`. The table
//! stands in docs/edge-auth.md; what is asked are programs of their own, met over real sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::look::free_port;

use crate::edge::{gateway, http, shop};
use crate::mesh::{Mesh, client, eventually, python, root, text};

/// Ways not to answer, as `guards.py` knows them.
const WAYS: [&str; 5] = ["gone", "closes", "refuses", "hangs", "garbage"];
/// How soon a proxy has noticed.
const PATIENCE: Duration = Duration::from_secs(20);

/// One object that asks, on a route of its own.
struct Asks {
    name: &'static str,
    /// As the page's table calls it.
    row: &'static str,
    on_error: &'static str,
    /// What comes of a request while the service says no.
    denied: &'static str,
}

const ALL: [Asks; 11] = [
    Asks { name: "grpc-deny", row: "ExternalAuth, gRPC", on_error: "Deny", denied: "403" },
    Asks { name: "grpc-allow", row: "ExternalAuth, gRPC", on_error: "Allow", denied: "403" },
    Asks { name: "http-deny", row: "ExternalAuth, HTTP", on_error: "Deny", denied: "403" },
    Asks { name: "http-allow", row: "ExternalAuth, HTTP", on_error: "Allow", denied: "403" },
    Asks { name: "token-deny", row: "introspection", on_error: "Deny", denied: "401" },
    Asks { name: "token-allow", row: "introspection", on_error: "Allow", denied: "401" },
    Asks { name: "redis-deny", row: "RateLimit, Redis", on_error: "Deny", denied: "200" },
    Asks { name: "redis-allow", row: "RateLimit, Redis", on_error: "Allow", denied: "429" },
    Asks { name: "redis-local", row: "RateLimit, Redis", on_error: "Local", denied: "200" },
    Asks { name: "rls-deny", row: "RateLimit, service", on_error: "Deny", denied: "429" },
    Asks { name: "rls-allow", row: "RateLimit, service", on_error: "Allow", denied: "429" },
];

impl Asks {
    /// The object, and its route.
    fn objects(&self) -> [Value; 2] {
        let kind = self.name.split('-').next().unwrap();
        let backend = json!({"name": "guards", "port": if kind == "http" { 9001 } else { 9000 }});
        let (object, mut spec) = match kind {
            "grpc" => ("ExternalAuth", json!({"backendRef": backend, "onError": self.on_error})),
            "http" => ("ExternalAuth", json!({"backendRef": backend, "protocol": "Http", "onError": self.on_error})),
            "token" => {
                let server =
                    json!({"url": "http://guards.shop:9001/introspect", "clientId": "edge", "cache": "0s", "onError": self.on_error});
                ("RequestAuthentication", json!({"introspection": [server]}))
            }
            "redis" => {
                let requests = if self.denied == "429" { 1 } else { 4 };
                let limit = json!({"name": "all", "requests": requests, "per": "24h", "key": [{"header": "x-way"}]});
                let redis = json!({"redis": {"addresses": ["guards.shop:6379"], "aheadPercent": 0, "timeout": "500ms"}});
                ("RateLimit", json!({"limits": [limit], "store": redis, "onError": self.on_error}))
            }
            _ => {
                let descriptors = json!([{"entries": [{"key": "plan", "value": "gold"}]}]);
                let service = json!({"rls": {"backendRef": backend, "domain": "edge", "timeout": "500ms", "descriptors": descriptors}});
                ("RateLimit", json!({"store": service, "onError": self.on_error}))
            }
        };
        spec["targetRefs"] = json!([{"kind": "HTTPRoute", "name": self.name}]);
        let metadata = json!({"name": self.name, "namespace": "shop"});
        let matches = json!([{"path": {"type": "PathPrefix", "value": format!("/{}", self.name)}}]);
        let rules = json!([{"matches": matches, "backendRefs": [{"name": "echo", "port": 80}]}]);
        let route = json!({"parentRefs": [{"name": "edge"}], "rules": rules});
        [
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": route}),
            json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": object, "metadata": metadata, "spec": spec}),
        ]
    }

    /// What the page says of this object while its service is away in that way.
    fn page(&self, text: &str, way: &str) -> String {
        let mut lines = text.lines().skip_while(|line| !line.starts_with("| Asked | `onError` "));
        let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let head = cells(lines.next().expect("the page has the table"));
        let column = head.iter().position(|cell| cell == way).unwrap_or_else(|| panic!("{way} in {head:?}"));
        let on_error = format!("`{}`", self.on_error);
        let row = lines.map(cells).find(|row| row.first().is_some_and(|name| name == self.row) && row[1] == on_error);
        row.unwrap_or_else(|| panic!("no row for {} {on_error}", self.row))[column].clone()
    }
}

fn manifests(port: u16, folder: &Path) -> String {
    let ports = json!([
        {"name": "grpc", "port": 9000, "appProtocol": "grpc"}, {"name": "http", "port": 9001, "appProtocol": "http"},
        {"name": "tcp-redis", "port": 6379},
    ]);
    let command = json!([python(), client("guards.py"), folder, "9000", "9001", "6379"]);
    let metadata = json!({"name": "guards", "namespace": "shop", "labels": {"app": "guards"}});
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": "guards"}, "ports": ports}}),
        json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "Workload", "metadata": metadata, "spec": {"command": command, "ports": ports}}),
    ];
    objects.extend(ALL.iter().flat_map(Asks::objects));
    let objects: String = objects.iter().map(|object| format!("\n---\n{object}")).collect();
    [shop(&[("echo", "[meshwright, echo, --http=8080]", 8080)]), objects, gateway("edge", &[http("http", port)], "")].concat()
}

/// What comes of a request: its status, its reason, and whether the backend is told that nobody was asked.
fn call(port: u16, name: &str, way: &str) -> String {
    let url = format!("http://127.0.0.1:{port}/{name}");
    let way = format!("x-way: {way}");
    let flags =
        ["-s", "--max-time", "10", "-w", "\n%{http_code} %header{x-meshwright-reason}", "-H", &way, "-H", "authorization: Bearer opaque"];
    let said = text(&Command::new("curl").args(flags).arg(&url).output().unwrap().stdout);
    let (body, last) = said.rsplit_once('\n').unwrap_or(("", &said));
    let unchecked = if body.contains("x-meshwright-unchecked") { " unchecked" } else { "" };
    format!("{}{unchecked}", last.trim())
}

/// Aim: with the service gone, closing, refusing, hanging or answering garbage each object does what the page's table says of its `onError`, and
/// asks again when the service is back.
#[test]
fn whoever_is_asked_may_be_away_in_every_way() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let put = |way: &str| fs::write(folder.path().join("way"), way).unwrap();
    put("deny");
    let port = free_port();
    let mesh = Mesh::start(&[("mesh.yaml", &manifests(port, folder.path()))]);
    let page = fs::read_to_string(root().join("docs/edge-auth.md")).unwrap();
    for way in WAYS {
        put("deny");
        for asks in &ALL {
            let what = format!("{} is answered before it is {way}", asks.name);
            eventually(&what, PATIENCE, || call(port, asks.name, way).starts_with(asks.denied).then_some(()));
        }
        put(way);
        for asks in &ALL {
            let wanted = asks.page(&page, way);
            let what = format!("{}, {way}: {wanted}", asks.name);
            eventually(&what, PATIENCE, || {
                let found = call(port, asks.name, way);
                if found != wanted {
                    eprintln!("{what}: {found}");
                }
                (found == wanted).then_some(())
            });
        }
    }
    mesh.leave();
}
