//! What the control plane remembers: in its data folder (`book.redb`, 0600), or, where replicas take turns, in objects of the cluster.
//!
//! A few rows of JSON, each written whole, those of one step together. A write may take as long as the disk or the API server likes, so
//! it is done off the runtime. A disk that takes nothing is said once and tried again with the next change: the mesh goes on from memory.
//! What a cluster does not take, nobody is told ([`Store::write`]): another replica may be the holder by now.

mod file;
mod shared;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use file::File;
pub use shared::Shared;

/// The rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// [`crate::publish::epoch::Mark`].
    Epoch,
    /// Objects given by `apply`, which override the folder's. Not in a cluster, where they are the cluster's.
    Applied,
    /// First acceptance of each object that does not say its age itself.
    Ages,
    /// Addresses of Services and instances.
    Allocations,
    /// What the node agent last reported. Not in a cluster, which knows better.
    Runtime,
    /// What tokens of sessions are made with.
    SessionKey,
    /// What session tickets of edges are made with.
    Tickets,
    /// Accounts at certificate authorities, and how orders of certificates stand.
    Acme,
    /// What sessions of logins are sealed with.
    LoginSeeds,
    /// How canaries stand, and what was decided and observed.
    Canaries,
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
            Self::Tickets => "tickets",
            Self::Acme => "acme",
            Self::LoginSeeds => "login-seeds",
            Self::Canaries => "canaries",
        }
    }
}

/// Epoch numbers that are noted ahead where replicas take turns: so many may be told while the cluster takes no write of the book. A takeover
/// begins above them.
const AHEAD: u64 = 64;

/// Why the book cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} the control plane's book {path}: {cause}; {remedy}")]
pub struct StoreError {
    /// `open`, `read` or `write`.
    pub verb: &'static str,
    /// The file or object.
    pub path: PathBuf,
    /// What the system says.
    pub cause: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Rows by kind, encoded.
type Rows = BTreeMap<Row, Vec<u8>>;

/// Rows to be written together, already encoded: pure until [`Store::write`].
#[derive(Clone, Debug, Default)]
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

    /// The highest number that it notes.
    pub fn floor(&self) -> Option<u64> {
        self.floor
    }

    /// This page over an older one: what both have is as here, but numbers never go back.
    #[must_use]
    pub fn over(self, older: Self) -> Self {
        let (floor, mut rows) = (self.floor.max(older.floor), older.rows);
        rows.extend(self.rows);
        Self { floor, rows }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.floor.is_none() && self.rows.is_empty()
    }
}

/// The open book.
pub struct Store {
    place: Place,
    /// Apart from the place, so that who asks for it never waits for a disk.
    failure: Mutex<Option<String>>,
}

enum Place {
    File(File),
    Shared(Shared),
}

impl Store {
    /// Opens or creates the book in `folder`, which is created 0700 where it is missing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self { place: Place::File(File::open(folder)?), failure: Mutex::default() })
    }

    /// A book in objects of a cluster, for one term of the lease.
    pub fn shared(shared: Shared) -> Self {
        Self { place: Place::Shared(shared), failure: Mutex::default() }
    }

    /// Reads a row; `None` where there is none yet.
    ///
    /// # Errors
    /// [`StoreError`], also for a row that does not read back.
    pub fn load<T: DeserializeOwned>(&self, row: Row) -> Result<Option<T>, StoreError> {
        let read = match &self.place {
            Place::File(file) => file.load(row),
            Place::Shared(shared) => Ok(shared.load(row)),
        };
        let row = read.and_then(|bytes| {
            let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| format!("row `{}`: {error}", row.key()));
            bytes.map(read).transpose()
        });
        let remedy = "restore it from a backup, or move it away to start over";
        row.map_err(|cause| StoreError { verb: "read", path: self.path(), cause, remedy })
    }

    /// Writes a page, durably and whole. Blocks for as long as the place takes: not for a runtime's threads. A failure is logged and kept
    /// for [`Store::failure`]. False: what the page holds must not be told to anybody, the place is another's or cannot be asked.
    #[must_use]
    pub fn write(&self, page: Page) -> bool {
        let Page { floor, rows } = page;
        let rows: Result<Rows, String> = rows.into_iter().map(|(row, bytes)| Ok((row, bytes?))).collect();
        let (tell, written, remedy) = match (&self.place, rows) {
            (_, Err(cause)) => (true, Err(cause), "this is a fault of this program"),
            (Place::File(file), Ok(rows)) => {
                let remedy = "the mesh goes on from memory; make space or rights there before the control plane restarts";
                (true, file.write(floor, rows), remedy)
            }
            (Place::Shared(shared), Ok(rows)) => {
                let (tell, written) = shared.write(floor, rows);
                (tell, written, "see `meshwright check` and the rights of the control plane's service account")
            }
        };
        match written {
            Ok(()) => {
                if self.failure.lock().take().is_some() {
                    tracing::info!(path = %self.path().display(), "the book can be written again");
                }
            }
            Err(cause) => {
                let error = StoreError { verb: "write", path: self.path(), cause, remedy };
                if self.failure.lock().replace(error.to_string()).is_none() {
                    tracing::error!(%error);
                }
            }
        }
        tell
    }

    /// How many numbers beyond the one that is due are noted with it. 0: each is noted before it is told, and all else with it; otherwise the
    /// rest may be written after it was told.
    pub fn ahead(&self) -> u64 {
        match &self.place {
            Place::File(_) => 0,
            Place::Shared(_) => AHEAD,
        }
    }

    /// The highest number ever noted.
    pub fn floor(&self) -> u64 {
        match &self.place {
            Place::File(file) => file.floor(),
            Place::Shared(shared) => shared.floor(),
        }
    }

    /// Why the last write failed, if it did. Waits for nothing.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    fn path(&self) -> PathBuf {
        match &self.place {
            Place::File(file) => file.path().to_owned(),
            Place::Shared(shared) => shared.place().into(),
        }
    }

    /// Holds every write up until the guard is dropped, as a slow disk would.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        match &self.place {
            Place::File(file) => Some(file.hold()),
            Place::Shared(_) => None,
        }
    }
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
        assert!(Store::open(folder.path()).unwrap().write(page));
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
            assert!(store.write(Page { floor: Some(number), ..Page::default() }));
            assert_eq!(std::fs::metadata(folder.path().join("epoch")).unwrap().len(), 21);
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
