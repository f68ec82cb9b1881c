//! What people see: errors as sentences, tables, progress.

mod error;

pub(crate) use error::{install_panic_hook, print_error};
