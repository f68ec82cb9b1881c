//! The topologies that the program carries, by name. Pure.

use anyhow::bail;

use crate::pair::spec::{self, Spec};

/// Name of the topology without proxies: what all others are compared with.
pub(super) const DIRECT: &str = "direct";
/// Name of our own pair.
pub(super) const OURS: &str = "meshwright";

/// Spec files in the binary: file name and text.
const FILES: [(&str, &str); 19] = [
    ("backend.json", include_str!("../../specs/backend.json")),
    ("direct.json", include_str!("../../specs/direct.json")),
    ("meshwright.json", include_str!("../../specs/meshwright.json")),
    ("floor.json", include_str!("../../specs/floor.json")),
    ("floor-h2.json", include_str!("../../specs/floor-h2.json")),
    ("splice.json", include_str!("../../specs/splice.json")),
    ("tcp-tls.json", include_str!("../../specs/tcp-tls.json")),
    ("nginx.json", include_str!("../../specs/nginx.json")),
    ("haproxy.json", include_str!("../../specs/haproxy.json")),
    ("envoy.json", include_str!("../../specs/envoy.json")),
    ("edge.json", include_str!("../../specs/edge.json")),
    ("edge-meshwright.json", include_str!("../../specs/edge-meshwright.json")),
    ("edge-floor.json", include_str!("../../specs/edge-floor.json")),
    ("edge-nginx.json", include_str!("../../specs/edge-nginx.json")),
    ("edge-haproxy.json", include_str!("../../specs/edge-haproxy.json")),
    ("edge-envoy.json", include_str!("../../specs/edge-envoy.json")),
    ("meshwright-log.json", include_str!("../../specs/meshwright-log.json")),
    ("meshwright-traced.json", include_str!("../../specs/meshwright-traced.json")),
    ("meshwright-both.json", include_str!("../../specs/meshwright-both.json")),
];

/// Files that others build upon, and that are no topologies.
const PARTS: [&str; 2] = [spec::BACKEND, "edge.json"];

/// Name of our own edge.
pub(super) const OUR_EDGE: &str = "edge-meshwright";
/// Edges: TLS ends there, and the request goes on in the clear. Measured by `--edge`.
pub(super) const EDGES: [&str; 5] = [OUR_EDGE, "edge-floor", "edge-nginx", "edge-haproxy", "edge-envoy"];

/// What is measured unless the user says otherwise, in order of the report.
pub(super) const USUAL: [&str; 8] = [DIRECT, OURS, "floor", "splice", "tcp-tls", "nginx", "haproxy", "envoy"];

/// Names of all topologies in the binary.
pub(super) fn names() -> Vec<&'static str> {
    let specs = FILES.iter().filter(|(file, _)| !PARTS.contains(file));
    specs.filter_map(|(file, _)| file.strip_suffix(".json")).collect()
}

/// The text of a file in the binary.
///
/// # Errors
/// There is none of that name.
pub(super) fn file(name: &str) -> anyhow::Result<String> {
    match FILES.iter().find(|(file, _)| *file == name) {
        Some((_, text)) => Ok((*text).to_owned()),
        None => bail!("there is no topology file {name} in this program"),
    }
}

/// A topology of the binary.
///
/// # Errors
/// There is none of that name: the message lists those there are.
pub(super) fn topology(name: &str) -> anyhow::Result<Spec> {
    if !names().contains(&name) {
        bail!("no topology `{name}`; there are {}; others come from a file, by --spec FILE", names().join(", "));
    }
    spec::load(&format!("{name}.json"), &file)
}
