//! What the control plane remembers across restarts: `book.redb` in the data folder, 0600.
//!
//! A few rows of JSON, each written whole, those of one step together. A write that fails is said once and tried again with the next
//! change: the mesh goes on from memory. A write may take as long as the disk likes, so it is done off the runtime.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

const FILE: &str = "book.redb";
const FLOOR: &str = "epoch";
/// Digits of [`FLOOR`]: as many as the largest number has, so that its blocks never change in size.
const FLOOR_DIGITS: usize = 20;
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");

/// The rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// [`crate::publish::epoch::Mark`].
    Epoch,
    /// Objects given by `apply`, which override the folder's.
    Applied,
    /// First acceptance of each object.
    Ages,
    /// Addresses of Services and instances.
    Allocations,
    /// What the node agent last reported.
    Runtime,
    /// What tokens of sessions are made with.
    SessionKey,
}

impl Row {
    fn key(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Applied => "applied",
            Self::Ages => "ages",
            Self::Allocations => "allocations",
            Self::Runtime => "runtime",
            Self::SessionKey => "session-key",
        }
    }
}

/// Why the book cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} the control plane's book {path}: {cause}; {remedy}")]
pub struct StoreError {
    /// `open`, `read` or `write`.
    pub verb: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub cause: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Rows to be written together, already encoded: pure until [`Store::write`].
#[derive(Debug, Default)]
pub struct Page {
    floor: Option<u64>,
    rows: BTreeMap<Row, Result<Vec<u8>, String>>,
}

impl Page {
    /// Writes this row too; a later one of the same kind takes its place.
    pub fn put<T: Serialize>(&mut self, row: Row, value: &T) {
        self.rows.insert(row, serde_json::to_vec(value).map_err(|error| error.to_string()));
    }

    /// Notes, before the rows, that this epoch number has been used. Overwritten in place, which a full disk still takes: numbers never
    /// go back, also when the book could not be written before a restart.
    pub fn raise_floor(&mut self, number: u64) {
        self.floor = Some(number);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.floor.is_none() && self.rows.is_empty()
    }
}

/// The open book.
pub struct Store {
    path: PathBuf,
    floor: PathBuf,
    database: Mutex<Option<Database>>,
    /// Apart from the database, so that who asks for it never waits for a disk.
    failure: Mutex<Option<String>>,
}

impl Store {
    /// Opens or creates the book in `folder`, which is created 0700 where it is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        let remedy = "check space and rights there, or choose another folder with --data-dir";
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| StoreError {
            verb: "open",
            path: path.clone(),
            cause: error.to_string(),
            remedy,
        })?;
        let database = open_file(&path).map_err(|cause| StoreError { verb: "open", path: path.clone(), cause, remedy })?;
        Ok(Self { path, floor: folder.join(FLOOR), database: Mutex::new(Some(database)), failure: Mutex::default() })
    }

    /// Reads a row; `None` where there is none yet.
    ///
    /// # Errors
    /// [`StoreError`], also for a row that does not read back.
    pub fn load<T: DeserializeOwned>(&self, row: Row) -> Result<Option<T>, StoreError> {
        let failed = |cause: String| StoreError {
            verb: "read",
            path: self.path.clone(),
            cause,
            remedy: "restore it from a backup, or move it away to start over",
        };
        let guard = self.database.lock();
        let Some(database) = &*guard else {
            return Err(failed("it is closed".to_owned()));
        };
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            match database.begin_read()?.open_table(ROWS) {
                Ok(rows) => Ok(rows.get(row.key())?.map(|value| value.value().to_vec())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let bytes = read().map_err(|error| failed(error.to_string()))?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| failed(format!("row `{}`: {error}", row.key())))).transpose()
    }

    /// Writes a page, durably and whole. Blocks for as long as the disk takes: not for a runtime's threads. A failure is logged and kept
    /// for [`Store::failure`]; the caller goes on.
    pub fn write(&self, page: Page) {
        if let Some(number) = page.floor {
            self.raise_floor(number);
        }
        if page.rows.is_empty() {
            return;
        }
        match self.try_write(page.rows) {
            Ok(()) => {
                if self.failure.lock().take().is_some() {
                    tracing::info!(path = %self.path.display(), "the book can be written again");
                }
            }
            Err(cause) => {
                let error = StoreError {
                    verb: "write",
                    path: self.path.clone(),
                    cause,
                    remedy: "the mesh goes on from memory; make space or rights there before the control plane restarts",
                };
                if self.failure.lock().replace(error.to_string()).is_none() {
                    tracing::error!(%error);
                }
            }
        }
    }

    fn try_write(&self, rows: BTreeMap<Row, Result<Vec<u8>, String>>) -> Result<(), String> {
        let mut guard = self.database.lock();
        let database = match guard.take() {
            Some(database) => database,
            None => open_file(&self.path)?,
        };
        // An I/O error closes the database for good; the next write opens it again.
        commit(&database, rows)?;
        *guard = Some(database);
        Ok(())
    }

    fn raise_floor(&self, number: u64) {
        let raise = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.floor)?;
            file.write_all(format!("{number:0FLOOR_DIGITS$}\n").as_bytes())?;
            file.sync_data()
        };
        if let Err(error) = raise() {
            tracing::error!(path = %self.floor.display(), %error, "cannot note the epoch's number; it may come again after a restart");
        }
    }

    /// The highest number ever noted.
    pub fn floor(&self) -> u64 {
        fs::read_to_string(&self.floor).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Why the last write failed, if it did. Waits for nothing.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Holds every write up until the guard is dropped, as a slow disk would.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.database.lock()
    }
}

