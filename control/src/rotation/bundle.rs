//! The trust bundle in files.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The trust bundle for whoever starts: readers see the old file or the new one, never half of one.
///
/// # Errors
/// A file cannot be written; it is named.
pub fn write_bundle(files: &[PathBuf], pem: &str) -> anyhow::Result<()> {
    for path in files {
        if fs::read(path).is_ok_and(|text| text == pem.as_bytes()) {
            continue;
        }
        replace(path, pem).with_context(|| format!("cannot write the trust bundle {}", path.display()))?;
    }
    Ok(())
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_follow_the_bundle() {
        // Aim: each file holds the bundle, readable to all, is left alone while it does, and a folder that is missing is told by name.
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("ca.pem"), folder.path().join("copy.pem")];
        write_bundle(&files, "a").unwrap();
        write_bundle(&files, "b").unwrap();
        let written = fs::metadata(&files[1]).unwrap().modified().unwrap();
        write_bundle(&files, "b").unwrap();
        assert_eq!(fs::metadata(&files[1]).unwrap().modified().unwrap(), written);
        assert_eq!(fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(files.iter().all(|path| fs::read_to_string(path).unwrap() == "b"));
        let error = format!("{:#}", write_bundle(&[folder.path().join("none/ca.pem")], "a").unwrap_err());
        assert!(error.contains("none/ca.pem"), "{error}");
    }
}
