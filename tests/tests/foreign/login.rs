//! Logins at a provider that nobody here wrote: npm's `oidc-provider`, met by a browser without a screen.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::mesh::{Mesh, client, eventually, root, text};

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

/// A provider on the loopback of the Gateway's own network, which it is met from; gone when dropped.
struct Provider(Child);

impl Provider {
    fn start(mesh: &Mesh, met: (u16, &Path), edge: u16) -> Self {
        Self::telling(mesh, met, edge, None)
    }

    /// One that tells the Gateway, whose certificate that is, of logouts.
    fn telling(mesh: &Mesh, (port, socket): (u16, &Path), edge: u16, certificate: Option<&Path>) -> Self {
        let program = packages().join("provider.mjs");
        // Packages are found from where the program is.
        fs::copy(client("oidc/provider.mjs"), &program).unwrap();
        let at = |path: &str| format!("https://127.0.0.1:{edge}{path}");
        let arguments = [port.to_string(), socket.display().to_string(), at("/oauth2/callback"), at("/bye"), TOKEN_SECS.to_string()];
        let told = certificate.map(|_| at("/oauth2/ended"));
        let trusts = format!("NODE_EXTRA_CA_CERTS={}", certificate.map(|path| path.display().to_string()).unwrap_or_default());
        let mut node = mesh.exec("shop/edge", &["env", &trusts, "node", program.to_str().unwrap()]);
        let mut child = node.args(arguments).args(told).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
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

/// A browser on this machine, with its cookies in a file.
struct Browser {
    jar: PathBuf,
    /// The provider, as it is called and as it is met.
    led: String,
}

impl Browser {
    fn new(jar: PathBuf, (port, socket): (u16, &Path)) -> Self {
        Self { jar, led: format!("127.0.0.1:{port}={}", socket.display()) }
    }

    /// What it comes to; nothing where it is sent to somebody who is not there.
    fn tries(&self, url: &str, headers: &[&str]) -> Result<Value, String> {
        let output =
            Command::new("python3").arg(client("browser.py")).arg(&self.jar).args([&self.led, url]).args(headers).output().unwrap();
        if output.status.success() { Ok(serde_json::from_str(&text(&output.stdout)).unwrap()) } else { Err(text(&output.stderr)) }
    }

    fn browses(&self, url: &str) -> Value {
        self.tries(url, &[]).unwrap()
    }

    /// What a program comes to that has its cookies.
    fn calls(&self, url: &str) -> Value {
        self.tries(url, &["accept:application/json"]).unwrap()
    }
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

/// The same, with sessions at a Redis server that runs while there is that file, and starts again then.
fn kept(provider: u16, edge: u16, certificate: (&str, &str), on: &Path) -> String {
    let login = "  postLogoutRedirect: /bye\n";
    let store = "  backChannelLogoutPath: /oauth2/ended\n  session: {store: Redis, redis: {addresses: ['redis.data:6379'], timeout: 500ms, authRef: {name: redis, key: password}}}\n";
    let server = "redis-server --port 6379 --save '' --appendonly no --protected-mode no --requirepass s3cret";
    let server = format!("while sleep 0.2; do [ -e {} ] && {server}; done >/dev/null 2>&1", on.display());
    let command = serde_json::json!(["sh", "-c", server]);
    let all = manifests(provider, edge, certificate).replace(login, &format!("{login}{store}"));
    format!(
        "{all}
---
apiVersion: v1
kind: Namespace
metadata: {{name: data}}
---
apiVersion: v1
kind: Secret
metadata: {{name: redis, namespace: shop}}
stringData: {{password: s3cret}}
---
apiVersion: v1
kind: Service
metadata: {{name: redis, namespace: data}}
spec: {{selector: {{app: redis}}, ports: [{{name: tcp-redis, port: 6379}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: redis, namespace: data, labels: {{app: redis}}}}
spec: {{command: {command}, ports: [{{name: tcp-redis, port: 6379}}]}}
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
    condition(mesh, "ProviderReady")
}

/// A condition of the login, and what stands beside it.
fn condition(mesh: &Mesh, kind: &str) -> String {
    let objects = mesh.json(&["get", "objects", "people", "-n", "shop"]).to_string();
    let Some(at) = objects.find(kind) else { return String::new() };
    objects[at.saturating_sub(300)..(at + 300).min(objects.len())].to_owned()
}

/// Aim: a browser logs in at a real provider, is who the provider says, keeps its session through refreshes and while the provider is gone, logs out
/// there, too, and nobody new is sent to a provider that is away.
#[test]
fn a_browser_logs_in_at_a_real_provider() {
    let (port, edge) = (free(), free());
    let shop = format!("https://127.0.0.1:{edge}/shop?item=7");
    let jars = tempfile::tempdir().unwrap();
    // Workloads run as another user, and listen there.
    fs::set_permissions(jars.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (chain, key) = certificate(jars.path());
    let mesh = Mesh::start(&[("mesh.yaml", &manifests(port, edge, (&chain, &key)))]);
    let socket = jars.path().join("provider");
    let met = (port, socket.as_path());
    let provider = Provider::start(&mesh, met, edge);
    let [ada, other, third] = ["ada", "other", "third"].map(|name| Browser::new(jars.path().join(name), met));

    let shown = eventually("somebody logs in", Duration::from_secs(60), || {
        let shown = ada.browses(&shop);
        (shown["status"] == 200).then_some(shown)
    });
    assert_eq!(shown["url"], shop.as_str(), "back to where it began: {shown}");
    let seen: Value = serde_json::from_str(shown["body"].as_str().unwrap()).unwrap();
    let headers = &seen["headers"];
    assert_eq!(headers["x-email"][0], "ada@shop.example", "{seen}");
    assert_eq!(headers["x-meshwright-consumer"][0], "shop/ada;groups=;method=Login", "{seen}");
    assert!(headers["authorization"][0].as_str().unwrap().starts_with("Bearer ") && !seen.to_string().contains("mw-login"), "{seen}");
    eventually("status says so", Duration::from_secs(30), || ready(&mesh).contains("Found").then_some(()));
    assert_eq!(ada.calls(&shop)["hops"].as_array().unwrap().len(), 1, "nobody is sent anywhere any more");
    let program = other.calls(&shop);
    assert!(program["status"] == 401 && program["cookies"].as_array().unwrap().is_empty(), "{program}");

    let first = headers["authorization"][0].clone();
    let bearer = |browser: &Browser| {
        let shown = browser.calls(&shop);
        assert_eq!(shown["status"], 200, "{shown}");
        serde_json::from_str::<Value>(shown["body"].as_str().unwrap()).unwrap()["headers"]["authorization"][0].clone()
    };
    eventually("the session is refreshed", Duration::from_secs(30), || (bearer(&ada) != first).then_some(()));

    drop(provider);
    eventually("the provider is missed", Duration::from_secs(60), || {
        bearer(&ada);
        other.tries(&shop, &[]).is_ok_and(|shown| shown["status"] == 503).then_some(())
    });
    eventually("status says so", Duration::from_secs(30), || ready(&mesh).contains("Unreachable").then_some(()));
    assert_eq!(ada.calls(&shop)["status"], 200, "who is logged in stays so");

    let provider = Provider::start(&mesh, met, edge);
    let logs_in = |browser: &Browser| browser.tries(&shop, &[]).is_ok_and(|shown| shown["status"] == 200);
    eventually("somebody else logs in", Duration::from_secs(90), || logs_in(&other).then_some(()));
    let left = other.browses(&format!("https://127.0.0.1:{edge}/oauth2/logout"));
    let hops = left["hops"].to_string();
    assert!(hops.contains("/session/end") && left["url"].as_str().unwrap().contains("/bye") && left["status"] == 200, "{left}");
    let program = other.calls(&shop);
    assert_eq!(program["status"], 401, "{program}");

    // A provider that refuses ends sessions at their next refresh.
    assert!(logs_in(&third));
    mesh.inside("shop/edge", &["curl", "-sf", &format!("http://127.0.0.1:{port}/test/revoke")]);
    eventually("the refresh is refused", Duration::from_secs(30), || (third.calls(&shop)["status"] == 401).then_some(()));
    drop(provider);
    mesh.leave();
}

/// Aim: sessions that a real Redis server keeps: the browser has one small cookie, what stands at the server says nothing, refreshes go on; the real
/// provider ends one of its sessions by its back channel, for whoever has a copy of the cookie, and no other; while the server is gone nobody is let in
/// and nobody is logged out; a server that has forgotten sends people to log in again.
#[test]
fn a_provider_ends_sessions_at_a_real_store() {
    let (port, edge) = (free(), free());
    let shop = format!("https://127.0.0.1:{edge}/shop?item=7");
    let jars = tempfile::tempdir().unwrap();
    fs::set_permissions(jars.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (chain, key) = certificate(jars.path());
    let on = jars.path().join("on");
    fs::write(&on, "").unwrap();
    let mesh = Mesh::start(&[("mesh.yaml", &kept(port, edge, (&chain, &key), &on))]);
    let (socket, trusted) = (jars.path().join("provider"), jars.path().join("tls.crt"));
    let met = (port, socket.as_path());
    let provider = Provider::telling(&mesh, met, edge, Some(&trusted));
    let [ada, copy, other] = ["ada", "copy", "other"].map(|name| Browser::new(jars.path().join(name), met));
    let logs_in = |browser: &Browser| {
        eventually("somebody logs in", Duration::from_secs(60), || {
            browser.tries(&shop, &[]).is_ok_and(|shown| shown["status"] == 200).then_some(())
        });
    };
    logs_in(&ada);
    logs_in(&other);
    fs::copy(&ada.jar, &copy.jar).unwrap();
    let jar = fs::read_to_string(&ada.jar).unwrap();
    let tickets: Vec<&str> = jar.lines().filter(|line| line.contains("mw-login") && !line.contains("-b\t")).collect();
    assert!(tickets.len() == 1 && tickets[0].len() < 500, "{jar}");

    let cli = |words: &[&str]| {
        let all = [&["redis-cli", "-h", "redis.data", "-a", "s3cret", "--no-auth-warning"][..], words].concat();
        text(&mesh.exec("shop/store", &all).output().unwrap().stdout)
    };
    let keys = cli(&["keys", "*"]);
    assert_eq!(keys.lines().filter(|key| key.starts_with("meshwright:login:{")).count(), 2, "{keys}");
    let session = keys.lines().find(|key| key.ends_with('}')).unwrap();
    let value = cli(&["get", session]);
    assert!(!value.contains("ada") && value.trim().len() > 100, "{value}");
    let rests: u64 = cli(&["ttl", session]).trim().parse().unwrap();
    assert!((3_500..=3_600).contains(&rests), "{rests}");

    let bearer = |browser: &Browser| {
        let shown = browser.calls(&shop);
        assert_eq!(shown["status"], 200, "{shown}");
        serde_json::from_str::<Value>(shown["body"].as_str().unwrap()).unwrap()["headers"]["authorization"][0].clone()
    };
    let first = bearer(&ada);
    eventually("the session is refreshed", Duration::from_secs(60), || (bearer(&ada) != first).then_some(()));

    // She leaves at the provider itself: this site hears of it from there alone.
    let left = ada.browses(&format!("http://127.0.0.1:{port}/session/end"));
    assert_eq!(left["status"], 200, "{left}");
    for browser in [&ada, &copy] {
        eventually("it has ended", Duration::from_secs(15), || (browser.calls(&shop)["status"] == 401).then_some(()));
    }
    bearer(&other);

    fs::remove_file(&on).unwrap();
    cli(&["shutdown", "nosave"]);
    eventually("nobody can say", Duration::from_secs(20), || (other.calls(&shop)["status"] == 503).then_some(()));
    let said = eventually("status says so", Duration::from_secs(20), || Some(condition(&mesh, "Degraded")).filter(|said| !said.is_empty()));
    assert!(said.contains("StoreAway"), "{said}");
    fs::write(&on, "").unwrap();
    eventually("the server has forgotten", Duration::from_secs(60), || (other.calls(&shop)["status"] == 401).then_some(()));
    logs_in(&other);
    drop(provider);
    mesh.leave();
}
