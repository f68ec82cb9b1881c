//! The book in a folder: `book.redb`, and beside it the highest epoch number.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, TableDefinition};

use super::{Row, Rows, StoreError};

const FILE: &str = "book.redb";
const FLOOR: &str = "epoch";
/// Digits of [`FLOOR`]: as many as the largest number has, so that its blocks never change in size.
const FLOOR_DIGITS: usize = 20;
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");

/// See the module. After a failed write it is opened anew.
pub(super) struct File {
    path: PathBuf,
    floor: PathBuf,
    database: Mutex<Option<Database>>,
}

impl File {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        let remedy = "check space and rights there, or choose another folder with --data-dir";
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| StoreError {
            verb: "open",
            path: path.clone(),
            cause: error.to_string(),
            remedy,
        })?;
        let database = open_file(&path).map_err(|cause| StoreError { verb: "open", path: path.clone(), cause, remedy })?;
        Ok(Self { path, floor: folder.join(FLOOR), database: Mutex::new(Some(database)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn load(&self, row: Row) -> Result<Option<Vec<u8>>, String> {
        let guard = self.database.lock();
        let database = guard.as_ref().ok_or("it is closed")?;
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            match database.begin_read()?.open_table(ROWS) {
                Ok(rows) => Ok(rows.get(row.key())?.map(|value| value.value().to_vec())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        read().map_err(|error| error.to_string())
    }

    pub(super) fn write(&self, floor: Option<u64>, rows: Rows) -> Result<(), String> {
        if let Some(number) = floor {
            self.raise_floor(number);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut guard = self.database.lock();
        let database = match guard.take() {
            Some(database) => database,
            None => open_file(&self.path)?,
        };
        // An I/O error closes the database for good; the next write opens it again.
        commit(&database, &rows).map_err(|error| error.to_string())?;
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

    pub(super) fn floor(&self) -> u64 {
        fs::read_to_string(&self.floor).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Sized + '_ {
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

fn commit(database: &Database, rows: &Rows) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for (row, bytes) in rows {
        transaction.open_table(ROWS)?.insert(row.key(), bytes.as_slice())?;
    }
    Ok(transaction.commit()?)
}
