//! The audit log at rest: issuances by a running number, the oldest first.

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::{BOOK, Store, StoreError};
use crate::audit::{AGE_MAX_SECS, ISSUANCES_MAX, Issuance, Query};
use crate::book::IssuedLeaf;

const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
/// Rows that one write forgets at most, so that none takes long. Each writes fewer.
const FORGOTTEN_MAX: usize = 64;

pub(super) fn create(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(AUDIT)?;
    Ok(())
}

impl Store {
    /// Writes rows of the book, removes others, and adds rows to the audit log; all or none. Forgets what is too old or too much there.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn put_issued(&self, entries: &[IssuedLeaf], gone: &[String], issuances: &[Issuance], now: i64) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut book = transaction.open_table(BOOK)?;
            for entry in entries {
                book.insert(entry.serial.as_str(), serde_json::to_vec(entry).unwrap_or_default().as_slice())?;
            }
            for serial in gone {
                book.remove(serial.as_str())?;
            }
            let mut log = transaction.open_table(AUDIT)?;
            let next = log.last()?.map_or(0, |(number, _)| number.value() + 1);
            for (number, issuance) in (next..).zip(issuances) {
                log.insert(number, serde_json::to_vec(issuance).unwrap_or_default().as_slice())?;
            }
            forget(&mut log, issuances.len() + FORGOTTEN_MAX, now - AGE_MAX_SECS)
        })
    }

    /// The newest rows of the audit log that are wanted, newest first, at most `rows_max`.
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn issuances(&self, query: &Query, rows_max: usize) -> Result<Vec<Issuance>, StoreError> {
        self.reading(|transaction| {
            let log = transaction.open_table(AUDIT)?;
            let mut rows = Vec::new();
            for row in log.iter()?.rev() {
                let Ok(issuance) = serde_json::from_slice::<Issuance>(row?.1.value()) else { continue };
                if query.meets(&issuance.namespace, [&issuance.workload, &issuance.instance], issuance.time) {
                    rows.push(issuance);
                }
                if rows.len() == rows_max {
                    break;
                }
            }
            Ok(rows)
        })
    }

    /// The row of the leaf with this SHA-256 (lower-case hex).
    ///
    /// # Errors
    /// [`StoreError::Access`].
    pub fn issuance(&self, leaf_sha256: &str) -> Result<Option<Issuance>, StoreError> {
        // Few rows are read as JSON: the log is long.
        let names_it = |row: &[u8]| std::str::from_utf8(row).is_ok_and(|text| text.contains(leaf_sha256));
        self.reading(|transaction| {
            for row in transaction.open_table(AUDIT)?.iter()?.rev() {
                let row = row?.1;
                let issuance = names_it(row.value()).then(|| serde_json::from_slice::<Issuance>(row.value()).ok()).flatten();
                if let Some(issuance) = issuance.filter(|issuance| issuance.leaf_sha256 == leaf_sha256) {
                    return Ok(Some(issuance));
                }
            }
            Ok(None)
        })
    }
}

fn forget(log: &mut redb::Table<'_, u64, &[u8]>, rows_max: usize, before: i64) -> Result<(), redb::Error> {
    for _ in 0..rows_max {
        let full = log.len()? > ISSUANCES_MAX;
        let old = |row: &[u8]| serde_json::from_slice::<Issuance>(row).map_or(true, |issuance| issuance.time < before);
        let Some(first) = log.first()?.filter(|(_, row)| full || old(row.value())).map(|(number, _)| number.value()) else { break };
        log.remove(first)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tests::issuance;

    fn entry(serial: &str) -> IssuedLeaf {
        let row = issuance(0, 0);
        IssuedLeaf {
            serial: serial.to_owned(),
            identity: row.identity,
            namespace: row.namespace,
            workload: row.workload,
            instance: row.instance,
            not_before: 0,
            not_after: i64::MAX,
            issuer: String::new(),
            root: String::new(),
            for_application: false,
            leaf_sha256: String::new(),
            number: 0,
            pod_uid: String::new(),
        }
    }

    #[test]
    fn the_log_survives_a_restart_and_is_filtered() {
        // Aim: rows come back newest first after the process is gone, by name and by time, and no more than asked for.
        let folder = tempfile::tempdir().unwrap();
        {
            let store = Store::open(folder.path()).unwrap();
            for n in 0..10 {
                store.put_issued(&[entry("a")], &[], &[issuance(n, 100 + i64::try_from(n).unwrap())], 100).unwrap();
            }
        }
        let store = Store::open(folder.path()).unwrap();
        let times = |query: Query, rows_max| store.issuances(&query, rows_max).unwrap().iter().map(|row| row.time).collect::<Vec<_>>();
        assert_eq!(times(Query::default(), 3), [109, 108, 107]);
        assert_eq!(times(Query { name: "catalog-0".into(), since: 103, ..Query::default() }, 100), [109, 106, 103]);
        assert!(times(Query { namespace: "bank".into(), ..Query::default() }, 100).is_empty());
        assert_eq!(store.entries().unwrap().len(), 1);
        let found = |serial: usize| store.issuance(&format!("{serial:064x}")).unwrap().map(|row| row.time);
        assert_eq!((found(4), found(10), store.issuance("").unwrap()), (Some(104), None, None));
    }

    #[test]
    fn the_log_is_bounded_by_number_and_by_age() {
        // Aim: the oldest go at the bound, and what is too old goes with a later write.
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let many: Vec<_> = (0..usize::try_from(ISSUANCES_MAX).unwrap()).map(|n| issuance(n, 1_000)).collect();
        store.put_issued(&[entry("a")], &[], &many, 1_000).unwrap();
        store.put_issued(&[entry("b")], &[], &[issuance(1, 2_000), issuance(2, 2_000)], 2_000).unwrap();
        let rows = store.issuances(&Query::default(), usize::MAX).unwrap();
        assert_eq!(rows.len(), many.len());
        assert_eq!((rows[0].serial.as_str(), rows[rows.len() - 1].serial.as_str()), ("00000002", "00000002"), "two came, two went");
        store.put_issued(&[entry("c")], &[], &[issuance(3, 1_001 + AGE_MAX_SECS)], 1_001 + AGE_MAX_SECS).unwrap();
        let left = store.issuances(&Query::default(), usize::MAX).unwrap().len();
        assert_eq!(left, many.len() + 1 - 1 - FORGOTTEN_MAX);
    }
}
