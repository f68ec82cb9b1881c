//! Whom the mesh believes, and who is seen to speak without proof: federation, revocation, plaintext, by a whole control plane.

use std::time::Duration;

use prost::Name as _;
use proto::mesh::{PlaintextPeer, Traffic, Trust, report};
use proto::{names, xds};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::{Code, Status};

use super::Folders;
use super::desk::{Plane, Reporter, Sidecar};

const REVOKED: &str = r"
apiVersion: meshwright.dev/v1alpha1
kind: Revocation
metadata: {name: stolen, namespace: meshwright-system}
spec: {identities: ['spiffe://cluster.local/ns/shop/sa/catalog']}
";

const STRICT: &str = r"
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: Strict}, portLevelMtls: {'9090': {mode: Permissive}}}
";

/// What a sidecar was told to believe last.
fn believed(sidecar: &Sidecar) -> Trust {
    let newest = sidecar.seen.iter().rev().find(|response| response.type_url == Trust::type_url()).unwrap();
    xds::unpack(newest.resources[0].resource.as_ref().unwrap()).unwrap()
}

/// How a stream that should go on ended.
async fn end(reporter: &mut Reporter) -> Status {
    let ended = tokio::time::timeout(Duration::from_secs(10), reporter.commands.message()).await.expect("the stream goes on");
    ended.expect_err("a command")
}

fn is_mark(status: &Status) -> bool {
    let mark = status.metadata().get(names::REVOKED).and_then(|mark| mark.to_str().ok());
    (status.code(), mark) == (Code::PermissionDenied, Some("identity")) && status.message().contains("Revocation meshwright-system/stolen")
}

#[tokio::test]
async fn a_revocation_ends_streams_and_reaches_everybody_else() {
    // Aim: who is revoked loses configuration and reports at once and gets no other, with a mark that says why; everybody else is told whom
    // not to believe, and `apply` warns that somebody runs by that identity; taken back, it is served again.
    let folders = Folders::new();
    let plane = folders.start().await;
    let leaf = ("spiffe://cluster.local/ns/shop/sa/catalog", "catalog");
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    let mut catalog = plane.sidecar("catalog", "catalog").await;
    frontend.take_epoch(None).await;
    catalog.take_epoch(None).await;
    assert!(believed(&frontend).identities.is_empty());
    let mut reporter = Reporter::open(plane.tls(Some(leaf)).await, "sidecar/shop/catalog", "catalog").await;
    let (result, ok) = plane.apply(REVOKED, false, false).await;
    assert!(ok && result["objects"][0]["result"] == "created", "{result}");
    assert!(is_mark(&catalog.next_epoch().await.unwrap_err()));
    assert!(is_mark(&end(&mut reporter).await));
    frontend.take_epoch(None).await;
    let trust = believed(&frontend);
    assert_eq!(trust.identities.len(), 1);
    assert_eq!((&*trust.identities[0].identity, &*trust.identities[0].revocation), (leaf.0, "meshwright-system/stolen"));
    let mut again = Sidecar::open(plane.tls(Some(leaf)).await, "shop", "catalog", "catalog").await.unwrap();
    assert!(is_mark(&again.next_epoch().await.unwrap_err()));
    assert!(is_mark(&end(&mut Reporter::open(plane.tls(Some(leaf)).await, "sidecar/shop/catalog", "catalog").await).await));
    plane.apply(REVOKED, true, false).await;
    let mut again = plane.sidecar("catalog", "catalog").await;
    again.take_epoch(None).await;
    assert!(believed(&again).identities.is_empty());
    plane.stop().await;
}

