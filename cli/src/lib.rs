//! The join of control plane and certificate authority. The binary and simulation use this one; all else of the commands is the
//! binary's own.

pub mod plane;
