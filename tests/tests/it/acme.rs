//! Certificates that the control plane orders, from an authority that is quick and does as it is told.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use http::StatusCode;
use proxy::io::{Clock, Network};
use serde_json::{Value, json};
use tests::authority::{AcmeServer, Asks, Odd, WrittenDns};
use tests::plane::{Desk, Plane};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A control plane at an address of loopback that no other test has; it ends with its runtime.
struct Ground {
    desk: Desk,
    _folders: [tempfile::TempDir; 2],
}

impl Ground {
    fn start(last: u8, manifests: &str) -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        fs::write(folders[0].path().join("mesh.yaml"), manifests).unwrap();
        let plane = Plane::new(folders[0].path(), folders[1].path(), IpAddr::V4(Ipv4Addr::new(127, 0, 87, last)));
        let desk = plane.desk();
        tokio::spawn(async move { plane.run(Network::Kernel { mark: None }, Clock::System).await.unwrap() });
        Self { desk, _folders: folders }
    }

    async fn get(&self, kind: &str) -> Value {
        self.desk.get(kind).await.unwrap_or_default()
    }

    /// Waits for a row of `get certs`.
    async fn row(&self, host: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let rows = self.get("certs").await;
            let row = rows.as_array().into_iter().flatten().find(|row| row["identity"] == host).cloned().unwrap_or_default();
            if fits(&row) {
                return row;
            }
            assert!(began.elapsed() < PATIENCE, "{host}: {rows}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a condition of the policy holds that text.
    async fn told(&self, kind: &str, part: &str) {
        let began = Instant::now();
        loop {
            let objects = self.get("objects").await;
            let all = objects.as_array().into_iter().flatten().filter(|object| object["kind"] == "ClientPolicy");
            let text: String = all
                .flat_map(|object| object["status"]["ancestors"][0]["conditions"].as_array().cloned())
                .flatten()
                .filter(|condition| condition["type"] == kind)
                .map(|condition| condition.to_string())
                .collect();
            if text.contains(part) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{kind} should hold {part}: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn gateway(listeners: &Value) -> String {
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge", "namespace": "shop"},
        "spec": {"gatewayClassName": "meshwright", "listeners": listeners},
    });
    format!("---\n{gateway}\n")
}

fn https(name: &str, host: &str) -> Value {
    json!({"name": name, "port": 443, "protocol": "HTTPS", "hostname": host, "tls": {"options": {"meshwright.dev/acme": "on"}}})
}

fn policy(acme: &Value) -> String {
    let policy = json!({
        "apiVersion": "meshwright.dev/v1alpha1", "kind": "ClientPolicy", "metadata": {"name": "acme", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Gateway", "name": "edge"}], "acme": acme},
    });
    format!("---\n{policy}\n")
}

/// Aim: with the challenge Dns01 a webhook writes the record, shown its token; the authority is told when DNS has it, which takes a while; a wildcard
/// gets its certificate too, at the same name; everything is taken back. Nothing needs a proxy.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_proved_by_dns() {
    let dns = WrittenDns::start(Duration::from_millis(700)).await.unwrap();
    let authority = AcmeServer::start(Asks::Record(dns.zone.clone())).await.unwrap();
    let acme = json!({
        "directory": authority.directory(), "challenge": "Dns01", "accountSecretRef": {"name": "account"},
        "dns01": {"webhook": {"backendRef": {"name": "dns", "port": 80}}, "resolvers": [dns.resolver.to_string()]},
    });
    let service = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: dns, namespace: shop}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: dns, namespace: shop, labels: {{kubernetes.io/service-name: dns}}}}
addressType: IPv4
endpoints: [{{addresses: [{}], conditions: {{ready: true}}}}]
ports: [{{name: http, port: {}}}]
---
apiVersion: v1
kind: Secret
metadata: {{name: account, namespace: shop}}
stringData: {{dns01.token: let-me-write}}
",
        dns.webhook.ip(),
        dns.webhook.port()
    );
    let ground = Ground::start(1, &(service + &gateway(&json!([https("a", "a.shop.test")])) + &policy(&acme)));
    let row = ground.row("a.shop.test", |row| row["serial"].is_string() && row["acme"]["order"] != "Ordering").await;
    assert_eq!((&row["acme"]["order"], &row["acme"]["challenge"]), (&json!("Ready"), &json!("Dns01")), "{row}");
    ground.desk.submit(&gateway(&json!([https("a", "a.shop.test"), https("wild", "*.shop.test")]))).await.unwrap();
    let row = ground.row("*.shop.test", |row| row["serial"].is_string() && row["acme"]["order"] != "Ordering").await;
    assert_eq!(&row["acme"]["order"], &json!("Ready"), "{row}");
    assert_eq!(authority.ordered(), ["a.shop.test", "*.shop.test"]);
    let asked = dns.asked.lock().clone();
    let paths: Vec<&str> = asked.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/present", "/cleanup", "/present", "/cleanup"]);
    assert!(asked.iter().all(|(_, shown)| shown == "Bearer let-me-write"), "{asked:?}");
    assert_eq!(dns.values(), 0, "it is taken back");
}

