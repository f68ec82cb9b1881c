//! What `get endpoints` and `get clusters` tell of balance and health.

use std::time::Duration;

use proto::mesh;
use proto::xds::core::HealthStatus;
use serde_json::json;

use super::*;
use crate::explain::dump;
use crate::fixture::{self, put};
use crate::health::Outcome;
use crate::model::Snapshot;
use crate::model::build::Parts;

#[test]
fn dumps_tell_who_is_thrown_out_and_why() {
    // Aim: algorithm, tier, chance, cause and the time left stand in the rows; of one that is well nothing is said.
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let policy = mesh::ClusterPolicy {
        balance: Some(mesh::Balance { algorithm: 1, ..mesh::Balance::default() }),
        outlier: Some(mesh::Outlier {
            consecutive_errors: 1,
            interval: seconds(10),
            eject_for: seconds(30),
            max_ejected_percent: 50.0,
            ..mesh::Outlier::default()
        }),
        ..mesh::ClusterPolicy::default()
    };
    let mut parts = Parts::default();
    let mut raw = fixture::cluster("c");
    raw.typed_extension_protocol_options.insert(proto::names::POLICY.to_owned(), proto::xds::pack(&policy));
    put(&mut parts, "c", &raw).unwrap();
    let endpoints = [1, 2, 3].map(|n| fixture::endpoint(&format!("10.0.0.{n}:80"), "w", HealthStatus::Healthy));
    put(&mut parts, "c", &fixture::assignment("c", endpoints.to_vec())).unwrap();
    let snapshot = parts.assemble(1, &Snapshot::default());
    let cluster = &snapshot.clusters["c"];
    let first = cluster.endpoints.load().ready[0].clone();
    cluster.told(&first, Outcome::Answered { status: 503, took: Duration::from_millis(1) }, at(100.0)).unwrap();
    let rows = serde_json::to_value(dump::endpoints(&snapshot, Some(at(110.0)))).unwrap();
    let told = |row: usize| ["address", "standing", "ejected_for", "ejected_ms", "tier", "chance"].map(|field| rows[row][field].clone());
    assert_eq!(told(0), [json!("10.0.0.2:80"), json!(null), json!(null), json!(null), json!(0), json!(0.5)]);
    let out = [json!("10.0.0.1:80"), json!("Ejected"), json!("consecutive_errors"), json!(20_000), json!(null), json!(0.0)];
    assert_eq!(told(2), out);
    assert_eq!(rows[2]["ewma_ms"], 100.0);
    let clusters = serde_json::to_value(dump::clusters(&snapshot)).unwrap();
    assert_eq!((&clusters[0]["algorithm"], &clusters[0]["ready"]), (&json!("PeakEwma"), &json!(2)));
}
