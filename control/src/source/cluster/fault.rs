//! What an error of a watch means, and what is said of it. Pure.

use std::error::Error as _;
use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;

use super::listing::Watchable;
use crate::world::Kind;
use crate::world::problem::{Problem, Severity};

/// Errors of libraries name their cause below them, and that one its own: so deep at most.
const CAUSES_MAX: usize = 8;
/// Longest pause that an API server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no such kind at this version, it is said.
    Absent,
    /// What is known is too old to go on from: list again.
    Stale,
    /// Go on after a pause: this long at least, if the API server says how long.
    Later(Duration),
}

/// Whether every API server has a kind: that it is not there is said by something else, in front of one.
fn is_everywhere(kind: Kind) -> bool {
    matches!(kind.group(), "" | "discovery.k8s.io")
}

/// What an error of a watch of that kind means.
pub(super) fn judge(kind: Kind, error: &watcher::Error) -> Fault {
    let pause = status(error).and_then(|status| status.details.as_ref()).map_or(0, |details| details.retry_after_seconds);
    match (error, status(error).map(|status| status.code)) {
        (watcher::Error::InitialListFailed(_), Some(404)) if !is_everywhere(kind) => Fault::Absent,
        // The watcher goes back to its list when an event says that the revision is gone; where the call itself is refused it would ask the
        // same for ever. (The client does not look at the status of a watch's answer: a refusal comes as a failure of the stream.) And a
        // kind may vanish while it is watched.
        (watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(_), Some(404 | 410)) => Fault::Stale,
        _ => Fault::Later(Duration::from_secs(pause.into()).min(PAUSE_MAX)),
    }
}

fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

/// An error as a problem of the mesh's objects: what is not watched, why, and what to do. Equal errors are equal problems.
pub(super) fn problem(subject: &Watchable, error: &watcher::Error) -> Problem {
    let (why, remedy) = match status(error) {
        Some(status) if matches!(status.code, 401 | 403) => (
            status.message.clone(),
            "let the control plane's service account list and watch it, as the role that `meshwright install` prints does",
        ),
        Some(status) if status.message.is_empty() => (format!("the API server answers {} {}", status.code, status.reason), AGAIN),
        Some(status) => (status.message.clone(), AGAIN),
        None => (causes(error), AGAIN),
    };
    silent(subject, &why, remedy)
}

/// It says 404 and lists the kind among what it serves, or says nothing of use of what that is.
pub(super) fn unsure(subject: &Watchable, cause: Option<kube::Error>) -> Problem {
    match cause {
        Some(error) => problem(subject, &watcher::Error::InitialListFailed(error)),
        None => silent(subject, "the answer is 404, and the API server does not say that it has no such kind", AGAIN),
    }
}

/// Nothing came for too long.
pub(super) fn late(subject: &Watchable, bound: Duration) -> Problem {
    silent(subject, &format!("the API server took more than {} s for a page of the list", bound.as_secs()), AGAIN)
}

const AGAIN: &str = "it is tried again; until then the mesh goes on with what was last known";

fn silent(subject: &Watchable, why: &str, remedy: &str) -> Problem {
    Problem::of_file(Severity::Error, &place(subject), 0, format!("cannot watch {subject}: {why}"), remedy)
}

/// What problems of a watch are filed under.
pub(super) fn place(subject: &Watchable) -> String {
    format!("kubernetes/{subject}")
}

/// The causes of an error, the outermost first; some libraries say their cause in their own sentence, too.
fn causes(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(below) = cause else { break };
        let more = below.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = below.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(code: u16, after_secs: u32) -> Box<Status> {
        let status = json!({"code": code, "message": format!("says {code}"), "details": {"retryAfterSeconds": after_secs}});
        Box::new(serde_json::from_value(status).unwrap())
    }

    #[test]
    fn every_answer_has_its_consequence() {
        // Aim: a missing kind is absent unless every API server has it, a revision that is gone is listed anew also where the call itself says so, everything else is
        // tried again, no sooner than the API server asks and within a bound; and it is told with a remedy.
        let api = |code, after| kube::Error::Api(status(code, after));
        let later = |secs| Fault::Later(Duration::from_secs(secs));
        let none = watcher::Error::InitialListFailed(api(404, 0));
        for (kind, fault) in [(Kind::TCPRoute, Fault::Absent), (Kind::Pod, later(0)), (Kind::EndpointSlice, later(0))] {
            assert_eq!(judge(kind, &none), fault, "{kind:?}");
        }
        for (error, fault, said) in [
            (watcher::Error::WatchStartFailed(api(404, 0)), Fault::Stale, "says 404"),
            (watcher::Error::WatchStartFailed(api(410, 0)), Fault::Stale, "says 410"),
            (watcher::Error::WatchFailed(api(410, 0)), Fault::Stale, "says 410"),
            (watcher::Error::WatchError(status(410, 0)), later(0), "says 410"),
            (watcher::Error::InitialListFailed(api(410, 0)), later(0), "says 410"),
            (watcher::Error::InitialListFailed(api(429, 7)), later(7), "says 429"),
            (watcher::Error::InitialListFailed(api(429, 9_000)), later(60), "says 429"),
            (watcher::Error::WatchFailed(api(500, 0)), later(0), "says 500"),
            (watcher::Error::InitialListFailed(api(403, 0)), later(0), "service account"),
            (watcher::Error::NoResourceVersion, later(0), "no metadata.resourceVersion"),
        ] {
            assert_eq!(judge(Kind::TCPRoute, &error), fault, "{error:?}");
            let problem = problem(&Watchable::All(Kind::Pod), &error).to_string();
            assert!(problem.starts_with("kubernetes/pods: error: cannot watch pods: ") && problem.contains(said), "{problem}");
        }
    }
}
