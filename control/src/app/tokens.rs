//! The tokens of the API where replicas take turns: whoever holds one has it for all of them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use apiserver::keep::{Changes, Keep, Rows, Secret};

use crate::serve::token::{ApiTokens, READ_FILE, WRITE_FILE};

/// Makes the data folder hold the tokens that the Secret has, and the Secret those that were missing there.
///
/// # Errors
/// A file cannot be written or read, or the Secret cannot be written.
pub(super) async fn shared(data_dir: &Path, safe: &Keep<Secret>) -> anyhow::Result<()> {
    take_up(data_dir, &safe.rows().await)?;
    ApiTokens::open(data_dir)?;
    let mut changes = Changes::new();
    for name in [READ_FILE, WRITE_FILE] {
        let path = data_dir.join(name);
        changes.insert(name.to_owned(), Some(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?));
    }
    // What is so already is not written.
    Ok(safe.write(&changes).await?)
}

fn take_up(data_dir: &Path, rows: &Rows) -> anyhow::Result<()> {
    for name in [READ_FILE, WRITE_FILE] {
        let Some(text) = rows.get(name) else { continue };
        let path = data_dir.join(name);
        if fs::read(&path).is_ok_and(|there| there == *text) {
            continue;
        }
        let half = path.with_extension("token.kept");
        let written = || -> std::io::Result<()> {
            // Left over from a process that was cut off.
            let _ = fs::remove_file(&half);
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?.write_all(text)?;
            fs::rename(&half, &path)
        };
        written().with_context(|| format!("cannot write the API's token {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;
    use std::time::SystemTime;

    use apiserver::lease::Election;
    use apiserver::testing::Fake;
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_replica_has_the_same_tokens() {
        // Aim: the first holder's tokens are the next one's, in a folder of its own, readable for its owner alone; once kept they stay.
        let fake = Fake::default();
        let lease = json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}});
        fake.state().put("/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control", lease);
        let wall = Arc::new(|| SystemTime::UNIX_EPOCH);
        let term = Election::new(fake.client(), "mesh", "control", "a", wall).win().await;
        let safe = Keep::claim(fake.client(), "mesh", "ca", term.tenure()).await.unwrap();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for folder in &folders {
            shared(folder.path(), &safe).await.unwrap();
        }
        for name in [READ_FILE, WRITE_FILE] {
            let texts = folders.each_ref().map(|folder| fs::read(folder.path().join(name)).unwrap());
            assert_eq!(texts[0], texts[1]);
            let mode = fs::metadata(folders[1].path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let writes = fake.state().writes;
        shared(folders[0].path(), &safe).await.unwrap();
        assert_eq!(fake.state().writes, writes);
    }
}
