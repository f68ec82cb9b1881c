//! Which limits proxies count together, each by its name: `NAMESPACE/NAME[@KIND NAMESPACE/ROUTE]/LIMIT`, with the route that counts apart.

use std::collections::BTreeSet;

use super::ladder::all_places;
use crate::world::edge::EdgeRateLimit;
use crate::world::key::GATEWAY_API;
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Name, ObjectKey, Spec, World};

/// The places that requests at one Gateway belong to, whose limits are its proxies' to count.
#[derive(Debug, Default)]
pub(crate) struct LimitPlaces(BTreeSet<Place>);

impl LimitPlaces {
    /// Of a Gateway.
    pub(crate) fn of(index: &Index, gateway: &Name) -> Self {
        Self(all_places(index, gateway))
    }

    /// Whether a limit holds at one of them; of one that a route counts apart, where that route's requests come by.
    pub(crate) fn hold(&self, world: &World, limit: &str) -> bool {
        let Some((key, spec, route)) = find(world, limit) else { return false };
        let fits = |place: &Place| match (&route, place) {
            (None, _) | (Some(_), Place::Mesh) => true,
            (Some(route), Place::Namespace(namespace)) => route.namespace == *namespace,
            (Some(route), Place::Object(key) | Place::Section(key, _)) => key == route || !key.kind.routes_http(),
        };
        let served = |route: &ObjectKey| spec.per_target && self.0.contains(&Place::Object(route.clone()));
        route.as_ref().is_none_or(served) && spec.attachment.places(&key).iter().any(|place| fits(place) && self.0.contains(place))
    }
}

/// Whether there is a limit of that name, and the route that counts apart.
pub(crate) fn limit_exists(world: &World, limit: &str) -> bool {
    find(world, limit).is_some()
}

/// The object that has a limit, and the route.
fn find<'w>(world: &'w World, limit: &str) -> Option<(ObjectKey, &'w EdgeRateLimit, Option<ObjectKey>)> {
    let (memory, own) = limit.rsplit_once('/')?;
    let (policy, route) = memory.split_once('@').map_or((memory, None), |(policy, route)| (policy, Some(route)));
    let (namespace, name) = policy.split_once('/')?;
    let key = ObjectKey::new(Kind::RateLimit, namespace, name);
    let Spec::RateLimit(spec) = &world.get(&key)?.spec else { return None };
    spec.limits.iter().find(|limit| limit.name == own)?;
    let mut named = None;
    if let Some(route) = route {
        let (kind, path) = route.split_once(' ')?;
        let (namespace, name) = path.split_once('/')?;
        let route = ObjectKey::new(Kind::find(GATEWAY_API, kind)?, namespace, name);
        world.get(&route)?;
        named = Some(route);
    }
    Some((key, &**spec, named))
}

#[cfg(test)]
mod tests {
    use super::super::tests::world;
    use super::*;

    fn limit(name: &str, spec: &str) -> String {
        format!(
            "kind: RateLimit\nmetadata: {{name: {name}, namespace: team}}\nspec: {{{spec}, limits: [{{name: all, requests: 1, per: 1s}}]}}"
        )
    }

    #[test]
    fn limits_are_there_as_long_as_somebody_has_them() {
        // Aim: what is forgotten to make room is a limit whose object, or name in it, or route is no more; nonsense of a proxy is, too.
        let world = world(&[&limit("l", "perTarget: true")]);
        for (limit, there) in [
            ("team/l/all", true),
            ("team/l@HTTPRoute team/r/all", true),
            ("team/l@HTTPRoute team/gone/all", false),
            ("team/l@Other team/r/all", false),
            ("team/l@r/all", false),
            ("team/l/other", false),
            ("team/gone/all", false),
            ("all", false),
            ("", false),
        ] {
            assert_eq!(limit_exists(&world, limit), there, "{limit}");
        }
    }

    #[test]
    fn a_gateway_counts_what_holds_at_its_own_places() {
        // Aim: a limit of a route, a namespace or the mesh is counted at the Gateway that serves it; another Gateway's proxies cannot spend it by
        // its name, nor a route apart where the object counts all together.
        let other = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: other, namespace: foe}\n\
                     spec: {gatewayClassName: meshwright, listeners: [{name: web, port: 8082, protocol: HTTP}]}\n";
        let mesh =
            "kind: RateLimit\nmetadata: {name: m, namespace: meshwright-system}\nspec: {limits: [{name: all, requests: 1, per: 1s}]}";
        let route = "targetRefs: [{kind: HTTPRoute, name: r}]";
        let objects = [
            limit("space", "perTarget: true"),
            limit("route", route),
            limit("rule", "targetRefs: [{kind: HTTPRoute, name: r, sectionName: two}]"),
            limit("apart", &format!("perTarget: true, {route}")),
        ];
        let texts: Vec<&str> = objects.iter().map(String::as_str).chain([other, mesh]).collect();
        let world = world(&texts);
        let at = |namespace: &str, name: &str| LimitPlaces::of(world.index(), &(namespace.to_owned(), name.to_owned()));
        let (own, foe) = (at("shop", "edge"), at("foe", "other"));
        for (limit, ours, theirs) in [
            ("team/route/all", true, false),
            ("team/rule/all", true, false),
            ("team/space/all", true, false),
            ("team/space@HTTPRoute team/r/all", true, false),
            ("team/apart@HTTPRoute team/r/all", true, false),
            ("team/route@HTTPRoute team/r/all", false, false),
            ("meshwright-system/m/all", true, true),
            ("team/route/other", false, false),
        ] {
            assert_eq!((own.hold(&world, limit), foe.hold(&world, limit)), (ours, theirs), "{limit}");
        }
    }
}
