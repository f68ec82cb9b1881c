//! The table in microseconds: manifests through the translator, what it makes through the engine, and each request through the
//! engine's decisions and filters, with draws of our own in place of a network. Every verdict is compared with the oracle's.

mod outside;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use control::source::{FileChange, Folder};
use control::translate::{Audience, Status, audiences, statuses, trust, view};
use control::world::{Allocations, Change, InstanceState, ObjectKey, Origin, World, WorldSettings};
use engine::Moment;
use engine::balance::{self, Choice};
use engine::decide::{self, Decision, Door, Facts, First, Plan, RequestHead, Terms, Version};
use engine::explain::{self, Asked};
use engine::failure::LocalReply;
use engine::filter::{Called, Exchange, Passage, Resume};
use engine::model::build::Parts;
use engine::model::{Cluster, Forward, Snapshot, Target};
use engine::sniff::{ClientHello, Sniffed};
use http::{HeaderMap, HeaderValue, request};
use prost_types::Any;
use proto::mesh::Trust;
use proto::names::{self, Mode};
use proxy::io::Draw;
use serde_json::Value;

use super::gateway::Knock;
use super::judge::{Outcome, Seen, judge};
use super::objects::{Destination, Stage, backend_of, destination, manifests};
use super::oracle::{Oracle, Verdict};
use super::reading::Request;
use super::table::{Ask, Case, Only, Proto, StatusCase, Table};

/// 1 June 2026.
const NOW_MS: i64 = 1_780_272_000_000;
/// Stands for a Gateway's own address, which has no part in what is decided.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Draws that stand for one request among many.
const DRAWS_PER_REQUEST: u32 = 10;

/// What the translator makes of manifests.
#[derive(Debug)]
pub struct Translated {
    world: World,
}

impl Translated {
    /// Hands manifests in; everything runs and is ready.
    pub fn of(manifests: &str) -> Self {
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        let file = FileChange { file: "cases.yaml".to_owned(), text: Some(Ok(manifests.to_owned())) };
        let mut changes = Folder::default().update(vec![file], NOW_MS);
        changes.push(Change::Synced(Origin::Folder));
        world.apply(changes);
        let ready = InstanceState { started: true, ready: true, ..InstanceState::default() };
        let instances = world.index().instances.keys().map(|name| (name.clone(), ready.clone())).collect();
        world.apply(vec![Change::Node { instances, gateways: BTreeMap::new() }]);
        Self { world }
    }

    /// Every status.
    pub fn statuses(&self) -> BTreeMap<ObjectKey, Status> {
        statuses(&self.world)
    }

    /// What every sidecar and edge is sent: type, name and content.
    pub fn resources(&self) -> Vec<(String, String, Any)> {
        let address = |ip: &IpAddr, port: u16| names::outbound(SocketAddr::new(*ip, port));
        let services = self.world.index().services.values().flat_map(|service| service.addresses.iter());
        let wants: BTreeSet<String> = services.flat_map(|ip| [80, 81].map(|port| address(ip, port))).collect();
        let mut all = BTreeMap::new();
        for audience in audiences(&self.world) {
            for ((url, name), resource) in view(&self.world, &audience, &wants).resources {
                all.insert((url.to_owned(), name), resource.any.clone());
            }
        }
        all.into_iter().map(|((url, name), any)| (url, name, any)).collect()
    }

    /// What proxies are told of whom to believe, but for the mesh's own roots, which no object names.
    pub fn trust(&self) -> Trust {
        trust(&self.world)
    }

    fn address(&self, to: &Destination) -> anyhow::Result<SocketAddr> {
        let name = (to.namespace.clone(), to.name.clone());
        let index = self.world.index();
        let of_pod = || index.instances.get(&name).and_then(|pod| pod.addresses.first());
        let of_service = || index.services.get(&name).and_then(|service| service.addresses.iter().find(|ip| ip.is_ipv4()));
        let ip = if to.pod { of_pod() } else { of_service() };
        Ok(SocketAddr::new(*ip.with_context(|| format!("nothing is called {name:?}"))?, to.port))
    }

