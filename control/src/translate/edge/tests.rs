//! Objects at several places, and what comes of them for a rule.

use std::collections::BTreeSet;

use super::ladder::{Spot, places};
use crate::source::parse;
use crate::translate::{Affected, Subject, audit, statuses, touched};
use crate::world::edge::{consumer_page, page_of};
use crate::world::{Allocations, Change, Kind, ObjectKey, Origin, World, WorldSettings};

const ROUTES: &str = "\
kind: Gateway
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwright
  listeners: [{name: web, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}, {name: other, port: 8081, protocol: HTTP}]
---
kind: HTTPRoute
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: r, namespace: team}
spec:
  parentRefs: [{name: edge, namespace: shop, sectionName: web}]
  rules: [{name: one, backendRefs: [{name: s, port: 80}]}, {name: two, matches: [{path: {value: /two}}], backendRefs: [{name: s, port: 80}]}]
---
kind: Service
apiVersion: v1
metadata: {name: s, namespace: team}
spec: {selector: {app: s}, ports: [{port: 80}]}
";

pub(super) fn world(objects: &[&str]) -> World {
    world_of(WorldSettings::default(), objects)
}

pub(super) fn world_of(settings: WorldSettings, objects: &[&str]) -> World {
    let mut world = World::new(settings, Allocations::default());
    let written = |text: &&str| {
        if text.starts_with("apiVersion:") { (*text).to_owned() } else { format!("apiVersion: meshwright.dev/v1alpha1\n{text}\n") }
    };
    let texts = std::iter::once(ROUTES.to_owned()).chain(objects.iter().map(written));
    for (age, text) in texts.enumerate() {
        let candidates = parse("f.yaml", &text).candidates.into_iter();
        let put = |candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: i64::try_from(age).unwrap() };
        world.apply(candidates.map(put).collect());
    }
    world
}

/// What holds for a rule of the route.
fn told(world: &World, rule: &str) -> proto::mesh::EdgePolicy {
    let route = world.get(&ObjectKey::new(Kind::HTTPRoute, "team", "r")).unwrap();
    let gateway = ("shop".to_owned(), "edge".to_owned());
    let owner = ObjectKey::new(Kind::Gateway, "shop", "edge");
    let spot = Spot { gateway: &gateway, owner: &owner, listener: "web", route: Some((route, Some(rule))) };
    assert_eq!(places(&spot).len(), 6);
    super::policy(world.index(), &spot, (None, false), &mut BTreeSet::new()).unwrap_or_default()
}

fn keys(name: &str, namespace: &str, spec: &str) -> String {
    format!("kind: ApiKeyAuth\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}")
}

const RULE: &str = "targetRefs: [{kind: HTTPRoute, name: r, sectionName: two}]";
const ROUTE: &str = "targetRefs: [{kind: HTTPRoute, name: r}]";
const LISTENER: &str = "targetRefs: [{kind: Gateway, name: edge, sectionName: web}]";
const GATEWAY: &str = "targetRefs: [{kind: Gateway, name: edge}]";

