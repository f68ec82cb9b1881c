//! Services that are asked: which objects say what of them, where they are, and what is told where they are not.

use std::collections::BTreeSet;

use proto::mesh::external_auth::Protocol;

use super::ladder::Spot;
use super::tests::world;
use super::{OwnCheck, policy};
use crate::translate::attach::Backend;
use crate::translate::{audit, statuses};
use crate::world::route::{Reference, RouteExternal};
use crate::world::{Kind, ObjectKey, World, WorldSettings};

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: authz, namespace: NS}\nspec: {selector: {app: authz}, ports: [{port: 9000}]}";

fn told(world: &World, rule: &str, own: Option<&RouteExternal>) -> (proto::mesh::EdgePolicy, BTreeSet<Backend>) {
    let route = world.get(&ObjectKey::new(Kind::HTTPRoute, "team", "r")).unwrap();
    let gateway = ("shop".to_owned(), "edge".to_owned());
    let owner = ObjectKey::new(Kind::Gateway, "shop", "edge");
    let spot = Spot { gateway: &gateway, owner: &owner, listener: "web", route: Some((route, Some(rule))) };
    let own = own.map(|says| OwnCheck { route, name: "HTTPRoute/team/r/one", says });
    let mut backends = BTreeSet::new();
    (policy(world.index(), &spot, (own, false), &mut backends).unwrap_or_default(), backends)
}

/// With services of that name in two namespaces.
fn made(objects: &[&str]) -> World {
    let services: Vec<String> = ["team", "shop"].iter().map(|namespace| SERVICE.replace("NS", namespace)).collect();
    let mut all: Vec<String> = objects.iter().map(|text| (*text).to_owned()).collect();
    all.extend(services);
    let texts: Vec<&str> = all.iter().map(String::as_str).collect();
    world(&texts)
}

fn external(name: &str, namespace: &str, spec: &str) -> String {
    format!("kind: ExternalAuth\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}")
}

const RULE: &str = "targetRefs: [{kind: HTTPRoute, name: r, sectionName: two}]";
const GATEWAY: &str = "targetRefs: [{kind: Gateway, name: edge}]";

#[test]
fn each_field_is_said_by_the_narrowest() {
    // Aim: a rule's object changes what it says and leaves the rest to the Gateway's, whose service is in the Gateway's namespace; what is locked
    // stays, and status says so.
    let gateway = external(
        "g",
        "shop",
        &format!("{GATEWAY}, backendRef: {{name: authz, port: 9000}}, timeout: 1s, onError: Allow, cache: {{ttl: 5s}}"),
    );
    let rule = external("r", "team", &format!("{RULE}, timeout: 2s, dryRun: true, onError: Deny"));
    let world = made(&[&gateway, &rule]);
    let (one, backends) = told(&world, "one", None);
    let [asked] = one.external.as_slice() else { panic!("{one:?}") };
    assert_eq!((asked.policy.as_str(), asked.cluster.as_str()), ("shop/g", "shop/authz:9000"));
    assert_eq!((asked.allow_without, asked.dry_run, asked.cache.as_ref().map(|cache| cache.entries)), (true, false, Some(10_000)));
    assert!(matches!(&asked.protocol, Some(Protocol::Grpc(check)) if check.authority == "authz.shop:9000"));
    assert_eq!(backends.into_iter().map(|backend| backend.cluster()).collect::<Vec<_>>(), ["shop/authz:9000"]);
    let (two, _) = told(&world, "two", None);
    let [asked] = two.external.as_slice() else { panic!("{two:?}") };
    assert_eq!((asked.policy.as_str(), asked.cluster.as_str()), ("team/r", "shop/authz:9000"));
    assert_eq!((asked.timeout.as_ref().map(|time| time.seconds), asked.dry_run, asked.allow_without), (Some(2), true, false));

    let locked = gateway.replace("timeout: 1s", "locked: true, timeout: 1s");
    let world = made(&[&locked, &rule]);
    let (two, _) = told(&world, "two", None);
    assert_eq!(two.external[0].timeout.as_ref().map(|time| time.seconds), Some(1));
    let status = serde_json::to_string(&statuses(&world)[&ObjectKey::new(Kind::ExternalAuth, "team", "r")]).unwrap();
    assert!(status.contains("Locked") && status.contains("onError, timeout"), "{status}");
}

