//! Manifests in; what proxies run, what status says, what the node agent is told and what `analyze` finds out. What proxies run is
//! read back through the proxy's own engine, so a golden file cannot show what a proxy would refuse.
//!
//! Bless a change by running with `INSTA_UPDATE=always`.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use control::source::{FileChange, Folder, load};
use control::translate::{Audience, View, analyze, audiences, audit, audit_of, node_order, statuses, view};
use control::world::{Address, Allocations, Change, GatewayState, InstanceState, Origin, Spec, World, WorldSettings};
use engine::explain::dump;
use engine::model::build::Parts;
use engine::model::{MetricLabel, Snapshot};
use proptest::prelude::*;
use prost::Message as _;
use proto::mesh::{Authorization, BackendPolicy, Balance, ClusterPolicy, Consumers, Egress, Outlier, RetryBudget, RoutePolicy};
use proto::names::{self, Mode};
use proto::xds;
use proto::xds::cluster::Cluster;
use proto::xds::hcm::HttpConnectionManager;
use proto::xds::hcm::http_connection_manager::RouteSpecifier;
use proto::xds::listener::{FilterChain, Listener, filter};
use proto::xds::route::route::Action;
use proto::xds::route::route_action::ClusterSpecifier;
use proto::xds::route::{Route, RouteAction, RouteConfiguration};
use proto::xds::tcp_proxy::TcpProxy;

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
    changes.push(Change::Synced(Origin::Folder));
    world.apply(changes);
    let running = running(&world);
    world.apply(vec![running]);
    world
}

/// Everything that can be called or asked for.
fn wants(world: &World) -> BTreeSet<String> {
    let mut wants = BTreeSet::from(["dns/nowhere.cluster.local".to_owned(), "out/10.96.0.1:1".to_owned()]);
    for ((namespace, name), view) in world.index().services.iter() {
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

/// What a message says, without what it does not.
fn said(message: &impl std::fmt::Debug) -> String {
    let mut text = format!("{message:?}");
    for nothing in [": None", ": []", ": \"\"", ": 0", ": false"] {
        while let Some(at) = text.find(&format!("{nothing},")).or_else(|| text.find(&format!("{nothing} }}"))) {
            let begin = text[..at].rfind([' ', '{']).unwrap() + 1;
            let end = at + nothing.len() + usize::from(text[at + nothing.len()..].starts_with(", ")) * 2;
            text.replace_range(begin..end, "");
        }
    }
    text.replace(",  }", " }").replace(", }", " }").replace("Some(", "(")
}

/// Policies of backends and chains by name of TLS, as they travel.
fn raw(out: &mut String, view: &View) {
    for ((type_url, name), resource) in &view.resources {
        if *type_url == xds::ROUTE {
            let table = RouteConfiguration::decode(resource.any.value.as_slice()).unwrap();
            table.virtual_hosts.iter().flat_map(|host| &host.routes).for_each(|route| backends(out, name, route));
        }
        if *type_url == xds::LISTENER {
            let listener = Listener::decode(resource.any.value.as_slice()).unwrap();
            let named = |chain: &&FilterChain| {
                chain.filter_chain_match.as_ref().is_some_and(|wanted| wanted.transport_protocol == "tls" && name.starts_with("out/"))
            };
            for chain in listener.filter_chains.iter().filter(named) {
                let names = &chain.filter_chain_match.as_ref().unwrap().server_names;
                let Some(filter::ConfigType::TypedConfig(config)) = &chain.filters[0].config_type else { panic!("a filter") };
                let bytes = TcpProxy::decode(config.value.as_slice()).unwrap();
                writeln!(out, "  chain {name} {} {names:?} {}", chain.name, said(&bytes.cluster_specifier)).unwrap();
            }
        }
    }
}

/// What weighted backends add to their rule.
fn backends(out: &mut String, table: &str, route: &Route) {
    let Some(Action::Route(RouteAction { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)), .. })) = &route.action
    else {
        return;
    };
    for cluster in &weighted.clusters {
        if let Some(policy) = cluster.typed_per_filter_config.get(names::POLICY) {
            let policy = BackendPolicy::decode(policy.value.as_slice()).unwrap();
            writeln!(out, "  policy {table} {} {} {}", route.name, cluster.name, said(&policy)).unwrap();
        }
    }
}

