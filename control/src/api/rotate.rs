//! `ca rotate-root` and `ca show`: the life of the roots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::mesh::{Progress, RotateRootRequest};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::apply::some_of;
use super::last;
use crate::publish::board::Board;
use crate::publish::epoch::moment;
use crate::publish::trust::{Phase, Root, Roots};
use crate::rotation::{Begun, Course, Rotation, plan};
use crate::serve::authority::{Issued, SharedAuthority};

/// Where no timeout was asked for, none comes: longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The roots of now, off the runtime.
async fn roots(authority: &SharedAuthority) -> Result<Arc<Roots>, Status> {
    let authority = authority.clone();
    let told = tokio::task::spawn_blocking(move || authority.roots()).await;
    told.map_err(|_| Status::internal("reading the authority's roots ended unexpectedly"))
}

pub(super) async fn run(
    board: Arc<Board>,
    authority: SharedAuthority,
    rotation: Rotation,
    request: RotateRootRequest,
    sender: mpsc::Sender<Result<Progress, Status>>,
) {
    let answer = if request.plan {
        let course = rotation.told().borrow().course.clone();
        roots(&authority).await.map(|roots| last(&plan(&board, &roots, &course), true))
    } else {
        match rotation.begin().await {
            Err(reason) => Err(Status::failed_precondition(reason)),
            Ok(begun) if !request.wait => Ok(last(&result(&begun, false, &[], ""), true)),
            Ok(begun) => Ok(follow(&rotation, &begun, request.timeout, &sender).await),
        }
    };
    // The receiver is gone when the caller is; nobody is left to tell.
    let _ = sender.send(answer).await;
}

/// Until the former root is gone, the rotation stops, or time is over; in that case it goes on without us.
async fn follow(
    rotation: &Rotation,
    begun: &Begun,
    timeout: Option<prost_types::Duration>,
    sender: &mpsc::Sender<Result<Progress, Status>>,
) -> Progress {
    let given = timeout.and_then(|given| Duration::try_from(given).ok()).filter(|given| !given.is_zero());
    let deadline = Instant::now() + given.unwrap_or(FOR_EVER);
    let mut told = rotation.told();
    loop {
        let now = told.borrow_and_update().clone();
        if now.ended > begun.ended {
            return last(&result(begun, true, &[], ""), true);
        }
        let waiting = match now.course {
            Course::Resting => Vec::new(),
            Course::Stopped(reason) => return last(&result(begun, false, &[], &reason), false),
            Course::Waiting { step, waiting } => {
                let names = some_of(waiting.iter().map(String::as_str));
                let line = if names.is_empty() { step.text().to_owned() } else { format!("{}: waiting for {names}", step.text()) };
                if sender.send(Ok(Progress { waiting_for: line, ..Progress::default() })).await.is_err() {
                    return last(&result(begun, false, &waiting, ""), false);
                }
                waiting
            }
        };
        match timeout_at(deadline, told.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return last(&result(begun, false, &waiting, "the control plane is stopping"), false),
            Err(_) => return last(&result(begun, false, &waiting, ""), false),
        }
    }
}

fn result(begun: &Begun, rotated: bool, waiting: &[String], stopped: &str) -> Value {
    let stopped = (!stopped.is_empty()).then_some(stopped);
    json!({"rotated": rotated, "joined": begun.joined, "old": begun.old, "new": begun.new, "waiting": waiting, "stopped": stopped})
}

/// As `ca show -o json` prints it.
pub(super) async fn show(board: &Arc<Board>, authority: &SharedAuthority, rotation: &Rotation) -> Result<Value, Status> {
    let roots = roots(authority).await?;
    let authority = authority.clone();
    let issued = tokio::task::spawn_blocking(move || authority.issued()).await;
    let issued = issued.map_err(|_| Status::internal("reading the authority's book ended unexpectedly"))?;
    let (step, waiting, stopped) = match rotation.told().borrow().course.clone() {
        Course::Resting => (None, Vec::new(), None),
        Course::Waiting { step, waiting } => (Some(step.text()), waiting, None),
        Course::Stopped(reason) => (None, Vec::new(), Some(reason)),
    };
    let row = |root: &Root, state: &str| row(board, &issued, root, state);
    let others = match roots.phase {
        // An external authority's.
        Phase::Steady => "Believed",
        Phase::Trusting => "Next",
        Phase::Issuing => "Former",
    };
    let mut rows = vec![row(&roots.issuing, "Issuing")];
    rows.extend(roots.others.iter().map(|root| row(root, others)));
    rows.extend(roots.retired.iter().map(|root| row(root, "Retired")));
    Ok(json!({
        "phase": roots.phase.text(),
        "step": step,
        "waiting": waiting,
        "stopped": stopped,
        "roots": rows,
        "issuers": issuers(&issued),
    }))
}

fn row(board: &Board, issued: &[Issued], root: &Root, state: &str) -> Value {
    let fingerprint = root.fingerprint();
    let trusts = |key: &String| {
        let told = board.correspondent(key, |told| told.certificate.as_ref().map(|leaf| leaf.trust_bundle.contains(&fingerprint)));
        told.flatten().unwrap_or(false)
    };
    let not_after = X509Certificate::from_der(&root.der).ok().map(|(_, parsed)| parsed.validity().not_after.timestamp());
    json!({
        "sha256": fingerprint,
        "state": state,
        "not_after": not_after.map(|secs| moment(u64::try_from(secs).unwrap_or(0).saturating_mul(1000))),
        "leaves": issued.iter().filter(|leaf| leaf.root == fingerprint).count(),
        "proxies": board.correspondents().iter().filter(|key| trusts(key)).count(),
    })
}

/// Issuers of the leaves that are out: how many, and when the first and the last of them end.
fn issuers(issued: &[Issued]) -> Vec<Value> {
    let mut issuers: BTreeMap<&str, (u64, &str, &str)> = BTreeMap::new();
    for leaf in issued {
        let end = leaf.not_after.as_str();
        let issuer = issuers.entry(&leaf.issuer).or_insert((0, end, end));
        // RFC 3339 times of one zone order as text.
        *issuer = (issuer.0 + 1, issuer.1.min(end), issuer.2.max(end));
    }
    let row = |(issuer, (leaves, first, last)): (&str, (u64, &str, &str))| json!({"issuer": issuer, "leaves": leaves, "first_expiry": first, "last_expiry": last});
    issuers.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_are_summed_up() {
        // Aim: leaves of one issuer are counted, with the first and the last end.
        let leaf = |issuer: &str, not_after: &str| Issued {
            namespace: String::new(),
            workload: String::new(),
            instance: String::new(),
            identity: String::new(),
            serial: String::new(),
            not_before: String::new(),
            not_after: not_after.into(),
            issuer: issuer.into(),
            root: String::new(),
            for_application: false,
        };
        let leaves = [leaf("i", "2026-01-02T00:00:00Z"), leaf("i", "2026-01-01T00:00:00Z"), leaf("j", "2026-01-01T00:00:00Z")];
        let rows = issuers(&leaves);
        assert_eq!((rows.len(), &rows[0]["leaves"], &rows[0]["first_expiry"]), (2, &json!(2), &json!("2026-01-01T00:00:00Z")));
    }
}
