//! A configuration for tests of this crate and of others. Not part of the proxy's interface.
#![allow(clippy::unwrap_used, missing_docs, reason = "for tests only")]

use std::collections::BTreeMap;
use std::time::Duration;

use engine::model::Settings;

/// The settings of `shop/frontend` in a mesh whose addresses are 10.96.0.0/12.
pub fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".into(),
        outside_mesh_denied: false,
        mesh_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        dns_zones: Vec::new(),
        access_log: false,
        log_format: engine::model::LogFormat::Json,
        log_filter: None,
        log_success_threshold: 1 << 32,
        log_sinks: Vec::new(),
        otlp_endpoint: None,
        otlp_protocol: engine::model::OtlpProtocol::Grpc,
        zipkin_endpoint: None,
        sample_threshold: 0,
        span_attributes: BTreeMap::new(),
        keep: engine::model::Keep::default(),
        infer_links: true,
        leaf_life: Duration::from_secs(24 * 3600),
        rotate_at_percent: 66,
        metric_series_max: 1000,
        metric_labels: Default::default(),
        metrics_otlp: None,
        namespace: "shop".into(),
        workload: "frontend".into(),
        service_account: "default".into(),
        own_addresses: Vec::new(),
        locality: engine::model::Locality::default(),
        session_key: Vec::new(),
        probes: Vec::new(),
        gateways: Vec::new(),
        loopback_barred: false,
    }
}
