//! Resources that are not Envoy's: the proxy's own facts, DNS answers, and the trust bundle out of its Secret.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use proto::defaults::METRIC_SERIES_MAX;
use proto::mesh::tracing;
use proto::mesh::{AppProbe, DnsRecord, DnsService, Metrics, ProxyConfig, Tracing};
use proto::xds::tls::{Secret, secret};

use super::access_log::Log;
use super::secret::authorities;
use super::{duration, same_name};
use crate::model::rule_telemetry::{percent_of, threshold};
use crate::model::{self, DnsAnswer, Keep, Locality, MetricLabel, MetricLabels, OtlpProtocol, Settings};
use crate::rejected::Wrong;

/// Most addresses in one DNS answer.
const DNS_RECORDS_MAX: usize = 16_384;
/// Most roots in a trust bundle.
pub(super) const ROOTS_MAX: usize = 64;
/// Most ranges and zones in the proxy's facts.
const FACTS_MAX: usize = 1024;
/// Life of a leaf where the mesh names none (kinds, `Mesh`).
const LEAF_LIFE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const ROTATE_AT_PERCENT_DEFAULT: u32 = 66;
/// How often metrics are sent where nobody says it, and may be.
const OTLP_INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const OTLP_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Length of the key that session tokens are made with.
const SESSION_KEY_BYTES: usize = 32;

pub(super) fn settings(name: &str, raw: &ProxyConfig) -> Result<Settings, Wrong> {
    if name != proto::names::PROXY {
        return Err(Wrong::new("", format!("the only resource of this type is `{}`", proto::names::PROXY)));
    }
    let ProxyConfig {
        trust_domain,
        outside_mesh_denied,
        mesh_cidrs,
        dns_zones,
        access_log,
        tracing,
        leaf_life,
        rotate_at_percent,
        metric_series_max,
        namespace,
        workload,
        service_account,
        own_addresses,
        region,
        zone,
        session_key,
        probes,
        gateways,
        loopback_barred,
        metrics,
    } = raw;
    if !matches!(session_key.len(), 0 | SESSION_KEY_BYTES) {
        return Err(Wrong::new("session_key", format!("has {} bytes, not {SESSION_KEY_BYTES}", session_key.len())));
    }
    let Tracing { otlp_endpoint, sample_percent, attributes, keep_errors, keep_slower, infer_links, protocol, zipkin_endpoint } =
        tracing.clone().unwrap_or_default();
    bounded(raw, attributes.len())?;
    let percent = percent_of(sample_percent, "tracing.sample_percent")?;
    let rotate_at_percent = if *rotate_at_percent == 0 { ROTATE_AT_PERCENT_DEFAULT } else { *rotate_at_percent };
    if rotate_at_percent > 99 {
        return Err(Wrong::new("rotate_at_percent", format!("{rotate_at_percent} is not between 1 and 99")));
    }
    let (metric_labels, metrics_otlp) = metrics.as_ref().map_or_else(|| Ok(Default::default()), judged_metrics)?;
    let log = access_log.as_ref().map_or_else(|| Ok(Log::default()), Log::of).map_err(|wrong| wrong.within("access_log"))?;
    Ok(Settings {
        trust_domain: judged_trust_domain(trust_domain)?,
        outside_mesh_denied: *outside_mesh_denied,
        mesh_cidrs: parse_all(mesh_cidrs, "mesh_cidrs", "a range like 10.0.0.0/8", |text| text.parse::<IpNet>().ok())?,
        dns_zones: dns_zones.iter().map(|zone| zone.trim_end_matches('.').to_ascii_lowercase()).collect(),
        access_log: access_log.as_ref().is_some_and(|log| log.enabled),
        log_format: log.format,
        log_filter: log.filter,
        log_success_threshold: log.success_threshold,
        log_sinks: log.sinks,
        otlp_endpoint: judged_endpoint("tracing.otlp_endpoint", &otlp_endpoint)?,
        otlp_protocol: judged_protocol(protocol)?,
        zipkin_endpoint: judged_endpoint("tracing.zipkin_endpoint", &zipkin_endpoint)?,
        sample_threshold: threshold(percent),
        span_attributes: attributes,
        keep: Keep { errors: keep_errors, slower: duration(keep_slower.as_ref(), "tracing.keep_slower")?.unwrap_or_default() },
        infer_links,
        leaf_life: judged_leaf_life(leaf_life.as_ref())?,
        rotate_at_percent,
        metric_series_max: if *metric_series_max == 0 { usize::from(METRIC_SERIES_MAX) } else { *metric_series_max as usize },
        metric_labels,
        metrics_otlp,
        namespace: namespace.clone(),
        workload: workload.clone(),
        service_account: service_account.clone(),
        own_addresses: parse_all(own_addresses, "own_addresses", "an IP address", |text| text.parse::<IpAddr>().ok())?,
        locality: Locality { region: region.as_str().into(), zone: zone.as_str().into() },
        session_key: session_key.to_vec(),
        gateways: sorted(gateways),
        loopback_barred: *loopback_barred,
        probes: probes.iter().enumerate().map(probe).collect::<Result<_, _>>()?,
    })
}

