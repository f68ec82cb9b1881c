//! The book in a cluster: one ConfigMap for what may be seen, one Secret for what may not, claimed for one term of the lease
//! (`apiserver::keep` says how a deposed holder's write fails).

use std::sync::Arc;

use apiserver::keep::{Changes, Keep, KeepError, Rows as Kept};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::{Row, Rows};

/// Row of the ConfigMap: the highest epoch number that may have been told.
const FLOOR: &str = "floor";
/// Row of the Secret: the same, for when somebody deletes the ConfigMap.
const SAFE_FLOOR: &str = "epoch-floor";

/// The objects, and what they held when the term began.
pub struct Shared {
    book: Arc<Keep<ConfigMap>>,
    safe: Arc<Keep<Secret>>,
    found: Kept,
}

impl Shared {
    /// Takes up what the objects hold.
    pub async fn new(book: Arc<Keep<ConfigMap>>, safe: Arc<Keep<Secret>>) -> Self {
        let mut found = book.rows().await;
        found.extend(safe.rows().await);
        Self { book, safe, found }
    }

    pub(super) fn place(&self) -> String {
        self.book.place().to_owned()
    }

    pub(super) fn load(&self, row: Row) -> Option<Vec<u8>> {
        self.found.get(row.key()).cloned()
    }

    pub(super) fn floor(&self) -> u64 {
        let number = |name| self.found.get(name).and_then(|row| std::str::from_utf8(row).ok()?.trim().parse().ok());
        number(FLOOR).max(number(SAFE_FLOOR)).unwrap_or(0)
    }

    /// Whether it may be told, and what went wrong. Where the ConfigMap is full, ages and addresses stay as they were last written: after
    /// a takeover objects without a `creationTimestamp` may be young again, and addresses that we give out others; numbers never go back.
    pub(super) fn write(&self, floor: Option<u64>, rows: Rows) -> (bool, Result<(), String>) {
        let (mut seen, mut unseen) = (Changes::new(), Changes::new());
        if let Some(number) = floor {
            seen.insert(FLOOR.to_owned(), Some(number.to_string().into_bytes()));
        }
        for (row, bytes) in rows {
            match row {
                Row::Epoch | Row::Ages | Row::Allocations | Row::Canaries => seen.insert(row.key().to_owned(), Some(bytes)),
                Row::SessionKey | Row::Tickets | Row::Acme | Row::LoginSeeds => unseen.insert(row.key().to_owned(), Some(bytes)),
                Row::Applied | Row::Runtime => None,
            };
        }
        if !unseen.is_empty()
            && let Err(error) = self.safe.write_blocking(unseen)
        {
            return (false, Err(error.to_string()));
        }
        if seen.is_empty() {
            return (true, Ok(()));
        }
        let (kept, written) = match self.book.write_blocking(seen.clone()) {
            Ok(()) => (true, Ok(())),
            Err(error @ KeepError::Full { .. }) => {
                seen.retain(|name, _| name == FLOOR || name == Row::Epoch.key() || name == Row::Canaries.key());
                let least = self.book.write_blocking(seen);
                (least.is_ok(), Err(least.err().unwrap_or(error).to_string()))
            }
            Err(error) => (false, Err(error.to_string())),
        };
        let Some(number) = floor.filter(|_| kept) else { return (kept, written) };
        let copy = Changes::from([(SAFE_FLOOR.to_owned(), Some(number.to_string().into_bytes()))]);
        (kept, self.safe.write_blocking(copy).map_err(|error| error.to_string()).and(written))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use apiserver::keep::BYTES_MAX;
    use apiserver::lease::{Election, Term};
    use apiserver::testing::Fake;
    use serde_json::json;

    use super::*;
    use crate::publish::epoch::Mark;
    use crate::store::{Page, Store};

    async fn term(fake: &Fake, me: &str) -> (Term, Arc<Store>) {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control";
        if !fake.state().objects.contains_key(lease) {
            fake.state().put(lease, json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}}));
        }
        let wall = Arc::new(|| SystemTime::UNIX_EPOCH);
        let term = Election::new(fake.client(), "mesh", "control", me, wall).win().await;
        let book = Arc::new(Keep::claim(fake.client(), "mesh", "book", term.tenure()).await.unwrap());
        let safe = Arc::new(Keep::claim(fake.client(), "mesh", "safe", term.tenure()).await.unwrap());
        (term, Arc::new(Store::shared(Shared::new(book, safe).await)))
    }

    async fn write(store: &Arc<Store>, page: Page) -> bool {
        let store = store.clone();
        tokio::task::spawn_blocking(move || store.write(page)).await.unwrap()
    }

    fn page(number: u64) -> Page {
        let mut page = Page::default();
        page.raise_floor(number);
        page.put(Row::Epoch, &Mark { number, content: "abc".into() });
        page
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_takeover_goes_on_where_the_last_holder_stopped() {
        // Aim: epoch, floor and the key of sessions come back, the key from the Secret; what is the cluster's own is not kept.
        let fake = Fake::default();
        let (first, store) = term(&fake, "a").await;
        let mut rows = page(41);
        rows.put(Row::SessionKey, &[7_u8; 32]);
        rows.put(Row::Applied, &["x"]);
        assert!(write(&store, rows).await);
        first.release().await;
        let (_second, store) = term(&fake, "b").await;
        assert_eq!((store.load::<Mark>(Row::Epoch).unwrap().unwrap().number, store.floor()), (41, 41));
        assert_eq!(store.load::<[u8; 32]>(Row::SessionKey).unwrap(), Some([7; 32]));
        assert_eq!(store.load::<Vec<String>>(Row::Applied).unwrap(), None);
        let objects = fake.state().objects.clone();
        assert!(objects["/api/v1/namespaces/mesh/configmaps/book"]["data"].get("session-key").is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_deposed_holder_cannot_keep_it_does_not_tell() {
        // Aim: two holders for a moment: the first one's epoch is refused and not to be told; the second one's number is not used twice.
        let fake = Fake::default();
        let (_first, stale) = term(&fake, "a").await;
        assert!(write(&stale, page(41)).await);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control";
        let mut given = fake.state().objects[lease].clone();
        given["spec"]["holderIdentity"] = json!("");
        fake.state().put(lease, given);
        let (_second, store) = term(&fake, "b").await;
        assert!(!write(&stale, page(42)).await);
        assert!(stale.failure().unwrap().contains("ConfigMap mesh/book"), "{:?}", stale.failure());
        assert!(write(&store, page(42)).await);
        assert_eq!(store.failure(), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_object_still_takes_the_number() {
        // Aim: at the bound of 1 MiB ages stay as they were, epochs go on, and the failure is told until there is room.
        let fake = Fake::default();
        let (_term, store) = term(&fake, "a").await;
        let mut rows = page(7);
        rows.put(Row::Ages, &"x".repeat(BYTES_MAX));
        assert!(write(&store, rows).await);
        assert!(store.failure().unwrap().contains("the largest row is `ages`"));
        assert_eq!(fake.state().objects["/api/v1/namespaces/mesh/configmaps/book"]["data"]["floor"], "7");
        assert!(write(&store, page(8)).await);
        assert_eq!(store.failure(), None);
    }
}
