//! Linking: what changes, what stays, and that it does not matter how one got there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use proto::xds::core::HealthStatus;
use proto::xds::listener::Listener;
use proto::xds::{CLUSTER, ENDPOINT, LISTENER, ROUTE};

use crate::explain::dump;
use crate::fixture::{self, assignment, endpoint, host, prefix, put, rule, shop, table};
use crate::model::build::Parts;
use crate::model::{Action, Snapshot, Target};

const OUT: &str = "10.0.0.1:80";

#[test]
fn an_unchanged_world_is_the_same_arcs() {
    // Aim: a swap without changes, or with a new version of equal content, rebuilds nothing that requests hold.
    let mut parts = shop();
    let first = parts.assemble(1, &Snapshot::default());
    let second = parts.assemble(2, &first);
    let at = OUT.parse().unwrap();
    assert_eq!(second.epoch, 2);
    assert!(Arc::ptr_eq(&first.outbound[&at], &second.outbound[&at]));
    assert!(Arc::ptr_eq(first.inbound.as_ref().unwrap(), second.inbound.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&first.routes["shop/catalog:80"], &second.routes["shop/catalog:80"]));

    // A new weight in one rule: that rule is new, its neighbour and its id stay.
    let split = [("shop/catalog-v1:80", 50), ("shop/catalog-v2:80", 50)];
    let beta = proto::xds::route::RouteMatch { headers: vec![fixture::header("x-beta", "1")], ..prefix("/v1") };
    let routes = vec![
        rule("HTTPRoute/shop/catalog/beta", beta, &[("shop/catalog-v2:80", 10)]),
        rule("HTTPRoute/shop/catalog/1", prefix("/v1"), &split),
    ];
    put(&mut parts, "shop/catalog:80", &table("shop/catalog:80", vec![host(&["*"], routes)])).unwrap();
    let third = parts.assemble(3, &second);
    let rules = |snapshot: &Snapshot| snapshot.routes["shop/catalog:80"].hosts[0].rules.clone();
    assert!(Arc::ptr_eq(&rules(&second)[0], &rules(&third)[0]));
    assert!(!Arc::ptr_eq(&rules(&second)[1], &rules(&third)[1]));
    assert_ne!(rules(&second)[1].id, rules(&third)[1].id);
    assert!(!Arc::ptr_eq(&second.outbound[&at], &third.outbound[&at]), "the listener follows its table");
    assert!(Arc::ptr_eq(second.inbound.as_ref().unwrap(), third.inbound.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&second.clusters["shop/catalog-v1:80"], &third.clusters["shop/catalog-v1:80"]));
}

#[test]
fn endpoints_are_live_at_once_and_keep_their_counters() {
    // Aim: an assignment shows in a snapshot already live; counters follow the address from set to set within a cluster.
    let mut parts = shop();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let set = || snapshot.clusters["shop/catalog-v1:80"].endpoints.load_full();
    let before = set();
    let guard = before.ready[0].live.enter();
    let old = || endpoint("10.1.0.1:8080", "catalog-v1", HealthStatus::Healthy);
    let new = endpoint("10.1.0.7:8080", "catalog-v1", HealthStatus::Healthy);
    put(&mut parts, "shop/catalog-v1:80", &assignment("shop/catalog-v1:80", vec![new, old()])).unwrap();
    let after = set();
    assert_eq!(after.ready.len(), 2);
    assert!(Arc::ptr_eq(&before.ready[0], &after.ready[1]), "unchanged: the same endpoint");
    assert_eq!(after.ready[0].workload_id, after.ready[1].workload_id);
    let draining = endpoint("10.1.0.1:8080", "catalog-v1", HealthStatus::Draining);
    put(&mut parts, "shop/catalog-v1:80", &assignment("shop/catalog-v1:80", vec![draining])).unwrap();
    let drained = set();
    assert!(drained.other.is_empty(), "where nobody else is, it is asked still");
    assert_eq!(drained.ready[0].live.in_flight.load(Ordering::Relaxed), 1, "still counted while it drains");
    drop(guard);
    assert_eq!(drained.ready[0].live.in_flight.load(Ordering::Relaxed), 0);
    put(&mut parts, "other", &assignment("other", vec![old()])).unwrap();
    put(&mut parts, "other", &fixture::cluster("other")).unwrap();
    let other = parts.assemble(2, &snapshot).clusters["other"].endpoints.load_full();
    assert!(!Arc::ptr_eq(&other.ready[0].live, &drained.ready[0].live), "another cluster judges by itself");
    assert_ne!(other.ready[0].workload_id, 0);
}