#[tokio::test]
async fn a_federated_bundle_travels_and_the_last_good_one_stays() {
    // Aim: what a ConfigMap holds becomes what proxies believe; a bundle that breaks changes nothing but the Mesh's status, which says why.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let partner = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let folders = Folders::new();
    let plane = folders.start().await;
    let mesh = "\
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec: {federation: [{trustDomain: partner.example, bundle: {configMapRef: {name: roots, key: ca.pem}}}]}
";
    let map = |pem: &str| {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "roots", "namespace": "meshwright-system"}, "data": {"ca.pem": pem},
        });
        object.to_string()
    };
    let (result, _) = plane.apply(&format!("{}\n---\n{mesh}", map(&partner.pem())), false, false).await;
    assert_eq!(result["warnings"], serde_json::json!([]), "{result}");
    let mut frontend = plane.sidecar("frontend", "frontend").await;
    frontend.take_epoch(None).await;
    let trust = believed(&frontend);
    assert_eq!((trust.federated.len(), &*trust.federated[0].trust_domain), (1, "partner.example"));
    assert_eq!(trust.federated[0].roots, [partner.der().to_vec()]);
    let (result, _) = plane.apply(&map("no PEM"), false, true).await;
    assert!(result["proxies"]["concerned"] == 0, "nothing that proxies run has changed: {result}");
    let objects = plane.get("objects").await.unwrap();
    let mesh = objects.as_array().unwrap().iter().find(|object| object["kind"] == "Mesh").unwrap();
    let refs = mesh["status"]["conditions"].as_array().unwrap().iter().find(|condition| condition["type"] == "ResolvedRefs").unwrap();
    assert_eq!((&refs["status"], &refs["reason"]), (&"False".into(), &"InvalidBundle".into()), "{refs} {result}");
    let mut again = plane.sidecar("frontend", "frontend").await;
    again.take_epoch(None).await;
    assert_eq!(believed(&again), trust, "a proxy that comes new gets it, too");
    plane.stop().await;
}

async fn seen(plane: &Plane, rows: usize) -> serde_json::Value {
    let waiting = async {
        loop {
            let seen = plane.get("plaintext").await.unwrap();
            if seen.as_array().unwrap().len() == rows {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap()
}

#[tokio::test]
async fn plaintext_is_remembered_and_strict_warns_of_whom_it_cuts() {
    // Aim: callers have names where they are known; a proxy that starts anew takes nothing off the list; making the ports Strict names who
    // is cut, when, and only at the ports that change; who goes on is a problem of the mesh's health.
    let folders = Folders::new();
    let plane = folders.start().await;
    let (order, agent) = super::agent(&plane).await;
    let address = order.instances.iter().find(|instance| instance.instance == "frontend").unwrap().addresses[0].clone();
    let leaf = ("spiffe://cluster.local/ns/shop/sa/catalog", "catalog");
    let row = |source: &str, port, connections| PlaintextPeer { source: source.into(), port, connections, ..Default::default() };
    let told = |plaintext| report::Kind::Traffic(Traffic { plaintext, ..Default::default() });
    for connections in [3, 2] {
        let reporter = Reporter::open(plane.tls(Some(leaf)).await, "sidecar/shop/catalog", "catalog").await;
        reporter.say(told(vec![row(&address, 8080, connections), row("192.0.2.7", 9090, 1)])).await;
        let rows = seen(&plane, 2).await;
        assert_eq!(rows[1]["source"], "shop/frontend", "{rows}");
    }
    let waiting = async { while seen(&plane, 2).await[1]["connections"] != 5 {} };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
    let rows = seen(&plane, 2).await;
    assert_eq!((&rows[0]["source"], &rows[0]["destination"]), (&"192.0.2.7".into(), &"shop/catalog".into()), "{rows}");
    let (result, _) = plane.apply(STRICT, false, false).await;
    let warnings = result["warnings"].as_array().unwrap();
    let line = warnings[0].as_str().unwrap();
    assert_eq!(warnings.len(), 1, "{result}");
    assert!(line.contains("shop/frontend called shop/catalog:8080 in plaintext, 5 times, last at 20"), "{line}");
    let health = plane.api().await.health(proto::mesh::HealthRequest::default()).await.unwrap().into_inner().json;
    assert!(health.contains("and Strict refuses it") && !health.contains("192.0.2.7"), "{health}");
    assert_eq!(plane.apply(STRICT, false, false).await.0["warnings"], serde_json::json!([]), "nothing changes");
    drop(agent);
    plane.stop().await;
}