/// No list is longer than it may be.
fn bounded(raw: &ProxyConfig, attributes: usize) -> Result<(), Wrong> {
    for (field, count) in [
        ("mesh_cidrs", raw.mesh_cidrs.len()),
        ("dns_zones", raw.dns_zones.len()),
        ("own_addresses", raw.own_addresses.len()),
        ("probes", raw.probes.len()),
        ("gateways", raw.gateways.len()),
        ("tracing.attributes", attributes),
    ] {
        if count > FACTS_MAX {
            return Err(Wrong::new(field, format!("holds more than {FACTS_MAX} entries")));
        }
    }
    Ok(())
}

fn sorted(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort_unstable();
    texts
}

fn probe((index, AppProbe { port, http_path }): (usize, &AppProbe)) -> Result<model::AppProbe, Wrong> {
    let number = u16::try_from(*port).ok().filter(|port| *port > 0);
    let port = number.ok_or_else(|| Wrong::new(format!("probes[{index}].port"), format!("{port} is not from 1 to 65535")))?;
    let fits = |path: &str| path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok();
    if !http_path.is_empty() && !fits(http_path) {
        return Err(Wrong::new(format!("probes[{index}].http_path"), format!("`{}` is no path", http_path.escape_debug())));
    }
    Ok(model::AppProbe { port, path: (!http_path.is_empty()).then(|| http_path.clone()) })
}

fn judged_leaf_life(raw: Option<&prost_types::Duration>) -> Result<Duration, Wrong> {
    let life = duration(raw, "leaf_life")?.unwrap_or(LEAF_LIFE_DEFAULT);
    match life < Duration::from_secs(1) {
        true => Err(Wrong::new("leaf_life", "is shorter than a second")),
        false => Ok(life),
    }
}

fn judged_trust_domain(text: &str) -> Result<String, Wrong> {
    let text = if text.is_empty() { proto::identity::DEFAULT_TRUST_DOMAIN } else { text };
    // Judged by the one parser of identities.
    proto::identity::Identity::new(text, "a", "a").map_err(|error| Wrong::new("trust_domain", error.why))?;
    Ok(text.to_owned())
}

/// Which labels metrics have, and where they are sent.
fn judged_metrics(raw: &Metrics) -> Result<(MetricLabels, Option<(String, Duration)>), Wrong> {
    let Metrics { dropped_labels, added_labels, otlp_endpoint, otlp_interval } = raw;
    let labels = |texts: &[String], field: &str, fits: fn(MetricLabel) -> bool| -> Result<Vec<MetricLabel>, Wrong> {
        if texts.len() > MetricLabel::ALL.len() {
            return Err(Wrong::new(field, format!("holds more than {} entries", MetricLabel::ALL.len())));
        }
        parse_all(texts, field, "a label of ours", |text| MetricLabel::parse(text).filter(|label| fits(*label)))
    };
    let dropped = labels(dropped_labels, "metrics.dropped_labels", MetricLabel::can_be_dropped)?;
    let added = labels(added_labels, "metrics.added_labels", MetricLabel::can_be_added)?;
    let interval = duration(otlp_interval.as_ref(), "metrics.otlp_interval")?.unwrap_or(OTLP_INTERVAL_DEFAULT);
    if !OTLP_INTERVALS.contains(&interval) {
        return Err(Wrong::new("metrics.otlp_interval", "is not between 1 s and 1 h"));
    }
    let endpoint = judged_endpoint("metrics.otlp_endpoint", otlp_endpoint)?;
    Ok((dropped.into_iter().chain(added).collect(), endpoint.map(|endpoint| (endpoint, interval))))
}

