use super::*;
use crate::translate::{AncestorStatus, ListenerStatus, ParentStatus};

const NOW: &str = "2026-11-30T00:00:00Z";
const BEFORE: &str = "2026-11-01T00:00:00Z";
const OTHER: &str = "example.net/controller";

fn says(kind: &str, status: &'static str, reason: &str, generation: i64) -> Condition {
    Condition { kind: kind.into(), status, reason: reason.into(), message: String::new(), observed_generation: generation }
}

fn there(kind: &str, status: &str, reason: &str, generation: i64, since: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": generation, "lastTransitionTime": since})
}

fn route(parents: &[(&str, &'static str)]) -> Spoken {
    let parent = |(name, status): &(&str, &'static str)| ParentStatus {
        parent_ref: json!({"name": name}),
        controller_name: CONTROLLER,
        conditions: vec![says("Accepted", status, "Accepted", 2)],
    };
    Spoken { status: Status { parents: parents.iter().map(parent).collect(), ..Status::default() }, ..Spoken::default() }
}

fn entry(controller: &str, name: &str, conditions: Value) -> Value {
    json!({"parentRef": {"name": name}, "controllerName": controller, "conditions": conditions})
}

fn write(kind: Kind, spoken: &Spoken, present: &Value) -> Option<Value> {
    merged(kind, spoken, present, NOW)
}

/// What is there after a write.
fn after(kind: Kind, spoken: &Spoken, present: &Value) -> Value {
    let mut after = present.clone();
    for (name, value) in write(kind, spoken, present).unwrap_or_default().as_object().into_iter().flatten() {
        after[name] = value.clone();
    }
    after
}

#[test]
fn entries_of_others_stay_as_they_are() {
    // Aim: `parents` is an atomic list; another controller's entries keep content and place, ours are replaced, added and taken away.
    let theirs = entry(OTHER, "edge", json!([there("Accepted", "False", "Odd", 1, BEFORE), {"type": "Mine", "status": "True"}]));
    let present = json!({"parents": [
        entry(CONTROLLER, "gone", json!([there("Accepted", "True", "Accepted", 1, BEFORE)])),
        theirs,
        entry(CONTROLLER, "edge", json!([there("Accepted", "True", "Accepted", 1, BEFORE), there("example.net/Mine", "True", "X", 1, BEFORE)])),
    ]});
    let written = write(Kind::HTTPRoute, &route(&[("new", "True"), ("edge", "True")]), &present).unwrap();
    let expected = json!({"parents": [
        theirs,
        entry(CONTROLLER, "edge", json!([there("Accepted", "True", "Accepted", 2, BEFORE), there("example.net/Mine", "True", "X", 1, BEFORE)])),
        entry(CONTROLLER, "new", json!([there("Accepted", "True", "Accepted", 2, NOW)])),
    ]});
    assert_eq!(written, expected);
    let gone = write(Kind::HTTPRoute, &route(&[]), &written).unwrap();
    assert_eq!(gone, json!({"parents": [theirs]}), "no parent of ours any more");
    assert_eq!(write(Kind::HTTPRoute, &route(&[]), &gone), None);
}

#[test]
fn what_is_so_already_is_not_written() {
    // Aim: after any write the same word is nothing to write; an empty list and none are one.
    let gateway = Spoken {
        status: Status {
            conditions: vec![says("Accepted", "True", "Accepted", 1), says("Programmed", "False", "Pending", 1)],
            listeners: vec![ListenerStatus {
                name: "web".into(),
                supported_kinds: Vec::new(),
                attached_routes: 0,
                conditions: vec![says("Accepted", "False", "UnsupportedProtocol", 1)],
            }],
            ..Status::default()
        },
        ..Spoken::default()
    };
    let class = Spoken { features: vec!["Gateway", "HTTPRoute"], ..gateway.clone() };
    let policy = Spoken {
        status: Status {
            ancestors: vec![AncestorStatus {
                ancestor_ref: json!({"kind": "Namespace", "name": "shop"}),
                controller_name: CONTROLLER,
                conditions: vec![says("Accepted", "True", "Accepted", 1)],
            }],
            ..Status::default()
        },
        ..Spoken::default()
    };
    for (kind, spoken) in [
        (Kind::Gateway, gateway),
        (Kind::GatewayClass, class),
        (Kind::AuthorizationPolicy, policy.clone()),
        (Kind::BackendTLSPolicy, policy),
        (Kind::HTTPRoute, route(&[("a", "True"), ("b", "False")])),
        (Kind::TLSRoute, route(&[])),
    ] {
        for present in [Value::Null, json!({}), json!({"conditions": [], "parents": [], "ancestors": [], "addresses": []})] {
            let after = after(kind, &spoken, &present);
            assert_eq!(write(kind, &spoken, &after), None, "{kind} over {present}");
        }
    }
}

#[test]
fn times_change_with_the_status_only() {
    // Aim: `lastTransitionTime` stays over a new reason, message or generation; conditions that a CRD's default dated 1970 get a time of
    // their own once they are decided.
    let table = [
        (there("Accepted", "True", "Accepted", 1, BEFORE), BEFORE),
        (there("Accepted", "True", "ListenersNotValid", 1, BEFORE), BEFORE),
        (there("Accepted", "False", "Invalid", 1, BEFORE), NOW),
        (there("Accepted", "Unknown", "Pending", 0, "1970-01-01T00:00:00Z"), NOW),
        (json!({"type": "Accepted", "status": "True"}), NOW),
    ];
    for (before, since) in table {
        let spoken = Spoken {
            status: Status { conditions: vec![says("Accepted", "True", "Accepted", 2)], ..Status::default() },
            ..Spoken::default()
        };
        let written = write(Kind::GatewayClass, &spoken, &json!({"conditions": [before]})).unwrap();
        assert_eq!(written["conditions"], json!([there("Accepted", "True", "Accepted", 2, since)]), "{before}");
    }
}

#[test]
fn conditions_that_do_not_apply_are_absent_and_foreign_ones_stay() {
    // Aim: `OverlappingTLSConfig` of before is taken away, never False; a type that is not ours is left alone, on the object and in a listener.
    let foreign = there("example.net/Scanned", "True", "Ok", 1, BEFORE);
    let overlapping = there("OverlappingTLSConfig", "True", "OverlappingHostnames", 1, BEFORE);
    let present = json!({
        "conditions": [foreign, there("Accepted", "True", "Accepted", 1, BEFORE)],
        "listeners": [
            {"name": "web", "attachedRoutes": 1, "supportedKinds": [], "conditions": [overlapping, foreign]},
            {"name": "gone", "attachedRoutes": 1, "supportedKinds": [], "conditions": []},
        ],
        "attachedListenerSets": 2,
    });
    let web = ListenerStatus {
        name: "web".into(),
        supported_kinds: Vec::new(),
        attached_routes: 3,
        conditions: vec![says("Accepted", "True", "Accepted", 1)],
    };
    let status = Status { conditions: vec![says("Accepted", "True", "Accepted", 1)], listeners: vec![web], ..Status::default() };
    let written = write(Kind::Gateway, &Spoken { status, ..Spoken::default() }, &present).unwrap();
    let listeners = json!([
        {"name": "web", "attachedRoutes": 3, "supportedKinds": [], "conditions": [foreign, there("Accepted", "True", "Accepted", 1, NOW)]},
    ]);
    assert_eq!(written, json!({"listeners": listeners}), "conditions of the Gateway are so already, and what is not ours is not named");
}

#[test]
fn lists_keep_to_what_schemas_take() {
    // Aim: others' entries are never dropped for ours; a message is cut, not refused.
    let theirs: Vec<Value> = (0..31).map(|number| entry(OTHER, &format!("p{number}"), json!([]))).collect();
    let present = json!({"parents": theirs});
    let written = write(Kind::HTTPRoute, &route(&[("a", "True"), ("b", "True")]), &present).unwrap();
    let parents = written["parents"].as_array().unwrap();
    assert_eq!((parents.len(), &parents[..31], &parents[31]["parentRef"]["name"]), (PARENTS_MAX, &theirs[..], &json!("a")));
    let long = Condition { message: "ü".repeat(MESSAGE_CHARS_MAX + 1), ..says("Accepted", "False", "Invalid", 1) };
    let spoken = Spoken { status: Status { conditions: vec![long], ..Status::default() }, ..Spoken::default() };
    let written = write(Kind::Telemetry, &spoken, &Value::Null).unwrap();
    assert_eq!(written["conditions"][0]["message"].as_str().unwrap().chars().count(), MESSAGE_CHARS_MAX);
}

#[test]
fn a_status_of_any_shape_is_survived() {
    // Aim: what others left there, or an older version of us, is no reason to panic, and is replaced where it is ours.
    for present in
        [json!("x"), json!([1]), json!({"parents": "x", "conditions": {"a": 1}}), json!({"parents": [1, null, {"conditions": 3}]})]
    {
        assert!(write(Kind::HTTPRoute, &route(&[("a", "True")]), &present).is_some());
        assert!(write(Kind::Gateway, &route(&[]), &present).is_none_or(|written| written.is_object()));
    }
}