fn open_file(path: &Path) -> Result<Database, String> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(|e| e.to_string())?;
    let backend = redb::backends::FileBackend::new(file).map_err(|error| error.to_string())?;
    Database::builder().create_with_backend(backend).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => "another control plane has it open".to_owned(),
        error => error.to_string(),
    })
}

fn commit(database: &Database, rows: BTreeMap<Row, Result<Vec<u8>, String>>) -> Result<(), String> {
    let run = |rows: Vec<(Row, Vec<u8>)>| -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        for (row, bytes) in &rows {
            transaction.open_table(ROWS)?.insert(row.key(), bytes.as_slice())?;
        }
        Ok(transaction.commit()?)
    };
    let rows: Result<Vec<_>, String> = rows.into_iter().map(|(row, bytes)| Ok((row, bytes?))).collect();
    run(rows?).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::epoch::Mark;

    #[test]
    fn rows_outlive_the_process() {
        // Aim: what was saved is loaded, by the next process, and an absent row is no error.
        let folder = tempfile::tempdir().unwrap();
        let mark = Mark { number: 42, content: "abc".into() };
        let mut page = Page::default();
        page.put(Row::Epoch, &mark);
        Store::open(folder.path()).unwrap().write(page);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.load::<Mark>(Row::Epoch).unwrap(), Some(mark));
        assert_eq!(store.load::<Mark>(Row::Applied).unwrap(), None);
        assert!(store.load::<Vec<u8>>(Row::Epoch).unwrap_err().to_string().contains("row `epoch`"));
    }

    #[test]
    fn the_floor_only_needs_the_blocks_it_has() {
        // Aim: the highest number survives, and the file keeps its size whatever the number.
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.floor(), 0);
        for number in [1, 1000, u64::MAX] {
            store.write(Page { floor: Some(number), ..Page::default() });
            assert_eq!(fs::metadata(folder.path().join(FLOOR)).unwrap().len(), 21);
            assert_eq!(store.floor(), number);
        }
    }

    #[test]
    fn two_control_planes_cannot_share_a_book() {
        // Aim: the second one is told why.
        let folder = tempfile::tempdir().unwrap();
        let _first = Store::open(folder.path()).unwrap();
        assert!(Store::open(folder.path()).err().unwrap().to_string().contains("another control plane"));
    }
}
