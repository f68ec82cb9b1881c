//! Who may do what, on its way to proxies.

pub(super) mod authentication;
