//! Tokens of a stock JWT library through a whole mesh, with their keys fetched over HTTPS from an issuer outside it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::mesh::{Mesh, client, eventually, python};

/// The issuer is a workload outside the mesh, by a name of the cluster's; the store demands nothing but that tokens hold.
fn manifests(folder: &str) -> String {
    let issuer = json!([python(), client("issuer.py"), folder, "id.auth", "8443", "8080"]);
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{meshwright.dev/inject: enabled}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: auth}}
---
apiVersion: v1
kind: Service
metadata: {{name: id, namespace: auth}}
spec: {{selector: {{app: id}}, ports: [{{name: https, port: 443, targetPort: 8443}}, {{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: id, namespace: auth, labels: {{app: id}}}}
spec:
  command: {issuer}
  ports: [{{name: https, port: 8443}}, {{name: http, port: 8080}}]
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
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: client, namespace: shop}}
spec: {{command: [sleep, infinity]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: store}}}}
  jwtRules:
  - issuer: https://id.auth
    audiences: [store]
    jwksUri: https://id.auth/keys
    claimsToHeaders: [{{claim: sub, header: x-user}}, {{claim: groups, header: x-groups}}]
"
    )
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Asks the issuer for something.
fn issuer(mesh: &Mesh, path: &str, order: &Value) -> String {
    let url = format!("http://id.auth{path}");
    let order = order.to_string();
    let asked: &[&str] = if path == "/fetches" { &["curl", "-sf", &url] } else { &["curl", "-sf", "-d", &order, &url] };
    mesh.inside("shop/client", asked)
}

/// A token of PyJWT's with these changes of good claims.
fn token(mesh: &Mesh, alg: &str, changes: &Value) -> String {
    let mut claims =
        json!({"iss": "https://id.auth", "aud": "store", "sub": "ada", "groups": ["staff", "admins"], "exp": now_secs() + 600});
    let mut order = json!({"alg": alg});
    for (name, value) in changes.as_object().unwrap() {
        match name.as_str() {
            "headers" | "key" => order[name] = value.clone(),
            _ if value.is_null() => drop(claims.as_object_mut().unwrap().remove(name)),
            _ => claims[name] = value.clone(),
        }
    }
    order["claims"] = claims;
    issuer(mesh, "/mint", &order)
}

/// A call of the store with a token: status, reason, and what it saw.
fn call(mesh: &Mesh, token: &str) -> (String, String, String) {
    let bearer = format!("authorization: Bearer {token}");
    let format = "\n%{http_code} %header{x-meshwright-reason}";
    let arguments = ["curl", "-s", "--max-time", "20", "-w", format, "-H", "x-user: root", "-H", &bearer, "http://store/"];
    let output = mesh.inside("shop/client", &arguments);
    let (body, last) = output.rsplit_once('\n').unwrap();
    let (status, reason) = last.split_once(' ').unwrap();
    (status.to_owned(), reason.to_owned(), body.to_owned())
}

/// Aim: a stock library's tokens are accepted and rejected as they should, by keys that come over HTTPS; a rotation is followed while running, and
/// an issuer that is away changes nothing for the keys at hand.
#[test]
fn a_stock_librarys_tokens_are_judged_as_they_should() {
    let folder = tempfile::tempdir().unwrap();
    // Proxies run as another user, and read the authority.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (path, authority) = (folder.path().display().to_string(), folder.path().join("ca.pem").display().to_string());
    let mesh = Mesh::start_in(folder, &[("mesh.yaml", &manifests(&path))], &[], &[("SSL_CERT_FILE", &authority)]);

    eventually("the keys are fetched", Duration::from_secs(30), || {
        (call(&mesh, &token(&mesh, "ES256", &json!({}))).0 == "200").then_some(())
    });
    for alg in ["ES256", "ES384", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        let (status, _, body) = call(&mesh, &token(&mesh, alg, &json!({})));
        assert_eq!(status, "200", "{alg}");
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&seen["headers"]["x-user"], &seen["headers"]["x-groups"]), (&json!(["ada"]), &json!(["staff,admins"])), "{alg}");
        assert!(seen["headers"].get("authorization").is_none(), "{body}");
    }
    let now = now_secs();
    for (what, alg, changes) in [
        ("expired", "ES256", json!({"exp": now - 60})),
        ("not yet", "ES256", json!({"nbf": now + 120})),
        ("another audience", "ES256", json!({"aud": "bank"})),
        ("no audience", "ES256", json!({"aud": null})),
        ("another issuer", "ES256", json!({"iss": "https://evil.example"})),
        ("no signature", "none", json!({})),
        ("key confusion", "HS256", json!({})),
        ("a stranger's key under a known name", "ES256", json!({"key": "stranger"})),
        ("another kind's key", "ES256", json!({"headers": {"kid": "RS256-1"}})),
        ("critical", "ES256", json!({"headers": {"crit": ["exp"]}})),
    ] {
        let (status, reason, _) = call(&mesh, &token(&mesh, alg, &changes));
        assert_eq!((status.as_str(), reason.as_str()), ("401", "unauthenticated"), "{what}");
    }
    let [status, _, body] = mesh.curl("shop/client", "http://store/");
    assert!(status == "200" && !body.contains("x-user"), "without a token: {status} {body}");

    let old = token(&mesh, "ES256", &json!({}));
    issuer(&mesh, "/rotate", &json!({}));
    let new = token(&mesh, "ES256", &json!({"sub": "bob"}));
    assert_eq!(call(&mesh, &old).0, "200", "the old keys are at hand until new ones are missed");
    eventually("the new key is fetched", Duration::from_secs(30), || {
        let (status, reason, _) = call(&mesh, &new);
        assert!(
            matches!((status.as_str(), reason.as_str()), ("200", "") | ("503", "policy_unavailable") | ("401", "unauthenticated")),
            "{status} {reason}"
        );
        (status == "200").then_some(())
    });
    assert_eq!(call(&mesh, &old).0, "401", "what was remembered by a key that is gone");

    issuer(&mesh, "/away", &json!({}));
    let fetches = issuer(&mesh, "/fetches", &json!({}));
    eventually("somebody missed a key", Duration::from_secs(30), || {
        let status = call(&mesh, &token(&mesh, "ES256", &json!({"headers": {"kid": "nobody"}}))).0;
        assert!(matches!(status.as_str(), "401" | "503"), "{status}");
        (issuer(&mesh, "/fetches", &json!({})) != fetches).then_some(())
    });
    assert_eq!(call(&mesh, &new).0, "200", "the keys at hand hold while their issuer is away");
    mesh.leave();
}
