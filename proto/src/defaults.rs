//! Defaults that both planes apply, each where nobody said otherwise.

/// Label sets of metrics that a proxy tells apart (contract, section 5).
pub const METRIC_SERIES_MAX: u16 = 1000;
