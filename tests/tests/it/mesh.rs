//! A whole mesh over memory pipes, in virtual time: control plane, authority and three sidecars in one thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::application::Client;
use tests::mesh::{APPLICATION_PORT, Mesh};
use tests::plane::patiently;
use tests::shop::{route, shop};
use tests::sidecar::{Sidecar, Spec, resolve};
use tests::wire::Medium;

const CONTROL: IpAddr = ip(1);
const FRONTEND: Spec = Spec { namespace: "shop", workload: "frontend", service_account: "web", ip: ip(2) };
const CATALOG_1: Spec = Spec { namespace: "shop", workload: "catalog-v1", service_account: "catalog", ip: ip(3) };
const CATALOG_2: Spec = Spec { namespace: "shop", workload: "catalog-v2", service_account: "catalog", ip: ip(4) };
const STRANGER: IpAddr = ip(9);

const fn ip(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, last))
}

/// Everything is logged and traced.
const TELEMETRY: &str = r#"
apiVersion: meshwright.dev/v1alpha1
kind: Telemetry
metadata: {name: default, namespace: meshwright-system}
spec: {accessLog: {enabled: true}, tracing: {otlp: {endpoint: "http://127.0.0.1:1", protocol: Grpc}, samplePercent: 100}}
---
"#;

/// Runs a test in virtual time on one thread, bounded.
pub(crate) fn run<F: Future<Output = anyhow::Result<()>>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(3600), test()).await };
    tokio::task::LocalSet::new().block_on(&runtime, bounded).expect("the test hangs").expect("the test fails");
}

/// Control plane, a caller, and two versions of what it calls.
pub(crate) struct Shop {
    pub(crate) mesh: Mesh,
    frontend: Sidecar,
    catalog: [Sidecar; 2],
}

impl Shop {
    async fn open() -> anyhow::Result<Self> {
        Self::with("").await
    }

    /// Beside these manifests.
    pub(crate) async fn with(more: &str) -> anyhow::Result<Self> {
        let mesh = Mesh::new(Medium::Memory, CONTROL, &[TELEMETRY, &shop("10.9.0"), more, &route(90, 10)].concat(), 7)?;
        let clock = mesh.clock(Duration::ZERO);
        let (plane, network) = (mesh.plane.clone(), mesh.wire.exempt(CONTROL));
        tokio::task::spawn_local(async move { plane.run(network, clock).await.expect("the control plane runs") });
        let frontend = mesh.join(FRONTEND, clock).await?;
        let catalog = [mesh.join(CATALOG_1, clock).await?, mesh.join(CATALOG_2, clock).await?];
        Ok(Self { mesh, frontend, catalog })
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let catalog = resolve(&self.frontend.means.snapshots, "catalog.shop").await?;
        Ok(Client::new(self.mesh.wire.application(FRONTEND.ip), SocketAddr::new(catalog, 80), "catalog.shop"))
    }
}

/// How many of `requests` each server answered.
async fn shares(client: &mut Client, requests: u32) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut shares = BTreeMap::new();
    for n in 0..requests {
        let answer = client.get(&format!("/item/{n}")).await?;
        anyhow::ensure!(answer.status == 200, "request {n}: {answer:?}");
        *shares.entry(answer.served_by().to_owned()).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(shares)
}