    fn audience(&self, (namespace, workload): (&str, &str)) -> anyhow::Result<Audience> {
        let mut all = audiences(&self.world).into_iter().filter(|audience| audience.node.mode == Mode::Sidecar);
        let found = all.find(|audience| audience.node.namespace == namespace && audience.node.instance == workload);
        found.with_context(|| format!("{namespace}/{workload} has no sidecar"))
    }

    fn edge(&self, to: &Destination) -> anyhow::Result<Audience> {
        let mut all = audiences(&self.world).into_iter().filter(|audience| audience.node.mode == Mode::Edge);
        let found = all.find(|audience| audience.node.namespace == to.namespace && audience.node.instance == to.name);
        found.with_context(|| format!("the Gateway {}/{} has no proxy", to.namespace, to.name))
    }

    /// What the sidecar of a workload, or a Gateway's proxy, runs once it has called this place.
    ///
    /// # Errors
    /// There is no such workload or place, or the engine refuses what it is told.
    pub fn snapshot(&self, client: (&str, &str), to: &Destination) -> anyhow::Result<(Snapshot, SocketAddr)> {
        let (address, audience) = match to.gateway {
            true => (SocketAddr::new(OUTSIDE, to.port), self.edge(to)?),
            false => (self.address(to)?, self.audience(client)?),
        };
        let wants = if to.gateway { BTreeSet::new() } else { BTreeSet::from([names::outbound(address)]) };
        let mut parts = Parts::default();
        for ((type_url, name), resource) in &view(&self.world, &audience, &wants).resources {
            parts.put(type_url, name, &resource.version, &resource.any).map_err(|rejected| anyhow::anyhow!("refused: {rejected}"))?;
        }
        Ok((parts.assemble(1, &Snapshot::default()), address))
    }
}

