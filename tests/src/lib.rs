//! Every ring of tests that needs more than one crate.
