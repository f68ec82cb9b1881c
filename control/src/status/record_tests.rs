use std::time::UNIX_EPOCH;

use apiserver::lease::{Election, Term};
use apiserver::testing::{Fake, Mood};
use proto::names::Mode;

use super::*;
use crate::clock::Clock;
use crate::publish::board::Seated;
use crate::publish::edition::Edition;
use crate::publish::epoch::Touched;
use crate::publish::peer::{Claim, Dialect, Entrance, edge_key};
use crate::publish::trust::{Phase, Root, Roots};
use crate::source::{FileChange, Folder};
use crate::world::{Allocations, World, WorldSettings};

const CLASS: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses/meshwright";
const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/edge";
const ROUTE: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control";
const MANIFESTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: meshwright}
spec: {controllerName: meshwright.dev/controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop, generation: 3}
spec: {gatewayClassName: meshwright, listeners: [{name: web, port: 8080, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop, generation: 2}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: nowhere, port: 80}]}]}
"#;

const BUNDLE: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gatewayclasses.gateway.networking.k8s.io";

fn definition(channel: &str) -> Value {
    let annotations = json!({"gateway.networking.k8s.io/bundle-version": "v1.6.3", "gateway.networking.k8s.io/channel": channel});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gatewayclasses.gateway.networking.k8s.io", "annotations": annotations}})
}

struct Scene {
    fake: Fake,
    board: Arc<Board>,
    term: Term,
}

fn wall() -> impl Fn() -> std::time::SystemTime + Send + Sync + 'static {
    let begun = Instant::now();
    move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + begun.elapsed()
}

/// The Gateway's proxy comes and runs that epoch.
fn edge(board: &Arc<Board>, number: u64) -> Seated {
    let claim = Claim {
        client: Dialect::Meshwright,
        mode: Mode::Edge,
        namespace: "shop".into(),
        workload: "edge".into(),
        instance: "edge".into(),
        replica: String::new(),
    };
    let seat = board.arrive(claim, Entrance::Tls, String::new()).unwrap();
    board.write(|book, now_us| book.acknowledged(&edge_key("shop", "edge"), number, now_us));
    seat
}

/// A cluster with a Gateway and a route, whose objects are published as epoch 7.
async fn scene() -> Scene {
    let fake = Fake::default();
    let object = |kind: &str, name: &str| json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"}});
    fake.state()
        .put(CLASS, json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "meshwright"}}));
    fake.state().put(BUNDLE, definition("standard"));
    fake.state().put(GATEWAY, object("Gateway", "edge"));
    fake.state().put(ROUTE, object("HTTPRoute", "web"));
    fake.state().put(LEASE, json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}}));
    let term = Election::new(fake.client(), "mesh", "control", "a", Arc::new(wall())).win().await;
    let (board, _events) = Board::new(Clock::new(wall()));
    publish(&board, 7, MANIFESTS);
    Scene { fake, board, term }
}

fn publish(board: &Board, number: u64, manifests: &str) {
    publish_as("changed", board, number, manifests);
}

fn publish_as(result: &'static str, board: &Board, number: u64, manifests: &str) {
    let settings = WorldSettings { assume_ready: true, ..WorldSettings::default() };
    let mut world = World::new(settings, Allocations::default());
    let file = FileChange { file: "all.yaml".to_owned(), text: Some(Ok(manifests.to_owned())) };
    world.apply(Folder::default().update(vec![file], 0));
    let touched = |kind: &str, name: &str| Touched { kind: kind.into(), namespace: "shop".into(), name: name.into(), result };
    let issuing = Root { der: vec![1].into(), sha256: [1; 32] };
    let roots = Arc::new(Roots { issuing, others: Vec::new(), retired: Vec::new(), phase: Phase::Steady, pem: "".into() });
    let objects = vec![touched("Gateway", "edge"), touched("HTTPRoute", "web")];
    board.open_epoch(Edition { world, epoch: number, serial: number, roots }, objects);
}

impl Scene {
    fn record(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(Recorder::new(self.fake.client(), self.board.clone(), self.term.tenure().clone()).run(CancellationToken::new()))
    }

    fn status(&self, path: &str) -> Value {
        self.fake.state().objects[path]["status"].clone()
    }

    /// Writes of statuses: the lease's own are not counted.
    fn versions(&self) -> Vec<String> {
        let version = |path: &str| self.fake.state().objects[path]["metadata"]["resourceVersion"].to_string();
        [CLASS, GATEWAY, ROUTE].map(version).into()
    }
}

