//! `get`: what is live, as `kinds.md` prints it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use proto::mesh::{DumpCommand, GetRequest, command};
use serde_json::{Value, json};
use tonic::Status;

use super::away::Away;
use super::keys::KeysAway;
use super::live::Ledger;
use super::{PATIENCE, audit, consumers};
use crate::publish::board::{Board, Presence, holders};
use crate::publish::calls::KEPT;
use crate::publish::edition::Edition;
use crate::publish::epoch::{Entry, moment};
use crate::publish::peer::{edge_key, of_key, replica_key, sidecar_key};
use crate::publish::plaintext::{Sighting, refused};
use crate::serve::authority::SharedAuthority;
use crate::store::Store;
use crate::translate::{AcmeName, EdgeCertificate, Status as ObjectStatus, acme_names, acme_row, edge_certificates, statuses, suggest};
use crate::world::key::ObjectKey;
use crate::world::problem::{Problem, Severity};
use crate::world::{Versions, World};

/// Proxies asked at a time.
const ASKED_MAX: usize = 256;

pub(super) async fn rows(
    board: &Arc<Board>,
    authority: &SharedAuthority,
    edition: &Edition,
    request: &GetRequest,
) -> Result<Value, Status> {
    let wanted = Filters { namespace: &request.namespace, name: &request.name };
    match request.kind.as_str() {
        "objects" => Ok(objects((&board.read(Ledger::read), (&KeysAway::read(board), &Away::read(board))), edition, &wanted)),
        "consumers" => Ok(consumers::rows(edition, |namespace, name| wanted.fits(namespace, &[name]))),
        "proxies" => Ok(wanted.filter(proxies(board))),
        "listeners" | "routes" | "clusters" | "endpoints" | "policies" => Ok(dumps(board, &request.kind, &wanted).await),
        "certs" => Ok(wanted.filter(certs(board, authority.clone(), edition).await?)),
        "epochs" => {
            let meant = |entry: &&Entry| wanted.name.is_empty() || entry.number.to_string() == wanted.name;
            Ok(board.read(|book| book.newest_first().filter(meant).map(Entry::row).collect()))
        }
        "plaintext" => Ok(plaintext(board, &wanted)),
        "egress" => Ok(egress(board, &wanted)),
        "audit" | "refusals" => audit::rows(authority.clone(), request).await,
        "limits" => Ok(limits(board, &wanted).await),
        "traffic" => Ok(traffic(board, &wanted)),
        "suggestions" => Ok(suggestions(board, edition, request)),
        other => Err(Status::invalid_argument(format!(
            "there is no `{other}` to get; there are objects, consumers, proxies, listeners, routes, clusters, endpoints, policies, certs, epochs, plaintext, egress, limits, traffic, suggestions, audit, refusals"
        ))),
    }
}

/// Filters of the command line.
struct Filters<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Filters<'_> {
    fn fits(&self, namespace: &str, names: &[&str]) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace) && (self.name.is_empty() || names.contains(&self.name))
    }

    /// Keeps rows whose workload or instance is meant.
    fn filter(&self, rows: Vec<Value>) -> Value {
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let fits = |row: &Value| self.fits(&text(row, "namespace"), &[&text(row, "workload"), &text(row, "instance")]);
        rows.into_iter().filter(fits).collect()
    }

    /// Whether a proxy, by its key, of that workload is meant.
    fn proxy(&self, key: &str, workload: &str) -> bool {
        of_key(key).is_some_and(|(namespace, instance, _)| self.fits(namespace, &[instance, workload]))
    }
}

fn objects((ledger, (keys, away)): (&Ledger, (&KeysAway, &Away)), edition: &Edition, wanted: &Filters<'_>) -> Value {
    let mut statuses = statuses(&edition.world);
    for (key, status) in &mut statuses {
        ledger.complete(key, status);
        if let Some(object) = edition.world.get(key) {
            keys.complete(object, status);
            away.complete(object, status);
        }
    }
    let slots = edition.world.slots().iter().filter(|(key, _)| wanted.fits(&key.namespace, &[&key.name]));
    slots.map(|(key, slot)| object(edition, key, slot, statuses.get(key))).collect()
}

