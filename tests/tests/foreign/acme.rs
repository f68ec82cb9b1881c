//! Certificates that a real certificate authority issues: Pebble, which the makers of Let's Encrypt test their clients with.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::mesh::{Mesh, client, eventually, said, text};

/// Ports of the Gateways: HTTP, HTTPS of the first, HTTPS of the second.
const PORTS: [u16; 3] = [28_480, 28_481, 28_482];
/// What the webhook that writes DNS is shown.
const TOKEN: &str = "let-me-write";
/// A first failure is tried again after a minute at most; development builds are slow.
const PATIENCE: Duration = Duration::from_secs(100);

/// A program of Pebble's module, built; where it is kept.
fn built(name: &str) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::mesh::root().join("target"), Into::into);
    let program = target.join(name);
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(format!("github.com/letsencrypt/pebble/v2/cmd/{name}"))
        .current_dir(client("pebble"))
        .output()
        .expect("go is there; tests/run-all says which");
    assert!(built.status.success(), "{}", said(&built));
    program.display().to_string()
}

/// What stands in the folder of the authority: it runs while there is a file `on`, and DNS of its own leads every name to the address in `edge`.
struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// The command of its workload.
    fn command(&self) -> Value {
        let (pebble, names, folder) = (built("pebble"), built("pebble-challtestsrv"), self.folder.display());
        let dns = format!(
            "{names} -defaultIPv4 $(cat {folder}/edge) -defaultIPv6 '' -doh '' -http01 '' -https01 '' -tlsalpn01 '' -management 127.0.0.1:8055"
        );
        let webhook = crate::mesh::root().join("tests/clients/dns_webhook.py");
        let webhook = format!("python3 {} 8090 http://127.0.0.1:8055 {TOKEN} >>webhook.log 2>&1", webhook.display());
        let script = format!(
            "cd {folder}; while sleep 0.1; do [ -e on ] || continue; [ -e named ] || {{ touch named; {dns} >>dns.log 2>&1 & {webhook} & }}; \
             PEBBLE_VA_NOSLEEP=1 {pebble} -config pebble.json -dnsserver 127.0.0.1:8053 >>pebble.log 2>&1 & echo $! >pid; wait $!; done"
        );
        json!(["sh", "-c", script])
    }

    /// Makes what it needs to run at an address; certificates are good for so long.
    fn prepare(&self, address: &str, valid_secs: u64) {
        let config = json!({"pebble": {
            "listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000",
            "certificate": "cert.pem", "privateKey": "key.pem", "httpPort": PORTS[0], "tlsPort": PORTS[1],
            "retryAfter": {"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa",
            "profiles": {"default": {"description": "all", "validityPeriod": valid_secs}},
        }});
        fs::write(self.folder.join("pebble.json"), config.to_string()).unwrap();
        if self.folder.join("cert.pem").exists() {
            return;
        }
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=pebble"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", &format!("subjectAltName=IP:{address}"), "-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(&self.folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
    }

    fn begin(&self) {
        fs::write(self.folder.join("on"), "").unwrap();
    }

    /// Ends it; it forgets everything.
    fn end(&self) {
        fs::remove_file(self.folder.join("on")).unwrap();
        let pid = fs::read_to_string(self.folder.join("pid")).unwrap();
        let killed = Command::new("kill").arg(pid.trim()).output().unwrap();
        assert!(killed.status.success(), "{}", said(&killed));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default()
    }
}

