//! Metrics of the control plane, on port 15014.

#![allow(clippy::disallowed_types, reason = "a door: the port that is scraped")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::authority::{Authority, SharedAuthority};

/// Scrapers at a time.
const CONNECTIONS_MAX: usize = 64;
/// A scraper that is slower is cut.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is counted.
pub struct Metrics {
    /// Open ADS streams.
    pub streams: Gauge,
    /// ADS responses sent.
    pub pushes: Counter,
    /// NACKs.
    pub rejected: Counter,
    /// Newest epoch.
    pub epoch: Gauge,
    /// Objects in force.
    pub objects: Gauge,
    /// Errors in what was handed to us.
    pub errors: Gauge,
    /// Whether this replica holds the lease.
    pub holder: Gauge,
    /// Whether it can serve, or take over: everything has been read once.
    pub ready: AtomicBool,
    /// Parts of views that are kept for all streams.
    pub parts: Gauge,
    registry: Mutex<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("meshwright_control");
        let metrics = Self {
            streams: Gauge::default(),
            pushes: Counter::default(),
            rejected: Counter::default(),
            epoch: Gauge::default(),
            objects: Gauge::default(),
            errors: Gauge::default(),
            holder: Gauge::default(),
            ready: AtomicBool::new(false),
            parts: Gauge::default(),
            registry: Mutex::default(),
        };
        registry.register("ads_streams", "Open ADS streams", metrics.streams.clone());
        registry.register("ads_pushes", "ADS responses sent", metrics.pushes.clone());
        registry.register("config_rejected", "Responses that a client refused in part or whole", metrics.rejected.clone());
        registry.register("config_epoch", "Newest epoch", metrics.epoch.clone());
        registry.register("objects", "Objects in force", metrics.objects.clone());
        registry.register("config_errors", "Errors in the manifests handed to us", metrics.errors.clone());
        registry.register("holder", "Whether this replica holds the lease and serves", metrics.holder.clone());
        registry.register("view_parts", "Parts of views that are kept for all streams", metrics.parts.clone());
        *metrics.registry.lock() = registry;
        metrics
    }
}

/// What an authority has done, read when somebody asks. Not held: a scraper's connection outlives the turn of a replica, and its authority has
/// to end with it.
struct Certificates(Weak<dyn Authority>);

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates")
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(authority) = self.0.upgrade() else { return Ok(()) };
        let counts = authority.counts();
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut issued = encoder.encode_descriptor("certificates_issued", "Certificates given to workloads", None, kind)?;
        for (attestation, count) in counts.issued {
            ConstCounter::new(count).encode(issued.encode_family(&[("attestation", attestation)])?)?;
        }
        for (name, help, count) in [
            ("certificates_refused", "Requests for a certificate that were refused", counts.refused),
            ("tokens_minted", "JWT-SVIDs given to workloads", counts.tokens_minted),
            ("audit_lost", "Rows of the audit log that no disk took", counts.audit_lost),
        ] {
            ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

impl Metrics {
    /// Counts what that authority does, too, for as long as somebody else holds it.
    pub fn follow(&self, authority: &SharedAuthority) {
        self.registry.lock().register_collector(Box::new(Certificates(Arc::downgrade(authority))));
    }

    /// Shows what somebody else counts, too.
    pub fn collect(&self, collector: Box<dyn Collector>) {
        self.registry.lock().register_collector(collector);
    }

    /// OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry.lock());
        text
    }
}

/// Serves `/metrics`, `/healthz/live` and `/healthz/ready` until `stop`.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted: std::io::Result<(tokio::net::TcpStream, SocketAddr)> = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that breaks off concerns nobody.
            let _ = connection.await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.text()),
        "/healthz/live" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        // Also of who stands by: it can take over, and a rolling update waits for it.
        "/healthz/ready" if metrics.ready.load(Ordering::Relaxed) => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/healthz/ready" => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the objects have not been read yet\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_it_counts() {
        // Aim: every metric is there from the start.
        let metrics = Metrics::default();
        metrics.epoch.set(7);
        let text = metrics.text();
        assert!(text.contains("meshwright_control_config_epoch 7") && text.contains("meshwright_control_ads_pushes_total 0"), "{text}");
    }
}
