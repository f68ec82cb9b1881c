//! What Gateway API's own definitions store, prune and let through (standard channel): all that our translator must expect from a cluster.

use std::sync::Arc;

use serde_json::{Value, json};
use tests::kube::{Refusal, Rig, ask, gateway_api};

use crate::namespace;

/// A server that has the standard channel, and objects of one test on it.
struct Ground {
    client: kube::Client,
    namespace: &'static str,
    _rig: Arc<Rig>,
}

impl Ground {
    async fn new(name: &'static str) -> Self {
        let rig = Rig::shared().await.unwrap();
        let client = rig.client().await.unwrap();
        namespace(&client, name).await;
        gateway_api(&client, "standard").await.unwrap();
        Self { client, namespace: name, _rig: rig }
    }

    /// Creates an object of a kind (plural) and gives what was stored.
    async fn create(&self, kind: &str, name: &str, spec: Value) -> Result<Value, Refusal> {
        let path = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{}/{kind}", self.namespace);
        let singular = match kind {
            "httproutes" => "HTTPRoute",
            "grpcroutes" => "GRPCRoute",
            "gateways" => "Gateway",
            "listenersets" => "ListenerSet",
            other => panic!("{other}"),
        };
        let object = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": singular, "metadata": {"name": name}, "spec": spec});
        ask(&self.client, "POST", &path, object).await
    }

    /// Creates an HTTPRoute with one rule and gives the rule as it was stored.
    async fn rule(&self, name: &str, rule: Value) -> Result<Value, Refusal> {
        let stored = self.create("httproutes", name, json!({"rules": [rule]})).await?;
        Ok(stored["spec"]["rules"][0].clone())
    }
}

/// Aim: where a route is silent the definitions fill in a match for HTTP and none for gRPC, and a list that is there and empty stays so.
#[tokio::test]
async fn silent_routes_get_defaults() {
    let ground = Ground::new("gateway-defaults").await;
    let all = json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]);
    let bare = ground.create("httproutes", "bare", json!({})).await.unwrap();
    assert_eq!(bare["spec"]["rules"], all, "no rules: one that matches all and has no backend");
    let rows = [
        ("silent", json!({"backendRefs": [{"name": "b", "port": 80}]}), json!([{"path": {"type": "PathPrefix", "value": "/"}}])),
        ("empty", json!({"matches": []}), json!([])),
        ("exact", json!({"matches": [{"path": {"type": "Exact"}}]}), json!([{"path": {"type": "Exact", "value": "/"}}])),
    ];
    for (name, rule, wanted) in rows {
        assert_eq!(ground.rule(name, rule).await.unwrap()["matches"], wanted, "{name}");
    }
    let backend = ground.rule("backend", json!({"backendRefs": [{"name": "b", "port": 80}]})).await.unwrap();
    assert_eq!(backend["backendRefs"], json!([{"group": "", "kind": "Service", "name": "b", "port": 80, "weight": 1}]));
    let grpc = ground.create("grpcroutes", "silent", json!({"rules": [{"backendRefs": [{"name": "b", "port": 80}]}]})).await.unwrap();
    assert!(grpc["spec"]["rules"][0]["matches"].is_null(), "{grpc}");
    let cors = ground
        .rule("cors", json!({"filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"], "allowCredentials": true}}]}))
        .await
        .unwrap();
    assert_eq!(
        cors["filters"][0]["cors"],
        json!({"allowCredentials": true, "allowOrigins": ["*"], "maxAge": 5}),
        "a star with credentials passes"
    );
}

/// Aim: a parent of kind Service without `group` is stored as no Service, and two parents that differ only in their port are refused.
#[tokio::test]
async fn parents_are_stored_by_group_and_port() {
    let ground = Ground::new("gateway-parents").await;
    let stored =
        ground.create("httproutes", "groupless", json!({"parentRefs": [{"kind": "Service", "name": "s", "port": 80}]})).await.unwrap();
    assert_eq!(stored["spec"]["parentRefs"][0]["group"], "gateway.networking.k8s.io");
    let parent = |port: u16| json!({"group": "", "kind": "Service", "name": "s", "port": port});
    let refusal = ground.create("httproutes", "ports", json!({"parentRefs": [parent(80), parent(81)]})).await.unwrap_err();
    assert!(refusal.message.contains("sectionName"), "{refusal:?}");
}

