//! `wait`: until the mesh is live, as `kinds.md` defines it ("Live means").

use std::sync::Arc;
use std::time::Duration;

use proto::mesh::{Progress, WaitRequest};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::apply::some_of;
use super::ready::{Scope, behind, silent, unready};
use super::{last, timeout};
use crate::publish::board::Board;
use crate::publish::epoch::Entry;

/// Look again at least this often: presence of proxies turns no page of the book.
const LOOK: Duration = Duration::from_millis(500);

/// Where a wait stands.
struct Standing {
    entry: Option<Entry>,
    /// Declared instances and Gateways that are not started and ready.
    down: Vec<String>,
    /// All that is waited for; what is down comes first.
    laggards: Vec<String>,
}

pub(super) async fn run(board: Arc<Board>, request: WaitRequest, sender: mpsc::Sender<Result<Progress, Status>>) {
    let deadline = Instant::now() + timeout(request.timeout);
    let mut turns = board.turns();
    // 0 means the newest at the time of the call, which is known once the folder has been read.
    let mut number = request.epoch;
    let mut told = String::new();
    let mut since = None;
    loop {
        let caught = board.concerns.caught();
        tokio::pin!(caught);
        // Who catches up from here on wakes it.
        let _ = futures::poll!(caught.as_mut());
        if number == 0 {
            number = board.entry(0).map_or(0, |entry| entry.number);
        }
        let standing = look(&board, number, &mut since);
        let refused = standing.entry.as_ref().is_some_and(|entry| entry.settled() && !entry.refused.is_empty());
        let live = standing.laggards.is_empty() && !refused;
        if live || refused || Instant::now() >= deadline {
            // The receiver is gone when the caller is; nobody is left to tell.
            let _ = sender.send(Ok(last(&result(number, live, &standing), live))).await;
            return;
        }
        let line = format!("waiting for {}", some_of(standing.laggards.iter().map(String::as_str)));
        if line != told && sender.send(Ok(Progress { waiting_for: line.clone(), ..Progress::default() })).await.is_err() {
            return;
        }
        told = line;
        let until = deadline.min(Instant::now() + LOOK);
        let news = async {
            tokio::select! {
                _ = turns.changed() => {}
                () = caught => {}
            }
        };
        // A timeout only means: look again.
        let _ = timeout_at(until, news).await;
    }
}

fn result(number: u64, live: bool, standing: &Standing) -> serde_json::Value {
    let mut proxies = standing.entry.as_ref().map_or_else(|| json!({"concerned": 0, "unaffected": 0}), Entry::counts);
    proxies["waiting"] = json!(standing.laggards);
    let refused = standing.entry.as_ref().map(|entry| entry.refused.clone()).unwrap_or_default();
    json!({"epoch": number, "live": live, "proxies": proxies, "down": standing.down, "refused": refused})
}

/// `since`: the edition with which all else was as it should be, of which every proxy has to have answered everything.
fn look(board: &Board, number: u64, since: &mut Option<u64>) -> Standing {
    let Some(edition) = board.edition() else {
        return Standing { entry: None, down: Vec::new(), laggards: vec!["the manifests to be read".to_owned()] };
    };
    let entry = board.entry(number);
    let down = unready(&edition, &Scope::Mesh);
    let mut laggards = down.clone();
    if edition.epoch < number {
        laggards.push(format!("epoch {number} (the newest is {})", edition.epoch));
    }
    laggards.extend(entry.iter().flat_map(|entry| silent(board, entry, &down)));
    if laggards.is_empty() {
        laggards = behind(board, *since.get_or_insert(edition.serial));
    } else {
        *since = None;
    }
    Standing { entry, down, laggards }
}
