//! The ground under every other test here: that this API server does what Kubernetes' does.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tests::kube::{Rig, ask, eventually};

use crate::{namespace, pod};

/// Aim: what a manifest leaves out is there after it was stored: clusterIP, ports, probes, the service account and its token's mount.
#[tokio::test]
async fn silent_fields_get_kubernetes_defaults() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "defaults").await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let service = ask(&client, "POST", "/api/v1/namespaces/defaults/services", service).await.unwrap();
    assert!(service["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."), "{service}");
    assert_eq!(service["spec"]["clusterIPs"], json!([service["spec"]["clusterIP"]]));
    assert_eq!(service["spec"]["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
    assert_eq!(service["spec"]["type"], "ClusterIP");
    let headless = json!({"metadata": {"name": "bare"}, "spec": {"clusterIP": "None", "selector": {"app": "web"}}});
    let headless = ask(&client, "POST", "/api/v1/namespaces/defaults/services", headless).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));

    let mut asked = pod("web");
    asked["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"port": 8080}});
    let stored = ask(&client, "POST", "/api/v1/namespaces/defaults/pods", asked).await.unwrap();
    let spec = &stored["spec"];
    assert_eq!(
        (&spec["restartPolicy"], &spec["dnsPolicy"], &spec["serviceAccountName"]),
        (&json!("Always"), &json!("ClusterFirst"), &json!("default"))
    );
    assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    let probe = json!({"httpGet": {"path": "/", "port": 8080, "scheme": "HTTP"}, "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1});
    assert_eq!(spec["containers"][0]["readinessProbe"], probe);
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert!(spec["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(stored["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    let trust = ask(&client, "GET", "/api/v1/namespaces/defaults/configmaps/kube-root-ca.crt", ()).await.unwrap();
    assert_eq!(trust["data"]["ca.crt"], std::fs::read_to_string(rig.ca()).unwrap());
}

/// Aim: objects that Kubernetes refuses are refused, each with a word about its own fault.
#[tokio::test]
async fn wrong_objects_are_refused() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "wrong").await;
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = |selector: Value| json!({"metadata": {"name": "d"}, "spec": {"selector": selector, "template": template}});
    let container = |container: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}});
    let hook = |hook: Value| json!({"metadata": {"name": "w"}, "webhooks": [hook]});
    let (apps, core) = ("/apis/apps/v1/namespaces/wrong", "/api/v1/namespaces/wrong");
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let rows = [
        (
            format!("{apps}/deployments"),
            json!({"metadata": {"name": "d"}, "spec": {"template": template}}),
            "spec.selector: Required value",
        ),
        (format!("{apps}/deployments"), deployment(json!({"matchLabels": {"app": "b"}})), "does not match template `labels`"),
        (format!("{core}/pods"), json!({"metadata": {"name": "p"}, "spec": {"containers": []}}), "spec.containers: Required value"),
        (format!("{core}/pods"), container(json!({"name": "c"})), "image: Required value"),
        (format!("{core}/pods"), container(json!({"name": "C", "image": "i"})), "RFC 1123 label"),
        (
            format!("{core}/pods"),
            container(json!({"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
            "Not found: \"v\"",
        ),
        (format!("{core}/pods"), container(json!({"name": "c", "image": "i", "livenessProbe": {}})), "must specify a handler type"),
        (
            format!("{core}/pods"),
            json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "nobody", "containers": [{"name": "c", "image": "i"}]}}),
            "serviceaccounts \"nobody\" not found",
        ),
        (
            format!("{core}/services"),
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}, {"port": 2}]}}),
            "spec.ports[0].name: Required value",
        ),
        (format!("{core}/services"), json!({"metadata": {"name": "1s"}, "spec": {"ports": [{"port": 1}]}}), "DNS-1035 label"),
        (
            format!("{core}/services"),
            json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 1}]}}),
            "already allocated",
        ),
        ("/api/v1/namespaces/nowhere/configmaps".to_owned(), json!({"metadata": {"name": "c"}}), "namespaces \"nowhere\" not found"),
        (
            hooks.to_owned(),
            hook(json!({"name": "a.b.c", "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://x/"}})),
            "sideEffects: Required value",
        ),
        (
            hooks.to_owned(),
            hook(json!({"name": "a.b.c", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"url": "http://x/"}})),
            "is the only allowed URL scheme",
        ),
    ];
    for (path, object, fault) in rows {
        let refusal = ask(&client, "POST", &path, object.clone()).await.expect_err(fault);
        assert!(refusal.message.contains(fault), "{object}: {refusal:?}");
    }
    let misspelt = json!({"metadata": {"name": "d"}, "spce": {}});
    let refusal = ask(&client, "POST", &format!("{core}/services?fieldValidation=Strict"), misspelt).await.unwrap_err();
    assert!(refusal.message.contains("unknown field \"spce\""), "{refusal:?}");
}

