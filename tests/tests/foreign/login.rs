//! Logins at a provider that nobody here wrote: npm's `oidc-provider`, met by a browser without a screen.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::mesh::{Mesh, client, eventually, python, root, text};

/// The provider's secret of its client; the form and the header write it otherwise than it stands.
const SECRET: &str = "a-secret-of-the-edge+with/odd=letters";
/// Access tokens live so long.
const TOKEN_SECS: u64 = 5;

/// Where `npm ci` has put the packages of `tests/clients/oidc`.
fn packages() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("oidc");
    assert!(path.join("node_modules/oidc-provider").is_dir(), "{} is not there; `tests/run-all` makes it", path.display());
    path
}

/// A provider on this machine; gone when dropped.
struct Provider(Child);

impl Provider {
    fn start(port: u16, edge: u16) -> Self {
        let program = packages().join("provider.mjs");
        // Packages are found from where the program is.
        fs::copy(client("oidc/provider.mjs"), &program).unwrap();
        let at = |path: &str| format!("https://127.0.0.1:{edge}{path}");
        let mut node = Command::new("node");
        node.arg(&program).args([port.to_string(), at("/oauth2/callback"), at("/bye"), TOKEN_SECS.to_string()]);
        let mut child = node.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let ready = said.lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(ready, "the provider does not start");
        Self(child)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody has now.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a browser comes to, which has its cookies in a file.
fn browse(jar: &Path, url: &str, headers: &[&str]) -> Value {
    let output = Command::new(python()).arg(client("browser.py")).arg(jar).arg(url).args(headers).output().unwrap();
    assert!(output.status.success(), "{url}: {}", text(&output.stderr));
    serde_json::from_str(&text(&output.stdout)).unwrap()
}

fn asked(url: &str) -> String {
    let output = Command::new("curl").args(["-s", "--max-time", "10", url]).output().unwrap();
    text(&output.stdout)
}

fn manifests(provider: u16, edge: u16, certificate: (&str, &str)) -> String {
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let (chain, key) = (indented(certificate.0), indented(certificate.1));
    format!(
        "
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
apiVersion: v1
kind: Secret
metadata: {{name: shop-tls, namespace: shop}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
{chain}  tls.key: |
{key}---
apiVersion: v1
kind: Secret
metadata: {{name: oidc, namespace: shop}}
stringData: {{secret: '{SECRET}'}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  gatewayClassName: meshwright
  listeners: [{{name: https, port: {edge}, protocol: HTTPS, tls: {{certificateRefs: [{{name: shop-tls}}]}}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: store, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - {{name: open, matches: [{{path: {{value: /bye}}}}], backendRefs: [{{name: store, port: 80}}]}}
  - {{name: shop, matches: [{{path: {{value: /shop}}}}], backendRefs: [{{name: store, port: 80}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Consumer
metadata: {{name: ada, namespace: shop}}
spec: {{credentials: [{{name: login, jwt: {{issuer: 'http://127.0.0.1:{provider}', claims: {{sub: ada}}}}}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: OidcLogin
metadata: {{name: people, namespace: shop}}
spec:
  targetRefs: [{{kind: HTTPRoute, name: store, sectionName: shop}}]
  issuer: http://127.0.0.1:{provider}
  clientId: edge
  clientSecretRef: {{name: oidc, key: secret}}
  scopes: [openid, email]
  postLogoutRedirect: /bye
  forward: {{accessToken: Authorization, claimsToHeaders: [{{claim: email, header: x-email}}]}}
"
    )
}

/// A certificate of nobody's for this machine, and its key.
fn certificate(folder: &Path) -> (String, String) {
    let (chain, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(&key).arg("-out").arg(&chain);
    assert!(openssl.output().unwrap().status.success());
    (fs::read_to_string(chain).unwrap(), fs::read_to_string(key).unwrap())
}

/// The condition `ProviderReady` of the login.
fn ready(mesh: &Mesh) -> String {
    let objects = mesh.json(&["get", "objects", "people", "-n", "shop"]).to_string();
    let at = objects.find("ProviderReady").unwrap_or_default();
    objects[at.saturating_sub(300)..(at + 300).min(objects.len())].to_owned()
}

/// Aim: a browser logs in at a real provider, is who the provider says, keeps its session through refreshes and while the provider is gone, logs out
/// there, too, and nobody new is sent to a provider that is away.
#[test]
fn a_browser_logs_in_at_a_real_provider() {
    let (port, edge) = (free(), free());
    let shop = format!("https://127.0.0.1:{edge}/shop?item=7");
    let jars = tempfile::tempdir().unwrap();
    let (jar, other) = (jars.path().join("ada"), jars.path().join("other"));
    let (chain, key) = certificate(jars.path());
    let provider = Provider::start(port, edge);
    let mesh = Mesh::start(&[("mesh.yaml", &manifests(port, edge, (&chain, &key)))]);

    let shown = eventually("somebody logs in", Duration::from_secs(60), || {
        let shown = browse(&jar, &shop, &[]);
        (shown["status"] == 200).then_some(shown)
    });
    assert_eq!(shown["url"], shop.as_str(), "back to where it began: {shown}");
    let seen: Value = serde_json::from_str(shown["body"].as_str().unwrap()).unwrap();
    let headers = &seen["headers"];
    assert_eq!(headers["x-email"][0], "ada@shop.example", "{seen}");
    assert!(headers["x-meshwright-consumer"][0].as_str().unwrap().starts_with("shop/ada;"), "{seen}");
    assert!(headers["authorization"][0].as_str().unwrap().starts_with("Bearer ") && headers.get("cookie").is_none(), "{seen}");
    assert!(ready(&mesh).contains("True"), "{}", ready(&mesh));
    assert_eq!(browse(&jar, &shop, &["accept:application/json"])["hops"].as_array().unwrap().len(), 1, "nobody is sent anywhere any more");
    let program = browse(&other, &shop, &["accept:application/json"]);
    assert!(program["status"] == 401 && program["cookies"].as_array().unwrap().is_empty(), "{program}");

    let first = headers["authorization"][0].clone();
    let refreshed = format!("http://127.0.0.1:{port}/test/refreshes");
    eventually("the session is refreshed", Duration::from_secs(30), || {
        let shown = browse(&jar, &shop, &["accept:application/json"]);
        assert_eq!(shown["status"], 200, "{shown}");
        let seen: Value = serde_json::from_str(shown["body"].as_str().unwrap()).unwrap();
        (seen["headers"]["authorization"][0] != first).then_some(())
    });
    assert_ne!(asked(&refreshed), "0");

    drop(provider);
    eventually("the provider is missed", Duration::from_secs(60), || {
        assert_eq!(browse(&jar, &shop, &["accept:application/json"])["status"], 200, "who is logged in stays so");
        (browse_or(&other, &shop) == 503).then_some(())
    });
    eventually("status says so", Duration::from_secs(30), || ready(&mesh).contains("Unreachable").then_some(()));
    assert_eq!(browse(&jar, &shop, &["accept:application/json"])["status"], 200);

    let provider = Provider::start(port, edge);
    eventually("somebody else logs in", Duration::from_secs(90), || (browse_or(&other, &shop) == 200).then_some(()));
    let left = browse(&other, &format!("https://127.0.0.1:{edge}/oauth2/logout"), &[]);
    let hops = left["hops"].to_string();
    assert!(hops.contains("/session/end") && left["url"].as_str().unwrap().ends_with("/bye") && left["status"] == 200, "{left}");
    let program = browse(&other, &shop, &["accept:application/json"]);
    assert_eq!(program["status"], 401, "{program}");

    // A provider that refuses ends sessions at their next refresh.
    let third = jars.path().join("third");
    assert_eq!(browse(&third, &shop, &[])["status"], 200);
    asked(&format!("http://127.0.0.1:{port}/test/revoke"));
    eventually("the refresh is refused", Duration::from_secs(30), || {
        (browse(&third, &shop, &["accept:application/json"])["status"] == 401).then_some(())
    });
    drop(provider);
    mesh.leave();
}

/// The status that a browser comes to; 0 where it is sent to a provider that is not there.
fn browse_or(jar: &Path, url: &str) -> u64 {
    let output = Command::new(python()).arg(client("browser.py")).arg(jar).arg(url).output().unwrap();
    if !output.status.success() {
        return 0;
    }
    serde_json::from_str::<Value>(&text(&output.stdout)).unwrap()["status"].as_u64().unwrap_or(0)
}
