//! `apply` and `delete`: one change, one epoch; with `wait`, until every proxy concerned has answered and what it declares is ready.

use std::sync::Arc;

use proto::mesh::{ApplyRequest, Progress};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::ready::{Scope, behind, silent, unready};
use super::{last, timeout};
use crate::publish::board::{Board, Errand, Receipt};
use crate::publish::epoch::Entry;

/// Files of one request.
const DOCUMENTS_MAX: usize = 10_000;

pub(super) async fn run(board: Arc<Board>, request: ApplyRequest, sender: mpsc::Sender<Result<Progress, Status>>) {
    let began = Instant::now();
    // The receiver is gone when the caller is; nobody is left to tell.
    let _ = match change(&board, &request).await {
        Err(status) => sender.send(Err(status)).await,
        Ok(Err(reasons)) => {
            let newest = board.entry(0).map_or(0, |entry| entry.number);
            let errors: Vec<&str> = reasons.lines().collect();
            let mut json = json!({"epoch": newest, "objects": [], "warnings": [], "errors": errors});
            if request.wait {
                json["live"] = false.into();
                json["live_ms"] = serde_json::Value::Null;
                json["proxies"] = Entry::default().counts();
                json["down"] = json!([]);
                json["refused"] = json!([]);
            }
            sender.send(Ok(last(&json, false))).await
        }
        Ok(Ok(outcome)) if !request.wait => sender.send(Ok(last(&head(&outcome), true))).await,
        Ok(Ok(outcome)) => {
            let scope = if request.delete { Scope::none() } else { Scope::of(&outcome.objects) };
            let standing = settled(&board, outcome.epoch, &scope, began + timeout(request.timeout), &sender).await;
            let live = standing.live();
            let mut json = head(&outcome);
            json["live"] = live.into();
            json["live_ms"] = json!(standing.live_ms(began).filter(|_| live));
            json["proxies"] = standing.entry.as_ref().map_or_else(|| Entry::default().counts(), Entry::counts);
            json["proxies"]["waiting"] = json!(standing.laggards);
            json["down"] = json!(standing.down);
            json["refused"] = json!(standing.entry.map(|entry| entry.refused).unwrap_or_default());
            sender.send(Ok(last(&json, live))).await
        }
    };
}

fn head(outcome: &Receipt) -> serde_json::Value {
    json!({"epoch": outcome.epoch, "objects": outcome.objects, "warnings": outcome.warnings})
}

async fn change(board: &Board, request: &ApplyRequest) -> Result<Result<Receipt, String>, Status> {
    if request.documents.is_empty() {
        return Err(Status::invalid_argument("nothing to apply: no file was given"));
    }
    if request.documents.len() > DOCUMENTS_MAX {
        return Err(Status::invalid_argument(format!("more than {DOCUMENTS_MAX} files at once")));
    }
    let documents = request.documents.iter().map(|document| (document.path.clone(), document.text.clone())).collect();
    let (reply, answer) = oneshot::channel();
    let stopping = || Status::unavailable("the control plane is stopping");
    if !board.send(Errand::Apply { documents, delete: request.delete, reply }).await {
        return Err(stopping());
    }
    answer.await.map_err(|_| stopping())
}

/// Where a change stands.
struct ChangeStanding {
    /// The epoch's; `None`: it is forgotten, or the caller is gone.
    entry: Option<Entry>,
    /// Declared by the change, and not ready.
    down: Vec<String>,
    /// All that is waited for, what is down first.
    laggards: Vec<String>,
    /// Whether something declared had to be waited for.
    started: bool,
}

impl ChangeStanding {
    fn live(&self) -> bool {
        self.laggards.is_empty() && self.entry.as_ref().is_some_and(Entry::live)
    }

    /// Until the last acknowledgement, or since `began` where instances or Gateways had to start.
    fn live_ms(&self, began: Instant) -> Option<f64> {
        if self.started { Some(began.elapsed().as_secs_f64() * 1000.0) } else { self.entry.as_ref()?.live_ms }
    }
}

/// Waits until an epoch has all its answers and what the change declares is ready. A refusal ends it, and so does the deadline.
async fn settled(
    board: &Board,
    number: u64,
    scope: &Scope,
    deadline: Instant,
    sender: &mpsc::Sender<Result<Progress, Status>>,
) -> ChangeStanding {
    let mut turns = board.turns();
    let (mut told, mut started, mut since) = (String::new(), false, None);
    loop {
        let caught = board.concerns.caught();
        tokio::pin!(caught);
        // Who catches up from here on wakes it.
        let _ = futures::poll!(caught.as_mut());
        // An epoch may be the folder's too, which has been live for long.
        let entry = board.entry(number);
        let edition = board.edition();
        let down = edition.as_ref().map(|edition| unready(edition, scope)).unwrap_or_default();
        started |= !down.is_empty();
        let mut laggards: Vec<String> = down.iter().cloned().chain(entry.iter().flat_map(|entry| silent(board, entry, &down))).collect();
        if laggards.is_empty() {
            laggards = edition.map(|edition| behind(board, *since.get_or_insert(edition.serial))).unwrap_or_default();
        } else {
            since = None;
        }
        let over = entry.as_ref().is_none_or(|entry| entry.settled() && (laggards.is_empty() || !entry.refused.is_empty()));
        if over || Instant::now() >= deadline {
            return ChangeStanding { entry, down, laggards, started };
        }
        let line = format!("epoch {number}: waiting for {}", some_of(laggards.iter().map(String::as_str)));
        if line != told && sender.send(Ok(Progress { waiting_for: line.clone(), ..Progress::default() })).await.is_err() {
            return ChangeStanding { entry: None, down, laggards, started };
        }
        told = line;
        let news = async {
            tokio::select! {
                _ = turns.changed() => {}
                () = caught => {}
            }
        };
        // Past the deadline it is looked at once more.
        let _ = timeout_at(deadline, news).await;
    }
}

/// The first few of many names.
pub(super) fn some_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 5;
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        // Aim: a line for a terminal stays a line.
        assert_eq!(some_of(["a", "b"].into_iter()), "a, b");
        assert_eq!(some_of(["a"; 8].into_iter()), "a, a, a, a, a and 3 more");
    }
}
