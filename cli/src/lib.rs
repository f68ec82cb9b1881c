//! The joins of crates that do not know one another: control plane and certificate authority, control plane and injector. The binary and
//! simulation use these; all else of the commands is the binary's own.

pub mod admission;
pub mod hooks;
pub mod plane;
