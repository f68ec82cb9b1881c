//! Who is who and who may do what: service account tokens, their reviews, roles.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::{Value, json};
use tests::kube::{Refusal, Rig, ask, eventually};

use crate::{namespace, pod};

async fn review(client: &kube::Client, token: &str, audience: &str) -> Value {
    let review = json!({"spec": {"token": token, "audiences": [audience]}});
    ask(client, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).await.unwrap()["status"].clone()
}

/// Aim: a token is for its audience alone, tells account and pod with their UIDs, and ends with its pod.
#[tokio::test]
async fn tokens_are_bound_to_audience_and_pod() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "tokens").await;
    let path = "/api/v1/namespaces/tokens";
    let stored = ask(&client, "POST", &format!("{path}/pods"), pod("web")).await.unwrap();
    let request = json!({"spec": {"audiences": ["meshwright"], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}});
    let granted = ask(&client, "POST", &format!("{path}/serviceaccounts/default/token"), request).await.unwrap();
    let token = granted["status"]["token"].as_str().unwrap();

    let status = review(&client, token, "meshwright").await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["meshwright"])), "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:tokens:default");
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["web"]));
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-uid"], json!([stored["metadata"]["uid"]]));
    let status = review(&client, token, "another").await;
    assert!(status["authenticated"] != true && status["error"].as_str().unwrap().contains("audience"), "{status}");
    assert!(review(&client, "no-token-at-all", "meshwright").await["authenticated"] != true);
    let refusal = ask(&rig.client_with(token).await.unwrap(), "GET", "/api/v1/namespaces", ()).await.unwrap_err();
    assert_eq!(refusal.code, 401, "the API server is another audience");

    ask(&client, "DELETE", &format!("{path}/pods/web"), ()).await.unwrap();
    let status = review(&client, token, "meshwright").await;
    assert!(status["authenticated"] != true, "its pod is gone: {status}");
}

/// Aim: with `--rbac` an account may do what its roles say and nothing else; a review of access gives the same answer.
#[tokio::test]
async fn roles_are_enforced() {
    let rig = Rig::start(&["--rbac"]).await.unwrap();
    let admin = rig.client().await.unwrap();
    namespace(&admin, "rights").await;
    namespace(&admin, "elsewhere").await;
    let path = "/api/v1/namespaces/rights";
    let token = ask(&admin, "POST", &format!("{path}/serviceaccounts/default/token"), json!({"spec": {}})).await.unwrap();
    let account = rig.client_with(token["status"]["token"].as_str().unwrap()).await.unwrap();
    let code = |answer: Result<Value, Refusal>| answer.map_or_else(|refusal| refusal.code, |_| 200);
    assert_eq!(code(ask(&account, "GET", &format!("{path}/secrets"), ()).await), 403);
    assert_eq!(code(ask(&account, "GET", "/version", ()).await), 200, "everybody may discover");

    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["ours"]}, {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["*"]}]);
    ask(&admin, "POST", &format!("{rbac}/clusterroles"), json!({"metadata": {"name": "some"}, "rules": rules})).await.unwrap();
    let binding = json!({"metadata": {"name": "some"}, "roleRef": {"kind": "ClusterRole", "name": "some"}, "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "rights"}]});
    ask(&admin, "POST", &format!("{rbac}/namespaces/rights/rolebindings"), binding).await.unwrap();
    ask(&admin, "POST", &format!("{path}/secrets"), json!({"metadata": {"name": "ours"}})).await.unwrap();
    eventually(&account, &format!("{path}/secrets/ours"), Result::is_ok).await.unwrap();
    let rows = [
        ("GET", format!("{path}/secrets/other"), 403),
        ("GET", format!("{path}/secrets"), 403),
        ("DELETE", format!("{path}/secrets/ours"), 403),
        ("GET", "/api/v1/namespaces/elsewhere/secrets/ours".to_owned(), 403),
        ("GET", format!("{path}/pods/p"), 403),
        ("GET", format!("{path}/pods/p/status"), 404),
    ];
    for (method, path, wanted) in rows {
        assert_eq!(code(ask(&account, method, &path, ()).await), wanted, "{method} {path}");
    }
    for (verb, allowed) in [("get", true), ("delete", false)] {
        let question =
            json!({"spec": {"resourceAttributes": {"namespace": "rights", "resource": "secrets", "name": "ours", "verb": verb}}});
        let answer = ask(&account, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", question).await.unwrap();
        assert_eq!(answer["status"]["allowed"], allowed, "{verb}");
    }
}

/// Aim: a pod's log and commands are asked of its node, at the address and port that the node's status tells, by a kubelet's paths.
#[tokio::test]
async fn logs_and_commands_go_to_the_node() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "node-calls").await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // A node that answers with the line it was asked with.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap();
            let line = String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}", line.len()).unwrap();
        }
    });
    ask(&client, "POST", "/api/v1/nodes", json!({"metadata": {"name": "node-calls"}})).await.unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    ask(&client, "MERGE", "/api/v1/nodes/node-calls/status", status).await.unwrap();
    let path = "/api/v1/namespaces/node-calls/pods";
    ask(&client, "POST", path, pod("web")).await.unwrap();
    let unplaced = ask(&client, "GET", &format!("{path}/web/log"), ()).await.unwrap_err();
    assert!(unplaced.message.contains("does not have a host assigned"), "{unplaced:?}");
    ask(
        &client,
        "POST",
        &format!("{path}/web/binding"),
        json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "node-calls"}}),
    )
    .await
    .unwrap();
    let text = async |path: String| client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    assert_eq!(text(format!("{path}/web/log?tailLines=3")).await, "GET /containerLogs/node-calls/web/main?tailLines=3 HTTP/1.1");
    assert_eq!(
        text(format!("{path}/web/exec?command=ls&command=-l&stdout=true")).await,
        "GET /exec/node-calls/web/main?command=ls&command=-l&output=1 HTTP/1.1"
    );
    let refusal = ask(&client, "GET", &format!("{path}/web/log?container=other"), ()).await.unwrap_err();
    assert_eq!(refusal.code, 400, "{refusal:?}");
}

/// Aim: a namespace that enforces the restricted level takes no pod that asks for more, and takes one that asks for nothing.
#[tokio::test]
async fn restricted_namespaces_refuse_privileges() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    ask(&client, "POST", "/api/v1/namespaces", json!({"metadata": {"name": "restricted", "labels": labels}})).await.unwrap();
    let path = "/api/v1/namespaces/restricted/pods";
    let refusal = ask(&client, "POST", path, pod("plain")).await.unwrap_err();
    let fault = "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false";
    assert!(refusal.code == 403 && refusal.message.contains(fault), "{refusal:?}");
    let mut careful = pod("careful");
    careful["spec"]["securityContext"] = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    careful["spec"]["containers"][0]["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    ask(&client, "POST", path, careful).await.unwrap();
}