#[test]
fn the_narrowest_says_each_field_and_what_is_locked_stays() {
    // Aim: rule > route > the route's namespace > listener > Gateway > mesh, per field; a list is replaced whole; of two at one place the
    // older counts; a locked field is the widest owner's.
    let objects = [
        keys("mesh", "meshwright-system", "{mode: Optional, scopes: [mesh]}"),
        keys("gateway", "shop", &format!("{{{GATEWAY}, scopes: [gateway], forward: {{credential: Keep}}}}")),
        keys("listener", "shop", &format!("{{{LISTENER}, from: [{{query: listener}}]}}")),
        keys("namespace", "team", "{scopes: [namespace]}"),
        keys("route", "team", &format!("{{{ROUTE}, mode: Required, from: [{{query: route}}, {{query: more}}]}}")),
        keys("late", "team", &format!("{{{ROUTE}, mode: Optional}}")),
        keys("rule", "team", &format!("{{{RULE}, scopes: []}}")),
    ];
    let texts: Vec<&str> = objects.iter().map(String::as_str).collect();
    let world = world(&texts);
    let of = |rule: &str| {
        let keys = told(&world, rule).api_keys.unwrap();
        (keys.policy, keys.optional, keys.scopes.join(","), keys.from.len(), keys.keep)
    };
    assert_eq!(of("two"), ("team/rule".to_owned(), false, String::new(), 2, true));
    assert_eq!(of("one"), ("team/route".to_owned(), false, "namespace".to_owned(), 2, true));
    let locked = objects[1].replace("{targetRefs", "{locked: true, targetRefs");
    let mut texts = texts.clone();
    texts[1] = &locked;
    let world = super::tests::world(&texts);
    let of = told(&world, "two").api_keys.unwrap();
    assert_eq!((of.scopes.join(","), of.optional, of.from.len()), ("gateway".to_owned(), false, 2));
    let standing = |name: &str, namespace: &str| {
        let status = statuses(&world)[&ObjectKey::new(Kind::ApiKeyAuth, namespace, name)].clone();
        let told = |one: &crate::translate::Condition| format!("{}={} {} {}", one.kind, one.status, one.reason, one.message);
        let told: Vec<String> = status.ancestors.iter().flat_map(|ancestor| ancestor.conditions.iter().map(told)).collect();
        assert!(status.ancestors.iter().all(|ancestor| ancestor.ancestor_ref["kind"] == "Gateway"), "{status:?}");
        told.join("; ")
    };
    assert_eq!(standing("rule", "team"), "Accepted=True Accepted ; PartiallyInvalid=True Locked ApiKeyAuth shop/gateway locks scopes");
    assert_eq!(standing("late", "team"), "Accepted=False Conflicted ApiKeyAuth team/route is older and wins in mode");
    let over = "loosens what is said by ApiKeyAuth meshwright-system/mesh (forward.credential, scopes)";
    assert_eq!(standing("gateway", "shop"), format!("Accepted=True Accepted {over}"));
}

#[test]
fn what_never_was_good_closes_what_it_is_about_and_nothing_else() {
    // Aim: a refused object without a good version answers for its targets only, the last good version of another stays, and a target that
    // does not exist is told.
    let good = keys("keys", "team", &format!("{{{RULE}, scopes: [a]}}"));
    let bad = keys("broken", "team", &format!("{{{RULE}, mod: Optional}}"));
    let mut world = world(&[&bad]);
    assert_eq!(told(&world, "two").unavailable, "ApiKeyAuth team/broken");
    assert_eq!(told(&world, "one"), proto::mesh::EdgePolicy::default());
    let mut put = |text: &str| {
        let text = format!("apiVersion: meshwright.dev/v1alpha1\n{text}\n");
        let candidates = parse("f.yaml", &text).candidates.into_iter();
        world.apply(candidates.map(|candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: 9 }).collect());
        told(&world, "two")
    };
    let after = put(&bad.replace("mod:", "mode:"));
    assert!(after.unavailable.is_empty() && after.api_keys.as_ref().unwrap().optional, "{after:?}");
    assert_eq!(put(&bad), after, "the last good version");
    put(&good);
    put(&keys("nobody", "team", "{targetRefs: [{kind: HTTPRoute, name: none}]}"));
    let status = &statuses(&world)[&ObjectKey::new(Kind::ApiKeyAuth, "team", "nobody")];
    assert_eq!(status.ancestors[0].conditions[0].reason, "TargetNotFound");
    let problems: Vec<String> = audit(&world).iter().map(ToString::to_string).collect();
    assert!(problems.iter().any(|line| line.contains("there is no HTTPRoute team/none")), "{problems:?}");
}

