//! Keys, tokens and the book at rest: one embedded store, `ca.redb`, 0600 in a 0700 folder. Keys may lie elsewhere ([`Vault`]).

mod audit;
mod token_keys;
mod vault;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use zeroize::Zeroizing;

use crate::attest::Grant;
use crate::book::IssuedLeaf;
use crate::roots::life::History;
pub use vault::{Vault, VaultChanges, VaultRows};

/// Most tokens that wait to be used, or are remembered as used.
pub const TOKENS_MAX: usize = 20_000;
const FILE: &str = "ca.redb";
/// Row of [`KEYS`]: what is remembered of the roots beside those in force.
const HISTORY: &str = "roots";
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
/// Serials of expired leaves that were renewed, with their end.
const REVIVED: TableDefinition<'_, &str, i64> = TableDefinition::new("revived");
const BOOK: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("book");

/// What went wrong below the authority. Says which file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or file cannot be had.
    #[error("cannot open the authority's store {path}: {cause}; {remedy}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Of the system or the store.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Others may read it.
    #[error("the authority's store {path} has mode {mode:04o}, others may read its keys; check who did, then `chmod 600 {path}`")]
    Rights {
        /// The file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// A read or a write failed.
    #[error("cannot {verb} the authority's store {path}: {cause}; check the disk (space, rights, mount), nothing was changed")]
    Access {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Of the store.
        cause: String,
    },
    /// The keys do not lie here, and the place where they do gave or took none.
    #[error("cannot {verb} the authority's keys: {cause}")]
    Vault {
        /// `read` or `write`.
        verb: &'static str,
        /// Which place, and what it says.
        cause: String,
    },
    /// Too many tokens.
    #[error("{TOKENS_MAX} join tokens are outstanding; wait until some expire")]
    TokensFull,
    /// A row does not read back.
    #[error("the authority's store {path} holds a row that does not read back ({what}); restore it from a backup")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which row.
        what: &'static str,
    },
}

/// A certificate and its key, PKCS#8.
pub struct Pair {
    /// DER.
    pub certificate: Vec<u8>,
    /// PKCS#8 DER; wiped when dropped.
    pub key: Zeroizing<Vec<u8>>,
}

/// Which pair.
#[derive(Clone, Copy, Debug)]
pub enum Seal {
    /// The root that issues.
    Root,
    /// The root that issues next.
    Next,
    /// The intermediate that signs.
    Issuing,
}

impl Seal {
    fn rows(self) -> (&'static str, &'static str) {
        match self {
            Self::Root => ("root.certificate", "root.key"),
            Self::Next => ("next.certificate", "next.key"),
            Self::Issuing => ("issuing.certificate", "issuing.key"),
        }
    }
}

/// The open store. After a failed write it is opened anew, so that a disk with space again is used again.
pub struct Store {
    path: PathBuf,
    database: Mutex<Option<Database>>,
    /// Where keys lie instead; then no key is ever in the file.
    vault: Option<vault::Unlocked>,
}