/// Aim: what the definitions do not check arrives here as it was written, wrong as it may be.
#[tokio::test]
async fn unchecked_values_pass() {
    let ground = Ground::new("gateway-unchecked").await;
    let rows = [
        ("regex", json!({"matches": [{"path": {"type": "RegularExpression", "value": "["}}]})),
        ("case", json!({"matches": [{"headers": [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]}]})),
    ];
    for (name, rule) in rows {
        ground.rule(name, rule).await.unwrap();
    }
    ground.create("httproutes", "address", json!({"hostnames": ["10.0.0.1"]})).await.unwrap();
    ground.create("httproutes", "names", json!({"rules": [{"name": "one"}, {"name": "one"}]})).await.unwrap();
    let method = json!({"rules": [{"matches": [{"method": {"type": "RegularExpression", "service": "", "method": ""}}]}]});
    ground.create("grpcroutes", "anything", method).await.unwrap();
    let listener = |name: &str, protocol: &str| json!({"name": name, "port": 443, "protocol": protocol});
    let gateway = json!({"gatewayClassName": "c", "listeners": [listener("bare", "HTTPS"), listener("plain", "HTTP")]});
    ground.create("gateways", "mixed", gateway).await.unwrap();
}

/// Aim: what the definitions do check is refused before we see it.
#[tokio::test]
async fn checked_values_are_refused() {
    let ground = Ground::new("gateway-checked").await;
    let rows = [
        ("method", json!({"matches": [{"method": "PROPFIND"}]}), "Unsupported value"),
        ("query", json!({"matches": [{"queryParams": [{"name": "a[]", "value": "1"}]}]}), "should match"),
        ("header-value", json!({"matches": [{"headers": [{"name": "a", "value": ""}]}]}), "should be at least 1 chars long"),
        ("query-value", json!({"matches": [{"queryParams": [{"name": "a", "value": ""}]}]}), "should be at least 1 chars long"),
        (
            "backward",
            json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}),
            "backendRequest timeout cannot be longer than request timeout",
        ),
        (
            "both",
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 1}}, {"type": "URLRewrite", "urlRewrite": {"hostname": "a.b"}}]}),
            "May specify either",
        ),
    ];
    for (name, rule, fault) in rows {
        let refusal = ground.rule(name, rule).await.expect_err(name);
        assert!(refusal.message.contains(fault), "{name}: {refusal:?}");
    }
}

/// Aim: durations pass in the grammar's whole width, and nothing beyond it.
#[tokio::test]
async fn durations_are_as_wide_as_their_grammar() {
    let ground = Ground::new("gateway-durations").await;
    for (n, duration) in ["0s", "0m", "0h", "0ms", "5ms1h", "1s1s", "99999h"].into_iter().enumerate() {
        let stored = ground.rule(&format!("good-{n}"), json!({"timeouts": {"request": duration}})).await.unwrap();
        assert_eq!(stored["timeouts"]["request"], duration, "stored as it was written");
    }
    for (n, duration) in ["0", "100000s", "1us", "1h1m1s1ms1ms"].into_iter().enumerate() {
        let refusal = ground.rule(&format!("bad-{n}"), json!({"timeouts": {"request": duration}})).await.expect_err(duration);
        assert!(refusal.message.contains("should match"), "{refusal:?}");
    }
    ground.rule("no-limit", json!({"timeouts": {"request": "0s", "backendRequest": "2s"}})).await.unwrap();
}

/// Aim: fields of the experimental channel are gone without a word before a controller sees them.
#[tokio::test]
async fn experimental_fields_are_pruned() {
    let ground = Ground::new("gateway-pruned").await;
    let rule = json!({"retry": {"attempts": 2}, "sessionPersistence": {"sessionName": "s"}, "timeouts": {"request": "1s"}});
    let stored = ground.rule("http", rule).await.unwrap();
    assert_eq!(stored, json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "timeouts": {"request": "1s"}}));
    let stored = ground.create("grpcroutes", "grpc", json!({"rules": [{"name": "n", "timeouts": {"request": "1s"}}]})).await.unwrap();
    assert_eq!(stored["spec"]["rules"], json!([{"name": "n"}]));
}