/// Aim: a name resolves, a declared split holds, both sides prove who they are, nothing travels in plaintext, and one trace links
/// caller and server.
#[test]
fn a_request_crosses_the_mesh() {
    run(|| async {
        let shop = Shop::open().await?;
        let mut client = shop.client().await?;
        let shares = shares(&mut client, 1000).await?;
        let v2 = shares.get("catalog-v2").copied().unwrap_or_default();
        assert!((70..=130).contains(&v2), "v2 answered {v2} of 1000 at weight 10 of 100: {shares:?}");

        let caller = "spiffe://cluster.local/ns/shop/sa/web";
        let called = "spiffe://cluster.local/ns/shop/sa/catalog";
        let lines = shop.mesh.log.lines();
        assert_eq!(lines.len(), 2000, "one line on each side");
        for line in &lines {
            assert_eq!((&line["source"]["identity"], &line["destination"]["identity"]), (&caller.into(), &called.into()), "{line}");
            assert_eq!((&line["mtls"]["version"], &line["status"]), (&"TLSv1.3".into(), &200.into()), "{line}");
            assert_eq!(line["source"]["workload"], "frontend", "{line}");
            if line["direction"] == "outbound" {
                let (service, workload) = (&line["destination"]["service"], &line["destination"]["workload"]);
                assert_eq!((service, &line["route"]), (workload, &"shop/catalog".into()), "{line}");
            }
        }
        assert_eq!(shop.mesh.wire.witness().plaintext_to(APPLICATION_PORT).len(), 0);
        assert!(shop.mesh.wire.witness().connections_to(APPLICATION_PORT) >= 2);

        let metrics = shop.frontend.means.telemetry.render();
        let counted = |text: &str, wanted: &[&str]| text.lines().any(|line| wanted.iter().all(|part| line.contains(part)));
        let outbound =
            ["meshwright_requests_total{", r#"direction="outbound""#, r#"route="shop/catalog""#, r#"code="200""#, r#"mtls="true""#];
        assert!(counted(&metrics, &outbound) && counted(&metrics, &["meshwright_config_epoch 1"]), "{metrics}");
        let metrics = shop.catalog[0].means.telemetry.render();
        let inbound = ["meshwright_requests_total{", r#"direction="inbound""#, r#"source_workload="frontend""#, r#"mtls="true""#];
        assert!(counted(&metrics, &inbound) && counted(&metrics, &["meshwright_cert_expiry_seconds "]), "{metrics}");

        let answer = client.get("/traced").await?;
        let lines = shop.mesh.log.lines();
        let side = |direction: &str| lines.iter().rfind(|line| line["path"] == "/traced" && line["direction"] == direction).unwrap();
        assert_eq!(side("inbound")["trace_id"], side("outbound")["trace_id"]);
        let wanted = format!("00-{}-{}-01", side("inbound")["trace_id"].as_str().unwrap(), side("inbound")["span_id"].as_str().unwrap());
        assert_eq!(answer.seen("traceparent"), wanted, "the application sees the SERVER span");
        assert!(answer.seen("x-forwarded-client-cert").contains(caller), "{answer:?}");
        Ok(())
    });
}

/// Aim: a change of weights is live when `apply --wait` returns, and no request fails meanwhile.
#[test]
fn an_edit_under_load_fails_nothing() {
    run(|| async {
        let shop = Shop::open().await?;
        let (mut load, mut client) = (shop.client().await?, shop.client().await?);
        shares(&mut client, 10).await?;
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone();
        let running = tokio::task::spawn_local(async move {
            while !stopped.is_cancelled() {
                // A failure is in the tally.
                let _ = load.get("/load").await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            load
        });
        for (v1, v2, least, most) in [(50, 50, 200, 300), (0, 1, 500, 500), (1, 0, 0, 0)] {
            let live = shop.mesh.desk().apply(&route(v1, v2)).await?;
            assert_eq!(live["live"], true, "{live}");
            let v2 = shares(&mut client, 500).await?.get("catalog-v2").copied().unwrap_or_default();
            assert!((least..=most).contains(&v2), "v2 answered {v2} of 500 after {live}");
        }
        stop.cancel();
        let load = running.await?;
        assert_eq!(load.failures(), 0, "{:?}", load.tally);
        assert!(load.tally["200"] > 100, "{:?}", load.tally);
        Ok(())
    });
}

/// Aim: a Strict port gives no byte of the application to a caller in plaintext, and it is told who tried.
#[test]
fn strict_gives_a_stranger_nothing() {
    run(|| async {
        let shop = Shop::open().await?;
        let target = SocketAddr::new(CATALOG_1.ip, APPLICATION_PORT);
        let mut stranger = Client::new(shop.mesh.wire.application(STRANGER), target, "catalog.shop");
        let answer = stranger.get("/secret").await;
        assert!(answer.is_err(), "{answer:?}");
        patiently(async || {
            let peers = shop.mesh.desk().get("plaintext").await?;
            let known = peers.as_array().is_some_and(|rows| rows.iter().any(|row| row["source"].as_str() == Some("10.9.0.9")));
            anyhow::ensure!(known, "{peers}");
            Ok(())
        })
        .await
    });
}

/// Aim: a Revocation is live with its epoch: calls of the workload fail from then on, kept connections and all, and it gets no further
/// configuration; taken back, it comes again by itself and calls as before.
#[test]
fn a_revocation_cuts_a_workload_off() {
    run(|| async {
        let shop = Shop::open().await?;
        let mut client = shop.client().await?;
        shares(&mut client, 10).await?;
        let revocation = r#"
apiVersion: meshwright.dev/v1alpha1
kind: Revocation
metadata: {name: web, namespace: meshwright-system}
spec: {identities: ["spiffe://cluster.local/ns/shop/sa/web"]}
"#;
        let live = shop.mesh.desk().apply(revocation).await?;
        assert_eq!(live["live"], true, "{live}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..10 {
            let answer = client.get("/revoked").await?;
            // In TLS 1.3 a client may think that it is through before the server has looked at its certificate.
            assert!(matches!(answer.header("x-meshwright-reason"), "tls_failed" | "upstream_reset"), "{answer:?}");
            assert_eq!(answer.status, 503, "{answer:?}");
        }
        assert!(shop.mesh.log.lines().iter().all(|line| line["direction"] != "inbound" || line["path"] != "/revoked"));
        assert!(!shop.mesh.desk().epochs().await?.contains_key("frontend"), "its stream goes on");
        shop.mesh.desk().delete(revocation).await?;
        patiently(async || {
            let answer = client.get("/again").await?;
            anyhow::ensure!(answer.status == 200 && shop.mesh.desk().epochs().await?.contains_key("frontend"), "{answer:?}");
            Ok(())
        })
        .await
    });
}

/// A policy for the catalog.
fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: catalog}}}}, {spec}}}\n---\n"
    )
}