/// One row per open stream.
fn proxies(board: &Board) -> Vec<Value> {
    let row = |presence: Presence| {
        let key = presence.key;
        let told = board.correspondent(&key, |correspondent| (correspondent.version.clone(), correspondent.pid));
        let (version, pid) = told.unwrap_or_default();
        json!({
            "namespace": presence.claim.namespace,
            "workload": presence.claim.workload,
            "instance": if presence.claim.replica.is_empty() { &presence.claim.instance } else { &presence.claim.replica },
            "identity": presence.identity,
            "kind": presence.claim.client.text(),
            "mode": presence.claim.mode_text(),
            "version": version,
            "epoch": board.running(&key),
            "connected_since": moment(presence.connected_ms),
            "pid": (pid != 0).then_some(pid),
        })
    };
    board.present().into_iter().map(row).collect()
}

fn object(edition: &Edition, key: &ObjectKey, slot: &Versions, status: Option<&ObjectStatus>) -> Value {
    let live = slot.live();
    let mut row = live.or(slot.refused()).map(|version| version.document()).unwrap_or_else(|| json!({}));
    row["kind"] = key.kind.text().into();
    row["namespace"] = key.namespace.as_str().into();
    row["name"] = key.name.as_str().into();
    row["live"] = live.is_some().into();
    row["source"] = slot.origin().map_or(Value::Null, |origin| origin.text().into());
    if let Some(version) = live {
        row["file"] = version.file.as_str().into();
        row["line"] = version.line.into();
        if let Some(object) = &version.object {
            row["created"] = u64::try_from(edition.world.created_ms(object)).map(moment).unwrap_or_default().into();
        }
    }
    row["status"] = json!(status);
    if let Some(refused) = slot.refused() {
        let errors: Vec<_> = refused.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
        row["error"] = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ").into();
        row["refused"] = json!({"file": refused.file, "line": refused.line, "problems": refused.problems, "object": refused.document()});
    }
    row
}

/// Errors and warnings now in force, as `analyze -o json` prints them.
pub(super) fn problems(board: &Board, store: &Store, authority: &SharedAuthority, edition: &Edition) -> Value {
    let mut problems = edition.world.problems();
    let own = |message: String, remedy: &str| Problem::of_file(Severity::Error, "", 0, message, remedy);
    for (resource, reason) in board.cache.refused() {
        let message = format!("the proxy's engine refuses {resource}: {reason}");
        problems.push(own(message, "a last good version stays, policies without one let nobody in; mend what `analyze` names, or report this with `meshwright get objects -o yaml`"));
    }
    problems.extend(refused(&edition.world, &board.plaintext()));
    problems.extend(store.failure().map(|failure| own(failure, "")));
    problems
        .extend(authority.failure().map(|failure| own(failure, "free some space in the data folder; they are written when it takes them")));
    json!(problems)
}

/// The workload of each connected proxy.
fn workloads(board: &Board) -> BTreeMap<String, String> {
    board.present().into_iter().map(|presence| (presence.key, presence.claim.workload)).collect()
}

/// Asks every proxy that is meant what it runs.
async fn dumps(board: &Arc<Board>, kind: &str, wanted: &Filters<'_>) -> Value {
    let present = workloads(board);
    let keys: Vec<String> = board
        .correspondents()
        .into_iter()
        .filter(|key| wanted.proxy(key, present.get(key).map(String::as_str).unwrap_or_default()))
        .collect();
    let mut rows = serde_json::Map::new();
    for some in keys.chunks(ASKED_MAX) {
        let asked = some.iter().map(|key| async move {
            let question = command::Kind::Dump(DumpCommand { kind: kind.to_owned() });
            let answer = board
                .ask(key, question, PATIENCE)
                .await
                .and_then(|json| serde_json::from_str::<Value>(&json).map_err(|error| format!("its answer does not read: {error}")));
            (key.clone(), answer.unwrap_or_else(|error| json!([{"error": error}])))
        });
        rows.extend(join_all(asked).await);
    }
    Value::Object(rows)
}

