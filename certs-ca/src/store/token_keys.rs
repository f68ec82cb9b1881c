//! Keys of JWT-SVIDs at rest, by their name: eight bytes of when it begins to sign, then PKCS#8.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use zeroize::Zeroizing;

use super::{Store, StoreError};
use crate::minting::TokenKey;

const TOKEN_KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("token_keys");
const TIME_BYTES: usize = 8;
/// What their names in a vault begin with.
const IN_VAULT: &str = "token-key.";

pub(super) fn create(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(TOKEN_KEYS)?;
    Ok(())
}

impl Store {
    /// Adds a key and removes others, all or none.
    ///
    /// # Errors
    /// [`StoreError::Access`]; nothing was written.
    pub fn put_token_key(&self, fresh: Option<&TokenKey>, gone: &[String]) -> Result<(), StoreError> {
        let fresh = fresh.map(|key| (key.kid.as_str(), Zeroizing::new([&key.signs_from.to_be_bytes()[..], &key.pkcs8].concat())));
        if let Some(vault) = &self.vault {
            let name = |kid: &str| format!("{IN_VAULT}{kid}");
            let added = fresh.iter().map(|(kid, row)| (name(kid), Some(row.as_slice())));
            return vault.change(gone.iter().map(|kid| (name(kid), None)).chain(added));
        }
        self.write(|transaction| {
            let mut keys = transaction.open_table(TOKEN_KEYS)?;
            if let Some((kid, row)) = &fresh {
                keys.insert(*kid, row.as_slice())?;
            }
            for kid in gone {
                keys.remove(kid.as_str())?;
            }
            Ok(())
        })
    }

    /// Every key.
    ///
    /// # Errors
    /// [`StoreError::Access`]; [`StoreError::Corrupt`] where one does not read back.
    pub fn token_keys(&self) -> Result<Vec<TokenKey>, StoreError> {
        let rows: Vec<Zeroizing<Vec<u8>>> = match &self.vault {
            Some(vault) => vault.below(IN_VAULT).into_values().collect(),
            None => self.reading(|transaction| {
                let keys = transaction.open_table(TOKEN_KEYS)?;
                keys.iter()?.map(|row| Ok(Zeroizing::new(row?.1.value().to_vec()))).collect()
            })?,
        };
        let key = |row: Zeroizing<Vec<u8>>| {
            let (time, pkcs8) = row.split_first_chunk::<TIME_BYTES>()?;
            TokenKey::read(pkcs8, i64::from_be_bytes(*time)).ok()
        };
        let corrupt = || StoreError::Corrupt { path: self.path(), what: "key of JWT-SVIDs" };
        rows.into_iter().map(|row| key(row).ok_or_else(corrupt)).collect()
    }
}
