use super::*;
use crate::settings::KubernetesVersion;
use serde_json::json;

fn settings() -> SidecarSettings {
    SidecarSettings { version: "1.2.3".into(), image: "meshwright:1.2.3".into(), ..SidecarSettings::default() }
}

fn old() -> SidecarSettings {
    SidecarSettings { kubernetes: KubernetesVersion { major: 1, minor: 28 }, ..settings() }
}

fn shop() -> Value {
    json!({
        "metadata": {"labels": {"app": "catalog"}, "annotations": {"meshwright.dev/exclude-inbound-ports": "9000"}},
        "spec": {
            "serviceAccountName": "catalog",
            "initContainers": [{"name": "migrate", "image": "migrate"}],
            "containers": [{
                "name": "app",
                "image": "catalog",
                "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9000}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
                "livenessProbe": {"tcpSocket": {"port": "admin"}},
                "startupProbe": {"exec": {"command": ["true"]}},
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            }],
            "volumes": [{"name": "cache", "emptyDir": {}}],
        },
    })
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect()
}

fn env<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"].as_array()?.iter().find(|one| one["name"] == name)
}

/// Aim: golden file of what a patch does to a pod with probes, init containers and volumes, with native sidecars.
#[test]
fn a_pod_with_a_native_sidecar() {
    let added = add(&shop(), "catalog", &settings()).unwrap();
    assert_eq!(names(&added.pod["spec"]["initContainers"]), [INTERCEPT_CONTAINER, PROXY_CONTAINER, "migrate"]);
    assert_eq!(added.warnings, [""; 0]);
    insta::assert_json_snapshot!(added.pod);
}

/// Aim: golden file of the same on a cluster before 1.29: redirection last of the init containers, the sidecar first of the others.
#[test]
fn a_pod_with_an_ordinary_sidecar() {
    let added = add(&shop(), "catalog", &old()).unwrap();
    assert_eq!(names(&added.pod["spec"]["initContainers"]), ["migrate", INTERCEPT_CONTAINER]);
    assert_eq!(names(&added.pod["spec"]["containers"]), [PROXY_CONTAINER, "app"]);
    assert_eq!(added.pod["metadata"]["annotations"][DEFAULT_CONTAINER], "app");
    assert!(added.warnings[0].contains("init containers run before the sidecar"), "{:?}", added.warnings);
    insta::assert_json_snapshot!(added.pod["spec"]["containers"][0]);
}

/// Aim: annotations reach the containers, and impossible ones are refused by name.
#[test]
fn annotations_are_honoured_or_refused() {
    let pod = |notes: Value| json!({"metadata": {"annotations": notes}, "spec": {"containers": [{"name": "app"}]}});
    let notes = json!({"meshwright.dev/exclude-outbound-ports": "5432, 6379", "meshwright.dev/proxy-cpu": "1", "meshwright.dev/proxy-memory": "1Gi",
        "meshwright.dev/exclude-outbound-cidrs": "fd00::/8", "meshwright.dev/log-level": "debug"});
    let added = add(&pod(notes), "catalog", &settings()).unwrap().pod;
    let containers = &added["spec"]["initContainers"];
    assert_eq!(containers[0]["args"][3], "--exclude-outbound-ports=5432,6379");
    assert_eq!(containers[0]["args"][4], "--exclude-outbound-cidrs=fd00::/8");
    assert_eq!(containers[1]["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"}));
    assert_eq!(env(&containers[1], "MESHWRIGHT_LOG_LEVEL").unwrap()["value"], "debug");
    let error = add(&pod(json!({"meshwright.dev/proxy-cpu": "lots"})), "x", &settings()).unwrap_err();
    assert_eq!(error.to_string(), "annotation meshwright.dev/proxy-cpu: `lots` is not a quantity of CPU such as 100m or 0.5");
}

/// Aim: what the owner says of our containers stays, field by field; image and the rest are ours.
#[test]
fn the_owner_may_override_the_sidecar() {
    let mut pod = shop();
    let own =
        json!({"name": PROXY_CONTAINER, "resources": {"limits": {"memory": "1Gi"}}, "env": [{"name": "MESHWRIGHT_WORKERS", "value": "2"}]});
    pod["spec"]["containers"].as_array_mut().unwrap().push(own);
    let added = add(&pod, "catalog", &settings()).unwrap().pod;
    assert_eq!(names(&added["spec"]["containers"]), ["app"]);
    let sidecar = &added["spec"]["initContainers"][1];
    assert_eq!((&sidecar["image"], &sidecar["resources"]), (&json!("meshwright:1.2.3"), &json!({"limits": {"memory": "1Gi"}})));
    assert_eq!(env(sidecar, "MESHWRIGHT_WORKERS").unwrap()["value"], "2");
    assert!(env(sidecar, "MESHWRIGHT_CONTROL").is_some() && env(sidecar, APP_PROBES).is_some());
}