/// Aim: 65 rules for tokens in two objects, one more than a proxy takes: a sidecar that starts is not open. What the younger object looks
/// at is refused and what it fills is taken from callers; everything else goes on.
#[test]
fn a_rule_for_tokens_too_many_opens_nothing() {
    let jwks = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"hwJCQ_O__uuFcIs9bTETs-FQYoaLEsm_LUBbLD_gWbM","y":"CKIBB8_1R6ny99dCtrvfCH1GTfDKS_SW5sgFf6XzC74"}]}"#;
    let tokens = |name: &str, count: usize| {
        let one = |number: usize| {
            let claims = format!("claimsToHeaders: [{{claim: sub, header: x-{name}-user}}]");
            format!("{{issuer: 'https://{name}{number}.example', jwks: '{jwks}', fromHeaders: [{{name: x-{name}}}], {claims}}}")
        };
        let rules: Vec<String> = (0..count).map(one).collect();
        policy("RequestAuthentication", name, &format!("jwtRules: [{}]", rules.join(", ")))
    };
    run(|| async {
        let shop = Shop::with(&[tokens("early", 40), tokens("late", 25)].concat()).await?;
        let mut client = shop.client().await?;
        let answer = client.send(http::Request::get("/").header("x-late-user", "admin").header("x-early-user", "admin")).await?;
        assert_eq!((answer.status.as_u16(), answer.seen("x-late-user"), answer.seen("x-early-user")), (200, "", ""));
        for name in ["x-early", "x-late"] {
            let answer = client.send(http::Request::get("/").header(name, "no.token")).await?;
            assert_eq!((answer.status.as_u16(), answer.header("x-meshwright-reason")), (401, "unauthenticated"), "{name}");
        }
        Ok(())
    });
}

/// Aim: policies with a Deny beyond what a proxy takes: a sidecar that starts has nothing older to keep, and lets nobody in.
#[test]
fn a_deny_too_many_opens_nothing() {
    let mut all: String = (0..20)
        .map(|number| policy("AuthorizationPolicy", &format!("p{number}"), &format!("rules: [{}]", vec!["{}"; 1000].join(", "))))
        .collect();
    all += &policy("AuthorizationPolicy", "z", "action: Deny, rules: [{to: [{paths: [{value: /secret}]}]}]");
    run(|| async {
        let shop = Shop::with(&all).await?;
        let answer = shop.client().await?.get("/secret").await?;
        assert_eq!((answer.status.as_u16(), answer.header("x-meshwright-reason")), (503, "policy_unavailable"), "{answer:?}");
        Ok(())
    });
}
