use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// What was written: method, path and body.
type Writes = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// An API server that answers by path, and remembers what was written.
fn api_server(answer: impl Fn(&Method, &str, &str) -> (u16, Value) + Send + Sync + 'static) -> (Client, Writes) {
    let (writes, answer) = (Writes::default(), Arc::new(answer));
    let written = Arc::clone(&writes);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (written, answer) = (Arc::clone(&written), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
            let (status, said) = answer(&head.method, &path, &query);
            if head.method != Method::GET {
                written.lock().push((head.method, path, serde_json::from_slice(&body).unwrap()));
            }
            let body = Full::new(Bytes::from(said.to_string()));
            Ok::<_, tower::BoxError>(Response::builder().status(status).body(body).unwrap())
        }
    });
    (Client::new(service, "default"), writes)
}

fn root() -> String {
    let params = rcgen::CertificateParams::default();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// Aim: of all configurations just the stale one is patched, by a patch that fails where somebody moved its entries.
#[tokio::test]
async fn stale_configurations_are_patched() {
    let pem = root();
    let hook = |name: &str| {
        json!({
            "metadata": {"name": name},
            "webhooks": [{
                "name": "a.meshwright.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": {"namespace": "meshwright-system", "name": name}},
            }],
        })
    };
    let (client, writes) = api_server(move |method, _, _| match *method {
        Method::GET => (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [hook("other"), hook("meshwright")]})),
        _ => (200, hook("meshwright")),
    });
    let service = HookService { namespace: "meshwright-system".into(), name: "meshwright".into() };
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let there = api.list(&ListParams::default()).await.unwrap().items;
    rebundled(&api, &service, "", there.clone()).await.unwrap();
    assert_eq!(writes.lock().len(), 0, "without roots nothing is changed");
    rebundled(&api, &service, &pem, there).await.unwrap();
    let writes = writes.lock();
    assert_eq!(writes.len(), 1);
    let (method, path, patch) = &writes[0];
    assert_eq!(method, Method::PATCH);
    assert_eq!(path, "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/meshwright");
    assert_eq!(patch[0], json!({"op": "test", "path": "/webhooks/0/name", "value": "a.meshwright.dev"}));
    assert_eq!(patch[1]["path"], "/webhooks/0/clientConfig/caBundle");
}

/// Aim: a configuration of ours that is gone is made again as it was seen last, with its own words and an owner by whose end it goes; not where that
/// is gone, too, and never another's.
#[tokio::test]
async fn what_was_deleted_is_made_again_while_the_mesh_is_there() {
    let service = HookService { namespace: "meshwright-system".into(), name: "meshwright".into() };
    for there in [true, false] {
        let (client, writes) = api_server(move |method, path, _| match *method {
            Method::GET if path.ends_with("/clusterroles/mesh") && there => (
                200,
                json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "mesh", "uid": "u1"}}),
            ),
            Method::GET => (
                404,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "none"}),
            ),
            _ => (201, json!({"metadata": {"name": "ours"}})),
        });
        let (api, roles): (Api<MutatingWebhookConfiguration>, Api<ClusterRole>) = (Api::all(client.clone()), Api::all(client));
        let one = |name: &str, asked: &str| -> MutatingWebhookConfiguration {
            let hook = json!({
                "name": "a.b.c", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
                "clientConfig": {"service": {"namespace": "meshwright-system", "name": asked}},
            });
            let meta = json!({"name": name, "uid": "u7", "resourceVersion": "9", "labels": {"mine": "yes"}});
            serde_json::from_value(json!({"metadata": meta, "webhooks": [hook]})).unwrap()
        };
        let (known, pem) = (Seen::default(), root());
        let all = [one("ours", "meshwright"), one("other", "somebody")];
        restored(&api, (&roles, "mesh"), (&service, &known, &pem), &all).await.unwrap();
        assert!(writes.lock().is_empty());
        restored(&api, (&roles, "mesh"), (&service, &known, &pem), &[]).await.unwrap();
        let writes = writes.lock();
        assert_eq!(writes.len(), usize::from(there));
        if let Some((method, _, made)) = writes.first() {
            assert_eq!(method, Method::POST);
            let meta = &made["metadata"];
            assert_eq!((&meta["name"], &meta["labels"]["mine"], &meta["uid"]), (&json!("ours"), &json!("yes"), &Value::Null));
            assert_eq!((&meta["ownerReferences"][0]["uid"], &meta["ownerReferences"][0]["kind"]), (&json!("u1"), &json!("ClusterRole")));
            assert_eq!(made["webhooks"][0]["failurePolicy"], "Ignore");
            // With the roots of now, though it was seen without any.
            assert!(made["webhooks"][0]["clientConfig"]["caBundle"].is_string(), "{made}");
        }
        drop(writes);
        assert_eq!(known.lock().unwrap().is_empty(), !there, "what went with the mesh is not waited for");
    }
}