/// Aim: a webhook that is away, and one that says no, are said in the conditions by name; no proof is claimed, and what may have been written is
/// taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_is_named() {
    let authority = AcmeServer::start(Asks::Record(Default::default())).await.unwrap();
    let acme = json!({"directory": authority.directory(), "challenge": "Dns01", "dns01": {"webhook": {"backendRef": {"name": "dns", "port": 80}}}});
    let text = gateway(&json!([https("a", "a.shop.test")])) + &policy(&acme);
    let ground = Ground::start(2, &text);
    ground.told("CertificatesReady", "there is no Service shop/dns").await;
    assert_eq!(authority.calls("/"), 0, "nothing is asked of an authority before");
    // Somebody answers there who knows no webhook: the authority itself.
    let address = authority.directory().replace("http://", "").replace("/dir", "");
    let (ip, port) = address.split_once(':').unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns", "namespace": "shop"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "dns", "namespace": "shop", "labels": {"kubernetes.io/service-name": "dns"}},
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}], "ports": [{"name": "http", "port": port.parse::<u16>().unwrap()}],
    });
    ground.desk.submit(&format!("{service}\n---\n{slice}")).await.unwrap();
    ground.told("CertificatesReady", "the webhook shop/dns:80 (/present _acme-challenge.a.shop.test.): it answers 400 Bad Request").await;
    assert_eq!((authority.calls("/challenge"), authority.calls("/present"), authority.calls("/cleanup")), (0, 1, 1));
}

/// Aim: an authority whose answers are nothing is told of by what it answers, whatever that is, is left alone for a while, and ends nothing: a page of
/// a proxy, a directory with an address that is none, a number of seconds beyond all time.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_talks_nonsense_is_left_alone() {
    let rows = [
        ("/dir", StatusCode::SERVICE_UNAVAILABLE, Some("18446744073709551615"), "<html>", "it answers 503 Service Unavailable"),
        ("/dir", StatusCode::OK, None, "{\"newNonce\": \"ht tp\"}", "its directory names no address as `newNonce`"),
        ("/dir", StatusCode::MOVED_PERMANENTLY, None, "", "it answers 301 Moved Permanently"),
        ("/order", StatusCode::OK, Some("18446744073709551615"), "[]", "JSON"),
        ("/order", StatusCode::BAD_GATEWAY, None, "<html>", "it answers 502 Bad Gateway"),
    ];
    for (number, (path, status, again, body, told)) in rows.into_iter().enumerate() {
        let authority = AcmeServer::start(Asks::Nothing).await.unwrap();
        authority.misbehave(Some(Odd { path, status, again, body: body.to_owned() }));
        let text = gateway(&json!([https("a", "a.shop.test")])) + &policy(&json!({"directory": authority.directory()}));
        let ground = Ground::start(10 + u8::try_from(number).unwrap(), &text);
        ground.told("CertificatesReady", told).await;
        let asked = authority.calls(path);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(authority.calls(path), asked, "{told}: it is asked again at once");
        assert_eq!(ground.row("a.shop.test", |row| row["acme"]["order"] == "Failing").await["acme"]["order"], "Failing");
    }
}

/// Aim: an answer about renewal that would end whoever reads it as a time does not end the control plane, nor is it asked for without a pause; a
/// Secret that is taken away is ordered anew after a minute and not at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_not_asked_about_in_a_loop() {
    let authority = AcmeServer::start(Asks::Nothing).await.unwrap();
    let window = json!({"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}}).to_string();
    authority.misbehave(Some(Odd { path: "/ari", status: StatusCode::OK, again: Some("18446744073709551615"), body: window }));
    let text = gateway(&json!([https("a", "a.shop.test")])) + &policy(&json!({"directory": authority.directory()}));
    let ground = Ground::start(3, &text);
    ground.row("a.shop.test", |row| row["serial"].is_string()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(authority.calls("/ari") <= 1, "{}", authority.calls("/ari"));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "acme-a.shop.test", "namespace": "shop"}});
    ground.desk.withdraw(&secret.to_string()).await.unwrap();
    let row = ground.row("a.shop.test", |row| row["acme"]["order"] == "Pending").await;
    assert!(row["acme"]["next_try"].is_string(), "{row}");
    assert_eq!(authority.ordered().len(), 1);
}