/// Aim: when another webhook has added a container after us, a second call completes it and moves ours to the front; probes add up.
#[test]
fn a_second_call_completes() {
    let mut pod = add(&shop(), "catalog", &settings()).unwrap().pod;
    let logger = json!({"name": "logger", "readinessProbe": {"grpc": {"port": 7000}}});
    pod["spec"]["containers"].as_array_mut().unwrap().insert(0, logger);
    pod["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "vault"}));
    let newer = SidecarSettings { version: "9".into(), image: "meshwright:9".into(), ..settings() };
    let again = add(&pod, "catalog", &newer).unwrap().pod;
    assert_eq!(names(&again["spec"]["initContainers"]), [INTERCEPT_CONTAINER, PROXY_CONTAINER, "vault", "migrate"]);
    assert_eq!(again["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"], "/app-health/grpc/7000");
    let probes = env(&again["spec"]["initContainers"][1], APP_PROBES).unwrap()["value"].as_str().unwrap();
    let probes: Value = serde_json::from_str(probes).unwrap();
    assert_eq!(probes, json!([{"httpGet": {"path": "/ready", "port": 8080}}, {"grpc": {"port": 7000}}]));
    // What runs is one version's, whoever is asked again.
    assert_eq!(again["metadata"]["annotations"][annotations::INJECTED], "1.2.3");
    assert_eq!(again["spec"]["initContainers"][1]["image"], "meshwright:1.2.3");
}

/// Aim: a pod whose traffic would go around the sidecar, or which takes its ports, is refused by the container's name.
#[test]
fn what_cannot_work_is_refused() {
    for (spec, word) in [
        (json!({"containers": [{"name": "app", "securityContext": {"runAsUser": 1337}}]}), "container app runs as user 1337"),
        (json!({"securityContext": {"runAsUser": 1337}, "containers": [{"name": "app"}]}), "container app runs as user 1337"),
        (json!({"initContainers": [{"name": "i", "ports": [{"containerPort": 15021}]}]}), "container i listens on port 15021"),
        (json!({"initContainers": [{"name": PROXY_CONTAINER, "env": [{"name": APP_PROBES, "value": "{"}]}]}), "no JSON list"),
    ] {
        let error = add(&json!({"spec": spec}), "x", &settings()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let own = json!({"securityContext": {"runAsUser": 1337}, "containers": [{"name": "app", "securityContext": {"runAsUser": 1000}}]});
    assert!(add(&json!({"spec": own}), "x", &settings()).is_ok());
}

/// Aim: every container of the application finds its identity, unless it has something else at that place.
#[test]
fn identities_are_in_reach() {
    for (mounts, given) in [
        (json!([]), true),
        (json!([{"name": "r", "mountPath": "/run"}]), true),
        (json!([{"name": "r", "mountPath": "/runner"}]), true),
        (json!([{"name": "r", "mountPath": "/run", "readOnly": true}]), false),
        (json!([{"name": "r", "mountPath": "/run/meshwright/"}]), false),
        (json!([{"name": "r", "mountPath": "/run/meshwright/x"}]), false),
    ] {
        let added = add(&json!({"spec": {"containers": [{"name": "app", "volumeMounts": mounts}]}}), "x", &settings()).unwrap();
        let app = &added.pod["spec"]["containers"][0];
        assert_eq!(env(app, "SPIFFE_ENDPOINT_SOCKET").is_some(), given, "{mounts}");
        assert_eq!(names(&app["volumeMounts"]).contains(&SPIFFE_VOLUME), given, "{mounts}");
        assert_eq!(added.warnings.len(), usize::from(!given), "{mounts}");
    }
    let own = json!([{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///agent.sock"}]);
    let added = add(&json!({"spec": {"containers": [{"name": "app", "env": own}]}}), "x", &settings()).unwrap();
    assert_eq!(added.pod["spec"]["containers"][0]["env"], own);
}

/// Aim: what ends by itself ends with a sidecar, too: natively by the kubelet, else by what the sidecar sees of the application.
#[test]
fn jobs_end() {
    let job = |policy: &str| json!({"spec": {"restartPolicy": policy, "containers": [{"name": "job"}]}});
    let native = add(&job("Never"), "x", &settings()).unwrap().pod;
    assert_eq!(
        (&native["spec"]["shareProcessNamespace"], native["spec"]["initContainers"][1]["restartPolicy"].as_str()),
        (&Value::Null, Some("Always"))
    );
    for (policy, ends) in [("Never", Some("2")), ("OnFailure", Some("330")), ("Always", None)] {
        let added = add(&job(policy), "x", &old()).unwrap().pod;
        let told = env(&added["spec"]["containers"][0], "MESHWRIGHT_END_WITH_APPLICATION_SECS").map(|one| one["value"].as_str().unwrap());
        assert_eq!((told, added["spec"]["shareProcessNamespace"].as_bool()), (ends, ends.map(|_| true)), "{policy}");
    }
    let mut alone = job("Never");
    alone["spec"]["shareProcessNamespace"] = false.into();
    let added = add(&alone, "x", &old()).unwrap();
    assert_eq!(added.pod["spec"]["shareProcessNamespace"], false);
    assert!(added.warnings[0].contains("quitquitquit"));
}

/// Aim: the sidecar's drain fits into the time that the pod has to end.
#[test]
fn the_drain_fits_the_pods_grace() {
    for (grace, settings, drain) in [
        (None, settings(), "29"),
        (Some(300), settings(), "30"),
        (Some(5), settings(), "4"),
        (Some(0), settings(), "1"),
        (None, old(), "5"),
    ] {
        let pod = json!({"spec": {"terminationGracePeriodSeconds": grace, "containers": []}});
        let added = add(&pod, "x", &settings).unwrap().pod;
        let sidecar = added["spec"].pointer("/initContainers/1").or_else(|| added["spec"].pointer("/containers/0")).unwrap();
        assert_eq!(env(sidecar, "MESHWRIGHT_DRAIN_SECS").unwrap()["value"], drain, "{grace:?}");
    }
}

/// Aim: the containers of a pod that serves get time before they are told to end, as much as the pod's own time allows or its annotation says, and
/// none where a hook of their own, the pod's kind or its kubelet is against it.
#[test]
fn a_deleted_pods_application_serves_a_moment_longer() {
    let ask = |delay: Value, spec: Value, settings: &SidecarSettings| {
        let pod = json!({"metadata": {"annotations": {"meshwright.dev/drain-delay": delay}}, "spec": spec});
        let mut pod = if delay.is_null() { json!({"spec": spec}) } else { pod };
        pod["spec"]["initContainers"] = json!([{"name": "own", "restartPolicy": "Always"}]);
        pod["spec"]["containers"] = json!([{"name": "app"}, {"name": "log", "lifecycle": {"postStart": {"exec": {}}, "preStop": null}}]);
        add(&pod, "x", settings)
    };
    let (new, none) = (settings(), Value::Null);
    let first = SidecarSettings { kubernetes: "1.29".parse().unwrap(), ..settings() };
    for (delay, spec, settings, slept) in [
        (none.clone(), json!({}), &new, json!(5)),
        (none.clone(), json!({"restartPolicy": "Always", "terminationGracePeriodSeconds": 300}), &new, json!(5)),
        (none.clone(), json!({"terminationGracePeriodSeconds": 7}), &new, json!(3)),
        (none.clone(), json!({"terminationGracePeriodSeconds": 1}), &new, none.clone()),
        (json!("20"), json!({}), &new, json!(20)),
        (json!("6"), json!({"terminationGracePeriodSeconds": 7}), &new, json!(6)),
        (json!("0"), json!({}), &new, none.clone()),
        (json!("20"), json!({"restartPolicy": "Never"}), &new, none.clone()),
        (none.clone(), json!({"restartPolicy": "OnFailure"}), &new, none.clone()),
        (none.clone(), json!({}), &first, none.clone()),
        (none.clone(), json!({}), &old(), none.clone()),
    ] {
        let added = ask(delay, spec, settings).unwrap();
        let spec = &added.pod["spec"];
        let containers = spec["containers"].as_array().unwrap().iter().filter(|one| one["name"] != PROXY_CONTAINER);
        for container in containers {
            assert_eq!(container["lifecycle"]["preStop"]["sleep"]["seconds"], slept, "{container}");
        }
        let own = spec["initContainers"].as_array().unwrap().iter().find(|one| one["name"] == "own").unwrap();
        assert_eq!(own["lifecycle"], Value::Null);
    }
    let error = ask(json!("30"), json!({}), &new).unwrap_err().to_string();
    assert!(error.starts_with("annotation meshwright.dev/drain-delay: `30` is not less than the pod's"), "{error}");
    assert!(ask(json!("5"), json!({}), &first).unwrap().warnings[0].contains("on Kubernetes 1.29 no hook sleeps"));
    let own = json!({"spec": {"containers": [{"name": "app", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]}});
    assert_eq!(add(&own, "x", &new).unwrap().pod["spec"]["containers"][0]["lifecycle"], own["spec"]["containers"][0]["lifecycle"]);
}

/// Aim: a pod whose resolvers may not know the control plane is told so, unless that is an address.
#[test]
fn resolvers_are_thought_of() {
    for (policy, control, warned) in [
        (json!("Default"), "meshwright-control.meshwright-system.svc:15012", true),
        (json!("None"), "control.example:15012", true),
        (json!("Default"), "10.0.0.1:15012", false),
        (json!("None"), "[fd00::1]:15012", false),
        (json!("ClusterFirst"), "control.example:15012", false),
        (json!(null), "control.example:15012", false),
    ] {
        let settings = SidecarSettings { control: control.to_owned(), ..settings() };
        let added = add(&json!({"spec": {"dnsPolicy": policy, "containers": []}}), "x", &settings).unwrap();
        assert_eq!(added.warnings.iter().any(|one| one.contains("dnsPolicy")), warned, "{policy} {control}");
    }
}

/// Aim: all but the redirection conforms to Kubernetes' `restricted` profile; the redirection needs NET_ADMIN and root, and no more.
#[test]
fn rights_are_few() {
    for settings in [settings(), old()] {
        let added = add(&json!({"spec": {"containers": []}}), "x", &settings).unwrap().pod;
        let all = [&added["spec"]["initContainers"], &added["spec"]["containers"]];
        let all: Vec<&Value> = all.into_iter().filter_map(Value::as_array).flatten().collect();
        assert_eq!(all.len(), 2);
        for container in all {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
            let redirection = container["name"] == INTERCEPT_CONTAINER;
            assert_eq!(context["capabilities"]["add"], if redirection { json!(["NET_ADMIN"]) } else { Value::Null });
            assert_eq!(context["runAsNonRoot"], !redirection);
        }
    }
}

fn any_probe() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let port = prop_oneof![(0_u32..70_000).prop_map(Value::from), "[a-z$(]{0,4}".prop_map(Value::from)];
    (port, "[/a-z%#? ]{0,6}", 0_u8..5).prop_map(|(port, text, kind)| match kind {
        0 => json!({"httpGet": {"port": port, "path": text}}),
        1 => json!({"httpGet": {"port": port, "httpHeaders": [{"name": "a", "value": format!("$({text})")}]}}),
        2 => json!({"tcpSocket": {"port": port}}),
        3 => json!({"grpc": {"port": port, "service": text}}),
        _ => json!({"exec": {"command": [text]}}),
    })
}

fn any_container() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let mounts = proptest::collection::vec("/(run|run/meshwright|data)".prop_map(|path| json!({"name": "v", "mountPath": path})), 0..2);
    ("[a-z]{1,3}|meshwright-proxy|meshwright-intercept", any_probe(), any_probe(), mounts).prop_map(|(name, ready, live, mounts)| {
        json!({"name": name, "image": "x", "readinessProbe": ready, "livenessProbe": live, "volumeMounts": mounts, "stdin": true})
    })
}

fn any_pod() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let containers = || proptest::collection::vec(any_container(), 0..4);
    (containers(), containers(), "Always|Never|OnFailure", proptest::option::of(0_u64..90)).prop_map(|(init, containers, policy, grace)| {
        let spec =
            json!({"initContainers": init, "containers": containers, "restartPolicy": policy, "terminationGracePeriodSeconds": grace});
        json!({"metadata": {"name": "p"}, "spec": spec})
    })
}

/// What of a container may be another's work.
fn own_part(container: &Value) -> Value {
    let mut own = container.clone();
    for field in ["readinessProbe", "livenessProbe", "volumeMounts", "env", "lifecycle"] {
        own.as_object_mut().unwrap().remove(field);
    }
    own
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
    /// Aim: whatever a pod is, a second time changes nothing, the patch makes just the injected pod, and of the application's containers
    /// nothing changes but probes, environment, mounts and hooks; their order stays.
    #[test]
    fn any_pod_is_injected_once(pod in any_pod(), native in proptest::bool::ANY) {
        let settings = if native { settings() } else { old() };
        let Ok(added) = add(&pod, "w", &settings) else { return Ok(()) };
        let again = add(&added.pod, "w", &settings).unwrap();
        proptest::prop_assert_eq!(&again.pod, &added.pod);
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &json_patch::diff(&pod, &added.pod)).unwrap();
        proptest::prop_assert_eq!(&patched, &added.pod);
        for list in ["initContainers", "containers"] {
            let theirs = |pod: &Value| -> Vec<Value> {
                let all = pod["spec"][list].as_array().cloned().unwrap_or_default();
                all.iter().filter(|one| one["name"] != PROXY_CONTAINER && one["name"] != INTERCEPT_CONTAINER).map(own_part).collect()
            };
            proptest::prop_assert_eq!(theirs(&pod), theirs(&added.pod));
        }
    }
}
