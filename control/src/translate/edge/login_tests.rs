//! Logins: which objects say what of them, on which hosts their paths are served, and what they are sealed with.

use std::collections::BTreeSet;

use proto::mesh::{EdgeLogin, EdgePolicy};

use super::ladder::Spot;
use super::tests::world;
use super::{consumers, login, policy};
use crate::translate::{audit, statuses};
use crate::world::login_keys::LoginSeeds;
use crate::world::{Change, Kind, ObjectKey, World};

fn object(name: &str, namespace: &str, spec: &str) -> String {
    format!("kind: OidcLogin\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}")
}

const RULE: &str = "targetRefs: [{kind: HTTPRoute, name: r, sectionName: two}]";
const GATEWAY: &str = "targetRefs: [{kind: Gateway, name: edge}]";
const PEOPLE: &str = "issuer: 'https://id.example', clientId: edge, clientSecretRef: {name: oidc, key: secret}";

fn spot<'a>(world: &'a World, owner: &'a ObjectKey, gateway: &'a (String, String), rule: Option<&'a str>) -> Spot<'a> {
    let route = world.get(&ObjectKey::new(Kind::HTTPRoute, "team", "r")).unwrap();
    Spot { gateway, owner, listener: "web", route: rule.map(|rule| (&**route, Some(rule))) }
}

fn told(world: &World, rule: &str) -> EdgePolicy {
    let (gateway, owner) = (("shop".to_owned(), "edge".to_owned()), ObjectKey::new(Kind::Gateway, "shop", "edge"));
    policy(world.index(), &spot(world, &owner, &gateway, Some(rule)), (None, false), &mut BTreeSet::new()).unwrap_or_default()
}

fn login_of(world: &World, rule: &str) -> EdgeLogin {
    told(world, rule).login.unwrap()
}

/// The paths of logins on the host of the route.
fn served(world: &World) -> Vec<(String, Vec<EdgeLogin>)> {
    let (gateway, owner) = (("shop".to_owned(), "edge".to_owned()), ObjectKey::new(Kind::Gateway, "shop", "edge"));
    let spots = ["one", "two"].map(|rule| spot(world, &owner, &gateway, Some(rule)));
    let logins = |served: login::ServedPath| (served.path, served.policy.edge.unwrap().login_paths);
    login::paths(world.index(), &spot(world, &owner, &gateway, None), spots.into_iter(), &mut BTreeSet::new())
        .into_iter()
        .map(logins)
        .collect()
}

#[test]
fn each_field_is_said_by_the_narrowest() {
    // Aim: a rule's object changes what it says and leaves the rest to the Gateway's; defaults are those of the page; what is locked stays.
    let gateway = object("g", "shop", &format!("{GATEWAY}, {PEOPLE}, session: {{max: 30m}}"));
    let rule = object("r", "team", &format!("{RULE}, when: Never, scopes: [openid, email], mode: Optional"));
    let texts = [gateway.as_str(), rule.as_str()];
    let made = world(&texts);
    let one = login_of(&made, "one");
    assert_eq!((one.policy.as_str(), one.secret.as_str(), one.keys.as_str()), ("shop/g", "shop/oidc/secret", login::MADE_KEYS));
    assert_eq!((one.redirect_path.as_str(), one.logout_path.as_str()), ("/oauth2/callback", "/oauth2/logout"));
    assert_eq!((one.scopes.as_slice(), one.refresh_at_percent, one.optional), (&["openid".to_owned()][..], 80, false));
    let secs = |time: &Option<prost_types::Duration>| time.as_ref().unwrap().seconds;
    assert_eq!((secs(&one.idle), secs(&one.max)), (1_800, 1_800), "nothing rests longer than it lives");
    let two = login_of(&made, "two");
    assert_eq!((two.policy.as_str(), two.issuer.as_str(), two.when, two.optional), ("team/r", "https://id.example", 2, true));
    assert_eq!(two.scopes.len(), 2);
    assert!(told(&made, "one").strip_logins);
    assert!(!told(&world(&[]), "one").strip_logins);
    let locked = gateway.replace("session:", "locked: true, session:");
    let made = world(&[&locked, &rule.replace("mode: Optional", "clientId: other")]);
    assert_eq!(login_of(&made, "two").client_id, "edge");
    let status = serde_json::to_string(&statuses(&made)[&ObjectKey::new(Kind::OidcLogin, "team", "r")]).unwrap();
    assert!(status.contains("Locked"), "{status}");
}

