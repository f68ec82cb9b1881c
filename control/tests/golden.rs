//! Manifests in; what proxies run, what status says, what the node agent is told and what `analyze` finds out. What proxies run is
//! read back through the proxy's own engine, so a golden file cannot show what a proxy would refuse.
//!
//! Bless a change by running with `INSTA_UPDATE=always`.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use control::source::{FileChange, Folder, load};
use control::translate::{Audience, analyze, audiences, node_order, statuses, view};
use control::world::{Address, Allocations, Change, GatewayState, InstanceState, Spec, World, WorldSettings};
use engine::explain::dump;
use engine::model::Snapshot;
use engine::model::build::Parts;
use proptest::prelude::*;
use proto::names::{self, Mode};

/// 1 June 2026.
const NOW_MS: i64 = 1_780_272_000_000;

fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir() && path.file_name().unwrap() != "snapshots").collect();
    folders.sort();
    folders
}

/// Files named from their scenario on, so that golden files are the same everywhere.
fn files(folder: &Path) -> Vec<FileChange> {
    let short = |file: &str| Path::new(file).strip_prefix(folder).unwrap().to_string_lossy().into_owned();
    load(folder).unwrap().into_iter().map(|change| FileChange { file: short(&change.file), ..change }).collect()
}

fn empty_world() -> World {
    let settings = WorldSettings { bridge: Some([10, 77, 0, 1].into()), folder: "/manifests".into(), ..WorldSettings::default() };
    World::new(settings, Allocations::default())
}

/// Everything runs and is ready but what says `test/ready: no`.
fn running(world: &World) -> Change {
    let mut instances = BTreeMap::new();
    for instance in world.index().instances.values() {
        let ready = instance.labels().get("test/ready").map(String::as_str) != Some("no");
        let state = InstanceState { started: true, ready, ..InstanceState::default() };
        instances.insert((instance.namespace.clone(), instance.name.clone()), state);
    }
    let ready = GatewayState { ready: true, ..GatewayState::default() };
    let gateways = world.index().gateways.keys().map(|name| (name.clone(), ready.clone())).collect();
    Change::Node { instances, gateways }
}

fn world_of(files: Vec<FileChange>) -> World {
    let mut world = empty_world();
    let mut changes = Folder::default().update(files, NOW_MS);
    changes.push(Change::FolderRead);
    world.apply(changes);
    let running = running(&world);
    world.apply(vec![running]);
    world
}

/// Everything that can be called or asked for.
fn wants(world: &World) -> BTreeSet<String> {
    let mut wants = BTreeSet::from(["dns/nowhere.cluster.local".to_owned(), "out/10.96.0.1:1".to_owned()]);
    for ((namespace, name), view) in &world.index().services {
        wants.insert(names::dns(&format!("{name}.{namespace}")));
        let Spec::Service(service) = &view.object.spec else { continue };
        // One family is enough to look at: both share everything but the address.
        let addresses = view.addresses.iter().filter(|address| address.is_ipv4());
        let pairs = addresses.flat_map(|address| service.ports.iter().map(move |port| (*address, port.port)));
        wants.extend(pairs.map(|pair| names::outbound(pair.into())));
    }
    for instance in world.index().instances.values() {
        let ports = instance.workload().unwrap().ports.iter();
        wants.extend(ports.map(|port| names::outbound((instance.addresses[0], port.port).into())));
    }
    wants
}

fn snapshot_of(world: &World, audience: &Audience, wants: &BTreeSet<String>) -> (Snapshot, BTreeSet<String>) {
    let view = view(world, audience, wants);
    let mut parts = Parts::default();
    for ((type_url, name), resource) in &view.resources {
        parts.put(type_url, name, &resource.version, &resource.any).unwrap_or_else(|rejected| panic!("{}: {rejected}", audience.node));
    }
    (parts.assemble(1, &Snapshot::default()), view.missing)
}

