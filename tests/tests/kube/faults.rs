//! What goes wrong between us and a real API server: replicas of our control plane in this process, on a cluster of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use apiserver::pace::paced;
use apiserver::review::{ReviewError, Reviewer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cli::admission;
use cli::hooks::{Believed, Hooks};
use cli::plane::replica;
use control::app::{InTurn, run_replica};
use control::settings::{ControlArgs, ExternalArgs};
use control::world::{Kind, ObjectKey, World};
use injector::SidecarSettings;
use injector::bundle::HookService;
use injector::serving::{Issued, Issuer};
use injector::webhook::Webhook;
use kube::client::Body;
use proto::annotations::{CONTROLLER, TOKEN_AUDIENCE};
use proxy::io::Clock;
use serde_json::{Value, json};
use tests::kube::{Refusal, Rig, ask, eventually, gateway_api};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{namespace, pod};

/// Where lease, book, keys and the webhooks' Service are.
const MESH: &str = "mesh";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/meshwright-control";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/mesh/endpointslices/hook";
/// A holder that dies is replaced within this (issue: 5 s), and the next one needs a moment to write.
const TAKEOVER_MAX: Duration = Duration::from_secs(8);
/// Longest wait for anything else.
const PATIENCE: Duration = Duration::from_secs(30);

/// A replica: the process `meshwright control --kubernetes` but for its flags, with a runtime of its own, so that it is as good as killed when it
/// is dropped.
struct Replica {
    me: &'static str,
    worlds: watch::Receiver<Option<World>>,
    /// Methods and paths of what it wrote.
    wrote: Arc<Mutex<Vec<String>>>,
    /// How often it has begun to serve.
    turns: Arc<AtomicU32>,
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Replica {
    /// The webhooks are at the port of that address.
    async fn start(rig: &Rig, me: &'static str, webhooks: SocketAddr) -> Self {
        let (folder, wrote) = (tempfile::tempdir().unwrap(), Arc::default());
        // Connections are of the runtime that opens them.
        let (args, client) = (args(folder.path()), noting(rig.client().await.unwrap(), Arc::clone(&wrote)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let inside = runtime.enter();
        let hooks = Hooks {
            client: client.clone(),
            namespace: MESH.to_owned(),
            listen: webhooks,
            service: service(),
            external: ExternalArgs::default(),
            data_dir: args.data_dir.clone(),
            version_told: false,
            sidecar: SidecarSettings::default(),
            leaving: CancellationToken::new(),
        };
        let believed = Believed::default();
        let (turns, inner) = (Arc::new(AtomicU32::new(0)), hooks.in_turn(&believed));
        let counted = Arc::clone(&turns);
        let in_turn: InTurn = Arc::new(move |stop| {
            counted.fetch_add(1, Ordering::Relaxed);
            inner(stop)
        });
        let replica = replica(&args, client, MESH, me, Clock::System, in_turn);
        let (worlds, serving) = (replica.worlds.subscribe(), replica.worlds.subscribe());
        runtime.spawn(hooks.serve(serving, believed, CancellationToken::new()));
        runtime.spawn(run_replica(args, replica));
        drop(inside);
        Self { me, worlds, wrote, turns, runtime: Some(runtime), _folder: folder }
    }

    /// Waits until it knows a world like that.
    async fn knows(&mut self, fits: impl Fn(&World) -> bool) {
        let known = self.worlds.wait_for(|world| world.as_ref().is_some_and(&fits));
        tokio::time::timeout(PATIENCE, known).await.unwrap().unwrap();
    }

    fn wrote(&self, part: &str) -> usize {
        self.wrote.lock().unwrap().iter().filter(|call| call.contains(part)).count()
    }
}

fn args(folder: &Path) -> ControlArgs {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    ControlArgs {
        config: None,
        kubernetes: true,
        kubeconfig: None,
        data_dir: folder.to_owned(),
        listen: anywhere,
        plaintext_xds: None,
        api_socket: None,
        metrics_listen: anywhere,
        service_cidr: Vec::new(),
        instance_cidr: Vec::new(),
        bridge_address: None,
        names: Vec::new(),
        ca_file: None,
        external: ExternalArgs::default(),
        otlp_endpoint: None,
        otlp_protocol: control::world::telemetry::OtlpProtocol::Grpc,
        log_level: "info".to_owned(),
    }
}

fn service() -> HookService {
    HookService { namespace: MESH.to_owned(), name: "hook".to_owned() }
}

/// A client with the pace of ours whose writes are noted.
fn noting(client: kube::Client, wrote: Arc<Mutex<Vec<String>>>) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        if request.method() != http::Method::GET {
            wrote.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
        }
        let client = client.clone();
        async move { client.send(request).await }
    });
    paced(kube::Client::new(service, MESH))
}

/// A free port of loopback, for two addresses.
async fn port() -> u16 {
    let (one, two) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    loop {
        let port = TcpListener::bind((one, 0)).await.unwrap().local_addr().unwrap().port();
        if TcpListener::bind((two, port)).await.is_ok() {
            return port;
        }
    }
}

/// The webhooks' Service, whose endpoints are said by [`behind`], and two namespaces: pods of `fails` are refused while nobody answers, those of
/// `ignores` are not. Nothing is believed yet.
async fn ground(client: &kube::Client, port: u16) {
    for name in [MESH, "fails", "ignores"] {
        namespace(client, name).await;
    }
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"name": "https", "port": 443}]}});
    ask(client, "POST", "/api/v1/namespaces/mesh/services", service).await.unwrap();
    let slice = json!({
        "metadata": {"name": "hook", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
        "endpoints": [], "ports": [{"name": "https", "port": port}],
    });
    ask(client, "POST", "/apis/discovery.k8s.io/v1/namespaces/mesh/endpointslices", slice).await.unwrap();
    let hook = |namespace: &str, policy: &str| {
        json!({
            "name": format!("{namespace}.meshwright.dev"), "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": policy,
            "clientConfig": {"service": {"name": "hook", "namespace": MESH, "path": "/inject"}}, "timeoutSeconds": 5,
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        })
    };
    let hooks = json!({"metadata": {"name": "ours"}, "webhooks": [hook("fails", "Fail"), hook("ignores", "Ignore")]});
    ask(client, "POST", HOOKS, hooks).await.unwrap();
}

