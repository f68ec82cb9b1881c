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
mod drops;
mod edge;
mod egress;
mod ending;
mod event;
mod export;
mod exposition;
mod finished;
mod governed;
mod kept;
mod labels;
mod lane;
mod line;
mod load;
mod metric;
mod observer;
mod otlp;
mod otlp_metrics;
mod otlp_points;
mod own;
mod parcel;
mod paths;
mod plaintext;
mod poster;
mod process;
mod record;
mod refusal;
mod render;
mod routes;
mod secrets;
mod series;
mod shape;
mod shapes;
mod sinks;
mod sketch;
mod span;
mod tap;
mod telemetry;
pub mod trace;
mod traffic;
mod under_way;
mod wire;
mod worker;
mod written;
mod zipkin;

#[cfg(test)]
mod tests;

pub use access::AccessLog;
pub use account::Account;
pub use calls::CallsTold;
pub use collector::Duplex;
pub use downstream::{Downstream, FromOutside};
pub use edge::{EdgeReadings, client_tls};
pub use export::{Exporter, start};
pub use exposition::Exposition;
pub use labels::{BUCKET_BOUNDS_SECS, Direction, is_server_error};
pub use observer::Observer;
pub use otlp_metrics::MetricsExporter;
pub use own::own_tasks_layer;
pub use routes::RoutesTold;
pub use sinks::{LogLines, ToServices};
pub use tap::{TAPS_MAX, TapFeed, TapTerms};
pub use telemetry::{Occupancy, Readings, Telemetry, TelemetryOptions};