#[test]
fn what_secrets_say_reaches_those_who_go_by_it() {
    // Aim: a key, a file of users, a store's password or a list of addresses that comes or changes touches its page, so that what is revoked
    // there is refused; and a policy of a ListenerSet touches its Gateway.
    let own = |kind: &str, spec: &str| {
        format!("---\napiVersion: meshwright.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: x, namespace: team}}\nspec: {{{spec}}}\n")
    };
    let content = |kind: &str, name: &str, entries: &str| {
        format!("---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: team}}\n{entries}\n")
    };
    let mut world = world(&[]);
    let mut put = |text: &str| {
        let before = world.clone();
        let candidates = parse("f.yaml", text).candidates.into_iter();
        world.apply(candidates.map(|candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: 9 }).collect());
        match touched(&before, &world) {
            Affected::Some(found) => found,
            Affected::All => panic!("all are touched by {text}"),
        }
    };
    put(&own("Consumer", "credentials: [{name: k, apiKey: {secretRef: {name: keys, key: k}}}]"));
    put(&own("BasicAuth", &format!("{ROUTE}, users: {{secretRef: {{name: users, key: k}}}}")));
    put(&own(
        "AuthorizationPolicy",
        &format!("{ROUTE}, action: Deny, rules: [{{from: [{{ipListRefs: [{{kind: ConfigMap, name: list}}]}}]}}]"),
    ));
    let redis = "store: {redis: {addresses: ['redis:6379'], authRef: {name: redis, key: k}}}, limits: [{name: all, requests: 1, per: 1s}]";
    put(&own("RateLimit", &format!("{ROUTE}, {redis}")));
    let consumer = consumer_page(&ObjectKey::new(Kind::Consumer, "team", "x"));
    for (kind, name, page) in [
        ("Secret", "keys", consumer),
        ("Secret", "users", page_of("team/users/k")),
        ("Secret", "redis", page_of("team/redis/k")),
        ("ConfigMap", "list", page_of("team/list")),
    ] {
        for text in ["one", "another"] {
            let entries = if kind == "Secret" { format!("stringData: {{k: {text}}}") } else { format!("data: {{k: {text}}}") };
            assert!(put(&content(kind, name, &entries)).contains(&Subject::consumers(page)), "{kind} {name}");
        }
    }
    let set = "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: set, namespace: team}\n\
               spec: {parentRef: {name: edge, namespace: shop}, listeners: [{name: own, port: 8090, protocol: HTTP}]}\n";
    let gateway = Subject::gateway(&("shop".to_owned(), "edge".to_owned()));
    assert!(put(set).contains(&gateway));
    assert!(put(&own("ApiKeyAuth", "targetRefs: [{kind: ListenerSet, name: set}]")).contains(&gateway));
}

#[test]
fn no_consumer_spoils_its_page() {
    // Aim: a Consumer with more labels than proxies take, all of which somebody asks for, is sent with as many as they do.
    let labels: Vec<String> = (0..70).map(|number| format!("l{number}: x")).collect();
    let labels = labels.join(", ");
    let consumer = format!("kind: Consumer\nmetadata: {{name: x, namespace: team, labels: {{{labels}}}}}\nspec: {{}}");
    let keys = keys("all", "team", &format!("{{{ROUTE}, consumers: {{selector: {{matchLabels: {{{labels}}}}}}}}}"));
    let world = world(&[&consumer, &keys]);
    let choice = (vec!["team".to_owned()], Vec::new(), [("l0".to_owned(), "x".to_owned())].into());
    let asked = (0..70).map(|number| (vec!["team".to_owned()], Vec::new(), [(format!("l{number}"), "x".to_owned())].into()));
    let usable = crate::translate::usable::Usable { choices: asked.chain([choice]).collect(), ..Default::default() };
    let page = consumer_page(&ObjectKey::new(Kind::Consumer, "team", "x"));
    let told = super::consumers::page(&world, &usable, page).unwrap();
    assert_eq!(told.consumers[0].labels.len(), 64);
}

