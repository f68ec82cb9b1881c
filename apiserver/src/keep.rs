//! What must outlive a replica: rows in one Secret and in one ConfigMap, written by the lease holder alone.
//!
//! How a deposed holder's write fails: at the begin of its term a holder *claims* each object, which writes its name on it (annotation
//! [`TERM`]) over the version that it has read. From then on a write that names an earlier version is refused (409) by the API server; who
//! is refused reads the object, finds another's name and gives up: the write ([`KeepError::Deposed`]), and the term with it, because without
//! a claim nothing can be kept. Where the lease was its own still (somebody has put an older version of the object back, say), it is won
//! again, and the object claimed anew. So it does not matter when a process that
//! stood still wakes up: what it wrote before the claim has been read by it, what it writes later is refused. That the lease has been
//! lost is looked at, too, but nothing depends on it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use k8s_openapi::ByteString;
pub use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::{Metadata, NamespaceResourceScope};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::client::{CallError, Fault, within};
use crate::lease::Tenure;

/// Whose term an object is of: `NUMBER HOLDER`.
pub const TERM: &str = "meshwright.dev/term";
/// Bytes of all rows of an object, and of their names. Kubernetes takes 1 MiB of values; the rest is room for what others write on it. A
/// write beyond it changes nothing ([`KeepError::Full`]).
pub const BYTES_MAX: usize = (1 << 20) - (16 << 10);
/// One call; a term is over before the second of these.
const CALL_MAX: Duration = Duration::from_millis(1500);
/// Pause after a call that may do later.
const RETRY: Duration = Duration::from_millis(200);
/// A claim that is forbidden is tried again for so long: an API server that has just started may know neither us nor our rights yet.
const FORBIDDEN_MAX: Duration = Duration::from_secs(2);
/// How long a caller without a runtime waits: longer than a term that cannot be renewed.
const BLOCK_MAX: Duration = Duration::from_secs(10);

/// Rows by name; names as Kubernetes takes them: `[-._a-zA-Z0-9]+`.
pub type Rows = BTreeMap<String, Vec<u8>>;
/// Rows to be written; `None`: to be removed.
pub type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// Why something is not kept, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// The lease was lost before the API server said yes.
    #[error("cannot {verb} {place}: the lease was lost before the API server answered{last}")]
    Lost {
        /// `claim` or `write`.
        verb: &'static str,
        /// Which object.
        place: String,
        /// The last answer, after a colon; empty: none.
        last: String,
    },
    /// Another holder has claimed it.
    #[error("cannot write {place}: it is of the term of {holder} now")]
    Deposed {
        /// Which object.
        place: String,
        /// Number and name.
        holder: String,
    },
    /// It would be too large.
    #[error(
        "cannot write {place}: it would hold {bytes} bytes, and an object takes {BYTES_MAX}; the largest row is `{row}` with {row_bytes} bytes"
    )]
    Full {
        /// Which object.
        place: String,
        /// What it would hold.
        bytes: usize,
        /// The largest row.
        row: String,
        /// Its bytes.
        row_bytes: usize,
    },
    /// The API server says no.
    #[error("cannot {verb} {place}: {cause}")]
    Call {
        /// `claim` or `write`.
        verb: &'static str,
        /// Which object.
        place: String,
        /// What it says.
        cause: String,
    },
}

/// A kind of object that holds rows.
pub trait Shelf:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Metadata<Ty = ObjectMeta>
    + Clone
    + Debug
    + Default
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// What it holds.
    fn rows(&self) -> Rows;
    /// Makes it hold these.
    fn set(&mut self, rows: Rows);
}

impl Shelf for Secret {
    fn rows(&self) -> Rows {
        self.data.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone())).collect()
    }

    fn set(&mut self, rows: Rows) {
        self.data = Some(rows.into_iter().map(|(name, value)| (name, ByteString(value))).collect());
    }
}

impl Shelf for ConfigMap {
    fn rows(&self) -> Rows {
        self.data.iter().flatten().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect()
    }

    /// A row that is no text is left out: all of ours are.
    fn set(&mut self, rows: Rows) {
        self.data = Some(rows.into_iter().filter_map(|(name, value)| Some((name, String::from_utf8(value).ok()?))).collect());
    }
}

