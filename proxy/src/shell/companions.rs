//! Whether the application has ended. Where a sidecar is an ordinary container of a pod that ends by itself (a Job, on Kubernetes before 1.29),
//! nobody tells it: the pod's containers share one table of processes, and when no other process has been in it for a while, the work is done.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two looks until the application has been seen: it may be over soon.
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// Between two looks afterwards.
const LOOK: Duration = Duration::from_millis(500);
/// The process that holds a pod's namespaces.
const POD: u32 = 1;

/// What has been seen, pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nobody,
    There,
    Gone { since: Instant },
}

impl Seen {
    fn on(self, there: bool, now: Instant) -> Self {
        match (self, there) {
            (_, true) => Self::There,
            (Self::There, false) => Self::Gone { since: now },
            (other, false) => other,
        }
    }

    fn is_over(self, quiet: Duration, now: Instant) -> bool {
        matches!(self, Self::Gone { since } if now - since >= quiet)
    }
}

/// Returns when there has been a process of the application and, for `quiet`, none any more; or with `stop`. Whether it was the former.
pub async fn ended(quiet: Duration, stop: CancellationToken) -> bool {
    let mut seen = Seen::Nobody;
    loop {
        match is_there(Path::new("/proc"), std::process::id()) {
            Ok(there) => seen = seen.on(there, Instant::now()),
            Err(error) => {
                tracing::warn!(%error, "the table of processes cannot be read: this proxy will not see its application end");
                stop.cancelled().await;
                return false;
            }
        }
        if seen.is_over(quiet, Instant::now()) {
            return true;
        }
        let pause = if seen == Seen::Nobody { LOOK_FIRST } else { LOOK };
        tokio::select! {
            biased;
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether there is a process that is neither ours, nor the pod's own, nor the kubelet's by our uid (the injector refuses applications that
/// have it).
fn is_there(table: &Path, own: u32) -> io::Result<bool> {
    let uid = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(table)? {
        let entry = entry?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has gone meanwhile is not there.
        let others = process != POD && process != own && entry.metadata().is_ok_and(|process| process.uid() != uid);
        if others {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the end is believed after a quiet time, not before the beginning, and not between two attempts that are closer together.
    #[tokio::test(start_paused = true)]
    async fn an_end_is_an_end_after_a_while() {
        let begin = Instant::now();
        let at = |secs| begin + Duration::from_secs(secs);
        let quiet = Duration::from_secs(30);
        let mut seen = Seen::Nobody;
        for (secs, there, over) in [
            (0, false, false),
            (100, false, false),
            (101, true, false),
            (500, true, false),
            (501, false, false),
            (530, false, false),
            (530, true, false),
            (531, false, false),
            (560, false, false),
            (561, false, true),
        ] {
            seen = seen.on(there, at(secs));
            assert_eq!(seen.is_over(quiet, at(secs)), over, "after {secs} s");
        }
    }

    /// Aim: in this machine's own table there are others than this process; in one with the pod's own and ours only there are none.
    #[test]
    fn the_table_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["1", "7", "self", "uptime"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert!(!is_there(folder.path(), 7).unwrap());
        assert!(is_there(Path::new("/nowhere"), 7).is_err());
    }
}