/// A Consumer with a username, a token and a key that others may have, too.
fn caller(name: &str, namespace: &str, labels: &str) -> String {
    let hash = "9f".repeat(32);
    format!(
        "kind: Consumer\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec:\n  credentials:\n\
         \x20 - {{name: web, basic: {{username: acme, secretRef: {{name: s, key: h}}}}}}\n\
         \x20 - {{name: tok, jwt: {{issuer: \"https://id.example\", claims: {{azp: app}}}}}}\n\
         \x20 - {{name: key, apiKey: {{sha256: {hash}}}}}"
    )
}

#[test]
fn a_username_is_one_consumers_among_those_that_one_object_chooses() {
    // Aim: an older Consumer of a namespace that nobody uses together with this one takes its key alone; one of the same namespace, and one that
    // a grant and an object bring together with it, take the username or the token, too; labels keep apart.
    let basic = |spec: &str| format!("kind: BasicAuth\nmetadata: {{name: b, namespace: team}}\nspec: {{{ROUTE}, consumers: {{{spec}}}}}");
    let tokens = format!(
        "kind: RequestAuthentication\nmetadata: {{name: t, namespace: team}}\n\
         spec: {{{ROUTE}, jwtRules: [{{issuer: \"https://id.example\", jwksUri: \"https://id.example/keys\"}}]}}"
    );
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
             metadata: {{name: g, namespace: other}}\nspec:\n  from: [{{group: meshwright.dev, kind: {kind}, namespace: team}}]\n\
             \x20 to: [{{group: meshwright.dev, kind: Consumer}}]"
        )
    };
    let (old, young) = (caller("old", "other", "of: others"), caller("young", "team", "of: mine"));
    let (near, all) = (caller("near", "team", "of: others"), basic("namespaces: All"));
    let other = basic("selector: {matchLabels: {of: others}}").replace("name: b,", "name: c,");
    let apart = format!("{}\n---\napiVersion: meshwright.dev/v1alpha1\n{other}", basic("selector: {matchLabels: {of: mine}}"));
    let (of_basic, of_tokens) = (grant("BasicAuth"), grant("RequestAuthentication"));
    for (name, objects, lost) in [
        ("nobody uses both", vec![&old, &young], "key"),
        ("an object without grant", vec![&old, &young, &all], "key"),
        ("an object and a grant", vec![&old, &young, &all, &of_basic], "web,key"),
        ("a grant for tokens", vec![&old, &young, &tokens, &of_tokens], "tok,key"),
        ("one namespace", vec![&near, &young], "web,tok,key"),
        ("kept apart by labels", vec![&near, &young, &apart], "tok,key"),
    ] {
        let texts: Vec<&str> = objects.iter().map(|text| text.as_str()).collect();
        let world = world(&texts);
        let claims = super::consumers::claims(&world);
        let names = |key: &ObjectKey| claims.lost_of(key).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
        assert_eq!(names(&ObjectKey::new(Kind::Consumer, "team", "young")), lost, "{name}");
        assert_eq!(claims.lost.len(), 1, "{name}: {claims:?}");
    }
}

#[test]
fn who_has_a_credential_by_now_is_told_on_every_page() {
    // Aim: an object that brings two namespaces together takes a username from the younger Consumer, whose page is touched although nothing
    // that is written there has changed; and the same when it goes.
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: other}\nspec:\n  from: [{group: meshwright.dev, kind: BasicAuth, namespace: team}]\n\
                 \x20 to: [{group: meshwright.dev, kind: Consumer}]";
    let before = world(&[&caller("old", "other", ""), &caller("young", "team", ""), grant]);
    let basic = format!("kind: BasicAuth\nmetadata: {{name: b, namespace: team}}\nspec: {{{ROUTE}, consumers: {{namespaces: All}}}}");
    let mut after = before.clone();
    let candidates = parse("f.yaml", &format!("apiVersion: meshwright.dev/v1alpha1\n{basic}\n")).candidates.into_iter();
    after.apply(candidates.map(|candidate| Change::Put { origin: Origin::Folder, candidate, now_ms: 9 }).collect());
    let page = Subject::consumers(consumer_page(&ObjectKey::new(Kind::Consumer, "team", "young")));
    for (from, to) in [(&before, &after), (&after, &before)] {
        match touched(from, to) {
            Affected::Some(found) => assert!(found.contains(&page), "{found:?}"),
            Affected::All => panic!("all are touched"),
        }
    }
}