fn condition<'a>(list: &'a Value, kind: &str) -> &'a Value {
    list.as_array().and_then(|list| list.iter().find(|condition| condition["type"] == kind)).unwrap_or(&Value::Null)
}

async fn settle() {
    sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn statuses_are_written_once_and_again_when_proxies_acknowledge() {
    // Aim: class, Gateway and route say what is so, of the right generation; Programmed and Live only after the proxy has acknowledged; what
    // is so already costs no write.
    let scene = scene().await;
    let task = scene.record();
    settle().await;
    let class = scene.status(CLASS);
    assert_eq!(condition(&class["conditions"], "Accepted")["status"], "True");
    let version = condition(&class["conditions"], "SupportedVersion");
    assert_eq!((&version["status"], &version["reason"]), (&json!("True"), &json!("SupportedVersion")));
    assert_eq!(class["supportedFeatures"][0], json!({"name": "BackendTLSPolicy"}));
    let gateway = scene.status(GATEWAY);
    assert_eq!(condition(&gateway["conditions"], "Accepted")["observedGeneration"], 3);
    assert_eq!(condition(&gateway["conditions"], "Programmed")["reason"], "Pending");
    assert_eq!(gateway["listeners"][0]["attachedRoutes"], 1);
    let route = scene.status(ROUTE);
    assert_eq!(condition(&route["parents"][0]["conditions"], "ResolvedRefs")["reason"], "BackendNotFound");
    assert_eq!(condition(&route["parents"][0]["conditions"], "Live")["reason"], "Pending");
    let before = scene.versions();
    sleep(Duration::from_secs(300)).await;
    assert_eq!(scene.versions(), before, "nothing has changed");

    let _seat = edge(&scene.board, 7);
    settle().await;
    assert_eq!(condition(&scene.status(GATEWAY)["conditions"], "Programmed")["status"], "True");
    assert_eq!(condition(&scene.status(ROUTE)["parents"][0]["conditions"], "Live")["status"], "True");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_class_claims_what_the_definitions_have_fields_for() {
    // Aim: fields of the experimental channel are claimed where the cluster's definitions are of it, from the next look at them on.
    let scene = scene().await;
    let task = scene.record();
    let claims = || scene.status(CLASS)["supportedFeatures"].to_string().contains("HTTPRouteRetry");
    settle().await;
    assert!(!claims());
    scene.fake.state().put(BUNDLE, definition("experimental"));
    sleep(Duration::from_secs(601)).await;
    assert!(claims());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_others_write_meanwhile_is_kept_and_an_api_server_that_is_busy_is_asked_again() {
    // Aim: over a conflict it is read again; after 500s and silence the word is there once it answers; the lease goes on meanwhile.
    let scene = scene().await;
    let theirs = json!({"parentRef": {"name": "other"}, "controllerName": "example.net/c", "conditions": []});
    let mut route = scene.fake.state().objects[ROUTE].clone();
    route["status"] = json!({"parents": [theirs]});
    scene.fake.state().put(ROUTE, route);
    scene.fake.state().mood = Mood::Says(503);
    let task = scene.record();
    sleep(Duration::from_secs(2)).await;
    scene.fake.state().mood = Mood::Well;
    sleep(Duration::from_secs(20)).await;
    let parents = scene.status(ROUTE)["parents"].clone();
    assert_eq!((parents.as_array().unwrap().len(), &parents[0]), (2, &theirs));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_missing_is_looked_for_again() {
    // Aim: what an API server does not find is not taken for told: once it is there it gets its status within seconds.
    let scene = scene().await;
    let route = scene.fake.state().objects.remove(ROUTE).unwrap();
    let task = scene.record();
    sleep(Duration::from_secs(2)).await;
    scene.fake.state().put(ROUTE, route);
    settle().await;
    assert!(scene.status(ROUTE)["parents"].is_array());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_made_anew_is_told_again() {
    // Aim: a route that was deleted and made again at once, the same but for its uid, gets its status, as the first one did.
    let scene = scene().await;
    let with = |uid: &str| {
        MANIFESTS
            .replace("{name: web, namespace: shop, generation: 2}", &format!("{{name: web, namespace: shop, generation: 2, uid: {uid}}}"))
    };
    publish(&scene.board, 8, &with("one"));
    let task = scene.record();
    settle().await;
    assert!(scene.status(ROUTE)["parents"].is_array());
    let mut anew = scene.fake.state().objects[ROUTE].clone();
    anew["status"] = Value::Null;
    scene.fake.state().put(ROUTE, anew);
    publish(&scene.board, 9, &with("two"));
    settle().await;
    assert!(scene.status(ROUTE)["parents"].is_array());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_new_holder_lowers_nothing_before_proxies_came_back() {
    // Aim: a takeover writes nothing where every proxy is back soon; where one is not, its Gateway is not programmed after a while, and what is
    // live stays live where the new holder found it as it was.
    for (result, live) in [("created", "False"), ("unchanged", "True")] {
        let mut scene = scene().await;
        let task = scene.record();
        let seat = edge(&scene.board, 7);
        settle().await;
        task.abort();
        let before = scene.versions();
        for number in 0..2 {
            let (board, _events) = Board::new(Clock::new(wall()));
            publish_as(result, &board, 7, MANIFESTS);
            scene.board = board;
            let task = scene.record();
            sleep(Duration::from_secs(3)).await;
            let back = (number == 0).then(|| edge(&scene.board, 7));
            sleep(AWAY_GRACE.saturating_sub(Duration::from_secs(4))).await;
            assert_eq!(scene.versions(), before, "{result} {number}");
            settle().await;
            assert_eq!(scene.versions() == before, back.is_some(), "{result}");
            task.abort();
        }
        assert_eq!(condition(&scene.status(GATEWAY)["conditions"], "Programmed")["reason"], "Pending");
        assert_eq!(condition(&scene.status(ROUTE)["parents"][0]["conditions"], "Live")["status"], live);
        drop(seat);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_said_is_so_when_it_is_written() {
    // Aim: while many statuses are written one by one, those still to come say what is so by then, and are not written twice.
    const ROUTES: usize = 200;
    let scene = scene().await;
    let many = |generation: usize| {
        let route = |number: usize| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}, namespace: shop, generation: {generation}}}\nspec: {{parentRefs: [{{name: edge}}]}}\n"
            )
        };
        (0..ROUTES).map(route).fold(MANIFESTS.to_owned(), |all, route| all + &route)
    };
    for number in 0..ROUTES {
        let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": format!("r{number}"), "namespace": "shop"}});
        scene.fake.state().put(&ROUTE.replace("/web", &format!("/r{number}")), route);
    }
    publish(&scene.board, 8, &many(1));
    let before = scene.fake.state().writes;
    let task = scene.record();
    sleep(Duration::from_millis(1500)).await;
    publish(&scene.board, 9, &many(2));
    sleep(Duration::from_secs(15)).await;
    let told =
        |number| scene.status(&ROUTE.replace("/web", &format!("/r{number}")))["parents"][0]["conditions"][0]["observedGeneration"] == 2;
    assert!((0..ROUTES).all(told));
    let writes = scene.fake.state().writes - before;
    assert!(writes < ROUTES + 150, "{writes}");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_the_lease_writes_no_more() {
    // Aim: the task ends with the lease, whatever is due.
    let scene = scene().await;
    let task = scene.record();
    settle().await;
    let mut lease = scene.fake.state().objects[LEASE].clone();
    lease["spec"]["holderIdentity"] = json!("b");
    scene.fake.state().put(LEASE, lease);
    task.await.unwrap();
    assert!(scene.term.tenure().lost().is_cancelled());
    let before = scene.versions();
    publish(&scene.board, 8, MANIFESTS);
    settle().await;
    assert_eq!(scene.versions(), before);
}

#[test]
fn sentences_alone_wait_and_failures_are_further_apart() {
    // Aim: a word that differs in a message only is the same word; the pauses have their bounds.
    let said = |message: &str| {
        let condition = crate::translate::Condition {
            kind: "Live".into(),
            status: "False",
            reason: "Pending".into(),
            message: message.into(),
            observed_generation: 1,
        };
        Spoken { status: crate::translate::Status { conditions: vec![condition], ..Default::default() }, ..Spoken::default() }
    };
    assert!(said("waiting for a") != said("waiting for b") && silent(&said("waiting for a")) == silent(&said("waiting for b")));
    assert_eq!([1, 2, 3, 7, 40].map(retry), [1, 2, 4, 60, 60].map(Duration::from_secs));
}
