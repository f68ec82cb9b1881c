//! Keys that lie elsewhere: where several replicas take turns, the one that signs has what the one before it wrote.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use super::StoreError;

/// Rows by name: letters, digits, `-`, `_` and `.`.
pub type VaultRows = BTreeMap<String, Zeroizing<Vec<u8>>>;
/// Rows to be written; `None`: to be removed.
pub type VaultChanges = BTreeMap<String, Option<Zeroizing<Vec<u8>>>>;

/// A place for keys that is not this machine's disk. Blocking: it is asked off the runtime, and bounds its own wait.
pub trait Vault: Send + Sync {
    /// Its name, for messages.
    fn place(&self) -> String;

    /// Everything that it holds.
    ///
    /// # Errors
    /// A sentence that names the place.
    fn load(&self) -> Result<VaultRows, String>;

    /// Writes rows, all or none. Has to fail where somebody else may have written since [`Vault::load`].
    ///
    /// # Errors
    /// A sentence that names the place. They may have been written all the same, where no answer came.
    fn keep(&self, changes: VaultChanges) -> Result<(), String>;
}

/// A vault, and what it holds as far as we know.
pub(super) struct Unlocked {
    vault: Box<dyn Vault>,
    rows: Mutex<VaultRows>,
}

impl Unlocked {
    pub(super) fn load(vault: Box<dyn Vault>) -> Result<Self, StoreError> {
        let rows = vault.load().map_err(|cause| StoreError::Vault { verb: "read", cause })?;
        Ok(Self { vault, rows: Mutex::new(rows) })
    }

    pub(super) fn place(&self) -> String {
        self.vault.place()
    }

    pub(super) fn row(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Rows whose name begins so, by the rest of it.
    pub(super) fn below(&self, prefix: &str) -> VaultRows {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone()))).collect()
    }

    /// The vault first: what it does not take is not so.
    pub(super) fn change<'a>(&self, changes: impl IntoIterator<Item = (String, Option<&'a [u8]>)>) -> Result<(), StoreError> {
        let owned = |value: Option<&[u8]>| value.map(|value| Zeroizing::new(value.to_vec()));
        let changes: VaultChanges = changes.into_iter().map(|(name, value)| (name, owned(value))).collect();
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        self.vault.keep(changes.clone()).map_err(|cause| StoreError::Vault { verb: "write", cause })?;
        for (name, value) in changes {
            match value {
                Some(value) => rows.insert(name, value),
                None => rows.remove(&name),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use time::OffsetDateTime;

    use super::*;
    use crate::csr::Csr;
    use crate::csr::tests::request;
    use crate::roots::Phase;
    use crate::roots::life::History;
    use crate::store::{Pair, Seal, Store};
    use crate::{Ca, Policy, Proof, Step, TokenOrder};

    /// A vault in memory, that others may share.
    #[derive(Clone, Default)]
    struct Shared {
        rows: Arc<Mutex<VaultRows>>,
        away: Arc<AtomicBool>,
    }

    impl Vault for Shared {
        fn place(&self) -> String {
            "Secret mesh/ca".to_owned()
        }

        fn load(&self) -> Result<VaultRows, String> {
            Ok(self.rows.lock().unwrap().clone())
        }

        fn keep(&self, changes: VaultChanges) -> Result<(), String> {
            if self.away.load(Ordering::Relaxed) {
                return Err("cannot write Secret mesh/ca: the lease was lost".to_owned());
            }
            let mut rows = self.rows.lock().unwrap();
            for (name, value) in changes {
                match value {
                    Some(value) => rows.insert(name, value),
                    None => rows.remove(&name),
                };
            }
            Ok(())
        }
    }

    fn pair(byte: u8) -> Pair {
        Pair { certificate: vec![byte], key: Zeroizing::new(vec![byte, byte]) }
    }

    #[test]
    fn keys_lie_in_the_vault_and_never_in_the_file() {
        // Aim: another replica, with a folder of its own, has what this one wrote; the file of neither holds a key; a step is whole.
        let (one, two, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Shared::default());
        let store = Store::open_with(one.path(), Box::new(shared.clone())).unwrap();
        assert!(store.pair(Seal::Root).unwrap().is_none() && store.history().unwrap().is_none());
        store.put_pairs(&[(Seal::Root, &pair(1)), (Seal::Issuing, &pair(2))]).unwrap();
        store.step(&History::default(), &[(Seal::Next, &pair(3))], Some(Seal::Issuing)).unwrap();
        let other = Store::open_with(two.path(), Box::new(shared.clone())).unwrap();
        assert_eq!(other.pair(Seal::Root).unwrap().unwrap().key.as_slice(), [1, 1]);
        assert_eq!(other.pair(Seal::Next).unwrap().unwrap().certificate, [3]);
        assert!(other.pair(Seal::Issuing).unwrap().is_none());
        assert_eq!(other.history().unwrap(), Some(History::default()));
        drop(store);
        assert!(Store::open(one.path()).unwrap().pair(Seal::Root).unwrap().is_none(), "nothing of it is on the disk");
    }

    #[test]
    fn what_the_vault_does_not_take_is_not_so() {
        // Aim: after a failed write the rows are as they were, and the sentence names the place.
        let (folder, shared) = (tempfile::tempdir().unwrap(), Shared::default());
        let store = Store::open_with(folder.path(), Box::new(shared.clone())).unwrap();
        store.put_pairs(&[(Seal::Root, &pair(1))]).unwrap();
        shared.away.store(true, Ordering::Relaxed);
        let error = store.put_pairs(&[(Seal::Root, &pair(2))]).unwrap_err().to_string();
        assert!(error.contains("Secret mesh/ca"), "{error}");
        assert_eq!(store.pair(Seal::Root).unwrap().unwrap().certificate, [1]);
    }

    #[test]
    fn replicas_that_take_turns_are_one_authority() {
        // Aim: the next replica, with a folder of its own, has the same roots and keys of JWT-SVIDs, goes on with a rotation that the first
        // one began, and does not know the first one's leaves by its book, which it says; deposed in a step, it has not taken it.
        let (one, two, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Shared::default());
        let open = |folder: &Path| {
            let clock = Arc::new(|| OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap());
            Ca::open_shared(folder, Box::new(shared.clone()), None, Policy::default(), clock).unwrap()
        };
        let first = open(one.path());
        let csr = Csr::parse(&request(&["spiffe://cluster.local/ns/shop/sa/catalog"], "catalog")).unwrap();
        let order = TokenOrder { workload: "shop/catalog".into(), identity: csr.identity.clone(), instance: None, life: None };
        let leaf = first.sign(&csr, &Proof::Token(&first.issue_token(&order).unwrap()), "catalog-0", None).unwrap();
        let keys = first.token_keys().unwrap();
        let trusting = first.rotate(Step::Trust).unwrap();
        drop(first);
        let second = open(two.path());
        assert_eq!((second.roots(), second.token_keys().unwrap()), (trusting, keys));
        let issuing = second.rotate(Step::Issue).unwrap();
        assert_eq!(issuing.phase(), Phase::Issuing);
        let error = second.sign(&csr, &Proof::Leaf(&leaf.chain[0]), "catalog-0", None).err().unwrap().to_string();
        assert!(error.contains("join again"), "{error}");
        shared.away.store(true, Ordering::Relaxed);
        assert!(second.rotate(Step::Drop).err().unwrap().to_string().contains("Secret mesh/ca"));
        assert_eq!(second.roots(), issuing);
    }
}