fn manifests(authority: &Authority) -> String {
    let [http, first, second] = PORTS;
    let command = authority.command();
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: ca}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: pebble, namespace: ca, labels: {{app: pebble}}}}
spec: {{command: {command}}}
---
apiVersion: v1
kind: Service
metadata: {{name: dns, namespace: ca}}
spec: {{selector: {{app: pebble}}, ports: [{{name: http, port: 80, targetPort: 8090}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: dns, namespace: ca}}
spec: {{from: [{{group: meshwright.dev, kind: ClientPolicy, namespace: shop}}], to: [{{group: \"\", kind: Service}}]}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: store, namespace: shop}}
spec: {{selector: {{app: store}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: store, namespace: shop, labels: {{app: store}}}}
spec:
  command: [meshwright, echo, --http=8080]
  ports: [{{name: http, port: 8080, appProtocol: http}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  gatewayClassName: meshwright
  listeners:
    - {{name: http, port: {http}, protocol: HTTP}}
    - {{name: a, port: {first}, protocol: HTTPS, hostname: a.shop.test, tls: {{options: {{meshwright.dev/acme: \"on\"}}}}}}
    - {{name: b, port: {first}, protocol: HTTPS, hostname: b.shop.test, tls: {{options: {{meshwright.dev/acme: \"on\"}}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: other, namespace: shop}}
spec:
  gatewayClassName: meshwright
  listeners:
    - {{name: b, port: {second}, protocol: HTTPS, hostname: b.shop.test, tls: {{options: {{meshwright.dev/acme: \"on\"}}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: store, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}, {{name: other}}]
  rules: [{{backendRefs: [{{name: store, port: 80}}]}}]
"
    )
}

/// From whom certificates are ordered: by Http01, of `b.shop.test` by TlsAlpn01.
fn policies(directory: &str, root: &str, renew_at_percent: u64) -> String {
    let policy = |name: &str, targets: Value, challenge: &str| {
        json!({
            "apiVersion": "meshwright.dev/v1alpha1", "kind": "ClientPolicy", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"targetRefs": targets, "acme": {
                "directory": directory, "email": "ops@shop.test", "challenge": challenge, "renewAtPercent": renew_at_percent,
                "accountSecretRef": {"name": "account"},
            }},
        })
    };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "account", "namespace": "shop"}, "stringData": {"ca.crt": root, "dns01.token": TOKEN},
    });
    let all = policy("edge", json!([{"kind": "Gateway", "name": "edge"}]), "Http01");
    let b = json!([{"kind": "Gateway", "name": "edge", "sectionName": "b"}, {"kind": "Gateway", "name": "other"}]);
    let objects = [secret, all, policy("alpn", b, "TlsAlpn01")];
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

/// An IPv4 address of this machine, where the Gateways' ports are open: the way of the authority there leads out of the mesh.
fn machine() -> String {
    let told = Command::new("ip").args(["-4", "-o", "address", "show", "scope", "global"]).output().unwrap();
    let told = text(&told.stdout);
    let address =
        told.split_whitespace().skip_while(|word| *word != "inet").nth(1).expect("this machine has an address that is no loopback");
    address.split('/').next().unwrap().to_owned()
}

/// The IPv4 address of a workload.
fn address(mesh: &Mesh, workload: &str) -> String {
    let told = mesh.inside(workload, &["ip", "-4", "-o", "address", "show", "eth0"]);
    let address = told.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
    address.split('/').next().unwrap().to_owned()
}

fn object(mesh: &Mesh, name: &str, kind: &str) -> Value {
    let objects = mesh.json(&["get", "objects", name, "-n", "shop"]);
    let found = objects.as_array().unwrap().iter().find(|object| object["kind"] == kind).cloned();
    found.unwrap_or_else(|| panic!("no {kind} {name} in {objects}"))
}

/// The condition of that type: of a listener of `edge`.
fn listener(mesh: &Mesh, listener: &str, kind: &str) -> Value {
    let gateway = object(mesh, "edge", "Gateway");
    let listeners = gateway["status"]["listeners"].as_array().unwrap();
    let conditions = &listeners.iter().find(|one| one["name"] == listener).unwrap()["conditions"];
    conditions.as_array().unwrap().iter().find(|condition| condition["type"] == kind).unwrap().clone()
}

/// A condition of a policy at its first Gateway.
fn condition(mesh: &Mesh, policy: &str, kind: &str) -> Value {
    let policy = object(mesh, policy, "ClientPolicy");
    let conditions = policy["status"]["ancestors"][0]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap().clone()
}

/// The row of `get certs` for a host.
fn certificate(mesh: &Mesh, host: &str) -> Value {
    let rows = mesh.json(&["get", "certs", "-n", "shop"]);
    rows.as_array().unwrap().iter().find(|row| row["identity"] == host).cloned().unwrap_or(Value::Null)
}

/// The status of a request over TLS that believes the authority alone.
fn call(roots: &Path, host: &str, port: u16) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-S", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(roots);
    let output = curl.args(["--resolve", &format!("{host}:{port}:127.0.0.1"), &format!("https://{host}:{port}/")]).output().unwrap();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The authority has forgotten us, and certificates of it are of a minute and a half, which it wants renewed somewhere in between.
fn comes_back_with_an_empty_head(mesh: &Mesh, authority: &Authority, ca: &str, (directory, root): (&str, &str)) {
    authority.end();
    authority.prepare(ca, 90);
    authority.begin();
    let other = "
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: c, namespace: shop}
spec:
  parentRef: {name: edge}
  listeners: [{name: c, port: 28481, protocol: HTTPS, hostname: c.shop.test, tls: {options: {meshwright.dev/acme: \"on\"}}}]
";
    let gateway = manifests(authority)
        .split("---\n")
        .find(|part| part.contains("kind: Gateway") && part.contains("{name: edge,"))
        .unwrap()
        .to_owned();
    let open =
        gateway.replace("gatewayClassName: meshwright", "gatewayClassName: meshwright\n  allowedListeners: {namespaces: {from: Same}}");
    mesh.apply(&[&policies(directory, root, 95), "---\n", &open, "---", other].concat());
    let first = eventually("a certificate comes", PATIENCE, || certificate(mesh, "c.shop.test")["serial"].as_str().map(str::to_owned));
    eventually("it is renewed", Duration::from_secs(120), || {
        let now = certificate(mesh, "c.shop.test")["serial"].as_str().map(str::to_owned);
        now.is_some_and(|now| now != first).then_some(())
    });
    assert!(authority.log().contains("is a replacement of"), "{}", authority.log());
}

/// A wildcard, proved by a record that a webhook writes.
fn proves_a_wildcard_by_dns(mesh: &Mesh, authority: &Authority, ca: &str, directory: &str) {
    let set = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ListenerSet", "metadata": {"name": "wild", "namespace": "shop"},
        "spec": {"parentRef": {"name": "edge"}, "listeners": [{
            "name": "wild", "port": PORTS[1], "protocol": "HTTPS", "hostname": "*.w.shop.test", "tls": {"options": {"meshwright.dev/acme": "on"}},
        }]},
    });
    let policy = json!({
        "apiVersion": "meshwright.dev/v1alpha1", "kind": "ClientPolicy", "metadata": {"name": "wild", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "ListenerSet", "name": "wild"}], "acme": {
            "directory": directory, "challenge": "Dns01", "accountSecretRef": {"name": "account"},
            "dns01": {"webhook": {"backendRef": {"name": "dns", "namespace": "ca", "port": 80}}, "resolvers": [format!("{ca}:8053")]},
        }},
    });
    mesh.apply(&format!("{set}\n---\n{policy}\n"));
    let row = eventually("a wildcard's certificate comes", PATIENCE, || {
        let row = certificate(mesh, "*.w.shop.test");
        row["serial"].is_string().then_some(row)
    });
    assert_eq!((&row["acme"]["order"], &row["acme"]["challenge"]), (&json!("Ready"), &json!("Dns01")), "{row}");
    let written = fs::read_to_string(authority.folder.join("webhook.log")).unwrap();
    for word in ["/present _acme-challenge.w.shop.test.", "/cleanup _acme-challenge.w.shop.test."] {
        assert!(written.contains(word), "{written}");
    }
}

/// Aim: an authority that is away leaves one listener pending and everything else served; when it is there, a name is proved by HTTP and another by
/// TLS, at every Gateway that wants it, and clients that believe that authority alone are let in; an authority that has forgotten us is met anew, and
/// a certificate is renewed when the authority says, in place of the one before; what only authorities ask is closed again; a wildcard is proved by DNS.
#[test]
#[ignore = "full: a certificate's life of a minute and a half, and its renewal"]
fn certificates_are_ordered_from_a_real_authority() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let authority = Authority { folder: folder.path().to_owned() };
    let mesh = Mesh::start_with(&[("mesh.yaml", &manifests(&authority))], &["--nat"]);
    let ca = address(&mesh, "ca/pebble");
    fs::write(folder.path().join("edge"), machine()).unwrap();
    authority.prepare(&ca, 7_776_000);
    let root = fs::read_to_string(folder.path().join("cert.pem")).unwrap();
    let directory = format!("https://{ca}:14000/dir");

    // Nobody answers yet.
    mesh.apply(&policies(&directory, &root, 66));
    let pending = eventually("a try has failed", PATIENCE, || {
        let programmed = listener(&mesh, "a", "Programmed");
        programmed["message"].as_str().unwrap().contains("the last try failed").then_some(programmed)
    });
    assert_eq!((&pending["status"], &pending["reason"]), (&json!("False"), &json!("CertificatePending")), "{pending}");
    assert_eq!(listener(&mesh, "http", "Programmed")["status"], "True");
    assert_eq!(condition(&mesh, "edge", "CertificatesReady")["status"], "False");
    let row = certificate(&mesh, "a.shop.test");
    assert_eq!(
        (&row["acme"]["order"], &row["acme"]["challenge"], row["acme"]["next_try"].is_string()),
        (&json!("Failing"), &json!("Http01"), true),
        "{row}"
    );

    authority.begin();
    for name in ["a", "b"] {
        eventually("a certificate comes", PATIENCE, || (listener(&mesh, name, "Programmed")["status"] == "True").then_some(()));
    }
    let roots = folder.path().join("roots.pem");
    let told = mesh.inside("ca/pebble", &["curl", "-s", "-k", "https://127.0.0.1:15000/roots/0"]);
    fs::write(&roots, told).unwrap();
    for (host, port) in [("a.shop.test", PORTS[1]), ("b.shop.test", PORTS[1]), ("b.shop.test", PORTS[2])] {
        eventually("a client gets in", Duration::from_secs(10), || (call(&roots, host, port) == "200").then_some(()));
    }
    for policy in ["edge", "alpn"] {
        eventually("the policy says so", Duration::from_secs(10), || {
            (condition(&mesh, policy, "CertificatesReady")["status"] == "True").then_some(())
        });
        assert_eq!(condition(&mesh, policy, "Expiring")["status"], "False");
    }
    let row = certificate(&mesh, "b.shop.test");
    assert_eq!((&row["acme"]["order"], &row["acme"]["challenge"]), (&json!("Ready"), &json!("TlsAlpn01")), "{row}");
    let log = authority.log();
    assert!(log.contains("a.shop.test") && log.contains("b.shop.test"), "{log}");
    // Pending tokens alone are answered.
    let asked = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("http://127.0.0.1:{}/.well-known/acme-challenge/x", PORTS[0]))
        .output()
        .unwrap();
    assert_eq!(text(&asked.stdout), "200", "it is the route's");

    comes_back_with_an_empty_head(&mesh, &authority, &ca, (&directory, &root));
    proves_a_wildcard_by_dns(&mesh, &authority, &ca, &directory);
    let metrics = mesh.log();
    assert!(!metrics.contains("PRIVATE KEY"), "{metrics}");
    mesh.leave();
}
