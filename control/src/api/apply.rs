//! `apply` and `delete`: one change, one epoch; with `wait`, until every proxy concerned has answered.

use std::sync::Arc;
use std::time::Instant;

use proto::mesh::{ApplyRequest, Progress};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::{last, timeout};
use crate::publish::board::{Board, Event, Outcome};
use crate::publish::epoch::Entry;

/// Files of one request.
const DOCUMENTS_MAX: usize = 10_000;

pub(super) async fn run(board: Arc<Board>, request: ApplyRequest, sender: mpsc::Sender<Result<Progress, Status>>) {
    let deadline = Instant::now() + timeout(request.timeout);
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
                json["refused"] = json!([]);
            }
            sender.send(Ok(last(&json, false))).await
        }
        Ok(Ok(outcome)) if !request.wait => sender.send(Ok(last(&head(&outcome), true))).await,
        Ok(Ok(outcome)) => {
            let entry = settled(&board, outcome.epoch, deadline, &sender).await;
            let mut json = head(&outcome);
            let live = entry.as_ref().is_some_and(Entry::live);
            json["live"] = live.into();
            json["live_ms"] = json!(entry.as_ref().and_then(|entry| entry.live_ms));
            json["proxies"] = entry.as_ref().map_or_else(|| Entry::default().counts(), Entry::counts);
            json["refused"] = json!(entry.map(|entry| entry.refused).unwrap_or_default());
            sender.send(Ok(last(&json, live))).await
        }
    };
}

fn head(outcome: &Outcome) -> serde_json::Value {
    json!({"epoch": outcome.epoch, "objects": outcome.objects, "warnings": outcome.warnings})
}

async fn change(board: &Board, request: &ApplyRequest) -> Result<Result<Outcome, String>, Status> {
    if request.documents.is_empty() {
        return Err(Status::invalid_argument("nothing to apply: no file was given"));
    }
    if request.documents.len() > DOCUMENTS_MAX {
        return Err(Status::invalid_argument(format!("more than {DOCUMENTS_MAX} files at once")));
    }
    let documents = request.documents.iter().map(|document| (document.path.clone(), document.text.clone())).collect();
    let (reply, answer) = oneshot::channel();
    let stopping = || Status::unavailable("the control plane is stopping");
    if !board.send(Event::Apply { documents, delete: request.delete, reply }).await {
        return Err(stopping());
    }
    answer.await.map_err(|_| stopping())
}

/// Waits until an epoch has all its answers; the entry as it is then, or at the deadline.
async fn settled(board: &Board, number: u64, deadline: Instant, sender: &mpsc::Sender<Result<Progress, Status>>) -> Option<Entry> {
    let mut turns = board.turns();
    let mut told = String::new();
    loop {
        // An epoch may be the folder's too, which has been live for long.
        let entry = board.entry(number);
        match &entry {
            Some(entry) if entry.settled() => return Some(entry.clone()),
            Some(entry) => {
                let line = format!("epoch {number}: waiting for {}", some_of(entry.waiting.iter().map(String::as_str)));
                if line != told && sender.send(Ok(Progress { waiting_for: line.clone(), ..Progress::default() })).await.is_err() {
                    return None;
                }
                told = line;
            }
            None => return None,
        }
        if tokio::time::timeout_at(deadline.into(), turns.changed()).await.is_err() {
            return entry;
        }
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
