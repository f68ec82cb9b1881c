//! The join of control plane, authority and admission webhook: an object that somebody wants to have is judged in the world that is live, by
//! what `analyze` says of it there; and the authority signs what the webhook answers with.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a door: the port that API servers call, and the machine's clock")]

use std::sync::Arc;
use std::time::SystemTime;

use certs_ca::{Ca, ServerNames};
use control::source::parse;
use control::translate::audit_of;
use control::world::{Change, Origin, Problem, Severity, World};
use injector::review::{Analysis, Asked};
use injector::serving::{Issued, Issuer, ServingCell, Standing, keep};
use injector::webhook::{Analyzer, Unready, Webhook, serve};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// The group of our own kinds. Only they are refused at the door: what is wrong with others' is a condition in their status, which is where
/// their users look.
const OWN_GROUP: &str = "meshwright.dev";
/// Objects judged at once, each in a copy of the world; further ones wait within the webhook's own time.
const JUDGED_MAX: usize = 2;

/// Serves a webhook until `stop`, with certificates of `issuer`; it is ready when it has one and `unready` says nothing against it. What API servers must believe is told in `roots` as it changes; whoever holds
/// the lease hands its receiver to [`injector::keep::bundles`], so that replicas that stand by answer and do not write.
///
/// # Errors
/// The crypto library is unusable.
pub async fn open(
    listener: TcpListener,
    issuer: Arc<dyn Issuer>,
    webhook: Webhook,
    unready: Unready,
    roots: watch::Sender<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let cell = Arc::new(ServingCell::new(Arc::new(SystemTime::now)));
    let standing = Arc::clone(&cell);
    let webhook = webhook.with_readiness(Arc::new(move || match standing.standing() {
        Standing::Fresh | Standing::Overdue => unready(),
        Standing::Missing => Some("no certificate yet".to_owned()),
        Standing::Expired => Some("the certificate has expired".to_owned()),
    }));
    let keeping = keep(Arc::clone(&cell), issuer, roots, stop.clone());
    let ((), served) = tokio::join!(keeping, serve(listener, cell, Arc::new(webhook), stop));
    Ok(served?)
}

/// Judges objects in the world of now; before there is one everything passes, with a warning.
pub fn analyzer(worlds: watch::Receiver<Option<World>>, clock: control::clock::Clock) -> Analyzer {
    let places = Arc::new(Semaphore::new(JUDGED_MAX));
    Arc::new(move |asked| {
        let (worlds, clock, places) = (worlds.clone(), clock.clone(), Arc::clone(&places));
        Box::pin(async move {
            // Never closed.
            let place = places.acquire_owned().await;
            let Some(world) = worlds.borrow().clone() else { return passed("the control plane has read nothing yet") };
            let judging = tokio::task::spawn_blocking(move || {
                let analysis = judge(&world, &asked, clock.age_ms());
                drop(place);
                analysis
            });
            judging.await.unwrap_or_else(|_| passed("the control plane is ending"))
        })
    })
}

fn passed(why: &str) -> Analysis {
    Analysis { errors: Vec::new(), warnings: vec![format!("meshwright: not analyzed: {why}")] }
}

/// A webhook's certificates by the mesh's own authority, or by the user's that the mesh has. A replica that stands by can have one, too.
pub struct Signed {
    /// Signs.
    pub ca: Arc<Ca>,
    /// The names by which API servers ask.
    pub names: ServerNames,
}

impl Issuer for Signed {
    fn issue(&self) -> Result<Issued, String> {
        let seat = self.ca.seat(&self.names).map_err(|error| error.to_string())?;
        Issued::read(seat.chain, PrivatePkcs8KeyDer::from(seat.key.to_vec()).into())
    }

    fn roots(&self) -> Result<String, String> {
        Ok(self.ca.bundle_pem())
    }

    fn has_news(&self) -> bool {
        self.ca.refresh().unwrap_or_else(|error| {
            tracing::error!(%error, "the authority's files cannot be used; the former ones stay in use");
            false
        })
    }
}

