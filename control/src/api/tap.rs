//! `tap`: asks the proxies concerned to show requests as they end, and hands on what they show. The leases are renewed while the watcher takes
//! what it is sent; one that takes nothing any more, and one whose control plane is gone, is forgotten by the proxies themselves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::mesh::{TapCommand, TapNews, TapRequest, command};
use proto::names::Mode;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::publish::peer::Claim;
use crate::publish::taps::{TAPS_MAX, Tap};

/// How long a proxy shows what nobody asks for any more.
const LEASE: Duration = Duration::from_secs(10);
/// How often leases are renewed, and proxies that are new are asked.
const RENEW: Duration = Duration::from_secs(2);
/// Lines that a proxy may send in a second where nobody says otherwise.
const LINES_PER_SEC: u32 = 100;
/// Before the name of a Gateway, whose proxies are no instances.
const GATEWAY: &str = "gateway/";

/// A tap with the names of those that it is about, which are told when it ends.
pub(super) struct Aimed {
    tap: Tap,
    board: Arc<Board>,
    keys: BTreeSet<String>,
}

/// Begins a tap.
pub(super) fn begin(board: &Arc<Board>, edition: &Edition, request: &TapRequest) -> Result<Aimed, Status> {
    let keys = concerned(board, request);
    if keys.is_empty() {
        return Err(nobody(edition, request));
    }
    let tap = board.tap().ok_or_else(|| Status::resource_exhausted(format!("{TAPS_MAX} taps are open already; end one first")))?;
    Ok(Aimed { tap, board: Arc::clone(board), keys: BTreeSet::new() })
}

/// Hands on what proxies show, until the watcher is gone.
pub(super) async fn run(board: Arc<Board>, mut tap: Aimed, request: TapRequest, sender: mpsc::Sender<Result<TapNews, Status>>) {
    let mut every = interval(RENEW);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        let news = tokio::select! {
            biased;
            _ = every.tick() => {
                tap.aim(concerned(&board, &request), &request);
                let proxies = u32::try_from(tap.keys.len()).unwrap_or(u32::MAX);
                if told.replace(proxies) == Some(proxies) {
                    continue;
                }
                let several = if proxies == 1 { "proxy" } else { "proxies" };
                TapNews { note: format!("watching {proxies} {several}"), ..TapNews::default() }
            }
            news = tap.tap.news() => match news {
                Some(news) => news,
                None => return,
            },
        };
        let news = TapNews { proxies: told.unwrap_or_default(), ..news };
        // While it waits here no lease is renewed.
        if sender.send(Ok(news)).await.is_err() {
            return;
        }
    }
}

impl Aimed {
    /// Renews the leases of these proxies, and ends those of others.
    fn aim(&mut self, keys: BTreeSet<String>, request: &TapRequest) {
        let gone = self.tap.aim(&keys);
        gone.iter().for_each(|key| self.tell(key, TapCommand::default()));
        let lines_per_sec = Some(request.lines_per_sec).filter(|lines| *lines > 0).unwrap_or(LINES_PER_SEC);
        let lease = prost_types::Duration::try_from(LEASE).ok();
        for key in &keys {
            self.tell(key, TapCommand { filter: request.filter.clone(), lease, lines_per_sec });
        }
        self.keys = keys;
    }

    /// One that has too much to do is told at the next turn; its lease lasts for several.
    fn tell(&self, key: &str, command: TapCommand) {
        self.board.tell(key, self.tap.id, command::Kind::Tap(command));
    }
}

impl Drop for Aimed {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.tell(key, TapCommand::default()));
    }
}

/// Keys of the connected proxies that are meant.
fn concerned(board: &Board, request: &TapRequest) -> BTreeSet<String> {
    let talks: BTreeSet<String> = board.correspondents().into_iter().collect();
    let present = board.present().into_iter().filter(|presence| presence.counts && fits(request, &presence.claim));
    present.map(|presence| presence.key).filter(|key| talks.contains(key)).collect()
}

fn fits(request: &TapRequest, claim: &Claim) -> bool {
    let named = match request.workload.strip_prefix(GATEWAY) {
        Some(gateway) => claim.mode == Mode::Edge && claim.workload == gateway,
        None => request.workload.is_empty() || [&claim.workload, &claim.instance, &claim.replica].contains(&&request.workload),
    };
    named && (request.namespace.is_empty() || claim.namespace == request.namespace)
}

/// Why nobody is meant.
fn nobody(edition: &Edition, request: &TapRequest) -> Status {
    let name = request.workload.strip_prefix(GATEWAY).unwrap_or(&request.workload);
    let index = edition.world.index();
    let fits = |(namespace, known): &(String, String)| known == name && (request.namespace.is_empty() || *namespace == request.namespace);
    let declared = name.is_empty() || index.workloads.keys().chain(index.instances.keys()).chain(index.gateways.keys()).any(fits);
    let within = if request.namespace.is_empty() { String::new() } else { format!(" in namespace {}", request.namespace) };
    if declared {
        let whose = if name.is_empty() { "no proxy".to_owned() } else { format!("no proxy of {}", request.workload) };
        Status::failed_precondition(format!("{whose} is connected{within}; see `meshwright get proxies`"))
    } else {
        Status::not_found(format!("there is no workload, instance or Gateway {name}{within}; see `meshwright get proxies`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::peer::Dialect;

    /// Aim: a namespace, a workload, an instance and a Gateway each mean just their proxies.
    #[test]
    fn proxies_are_meant_by_name() {
        let claim = |mode: Mode, namespace: &str, workload: &str, instance: &str, replica: &str| {
            let [namespace, workload, instance, replica] = [namespace, workload, instance, replica].map(str::to_owned);
            Claim { client: Dialect::Meshwright, mode, namespace, workload, instance, replica }
        };
        let claims = [
            claim(Mode::Sidecar, "shop", "catalog", "catalog-0", ""),
            claim(Mode::Sidecar, "shop", "edge", "edge", ""),
            claim(Mode::Edge, "shop", "edge", "edge", "pod-1"),
            claim(Mode::Sidecar, "other", "catalog", "catalog", ""),
        ];
        for (namespace, workload, wanted) in [
            ("", "", &[0, 1, 2, 3][..]),
            ("shop", "", &[0, 1, 2]),
            ("", "catalog", &[0, 3]),
            ("shop", "catalog", &[0]),
            ("shop", "catalog-0", &[0]),
            ("shop", "edge", &[1, 2]),
            ("shop", "gateway/edge", &[2]),
            ("shop", "pod-1", &[2]),
            ("shop", "nobody", &[]),
        ] {
            let request = TapRequest { namespace: namespace.to_owned(), workload: workload.to_owned(), ..TapRequest::default() };
            let meant: Vec<usize> = (0..claims.len()).filter(|at| fits(&request, &claims[*at])).collect();
            assert_eq!(meant, wanted, "{namespace} {workload}");
        }
    }
}
