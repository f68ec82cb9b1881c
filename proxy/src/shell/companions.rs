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
    let ours = Ours { process: std::process::id(), uid: nix::unistd::geteuid().as_raw() };
    over(Path::new("/proc"), ours, quiet, stop).await
}

/// What in the table is not the application's: this process, and what the kubelet runs by our uid (the injector refuses applications that have
/// it).
#[derive(Debug, Clone, Copy)]
struct Ours {
    process: u32,
    uid: u32,
}

async fn over(table: &Path, ours: Ours, quiet: Duration, stop: CancellationToken) -> bool {
    let mut seen = Seen::Nobody;
    loop {
        match is_there(table, ours) {
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

/// Whether there is a process that is neither ours nor the pod's own.
fn is_there(table: &Path, ours: Ours) -> io::Result<bool> {
    for entry in fs::read_dir(table)? {
        let entry = entry?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has gone meanwhile is not there.
        let others = process != POD && process != ours.process && entry.metadata().is_ok_and(|process| process.uid() != ours.uid);
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

    /// Aim: the end comes after the application's, a little later than the quiet time, and the pod's process, ours and the kernel's other files
    /// are nobody; a table that cannot be read ends nothing.
    #[tokio::test(start_paused = true)]
    async fn the_table_is_watched() {
        let (folder, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        for name in ["1", "7", "self", "uptime"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (table, application) = (folder.path().to_owned(), folder.path().join("12"));
        let ours = Ours { process: 7, uid: u32::MAX };
        let quiet = Duration::from_secs(2);
        let watching = tokio::spawn({
            let (table, stop) = (table.clone(), stop.clone());
            async move { over(&table, ours, quiet, stop).await }
        });
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!watching.is_finished(), "it ended before the beginning");
        fs::create_dir(&application).unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!watching.is_finished());
        fs::remove_dir(&application).unwrap();
        let gone = Instant::now();
        assert!(watching.await.unwrap());
        assert!(gone.elapsed() >= quiet && gone.elapsed() <= quiet + 2 * LOOK);
        stop.cancel();
        assert!(!over(Path::new("/nowhere"), ours, quiet, stop).await);
        fs::create_dir(table.join("13")).unwrap();
        let own = Ours { process: 7, uid: fs::metadata(&table).unwrap().uid() };
        assert!(!is_there(&table, own).unwrap(), "what the kubelet runs by our uid is no application");
    }
}