/// Aim: a stale write is a conflict, server-side apply names who owns a field, and a status and all else do not touch each other.
#[tokio::test]
async fn writers_meet_by_version_and_by_field() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "writers").await;
    let path = "/apis/apps/v1/namespaces/writers/deployments/d";
    let deployment = |replicas: u32| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    let first = ask(&client, "APPLY", &format!("{path}?fieldManager=one"), deployment(1)).await.unwrap();
    assert_eq!(first["metadata"]["generation"], 1);
    let refusal = ask(&client, "APPLY", &format!("{path}?fieldManager=two"), deployment(2)).await.unwrap_err();
    assert_eq!((refusal.code, refusal.message.contains("conflict with \"one\": .spec.replicas")), (409, true), "{refusal:?}");
    let forced = ask(&client, "APPLY", &format!("{path}?fieldManager=two&force=true"), deployment(2)).await.unwrap();
    assert_eq!((&forced["spec"]["replicas"], &forced["metadata"]["generation"]), (&json!(2), &json!(2)));

    let refusal = ask(&client, "PUT", path, first.clone()).await.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "Conflict"), "{refusal:?}");
    let both = json!({"spec": {"replicas": 9}, "status": {"replicas": 2, "observedGeneration": 2}});
    let written = ask(&client, "MERGE", &format!("{path}/status"), both.clone()).await.unwrap();
    assert_eq!((&written["spec"]["replicas"], &written["status"]["replicas"]), (&json!(2), &json!(2)));
    let written = ask(&client, "MERGE", path, both).await.unwrap();
    assert_eq!((&written["spec"]["replicas"], &written["metadata"]["generation"]), (&json!(9), &json!(3)));
    let scaled = ask(&client, "MERGE", &format!("{path}/scale"), json!({"spec": {"replicas": 4}})).await.unwrap();
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"], &scaled["status"]["replicas"]), (&json!("Scale"), &json!(4), &json!(2)));
    let dry = ask(&client, "DELETE", &format!("{path}?dryRun=All"), ()).await;
    assert!(dry.is_ok() && ask(&client, "GET", path, ()).await.is_ok(), "{dry:?}");
}

/// Aim: a watch brings each change with its version, a selector chooses, a list comes in pages, and a version of the future is said so.
#[tokio::test]
async fn watches_and_lists_are_kubernetes_own() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "watched").await;
    let path = "/api/v1/namespaces/watched/configmaps";
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "watched");
    let from = ask(&client, "GET", path, ()).await.unwrap()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut events = api.watch(&WatchParams::default().labels("pick=yes"), &from).await.unwrap().boxed();
    for (name, pick) in [("a", "yes"), ("b", "no"), ("c", "yes")] {
        ask(&client, "POST", path, json!({"metadata": {"name": name, "labels": {"pick": pick}}})).await.unwrap();
    }
    ask(&client, "MERGE", &format!("{path}/a"), json!({"data": {"k": "v"}})).await.unwrap();
    ask(&client, "MERGE", &format!("{path}/c"), json!({"metadata": {"labels": {"pick": "no"}}})).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap().unwrap();
        match event {
            WatchEvent::Added(map) => seen.push(("added", map.metadata.name.unwrap())),
            WatchEvent::Modified(map) => seen.push(("modified", map.metadata.name.unwrap())),
            WatchEvent::Deleted(map) => seen.push(("deleted", map.metadata.name.unwrap())),
            other => panic!("{other:?}"),
        }
    }
    let wanted = [("added", "a"), ("added", "c"), ("modified", "a"), ("deleted", "c")].map(|(what, name)| (what, name.to_owned()));
    assert_eq!(seen, wanted, "a selector's watch says deleted for what no longer matches");

    let page = ask(&client, "GET", &format!("{path}?limit=2"), ()).await.unwrap();
    assert_eq!((page["items"].as_array().unwrap().len(), &page["metadata"]["remainingItemCount"]), (2, &json!(2)));
    let next = format!("{path}?limit=2&continue={}", page["metadata"]["continue"].as_str().unwrap());
    assert_eq!(ask(&client, "GET", &next, ()).await.unwrap()["items"].as_array().unwrap().len(), 2);
    let named = ask(&client, "GET", &format!("{path}?fieldSelector=metadata.name%3Db"), ()).await.unwrap();
    assert_eq!(named["items"][0]["metadata"]["name"], "b");
    let refusal = ask(&client, "GET", &format!("{path}?resourceVersion=1000000000"), ()).await.unwrap_err();
    assert!(refusal.code == 504 && refusal.message.contains("Too large resource version"), "{refusal:?}");
}