/// One row per line, without what is live, absent or empty.
fn rows<T: serde::Serialize>(out: &mut String, title: &str, rows: &[T]) {
    for row in rows {
        let serde_json::Value::Object(mut row) = serde_json::to_value(row).unwrap() else { panic!("a row") };
        for live in ["in_flight", "sent", "connect_failures", "position", "idle_timeout_ms", "connect_timeout_ms"] {
            row.remove(live);
        }
        let empty = |value: &serde_json::Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value == "";
        row.retain(|_, value| !empty(value));
        writeln!(out, "  {title} {}", serde_json::Value::Object(row)).unwrap();
    }
}

fn describe(world: &World) -> String {
    let mut out = String::new();
    writeln!(out, "## status").unwrap();
    for (key, status) in statuses(world) {
        writeln!(out, "{key}\n  {}", serde_json::to_string(&status).unwrap()).unwrap();
    }
    let mut seen = BTreeSet::new();
    for audience in audiences(world) {
        writeln!(out, "\n## {}", audience.node).unwrap();
        let outbound = audience.node.mode == Mode::Sidecar && seen.insert(audience.node.namespace.clone());
        let wants = if outbound { wants(world) } else { BTreeSet::new() };
        let (snapshot, missing) = snapshot_of(world, &audience, &wants);
        let set = snapshot.settings.as_ref().unwrap();
        let (deny, log, otlp) = (set.outside_mesh_denied, set.access_log, set.otlp_endpoint.as_deref().unwrap_or("none"));
        writeln!(out, "  proxy {} deny {deny} log {log} otlp {otlp} {:?}", set.trust_domain, set.span_attributes).unwrap();
        writeln!(out, "  life {:?} at {} % series {}", set.leaf_life, set.rotate_at_percent, set.metric_series_max).unwrap();
        writeln!(out, "  account {} addresses {:?}", set.service_account, set.own_addresses).unwrap();
        rows(&mut out, "listener", &dump::listeners(&snapshot));
        rows(&mut out, "route", &dump::routes(&snapshot));
        rows(&mut out, "cluster", &dump::clusters(&snapshot));
        rows(&mut out, "endpoint", &dump::endpoints(&snapshot));
        for (name, answer) in snapshot.names.iter().collect::<BTreeMap<_, _>>() {
            writeln!(out, "  dns {name} {:?}", answer.addresses).unwrap();
        }
        missing.iter().for_each(|name| writeln!(out, "  missing {name}").unwrap());
    }
    let order = node_order(world);
    writeln!(out, "\n## node").unwrap();
    order.instances.iter().for_each(|instance| writeln!(out, "  {instance:?}").unwrap());
    order.gateways.iter().for_each(|gateway| writeln!(out, "  {gateway:?}").unwrap());
    order.relays.iter().for_each(|relay| writeln!(out, "  {relay:?}").unwrap());
    order.services.iter().for_each(|service| writeln!(out, "  {service:?}").unwrap());
    out
}

#[test]
fn scenarios_translate_as_they_always_did() {
    // Aim: output and status of every scenario are as last blessed, and the proxy's engine accepts all of it.
    for folder in scenarios() {
        let mut out = "## analyze\n".to_owned();
        analyze(files(&folder)).iter().for_each(|problem| writeln!(out, "{problem}").unwrap());
        writeln!(out).unwrap();
        out += &describe(&world_of(files(&folder)));
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        insta::with_settings!({snapshot_path => "golden/snapshots", prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(name, out);
        });
    }
}