impl Store {
    /// Opens or creates `ca.redb` in `folder`, which is created 0700 where it is missing.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Rights`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        let failed = |error: io::Error| StoreError::Open {
            path: path.clone(),
            remedy: match error.kind() {
                io::ErrorKind::PermissionDenied => "run as a user who may write there, or choose another folder with --data-dir",
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
                io::ErrorKind::ReadOnlyFilesystem => "choose a writable folder with --data-dir",
                _ => "choose another folder with --data-dir",
            },
            cause: error.to_string(),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let database = open_file(&path, failed)?;
        let store = Self { path, database: Mutex::new(Some(database)), vault: None };
        store.write(|transaction| {
            transaction.open_table(KEYS)?;
            transaction.open_table(TOKENS)?;
            transaction.open_table(BOOK)?;
            transaction.open_table(REVIVED)?;
            audit::create(transaction)?;
            token_keys::create(transaction)
        })?;
        Ok(store)
    }

    /// The same, with keys that lie in a vault. Keys that the file has are left as they are, and not used.
    ///
    /// # Errors
    /// Also [`StoreError::Vault`].
    pub fn open_with(folder: &Path, vault: Box<dyn Vault>) -> Result<Self, StoreError> {
        let kept = vault::Unlocked::load(vault)?;
        Ok(Self { vault: Some(kept), ..Self::open(folder)? })
    }

    /// Where its keys lie.
    pub fn path(&self) -> PathBuf {
        self.vault.as_ref().map_or_else(|| self.path.clone(), |vault| vault.place().into())
    }

    /// Reads a pair; `None` before the first start.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn pair(&self, seal: Seal) -> Result<Option<Pair>, StoreError> {
        let (certificate, key) = seal.rows();
        Ok(match (self.key_row(certificate)?, self.key_row(key)?) {
            (Some(certificate), Some(key)) => Some(Pair { certificate: certificate.to_vec(), key }),
            _ => None,
        })
    }

    /// Writes pairs, all or none.
    ///
    /// # Errors
    /// [`StoreError::Access`]; nothing was written.
    pub fn put_pairs(&self, pairs: &[(Seal, &Pair)]) -> Result<(), StoreError> {
        self.change_keys(&rows_of(pairs))
    }

    fn key_row(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        if let Some(vault) = &self.vault {
            return Ok(vault.row(name));
        }
        self.reading(|transaction| Ok(transaction.open_table(KEYS)?.get(name)?.map(|value| Zeroizing::new(value.value().to_vec()))))
    }

    /// Writes rows and removes others, all or none.
    fn change_keys(&self, changes: &[Change<'_>]) -> Result<(), StoreError> {
        if let Some(vault) = &self.vault {
            return vault.change(changes.iter().map(|(name, value)| ((*name).to_owned(), *value)));
        }
        self.write(|transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            for (name, value) in changes {
                match value {
                    Some(value) => keys.insert(*name, *value)?,
                    None => keys.remove(*name)?,
                };
            }
            Ok(())
        })
    }

    /// What is remembered of the roots; `None` before the first rotation.
    ///
    /// # Errors
    /// [`StoreError::Access`]; [`StoreError::Corrupt`] where it does not read back.
    pub fn history(&self) -> Result<Option<History>, StoreError> {
        let read = |row: Zeroizing<Vec<u8>>| serde_json::from_slice(&row);
        let corrupt = |_| StoreError::Corrupt { path: self.path(), what: "history of the roots" };
        self.key_row(HISTORY)?.map(read).transpose().map_err(corrupt)
    }

    /// One step in the life of the roots, whole or not at all: pairs to keep, one to forget, and the history that goes with them.
    ///
    /// # Errors
    /// [`StoreError::Access`]; nothing was written.
    pub fn step(&self, history: &History, pairs: &[(Seal, &Pair)], gone: Option<Seal>) -> Result<(), StoreError> {
        let row = serde_json::to_vec(history).unwrap_or_default();
        let mut changes = rows_of(pairs);
        changes.push((HISTORY, Some(&row)));
        if let Some(seal) = gone {
            let (certificate, key) = seal.rows();
            changes.extend([(certificate, None), (key, None)]);
        }
        self.change_keys(&changes)
    }

    /// Keeps a grant under its token's hash, and forgets those that expired by `now`.
    ///
    /// # Errors
    /// [`StoreError::TokensFull`], [`StoreError::Access`].
    pub fn put_grant(&self, key: &str, grant: &Grant, now: i64) -> Result<(), StoreError> {
        let row = serde_json::to_vec(grant).unwrap_or_default();
        let fits = self.write(|transaction| {
            let mut tokens = transaction.open_table(TOKENS)?;
            tokens.retain(|_, value| serde_json::from_slice::<Grant>(value).is_ok_and(|grant| grant.expires > now))?;
            let fits = redb::ReadableTableMetadata::len(&tokens)? < TOKENS_MAX as u64;
            if fits {
                tokens.insert(key, row.as_slice())?;
            }
            Ok(fits)
        })?;
        if fits { Ok(()) } else { Err(StoreError::TokensFull) }
    }

    /// The atomic take: `judge` sees the grant as it is now (`None`: unknown); if it agrees, the grant is marked as used, on disk,
    /// before this returns.
    ///
    /// # Errors
    /// The store's, or inside, the judge's.
    pub fn take<T, E>(&self, key: &str, now: i64, judge: impl FnOnce(Option<&Grant>) -> Result<T, E>) -> Result<Result<T, E>, StoreError> {
        self.write(|transaction| {
            let mut tokens = transaction.open_table(TOKENS)?;
            let grant: Option<Grant> = tokens.get(key)?.and_then(|row| serde_json::from_slice(row.value()).ok());
            let verdict = judge(grant.as_ref());
            if let (Ok(_), Some(grant)) = (&verdict, grant) {
                let row = serde_json::to_vec(&Grant { used: Some(now), ..grant }).unwrap_or_default();
                tokens.insert(key, row.as_slice())?;
            }
            Ok(verdict)
        })
    }

    /// Takes the one renewal that an expired leaf has. False: it was taken before. Forgets leaves that ended by `forget`.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn revive(&self, serial: &str, not_after: i64, forget: i64) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let mut revived = transaction.open_table(REVIVED)?;
            revived.retain(|_, ended| ended > forget)?;
            let fresh = revived.insert(serial, not_after)?.is_none();
            Ok(fresh)
        })
    }

    /// The whole book. Rows that do not read back are left out.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn entries(&self) -> Result<Vec<IssuedLeaf>, StoreError> {
        self.reading(|transaction| {
            let book = transaction.open_table(BOOK)?;
            let mut entries = Vec::new();
            for row in book.iter()? {
                entries.extend(serde_json::from_slice(row?.1.value()).ok());
            }
            Ok(entries)
        })
    }

    /// Reads beside writers: none waits for it.
    fn reading<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let begun = {
            let guard = self.lock()?;
            let database = guard.as_ref().ok_or_else(|| self.access("read", "it is closed".to_owned()))?;
            database.begin_read()
        };
        let run = || work(&begun?);
        run().map_err(|error| self.access("read", error.to_string()))
    }

    fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let mut guard = self.lock()?;
        let Some(database) = guard.as_ref() else {
            return Err(self.access("write", "it is closed".to_owned()));
        };
        let run = || -> Result<T, redb::Error> {
            let transaction = database.begin_write()?;
            let out = work(&transaction)?;
            transaction.commit()?;
            Ok(out)
        };
        let result = run();
        if result.is_err() {
            // An I/O error closes the database for good; the next call opens the file again.
            *guard = None;
        }
        result.map_err(|error| self.access("write", error.to_string()))
    }

    fn lock(&self) -> Result<MutexGuard<'_, Option<Database>>, StoreError> {
        let mut guard = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(open_file(&self.path, |error| self.access("open", error.to_string()))?);
        }
        Ok(guard)
    }

    fn access(&self, verb: &'static str, cause: String) -> StoreError {
        StoreError::Access { verb, path: self.path.clone(), cause }
    }
}