/// What is wrong with one object in a world.
fn judge(world: &World, asked: &Asked, now_ms: i64) -> Analysis {
    let mut object = asked.object.clone();
    if object["metadata"]["namespace"].is_null() && !asked.namespace.is_empty() {
        object["metadata"]["namespace"] = asked.namespace.clone().into();
    }
    // The name is still to be made up.
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = object["metadata"]["generateName"].as_str().unwrap_or(&asked.name).trim_end_matches('-').into();
    }
    // JSON is YAML.
    let parsed = parse("", &object.to_string());
    let mut problems = parsed.problems;
    for candidate in parsed.candidates {
        let key = candidate.key.clone();
        problems.extend(candidate.problems.iter().cloned());
        if candidate.object.is_some() {
            let mut with = world.clone();
            with.apply(vec![Change::Put { origin: Origin::Cluster, candidate, now_ms }]);
            problems.extend(audit_of(&with, &key));
        }
    }
    problems.sort();
    problems.dedup();
    let denies = |problem: &Problem| problem.severity == Severity::Error && asked.kind.group == OWN_GROUP;
    let (errors, warnings): (Vec<_>, Vec<_>) = problems.iter().partition(|problem| denies(problem));
    Analysis { errors: errors.into_iter().map(told).collect(), warnings: warnings.into_iter().map(told).collect() }
}

/// One finding in one line.
fn told(problem: &Problem) -> String {
    let slash = if problem.namespace.is_empty() { "" } else { "/" };
    let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
    let remedy = if problem.remedy.is_empty() { String::new() } else { format!("; {}", problem.remedy) };
    format!("{} {}{slash}{}: {field}{}{remedy}", problem.kind, problem.namespace, problem.name, problem.message)
}

#[cfg(test)]
mod tests {
    use control::world::{Allocations, WorldSettings};
    use injector::review::AskedKind;
    use serde_json::{Value, json};

    use super::*;

    fn world(manifests: &str) -> World {
        world_of(&[manifests.to_owned()])
    }

    fn world_of(manifests: &[String]) -> World {
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        let candidates = manifests.iter().flat_map(|text| parse("", text).candidates);
        let put = |candidate| Change::Put { origin: Origin::Cluster, candidate, now_ms: 1 };
        world.apply(candidates.map(put).chain([Change::Synced(Origin::Cluster)]).collect());
        world
    }

    fn asked(object: Value) -> Asked {
        let (group, version) = object["apiVersion"].as_str().unwrap().rsplit_once('/').unwrap();
        let kind = AskedKind { group: group.into(), version: version.into(), kind: object["kind"].as_str().unwrap().into() };
        let request = json!({"uid": "u", "operation": "CREATE", "namespace": "shop", "object": object});
        Asked { kind, ..serde_json::from_value(request).unwrap() }
    }

    const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{name: http, port: 80}]}
