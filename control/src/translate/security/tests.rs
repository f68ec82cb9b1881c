use std::collections::BTreeSet;

use prost::Message as _;
use proto::names::{Mode, NodeId};

use super::{Observed, ObservedCall, suggest};
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
            "warning: AuthorizationPolicy shop/p: spec.targetRefs[0]: there is no Gateway shop/edge (correct the reference)",
        ),
    ] {
        let found = analyze(file(text(&[(&format!("{namespace}/p"), spec)])));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.contains(wanted)), "{spec}: {found:#?}");
    }
}

#[test]
fn ports_that_nobody_declared_are_told_where_tokens_are_judged() {
    // Aim: bytes pass such a port without a token, so whoever relies on tokens is told to declare it; who has is not.
    let tokens = "---\napiVersion: meshwright.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: tokens, namespace: shop}\n\
                  spec: {selector: {matchLabels: {app: web}}, jwtRules: [{issuer: a, jwksUri: \"https://id.example/keys\"}]}\n";
    let told = |shop: &str| {
        let found = analyze(file(format!("{shop}{tokens}")));
        found.iter().map(ToString::to_string).filter(|line| line.contains("RequestAuthentication")).collect::<Vec<_>>()
    };
    let open = told(SHOP);
    assert!(matches!(&open[..], [one] if one.contains("port 8080 of workload shop/web") && one.contains("appProtocol")), "{open:?}");
    for protocol in ["http", "grpc", "tcp"] {
        let declared = SHOP.replace("{port: 8080}", &format!("{{port: 8080, appProtocol: {protocol}}}"));
        assert_eq!(told(&declared), [""; 0], "{protocol}");
    }
}