/// Aim: a fresh Gateway or ListenerSet comes with conditions that are dated 1970, so that age says nothing.
#[tokio::test]
async fn fresh_gateways_are_dated_1970() {
    let ground = Ground::new("gateway-fresh").await;
    let listeners = json!([{"name": "web", "port": 80, "protocol": "HTTP"}]);
    let gateway = ground.create("gateways", "g", json!({"gatewayClassName": "c", "listeners": listeners})).await.unwrap();
    let set = ground.create("listenersets", "s", json!({"parentRef": {"name": "g"}, "listeners": listeners})).await.unwrap();
    for object in [gateway, set] {
        let conditions = object["status"]["conditions"].as_array().unwrap();
        let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted").unwrap();
        assert_eq!((&accepted["status"], &accepted["lastTransitionTime"]), (&json!("Unknown"), &json!("1970-01-01T00:00:00Z")));
    }
}

/// Aim: `status.parents` is one value to server-side apply: two controllers conflict, force wipes the other's entry, a replaced status
/// with the version that was read keeps it.
#[tokio::test]
async fn parents_of_a_status_are_one_value() {
    let ground = Ground::new("gateway-status").await;
    ground.create("httproutes", "r", json!({"parentRefs": [{"name": "g"}]})).await.unwrap();
    let path = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes/r/status", ground.namespace);
    let entry = |controller: &str| {
        let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        json!({"parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}, "controllerName": controller, "conditions": [condition]})
    };
    let applied = |controller: &str| json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"}, "status": {"parents": [entry(controller)]}});
    ask(&ground.client, "APPLY", &format!("{path}?fieldManager=one"), applied("example.com/one")).await.unwrap();
    let refusal = ask(&ground.client, "APPLY", &format!("{path}?fieldManager=two"), applied("example.com/two")).await.unwrap_err();
    assert!(refusal.code == 409 && refusal.message.contains(".status.parents"), "{refusal:?}");
    let forced = ask(&ground.client, "APPLY", &format!("{path}?fieldManager=two&force=true"), applied("example.com/two")).await.unwrap();
    assert_eq!(forced["status"]["parents"], json!([entry("example.com/two")]), "the first controller's entry is gone");

    let mut read = ask(&ground.client, "GET", &path, ()).await.unwrap();
    let stale = read.clone();
    read["status"]["parents"].as_array_mut().unwrap().push(entry("example.com/one"));
    let written = ask(&ground.client, "PUT", &path, read).await.unwrap();
    assert_eq!(written["status"]["parents"], json!([entry("example.com/two"), entry("example.com/one")]));
    assert_eq!(ask(&ground.client, "PUT", &path, stale).await.unwrap_err().code, 409, "who read before that must read again");
}

/// Aim: grants are served in two versions, whichever of them stores.
#[tokio::test]
async fn grants_are_served_in_two_versions() {
    let ground = Ground::new("gateway-grants").await;
    let version = |version: &str| format!("/apis/gateway.networking.k8s.io/{version}/namespaces/{}/referencegrants", ground.namespace);
    let spec = json!({"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "a"}], "to": [{"group": "", "kind": "Service"}]});
    let grant = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant", "metadata": {"name": "g"}, "spec": spec});
    ask(&ground.client, "POST", &version("v1"), grant).await.unwrap();
    let older = ask(&ground.client, "GET", &format!("{}/g", version("v1beta1")), ()).await.unwrap();
    assert_eq!(older["spec"], spec);
    let definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/referencegrants.gateway.networking.k8s.io";
    let definition = ask(&ground.client, "GET", definition, ()).await.unwrap();
    assert_eq!(definition["status"]["storedVersions"], json!(["v1beta1"]));
}

/// Aim: a watch from a version that is older than what the server remembers of a kind ends with 410, in the stream and not as a status.
#[tokio::test]
async fn too_old_versions_are_gone() {
    let ground = Ground::new("gateway-gone").await;
    let path = "/apis/gateway.networking.k8s.io/v1/httproutes?watch=1&resourceVersion=2&timeoutSeconds=5";
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    // The server remembers a custom kind from when its definition came, and version 2 was before that.
    let event: Value = serde_json::from_str(&ground.client.request_text(request).await.unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"], &event["object"]["reason"]), (&json!("ERROR"), &json!(410), &json!("Expired")));
}
