//! The pure parts on the road of a request and of a configuration, on the shop of `examples/shop`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may fail, and criterion's macros write undocumented items")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measuring needs the machine's own clock and sockets")]

mod authorize;
mod routes;
mod tls;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::path::Path;

use control::source::{Folder, load};
use control::translate::{Audience, View, audience, view};
use control::world::{Allocations, Change, GatewayState, InstanceState, Origin, Spec, World, WorldSettings};
use criterion::{Criterion, criterion_group, criterion_main};
use engine::Moment;
use engine::balance::{self, Choice};
use engine::decide::{Decision, RequestHead, decide};
use engine::model::Snapshot;
use engine::model::build::Parts;
use engine::sniff::sniff;
use http::{HeaderMap, HeaderValue, Method, Uri};
use proto::names;

fn shop() -> World {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop");
    let mut world = World::new(WorldSettings::default(), Allocations::default());
    let mut changes = Folder::default().update(load(&folder).unwrap(), 0);
    changes.push(Change::Synced(Origin::Folder));
    world.apply(changes);
    let ready = InstanceState { started: true, ready: true, ..InstanceState::default() };
    let instances = world.index().instances.values().map(|row| ((row.namespace.clone(), row.name.clone()), ready.clone())).collect();
    let gateways: BTreeMap<_, GatewayState> = BTreeMap::new();
    world.apply(vec![Change::Node { instances, gateways }]);
    world
}

/// The frontend's view with every Service of the shop in use.
fn frontend(world: &World) -> (Audience, BTreeSet<String>) {
    let mut wants = BTreeSet::new();
    for view in world.index().services.values() {
        let Spec::Service(service) = &view.object.spec else { continue };
        for address in &view.addresses {
            wants.extend(service.ports.iter().map(|port| names::outbound((*address, port.port).into())));
        }
    }
    let instance = world.index().instances.values().find(|row| row.name.starts_with("frontend")).unwrap();
    let node = format!("sidecar/{}/{}", instance.namespace, instance.name).parse().unwrap();
    (audience(world, &node).unwrap(), wants)
}

fn parts(view: &View) -> Parts {
    let mut parts = Parts::default();
    for ((type_url, name), resource) in &view.resources {
        parts.put(type_url, name, &resource.version, &resource.any).unwrap();
    }
    parts
}

fn micro(criterion: &mut Criterion) {
    let world = shop();
    let (audience, wants) = frontend(&world);
    let seen = view(&world, &audience, &wants);
    let staged = parts(&seen);
    let snapshot = staged.assemble(1, &Snapshot::default());
    let (_, table) = snapshot.routes.iter().find(|(name, _)| name.contains("/catalog:")).unwrap();
    let uri: Uri = "/products/7?x=1".parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("catalog"));
    headers.insert("user-agent", HeaderValue::from_static("bench"));
    let head = RequestHead::new(&Method::GET, &uri, &headers);
    let mut draw = 0_u64;
    let mut next = || {
        draw = draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        draw
    };

    criterion.bench_function("decide: canary of two weights", |bench| {
        bench.iter(|| matches!(decide(table, black_box(&head), next()), Decision::Forward(_)))
    });
    let Decision::Forward(plan) = decide(table, &head, 0) else { panic!("the catalog is reachable") };
    let Ok(cluster) = plan.target else { panic!("the catalog has a cluster") };
    let set = cluster.endpoints.load_full();
    let choice = |draw| Choice { draw, hash: None, tried: &[], now: Moment::default(), trials: true };
    criterion.bench_function("pick: least request", |bench| {
        bench.iter(|| balance::pick(cluster, black_box(&set), &choice(next())).is_some());
    });
    let hello = b"GET /products/7?x=1 HTTP/1.1\r\nhost: catalog\r\n\r\n";
    criterion.bench_function("sniff: HTTP/1.1", |bench| bench.iter(|| sniff(black_box(hello))));
    criterion.bench_function("translate: the frontend's view", |bench| bench.iter(|| view(&world, &audience, &wants).resources.len()));
    criterion.bench_function("build: from resources to snapshot", |bench| {
        bench.iter(|| parts(&seen).assemble(1, &Snapshot::default()).clusters.len());
    });
    criterion.bench_function("swap: nothing changed", |bench| bench.iter(|| staged.assemble(2, &snapshot).epoch));
}

criterion_group!(
    benches,
    micro,
    routes::decisions,
    routes::hosts,
    routes::builds,
    routes::stages,
    authorize::judgements,
    tls::handshakes,
    tls::records,
    tokens::tokens
);
criterion_main!(benches);
