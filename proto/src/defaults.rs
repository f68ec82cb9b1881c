//! Defaults that both planes apply, each where nobody said otherwise.

use std::time::Duration;

/// Label sets of metrics that a proxy tells apart (contract, section 5).
pub const METRIC_SERIES_MAX: u16 = 1000;

/// Upper bounds of the request duration histogram, in seconds; a last bucket without bound follows. Finer than OpenTelemetry's advice below
/// 5 ms, where calls inside a mesh live.
pub const BUCKET_BOUNDS_SECS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const HOUR: Duration = Duration::from_secs(3600);

/// Life of a leaf certificate (`Mesh` spec.certificates.leafLife).
pub const LEAF_LIFE: Duration = HOUR.saturating_mul(24);
/// When to renew it, per cent of its life.
pub const ROTATE_AT_PERCENT: u32 = 66;
/// Life of an issuing certificate: 90 days.
pub const INTERMEDIATE_LIFE: Duration = HOUR.saturating_mul(24 * 90);
/// Life of a root: ten years.
pub const ROOT_LIFE: Duration = HOUR.saturating_mul(24 * 3650);
