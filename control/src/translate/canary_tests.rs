use std::fmt::Write as _;
use std::sync::Arc;

use proto::mesh::{BackendPolicy, RoutePolicy};
use proto::names::POLICY;
use proto::xds::route::RouteConfiguration;
use proto::xds::route::route::Action;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::unpack;

use super::*;
use crate::source::{FileChange, Folder};
use crate::translate::edge_listeners::{Edge, Family};
use crate::translate::{audit_of, route, statuses, touched};
use crate::world::canary::{CanaryBook, CanaryPhase, CanaryStanding};
use crate::world::traffic::Caller;
use crate::world::{Allocations, Change, Kind, ObjectKey, WorldSettings};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{name: http, port: 80}, {name: db, port: 90, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {selector: {app: catalog, version: one}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {selector: {app: other}, ports: [{name: http, port: 80}]}
";
const V2: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {selector: {app: catalog, version: two}, ports: [{name: http, port: 80}]}
";
const STEPS: &str = "steps: [{match: {headers: [{name: x-beta, value: \"1\"}]}}, {mirrorPercent: 10}, {weight: 5}, {weight: 50}]";

fn canary(name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: meshwright.dev/v1alpha1\nkind: Canary\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{serviceRef: {{name: catalog, port: 80}}, stable: v1, candidate: v2, {more}}}\n"
    )
}

fn world(text: &str) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) }], 0));
    world
}

fn key() -> ObjectKey {
    ObjectKey::new(Kind::Canary, "shop", "c")
}

/// The same world, whose canary `c` is at a step (from 0) of a phase.
fn at(world: &World, phase: CanaryPhase, step: usize) -> World {
    let spec = content(world.get(&key()).unwrap()).unwrap();
    let standing = CanaryStanding { pair: spec.pair(), digest: spec.digest(), run: "r1".into(), phase, step, why: "so far".into() };
    let mut world = world.clone();
    world.apply(vec![Change::Canaries(Arc::new(CanaryBook { standings: [(key(), standing)].into() }))]);
    world
}

/// Rules of a table, one a line: headers, then clusters with weights, `<` the version, `~` copies.
fn told(table: &RouteConfiguration) -> String {
    let mut text = String::new();
    for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let headers: Vec<&str> = route.r#match.iter().flat_map(|found| &found.headers).map(|header| header.name.as_str()).collect();
        let Some(Action::Route(action)) = &route.action else {
            text += "answer\n";
            continue;
        };
        let _ = write!(text, "{}{}", headers.join(","), if headers.is_empty() { "" } else { ": " });
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => text += name,
            Some(ClusterSpecifier::WeightedClusters(all)) => {
                let one = |cluster: &ClusterWeight| {
                    let policy: BackendPolicy = cluster.typed_per_filter_config.get(POLICY).map(|any| unpack(any).unwrap()).unwrap_or_default();
                    let version = policy.canary.map(|version| {
                        assert_eq!((version.canary.as_str(), version.run.is_empty()), ("shop/c", false));
                        if version.candidate { "<candidate" } else { "<stable" }
                    });
                    let mirrors: String = policy
                        .filters
                        .into_iter()
                        .flat_map(|filters| filters.mirrors)
                        .map(|mirror| format!(" ~{} {}", mirror.cluster, mirror.per_million))
                        .collect();
                    format!("{} {}{}{mirrors}", cluster.name, cluster.weight.unwrap(), version.unwrap_or_default())
                };
                text += &all.clusters.iter().map(one).collect::<Vec<_>>().join(" + ");
            }
            None => text += "nowhere",
        }
        text += "\n";
    }
    text
}

fn called(world: &World) -> String {
    let caller = Caller { namespace: "shop".to_owned(), service_account: None };
    let table = route::service(world, &("shop".to_owned(), "catalog".to_owned()), 80, &caller);
    for cluster in table.config.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let policy: Option<RoutePolicy> = cluster.typed_per_filter_config.get(POLICY).map(|any| unpack(any).unwrap());
        assert!(policy.is_none_or(|policy| policy.filters.is_none()), "the rule's own policy is the same");
    }
    told(&table.config)
}

/// What a Gateway does with requests for a route's rules.
fn entered(world: &World, rules: &str) -> String {
    let text = format!(
        "{SHOP}{V2}{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: shop}}\n\
         spec: {{gatewayClassName: meshwright, listeners: [{{name: web, port: 80, protocol: HTTP}}]}}\n\
         ---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{name: g}}], rules: [{rules}]}}\n",
        canary("c", STEPS)
    );
    let standing = world.canaries().standings.get(&key()).cloned().unwrap_or_default();
    let world = at(&self::world(&text), standing.phase, standing.step);
    let name = ("shop".to_owned(), "g".to_owned());
    let edge = Edge::of(world.index(), &name).unwrap();
    assert_eq!(edge.at(80, Family::Http).count(), 1);
    let caller = Caller { namespace: "shop".to_owned(), service_account: None };
    told(&route::edge_http(&world, &edge, 80, &caller).config)
}