/// Runs everything of a table that needs no network.
///
/// # Errors
/// Says which case is not as wanted, all of them at once.
pub fn run(table: &Table) -> anyhow::Result<usize> {
    let mut stage = Stage::of(table)?;
    let (mut count, mut wrong) = (0, Vec::new());
    let first = super::table::Change { apply: Vec::new(), delete: Vec::new(), status: table.status.clone(), cases: table.cases.clone() };
    for step in std::iter::once(&first).chain(&table.steps) {
        for object in &step.apply {
            let object = super::objects::completed(object)?;
            stage.objects.insert(super::objects::key(&object)?, object);
        }
        for name in &step.delete {
            stage.objects.remove(&super::objects::full(name)).with_context(|| format!("{name} is not there"))?;
        }
        let translated = Translated::of(&manifests(stage.objects.values()));
        let objects: Vec<Value> = stage.objects.values().cloned().collect();
        let statuses = translated.statuses();
        // Cases of one caller and one place share what its sidecar runs.
        let mut runs = BTreeMap::new();
        for case in &step.status {
            count += 1;
            wrong.extend(status(&statuses, case).err().map(|error| format!("{}: {}: {error:#}", table.name, case.name)));
        }
        for case in step.cases.iter().filter(|case| case.only != Some(Only::Process)) {
            count += 1;
            let client = table.clients.get(&case.get.from).map(|namespace| (namespace.as_str(), case.get.from.as_str()));
            let result = client.context("nobody asks").and_then(|client| {
                let key = (client, &*case.get.to);
                let run = match runs.entry(key) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(translated.snapshot(client, &destination(&case.get.to)?)?),
                };
                one(run, &objects, client.0, case)
            });
            wrong.extend(result.err().map(|error| format!("{}: {}: {error:#}", table.name, case.name)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(count)
}

/// Judges one status.
fn status(statuses: &BTreeMap<ObjectKey, Status>, case: &StatusCase) -> anyhow::Result<()> {
    let wanted = super::objects::full(&case.object);
    let found = statuses.iter().find(|(key, _)| format!("{}/{}/{}", key.kind.text().to_lowercase(), key.namespace, key.name) == wanted);
    let (_, status) = found.with_context(|| format!("{wanted} has no status"))?;
    let called = |reference: &Value| case.parent.is_empty() || reference["name"] == *case.parent;
    let parents = status.parents.iter().filter(|parent| called(&parent.parent_ref)).map(|parent| &parent.conditions);
    let ancestors = status.ancestors.iter().filter(|one| called(&one.ancestor_ref)).map(|one| &one.conditions);
    let own = Some(&status.conditions).filter(|own| !own.is_empty());
    let conditions = parents.chain(ancestors).chain(own).next().context("it has no conditions")?;
    for (kind, wanted) in &case.conditions {
        let found = conditions.iter().find(|condition| condition.kind == *kind);
        let said = found.map_or_else(|| "absent".to_owned(), |condition| format!("{}/{}", condition.status, condition.reason));
        let message = found.map(|condition| &condition.message);
        ensure!(said == *wanted || said.split('/').next() == Some(wanted), "{kind} is {said} ({message:?}), not {wanted}");
    }
    Ok(())
}

/// The head of a request.
pub fn head(ask: &Ask, to: &Destination) -> anyhow::Result<request::Parts> {
    let host = ask.host.clone().unwrap_or_else(|| to.name.clone());
    let grpc = ask.proto == Proto::Grpc;
    let uri = if matches!(ask.proto, Proto::Http2 | Proto::Grpc) { format!("http://{host}{}", ask.path) } else { ask.path.clone() };
    let mut builder = http::Request::builder().method(if grpc { "POST" } else { &*ask.method }).uri(uri);
    if matches!(ask.proto, Proto::Http1 | Proto::Tcp | Proto::Tls | Proto::Udp) {
        builder = builder.header("host", host);
    }
    if grpc && !ask.headers.contains_key("content-type") {
        builder = builder.header("content-type", "application/grpc").header("te", "trailers");
    }
    for (name, values) in &ask.headers {
        for value in values.all() {
            builder = builder.header(name, value);
        }
    }
    Ok(builder.body(())?.into_parts().0)
}

fn one((snapshot, address): &(Snapshot, SocketAddr), objects: &[Value], client: &str, case: &Case) -> anyhow::Result<()> {
    let to = destination(&case.get.to)?;
    let head = head(&case.get, &to)?;
    let verdict = match to.gateway {
        true => asked_outside(objects, &to, (&head, &case.get)),
        false => judged(objects, &to, client, &head),
    };
    let draws = Draw::seeded(u64::from(address.port()) ^ 0x5eed);
    let rounds = if case.get.repeat > 1 { case.get.repeat * DRAWS_PER_REQUEST } else { 1 };
    let mut outcomes = Vec::new();
    for _ in 0..rounds {
        let (outcome, place) = match to.gateway {
            true => outside::walked(snapshot, to.port, &case.get, (head.clone(), draws.next()))?,
            false => walked(snapshot, *address, &case.get, (head.clone(), draws.next()))?,
        };
        agree(&verdict, &outcome, place.as_deref())?;
        outcomes.push(outcome);
    }
    judge(&case.want, &outcomes)
}

/// The oracle's word for a request.
pub fn judged(objects: &[Value], to: &Destination, client: &str, head: &request::Parts) -> Verdict {
    let (request, host) = as_seen(head);
    Oracle { objects }.ask(to, client, &request, &host)
}

/// The same for one from outside.
fn asked_outside(objects: &[Value], to: &Destination, (head, ask): (&request::Parts, &Ask)) -> Verdict {
    let (request, host) = as_seen(head);
    Oracle { objects }.at_gateway(to, Knock { sni: ask.sni.as_deref(), proto: ask.proto }, &request, &host)
}

fn as_seen(head: &request::Parts) -> (Request, String) {
    let seen = RequestHead::new(&head.method, &head.uri, &head.headers);
    let request = Request {
        method: head.method.to_string(),
        path: seen.path.to_owned(),
        query: seen.query.unwrap_or_default().to_owned(),
        headers: head.headers.clone(),
    };
    (request, seen.host.to_owned())
}

/// Sends one request through decision and filters, and compares what becomes of it with the oracle's word: whom it was meant for.
///
/// # Errors
/// They do not agree.
pub fn tried(
    (snapshot, address): &(Snapshot, SocketAddr),
    verdict: &Verdict,
    (ask, head, draw): (&Ask, &request::Parts, u64),
) -> anyhow::Result<Option<String>> {
    let (outcome, place) = walked(snapshot, *address, ask, (head.clone(), draw))?;
    agree(verdict, &outcome, place.as_deref())?;
    Ok(place)
}

/// Whether the engine did as the oracle says.
fn agree(verdict: &Verdict, outcome: &Outcome, place: Option<&str>) -> anyhow::Result<()> {
    // Bytes meet no rule that the engine would know by name.
    let is_http = outcome.status != 0 && (outcome.rule.is_some() || outcome.seen.last().is_some());
    if is_http && (verdict.rule.is_some() || outcome.rule.is_some()) {
        ensure!(verdict.rule == outcome.rule, "the oracle says rule {:?}, the engine {:?}", verdict.rule, outcome.rule);
    }
    // Faults, preflights and what a backend's own filters answer are beyond the oracle: it knows who the request is for.
    if let Some(place) = place {
        ensure!(verdict.shares.contains_key(place), "the oracle says {:?}, the engine {place}", verdict.shares);
    }
    let location = super::judge::joined(&outcome.headers, "location");
    ensure!(verdict.redirect.is_none() || verdict.redirect == location, "the oracle says {:?}, the engine {location:?}", verdict.redirect);
    if let Some(seen) = outcome.seen.last() {
        for (wanted, found) in [(&verdict.path, &seen.path), (&verdict.host, &seen.host)] {
            ensure!(wanted.as_ref().is_none_or(|wanted| wanted == found), "the oracle says {wanted:?}, the engine {found:?}");
        }
    }
    Ok(())
}

fn named(rule: &std::sync::Arc<engine::model::Rule>) -> Option<String> {
    let source = &rule.source;
    source.kind.ends_with("Route").then(|| format!("{}/{}/{}", source.namespace, source.name, source.rule))
}

/// One request through decision and filters; also whom it was meant for, as the oracle says it.
fn walked(
    snapshot: &Snapshot,
    address: SocketAddr,
    ask: &Ask,
    (head, draw): (request::Parts, u64),
) -> anyhow::Result<(Outcome, Option<String>)> {
    if ask.proto.is_opaque() {
        let sni = ask.host.clone().filter(|name| !name.is_empty());
        let first = if ask.proto == Proto::Tls { Sniffed::Tls(ClientHello { sni, ..ClientHello::default() }) } else { Sniffed::Opaque };
        return bytes(snapshot, address, (&first, draw));
    }
    let version = if ask.proto == Proto::Http1 { Version::Http1 } else { Version::Http2 };
    let told = RequestHead::new(&head.method, &head.uri, &head.headers);
    let now = Moment::after_start(Duration::from_secs(1000));
    let explained = explain::outbound(snapshot, address, &Asked { head: told, version, tls: false, fault: None, now, wall_secs: 0 });
    let facts = Facts { proved: false, fault: None };
    let mut outcome = match decide::request(Terms::of(snapshot, Door::Outbound(address)), facts, &told, draw) {
        Err(away) => return Ok((local(&away.reply()), Some(away.status.as_u16().to_string()))),
        Ok(Decision::Reply { reply, rule }) => Outcome { rule: rule.and_then(named), ..local(reply) },
        Ok(Decision::Forward(plan)) => {
            let rule = named(plan.rule);
            let shown = explained.route.as_ref().map(|route| format!("{}/{}/{}", route.namespace, route.name, route.rule));
            ensure!(rule.is_none() || shown == rule, "explain names {shown:?}, the decision {rule:?}");
            let (outcome, place) = forwarded(&plan, ask, (head.clone(), draw), (address.port(), now, false))?;
            return Ok((Outcome { rule, ..outcome }, place));
        }
    };
    outcome.took = Duration::ZERO;
    let place = Some(outcome.status.to_string());
    Ok((outcome, place))
}

fn local(reply: &LocalReply) -> Outcome {
    let mut headers = HeaderMap::new();
    headers.extend(reply.headers.iter().cloned());
    if let Some(reason) = reply.reason {
        headers.insert("x-meshwright-reason", reason.header());
    }
    Outcome { status: reply.status.as_u16(), headers, ..Outcome::default() }
}

fn forwarded(
    plan: &Plan<'_>,
    ask: &Ask,
    (mut parts, draw): (request::Parts, u64),
    (port, now, tls): (u16, Moment, bool),
) -> anyhow::Result<(Outcome, Option<String>)> {
    let Plan { forward, place, target, .. } = *plan;
    let mut took = Duration::ZERO;
    let caller = IpAddr::from([10, 9, 0, 2]);
    let called = Called { port, tls };
    let mut exchange = Exchange { request: &mut parts, caller: None, address: caller, called, watch: None, now, draw };
    let answered = forward.answered(&exchange);
    let own = |reply: &LocalReply| {
        let mut outcome = local(reply);
        forward.show(place, &answered, &mut outcome.headers);
        outcome
    };
    let mut from = Resume::START;
    loop {
        match forward.forth(place, from, &mut exchange) {
            Passage::Through => break,
            Passage::Answered(reply) | Passage::Aborted { reply, .. } => return Ok((Outcome { took, ..own(&reply) }, None)),
            Passage::Cut { .. } => return Ok((Outcome { took, ..Outcome::default() }, None)),
            Passage::Wait { delay, next, .. } => (took, from) = (took + delay, next),
            Passage::Ask { .. } => anyhow::bail!("a case has no passwords to verify"),
        }
    }
    let mirrored =
        forward.mirrors_for(place, draw).filter_map(|(cluster, _)| endpoint(cluster, draw).map(|pod| saw(&parts, pod))).collect();
    let pod = match target {
        Err(reply) => return Ok((Outcome { took, mirrored, ..own(reply) }, Some(reply.status.as_u16().to_string()))),
        Ok(cluster) => match endpoint(cluster, draw) {
            Some(pod) => pod,
            None => {
                let reply = LocalReply::of(engine::failure::Reason::NoEndpoints);
                return Ok((Outcome { took, mirrored, ..own(&reply) }, Some("503".to_owned())));
            }
        },
    };
    let service = target.ok().map(|cluster| place_of(cluster));
    let mut headers = HeaderMap::new();
    for (name, value) in ask.answer.iter().flat_map(|answer| &answer.headers) {
        headers.append(http::HeaderName::try_from(name)?, HeaderValue::from_str(value)?);
    }
    let status = ask.answer.as_ref().map_or(200, |answer| answer.status);
    forward.back(place, &answered, &mut headers);
    let seen = vec![saw(&parts, pod.clone())];
    let grpc = (ask.proto == Proto::Grpc).then(|| ask.answer.as_ref().map_or(0, |answer| answer.grpc));
    Ok((Outcome { status, headers, pod, seen, mirrored, took, rule: None, grpc }, service))
}

/// A backend as the oracle calls it.
fn place_of(cluster: &Cluster) -> String {
    let Cluster { name, namespace, service, .. } = cluster;
    if name.starts_with("pod/") { service.to_string() } else { format!("{service}.{namespace}") }
}

fn endpoint(cluster: &Cluster, draw: u64) -> Option<String> {
    let set = cluster.endpoints.load_full();
    let choice = Choice { draw, hash: None, tried: &[], now: Moment::default(), trials: true };
    balance::pick(cluster, &set, &choice).map(|endpoint| endpoint.instance.to_string())
}

fn saw(parts: &request::Parts, pod: String) -> Seen {
    let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Seen { pod, method: parts.method.to_string(), path, host: head.host.to_owned(), headers: parts.headers.clone(), body: String::new() }
}

/// One connection that carries bytes.
fn bytes(snapshot: &Snapshot, address: SocketAddr, (first, draw): (&Sniffed, u64)) -> anyhow::Result<(Outcome, Option<String>)> {
    let listener = snapshot.outbound.get(&address).context("no listener")?;
    let Some(forward) = decide::carried(listener, Some(First::Client(first))) else {
        return Ok((Outcome::default(), Some("404".to_owned())));
    };
    let pod = match opaque(forward, draw) {
        Some(cluster) => endpoint(cluster, draw),
        None => return Ok((Outcome::default(), Some("500".to_owned()))),
    };
    let Some(pod) = pod else { return Ok((Outcome::default(), Some("503".to_owned()))) };
    let place = opaque(forward, draw).map(place_of);
    ensure!(place.as_deref().is_some_and(|place| place.starts_with(backend_of(&pod))), "{pod} is not of {place:?}");
    Ok((Outcome { status: 200, pod, ..Outcome::default() }, place))
}

fn opaque(forward: &Forward, draw: u64) -> Option<&Cluster> {
    match &decide::choose(forward, draw)?.target {
        Target::Cluster(cluster) => Some(cluster),
        Target::Reply(_) => None,
    }
}
