//! Ports of a sidecar that more than the proxy itself must know (contract, section 3).

/// Pages that show and move a sidecar, for the programs of its own pod.
pub const ADMIN: u16 = 15000;
/// Metrics.
pub const METRICS: u16 = 15020;
/// Probes of readiness, life and start.
pub const HEALTH: u16 = 15021;
/// The pages that a sidecar shows to everybody, meshed or not. They arrive untouched by redirection and speak plain HTTP.
pub const PAGES: [u16; 2] = [METRICS, HEALTH];
