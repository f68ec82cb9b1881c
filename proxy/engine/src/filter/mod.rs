//! Per-route policy as data: a closed enum of pure filters, run as stages of the road (house style, section 3).

/// One step of a route's policy.
#[derive(Debug)]
pub enum Stage {
    /// Runs in place.
    Local(Filter),
}

/// One variant per file.
#[derive(Debug)]
pub enum Filter {}