#[test]
fn a_service_that_cannot_be_used_closes() {
    // Aim: in another namespace without a grant, absent, without a port: `bad_backend`, told in status and analyze; with a grant it is used. An
    // object that names nobody, and one that was refused, answer 500 by themselves.
    let bad = |spec: &str| {
        let world = made(&[&external("e", "team", spec)]);
        let (one, backends) = told(&world, "one", None);
        assert_eq!((one.external[0].cluster.as_str(), backends.len()), ("bad_backend", 0), "{spec}");
        let status = serde_json::to_string(&statuses(&world)[&ObjectKey::new(Kind::ExternalAuth, "team", "e")]).unwrap();
        assert!(status.contains("\"ResolvedRefs\",\"status\":\"False\""), "{status}");
        audit(&world).iter().map(ToString::to_string).collect::<String>()
    };
    assert!(bad("backendRef: {name: authz, namespace: shop, port: 9000}").contains("no ReferenceGrant in shop lets ExternalAuth of team"));
    assert!(bad("backendRef: {name: nobody, port: 9000}").contains("there is no Service team/nobody"));
    assert!(bad("backendRef: {name: authz, port: 1}").contains("has no port 1"));
    let grant = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec: {from: [{group: meshwright.dev, kind: ExternalAuth, namespace: team}], to: [{group: '', kind: Service}]}";
    let granted = external("e", "team", "backendRef: {name: authz, namespace: shop, port: 9000}");
    let world = made(&[&granted, grant]);
    assert_eq!(told(&world, "one", None).0.external[0].cluster, "shop/authz:9000");

    let world = made(&[&external("e", "team", "timeout: 1s")]);
    assert_eq!(told(&world, "one", None).0.unavailable, "ExternalAuth team/e");
    let status = serde_json::to_string(&statuses(&world)[&ObjectKey::new(Kind::ExternalAuth, "team", "e")]).unwrap();
    assert!(status.contains("names a backendRef"), "{status}");
    let world = made(&[&external("e", "team", "backendRef: {name: authz, port: 9000}, onError: Pass")]);
    assert_eq!(told(&world, "one", None).0.unavailable, "ExternalAuth team/e");
}

#[test]
fn a_rules_filter_is_asked_too_and_fails_closed() {
    // Aim: GEP-1494's filter comes after the object, whatever that says, and lets nothing through unasked; its service needs a grant as a backend.
    let gateway = external("g", "shop", &format!("{GATEWAY}, backendRef: {{name: authz, port: 9000}}, onError: Allow"));
    let world = made(&[&gateway]);
    let to = Reference { group: String::new(), kind: "Service".into(), namespace: None, name: "authz".into(), port: Some(9000), line: 1 };
    let own = RouteExternal {
        to,
        http: true,
        path: "/check".into(),
        request_headers: vec!["cookie".into()],
        response_headers: Vec::new(),
        body_bytes_max: 10,
    };
    let (one, backends) = told(&world, "one", Some(&own));
    let [first, second] = one.external.as_slice() else { panic!("{one:?}") };
    assert_eq!((first.cluster.as_str(), first.allow_without), ("shop/authz:9000", true));
    assert_eq!((second.policy.as_str(), second.cluster.as_str(), second.allow_without), ("HTTPRoute/team/r/one", "team/authz:9000", false));
    assert_eq!((second.body_bytes_max, second.body_partial, backends.len()), (10, true, 2));
    let Some(Protocol::Http(check)) = &second.protocol else { panic!("{second:?}") };
    assert_eq!((check.path.as_str(), check.all_response_headers), ("/check", true));
    let far = RouteExternal { to: Reference { namespace: Some("shop".into()), ..own.to.clone() }, ..own };
    assert_eq!(told(&world, "one", Some(&far)).0.external[1].cluster, "bad_backend");
}