/// Aim: every living namespace of every page gets the roots once; one that ends meanwhile is no failure, a right that is missing is one.
#[tokio::test]
async fn roots_reach_every_namespace() {
    let pem = root();
    for (refusal, fails) in [("unable to create new content in namespace b because it is being terminated", false), ("no right", true)] {
        let known = pem.clone();
        let (client, writes) = api_server(move |method, path, query| {
            let name =
                |name: &str, gone: bool| json!({"metadata": {"name": name, "deletionTimestamp": gone.then_some("2026-11-30T00:00:00Z")}});
            let map = |namespace: &str, pem: &str| json!({"metadata": {"name": "meshwright-ca", "namespace": namespace}, "data": {"ca.pem": pem}});
            let page =
                |items: Value, more: &str| json!({"apiVersion": "v1", "kind": "List", "metadata": {"continue": more}, "items": items});
            match (method, path) {
                (&Method::GET, "/api/v1/namespaces") if query.contains("continue=") => {
                    (200, page(json!([name("d", true), name("e", false)]), ""))
                }
                (&Method::GET, "/api/v1/namespaces") => (200, page(json!([name("a", false), name("b", false), name("c", false)]), "next")),
                (&Method::GET, _) => {
                    assert!(query.contains("fieldSelector=metadata.name%3Dmeshwright-ca"), "{query}");
                    (200, page(json!([map("a", &known), map("c", "old")]), ""))
                }
                (_, path) if path.contains("/b/") => (
                    403,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": refusal}),
                ),
                _ => (200, map("x", "")),
            }
        });
        assert_eq!(roots_spread(&client, &pem).await.is_err(), fails, "{refusal}");
        let mut written: Vec<_> = writes.lock().iter().map(|(_, path, map)| (path.clone(), map["data"]["ca.pem"].clone())).collect();
        written.sort_by(|a, b| a.0.cmp(&b.0));
        let wanted = ["b", "c", "e"].map(|namespace| (format!("/api/v1/namespaces/{namespace}/configmaps/meshwright-ca"), json!(pem)));
        if !fails {
            assert_eq!(written, wanted);
        }
    }
}

/// Aim: one who may not change a configuration, or namespaces that take nothing, keep the roots from nobody else; all that failed is told by
/// name, and not without end.
#[tokio::test]
async fn whoever_takes_the_roots_gets_them() {
    let (pem, letters) = (root(), || ('a'..='z').map(String::from));
    let named = move |name: String, webhooks: bool| {
        let service = json!({"namespace": "meshwright-system", "name": "meshwright"});
        let hook = json!({"name": "x.y.z", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"service": service}});
        if webhooks { json!({"metadata": {"name": name}, "webhooks": [hook]}) } else { json!({"metadata": {"name": name}}) }
    };
    let refusing = |path: &str| ('a'..='l').any(|letter| path.contains(&format!("/{letter}/")) || path.ends_with(&format!("/{letter}")));
    let (client, writes) = api_server(move |method, path, _| {
        let list = |items: Vec<Value>| (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}));
        match *method {
            Method::GET if path.ends_with("configmaps") => list(Vec::new()),
            Method::GET => list(letters().map(|name| named(name, path.contains("webhook"))).collect()),
            _ if refusing(path) => (
                403,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no right"}),
            ),
            _ => (200, named("m".to_owned(), path.contains("webhook"))),
        }
    });
    let service = HookService { namespace: "meshwright-system".into(), name: "meshwright".into() };
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    for (failed, first) in [
        (
            rebundled(&hooks, &service, &pem, hooks.list(&ListParams::default()).await.unwrap().items).await.unwrap_err(),
            "ValidatingWebhookConfiguration a: ",
        ),
        (roots_spread(&client, &pem).await.unwrap_err(), "namespace a: "),
    ] {
        assert!(failed.starts_with(first) && failed.contains("no right") && failed.ends_with("; and 4 more"), "{failed}");
    }
    let paths: Vec<_> = writes.lock().iter().map(|(_, path, _)| path.clone()).collect();
    for kind in ["validatingwebhookconfigurations", "configmaps"] {
        let taken = |refused: bool| paths.iter().filter(|path| path.contains(kind) && refusing(path) == refused).count();
        assert_eq!((taken(true), taken(false)), (12, 14), "{paths:?}");
    }
}

/// Aim: the cluster's version is asked, in the form in which API servers give it.
#[tokio::test]
async fn the_version_is_asked() {
    let said = |major: &str, minor: &str| {
        json!({"major": major, "minor": minor, "gitVersion": "v1.28.3-x", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "",
            "compiler": "", "platform": ""})
    };
    for (minor, wanted) in [("28+", Some(28)), ("36", Some(36)), ("", None)] {
        let told = said("1", minor);
        let (client, _) = api_server(move |_, _, _| (200, told.clone()));
        assert_eq!(version(&client).await.ok().map(|version| version.minor), wanted);
    }
}

/// Aim: an API server that never answers holds up the next attempt for one call at most, is asked ever less often, and holds up the end not
/// at all.
#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_is_given_up() {
    let asked = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&asked);
    let service = tower::service_fn(move |_: Request<Body>| {
        *counted.lock() += 1;
        std::future::pending::<Result<Response<Full<Bytes>>, tower::BoxError>>()
    });
    let (_roots, told) = watch::channel(root());
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(root_maps(Client::new(service, "default"), told, stop.clone()));
    tokio::time::sleep(CALL_MAX + RETRY * 2).await;
    // Each round begins with two lists; the watch has one of its own.
    assert_eq!(*asked.lock(), 2 + 2 + 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let asked = *asked.lock();
    assert!((2 * 15..=2 * 20 + 1).contains(&asked), "{asked} calls in an hour");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(1), keeping).await.unwrap().unwrap();
}