#[test]
fn its_paths_are_served_wherever_it_holds() {
    // Aim: on the host of a rule, and of a listener, before its routes; logins that differ in what only rules look at are one; without any nothing
    // is added.
    assert!(served(&world(&[])).is_empty());
    let rule = object("r", "team", &format!("{RULE}, {PEOPLE}"));
    let paths = served(&world(&[&rule]));
    assert_eq!(
        paths.iter().map(|(path, logins)| (path.as_str(), logins.len())).collect::<Vec<_>>(),
        [("/oauth2/callback", 1), ("/oauth2/logout", 1)]
    );
    let gateway = object("g", "shop", &format!("{GATEWAY}, {PEOPLE}"));
    let lenient = object("r", "team", &format!("{RULE}, when: Never, mode: Optional"));
    assert_eq!(served(&world(&[&gateway, &lenient]))[0].1.len(), 1);
    let apart = object("r", "team", &format!("{RULE}, clientId: other, logoutPath: /out"));
    let paths = served(&world(&[&gateway, &apart]));
    let counts: Vec<_> = paths.iter().map(|(path, logins)| (path.as_str(), logins.len())).collect();
    assert_eq!(counts, [("/oauth2/callback", 2), ("/oauth2/logout", 1), ("/out", 1)]);
}

#[test]
fn what_cannot_be_used_closes() {
    // Aim: an object where nobody names issuer and client, and one that was refused, answer 500; a Secret that is not there, or holds what is no key, and
    // a provider that nobody allows are told in status and analyze.
    for (spec, closes, said) in [
        ("clientId: edge", true, "issuer and clientId"),
        ("issuer: 'https://id.example'", true, "issuer and clientId"),
        ("session: {store: Redis}", true, ""),
        (PEOPLE, false, "there is no Secret team/oidc"),
        ("issuer: 'https://id.example', clientId: a, session: {keySecretRef: {name: short, key: k}}", false, "could be guessed"),
        ("issuer: 'https://id.example', clientId: a, privateKeyJwt: {secretRef: {name: short, key: k}}", false, "no private key"),
    ] {
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: short, namespace: team}\nstringData: {k: short}";
        let made = world(&[&format!("{}\n---\n{secret}", object("l", "team", spec))]);
        assert_eq!(!told(&made, "one").unavailable.is_empty(), closes, "{spec}");
        if !said.is_empty() {
            let status = serde_json::to_string(&statuses(&made)[&ObjectKey::new(Kind::OidcLogin, "team", "l")]).unwrap();
            assert!(status.contains(said), "{spec}: {status}");
            let audit = format!("{:?}", audit(&made));
            assert!(audit.contains(said), "{spec}: {audit}");
        }
    }
    let egress = "kind: EgressPolicy\nmetadata: {name: e, namespace: team}\nspec: {allow: [{hosts: [other.example]}]}";
    let made = world(&[&object("l", "team", "issuer: 'https://id.example', clientId: a"), egress]);
    assert!(login_of(&made, "one").barred.contains("no EgressPolicy of team allows id.example:443"));
}