#[test]
fn authorization_servers_are_asked_where_egress_allows_it() {
    // Aim: the url goes by EgressPolicies for all of the namespace; barred, status and analyze say so; the secret comes by name, the places are the rules'.
    let text = |more: &str| {
        format!(
            "kind: RequestAuthentication\nmetadata: {{name: t, namespace: shop}}\nspec: {{{GATEWAY}, introspection: [{{url: 'https://id.example/i', clientId: gw, clientSecretRef: {{name: gw, key: s}}}}]{more}}}"
        )
    };
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: gw, namespace: shop}\nstringData: {s: hush}";
    let egress = |allow: &str| format!("kind: EgressPolicy\nmetadata: {{name: e, namespace: shop}}\nspec: {{allow: [{allow}]}}");
    for (policy, barred) in [
        (None, false),
        (Some("{hosts: [id.example], ports: [443]}"), false),
        (Some("{hosts: ['*.example']}"), false),
        (Some("{hosts: ['*.id.example']}"), true),
        (Some("{hosts: [id.example], ports: [80]}"), true),
        (Some("{cidrs: [192.0.2.0/24]}"), true),
    ] {
        let (tokens, policy) = (text(""), policy.map(egress));
        let mut objects = vec![tokens.as_str(), secret];
        objects.extend(policy.as_deref());
        let world = made(&objects);
        let asked = told(&world, "one", None).0.tokens.unwrap().introspection.unwrap();
        assert_eq!(!asked.barred.is_empty(), barred, "{policy:?}");
        assert_eq!((asked.secret.as_str(), asked.from.len(), asked.keep), ("shop/gw/s", 1, false));
        let status = serde_json::to_string(&statuses(&world)[&ObjectKey::new(Kind::RequestAuthentication, "shop", "t")]).unwrap();
        assert_eq!(status.contains("\"ResolvedRefs\",\"status\":\"False\""), barred, "{status}");
    }
    let rules =
        ", jwtRules: [{issuer: a, jwksUri: 'https://id.example/k', fromHeaders: [{name: x-token}], fromCookies: [t], forwardToken: true}]";
    let asked = told(&made(&[&text(rules)]), "one", None).0.tokens.unwrap();
    let introspection = asked.introspection.unwrap();
    assert_eq!((asked.rules.len(), introspection.from.len(), introspection.keep), (1, 2, true));
}

#[test]
fn objects_of_a_cluster_lead_nobody_to_the_proxies_own_machine() {
    // Aim: what names loopback in a cluster has ResolvedRefs=False by each way there is, and edges are told to bar it; sidecars are not, and in
    // files, whose author starts what is there, all of it is good.
    let objects = [
        ("RequestAuthentication", "introspection: [{url: 'http://127.0.0.1:9/i', clientId: gw}]"),
        ("RequestAuthentication", "jwtRules: [{issuer: a, jwksUri: 'http://localhost:9/k'}]"),
        ("OidcLogin", "issuer: 'http://[::1]:9', clientId: c"),
        ("RateLimit", "limits: [{name: a, requests: 1, per: 1s}], store: {redis: {addresses: ['127.0.0.1:6379']}}"),
    ];
    for (in_cluster, (kind, spec)) in [false, true].into_iter().flat_map(|cluster| objects.map(|object| (cluster, object))) {
        let text = format!("kind: {kind}\nmetadata: {{name: t, namespace: shop}}\nspec: {{{GATEWAY}, {spec}}}");
        let world = super::tests::world_of(WorldSettings { in_cluster, ..WorldSettings::default() }, &[&text]);
        let key = world.live().map(|(key, _)| key.clone()).find(|key| key.kind.text() == kind).unwrap();
        let status = serde_json::to_string(&statuses(&world)[&key]).unwrap();
        assert_eq!(status.contains("where objects of a cluster lead nobody"), in_cluster, "{kind} {spec}: {status}");
        assert_eq!(status.contains("\"ResolvedRefs\",\"status\":\"False\""), in_cluster, "{kind} {spec}: {status}");
    }
}