";

    fn policy(spec: Value) -> Value {
        json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "p"}, "spec": spec})
    }

    /// Aim: a wrong field or value of our kinds is an error with its path and the nearest right name, named in the namespace that the request
    /// is for.
    #[test]
    fn our_own_kinds_are_refused_by_field() {
        let target = json!([{"group": "", "kind": "Service", "name": "catalog"}]);
        for (spec, words) in [
            (json!({"targetRefs": target, "retries": {}}), ["TrafficPolicy shop/p", "retr"]),
            (json!({"targetRefs": target, "loadBalancer": {"algorithm": "Roundrobin"}}), ["spec.loadBalancer.algorithm", "RoundRobin"]),
        ] {
            let analysis = judge(&world(SHOP), &asked(policy(spec)), 1);
            assert_eq!(analysis.errors.len(), 1, "{analysis:?}");
            for word in words {
                assert!(analysis.errors[0].contains(word), "{analysis:?}");
            }
        }
        let good = json!({"targetRefs": target, "loadBalancer": {"algorithm": "RoundRobin"}});
        assert_eq!(judge(&world(SHOP), &asked(policy(good)), 1).errors, [""; 0]);
    }

    /// Aim: what is missing around an object is a warning, and gone when it is there: the world that is live counts.
    #[test]
    fn the_live_world_counts() {
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "catalog"}],
                "rules": [{"backendRefs": [{"name": "catalog", "port": 80}]}],
            },
        });
        let alone = judge(&world(""), &asked(route.clone()), 1);
        assert!(alone.errors.is_empty() && !alone.warnings.is_empty(), "{alone:?}");
        let found = judge(&world(SHOP), &asked(route), 1);
        assert!(found.warnings.len() < alone.warnings.len(), "{found:?}");
    }

    /// Aim: what is wrong with a kind that is not ours is a warning: its users look into its status.
    #[test]
    fn others_kinds_are_only_warned_of() {
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
            "spec": {"parentRefs": [{"name": "front"}], "rules": [{"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}]},
        });
        let analysis = judge(&world(SHOP), &asked(route), 1);
        assert!(analysis.errors.is_empty() && !analysis.warnings.is_empty(), "{analysis:?}");
    }

    /// Ten thousand objects in fifty namespaces: Services, routes to them, policies for them.
    fn crowd() -> Vec<String> {
        let object = |kind: &str, version: &str, namespace: usize, name: String, spec: Value| {
            let metadata = json!({"name": name, "namespace": format!("n{namespace}")});
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}).to_string()
        };
        let (gateway, own) = ("gateway.networking.k8s.io/v1", "meshwright.dev/v1alpha1");
        let mut all = vec![SHOP.to_owned()];
        for namespace in 0..50 {
            for number in 0..100 {
                let service = json!({"selector": {"app": format!("s{number}")}, "ports": [{"name": "http", "port": 80}]});
                all.push(object("Service", "v1", namespace, format!("s{number}"), service));
            }
            for number in 0..60 {
                let (to, parent) = (format!("s{number}"), json!({"group": "", "kind": "Service", "name": format!("s{number}")}));
                let parents = if number < 2 { json!([parent, {"name": "front", "namespace": "shop"}]) } else { json!([parent]) };
                let matches = json!([{"path": {"type": "PathPrefix", "value": format!("/{namespace}/{number}")}}]);
                let rule = json!({"matches": matches, "backendRefs": [{"name": to, "port": 80}]});
                all.push(object("HTTPRoute", gateway, namespace, format!("r{number}"), json!({"parentRefs": parents, "rules": [rule]})));
            }
            for number in 0..40 {
                let target = json!([{"group": "", "kind": "Service", "name": format!("s{number}")}]);
                let spec = json!({"targetRefs": target, "loadBalancer": {"algorithm": "RoundRobin"}});
                all.push(object("TrafficPolicy", own, namespace, format!("p{number}"), spec));
            }
        }
        all
    }

    /// Aim: among ten thousand objects each is judged within the five seconds that an API server waits, in a build without optimisation, too.
    #[test]
    fn a_big_cluster_delays_no_answer() {
        let world = world_of(&crowd());
        assert!(world.live().count() > 10_000 && world.problems().len() < 10, "{:?}", world.problems());
        let parents = json!([{"group": "", "kind": "Service", "name": "catalog"}, {"name": "front"}]);
        let rules = json!([{"backendRefs": [{"name": "catalog", "port": 80}]}]);
        for (version, kind, spec) in [
            (
                "meshwright.dev/v1alpha1",
                "TrafficPolicy",
                json!({"targetRefs": [{"group": "", "kind": "Service", "name": "catalog"}], "timeouts": {"request": "1s"}}),
            ),
            ("meshwright.dev/v1alpha1", "AuthorizationPolicy", json!({"action": "Allow", "rules": [{"to": [{"methods": ["GET"]}]}]})),
            ("gateway.networking.k8s.io/v1", "HTTPRoute", json!({"parentRefs": parents, "rules": rules})),
            (
                "gateway.networking.k8s.io/v1",
                "Gateway",
                json!({"gatewayClassName": "meshwright", "listeners": [{"name": "http", "port": 8080, "protocol": "HTTP"}]}),
            ),
        ] {
            let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "new", "namespace": "shop"}, "spec": spec});
            let began = std::time::Instant::now();
            let analysis = judge(&world, &asked(object), 1);
            assert!(began.elapsed() < std::time::Duration::from_secs(5), "{kind}: {:?}, {analysis:?}", began.elapsed());
        }
    }
}
