use std::collections::BTreeSet;

use prost::Message as _;
use proto::names::{Mode, NodeId};

use crate::source::{FileChange, Folder};
use crate::translate::{AUTHORIZATION, analyze, audience, statuses, view};
use crate::world::{Allocations, Kind, World, WorldSettings};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {addresses: [10.1.0.1], serviceAccount: web, ports: [{port: 8080}, {name: tcp-db, port: 9000}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: store, namespace: shop, labels: {app: store}}
spec: {addresses: [10.1.0.2], serviceAccount: store, ports: [{port: 8080}]}
";

/// Policies as (namespace/name, spec).
fn text(policies: &[(&str, &str)]) -> String {
    let mut text = SHOP.to_owned();
    for (name, spec) in policies {
        let (namespace, name) = name.split_once('/').unwrap();
        text += &format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        );
    }
    text
}

fn file(text: String) -> Vec<FileChange> {
    vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }]
}

fn world(policies: &[(&str, &str)]) -> World {
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let applied = world.apply(Folder::default().update(file(text(policies)), 0));
    assert_eq!(applied.problems, []);
    world
}

/// What one workload's sidecar is told.
fn told(world: &World, instance: &str) -> Option<proto::mesh::Authorization> {
    let node = NodeId { mode: Mode::Sidecar, namespace: "shop".to_owned(), instance: instance.to_owned() };
    let view = view(world, &audience(world, &node).unwrap(), &BTreeSet::new());
    let resource = view.resources.get(&(AUTHORIZATION, "inbound".to_owned()))?;
    Some(proto::mesh::Authorization::decode(resource.any.value.as_slice()).unwrap())
}

fn names(world: &World, instance: &str) -> Vec<String> {
    told(world, instance).into_iter().flat_map(|told| told.policies).map(|policy| policy.name).collect()
}

const CALLER: &str = "rules: [{from: [{namespaces: [shop]}]}]";

#[test]
fn each_sidecar_is_told_what_is_about_its_workload() {
    // Aim: a policy with a selector reaches the workloads of its own namespace that it selects, one without its namespace, and one in
    // the root namespace the mesh; they add up, Deny before Allow before Audit, and where there is none there is no resource at all.
    let world = world(&[
        ("shop/z-deny", "{selector: {matchLabels: {app: web}}, action: Deny, rules: [{to: [{ports: [9000]}]}]}"),
        ("shop/a-allow", &format!("{{selector: {{matchLabels: {{app: web}}}}, {CALLER}}}")),
        ("meshwright-system/audit", &format!("{{action: Audit, {CALLER}}}")),
        ("other/all", &format!("{{{CALLER}}}")),
        ("other/web", &format!("{{selector: {{matchLabels: {{app: web}}}}, {CALLER}}}")),
    ]);
    assert_eq!(names(&world, "web"), ["shop/z-deny", "shop/a-allow", "meshwright-system/audit"]);
    assert_eq!(names(&world, "store"), ["meshwright-system/audit"]);
    let alone = self::world(&[("other/all", &format!("{{{CALLER}}}"))]);
    assert_eq!(told(&alone, "web"), None);
}

#[test]
fn a_trial_of_the_whole_mesh_travels() {
    // Aim: `Mesh.authorization.dryRun` reaches every sidecar that has policies, and status says that nothing is enforced.
    let mesh = "---\napiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\n\
                spec: {authorization: {dryRun: true}}\n";
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    world.apply(Folder::default().update(file(text(&[("shop/all", &format!("{{{CALLER}}}"))]) + mesh), 0));
    assert!(told(&world, "web").unwrap().dry_run);
    assert_eq!(accepted(&world, "all"), ("True".to_owned(), "selects 2 workloads; it only logs and counts".to_owned()));
}

/// Status and message of `Accepted`.
fn accepted(world: &World, name: &str) -> (String, String) {
    let statuses = statuses(world);
    let (_, status) = statuses.iter().find(|(key, _)| key.kind == Kind::AuthorizationPolicy && key.name == name).unwrap();
    let condition = &status.ancestors[0].conditions[0];
    (condition.status.to_owned(), condition.message.clone())
}

