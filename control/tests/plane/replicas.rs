//! Several proxies of one Gateway, which have one node id.

use std::time::Duration;

use proto::mesh::{Answer, report};
use serde_json::{Value, json};

use crate::Folders;
use crate::desk::{Plane, Reporter, Sidecar};

const PUBLIC: (&str, &str) = ("spiffe://cluster.local/ns/shop/sa/public", "public");

const GATEWAY: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 8080, protocol: HTTP}]}
";

/// A route of the Gateway, which says another word each time.
fn route(word: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: edge, namespace: shop}}
spec:
  parentRefs: [{{name: public}}]
  rules: [{{backendRefs: [{{name: catalog, port: 80}}], filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-a, value: '{word}'}}]}}}}]}}]
"
    )
}

/// One of the Gateway's proxies, which has taken the newest epoch.
async fn edge(plane: &Plane, replica: &str) -> Sidecar {
    let mut edge = Sidecar::open_replica(plane.tls(Some(PUBLIC)).await, "edge/shop/public", "shop/public", replica).await.unwrap();
    edge.take_epoch(None).await;
    edge
}

/// The others, which have taken it, too.
async fn sidecars(plane: &Plane) -> (Sidecar, Sidecar) {
    let (mut frontend, mut catalog) = (plane.sidecar("frontend", "frontend").await, plane.sidecar("catalog", "catalog").await);
    frontend.take_epoch(None).await;
    catalog.take_epoch(None).await;
    (frontend, catalog)
}

/// Whom the newest epoch waits for.
async fn waiting(plane: &Plane) -> Value {
    plane.get("epochs").await.unwrap()[0]["proxies"]["waiting"].clone()
}

async fn waits_for(plane: &Plane, wanted: Value) {
    let look = async {
        while waiting(plane).await != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(10), look).await;
    assert!(looked.is_ok(), "{} instead of {wanted}", waiting(plane).await);
}

#[tokio::test]
async fn every_proxy_of_a_gateway_counts() {
    // Aim: two proxies of one Gateway are told and asked beside one another, and none ends the other's streams; an epoch and each step of a
    // rotation wait for both; one that goes is waited for no more, and when the last one has gone without an answer, for whoever comes.
    let folders = Folders::new();
    std::fs::write(folders.manifests.path().join("gateway.yaml"), GATEWAY).unwrap();
    let plane = folders.start().await;
    let (mut frontend, mut catalog) = sidecars(&plane).await;
    waits_for(&plane, json!(["edge/shop/public"])).await;
    let (mut x, mut y) = (edge(&plane, "public-x").await, edge(&plane, "public-y").await);
    waits_for(&plane, json!([])).await;
    let mut reporters = Vec::new();
    for replica in ["public-x", "public-y"] {
        reporters.push(Reporter::open_replica(plane.tls(Some(PUBLIC)).await, "edge/shop/public", "public", replica).await);
    }
    let answers = async {
        for (reporter, answer) in reporters.iter_mut().zip([r#"["x"]"#, r#"["y"]"#]) {
            let asked = reporter.commands.message().await.unwrap().unwrap();
            reporter.say(report::Kind::Answer(Answer { id: asked.id, json: answer.to_owned(), error: String::new() })).await;
        }
    };
    let (rows, ()) = tokio::join!(plane.get("routes"), answers);
    assert_eq!(rows.unwrap(), json!({"edge/shop/public/public-x": ["x"], "edge/shop/public/public-y": ["y"]}));
    let proxies = plane.get("proxies").await.unwrap();
    let instances: Vec<_> = proxies.as_array().unwrap().iter().map(|row| row["instance"].as_str().unwrap()).collect();
    assert_eq!(instances, ["public-x", "public-y", "catalog", "frontend"]);

    assert!(plane.apply(&route("1"), false, false).await.1);
    x.take_epoch(None).await;
    waits_for(&plane, json!(["edge/shop/public/public-y"])).await;
    y.take_epoch(None).await;
    waits_for(&plane, json!([])).await;

    assert!(plane.rotate(false).await.1);
    frontend.take_epoch(None).await;
    catalog.take_epoch(None).await;
    x.take_epoch(None).await;
    let shown = plane.shows(|shown| shown["waiting"] == json!(["edge/shop/public/public-y"])).await;
    assert_eq!(shown["step"], "Trust");
    y.take_epoch(None).await;
    plane.shows(|shown| shown["step"] == "Issue").await;
    plane.stop().await;
}

#[tokio::test]
async fn who_goes_is_waited_for_no_more_and_the_gateway_is() {
    // Aim: of two proxies one goes before it has answered, then the other one: the epoch waits for the one that is left, and then for the
    // Gateway, whichever proxy comes.
    let folders = Folders::new();
    std::fs::write(folders.manifests.path().join("gateway.yaml"), GATEWAY).unwrap();
    let plane = folders.start().await;
    let _sidecars = sidecars(&plane).await;
    let (x, y) = (edge(&plane, "public-x").await, edge(&plane, "public-y").await);
    assert!(plane.apply(&route("1"), false, false).await.1);
    waits_for(&plane, json!(["edge/shop/public/public-x", "edge/shop/public/public-y"])).await;
    drop(x);
    waits_for(&plane, json!(["edge/shop/public/public-y"])).await;
    drop(y);
    waits_for(&plane, json!(["edge/shop/public"])).await;
    let _z = edge(&plane, "public-z").await;
    waits_for(&plane, json!([])).await;
    plane.stop().await;
}
