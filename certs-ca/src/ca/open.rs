//! How an authority begins: what it takes up, and from where.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::issue::Desk;
use super::{Ca, CaError, Clock, Keys, State, subject};
use crate::authority::Issuing;
use crate::book::Register;
use crate::external::{External, ExternalFiles};
use crate::own::OwnRoots;
use crate::policy::Policy;
use crate::roots::sha256;
use crate::store::{Store, Vault};

impl Ca {
    /// Opens the authority's store in `folder`; makes root and issuing key at the first start.
    ///
    /// # Errors
    /// The store cannot be opened or written, others may read it, or it is corrupt.
    pub fn open(folder: &Path, policy: Policy, clock: Clock) -> Result<Self, CaError> {
        Self::over(Store::open(folder)?, None, policy, clock)
    }

    /// The same, but certificates are signed by an authority of the user's own. Roots that the store holds are left as they are.
    ///
    /// # Errors
    /// Also where the files are no authority that proxies could believe.
    pub fn open_external(folder: &Path, files: &ExternalFiles, policy: Policy, clock: Clock) -> Result<Self, CaError> {
        Self::over(Store::open(folder)?, Some(files), policy, clock)
    }

    /// One or the other, with keys in a vault that replicas share which take turns. Join tokens, the book of issued leaves and the audit
    /// log stay in `folder`: a leaf that another replica has issued is in no book here, and its holder joins again with its token.
    ///
    /// # Errors
    /// Also where the vault gives or takes nothing.
    pub fn open_shared(
        folder: &Path,
        vault: Box<dyn Vault>,
        files: Option<&ExternalFiles>,
        policy: Policy,
        clock: Clock,
    ) -> Result<Self, CaError> {
        Self::over(Store::open_with(folder, vault)?, files, policy, clock)
    }

    fn over(store: Store, files: Option<&ExternalFiles>, policy: Policy, clock: Clock) -> Result<Self, CaError> {
        if let Some(files) = files {
            let (external, issuing) = External::load(files, clock())?;
            return Self::with(store, Keys::External(external), issuing, policy, clock);
        }
        let (own, issuing) = OwnRoots::open(&store, &policy, clock())?;
        Self::with(store, Keys::Own(own), issuing, policy, clock)
    }

    fn with(store: Store, keys: Keys, issuing: Issuing, policy: Policy, clock: Clock) -> Result<Self, CaError> {
        let (book, gone) = Register::restore(store.entries()?);
        if !gone.is_empty() {
            store.put_issued(&[], &gone, &[], clock().unix_timestamp())?;
        }
        let (issuer, root) = (subject(&issuing.certificate_der), sha256(&issuing.root_der));
        let state = Mutex::new(State { keys, issuing: Arc::new(issuing), issuer, root, policy, book });
        let desk = Desk::open(&store)?;
        Ok(Self { store, clock, state, desk })
    }
}
