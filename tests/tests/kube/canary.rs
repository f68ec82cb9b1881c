//! Canaries in a cluster: the holder of the lease alone decides, what it decides is in the object's status, and whoever holds it next goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use proto::annotations::ROOT_NAMESPACE;
use proto::mesh::control_client::ControlClient;
use proto::mesh::{CanariesRequest, SteerCanaryRequest};
use serde_json::{Value, json};
use tests::kube::{Rig, ask, gateway_api, install};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::acme::{Replica, apply, args, file, patiently};
use crate::namespace;

/// Longest wait for a door that opens with a turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Service with its two versions, of which the candidate has an endpoint, and their Canary.
fn objects(name: &str) -> String {
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        })
    };
    let (stable, candidate) = (format!("{name}-v1"), format!("{name}-v2"));
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": candidate, "namespace": "shop", "labels": {"kubernetes.io/service-name": candidate}},
        "ports": [{"name": "http", "port": 80}], "endpoints": [{"addresses": ["10.99.0.1"], "conditions": {"ready": true}}],
    });
    let canary = json!({
        "apiVersion": "meshwright.dev/v1alpha1", "kind": "Canary", "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "serviceRef": {"name": name, "port": 80}, "stable": stable, "candidate": candidate,
            "steps": [{"weight": 10, "approve": true}, {"weight": 50}],
        },
    });
    [service(name), service(&stable), service(&candidate), slice, canary].map(|object| object.to_string()).join("\n---\n")
}

fn place(name: &str) -> String {
    format!("/apis/meshwright.dev/v1alpha1/namespaces/shop/canaries/{name}")
}

/// The API of a replica in its turn.
async fn control(folder: &Path) -> ControlClient<Channel> {
    let socket = args(folder).socket();
    let began = Instant::now();
    while UnixStream::connect(&socket).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "no door at {}", socket.display());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    ControlClient::new(Endpoint::from_static("http://control").connect_with_connector(connect).await.unwrap())
}

/// Says what becomes of a canary, and returns its row.
async fn steer(api: &mut ControlClient<Channel>, name: &str, verb: &str) -> Value {
    let request = SteerCanaryRequest { namespace: "shop".to_owned(), name: name.to_owned(), verb: verb.to_owned() };
    let began = Instant::now();
    loop {
        match api.steer_canary(request.clone()).await {
            Ok(answer) => return serde_json::from_str(&answer.into_inner().json).unwrap(),
            Err(status) => assert!(began.elapsed() < PATIENCE, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn rows(api: &mut ControlClient<Channel>) -> Vec<Value> {
    serde_json::from_str(&api.canaries(CanariesRequest::default()).await.unwrap().into_inner().json).unwrap()
}

/// The reason of a condition.
fn reason(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|condition| condition["type"] == kind).filter_map(|condition| condition["reason"].as_str()).collect()
}

/// Aim: a canary begins, is promoted, and another is rolled back, and the API server shows phase, step, weight and reason of each; a rival says that it is
/// refused. When the holder dies the next one has the same runs with their history, decides on, and an end stays an end.
#[tokio::test(flavor = "multi_thread")]
async fn the_holder_decides_and_the_next_one_goes_on() {
    let rig = Rig::start(&["--rbac"]).await.unwrap();
    let admin = rig.client().await.unwrap();
    for name in [ROOT_NAMESPACE, "shop"] {
        namespace(&admin, name).await;
    }
    gateway_api(&admin, "standard").await.unwrap();
    install(&admin, &file("deploy/helm/meshwright/crds/crds.yaml")).await.unwrap();
    apply(&admin, &file("deploy/helm/meshwright/templates/rights.yaml")).await;
    let token = format!("/api/v1/namespaces/{ROOT_NAMESPACE}/serviceaccounts/control/token");
    let token = ask(&admin, "POST", &token, json!({"spec": {}})).await.unwrap()["status"]["token"].as_str().unwrap().to_owned();
    for name in ["cart", "catalog", "pay"] {
        apply(&admin, &objects(name)).await;
    }
    let first = Replica::start(rig.client_with(&token).await.unwrap(), "first");
    let began = patiently(&admin, &place("catalog"), |object| object["status"]["phase"] == "Progressing").await;
    let status = &began["status"];
    assert_eq!((&status["step"], &status["steps"], &status["weight"]), (&json!(1), &json!(2), &json!(10)), "{status}");
    assert_eq!((reason(&began, "Accepted"), reason(&began, "Progressing")), ("Accepted".to_owned(), "Progressing".to_owned()));
    let mut api = control(first.folder.path()).await;
    assert_eq!(steer(&mut api, "catalog", "promote").await["phase"], "Promoted");
    assert_eq!(steer(&mut api, "cart", "abort").await["phase"], "RolledBack");
    let won = patiently(&admin, &place("catalog"), |object| object["status"]["phase"] == "Promoted").await;
    assert_eq!((&won["status"]["weight"], reason(&won, "Progressing")), (&json!(100), "Promoted".to_owned()));
    patiently(&admin, &place("cart"), |object| object["status"]["phase"] == "RolledBack" && object["status"]["weight"] == 0).await;
    let rival: Vec<Value> = objects("catalog").split("\n---\n").map(|text| serde_json::from_str(text).unwrap()).collect();
    let mut rival = rival.into_iter().find(|object| object["kind"] == "Canary").unwrap();
    rival["metadata"]["name"] = json!("younger");
    apply(&admin, &rival.to_string()).await;
    patiently(&admin, &place("younger"), |object| reason(object, "Accepted") == "Conflicted").await;

    let before = rows(&mut api).await;
    let second = Replica::start(rig.client_with(&token).await.unwrap(), "second");
    drop((api, first));
    let mut api = control(second.folder.path()).await;
    assert_eq!(steer(&mut api, "pay", "pause").await["phase"], "Paused");
    patiently(&admin, &place("pay"), |object| object["status"]["phase"] == "Paused").await;
    let after = rows(&mut api).await;
    let told = |rows: &[Value], name: &str| {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        (row["run"].clone(), row["began"].clone(), row["decisions"][0].clone())
    };
    for name in ["cart", "catalog", "pay"] {
        assert_eq!(told(&after, name), told(&before, name), "{name}");
    }
    let phase = |name: &str| after.iter().find(|row| row["name"] == name).unwrap()["phase"].clone();
    assert_eq!((phase("cart"), phase("catalog")), (json!("RolledBack"), json!("Promoted")));
    let still = ask(&admin, "GET", &place("catalog"), ()).await.unwrap();
    assert_eq!((&still["status"]["phase"], &still["status"]["weight"]), (&json!("Promoted"), &json!(100)));
}
