use super::*;

/// The shape that Kubernetes documents ("Dynamic Admission Control", request and response).
fn asked(object: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "uid": "0", "groups": ["system:authenticated"]},
            "object": object,
            "oldObject": null,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
            "dryRun": false,
        },
    })
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "catalog-7d9f-",
            "labels": {"app": "catalog", "pod-template-hash": "7d9f"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "catalog-7d9f", "controller": true}],
        },
        "spec": {"containers": [{"name": "app", "image": "catalog", "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}}]},
    })
}

fn settings() -> SidecarSettings {
    SidecarSettings { version: "1.2.3".into(), image: "meshwright:1.2.3".into(), ..SidecarSettings::default() }
}

fn question(review: &Value) -> Asked {
    read(review.to_string().as_bytes()).unwrap()
}

/// Aim: golden file of the patch for a Deployment's pod; applied, it is the pod with its sidecar, which names the Deployment.
#[test]
fn a_pod_is_patched() {
    let answer = inject(&question(&asked(pod())), Label::Is("enabled"), &settings());
    let review = answer.review("705ab4f5-6393-11e8-b7cc-42010a800002");
    let response = &review["response"];
    assert_eq!(
        (&review["apiVersion"], &response["uid"], &response["allowed"]),
        (&json!(API_VERSION), &json!("705ab4f5-6393-11e8-b7cc-42010a800002"), &json!(true))
    );
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(response["auditAnnotations"]["verdict"], "injected");
    let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap();
    insta::assert_json_snapshot!(patch);
    let mut patched = pod();
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(patched, pod::add(&pod(), "catalog", &settings()).unwrap().pod);
    // A second call, after other webhooks, has nothing to add.
    let again = inject(&question(&asked(patched)), Label::Is("enabled"), &settings());
    assert_eq!((again.verdict, again.patch), ("already_injected", None));
}

/// Aim: why a pod has no sidecar is on the pod, in the audit log, and, where it is a surprise, on the screen of who creates it.
#[test]
fn skips_are_recorded() {
    for (change, verdict, note, warned) in [
        (("/metadata/labels/meshwright.dev~1inject", json!("disabled")), "opted_out", Some("its own label"), false),
        (("/spec/hostNetwork", json!(true)), "host_network", Some("hostNetwork: true"), true),
        (("/spec/os", json!({"name": "windows"})), "not_linux", Some("Linux"), true),
    ] {
        let mut pod = pod();
        json_patch::patch(&mut pod, &serde_json::from_value(json!([{"op": "add", "path": change.0, "value": change.1}])).unwrap()).unwrap();
        let answer = inject(&question(&asked(pod.clone())), Label::Is("enabled"), &settings());
        assert_eq!((answer.verdict, answer.denial.is_none(), answer.warnings.len()), (verdict, true, usize::from(warned)));
        json_patch::patch(&mut pod, answer.patch.as_ref().unwrap()).unwrap();
        let told = pod["metadata"]["annotations"]["meshwright.dev/not-injected"].as_str();
        assert!(told.is_some_and(|told| told.contains(note.unwrap())), "{told:?}");
        assert!(answer.review("u")["response"]["auditAnnotations"]["reason"].as_str().is_some());
    }
    let answer = inject(&question(&asked(pod())), Label::Absent, &settings());
    assert_eq!((answer.verdict, answer.patch), ("namespace_not_meshed", None));
}

/// Aim: only new pods are looked at; other kinds, subresources and changes pass untouched.
#[test]
fn nothing_but_new_pods_is_touched() {
    for (path, value) in [
        ("/request/operation", json!("UPDATE")),
        ("/request/operation", json!("DELETE")),
        ("/request/subResource", json!("ephemeralcontainers")),
        ("/request/kind/kind", json!("Deployment")),
        ("/request/kind/group", json!("metrics.k8s.io")),
    ] {
        let mut review = asked(pod());
        json_patch::patch(&mut review, &serde_json::from_value(json!([{"op": "add", "path": path, "value": value}])).unwrap()).unwrap();
        let answer = inject(&question(&review), Label::Is("enabled"), &settings());
        assert_eq!((answer.verdict, answer.patch), ("not_a_new_pod", None), "{path}");
    }
}