#[test]
fn what_is_removed_serves_until_the_swap() {
    // Aim: removals that come before their Epoch fail no request of the snapshot that is live.
    let mut parts = shop();
    let live = parts.assemble(1, &Snapshot::default());
    for (kind, name) in
        [(LISTENER, "out/10.0.0.1:80"), (ROUTE, "shop/catalog:80"), (CLUSTER, "shop/catalog-v1:80"), (ENDPOINT, "shop/catalog-v1:80")]
    {
        parts.remove(kind, name);
    }
    assert_eq!(live.clusters["shop/catalog-v1:80"].endpoints.load().ready.len(), 1);
    let next = parts.assemble(2, &live);
    assert!(next.outbound.is_empty() && next.routes.is_empty());
    assert_eq!(live.clusters["shop/catalog-v1:80"].endpoints.load().ready.len(), 1, "requests on their way still have endpoints");
    parts.remove(ENDPOINT, "shop/catalog-v2:80");
    let last = parts.assemble(3, &next);
    assert!(last.clusters["shop/catalog-v2:80"].endpoints.load().ready.is_empty(), "a cluster without assignment has none");
    parts.remove("type.googleapis.com/unknown", "x");
}

#[test]
fn missing_parts_hurt_nobody_else() {
    // Aim: a listener without its table is left out; a missing cluster answers 503 for its share until it comes.
    let mut parts = shop();
    put(&mut parts, "out/10.0.0.2:80", &fixture::out_http("10.0.0.2:80", "nowhere")).unwrap();
    parts.remove(CLUSTER, "shop/catalog-v2:80");
    let first = parts.assemble(1, &Snapshot::default());
    assert_eq!(first.outbound.len(), 1);
    let targets = |snapshot: &Snapshot| match &snapshot.routes["shop/catalog:80"].hosts[0].rules[1].action {
        Action::Forward(forward) => forward.backends.iter().map(|backend| matches!(backend.target, Target::Cluster(_))).collect::<Vec<_>>(),
        Action::Reply(_) => unreachable!(),
    };
    assert_eq!(targets(&first), [true, false]);
    put(&mut parts, "shop/catalog-v2:80", &fixture::cluster("shop/catalog-v2:80")).unwrap();
    put(&mut parts, "nowhere", &table("nowhere", vec![])).unwrap();
    let second = parts.assemble(2, &first);
    assert_eq!(targets(&second), [true, true]);
    assert_eq!(second.outbound.len(), 2);
    let at = OUT.parse().unwrap();
    let table = second.outbound[&at].http.as_ref().unwrap();
    assert!(Arc::ptr_eq(table, &second.routes["shop/catalog:80"]));
    assert_eq!(first.routes["shop/catalog:80"].hosts[0].rules[1].id, table.hosts[0].rules[1].id, "same content, same id");
}

#[test]
fn a_bad_resource_leaves_its_last_good_content() {
    // Aim: refused alone; the same version again is not compiled; the next good one takes over.
    let mut parts = shop();
    let before = parts.assemble(1, &Snapshot::default());
    let bad = table("shop/catalog:80", vec![host(&["a b"], vec![])]);
    assert!(put(&mut parts, "shop/catalog:80", &bad).is_err());
    let after = parts.assemble(2, &before);
    assert!(Arc::ptr_eq(&before.routes["shop/catalog:80"], &after.routes["shop/catalog:80"]));
    put(&mut parts, "shop/catalog:80", &table("shop/catalog:80", vec![])).unwrap();
    assert!(parts.assemble(3, &after).routes["shop/catalog:80"].hosts.is_empty());
}

/// All that two snapshots must agree in, ids and addresses of `Arc`s aside.
fn picture(snapshot: &Snapshot) -> String {
    let inbound = snapshot.inbound.as_ref().map(|inbound| {
        let ports: BTreeMap<_, _> = inbound.ports.iter().map(|(port, rule)| (*port, dump::table_rows(&rule.http))).collect();
        (ports, dump::table_rows(&inbound.other.http))
    });
    let tables: BTreeMap<_, _> =
        snapshot.outbound.iter().map(|(at, listener)| (*at, listener.http.as_ref().map(|table| dump::table_rows(table)))).collect();
    serde_json::json!({
        "listeners": dump::listeners(snapshot),
        "routes": dump::routes(snapshot),
        "clusters": dump::clusters(snapshot),
        "endpoints": dump::endpoints(snapshot, None),
        "inbound": format!("{inbound:?}"),
        "tables": format!("{tables:?}"),
        "edges": format!("{:?}", snapshot.edges.keys()),
    })
    .to_string()
}

/// One step of a control plane's life: content `variant` of the resource number `slot`, or its removal, or a swap.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put { kind: usize, slot: usize, variant: usize },
    Remove { kind: usize, slot: usize },
    Swap,
}

const KINDS: [&str; 4] = [LISTENER, ROUTE, CLUSTER, ENDPOINT];

