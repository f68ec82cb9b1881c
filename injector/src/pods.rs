//! Where the pods are in a manifest.

use serde_json::Value;

/// A pod, or the template of pods, inside a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPod {
    /// JSON pointer (RFC 6901) to what has `metadata` and `spec` of a pod.
    pub pointer: String,
    /// Kind of the object that holds it.
    pub kind: String,
    /// The object's namespace, where it names one.
    pub namespace: Option<String>,
    /// The object's name: the workload.
    pub name: String,
}

/// Finds the pods of a document: Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob, ReplicationController, and lists of them.
pub fn find(document: &Value) -> Vec<FoundPod> {
    if document["items"].is_array() { listed(document) } else { found(document["kind"].as_str().unwrap_or_default(), document) }
}

fn found(kind: &str, document: &Value) -> Vec<FoundPod> {
    let below = match kind {
        "Pod" => "",
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return Vec::new(),
    };
    if !document.pointer(below).is_some_and(Value::is_object) {
        return Vec::new();
    }
    let metadata = &document["metadata"];
    let name = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str().map(|name| name.trim_end_matches('-')));
    vec![FoundPod {
        pointer: below.to_owned(),
        kind: kind.to_owned(),
        namespace: metadata["namespace"].as_str().map(str::to_owned),
        name: name.unwrap_or_default().to_owned(),
    }]
}

fn listed(list: &Value) -> Vec<FoundPod> {
    // Items of a typed list (`DeploymentList`) may leave out what kind they are.
    let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).unwrap_or_default();
    let items = list["items"].as_array().into_iter().flatten().enumerate();
    let places = items.filter(|(_, item)| !item["items"].is_array()).flat_map(|(index, item)| {
        found(item["kind"].as_str().unwrap_or(kind), item)
            .into_iter()
            .map(move |place| FoundPod { pointer: format!("/items/{index}{}", place.pointer), ..place })
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: the template is found in every kind that has one, in lists too, and nowhere else.
    #[test]
    fn templates_are_found() {
        let deployment = json!({"kind": "Deployment", "metadata": {"name": "a", "namespace": "shop"}, "spec": {"template": {}}});
        let cron = json!({"kind": "CronJob", "metadata": {"name": "c"}, "spec": {"jobTemplate": {"spec": {"template": {}}}}});
        let pod = json!({"kind": "Pod", "metadata": {"generateName": "p-"}});
        let list = json!({"kind": "List", "items": [{"kind": "Service"}, deployment, cron, pod]});
        let found: Vec<_> = find(&list).into_iter().map(|place| (place.pointer, place.name)).collect();
        let expected = [("/items/1/spec/template", "a"), ("/items/2/spec/jobTemplate/spec/template", "c"), ("/items/3", "p")];
        assert_eq!(found, expected.map(|(pointer, name)| (pointer.to_owned(), name.to_owned())));
        let typed = json!({"kind": "DeploymentList", "items": [{"metadata": {"name": "a"}, "spec": {"template": {}}}]});
        assert_eq!(find(&typed)[0].pointer, "/items/0/spec/template");
        assert_eq!(find(&json!({"kind": "List", "items": [list]})), [], "lists do not nest");
        assert_eq!(find(&json!({"kind": "Deployment", "spec": {}})), []);
        assert_eq!(find(&json!("text")), []);
    }
}