#[test]
fn sessions_at_a_store_are_said_field_by_field() {
    // Aim: proxies are told where it is, and serve the provider's own path; a rule that keeps sessions in browsers again has none; a password that is not
    // there is told in status, and one that is there stands with the secrets of its Gateway; a server without one is worth a word.
    let redis =
        "session: {store: Redis, redis: {addresses: ['Redis.data:6379'], keyPrefix: 'edge:', authRef: {name: redis, key: password}}}";
    let gateway = object("g", "shop", &format!("{GATEWAY}, {PEOPLE}, backChannelLogoutPath: /ended, {redis}"));
    let rule = object("r", "team", &format!("{RULE}, session: {{store: Cookie}}"));
    let made = world(&[&gateway, &rule]);
    let one = login_of(&made, "one");
    let store = one.store.unwrap();
    assert_eq!(
        (store.addresses, store.key_prefix.as_str(), store.password.as_str()),
        (vec!["Redis.data:6379".to_owned()], "edge:", "shop/redis/password")
    );
    assert_eq!(one.back_channel_path, "/ended");
    let two = login_of(&made, "two");
    assert!(two.store.is_none() && two.back_channel_path.is_empty(), "{two:?}");
    let paths = served(&made);
    let counts: Vec<_> = paths.iter().map(|(path, logins)| (path.as_str(), logins.len())).collect();
    assert_eq!(counts, [("/ended", 1), ("/oauth2/callback", 2), ("/oauth2/logout", 2)]);
    let said = |made: &World| serde_json::to_string(&statuses(made)[&ObjectKey::new(Kind::OidcLogin, "shop", "g")]).unwrap();
    assert!(said(&made).contains("there is no Secret shop/oidc"), "{}", said(&made));
    let secrets = "apiVersion: v1\nkind: Secret\nmetadata: {name: oidc, namespace: shop}\nstringData: {secret: s}";
    let made = world(&[&gateway, secrets]);
    assert!(said(&made).contains("there is no Secret shop/redis"), "{}", said(&made));
    let both = format!(
        "{secrets}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: redis, namespace: shop}}\nstringData: {{password: s3cret}}"
    );
    let made = world(&[&gateway, &both]);
    assert!(!said(&made).contains("InvalidRef"), "{}", said(&made));
    let usable = consumers::usable(made.index(), &("shop".to_owned(), "edge".to_owned()));
    let pages = (0..=u8::MAX).filter_map(|page| consumers::page(&made, &usable, page));
    assert!(pages.flat_map(|page| page.secrets).any(|shown| shown.name == "shop/redis/password"));
    let open = gateway.replace(", authRef: {name: redis, key: password}", "");
    let audit = format!("{:?}", audit(&world(&[&open, secrets])));
    assert!(audit.contains("it asks for no password"), "{audit}");
}

#[test]
fn a_provider_inside_is_asked_by_the_meshs_own_name() {
    // Aim: token and keys may be plain at a name of the mesh, whatever EgressPolicies say; at another name never, and status says so.
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: idp, namespace: auth}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}";
    let egress = "kind: EgressPolicy\nmetadata: {name: e, namespace: team}\nspec: {allow: [{hosts: [id.example]}]}";
    for (host, barred) in [("idp.auth", false), ("idp.auth.svc", false), ("idp.team", true), ("id.example", true)] {
        let spec = format!(
            "issuer: 'https://id.example', clientId: a, endpoints: {{authorization: 'https://id.example/a', token: 'http://{host}/t', jwks: 'http://{host}/k'}}"
        );
        let made = world(&[&object("l", "team", &spec), service, egress]);
        let told = login_of(&made, "one");
        assert_eq!(!told.barred.is_empty(), barred, "{host}: {}", told.barred);
        assert_eq!(told.endpoints.unwrap().token, format!("http://{host}/t"));
        let status = serde_json::to_string(&statuses(&made)[&ObjectKey::new(Kind::OidcLogin, "team", "l")]).unwrap();
        assert_eq!(status.contains("its name is none of the mesh's"), barred, "{status}");
    }
}

#[test]
fn its_secrets_go_to_its_gateway() {
    // Aim: what proxies show, and what sessions are sealed with, stands on pages of the Gateways that need it; made keys only where somebody logs in,
    // other ones for each namespace; what is told of the rule holds none of it.
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: oidc, namespace: team}\nstringData: {secret: s3cret}";
    let mut made = world(&[&format!("{}\n---\n{secret}", object("l", "team", PEOPLE))]);
    let seeds = LoginSeeds::default().turned(0, |bytes| {
        bytes.fill(1);
        Ok::<_, ()>(())
    });
    made.apply(vec![Change::LoginSeeds(seeds.unwrap().unwrap())]);
    let shown = |namespace: &str, name: &str| {
        let usable = consumers::usable(made.index(), &(namespace.to_owned(), name.to_owned()));
        let pages = (0..=u8::MAX).filter_map(|page| consumers::page(&made, &usable, page));
        let secrets: Vec<_> = pages.flat_map(|page| page.secrets).map(|shown| (shown.name, shown.value)).collect();
        secrets
    };
    let names: BTreeSet<String> = shown("shop", "edge").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, BTreeSet::from(["login-keys".to_owned(), "team/oidc/secret".to_owned()]));
    assert!(shown("team", "other").is_empty());
    assert!(!format!("{:?}", told(&made, "one")).contains("s3cret"));
}