/// How keys of limits stand: what proxies count together once, by the proxy that knows of the least that is left; what each counts for itself
/// by proxy.
async fn limits(board: &Arc<Board>, wanted: &Filters<'_>) -> Value {
    let everybody = Filters { namespace: "", name: "" };
    let Value::Object(told) = dumps(board, "limits", &everybody).await else { return json!([]) };
    let mut rows: BTreeMap<[String; 5], Value> = BTreeMap::new();
    for (proxy, own) in told {
        let Value::Array(own) = own else { continue };
        for mut row in own {
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let [namespace, name, limit, key] = ["namespace", "name", "limit", "key"].map(text);
            // A proxy that does not answer has no such fields.
            if limit.is_empty() || !wanted.fits(&namespace, &[&name]) {
                continue;
            }
            let shared = row["store"] != "own";
            let resets_ms = row["resets_at_secs"].as_i64().unwrap_or_default().saturating_mul(1000);
            if let Some(fields) = row.as_object_mut() {
                fields.remove("resets_at_secs");
                fields.insert("resets_at".to_owned(), u64::try_from(resets_ms).map(moment).unwrap_or_default().into());
                if !shared {
                    fields.insert("proxy".to_owned(), proxy.as_str().into());
                }
            }
            let place = [namespace, name, limit, key, if shared { String::new() } else { proxy.clone() }];
            let left = |row: &Value| row["remaining"].as_u64().unwrap_or(u64::MAX);
            match rows.get(&place) {
                Some(known) if left(known) <= left(&row) => {}
                _ => _ = rows.insert(place, row),
            }
        }
    }
    rows.into_values().collect()
}

/// Leaves of what is declared or connected; the authority's book also remembers what was there before.
async fn certs(board: &Board, authority: SharedAuthority, edition: &Edition) -> Result<Vec<Value>, Status> {
    let told = tokio::task::spawn_blocking(move || (authority.issued(), authority.roots().fingerprints())).await;
    let (issued, bundle) = told.map_err(|_| Status::internal("reading the authority's book ended unexpectedly"))?;
    let row = |leaf: crate::serve::authority::Issued| {
        let used = |key: String| board.correspondent(&key, |correspondent| correspondent.certificate.clone()).flatten();
        let used = holders(&edition.world, leaf.place()).find_map(used);
        let trusted = used.as_ref().map(|used| used.trust_bundle.clone()).filter(|trusted| !trusted.is_empty());
        json!({
            "namespace": leaf.namespace,
            "workload": leaf.workload,
            "instance": leaf.instance,
            "identity": leaf.identity,
            "serial": leaf.serial,
            "not_before": leaf.not_before,
            "not_after": leaf.not_after,
            "issuer": leaf.issuer,
            "holder": if leaf.for_application { "Application" } else { "Proxy" },
            "trust_bundle": trusted.unwrap_or_else(|| bundle.clone()),
        })
    };
    let (index, present) = (edition.world.index(), workloads(board));
    let there = |leaf: &crate::serve::authority::Issued| {
        let name = (leaf.namespace.clone(), leaf.instance.clone());
        let declared = index.instances.contains_key(&name) || index.gateways.contains_key(&name);
        // A Gateway's pods are known by their streams only.
        let replica = replica_key(&leaf.namespace, &leaf.workload, &leaf.instance);
        let keys = [sidecar_key(&name.0, &name.1), edge_key(&name.0, &name.1), replica];
        declared || keys.iter().any(|key| present.contains_key(key))
    };
    let mut rows: Vec<Value> = issued.into_iter().filter(there).map(row).collect();
    rows.extend(shown_by_edges(&edition.world));
    Ok(rows)
}