/// A row of [`KEYS`], and what it is to be; `None`: to be removed.
type Change<'a> = (&'static str, Option<&'a [u8]>);

fn rows_of<'a>(pairs: &[(Seal, &'a Pair)]) -> Vec<Change<'a>> {
    let rows = |(seal, pair): &(Seal, &'a Pair)| {
        let (certificate, key) = seal.rows();
        [(certificate, Some(pair.certificate.as_slice())), (key, Some(pair.key.as_slice()))]
    };
    pairs.iter().flat_map(rows).collect()
}

fn open_file(path: &Path, failed: impl Fn(io::Error) -> StoreError) -> Result<Database, StoreError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(&failed)?;
    let mode = fs::metadata(path).map_err(&failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Rights { path: path.to_owned(), mode });
    }
    let backend = redb::backends::FileBackend::new(file);
    backend.and_then(|backend| Database::builder().create_with_backend(backend)).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Open {
            path: path.to_owned(),
            cause: "another process has it open".to_owned(),
            remedy: "stop the other control plane, or choose another folder with --data-dir",
        },
        redb::DatabaseError::Storage(redb::StorageError::Io(error)) => failed(error),
        error => StoreError::Open { path: path.to_owned(), cause: error.to_string(), remedy: "restore it from a backup" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(expires: i64) -> Grant {
        Grant {
            workload: "shop/catalog".into(),
            identity: "spiffe://cluster.local/ns/shop/sa/catalog".into(),
            instance: None,
            expires,
            used: None,
        }
    }

    #[test]
    fn a_take_happens_once_even_across_a_restart() {
        // Aim: a used token stays used, and a refused one is not used up.
        let folder = tempfile::tempdir().unwrap();
        let judge = |grant: Option<&Grant>| match grant {
            Some(grant) if grant.used.is_none() => Ok(()),
            _ => Err("no"),
        };
        {
            let store = Store::open(folder.path()).unwrap();
            store.put_grant("k", &grant(100), 0).unwrap();
            assert_eq!(store.take("k", 1, |_| Err::<(), _>("other")).unwrap(), Err("other"));
            assert_eq!(store.take("k", 1, judge).unwrap(), Ok(()));
            assert_eq!(store.take("k", 1, judge).unwrap(), Err("no"));
        }
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.take("k", 1, judge).unwrap(), Err("no"));
        assert_eq!(store.take("unknown", 1, judge).unwrap(), Err("no"));
    }

    #[test]
    fn rights_are_kept_and_checked() {
        // Aim: the file is 0600 from its first byte on, and one that others may read is not used.
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("data");
        drop(Store::open(&inside).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&inside), 0o700);
        let file = inside.join(FILE);
        assert_eq!(mode(&file), 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Store::open(&inside).err().unwrap().to_string();
        assert!(error.contains("0644") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_second_opener_and_a_strange_file_are_told_apart() {
        // Aim: each failure to open names the file and the remedy.
        let folder = tempfile::tempdir().unwrap();
        let _first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("another process"), "{error}");
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = Store::open(&file).err().unwrap().to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }
}