/// What travels beside Envoy's own fields: each cluster's policy where it is not the default one, and each rule's.
fn policies(out: &mut String, view: &View) {
    for ((_, name), resource) in &view.resources {
        if let Ok(cluster) = xds::unpack::<Cluster>(&resource.any) {
            let policy: ClusterPolicy = xds::unpack(&cluster.typed_extension_protocol_options[names::POLICY]).unwrap();
            let connect = cluster.connect_timeout.unwrap();
            if !is_default(&policy) || connect.seconds != 1 {
                writeln!(out, "  policy {name} connect {connect} {}", said(&policy)).unwrap();
            }
        } else if let Ok(egress) = xds::unpack::<Egress>(&resource.any) {
            egress.policies.iter().for_each(|policy| writeln!(out, "  egress {}", said(policy)).unwrap());
        } else if let Ok(table) = xds::unpack::<RouteConfiguration>(&resource.any) {
            rules(out, name, &table);
        } else if let Ok(listener) = xds::unpack::<Listener>(&resource.any) {
            for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
                // Who may comes before it, where somebody is asked.
                let Some(Some(filter::ConfigType::TypedConfig(any))) = chain.filters.last().map(|last| &last.config_type) else { continue };
                if let Ok(manager) = xds::unpack::<HttpConnectionManager>(any)
                    && let Some(RouteSpecifier::RouteConfig(table)) = &manager.route_specifier
                {
                    rules(out, &format!("{name} {}", chain.name), table);
                } else if let Ok(TcpProxy { idle_timeout: Some(idle), .. }) = xds::unpack(any) {
                    writeln!(out, "  policy {name} {} idle {idle}", chain.name).unwrap();
                }
            }
        }
    }
}

fn rules(out: &mut String, table: &str, config: &RouteConfiguration) {
    for route in config.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let Some(Action::Route(action)) = &route.action else { continue };
        let none = prost_types::Duration::default();
        let [whole, idle] = [&action.timeout, &action.idle_timeout].map(|timeout| timeout.unwrap_or(none));
        let longest = action.max_stream_duration.as_ref().and_then(|longest| longest.max_stream_duration).unwrap_or(none);
        let policy = route.typed_per_filter_config.get(names::POLICY).map(|any| xds::unpack::<RoutePolicy>(any).unwrap());
        if policy.is_some() || [idle, longest] != [none; 2] {
            let policy = policy.unwrap_or_default();
            writeln!(out, "  policy {table} {} within {whole} idle {idle} longest {longest} {}", route.name, said(&policy)).unwrap();
        }
    }
}

/// Who may call, in the order in which it is judged.
fn authorization(out: &mut String, view: &View) {
    for all in view.resources.values().filter_map(|resource| xds::unpack::<Authorization>(&resource.any).ok()) {
        for policy in &all.policies {
            let rules = policy.rules.iter().map(|rule| format!("\n    {}", said(rule)));
            writeln!(
                out,
                "  authorization {:?} {} trial {}{}",
                policy.action(),
                policy.name,
                all.dry_run || policy.dry_run,
                rules.collect::<String>()
            )
            .unwrap();
        }
    }
}

/// Who may call from outside, and lists beside them.
fn callers(out: &mut String, view: &View) {
    for ((_, name), resource) in &view.resources {
        let Ok(page) = xds::unpack::<Consumers>(&resource.any) else { continue };
        page.consumers.iter().for_each(|consumer| writeln!(out, "  {name} {}", said(consumer)).unwrap());
        page.files.iter().for_each(|file| writeln!(out, "  {name} {}", said(file)).unwrap());
        page.lists.iter().for_each(|list| writeln!(out, "  {name} {}", said(list)).unwrap());
    }
}