/// One object, claimed for one term.
pub struct Keep<K> {
    api: Api<K>,
    name: String,
    place: String,
    mark: String,
    tenure: Tenure,
    runtime: Handle,
    /// As it was last read or written. Locked for the whole of a write: one after the other.
    held: Mutex<K>,
}

impl<K: Shelf> Keep<K> {
    /// Claims the object for this term; makes it where there is none. Tries as long as the term lasts. Has to be called within a runtime.
    ///
    /// # Errors
    /// The term is over first ([`KeepError::Lost`]), or the API server forbids it.
    pub async fn claim(client: Client, namespace: &str, name: &str, tenure: &Tenure) -> Result<Self, KeepError> {
        let api = Api::namespaced(client, namespace);
        let place = format!("{} {namespace}/{name}", K::kind(&()));
        let mark = format!("{} {}", tenure.number(), tenure.me());
        let (mut last, begun) = (String::new(), Instant::now());
        while tenure.holds() {
            match claim(&api, name, &mark, tenure).await {
                Ok(object) => {
                    let (name, tenure, held) = (name.to_owned(), tenure.clone(), Mutex::new(object));
                    return Ok(Self { api, name, place, mark, tenure, runtime: Handle::current(), held });
                }
                // Somebody wrote it between read and claim, a former holder maybe: what it wrote counts.
                Err(CallError { fault: Fault::Conflict | Fault::Missing, .. }) => {}
                Err(error) if error.fault == Fault::Later || (error.fault == Fault::Forbidden && begun.elapsed() < FORBIDDEN_MAX) => {
                    last = format!(": {error}");
                    sleep(RETRY).await;
                }
                Err(error) => return Err(KeepError::Call { verb: "claim", place, cause: error.text }),
            }
        }
        Err(KeepError::Lost { verb: "claim", place, last })
    }

    /// Kind, namespace and name, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What it holds, as far as this term knows.
    pub async fn rows(&self) -> Rows {
        self.held.lock().await.rows()
    }

    /// Writes rows, all or none. Where it was deleted meanwhile it is made again, with all that it held. Dropped mid-way, it may have
    /// been written.
    ///
    /// # Errors
    /// [`KeepError`]; after [`KeepError::Lost`] it is not known whether it was written.
    pub async fn write(&self, changes: &Changes) -> Result<(), KeepError> {
        let mut held = self.held.lock().await;
        let mut last = String::new();
        while self.tenure.holds() {
            let Some(wanted) = self.changed(&held, changes)? else { return Ok(()) };
            let error = match within(CALL_MAX, self.api.replace(&self.name, &PostParams::default(), &wanted)).await {
                Ok(written) => {
                    *held = written;
                    return Ok(());
                }
                Err(error) => error,
            };
            match error.fault {
                Fault::Conflict | Fault::Missing => self.reread(&mut held).await?,
                Fault::Later => {
                    last = format!(": {error}");
                    sleep(RETRY).await;
                }
                _ => return Err(self.refused(error)),
            }
        }
        Err(KeepError::Lost { verb: "write", place: self.place.clone(), last })
    }

    /// Makes it again, with all that it held, where somebody has deleted it; true: it was. Whose it is where it is there, the next write finds out.
    ///
    /// # Errors
    /// The API server does not say whether it is there, or does not take it.
    pub async fn mend(&self) -> Result<bool, KeepError> {
        let look = |error: CallError| KeepError::Call { verb: "look for", place: self.place.clone(), cause: error.text };
        if within(CALL_MAX, self.api.get_opt(&self.name)).await.map_err(look)?.is_some() {
            return Ok(false);
        }
        let mut held = self.held.lock().await;
        if !self.tenure.holds() {
            return Ok(false);
        }
        match within(CALL_MAX, self.api.create(&PostParams::default(), &fresh(&held, &self.name, &self.mark))).await {
            Ok(made) => *held = made,
            // A write was first.
            Err(error) if error.fault == Fault::Conflict => return Ok(false),
            Err(error) => return Err(self.refused(error)),
        }
        Ok(true)
    }