/// Aim: a pod that cannot have a working sidecar is denied with the name of what is wrong and a way out.
#[test]
fn a_wrong_annotation_is_a_denial() {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({"meshwright.dev/proxy-memory": "lots"});
    let answer = inject(&question(&asked(pod)), Label::Unknown, &settings());
    let status = &answer.review("u")["response"]["status"];
    assert_eq!((status["code"].as_u64(), status["reason"].as_str()), (Some(422), Some("Invalid")));
    let message = status["message"].as_str().unwrap();
    for word in ["meshwright.dev/proxy-memory", "lots", "64Mi", "meshwright.dev/inject: disabled"] {
        assert!(message.contains(word), "{message}");
    }
    let answer = inject(&question(&asked(Value::Null)), Label::Unknown, &settings());
    assert_eq!(answer.denial.unwrap().code, 400);
}

/// Aim: what is no question is told so.
#[test]
fn malformed_questions_are_named() {
    for (body, word) in [
        ("", "no AdmissionReview"),
        ("[]", "no AdmissionReview"),
        ("{}", "`` of ``"),
        (r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "1"}}"#, "v1beta1"),
        (r#"{"kind": "Pod", "apiVersion": "v1"}"#, "`Pod`"),
        (r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}"#, "asks nothing"),
        (r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": ""}}"#, "asks nothing"),
        (r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {}}"#, "uid"),
    ] {
        let error = read(body.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(word), "{body}: {error}");
    }
}

/// Aim: an object is analysed when what it asks for changes; one that was wrong before can still be deleted, and statuses be written.
#[test]
fn only_changes_are_analyzed() {
    let route = |spec: &str, labels: Value, gone: Value| json!({"metadata": {"labels": labels, "deletionTimestamp": gone}, "spec": spec, "status": {"x": spec}});
    let (a, b) = (route("a", json!({}), Value::Null), route("b", json!({}), Value::Null));
    let (labelled, gone) = (route("a", json!({"x": "y"}), Value::Null), route("b", json!({}), json!("2026-11-30T00:00:00Z")));
    let mut touched = a.clone();
    touched["metadata"]["finalizers"] = json!([]);
    touched["status"] = Value::Null;
    for (operation, sub, object, old, wanted) in [
        ("CREATE", "", &a, &Value::Null, true),
        ("UPDATE", "", &b, &a, true),
        ("UPDATE", "", &labelled, &a, true),
        ("UPDATE", "", &touched, &a, false),
        ("UPDATE", "", &gone, &a, false),
        ("UPDATE", "status", &b, &a, false),
        ("DELETE", "", &Value::Null, &a, false),
        ("CREATE", "", &Value::Null, &Value::Null, false),
    ] {
        let asked = Asked {
            operation: operation.to_owned(),
            sub_resource: sub.to_owned(),
            object: object.clone(),
            old_object: old.clone(),
            ..question(&self::asked(pod()))
        };
        assert_eq!(is_for_analysis(&asked), wanted, "{operation} {sub} {object}");
    }
}

/// Aim: errors deny and are told; warnings never deny, and long or many ones are cut within what API servers pass on.
#[test]
fn analyses_become_answers() {
    let told = |errors: &[&str], warnings: Vec<String>| {
        validate(Some(Analysis { errors: errors.iter().map(|error| (*error).to_owned()).collect(), warnings }))
    };
    assert_eq!(told(&[], vec![]).verdict, "valid");
    let denied = told(&["HTTPRoute shop/a: spec.rules[0]: no", "b"], vec!["w".to_owned()]).review("u");
    assert_eq!(denied["response"]["status"]["message"], "meshwright: HTTPRoute shop/a: spec.rules[0]: no\nb");
    assert_eq!(denied["response"]["warnings"], json!(["w"]));
    let many = told(&[], vec!["é".repeat(300); 20]).review("u");
    let warnings = many["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), WARNINGS_MAX + 1);
    assert!(warnings.iter().all(|warning| warning.as_str().unwrap().len() <= WARNING_BYTES_MAX));
    assert!(warnings[WARNINGS_MAX].as_str().unwrap().contains("8 more"));
    assert_eq!(validate(None).verdict, "not_analyzed");
}