#[test]
fn a_port_without_routes_is_split_by_step() {
    // Aim: each sort of step, and the ends; before anybody has decided, and of a canary that is written otherwise by now, the stable version answers.
    let world = world(&format!("{SHOP}{V2}{}", canary("c", STEPS)));
    for (phase, step, wanted) in [
        (CanaryPhase::Progressing, 0, "x-beta: shop/v2:80 100<candidate\nshop/v1:80 100<stable\n"),
        (CanaryPhase::Progressing, 1, "shop/v1:80 100<stable ~shop/v2:80 100000\n"),
        (CanaryPhase::Progressing, 2, "shop/v1:80 95<stable + shop/v2:80 5<candidate\n"),
        (CanaryPhase::Paused, 3, "shop/v1:80 50<stable + shop/v2:80 50<candidate\n"),
        (CanaryPhase::Promoted, 4, "shop/v2:80 100<candidate\n"),
        (CanaryPhase::RolledBack, 2, "shop/v1:80 100<stable\n"),
    ] {
        assert_eq!(called(&at(&world, phase, step)), wanted, "{phase:?} {step}");
    }
    assert_eq!(called(&world), "shop/v1:80\n");
    let without = self::world(&format!("{SHOP}{V2}"));
    assert_eq!(called(&without), "shop/catalog:80\n");
}

#[test]
fn rules_that_lead_there_are_split_with_their_own_shares() {
    // Aim: the share of a rule that is the Service's is split, all others keep theirs; rules that lead elsewhere stay as they are; on a Service and at
    // a Gateway alike.
    let base = at(&world(&format!("{SHOP}{V2}{}", canary("c", STEPS))), CanaryPhase::Progressing, 2);
    let backends = "{backendRefs: [{name: catalog, port: 80, weight: 3}, {name: other, port: 80, weight: 1}]}, {backendRefs: [{name: other, port: 80}]}";
    let split = "shop/v1:80 285<stable + shop/v2:80 15<candidate + shop/other:80 100\nshop/other:80\n";
    assert_eq!(entered(&base, backends), split);
    let route = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: catalog}}], rules: [{backends}, {{}}]}}\n"
    );
    let text = format!("{SHOP}{V2}{}{route}", canary("c", STEPS));
    let routed = at(&world(&text), CanaryPhase::Progressing, 2);
    assert_eq!(called(&routed), format!("{split}shop/v1:80 95<stable + shop/v2:80 5<candidate\n"));
    let matched = at(&world(&text), CanaryPhase::Progressing, 0);
    assert_eq!(
        called(&matched),
        "x-beta: shop/v2:80 300<candidate + shop/other:80 100\nshop/v1:80 300<stable + shop/other:80 100\nshop/other:80\n\
         x-beta: shop/v2:80 100<candidate\nshop/v1:80 100<stable\n"
    );
}