    /// [`Keep::write`] for who has no runtime: waits on this thread, for ten seconds at most.
    ///
    /// # Errors
    /// [`Keep::write`]'s.
    pub fn write_blocking(self: &Arc<Self>, changes: Changes) -> Result<(), KeepError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let keep = self.clone();
        let writing = self.runtime.spawn(async move {
            // Whoever asked may have given up.
            let _ = sender.send(keep.write(&changes).await);
        });
        let late = || KeepError::Lost { verb: "write", place: self.place.clone(), last: String::new() };
        receiver.recv_timeout(BLOCK_MAX).unwrap_or_else(|_| {
            // Nobody waits for it any more: those given up must not pile up while the API server takes nothing.
            writing.abort();
            Err(late())
        })
    }

    /// [`Keep::rows`] for who has no runtime. `None`: a write is under way.
    pub fn rows_blocking(&self) -> Option<Rows> {
        self.held.try_lock().ok().map(|held| held.rows())
    }

    /// The object as it is to be; `None`: it is so already.
    fn changed(&self, held: &K, changes: &Changes) -> Result<Option<K>, KeepError> {
        let before = held.rows();
        let mut rows = before.clone();
        for (name, value) in changes {
            match value {
                Some(value) => rows.insert(name.clone(), value.clone()),
                None => rows.remove(name),
            };
        }
        if rows == before {
            return Ok(None);
        }
        let bytes = rows.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > BYTES_MAX {
            let largest = rows.iter().max_by_key(|(_, value)| value.len());
            let (row, row_bytes) = largest.map(|(name, value)| (name.clone(), value.len())).unwrap_or_default();
            return Err(KeepError::Full { place: self.place.clone(), bytes, row, row_bytes });
        }
        let mut wanted = held.clone();
        wanted.set(rows);
        Ok(Some(wanted))
    }

    /// After a conflict: whose is it now? Ours: an answer was lost, or somebody wrote a label on it. Gone: it is made again.
    async fn reread(&self, held: &mut K) -> Result<(), KeepError> {
        let found = match within(CALL_MAX, self.api.get_opt(&self.name)).await {
            Ok(found) => found,
            // The next write meets the same conflict, and comes back here.
            Err(error) if error.fault == Fault::Later => {
                sleep(RETRY).await;
                return Ok(());
            }
            Err(error) => return Err(self.refused(error)),
        };
        let Some(found) = found else {
            let made = fresh(held, &self.name, &self.mark);
            match within(CALL_MAX, self.api.create(&PostParams::default(), &made)).await {
                Ok(made) => *held = made,
                Err(error) if matches!(error.fault, Fault::Conflict | Fault::Later) => {}
                Err(error) => return Err(self.refused(error)),
            }
            return Ok(());
        };
        match found.annotations().get(TERM) {
            Some(mark) if *mark == self.mark => *held = found,
            mark => {
                let holder = mark.cloned().unwrap_or_else(|| "nobody".to_owned());
                self.tenure.give_up();
                return Err(KeepError::Deposed { place: self.place.clone(), holder });
            }
        }
        Ok(())
    }

    fn refused(&self, error: CallError) -> KeepError {
        KeepError::Call { verb: "write", place: self.place.clone(), cause: error.text }
    }
}

async fn claim<K: Shelf>(api: &Api<K>, name: &str, mark: &str, tenure: &Tenure) -> Result<K, CallError> {
    let found = within(CALL_MAX, api.get_opt(name)).await?;
    // An answer that took its time may show the next holder's claim: that one is not overwritten.
    if !tenure.holds() {
        return Err(CallError { fault: Fault::Conflict, text: "the lease was lost meanwhile".to_owned() });
    }
    let Some(mut object) = found else {
        return within(CALL_MAX, api.create(&PostParams::default(), &fresh(&K::default(), name, mark))).await;
    };
    if object.annotations().get(TERM).is_some_and(|written| written == mark) {
        return Ok(object);
    }
    object.annotations_mut().insert(TERM.to_owned(), mark.to_owned());
    within(CALL_MAX, api.replace(name, &PostParams::default(), &object)).await
}

/// The same rows in an object that does not exist yet.
fn fresh<K: Shelf>(held: &K, name: &str, mark: &str) -> K {
    let mut object = held.clone();
    let labels =
        held.meta().labels.clone().unwrap_or_else(|| [("app.kubernetes.io/managed-by".to_owned(), "meshwright".to_owned())].into());
    let annotations = Some([(TERM.to_owned(), mark.to_owned())].into());
    *object.meta_mut() = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), annotations, ..ObjectMeta::default() };
    object
}

#[cfg(test)]
mod tests;
