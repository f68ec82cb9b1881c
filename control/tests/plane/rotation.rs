//! A rotation of the root as proxies and commands meet it.

use std::sync::Arc;

use control::publish::trust::Phase;
use control::serve::authority::Authority as _;
use proto::mesh::{Certificate, report};
use tonic::Code;

use crate::desk::{Plane, Reporter, Sidecar};
use crate::{Folders, route};

const CATALOG: (&str, &str) = ("spiffe://cluster.local/ns/shop/sa/catalog", "catalog");

/// Changes the catalog's inbound side.
const STRICT: &str = "
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: Strict}}
";

/// Says which leaf is in use.
async fn uses(reporter: &Reporter, serial: &str) {
    let certificate = Certificate { serial: serial.into(), ..Default::default() };
    reporter.say(report::Kind::Certificate(certificate)).await;
}

/// A sidecar of the catalog with its reports, its leaf in the book, and the first epoch taken.
async fn catalog(folders: &Folders, plane: &Plane) -> (Sidecar, Reporter) {
    folders.authority.note("catalog", "1");
    let mut sidecar = plane.sidecar("catalog", "catalog").await;
    sidecar.take_epoch(None).await;
    let reporter = Reporter::open(plane.tls(Some(CATALOG)).await, "sidecar/shop/catalog", "catalog").await;
    uses(&reporter, "1").await;
    (sidecar, reporter)
}

#[tokio::test]
async fn each_step_waits_for_the_proxies_that_are_there() {
    // Aim: a refused Trust stops the rotation with the proxy and its reason, for whoever follows it; once a later epoch is taken whole it
    // goes on, waits for a leaf below the new root, and is over when the last step is acknowledged. A second ask joins.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (mut sidecar, reporter) = catalog(&folders, &plane).await;
    let (begun, ok) = plane.rotate(false).await;
    assert!(ok && begun["joined"] == false && begun["rotated"] == false, "{begun}");
    let number = sidecar.take_epoch(Some("Trust trust: roots[1]: is no certificate")).await;
    plane.shows(|shown| shown["stopped"].is_string()).await;
    let (stopped, ok) = plane.rotate(true).await;
    let reason = stopped["stopped"].as_str().unwrap();
    assert!(!ok && reason.contains("Trust") && reason.contains("shop/catalog") && reason.contains("roots[1]"), "{stopped}");
    assert_eq!(folders.authority.roots().phase, Phase::Trusting, "it has gone no further");

    let plane = Arc::new(plane);
    // An epoch that changes nothing for the proxy takes nothing back.
    plane.apply(&route("1"), false, false).await;
    assert_eq!(folders.authority.roots().phase, Phase::Trusting);
    plane.apply(STRICT, false, false).await;
    assert_eq!(sidecar.take_epoch(None).await, number + 2);
    let following = tokio::spawn({
        let plane = plane.clone();
        async move { plane.rotate(true).await }
    });
    sidecar.take_epoch(None).await;
    let shown = plane.shows(|shown| shown["step"] == "Issue" && shown["waiting"] == serde_json::json!(["shop/catalog"])).await;
    assert_eq!((&shown["roots"][0]["state"], &shown["roots"][1]["state"]), (&"Issuing".into(), &"Former".into()), "{shown}");
    folders.authority.note("catalog", "2");
    uses(&reporter, "2").await;
    sidecar.take_epoch(None).await;
    let (result, ok) = following.await.unwrap();
    assert!(ok && result["joined"] == true && result["rotated"] == true, "{result}");
    let epochs = plane.get("epochs").await.unwrap();
    let steps: Vec<_> = epochs.as_array().unwrap().iter().filter(|epoch| epoch["objects"][0]["kind"] == "Root").collect();
    let results: Vec<_> = steps.iter().map(|epoch| epoch["objects"][0]["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["deleted", "changed", "created"], "{epochs}");
    Arc::into_inner(plane).unwrap().stop().await;
}

#[tokio::test]
async fn a_leaf_below_a_retired_root_opens_the_certificate_call_only() {
    // Aim: whoever was away comes through the door with its old leaf, and is told to renew it first; one below the root of now is served.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (result, ok) = plane.rotate(true).await;
    assert!(ok && result["rotated"] == true, "nobody has to be waited for: {result}");
    let channel = plane.tls(Some(CATALOG)).await;
    let refused = Sidecar::open(channel, "shop", "catalog", "catalog").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("retired"), "{refused}");
    let fresh = plane.tls_with(Some(folders.authority.next_leaf(CATALOG.0, CATALOG.1))).await.unwrap();
    Sidecar::open(fresh, "shop", "catalog", "catalog").await.unwrap().take_epoch(None).await;
    plane.stop().await;
}