#[test]
fn users_of_files_take_of_the_room_for_credentials() {
    // Aim: what is beyond the bound is told of the youngest, by name, and proxies are not sent it; a file counts as many users as it has.
    let hash = "$2b$12$abcdefghijklmnopqrstuu5Y1VZ0ZzUcgRt0XhZC4eqaPzoWQVPpe";
    let file = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: team}}\nstringData: {{k: \"a:{hash}\\nb:{hash}\\nc:{hash}\\n\"}}"
    );
    let basic =
        format!("kind: BasicAuth\nmetadata: {{name: b, namespace: team}}\nspec: {{{ROUTE}, users: {{secretRef: {{name: s, key: k}}}}}}");
    let world = world(&[&caller("old", "team", ""), &file, &basic, &caller("young", "other", "")]);
    let users = crate::world::content::ContentRef { object: ObjectKey::new(Kind::Secret, "team", "s"), key: "k".to_owned() };
    let young = ObjectKey::new(Kind::Consumer, "other", "young");
    for (most, room, lost) in [(8, usize::MAX, 1), (7, usize::MAX, 2), (5, 2, 3), (4, 1, 3), (3, 0, 3)] {
        let claims = super::consumers::find(&world, most);
        assert_eq!((claims.room_of(&users), claims.lost_of(&young).len()), (room, lost), "{most}");
        assert_eq!(super::basic::file(&world, &users, claims.room_of(&users)).users.len(), room.min(3), "{most}");
    }
}

#[test]
fn a_certificate_is_one_consumers_among_those_that_one_gateway_takes() {
    // Aim: an older Consumer of another namespace takes nobody's certificate away, unless a grant lets a Gateway that asks for certificates refer to both; of
    // one namespace the older has it, whether a Gateway asks yet or not.
    let shown = |name: &str, namespace: &str| {
        format!(
            "kind: Consumer\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{credentials: [{{name: cert, certificate: {{uri: \"spiffe://partner/acme\"}}}}]}}"
        )
    };
    let asking = "kind: Gateway\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: secure, namespace: shop}\nspec:\n  gatewayClassName: meshwright\n\
                  \x20 listeners: [{name: tls, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}]\n\
                  \x20 tls: {frontend: {default: {validation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]}}}}";
    let asking = format!("apiVersion: gateway.networking.k8s.io/v1\n{}", asking.replace("apiVersion: gateway.networking.k8s.io/v1\n", ""));
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\nspec:\n\
                 \x20 from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}]\n  to: [{group: meshwright.dev, kind: Consumer}]";
    let (old, young, near) = (shown("old", "other"), shown("young", "shop"), shown("near", "shop"));
    for (name, objects, lost) in [
        ("nobody asks", vec![old.as_str(), &young], false),
        ("a Gateway without grant", vec![&old, &young, &asking], false),
        ("a Gateway and a grant", vec![&old, &young, &asking, grant], true),
        ("one namespace", vec![&near, &young], true),
    ] {
        let world = world(&objects);
        let claims = super::consumers::claims(&world);
        assert_eq!(!claims.lost_of(&ObjectKey::new(Kind::Consumer, "shop", "young")).is_empty(), lost, "{name}: {claims:?}");
        assert_eq!(claims.lost.len(), usize::from(lost), "{name}: {claims:?}");
    }
}
