//! What the proxy tells about its traffic: metrics, access log, spans, and the summary for the control plane.
//!
//! Aside from the road: the road tells an [`Account`] what happened, and the exchange's drop records it once. Sampling is decided
//! first; of a request that is neither sampled nor logged nothing is formatted and nothing is allocated. Each worker counts in its
//! own shard and shares no lock with another; a scrape adds the shards up.

mod access;
mod account;
mod auth;
mod batch;
mod calls;
mod cgroup;
mod collector;
mod downstream;
mod edge;
mod egress;
mod export;
mod exposition;
mod labels;
mod line;
mod load;
mod metric;
mod observer;
mod otlp_metrics;
mod otlp_points;
mod own;
mod paths;
mod plaintext;
mod process;
mod record;
mod render;
mod secrets;
mod series;
mod shape;
mod shapes;
mod sketch;
mod span;
mod telemetry;
pub mod trace;
mod traffic;
mod wire;
mod worker;
mod written;

#[cfg(test)]
mod tests;

pub use access::{AccessLog, LogLines};
pub use account::{Account, FromOutside};
pub use calls::CallsTold;
pub use downstream::Downstream;
pub use edge::{EdgeReadings, client_tls};
pub use export::{Exporter, start};
pub use exposition::Exposition;
pub use labels::{BUCKET_BOUNDS_SECS, Direction};
pub use observer::Observer;
pub use otlp_metrics::MetricsExporter;
pub use own::own_tasks_layer;
pub use telemetry::{Occupancy, Readings, Telemetry, TelemetryOptions};