/// What nobody has to say (`kinds.md`, defaults); outlier detection is only where there may be several endpoints.
fn is_default(policy: &ClusterPolicy) -> bool {
    let ClusterPolicy { balance, limits, outlier, check, budget, sessions } = policy;
    let balanced = Balance { failover_below_healthy_percent: 70.0, ..Balance::default() };
    let known = Outlier {
        consecutive_errors: 5,
        consecutive_connect_failures: 3,
        interval: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        eject_for: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        max_ejected_percent: 50.0,
        ..Outlier::default()
    };
    *balance == Some(balanced)
        && limits.is_none()
        && outlier.is_none_or(|outlier| outlier == known)
        && check.is_none()
        && *budget == Some(RetryBudget { percent: 20.0, min_per_second: 10 })
        && !sessions
}

/// One row per line, without what is live, absent or empty, or follows from the rest.
fn rows<T: serde::Serialize>(out: &mut String, title: &str, rows: &[T]) {
    for row in rows {
        let serde_json::Value::Object(mut row) = serde_json::to_value(row).unwrap() else { panic!("a row") };
        for live in ["in_flight", "sent", "connect_failures", "position", "idle_timeout_ms", "connect_timeout_ms"] {
            row.remove(live);
        }
        for of_balance in ["algorithm", "chance", "tier"] {
            row.remove(of_balance);
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
        if let Some(zipkin) = &set.zipkin_endpoint {
            writeln!(out, "  spans by {:?}, and to {zipkin}", set.otlp_protocol).unwrap();
        }
        writeln!(out, "  life {:?} at {} % series {}", set.leaf_life, set.rotate_at_percent, set.metric_series_max).unwrap();
        let labels = MetricLabel::ALL.into_iter().filter(|label| set.metric_labels.has(*label)).map(MetricLabel::text).collect::<Vec<_>>();
        writeln!(out, "  metrics {labels:?} otlp {:?}", set.metrics_otlp).unwrap();
        writeln!(out, "  account {} addresses {:?}", set.service_account, set.own_addresses).unwrap();
        set.probes.iter().for_each(|probe| writeln!(out, "  probe {} {}", probe.port, probe.path.as_deref().unwrap_or("tcp")).unwrap());
        rows(&mut out, "listener", &dump::listeners(&snapshot));
        rows(&mut out, "route", &dump::routes(&snapshot));
        rows(&mut out, "cluster", &dump::clusters(&snapshot));
        rows(&mut out, "endpoint", &dump::endpoints(&snapshot, None));
        for rule in snapshot.authentication.iter().flat_map(|tokens| tokens.rules()) {
            writeln!(out, "  tokens {} {}", rule.policy, rule.story()).unwrap();
        }
        for (name, answer) in snapshot.names.iter().collect::<BTreeMap<_, _>>() {
            writeln!(out, "  dns {name} {:?}", answer.addresses).unwrap();
        }
        let translated = view(world, &audience, &wants);
        set.gateways.iter().for_each(|gateway| writeln!(out, "  gateway {gateway}").unwrap());
        callers(&mut out, &translated);
        authorization(&mut out, &translated);
        policies(&mut out, &translated);
        raw(&mut out, &translated);
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

#[test]
fn an_object_alone_is_judged_as_among_all() {
    // Aim: what is said of one object at the door of a cluster is what `analyze` says of it, for every object of every scenario.
    let mut told = 0;
    for folder in scenarios() {
        let world = world_of(files(&folder));
        let all = audit(&world);
        for (key, _) in world.live() {
            let wanted: Vec<_> = all.iter().filter(|problem| problem.is_of(key)).cloned().collect();
            told += wanted.len();
            assert_eq!(audit_of(&world, key), wanted, "{}: {key}", folder.display());
        }
    }
    assert!(told > 100, "{told}");
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
        world.apply(vec![Change::Synced(Origin::Folder)]);
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
