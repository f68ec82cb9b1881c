//! An identity as files: `cert.pem`, `key.pem` and `bundle.pem`, always of one generation.
//!
//! As Kubernetes does with Secrets: each generation is a folder of its own, `..data` is a link to the one in force, and the names in the
//! folder are links through it. One rename swings all three at once.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

/// The link to the generation in force.
const CURRENT: &str = "..data";
/// Begin of a generation's name.
const GENERATION: &str = "..generation-";
/// Leaf first, then intermediates.
pub(super) const CERTIFICATE: &str = "cert.pem";
/// PKCS#8, 0600.
pub(super) const KEY: &str = "key.pem";
/// Roots to verify others by.
pub(super) const BUNDLE: &str = "bundle.pem";

/// What is written, DER.
pub(super) struct Identity<'a> {
    pub(super) chain: Vec<&'a [u8]>,
    pub(super) key_pkcs8: &'a [u8],
    pub(super) bundle: Vec<&'a [u8]>,
}

/// A folder of identity files.
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    /// Makes the folder where it is missing, 0755: certificates are no secret, and the key has its own mode.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).with_context(|| format!("--dir: cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Puts a generation in force. After an error the one before is still there, whole.
    pub(super) fn write(&self, identity: &Identity<'_>) -> anyhow::Result<()> {
        self.swing(identity)
            .with_context(|| format!("--dir: cannot write to {}; free some space or choose another folder", self.folder.display()))
    }

    fn swing(&self, identity: &Identity<'_>) -> io::Result<()> {
        let before = self.generations()?;
        let in_force = fs::read_link(self.folder.join(CURRENT)).ok();
        let next = before.last().map_or(0, |(number, _)| number + 1);
        let name = PathBuf::from(format!("{GENERATION}{next}"));
        let fresh = self.folder.join(&name);
        if let Err(error) = fill(&fresh, identity).and_then(|()| self.put_in_force(&name, in_force.is_some())) {
            if fs::read_link(self.folder.join(CURRENT)).is_ok_and(|current| current == name) {
                // It was to be the first. That nothing is left of it matters less than why.
                let _ = fs::remove_file(self.folder.join(CURRENT));
            }
            let _ = fs::remove_dir_all(&fresh);
            return Err(error);
        }
        // The one that was in force stays: whoever has read one file of it can read the others.
        let gone = before.iter().filter(|(_, old)| old.file_name() != in_force.as_deref().map(Path::as_os_str));
        gone.into_iter().try_for_each(|(_, old)| fs::remove_dir_all(old))
    }

    /// Points everything to that generation. Where one is in force, the names that programs read are seen to first: with one that cannot
    /// be a link the generation is not put in force.
    fn put_in_force(&self, name: &Path, follows: bool) -> io::Result<()> {
        let names = || [CERTIFICATE, KEY, BUNDLE].iter().try_for_each(|file| link(&self.folder, file, &Path::new(CURRENT).join(file)));
        if follows {
            names()?;
            return link(&self.folder, CURRENT, name);
        }
        link(&self.folder, CURRENT, name)?;
        names()
    }

    /// Generations that are there, in their order; also one that a crash left half written.
    fn generations(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.strip_prefix(GENERATION)?.parse().ok());
            found.extend(number.map(|number: u64| (number, entry.path())));
        }
        found.sort();
        Ok(found)
    }

    /// Certificate chain and key in force, PEM, to go on with after a restart.
    pub(super) fn read(&self) -> Option<(Vec<u8>, Zeroizing<Vec<u8>>)> {
        let current = fs::canonicalize(self.folder.join(CURRENT)).ok()?;
        Some((fs::read(current.join(CERTIFICATE)).ok()?, Zeroizing::new(fs::read(current.join(KEY)).ok()?)))
    }
}

/// Makes the folder of a generation and its files.
fn fill(fresh: &Path, identity: &Identity<'_>) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(fresh)?;
    write(&fresh.join(CERTIFICATE), 0o644, &pem("CERTIFICATE", &identity.chain))?;
    write(&fresh.join(KEY), 0o600, &pem("PRIVATE KEY", &[identity.key_pkcs8]))?;
    write(&fresh.join(BUNDLE), 0o644, &pem("CERTIFICATE", &identity.bundle))?;
    fs::File::open(fresh)?.sync_all()
}

fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes `name` a link to `target`, in the place of whatever it was, in one step.
fn link(folder: &Path, name: &str, target: &Path) -> io::Result<()> {
    let path = folder.join(name);
    if fs::read_link(&path).is_ok_and(|known| known == target) {
        return Ok(());
    }
    let fresh = folder.join(format!("..fresh-{name}"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &fresh)?;
    fs::rename(&fresh, &path)
}

/// PEM (RFC 7468) of several parts.
fn pem(label: &str, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::new());
    for part in parts {
        let body = Zeroizing::new(BASE64_STANDARD.encode(part));
        text.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
        for line in body.as_bytes().chunks(64) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        text.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn identity(byte: &[u8]) -> Identity<'_> {
        Identity { chain: vec![byte, byte], key_pkcs8: byte, bundle: vec![byte] }
    }

    /// Aim: three files of one generation, the key for its owner only; the next generation comes by one swing and few are kept.
    #[test]
    fn generations_follow_one_another() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("id");
        let files = Files::open(&folder).unwrap();
        assert!(files.read().is_none());
        for n in 0..5_u8 {
            files.write(&identity(&[n; 40])).unwrap();
            let current = fs::read_link(folder.join(CURRENT)).unwrap();
            assert_eq!(current, Path::new(&format!("{GENERATION}{n}")));
            for file in [CERTIFICATE, KEY, BUNDLE] {
                assert_eq!(fs::read_link(folder.join(file)).unwrap(), Path::new(CURRENT).join(file));
            }
            assert_eq!(fs::metadata(folder.join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
            let (chain, key) = files.read().unwrap();
            assert_eq!(chain.iter().filter(|byte| **byte == b'\n').count(), 6);
            assert!(key.starts_with(b"-----BEGIN PRIVATE KEY-----\n"));
        }
        assert_eq!(files.generations().unwrap().len(), 2);
    }

    /// Aim: what a crash left half written is neither in force nor in the way; plain files that were there become links.
    #[test]
    fn a_crash_leaves_the_former_in_force() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(CERTIFICATE), "old").unwrap();
        let files = Files::open(root.path()).unwrap();
        files.write(&identity(&[1; 3])).unwrap();
        fs::create_dir(root.path().join(format!("{GENERATION}1"))).unwrap();
        symlink("nowhere", root.path().join(format!("..fresh-{CURRENT}"))).unwrap();
        let before = files.read().unwrap();
        files.write(&identity(&[2; 3])).unwrap();
        assert_ne!(files.read().unwrap(), before);
    }

    /// Aim: what cannot be put in force leaves nothing behind, however often it is tried, and the one in force and the one before it stay.
    #[test]
    fn a_failure_leaves_no_generation_behind() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::open(root.path()).unwrap();
        let in_the_way = root.path().join(KEY);
        fs::create_dir_all(in_the_way.join("x")).unwrap();
        for _ in 0..3 {
            assert!(files.write(&identity(&[1; 3])).is_err());
            assert_eq!((files.generations().unwrap().len(), files.read().is_none()), (0, true));
        }
        fs::remove_dir_all(&in_the_way).unwrap();
        files.write(&identity(&[2; 3])).unwrap();
        files.write(&identity(&[3; 3])).unwrap();
        let before = files.read().unwrap();
        fs::remove_file(&in_the_way).unwrap();
        fs::create_dir_all(in_the_way.join("x")).unwrap();
        for _ in 0..3 {
            assert!(files.write(&identity(&[4; 3])).is_err());
            assert_eq!((files.generations().unwrap().len(), files.read().unwrap()), (2, before.clone()));
        }
        fs::remove_dir_all(&in_the_way).unwrap();
        // A crash left this one half written; it is not the one that programs may still be reading.
        fs::create_dir(root.path().join(format!("{GENERATION}7"))).unwrap();
        files.write(&identity(&[5; 3])).unwrap();
        let kept: Vec<_> = files.generations().unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(kept, [1, 8]);
    }

    /// Aim: a folder that cannot be is told by name.
    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let error = format!("{:#}", Files::open(Path::new("/dev/null/x")).err().unwrap());
        assert!(error.contains("--dir") && error.contains("/dev/null/x"), "{error}");
    }
}