/// Certificates that edges show, and those that are ordered for them and have not come.
fn shown_by_edges(world: &World) -> Vec<Value> {
    let names = acme_names(world);
    let at = |ms: i64| moment(u64::try_from(ms).unwrap_or_default());
    let mut rows = Vec::new();
    let shown_now = edge_certificates(world);
    for shown in &shown_now {
        let mut row = edge_row(shown);
        if let Some(name) = names.iter().find(|name| name.secret == shown.secret) {
            row["acme"] = acme_row(world, name, at);
        }
        rows.push(row);
    }
    let bare = |name: &&AcmeName| !shown_now.iter().any(|shown| shown.secret == name.secret);
    for name in names.iter().filter(bare) {
        let standing = world.acme().orders.get(&name.secret);
        let problem = name.barred.clone().or_else(|| standing.and_then(|standing| standing.problem.clone()));
        for gateway in &name.gateways {
            rows.push(json!({
                "namespace": gateway.0,
                "workload": gateway.1,
                "instance": gateway.1,
                "identity": name.host,
                "serial": null,
                "not_before": null,
                "not_after": null,
                "issuer": null,
                "holder": "Edge",
                "secret": format!("{}/{}", name.secret.namespace, name.secret.name),
                "problem": problem,
                "trust_bundle": [],
                "acme": acme_row(world, name, at),
            }));
        }
    }
    rows
}

/// A certificate that an edge shows, which its owner put into a Secret.
fn edge_row(shown: &EdgeCertificate<'_>) -> Value {
    let at = |ms: i64| moment(u64::try_from(ms).unwrap_or_default());
    json!({
        "namespace": shown.gateway.0,
        "workload": shown.gateway.1,
        "instance": shown.gateway.1,
        "identity": shown.certificate.names.join(", "),
        "serial": shown.certificate.serial,
        "not_before": at(shown.certificate.begins_ms),
        "not_after": at(shown.certificate.ends_ms),
        "issuer": shown.certificate.issuer,
        "holder": "Edge",
        "secret": format!("{}/{}", shown.secret.namespace, shown.secret.name),
        "problem": shown.fault.as_ref().map(ToString::to_string).or_else(|| shown.certificate.staple_refused()),
        "trust_bundle": [],
    })
}

/// Sources have names where their addresses are declared ones: most are workloads that have not joined the mesh.
fn plaintext(board: &Board, wanted: &Filters<'_>) -> Value {
    let sightings = board.plaintext();
    let meant = |sighting: &&Sighting| wanted.fits(&sighting.namespace, &[&sighting.workload]);
    sightings.iter().filter(meant).map(Sighting::row).collect()
}

/// Calls past the mesh that were cut, or that an audit would cut: what each connected proxy has counted since its start.
fn egress(board: &Board, wanted: &Filters<'_>) -> Value {
    let present = workloads(board);
    let mut rows = Vec::new();
    for key in board.correspondents().into_iter().filter(|key| wanted.proxy(key, present.get(key).map_or("", String::as_str))) {
        let calls = board.correspondent(&key, |correspondent| correspondent.traffic.egress.clone()).unwrap_or_default();
        rows.extend(calls.into_iter().map(|call| {
            json!({
                "source": key,
                "destination": call.destination,
                "port": call.port,
                "verdict": if call.cut { "Deny" } else { "Audit" },
                "why": call.why,
                "calls": call.count,
                "last_seen": call.last_seen,
            })
        }));
    }
    Value::Array(rows)
}

/// Policies that allow what was seen.
fn suggestions(board: &Board, edition: &Edition, request: &GetRequest) -> Value {
    let within = request.since.and_then(|since| Duration::try_from(since).ok()).unwrap_or(KEPT);
    let observed = board.calls(|calls| calls.observed(within, board.clock.ms()));
    json!(suggest(&edition.world, &observed, (&request.namespace, &request.name)))
}

fn traffic(board: &Board, wanted: &Filters<'_>) -> Value {
    let mut rows = serde_json::Map::new();
    for key in board.correspondents().into_iter().filter(|key| wanted.proxy(key, "")) {
        let services = board.correspondent(&key, |correspondent| correspondent.traffic.services.clone()).unwrap_or_default();
        let row = |service: proto::mesh::ServiceTraffic| {
            json!({
                "direction": service.direction,
                "namespace": service.namespace,
                "service": service.service,
                "requests": service.requests,
                "failures": service.failures,
                "duration_buckets": service.duration_buckets,
                "duration_sum_ms": service.duration_sum_secs * 1000.0,
            })
        };
        rows.insert(key, services.into_iter().map(row).collect());
    }
    Value::Object(rows)
}
