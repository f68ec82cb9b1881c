//! Defaults that both planes apply, each where nobody said otherwise.

use std::time::Duration;

/// Label sets of metrics that a proxy tells apart (contract, section 5).
pub const METRIC_SERIES_MAX: u16 = 1000;

const HOUR: Duration = Duration::from_secs(3600);

/// Life of a leaf certificate (`Mesh` spec.certificates.leafLife).
pub const LEAF_LIFE: Duration = HOUR.saturating_mul(24);
/// When to renew it, per cent of its life.
pub const ROTATE_AT_PERCENT: u32 = 66;
/// Life of an issuing certificate: 90 days.
pub const INTERMEDIATE_LIFE: Duration = HOUR.saturating_mul(24 * 90);
/// Life of a root: ten years.
pub const ROOT_LIFE: Duration = HOUR.saturating_mul(24 * 3650);
