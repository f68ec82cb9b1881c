//! Names of what the control plane keeps at the API server, in its own namespace. `meshwright install` gives rights to just these.

/// The Lease by which replicas agree who serves.
pub const LEASE: &str = "meshwright-control";
/// The Secret with the keys of the mesh's own authority.
pub const KEYS: &str = "meshwright-keys";
/// The ConfigMap with the epoch's number and the times of first acceptance.
pub const BOOK: &str = "meshwright-book";