#[test]
fn status_counts_the_workloads() {
    // Aim: the author reads from status whom a policy is about; one for an edge is not accepted, because nobody enforces it.
    let world = world(&[
        ("shop/web", &format!("{{selector: {{matchLabels: {{app: web}}}}, {CALLER}}}")),
        ("shop/none", &format!("{{selector: {{matchLabels: {{app: wbe}}}}, {CALLER}}}")),
        ("shop/edge", &format!("{{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}], {CALLER}}}")),
    ]);
    let said = |name| accepted(&world, name);
    assert_eq!(said("web"), ("True".to_owned(), "selects 1 workload".to_owned()));
    assert_eq!(said("none"), ("True".to_owned(), "selects 0 workloads".to_owned()));
    assert_eq!(said("edge").0, "False");
    assert_eq!(names(&world, "web"), ["shop/web"]);
}

#[test]
fn analyze_tells_what_a_policy_does_not_do() {
    // Aim: each policy that lets in others than its author may think is told, with its field.
    for (namespace, spec, wanted) in [
        (
            "shop",
            "{selector: {matchLabels: {app: wbe}}, rules: [{}]}",
            "warning: AuthorizationPolicy shop/p: spec.selector: it selects no workload",
        ),
        ("bare", "{rules: [{}]}", "it selects no workload"),
        ("shop", "{}", "info: AuthorizationPolicy shop/p: spec.rules: an Allow without rules: whatever no other policy allows is denied"),
        ("shop", "{action: Deny}", "without rules it matches nothing"),
        ("shop", "{dryRun: true, rules: [{}]}", "the policy is on trial: it denies nothing"),
        (
            "shop",
            "{rules: [{from: [{principals: ['spiffe://partner.example/ns/a/sa/b']}]}]}",
            "is of trust domain partner.example, and ours is cluster.local",
        ),
        (
            "shop",
            "{rules: [{from: [{principals: ['spiffe://cluster.local/ns/shop/sa/wbe']}]}]}",
            "no workload or Gateway that is declared has the identity",
        ),
        ("shop", "{rules: [{from: [{namespaces: [shpo]}]}]}", "there is no namespace `shpo` (did you mean `shop`?)"),
        ("shop", "{rules: [{from: [{ipBlocks: [10.96.0.0/16]}]}]}", "10.96.0.0/16 are addresses of Services"),
        (
            "shop",
            "{rules: [{to: [{methods: [GET]}]}]}",
            "port 9000 of workload shop/web carries bytes, and this is about requests: methods; the rule never allows",
        ),
        (
            "shop",
            "{action: Deny, rules: [{to: [{paths: [{value: /}], ports: [9000]}]}]}",
            "there it denies whatever the rest of it holds for",
        ),
        (
            "shop",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], rules: [{}]}",
            "error: AuthorizationPolicy shop/p: spec.targetRefs[0]: policies for Gateways and routes are not supported",
        ),
    ] {
        let found = analyze(file(text(&[(&format!("{namespace}/p"), spec)])));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.contains(wanted)), "{spec}: {found:#?}");
    }
}

#[test]
fn analyze_tells_who_cannot_prove_an_identity() {
    // Aim: before a rule by identity locks out a caller without a sidecar, somebody says so; under Strict it is locked out anyway.
    let bare =
        "---\napiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {name: old, namespace: old}\nspec: {addresses: [10.1.0.9]}\n";
    let strict = "---\napiVersion: meshwright.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: shop}\nspec: {mtls: {mode: Strict}}\n";
    let policy = text(&[("shop/p", &format!("{{{CALLER}}}"))]) + bare;
    let told = |text: &str| analyze(file(text.to_owned())).iter().any(|line| line.to_string().contains("old/old has no sidecar"));
    assert!(told(&policy));
    assert!(!told(&(policy.clone() + strict)));
}