fn name(kind: usize, slot: usize) -> String {
    match (kind, slot) {
        (0, 0) => "inbound".into(),
        (0, slot) => format!("out/10.0.0.{slot}:80"),
        (_, slot) => format!("n{slot}"),
    }
}

fn apply(parts: &mut Parts, kind: usize, slot: usize, variant: usize) {
    let name = name(kind, slot);
    let to = ["n0", "n1", "n2"];
    let result = match (kind, slot) {
        (0, 0) => {
            let own = if variant.is_multiple_of(2) { fixture::strict(Some(80)) } else { fixture::permissive(Some(80)) };
            put(parts, &name, &fixture::inbound([own, fixture::permissive(None)].concat()))
        }
        (0, slot) => {
            let at = format!("10.0.0.{slot}:80");
            let listener: Listener = match variant {
                0 => fixture::out_http(&at, "n0"),
                1 => fixture::out_auto(&at, "n1", "n1"),
                _ => fixture::out_auto(&at, "n2", "n0"),
            };
            put(parts, &name, &listener)
        }
        (1, _) => {
            let weights: Vec<(&str, u32)> = to.iter().enumerate().map(|(index, to)| (*to, (index * variant) as u32)).collect();
            let rules = vec![rule("a/b/c/0", prefix("/a"), &[(to[variant % 3], 1)]), rule("a/b/c/1", prefix("/"), &weights)];
            let domains: &[&str] = if variant == 3 { &["bad host"] } else { &["*"] };
            put(parts, &name, &table(&name, vec![host(domains, rules)]))
        }
        (2, _) => {
            let mut cluster = fixture::cluster(&name);
            cluster.connect_timeout = Some(prost_types::Duration { seconds: variant as i64, nanos: 0 });
            put(parts, &name, &cluster)
        }
        _ => {
            let all = (0..variant).map(|n| endpoint(&format!("10.2.0.{n}:80"), "w", HealthStatus::Healthy));
            put(parts, &name, &assignment(&name, all.collect()))
        }
    };
    // Variant 3 of a table and variant 0 of a cluster are bad on purpose.
    assert_eq!(result.is_ok(), !bad(kind, variant), "{result:?}");
}

fn bad(kind: usize, variant: usize) -> bool {
    matches!((kind, variant), (1, 3) | (2, 0))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4_usize, 0..3_usize, 0..4_usize).prop_map(|(kind, slot, variant)| Step::Put { kind, slot, variant }),
        2 => (0..4_usize, 0..3_usize).prop_map(|(kind, slot)| Step::Remove { kind, slot }),
        2 => Just(Step::Swap),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    /// Aim: whatever the way, reuse included, a snapshot is what its accepted resources say.
    #[test]
    fn step_by_step_equals_from_scratch(steps in steps()) {
        let mut parts = Parts::default();
        let mut held: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut snapshot = Snapshot::default();
        for step in steps.into_iter().chain([Step::Swap]) {
            match step {
                Step::Put { kind, slot, variant } => {
                    apply(&mut parts, kind, slot, variant);
                    if !bad(kind, variant) {
                        held.insert((kind, slot), variant);
                    }
                }
                Step::Remove { kind, slot } => {
                    parts.remove(KINDS[kind], &name(kind, slot));
                    held.remove(&(kind, slot));
                }
                Step::Swap => {
                    snapshot = parts.assemble(1, &snapshot);
                    let mut scratch = Parts::default();
                    for ((kind, slot), variant) in &held {
                        apply(&mut scratch, *kind, *slot, *variant);
                    }
                    prop_assert_eq!(picture(&snapshot), picture(&scratch.assemble(1, &Snapshot::default())));
                }
            }
        }
    }
}

#[test]
fn policies_fail_closed_and_keep_what_was_good() {
    // Aim: a refused policy without a good one before it lets nobody in; after a good one that stays; taken away, everybody may again.
    let mut parts = Parts::default();
    let good = proto::mesh::Authorization::default();
    let bad = proto::mesh::Authorization { policies: vec![proto::mesh::AuthorizationPolicy::default()], dry_run: false };
    let closed = |parts: &Parts| {
        let authorization = parts.assemble(1, &Snapshot::default()).authorization;
        authorization.map(|authorization| format!("{authorization:?}").contains("refused: true"))
    };
    assert_eq!(closed(&parts), None);
    assert!(put(&mut parts, "other", &bad).is_err());
    assert_eq!(closed(&parts), None);
    assert!(put(&mut parts, "inbound", &bad).is_err());
    assert_eq!(closed(&parts), Some(true));
    put(&mut parts, "inbound", &good).unwrap();
    assert_eq!(closed(&parts), Some(false));
    assert!(put(&mut parts, "inbound", &bad).is_err());
    assert_eq!(closed(&parts), Some(false));
    parts.remove("type.googleapis.com/meshwright.v1.Authorization", "inbound");
    assert_eq!(closed(&parts), None);
}