/// From now on these answer for the Service.
async fn behind(client: &kube::Client, addresses: &[&str]) {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address], "conditions": {"ready": true}})).collect();
    ask(client, "MERGE", SLICE, json!({"endpoints": endpoints})).await.unwrap();
}

fn bundle(answer: &Result<Value, Refusal>, hook: usize) -> Option<String> {
    answer.as_ref().ok()?["webhooks"][hook]["clientConfig"]["caBundle"].as_str().filter(|bundle| !bundle.is_empty()).map(str::to_owned)
}

/// Waits until API servers are told whom to believe, for both webhooks.
async fn believed(client: &kube::Client) -> String {
    let told = eventually(client, &format!("{HOOKS}/ours"), |answer| bundle(answer, 0).is_some() && bundle(answer, 1).is_some()).await;
    bundle(&Ok(told.unwrap()), 0).unwrap()
}

/// Tries one pod that is not kept; whether it got a sidecar.
async fn tried(client: &kube::Client, namespace: &str) -> Result<bool, Refusal> {
    let made = ask(client, "POST", &format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), pod("web")).await?;
    Ok(made["spec"]["initContainers"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "meshwright-proxy")))
}

/// Tries pods until the answer fits: the API server learns of a change by its own watch.
async fn until(client: &kube::Client, namespace: &str, fits: impl Fn(&Result<bool, Refusal>) -> bool) {
    let began = Instant::now();
    loop {
        let answer = tried(client, namespace).await;
        if fits(&answer) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "a pod of {namespace}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn refused(answer: &Result<bool, Refusal>, word: &str) -> bool {
    answer.as_ref().is_err_and(|refusal| refusal.message.contains("fails.meshwright.dev") && refusal.message.contains(word))
}

async fn holder(client: &kube::Client) -> String {
    let lease = ask(client, "GET", LEASE, ()).await.unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// Aim: the replica that stands by answers API servers with a certificate of the same authority; what they are to believe is written by the
/// holder alone, again where somebody else has changed it, and by the other one when the holder dies, with no pod refused meanwhile. With
/// nobody left, a pod is refused or starts without a sidecar as the policy says.
#[tokio::test(flavor = "multi_thread")]
async fn webhooks_answer_from_every_replica() {
    let rig = Rig::start(&[]).await.unwrap();
    let client = rig.client().await.unwrap();
    let port = port().await;
    ground(&client, port).await;
    let (one, two) = (SocketAddr::from(([127, 0, 0, 2], port)), SocketAddr::from(([127, 0, 0, 3], port)));
    let first = Replica::start(&rig, "first", one).await;
    let told = believed(&client).await;
    assert_eq!(holder(&client).await, first.me);
    let mut second = Replica::start(&rig, "second", two).await;
    second.knows(|_| true).await;
    // An API server keeps to its connection: from here on it asks the one that stands by.
    behind(&client, &["127.0.0.3"]).await;
    until(&client, "fails", |answer| *answer == Ok(true)).await;
    until(&client, "ignores", |answer| *answer == Ok(true)).await;

    let (_, stranger) = root();
    let spoilt = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": STANDARD.encode(stranger)}]);
    let wrote = first.wrote("webhookconfigurations");
    spoil(&client, &spoilt).await;
    eventually(&client, &format!("{HOOKS}/ours"), |answer| bundle(answer, 0).as_ref() == Some(&told)).await.unwrap();
    assert_eq!((first.wrote("webhookconfigurations"), second.wrote("webhookconfigurations")), (wrote + 1, 0));

    drop(first);
    let died = Instant::now();
    while holder(&client).await != second.me {
        assert!(died.elapsed() < TAKEOVER_MAX, "nobody takes over");
        assert_eq!(tried(&client, "fails").await, Ok(true), "after {:?}", died.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    spoil(&client, &spoilt).await;
    eventually(&client, &format!("{HOOKS}/ours"), |answer| bundle(answer, 0).as_ref() == Some(&told)).await.unwrap();
    assert_eq!(second.wrote("webhookconfigurations"), 1);

    drop(second);
    until(&client, "fails", |answer| refused(answer, "connect")).await;
    until(&client, "ignores", |answer| *answer == Ok(false)).await;
    let _third = Replica::start(&rig, "third", one).await;
    behind(&client, &["127.0.0.2"]).await;
    until(&client, "fails", |answer| *answer == Ok(true)).await;
}

/// Somebody else writes into the webhooks' configuration.
async fn spoil(client: &kube::Client, patch: &Value) {
    let request = http::Request::patch(format!("{HOOKS}/ours")).header("content-type", "application/json-patch+json");
    client.request::<Value>(request.body(patch.to_string().into_bytes()).unwrap()).await.unwrap();
}

/// A root, and its certificate, PEM.
fn root() -> (rcgen::CertifiedIssuer<'static, rcgen::KeyPair>, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let pem = root.pem();
    (root, pem)
}

/// Gives a certificate for the webhooks' Service that ended an hour ago, or holds, by a root that is the same.
struct Ending {
    root: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    ended: Mutex<bool>,
}

impl Issuer for Ending {
    fn issue(&self) -> Result<Issued, String> {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let end = if *self.ended.lock().unwrap() { now - hour } else { now + hour };
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["hook.mesh.svc".to_owned()]).unwrap();
        (params.not_before, params.not_after) = ((now - hour * 2).into(), end.into());
        let leaf = params.signed_by(&key, &self.root).unwrap();
        Issued::read(vec![leaf.der().clone()], rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    fn roots(&self) -> Result<String, String> {
        Ok(self.root.pem())
    }

    fn has_news(&self) -> bool {
        true
    }
}

/// Aim: an API server refuses an expired certificate of ours and says so; pods are refused or pass as the policy says; the next certificate
/// ends it without anybody's doing.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_what_the_policy_makes_of_it() {
    let rig = Rig::start(&[]).await.unwrap();
    let client = rig.client().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    ground(&client, listener.local_addr().unwrap().port()).await;
    let (root, _) = root();
    let issuer = Arc::new(Ending { root, ended: Mutex::new(true) });
    let (roots, told) = watch::channel(String::new());
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(injector::keep::bundles(client.clone(), (service(), "none"), told, stop.clone()));
    let webhook = Webhook::new(SidecarSettings::default());
    tokio::spawn(admission::open(listener, Arc::clone(&issuer) as Arc<dyn Issuer>, webhook, Arc::new(|| None), roots, stop));
    believed(&client).await;
    behind(&client, &["127.0.0.1"]).await;
    until(&client, "fails", |answer| refused(answer, "certificate has expired")).await;
    until(&client, "ignores", |answer| *answer == Ok(false)).await;
    *issuer.ended.lock().unwrap() = false;
    until(&client, "fails", |answer| *answer == Ok(true)).await;
    until(&client, "ignores", |answer| *answer == Ok(true)).await;
}

/// Aim: a token of another audience admits nobody; a pod that is deleted while its certificate is being signed gets none, whether the review came
/// before or after, and neither does its successor of the same name by the old token.
#[tokio::test]
async fn tokens_end_with_their_pods() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "signed").await;
    let core = "/api/v1/namespaces/signed";
    let token = async |audience: &str| {
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "web"});
        let request = json!({"spec": {"audiences": [audience], "boundObjectRef": bound}});
        let granted = ask(&client, "POST", &format!("{core}/serviceaccounts/default/token"), request).await.unwrap();
        granted["status"]["token"].as_str().unwrap().to_owned()
    };
    let why = |verdict: Result<_, ReviewError>| match verdict {
        Err(ReviewError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let reviewer = Reviewer::new(client.clone());
    let made = ask(&client, "POST", &format!("{core}/pods"), pod("web")).await.unwrap();
    let (good, other) = (token(TOKEN_AUDIENCE).await, token("vault").await);
    let reviewed = reviewer.review(&good, TOKEN_AUDIENCE).await.unwrap();
    assert_eq!(reviewed.pod, Some(("web".to_owned(), made["metadata"]["uid"].as_str().unwrap().to_owned())));
    assert!(why(reviewer.review(&other, TOKEN_AUDIENCE).await).contains("audience"));

    // It goes after the API server has said that the token is good, and before anything is signed.
    let (inner, path) = (client.clone(), format!("{core}/pods/web"));
    let late = tower::service_fn(move |request: http::Request<Body>| {
        let (inner, path) = (inner.clone(), path.clone());
        async move {
            let review = request.uri().path().ends_with("/tokenreviews");
            let answer = inner.send(request).await?;
            if review {
                ask(&inner, "DELETE", &format!("{path}?gracePeriodSeconds=0"), ()).await.unwrap();
            }
            Ok::<_, kube::Error>(answer)
        }
    });
    let late = Reviewer::new(kube::Client::new(late, MESH));
    assert!(why(late.review(&good, TOKEN_AUDIENCE).await).contains("which is deleted"));
    why(reviewer.review(&good, TOKEN_AUDIENCE).await);
    ask(&client, "POST", &format!("{core}/pods"), pod("web")).await.unwrap();
    why(reviewer.review(&good, TOKEN_AUDIENCE).await);
    reviewer.review(&token(TOKEN_AUDIENCE).await, TOKEN_AUDIENCE).await.unwrap();
}

/// Aim: another controller writes its entry into the same list as fast as it can while ours are written: neither loses one to the other.
#[tokio::test(flavor = "multi_thread")]
async fn another_controllers_entries_stay() {
    let rig = Rig::start(&[]).await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, MESH).await;
    namespace(&client, "shop").await;
    gateway_api(&client, "standard").await.unwrap();
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    ask(&client, "POST", "/api/v1/namespaces/shop/services", service).await.unwrap();
    let routes = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
    let spec = |path: usize| {
        json!({
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": format!("/{path}")}}], "backendRefs": [{"name": "web", "port": 80}]}],
        })
    };
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"}, "spec": spec(0)});
    ask(&client, "POST", routes, route).await.unwrap();
    let _replica = Replica::start(&rig, "only", SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
    let path = format!("{routes}/r");
    let entry = |answer: &Result<Value, Refusal>, controller: &str| {
        let parents = answer.as_ref().ok()?["status"]["parents"].as_array()?;
        parents.iter().find(|parent| parent["controllerName"] == controller).cloned()
    };
    let ours = CONTROLLER;
    eventually(&client, &path, |answer| entry(answer, ours).is_some()).await.unwrap();

    let (mut written, mut conflicts) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        written += 1;
        // Each change of the spec is a reason for ours.
        ask(&client, "MERGE", &path, json!({"spec": spec(written)})).await.unwrap();
        for _ in 0..4 {
            let mut read = ask(&client, "GET", &path, ()).await.unwrap();
            let parents = read["status"]["parents"].as_array_mut().unwrap();
            assert!(parents.iter().any(|parent| parent["controllerName"] == ours), "{parents:?}");
            assert!(written == 1 || parents.iter().any(|parent| parent["controllerName"] == "example.com/other"), "{parents:?}");
            parents.retain(|parent| parent["controllerName"] != "example.com/other");
            let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": written.to_string(), "lastTransitionTime": "2026-01-01T00:00:00Z"});
            parents.insert(0, json!({
                "parentRef": {"group": "", "kind": "Service", "name": "web"}, "controllerName": "example.com/other", "conditions": [condition],
            }));
            match ask(&client, "PUT", &format!("{path}/status"), read).await {
                Ok(_) => break,
                Err(refusal) => {
                    assert_eq!(refusal.code, 409, "{refusal:?}");
                    conflicts += 1;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = eventually(&client, &path, |answer| {
        let generation = answer.as_ref().ok().map(|route| route["metadata"]["generation"].clone());
        entry(answer, ours).map(|ours| ours["conditions"][0]["observedGeneration"].clone()) == generation
    });
    let last = last.await.unwrap();
    let theirs = entry(&Ok(last.clone()), "example.com/other").unwrap();
    let message = theirs["conditions"][0]["message"].as_str().unwrap().parse::<usize>().unwrap();
    assert!(message + 4 > written && written > 20, "{message} of {written}, {conflicts} conflicts: {last}");
}

/// Aim: an API server that hangs for longer than the lease lasts ends the turn and nothing else: afterwards the same replica holds it again, knows
/// what has changed, and its epochs have not gone back.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_hangs_is_outlived() {
    let rig = Rig::start(&[]).await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, MESH).await;
    let mut replica = Replica::start(&rig, "only", SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
    let made = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let has = |name: &'static str| move |world: &World| world.get(&ObjectKey::new(Kind::Service, MESH, name)).is_some();
    ask(&client, "POST", "/api/v1/namespaces/mesh/services", made("before")).await.unwrap();
    replica.knows(has("before")).await;
    let book = "/api/v1/namespaces/mesh/configmaps/meshwright-book";
    let floor = |book: &Result<Value, Refusal>| book.as_ref().ok()?["data"]["floor"].as_str()?.parse::<u64>().ok();
    let kept = eventually(&client, book, |book| floor(book).is_some()).await;
    let former = floor(&Ok(kept.unwrap())).unwrap();

    let stalled = rig.stall().unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(replica.worlds.borrow().as_ref().is_some_and(has("before")), "what was known is known");
    drop(stalled);
    let back = Instant::now();
    ask(&client, "POST", "/api/v1/namespaces/mesh/services", made("after")).await.unwrap();
    eventually(&client, book, |book| floor(book) > Some(former)).await.unwrap();
    assert_eq!((holder(&client).await.as_str(), replica.turns.load(Ordering::Relaxed)), (replica.me, 2));
    replica.knows(|world| has("before")(world) && has("after")(world)).await;
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
}