/// Aim: fields that controllers select by are there: a pod's node and phase, a secret's type.
#[tokio::test]
async fn fields_select() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "selected").await;
    let path = "/api/v1/namespaces/selected";
    ask(&client, "POST", &format!("{path}/pods"), pod("free")).await.unwrap();
    let mut placed = pod("placed");
    placed["spec"]["nodeName"] = json!("node-1");
    ask(&client, "POST", &format!("{path}/pods"), placed).await.unwrap();
    ask(&client, "MERGE", &format!("{path}/pods/placed/status"), json!({"status": {"phase": "Running"}})).await.unwrap();
    ask(&client, "POST", &format!("{path}/secrets"), json!({"metadata": {"name": "plain"}, "stringData": {"k": "v"}})).await.unwrap();
    let rows = [
        ("pods?fieldSelector=spec.nodeName%3Dnode-1", vec!["placed"]),
        ("pods?fieldSelector=spec.nodeName%3D", vec!["free"]),
        ("pods?fieldSelector=status.phase!%3DRunning", vec!["free"]),
        ("secrets?fieldSelector=type%3DOpaque", vec!["plain"]),
        ("secrets?fieldSelector=type%3Dkubernetes.io/tls", vec![]),
    ];
    for (query, wanted) in rows {
        let list = ask(&client, "GET", &format!("{path}/{query}"), ()).await.unwrap();
        let names: Vec<&str> = list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, wanted, "{query}");
    }
    let refusal = ask(&client, "GET", &format!("{path}/pods?fieldSelector=spec.colour%3Dred"), ()).await.unwrap_err();
    assert_eq!(refusal.code, 400, "{refusal:?}");
}

/// Aim: what an object owns goes with it, a namespace goes with all it holds, and a pod on a node goes when its node says so.
#[tokio::test]
async fn deletions_reach_what_they_should() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "ending").await;
    let path = "/api/v1/namespaces/ending";
    let owner = ask(&client, "POST", &format!("{path}/configmaps"), json!({"metadata": {"name": "owner"}})).await.unwrap();
    let owned = |name: &str, uid: &Value| json!({"metadata": {"name": name, "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": true}]}});
    ask(&client, "POST", &format!("{path}/secrets"), owned("kept", &owner["metadata"]["uid"])).await.unwrap();
    ask(&client, "POST", &format!("{path}/secrets"), owned("lost", &json!("no-such-uid"))).await.unwrap();
    eventually(&client, &format!("{path}/secrets/lost"), Result::is_err).await.unwrap();
    assert!(ask(&client, "GET", &format!("{path}/secrets/kept"), ()).await.is_ok(), "its owner is there");
    ask(&client, "DELETE", &format!("{path}/configmaps/owner?propagationPolicy=Foreground"), ()).await.unwrap();
    eventually(&client, &format!("{path}/configmaps/owner"), Result::is_err).await.unwrap();
    assert!(ask(&client, "GET", &format!("{path}/secrets/kept"), ()).await.is_err(), "the owner waited for it");

    let mut placed = pod("placed");
    placed["spec"]["nodeName"] = json!("node-1");
    ask(&client, "POST", &format!("{path}/pods"), placed).await.unwrap();
    let marked = ask(&client, "DELETE", &format!("{path}/pods/placed"), ()).await.unwrap();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    ask(&client, "DELETE", "/api/v1/namespaces/ending", ()).await.unwrap();
    let ending =
        eventually(&client, "/api/v1/namespaces/ending", |answer| answer.as_ref().is_ok_and(|it| it["status"]["phase"] == "Terminating"));
    ending.await.unwrap();
    let refusal = ask(&client, "POST", &format!("{path}/configmaps"), json!({"metadata": {"name": "late"}})).await.unwrap_err();
    assert!(refusal.message.contains("because it is being terminated"), "{refusal:?}");
    ask(&client, "DELETE", &format!("{path}/pods/placed?gracePeriodSeconds=0"), ()).await.unwrap();
    eventually(&client, "/api/v1/namespaces/ending", Result::is_err).await.unwrap();
}

/// Aim: a test can let the server hang: open connections stay, nothing is answered, and afterwards all goes on.
#[tokio::test]
async fn a_stalled_server_answers_nothing() {
    let rig = Rig::start(&[]).await.unwrap();
    let client = rig.client().await.unwrap();
    ask(&client, "GET", "/version", ()).await.unwrap();
    let stalled = rig.stall().unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(300), ask(&client, "GET", "/version", ())).await;
    assert!(answer.is_err(), "{answer:?}");
    drop(stalled);
    ask(&client, "GET", "/version", ()).await.unwrap();
}