#[test]
fn what_is_missing_leaves_the_stable_version_or_the_service_itself() {
    // Aim: without the candidate the stable version has everything, without that the Service itself; a winner needs no loser. The object says so.
    let (whole, no_v2) = (format!("{SHOP}{V2}{}", canary("c", STEPS)), format!("{SHOP}{}", canary("c", STEPS)));
    let no_v1 = whole.replace("metadata: {name: v1, ", "metadata: {name: v9, ");
    for (text, phase, wanted, resolved) in [
        (&no_v2, CanaryPhase::Progressing, "shop/v1:80 100<stable\n", "there is no Service shop/v2"),
        (&no_v1, CanaryPhase::Progressing, "shop/catalog:80\n", "there is no Service shop/v1"),
        (&no_v1, CanaryPhase::Promoted, "shop/v2:80 100<candidate\n", "there is no Service shop/v1"),
        (&whole, CanaryPhase::Progressing, "shop/v1:80 95<stable + shop/v2:80 5<candidate\n", ""),
    ] {
        let world = at(&world(text), phase, 2);
        assert_eq!(called(&world), wanted);
        let status = &statuses(&world)[&key()];
        let told: Vec<_> = status.conditions.iter().map(|condition| (condition.kind.as_str(), condition.status)).collect();
        let holds = if resolved.is_empty() { "True" } else { "False" };
        let progresses = if phase == CanaryPhase::Progressing { "True" } else { "False" };
        assert_eq!(told, [("Accepted", "True"), ("ResolvedRefs", holds), ("Progressing", progresses)]);
        assert!(status.conditions[1].message.contains(resolved));
        assert_eq!((status.conditions[2].reason.as_str(), status.conditions[2].message.as_str()), (phase.text(), "so far"));
        assert_eq!(status.canary.unwrap().phase, phase.text());
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    // Aim: the younger of two, what is no port, and a port of bytes; `analyze` says so as an error, and speaks of versions that do not fit.
    let young = canary("d", STEPS).replace("metadata: {name: d, ", "metadata: {creationTimestamp: '2100-01-01T00:00:00Z', name: d, ");
    let h2 = V2.replace("{name: http, port: 80}", "{name: http, port: 80, appProtocol: kubernetes.io/h2c}");
    let elsewhere = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n\
         spec: {parentRefs: [{group: '', kind: Service, name: catalog}], rules: [{backendRefs: [{name: other, port: 80}]}]}\n";
    let base = format!("{SHOP}{V2}{}", canary("c", STEPS));
    for (text, name, reason, said) in [
        (format!("{base}{young}"), "d", "Conflicted", "Canary shop/c is older"),
        (base.replace("serviceRef: {name: catalog", "serviceRef: {name: nobody"), "c", "TargetNotFound", "there is no Service shop/nobody"),
        (base.replace("serviceRef: {name: catalog, port: 80", "serviceRef: {name: catalog, port: 81"), "c", "TargetNotFound", "has no port 81"),
        (base.replace("serviceRef: {name: catalog, port: 80", "serviceRef: {name: catalog, port: 90"), "c", "UnsupportedProtocol", "carries bytes"),
        (format!("{SHOP}{h2}{}", canary("c", STEPS)), "c", "", "stable speaks http"),
        (format!("{base}{elsewhere}"), "c", "", "HTTPRoute shop/r sends requests for this port elsewhere"),
        (base.clone(), "c", "", "it lasts until its few requests are evidence enough"),
    ] {
        let (world, key) = (world(&text), ObjectKey::new(Kind::Canary, "shop", name));
        let condition = &statuses(&world)[&key].conditions[0];
        assert_eq!((condition.status == "False", condition.reason.as_str()), (!reason.is_empty(), if reason.is_empty() { "Accepted" } else { reason }));
        let lines: Vec<String> = audit_of(&world, &key).iter().map(ToString::to_string).collect();
        assert!(lines.iter().any(|line| line.contains(said)), "{said}: {lines:?}");
        assert_eq!(canary_trouble(&world, world.get(&key).unwrap()).is_some(), !reason.is_empty());
    }
}

#[test]
fn another_step_touches_the_called_service_alone() {
    // Aim: whose address is called is woken, and nobody else; a decision that changes no way wakes nobody.
    let world = world(&format!("{SHOP}{V2}{}", canary("c", STEPS)));
    let (five, fifty) = (at(&world, CanaryPhase::Progressing, 2), at(&world, CanaryPhase::Progressing, 3));
    let service = |name: &str| Subject::service(&("shop".to_owned(), name.to_owned()));
    let changed = touched(&five, &fifty);
    assert_eq!(changed, crate::translate::Affected::Some([service("catalog")].into()));
    let paused = at(&world, CanaryPhase::Paused, 2);
    assert_eq!(touched(&five, &paused), crate::translate::Affected::Some([].into()));
}

#[test]
fn canaries_have_a_bound() {
    // Aim: as many as may be are in force, the oldest; one more is refused by name, and its Service is called as if there were none.
    let mut text = format!("{SHOP}{V2}");
    for number in 0..=crate::world::canary::CANARIES_MAX {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n\
             ---\napiVersion: meshwright.dev/v1alpha1\nkind: Canary\n\
             metadata: {{name: c{number:03}, namespace: shop, creationTimestamp: '2026-01-01T00:{:02}:{:02}Z'}}\n\
             spec: {{serviceRef: {{name: s{number}, port: 80}}, stable: v1, candidate: v2, {STEPS}}}\n",
            number / 60,
            number % 60,
        );
    }
    let world = world(&text);
    let status = |number: usize| statuses(&world)[&ObjectKey::new(Kind::Canary, "shop", format!("c{number:03}"))].conditions[0].clone();
    assert_eq!((status(0).status, status(63).status), ("True", "True"));
    assert_eq!((status(64).status, status(64).reason.as_str()), ("False", "TooMany"));
    assert_eq!(world.index().canaried.overlays.len(), 64);
}