/// Every good document of every scenario that has no object twice.
fn documents() -> Vec<FileChange> {
    let mut all = Vec::new();
    for folder in scenarios().into_iter().filter(|folder| !folder.ends_with("duplicates") && !folder.ends_with("mistakes")) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for change in files(&folder) {
            let text = change.text.unwrap().unwrap();
            // Scenarios share names; a namespace prefix keeps them apart.
            let text = text
                .replace("namespace: ", &format!("namespace: {name}-"))
                .replace(&format!("{name}-meshwright-system"), "meshwright-system");
            let documents = text.split("\n---\n").enumerate();
            all.extend(
                documents.map(|(place, text)| FileChange { file: format!("{name}-{place:02}.yaml"), text: Some(Ok(text.to_owned())) }),
            );
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_order_of_events_does_not_matter(documents in Just(documents()).prop_shuffle(), batch in 1_usize..40) {
        // Aim: objects that come one by one in any order, some twice, give the same status, views and orders as all at once.
        let whole = world_of(documents.clone());
        let mut folder = Folder::default();
        let mut world = empty_world();
        for batch in documents.chunks(batch) {
            let half = batch.iter().map(|change| FileChange { text: Some(Ok("# soon\n".to_owned())), ..change.clone() }).collect();
            world.apply(folder.update(half, NOW_MS));
            world.apply(folder.update(batch.to_vec(), NOW_MS));
        }
        world.apply(vec![Change::FolderRead]);
        let running = running(&world);
        world.apply(vec![running]);
        prop_assert_eq!(statuses(&whole), statuses(&world));
        prop_assert_eq!(node_order(&whole), node_order(&world));
        for audience in audiences(&whole) {
            let wants = wants(&whole);
            prop_assert_eq!(view(&whole, &audience, &wants), view(&world, &audience, &wants));
        }
    }
}

/// Every scenario's text, and a way to spoil it.
fn spoilt() -> impl Strategy<Value = String> {
    let texts: Vec<String> = scenarios().iter().flat_map(|folder| files(folder)).map(|change| change.text.unwrap().unwrap()).collect();
    let words = ["{", "[", "]", "}", "- ", "null", "&a", "*a", "<<: ", "\"", "99999999999999999999", "-1", "%", "\u{0}", "\n", "\t", "é"];
    let edit = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::sample::select(words.to_vec()));
    (prop::sample::select(texts), prop::collection::vec(edit, 1..6)).prop_map(|(text, edits)| {
        let mut letters: Vec<char> = text.chars().collect();
        for (from, length, word) in edits {
            let from = from.index(letters.len());
            let to = (from + length.index(12)).min(letters.len());
            letters.splice(from..to, word.chars());
        }
        letters.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn spoilt_manifests_end_as_problems(text in spoilt()) {
        // Aim: whatever a slip of the hand makes of a manifest, it is judged without a panic, and what is still accepted is
        // translated to what the engine accepts.
        let change = FileChange { file: "spoilt.yaml".to_owned(), text: Some(Ok(text)) };
        for problem in analyze(vec![change.clone()]) {
            prop_assert!(!problem.message.contains("would refuse"), "{}", problem);
        }
        describe(&world_of(vec![change]));
    }
}

#[test]
fn the_shop_has_nothing_to_complain_about() {
    // Aim: what newcomers run first is judged clean.
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop");
    let problems: Vec<_> = analyze(load(&shop).unwrap()).iter().map(ToString::to_string).collect();
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn ports_that_are_not_served_are_told_from_addresses_that_nobody_has() {
    // Aim: a declared port leads somewhere, another port of the same Service or Gateway nowhere, and a free address is missing.
    let folder = scenarios().into_iter().find(|folder| folder.ends_with("edges")).unwrap();
    let world = world_of(files(&folder));
    let audience = audiences(&world).into_iter().find(|audience| audience.node.mode == Mode::Sidecar).unwrap();
    let of_service = |address: &std::net::SocketAddr| matches!(world.index().addresses.get(&address.ip()), Some(Address::Service(_)));
    let mut asked = wants(&world).into_iter().filter_map(|name| names::outbound_address(&name));
    let served = asked.find(|address| address.port() != 1 && of_service(address)).unwrap();
    let gateway = *world.index().gateway_addresses.values().flatten().next().unwrap();
    let nobody = ([10, 111, 255, 254], 80).into();
    let asked = [served, (served.ip(), 9).into(), (gateway, 9).into(), nobody].map(names::outbound);
    let (snapshot, missing) = snapshot_of(&world, &audience, &asked.into());
    let leads = |address: std::net::SocketAddr| snapshot.outbound.get(&address).map(|outbound| !outbound.leads_nowhere());
    assert_eq!(leads(served), Some(true), "{served}");
    assert_eq!((leads((served.ip(), 9).into()), leads((gateway, 9).into()), leads(nobody)), (Some(false), Some(false), None));
    assert_eq!(missing, BTreeSet::from([names::outbound(nobody)]));
}
