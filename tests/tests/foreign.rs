//! The product as people meet it: `meshwright up` on a folder, and programs nobody here wrote as its clients and servers: curl, wrk,
//! h2load, openssl, Python. Needs root or user namespaces, and what `tests/run-all` installs; without them these tests fail, they never
//! skip.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

#[path = "foreign/access_logs.rs"]
mod access_logs;
#[path = "foreign/acme.rs"]
mod acme;
#[path = "foreign/browser.rs"]
mod browser;
#[path = "foreign/callouts.rs"]
mod callouts;
#[path = "foreign/canary.rs"]
mod canary;
#[path = "foreign/curl.rs"]
mod curl;
#[path = "foreign/edge.rs"]
mod edge;
#[path = "foreign/envoy.rs"]
mod envoy;
#[path = "foreign/faults.rs"]
mod faults;
#[path = "foreign/guide.rs"]
mod guide;
#[path = "foreign/h2spec.rs"]
mod h2spec;
#[path = "foreign/http3.rs"]
mod http3;
#[path = "foreign/identity.rs"]
mod identity;
#[path = "foreign/install.rs"]
mod install;
#[path = "foreign/login.rs"]
mod login;
#[path = "foreign/mesh.rs"]
mod mesh;
#[path = "foreign/monitoring.rs"]
mod monitoring;
#[path = "foreign/ratelimit.rs"]
mod ratelimit;
#[path = "foreign/redis.rs"]
mod redis;
#[path = "foreign/resilience.rs"]
mod resilience;
#[path = "foreign/rotation.rs"]
mod rotation;
#[path = "foreign/shop.rs"]
mod shop;
#[path = "foreign/signals.rs"]
mod signals;
#[path = "foreign/storefront.rs"]
mod storefront;
#[path = "foreign/tls.rs"]
mod tls;
#[path = "foreign/tokens.rs"]
mod tokens;
#[path = "foreign/traces.rs"]
mod traces;
#[path = "foreign/zero_trust.rs"]
mod zero_trust;
