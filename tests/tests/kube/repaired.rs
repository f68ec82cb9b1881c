//! What a person deletes of the mesh's own, and a running control plane makes again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apiserver::keep::{Changes, Keep, Secret};
use apiserver::lease::Election;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use injector::bundle::HookService;
use serde_json::json;
use tests::kube::{Rig, ask, eventually};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::namespace;

const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";

/// Aim: configurations of both kinds that somebody deletes are there again as they were, with the roots, while the mesh's role is; they go with that role,
/// and are not made again after it.
#[tokio::test]
async fn deleted_webhook_configurations_come_back_while_the_mesh_is_there() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "repaired").await;
    ask(&client, "POST", ROLES, json!({"metadata": {"name": "repaired"}, "rules": []})).await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::new(["hook.repaired.svc".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let kinds = ["mutating", "validating"].map(|kind| format!("{HOOKS}/{kind}webhookconfigurations"));
    for resource in &kinds {
        let webhook = json!({
            "name": "hook.repaired.example", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
            "clientConfig": {"service": {"name": "hook", "namespace": "repaired"}},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "repaired"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        });
        let object = json!({"metadata": {"name": "repaired", "labels": {"mine": "yes"}}, "webhooks": [webhook]});
        ask(&client, "POST", resource, object).await.unwrap();
    }
    let (stop, (_believed, roots)) = (CancellationToken::new(), watch::channel(pem.clone()));
    let service = HookService { namespace: "repaired".to_owned(), name: "hook".to_owned() };
    let keeping = tokio::spawn(injector::keep::bundles(client.clone(), (service, "repaired"), roots, stop.clone()));
    let bundle = json!(STANDARD.encode(&pem));
    for resource in &kinds {
        let path = format!("{resource}/repaired");
        let told = eventually(&client, &path, |got| got.as_ref().is_ok_and(|got| got["webhooks"][0]["clientConfig"]["caBundle"] == bundle));
        let before = told.await.unwrap();
        ask(&client, "DELETE", &path, json!(null)).await.unwrap();
        let uid = before["metadata"]["uid"].clone();
        let again = eventually(&client, &path, |got| got.as_ref().is_ok_and(|got| got["metadata"]["uid"] != uid)).await.unwrap();
        assert_eq!(again["webhooks"], before["webhooks"]);
        assert_eq!(
            (&again["metadata"]["labels"]["mine"], &again["metadata"]["ownerReferences"][0]["name"]),
            (&json!("yes"), &json!("repaired"))
        );
    }
    ask(&client, "DELETE", &format!("{ROLES}/repaired"), json!(null)).await.unwrap();
    for resource in &kinds {
        let path = format!("{resource}/repaired");
        eventually(&client, &path, |got| got.as_ref().is_err_and(|refusal| refusal.code == 404)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ask(&client, "GET", &path, json!(null)).await.unwrap_err().code, 404, "it is not made again");
    }
    stop.cancel();
    keeping.await.unwrap();
}

/// Aim: the Secret of the authority, deleted under the holder of the lease, is there again with every row.
#[tokio::test]
async fn a_deleted_secret_comes_back_with_what_it_held() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "mended").await;
    let term = Election::new(client.clone(), "mended", "control", "a", Arc::new(SystemTime::now)).win().await;
    let keep = Keep::<Secret>::claim(client.clone(), "mended", "meshwright-ca", term.tenure()).await.unwrap();
    keep.write(&Changes::from([("root.key".to_owned(), Some(vec![0, 255]))])).await.unwrap();
    let path = "/api/v1/namespaces/mended/secrets/meshwright-ca";
    let before = ask(&client, "GET", path, json!(null)).await.unwrap();
    assert_eq!(keep.mend().await, Ok(false));
    ask(&client, "DELETE", path, json!(null)).await.unwrap();
    assert_eq!(keep.mend().await, Ok(true));
    let after = ask(&client, "GET", path, json!(null)).await.unwrap();
    assert_eq!((&after["data"], &after["metadata"]["annotations"]), (&before["data"], &before["metadata"]["annotations"]));
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    term.release().await;
}
