//! Where which objects are left out because they are too many, over the whole mesh: what status and `analyze` say of them (`TooMany`).

use std::collections::{BTreeMap, BTreeSet};

use super::sums::{Meant, Portion, Sum, beyond};
use super::{authentication, authorization, egress};
use crate::translate::attach::WhyNot;
use crate::translate::mtls::applies;
use crate::world::{Kind, Name, Object, ObjectKey, Spec, World};

/// Workloads, by the objects that are left out there.
type LeftOut = BTreeMap<ObjectKey, BTreeSet<Name>>;

/// Why an object is not in force everywhere, and what is in its place.
pub(in crate::translate) fn too_many(world: &World, object: &Object) -> Option<WhyNot> {
    let places = left_out(world).get(&object.key)?;
    let (namespace, workload) = places.first()?;
    let others = match places.len() {
        1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    let fate = match &object.spec {
        Spec::AuthorizationPolicy(policy) => authorization::fate(world.index(), policy),
        Spec::RequestAuthentication(_) => "tokens of its issuers are refused there, and the headers that it fills are taken off",
        _ => "it allows nothing there",
    };
    let message = format!("with the others it is more than a proxy takes at workload {namespace}/{workload}{others}: {fate}");
    Some(WhyNot::new("TooMany", message))
}

/// Whether AuthorizationPolicies are left out at a workload.
pub(in crate::translate) fn is_crowded(world: &World, (namespace, workload): (&str, &str)) -> bool {
    let name = (namespace.to_owned(), workload.to_owned());
    left_out(world).iter().any(|(key, places)| key.kind == Kind::AuthorizationPolicy && places.contains(&name))
}

/// Of the whole mesh, found at the first use.
fn left_out(world: &World) -> &LeftOut {
    let index = world.index();
    index.left_out.get_or_init(|| {
        let mut found = LeftOut::new();
        gather(world, &mut found, |meant| authorization::portions(index, meant), authorization::STAND_IN);
        gather(world, &mut found, |meant| authentication::portions(index, meant), authentication::STAND_IN);
        gather(world, &mut found, |meant| egress::portions(index, meant), egress::STAND_IN);
        found
    })
}

fn gather<'a, C: 'a, S: Sum>(world: &World, found: &mut LeftOut, portions: impl Fn(Meant<'_>) -> Vec<Portion<'a, C, S>>, stand_in: S) {
    // Nearly always all of the mesh would fit into one proxy.
    if portions(&|_, _| true).iter().map(|portion| portion.sum).fold(S::default(), S::plus).fits() {
        return;
    }
    // Replicas have the same labels.
    let mut known = BTreeMap::new();
    for instance in world.index().instances.values().filter(|instance| instance.meshed) {
        let (namespace, labels) = (instance.namespace.as_str(), instance.labels());
        let keys = known.entry((namespace, labels)).or_insert_with(|| {
            let about = portions(&|object, selector| applies(object, selector, namespace, labels));
            beyond(world, &about, stand_in)
        });
        for key in keys.iter() {
            found.entry((*key).clone()).or_default().insert((namespace.to_owned(), instance.workload.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::model::build::Parts;
    use proto::mesh::{Authentication, Authorization, Egress};
    use proto::names::{Mode, NodeId};

    use crate::source::{FileChange, Folder};
    use crate::translate::{AUTHENTICATION, AUTHORIZATION, EGRESS, analyze, audience, statuses, view};
    use crate::world::{Allocations, Kind, World, WorldSettings};

    const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: store, namespace: shop}
spec: {addresses: [10.1.0.2], serviceAccount: store, ports: [{port: 8080}]}
";
    const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"bench","x":"hwJCQ_O__uuFcIs9bTETs-FQYoaLEsm_LUBbLD_gWbM","y":"CKIBB8_1R6ny99dCtrvfCH1GTfDKS_SW5sgFf6XzC74"}]}"#;

    fn files(objects: &[(&str, &str, String)]) -> Vec<FileChange> {
        let text = |(kind, name, spec): &(&str, &str, String)| {
            format!("apiVersion: meshwright.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
        };
        let file = |(number, object)| FileChange { file: format!("{number:03}.yaml"), text: Some(Ok(text(object))) };
        let shop = FileChange { file: "shop.yaml".to_owned(), text: Some(Ok(SHOP.to_owned())) };
        objects.iter().enumerate().map(file).chain([shop]).collect()
    }

    /// Objects (kind, name, spec), each younger than those before.
    fn world(objects: &[(&str, &str, String)]) -> World {
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        let mut folder = Folder::default();
        for (now, change) in (0..).zip(files(objects)) {
            assert_eq!(world.apply(folder.update(vec![change], now)).problems, []);
        }
        world
    }

    /// What the sidecar of the store is told, and whether its engine takes it.
    fn told<M: prost::Message + prost::Name + Default>(world: &World, url: &'static str, name: &str) -> (M, bool) {
        let node = NodeId { mode: Mode::Sidecar, namespace: "shop".to_owned(), instance: "store".to_owned() };
        let view = view(world, &audience(world, &node).unwrap(), &std::collections::BTreeSet::new());
        let resource = &view.resources[&(url, name.to_owned())];
        let taken = Parts::default().put(url, name, &resource.version, &resource.any).is_ok();
        (M::decode(resource.any.value.as_slice()).unwrap(), taken)
    }

    /// Status, reason and message of `Accepted`.
    fn accepted(world: &World, kind: Kind, name: &str) -> (String, String, String) {
        let statuses = statuses(world);
        let (_, status) = statuses.iter().find(|(key, _)| key.kind == kind && key.name == name).unwrap();
        let condition = status.ancestors[0].conditions.iter().find(|condition| condition.kind == "Accepted").unwrap();
        (condition.status.to_owned(), condition.reason.clone(), condition.message.clone())
    }

    fn refusal(fate: &str) -> (String, String, String) {
        let message = format!("with the others it is more than a proxy takes at workload shop/store: {fate}");
        ("False".to_owned(), "TooMany".to_owned(), message)
    }

    /// So many rules for tokens.
    fn tokens(count: usize, place: &str) -> String {
        let rule = |number| {
            format!(
                "{{issuer: 'https://{place}{number}.example', jwks: '{JWKS}', fromHeaders: [{{name: x-{place}}}], claimsToHeaders: [{{claim: sub, header: x-{place}-user}}]}}"
            )
        };
        format!("{{jwtRules: [{}]}}", (0..count).map(rule).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn tokens_of_the_youngest_are_refused() {
        // Aim: beyond the rules of a proxy the oldest objects are in force, each as a whole; what the others look at and fill stays closed.
        let objects = [
            ("RequestAuthentication", "z", tokens(40, "old")),
            ("RequestAuthentication", "a", tokens(25, "new")),
            ("RequestAuthentication", "b", tokens(24, "small")),
        ];
        let all = world(&objects);
        let (sent, taken) = told::<Authentication>(&all, AUTHENTICATION, "inbound");
        assert!(taken);
        let policies: std::collections::BTreeSet<&str> = sent.rules.iter().map(|rule| rule.policy.as_str()).collect();
        assert_eq!((sent.rules.len(), policies.into_iter().collect::<Vec<_>>()), (64, vec!["shop/b", "shop/z"]));
        let withheld = sent.withheld.unwrap();
        assert_eq!((withheld.headers, withheld.from_headers[0].name.as_str()), (vec!["x-new-user".to_owned()], "x-new"));
        let fate = "tokens of its issuers are refused there, and the headers that it fills are taken off";
        assert_eq!(accepted(&all, Kind::RequestAuthentication, "a"), refusal(fate));
        for name in ["z", "b"] {
            assert_eq!(accepted(&all, Kind::RequestAuthentication, name).0, "True");
        }
        assert_eq!(told::<Authentication>(&world(&objects[..1]), AUTHENTICATION, "inbound").0.withheld, None);
        // Offline all are of one age, and names decide.
        let found: Vec<String> = analyze(files(&objects)).iter().map(ToString::to_string).collect();
        let wanted = "error: RequestAuthentication shop/z: spec: with the others it is more than a proxy takes";
        assert!(found.iter().any(|line| line.contains(wanted)), "{found:#?}");
        assert!(!found.iter().any(|line| line.contains("would refuse")), "{found:#?}");
    }

    #[test]
    fn what_the_youngest_would_allow_past_the_mesh_is_cut() {
        // Aim: beyond the rules of a proxy a policy that enforces goes on enforcing, without what it would allow.
        let rules = |mode: &str, count: usize| format!("{{mode: {mode}, allow: [{}]}}", vec!["{ports: [443]}"; count].join(", "));
        let mut objects: Vec<_> = ["e", "d", "c", "b"].map(|name| ("EgressPolicy", name, rules("Enforce", 256))).to_vec();
        objects.push(("EgressPolicy", "a", rules("Enforce", 1)));
        let (sent, taken) = told::<Egress>(&world(&objects), EGRESS, "egress");
        let shape =
            |sent: &Egress| sent.policies.iter().map(|policy| (policy.name.clone(), policy.audit, policy.allow.len())).collect::<Vec<_>>();
        let row = |name: &str, audit, count| (format!("shop/{name}"), audit, count);
        assert!(taken);
        assert_eq!(
            shape(&sent),
            [row("b", false, 256), row("c", false, 256), row("d", false, 256), row("e", false, 256), row("a", false, 0)]
        );
        assert_eq!(accepted(&world(&objects), Kind::EgressPolicy, "a"), refusal("it allows nothing there"));
        // One that only lists goes first, however old.
        objects.insert(0, ("EgressPolicy", "f", rules("Audit", 1)));
        objects.pop();
        let (sent, taken) = told::<Egress>(&world(&objects), EGRESS, "egress");
        assert!(taken && shape(&sent)[4] == row("f", true, 0));
    }

    /// Twenty policies of as many rules as one may have, and others before and after them.
    fn twenty(before: &[(&'static str, String)], after: &[(&'static str, String)]) -> World {
        const NAMES: [&str; 20] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
        let rules = format!("{{rules: [{}]}}", vec!["{}"; 1_000].join(", "));
        let twenty: Vec<(&str, String)> = NAMES.iter().map(|name| (*name, rules.clone())).collect();
        let all: Vec<_> = before.iter().cloned().chain(twenty).chain(after.iter().cloned()).collect();
        world(&all.into_iter().map(|(name, spec)| ("AuthorizationPolicy", name, spec)).collect::<Vec<_>>())
    }

    #[test]
    fn who_may_call_is_never_more_than_was_meant() {
        // Aim: beyond the rules of a proxy what only tells is left out first; in place of an Allow stands one that allows nobody; a Deny is
        // not left out: all is sent to be refused, so what a proxy has stays, and one that has nothing lets nobody in.
        let one = |action: &str, more: &str| format!("{{action: {action}{more}, rules: [{{}}]}}");
        let told = |world: &World| told::<Authorization>(world, AUTHORIZATION, "inbound");
        let allow = twenty(&[], &[("y", one("Allow", ""))]);
        let (sent, taken) = told(&allow);
        assert!(taken);
        assert_eq!((sent.policies.len(), sent.policies[20].name.as_str(), sent.policies[20].rules.len()), (21, "shop/y", 0));
        assert_eq!(accepted(&allow, Kind::AuthorizationPolicy, "y"), refusal("it allows nothing there"));
        let tells = twenty(&[("w", one("Audit", "")), ("x", one("Deny", ", dryRun: true"))], &[]);
        let (sent, taken) = told(&tells);
        assert!(taken && sent.policies.len() == 20);
        assert_eq!(accepted(&tells, Kind::AuthorizationPolicy, "w"), refusal("it tells nothing there"));
        let deny = twenty(&[], &[("y", one("Deny", ""))]);
        let (sent, taken) = told(&deny);
        assert!(!taken);
        assert_eq!((sent.policies.len(), sent.policies[0].name.as_str(), sent.policies[0].rules.len()), (21, "shop/y", 1));
        let fate = "sidecars there keep the policies that they have, and one that has none lets nobody in";
        assert_eq!(accepted(&deny, Kind::AuthorizationPolicy, "y"), refusal(fate));
    }
}