fn judged_protocol(number: i32) -> Result<OtlpProtocol, Wrong> {
    match tracing::OtlpProtocol::try_from(number) {
        Ok(tracing::OtlpProtocol::Grpc) => Ok(OtlpProtocol::Grpc),
        Ok(tracing::OtlpProtocol::Http) => Ok(OtlpProtocol::Http),
        Err(_) => Err(Wrong::new("tracing.protocol", format!("{number} is none of ours"))),
    }
}

fn judged_endpoint(field: &str, text: &str) -> Result<Option<String>, Wrong> {
    if text.is_empty() {
        return Ok(None);
    }
    let uri: Option<http::Uri> = text.parse().ok();
    let good = uri.is_some_and(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")));
    if good { Ok(Some(text.to_owned())) } else { Err(Wrong::new(field, "is not of the form http://HOST:PORT")) }
}

fn parse_all<T>(texts: &[String], field: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Wrong> {
    let one = |(index, text): (usize, &String)| {
        parse(text).ok_or_else(|| Wrong::new(format!("{field}[{index}]"), format!("`{}` is not {wanted}", text.escape_debug())))
    };
    texts.iter().enumerate().map(one).collect()
}

pub(super) fn dns(name: &str, raw: &DnsRecord) -> Result<DnsAnswer, Wrong> {
    if proto::names::dns_host(name).is_none_or(str::is_empty) {
        return Err(Wrong::new("", "the name is not of the form dns/HOST"));
    }
    let DnsRecord { addresses, ttl_secs, services, pointers } = raw;
    for (field, count) in [("addresses", addresses.len()), ("services", services.len()), ("pointers", pointers.len())] {
        if count > DNS_RECORDS_MAX {
            return Err(Wrong::new(field, format!("holds more than {DNS_RECORDS_MAX} entries")));
        }
    }
    let service = |(index, DnsService { port, target }): (usize, &DnsService)| {
        let number = u16::try_from(*port).ok().filter(|port| *port > 0);
        let number = number.ok_or_else(|| Wrong::new(format!("services[{index}].port"), format!("{port} is not from 1 to 65535")))?;
        Ok((number, full_name(target, || format!("services[{index}].target"))?))
    };
    let pointer = |(index, name): (usize, &String)| full_name(name, || format!("pointers[{index}]"));
    Ok(DnsAnswer {
        addresses: parse_all(addresses, "addresses", "an IP address", |text| text.parse::<IpAddr>().ok())?,
        services: services.iter().enumerate().map(service).collect::<Result<_, _>>()?,
        pointers: pointers.iter().enumerate().map(pointer).collect::<Result<_, _>>()?,
        ttl_secs: *ttl_secs,
    })
}

/// A name that can be written into an answer (RFC 1035, section 2.3.4).
fn full_name(text: &str, field: impl FnOnce() -> String) -> Result<String, Wrong> {
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic());
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(Wrong::new(field(), format!("`{}` is not a full domain name without trailing dot", text.escape_debug())))
    }
}

/// The roots of `ROOTCA`: PEM in `validation_context.trusted_ca.inline_bytes`.
pub(super) fn trust_bundle(name: &str, raw: &Secret) -> Result<Vec<Vec<u8>>, Wrong> {
    let Secret { name: inner, r#type } = raw;
    same_name(name, inner, "name")?;
    let Some(secret::Type::ValidationContext(context)) = r#type else {
        return Err(Wrong::new("validation_context", "is missing"));
    };
    authorities(context, ROOTS_MAX).map_err(|wrong| wrong.within("validation_context"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampling_threshold_covers_both_ends() {
        // Aim: 0 % samples nothing, 100 % everything, half half.
        for (percent, wanted) in [(0.0, 0), (50.0, 1 << 31), (100.0, 1_u64 << 32)] {
            let raw = ProxyConfig { tracing: Some(Tracing { sample_percent: percent, ..Default::default() }), ..Default::default() };
            assert_eq!(settings("proxy", &raw).unwrap().sample_threshold, wanted);
        }
    }
}