/// What `analyze` says of a policy for the shop, beside these objects.
fn said(spec: &str, beside: &str) -> String {
    let found = analyze(file(text(&[("shop/p", spec)]) + beside));
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn analyze_tells_whom_a_policy_does_not_keep_out() {
    // Aim: who is kept out by what he proves can do without proof where plaintext is taken; what does not come to a sidecar is not judged.
    let strict = "---\napiVersion: meshwright.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: shop}\nspec: {mtls: {mode: Strict}}\n";
    let evil = "[{principals: ['spiffe://cluster.local/ns/shop/sa/web']}]";
    for (spec, field) in [
        (format!("{{action: Deny, rules: [{{from: {evil}}}]}}"), "spec.rules[0].from"),
        (format!("{{rules: [{{not: {{from: {evil}}}}}]}}"), "spec.rules[0].not.from"),
    ] {
        let told = said(&spec, "");
        assert!(told.contains(&format!("{field}: port 8080 of workload shop/store takes plaintext, in which nobody")), "{told}");
        assert!(!said(&spec, strict).contains("takes plaintext"));
    }
    for spec in [
        format!("{{action: Deny, rules: [{{from: {evil}, to: [{{ports: [7]}}]}}]}}"),
        format!("{{action: Deny, rules: [{{not: {{from: {evil}}}}}]}}"),
        format!("{{rules: [{{from: [{{namespaces: [shop]}}], not: {{from: {evil}}}}}]}}"),
    ] {
        assert!(!said(&spec, "").contains("in which nobody"), "{spec}");
    }
    let excluded = "---\napiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {name: out, namespace: shop, labels: {app: out}, \
                    annotations: {meshwright.dev/exclude-inbound-ports: '8080'}}\nspec: {addresses: [10.1.0.7], serviceAccount: web, ports: [{port: 8080}, {port: 8081}]}\n";
    let of = |to: &str| said(&format!("{{selector: {{matchLabels: {{app: out}}}}, rules: [{{{to}}}]}}"), excluded);
    let wanted = "spec.rules: port 8080 of workload shop/out does not come to its sidecar";
    assert!(of("").contains(wanted) && of("to: [{ports: [8080]}]").contains(wanted), "{}", of(""));
    assert!(!of("to: [{ports: [8081]}]").contains(wanted));
}

/// What the servers of the shop have seen: server, caller's account (nothing: plaintext), port, method, path.
fn observed(calls: &[(&str, &str, u16, &str, &str)]) -> Observed {
    let mut observed = Observed::default();
    for (server, account, port, method, path) in calls {
        let identity = (!account.is_empty()).then(|| proto::identity::Identity::new("cluster.local", "shop", account).unwrap());
        let call = ObservedCall { identity, port: *port, method: (*method).to_owned(), path: (*path).to_owned() };
        let server = ("shop".to_owned(), (*server).to_owned());
        *observed.calls.entry(server).or_default().entry(call).or_default() += 1;
    }
    observed
}

#[test]
fn what_was_seen_is_what_is_suggested() {
    // Aim: one policy per application and one rule per kind of caller, with just what was asked; what cannot be named is said beside it.
    let world = world(&[]);
    let seen = observed(&[
        ("store", "web", 8080, "GET", "/items"),
        ("store", "web", 8080, "GET", "/items/{id}"),
        ("store", "web", 8080, "POST", "/items"),
        ("store", "job", 9000, "", ""),
        ("store", "cron", 9000, "", ""),
        ("store", "", 8080, "GET", "/items"),
        ("web", "edge", 8080, "GET", "/"),
        ("gone", "web", 8080, "GET", "/"),
    ]);
    let all = suggest(&world, &seen, ("", ""));
    assert_eq!(all.remarks, ["Workload shop/gone was called, and is not declared any more"]);
    let names: Vec<&str> = all.policies.iter().map(|policy| policy.object["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["store-callers", "web-callers"]);
    assert_eq!(
        all.policies[0].object["spec"],
        serde_json::json!({
            "selector": {"matchLabels": {"app": "store"}},
            "action": "Allow",
            "rules": [
                {
                    "name": "shop.cron",
                    "from": [{"principals": ["spiffe://cluster.local/ns/shop/sa/cron", "spiffe://cluster.local/ns/shop/sa/job"]}],
                    "to": [{"ports": [9000]}],
                },
                {
                    "name": "shop.web",
                    "from": [{"principals": ["spiffe://cluster.local/ns/shop/sa/web"]}],
                    "to": [
                        {"ports": [8080], "methods": ["GET"], "paths": [{"type": "Template", "value": "/items/{id}"}]},
                        {"ports": [8080], "methods": ["GET", "POST"], "paths": [{"type": "Exact", "value": "/items"}]},
                    ],
                },
            ],
        })
    );
    assert_eq!(all.policies[0].remarks.len(), 1);
    assert!(all.policies[0].remarks[0].starts_with("1 call to port 8080 came in plaintext"), "{:?}", all.policies[0].remarks);
    assert_eq!(suggest(&world, &seen, ("shop", "web")).policies, all.policies[1..]);
    assert_eq!(suggest(&world, &seen, ("other", "")).remarks, ["nobody has called a workload of the mesh there yet"]);
}

#[test]
fn names_that_somebody_gives_are_taken_together() {
    // Aim: many different elements at one place are a template; so many paths that they cannot be listed are said to be any.
    let world = world(&[]);
    let letters = |number: u16| format!("{}{}", char::from(b'a' + (number / 26) as u8), char::from(b'a' + (number % 26) as u8));
    let names: Vec<String> = (0..60).map(|number| format!("/users/{}/cart", letters(number))).collect();
    let mut calls: Vec<(&str, &str, u16, &str, &str)> = names.iter().map(|path| ("store", "web", 8080, "GET", path.as_str())).collect();
    calls.push(("store", "web", 8080, "GET", "/users"));
    let policy = &suggest(&world, &observed(&calls), ("shop", "store")).policies[0];
    let paths = &policy.object["spec"]["rules"][0]["to"][0]["paths"];
    assert_eq!(*paths, serde_json::json!([{"type": "Exact", "value": "/users"}, {"type": "Template", "value": "/users/{name2}/cart"}]));
    let odd: Vec<String> = (0_usize..70).map(|number| "/x".repeat(number + 1)).collect();
    let calls: Vec<_> = odd.iter().map(|path| ("store", "web", 8080, "GET", path.as_str())).collect();
    let policy = &suggest(&world, &observed(&calls), ("shop", "store")).policies[0];
    assert_eq!(policy.object["spec"]["rules"][0]["to"], serde_json::json!([{"ports": [8080], "methods": ["GET"]}]));
    assert!(policy.remarks[0].contains("70 different paths"), "{:?}", policy.remarks);
}

proptest::proptest! {
    /// Aim: whatever was seen, what is suggested passes the door without a word.
    #[test]
    fn a_suggestion_is_always_accepted(
        calls in proptest::collection::vec(
            ("(store|web)", "[a-z]{0,3}", 1_u16..4, "(GET|POST|get|)", "|(/([a-z.-]{0,4}|\\{id\\})){1,5}(/\\{rest=\\*\\*\\})?"), 0..80
        )
    ) {
        let world = world(&[]);
        let calls: Vec<_> = calls.iter().map(|(server, account, port, method, path)| {
            // As proxies write templates: each name once.
            let (first, rest) = path.split_once("{id}").unwrap_or((path, ""));
            let id = if path.contains("{id}") { "{id}" } else { "" };
            let path = format!("{first}{id}{}", rest.replace("{id}", "x"));
            let element = |element| if matches!(element, "." | "..") { "x" } else { element };
            let path = path.split('/').map(element).collect::<Vec<_>>().join("/");
            (server.clone(), account.clone(), *port, method.clone(), path)
        }).collect();
        let calls: Vec<_> = calls.iter().map(|(server, account, port, method, path)| {
            (server.as_str(), account.as_str(), *port, method.as_str(), if method.is_empty() { "" } else { path.as_str() })
        }).collect();
        for policy in suggest(&world, &observed(&calls), ("", "")).policies {
            let candidate = crate::source::parse("f.yaml", &policy.object.to_string()).candidates.remove(0);
            let said: Vec<String> = candidate.problems.iter().map(ToString::to_string).collect();
            proptest::prop_assert!(candidate.object.is_some() && said.is_empty(), "{said:?}: {}", policy.object);
        }
    }
}

#[test]
fn who_is_federated_may_be_named() {
    // Aim: an identity of another trust domain is worth a warning as long as nobody believes that domain.
    let policy = text(&[("shop/p", "{rules: [{from: [{principals: ['spiffe://partner.example/ns/a/sa/b']}]}]}")]);
    let mesh = "---\napiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\n\
                spec: {federation: [{trustDomain: partner.example, bundle: {configMapRef: {name: roots, key: ca.pem}}}]}\n";
    let told = |text: String| analyze(file(text)).iter().any(|line| line.to_string().contains("nobody is believed to be that"));
    assert!(told(policy.clone()));
    assert!(!told(policy + mesh));
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

#[test]
fn analyze_tells_of_udp_ports_of_strict_workloads() {
    // Aim: a port for UDP is declared without an error, and told where its workload refuses plaintext: there alone somebody relies on that.
    let workload = "---\napiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {name: names, namespace: shop, labels: {app: names}}\n\
                    spec: {command: [a], ports: [{port: 8053}, {name: dns, port: 5353, protocol: UDP}]}\n";
    let mode = |mode: &str, port: &str| {
        format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{mtls: {{mode: {mode}}}, portLevelMtls: {{{port}}}}}\n"
        )
    };
    for (policy, told) in [
        (String::new(), false),
        (mode("Permissive", ""), false),
        (mode("Strict", ""), true),
        (mode("Strict", "\"5353\": {mode: Permissive}"), false),
    ] {
        let found = analyze(file(format!("{SHOP}{workload}{policy}")));
        let names: Vec<String> = found.iter().map(ToString::to_string).filter(|line| line.contains("Workload shop/names")).collect();
        let udp =
            "warning: Workload shop/names: spec.ports: port 5353 is for UDP, which passes outside mTLS although the workload is Strict";
        assert_eq!(names.iter().any(|line| line.contains(udp)), told, "{policy}{names:?}");
        assert!(!names.iter().any(|line| line.contains("error")), "{names:?}");
    }
}
