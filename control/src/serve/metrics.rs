//! Metrics of the control plane, on port 15014.

#![allow(clippy::disallowed_types, reason = "a door: the port that is scraped")]

use std::collections::BTreeMap;
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
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::authority::{Authority, SharedAuthority};
use crate::clock::Clock;
use crate::publish::board::Board;
use crate::publish::epoch::LIVED_BOUNDS_MS;
use crate::publish::session::type_urls;
use crate::publish::trust::Phase;
use crate::world::{Kind, Severity, World};

/// Scrapers and kubelets at a time; more are closed.
const CONNECTIONS_MAX: usize = 256;
/// Of one origin, so that none keeps the kubelet out, who takes silence for death.
const CONNECTIONS_OF_ORIGIN_MAX: usize = 8;
/// A connection is cut after this, whatever it is doing: it has one request.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// A scraper that is slower is cut.
const PATIENCE: Duration = Duration::from_secs(10);

/// Upper bounds of [`Metrics::translated`].
const TRANSLATED_BOUNDS_SECS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 2.5];

/// A type of resources by its short name; one that we do not serve is `other`.
type TypeLabel = [(&'static str, &'static str); 1];

fn type_label(url: &str) -> TypeLabel {
    let known = type_urls().iter().copied().find(|known| *known == url || short(known) == url);
    [("type", known.map_or("other", short))]
}

fn short(url: &str) -> &str {
    url.rsplit('.').next().unwrap_or(url)
}

/// What is counted.
pub struct Metrics {
    /// Open ADS streams.
    pub streams: Gauge,
    /// ADS responses sent, by type.
    pushes: Family<TypeLabel, Counter>,
    /// NACKs, by type.
    rejected: Family<TypeLabel, Counter>,
    /// Resources that proxies refused, by type.
    refused: Family<TypeLabel, Counter>,
    /// How long it took to put together what a stream should have.
    pub translated: Histogram,
    /// Newest epoch.
    pub epoch: Gauge,
    /// Whether this replica holds the lease.
    pub holder: Gauge,
    /// Whether it can serve, or take over: everything has been read once.
    pub ready: AtomicBool,
    registry: Mutex<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("meshwright_control");
        let metrics = Self {
            streams: Gauge::default(),
            pushes: Family::default(),
            rejected: Family::default(),
            refused: Family::default(),
            translated: Histogram::new(TRANSLATED_BOUNDS_SECS),
            epoch: Gauge::default(),
            holder: Gauge::default(),
            ready: AtomicBool::new(false),
            registry: Mutex::default(),
        };
        registry.register("ads_streams", "Open ADS streams", metrics.streams.clone());
        registry.register("ads_pushes", "ADS responses sent", metrics.pushes.clone());
        registry.register("config_rejected", "Responses that a client refused in part or whole", metrics.rejected.clone());
        registry.register("resources_refused", "Resources that proxies refused and run their epoch without", metrics.refused.clone());
        let help = "Time to put together what a stream should have";
        registry.register_with_unit("translate", help, Unit::Seconds, metrics.translated.clone());
        registry.register("config_epoch", "Newest epoch", metrics.epoch.clone());
        registry.register("holder", "Whether this replica holds the lease and serves", metrics.holder.clone());
        *metrics.registry.lock() = registry;
        metrics
    }
}

/// What an authority has done, read when somebody asks. Not held: a scraper's connection outlives the turn of a replica, and its authority has
/// to end with it.
struct Certificates(Weak<dyn Authority>, Clock);

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
        let help = "Requests for a certificate that were refused";
        let mut refused = encoder.encode_descriptor("certificates_refused", help, None, kind)?;
        for (reason, count) in counts.refused {
            ConstCounter::new(count).encode(refused.encode_family(&[("reason", reason)])?)?;
        }
        let (buckets, sum) = &counts.signing;
        let mut signing =
            encoder.encode_descriptor("signing", "Time to sign a certificate", Some(&Unit::Seconds), MetricType::Histogram)?;
        signing.encode_histogram::<NoLabelSet>(*sum, buckets.iter().map(|(_, count)| count).sum(), buckets, None)?;
        let now = i64::try_from(self.1.unix().as_secs()).unwrap_or(i64::MAX);
        let help = "Time until the certificates of the authority itself end; negative after";
        let mut ends = encoder.encode_descriptor("authority_expiry", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (certificate, end) in authority.ends() {
            ConstGauge::new(end.saturating_sub(now)).encode(ends.encode_family(&[("certificate", certificate)])?)?;
        }
        let help = "Where the rotation of the root stands: 1 for the phase of now";
        let mut phases = encoder.encode_descriptor("rotation_phase", help, None, MetricType::Gauge)?;
        let now = authority.roots().phase;
        for phase in [Phase::Steady, Phase::Trusting, Phase::Issuing] {
            ConstGauge::new(i64::from(phase == now)).encode(phases.encode_family(&[("phase", phase.text())])?)?;
        }
        for (name, help, count) in [
            ("tokens_minted", "JWT-SVIDs given to workloads", counts.tokens_minted),
            ("audit_lost", "Rows of the audit log that no disk took", counts.audit_lost),
        ] {
            ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

/// What is published, counted when somebody asks: it is looked at as a whole.
struct Published(Weak<Board>);

impl std::fmt::Debug for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Published")
    }
}

impl Collector for Published {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(board) = self.0.upgrade() else { return Ok(()) };
        let edition = board.edition();
        let world = edition.as_deref().map(|edition| &edition.world);
        let errors = |world: &World| world.problems().iter().filter(|problem| problem.severity == Severity::Error).count();
        let kind = ConstGauge::new(0_i64).metric_type();
        objects(&mut encoder, world)?;
        let lived = board.lived();
        let bounds = LIVED_BOUNDS_MS.iter().map(|bound| bound / 1e3).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(lived.buckets).collect();
        let help = "Time from the acceptance of an epoch to the last proxy's answer";
        let mut live = encoder.encode_descriptor("epoch_live", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        live.encode_histogram::<NoLabelSet>(lived.sum_ms / 1e3, lived.buckets.iter().sum(), &buckets, None)?;
        let (waiting, refusing) = board.read(|book| book.newest().map_or((0, 0), |newest| (newest.waiting().len(), newest.refused.len())));
        for (name, help, count) in [
            ("proxies_waiting", "Proxies that have not answered the newest epoch, those that are away among them", waiting),
            ("proxies_refusing", "What proxies refuse of the newest epoch", refusing),
            ("report_streams", "Proxies that report", board.correspondents().len()),
            ("writer_queue", "Changes that wait for the writer", board.queued()),
            ("config_errors", "Errors in the manifests handed to us", world.map_or(0, errors)),
            ("view_parts", "Parts of views that are kept for all streams", board.cache.memo.counts().0),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

/// Objects in force by kind, and those of which a newer version was refused.
fn objects(encoder: &mut DescriptorEncoder<'_>, world: Option<&World>) -> Result<(), std::fmt::Error> {
    let mut counts: BTreeMap<Kind, (i64, i64)> = BTreeMap::new();
    for (key, slot) in world.into_iter().flat_map(|world| world.slots().iter()) {
        let (live, refused) = counts.entry(key.kind).or_default();
        *live += i64::from(slot.live().is_some());
        *refused += i64::from(slot.refused().is_some());
    }
    let help = "Objects by kind: live are in force; of refused ones the newest version is not, the last good one is, if there is any";
    let mut family = encoder.encode_descriptor("objects", help, None, MetricType::Gauge)?;
    for (kind, (live, refused)) in counts {
        for (state, count) in [("live", live), ("refused", refused)] {
            ConstGauge::new(count).encode(family.encode_family(&[("kind", kind.text()), ("state", state)])?)?;
        }
    }
    Ok(())
}

impl Metrics {
    /// Counts what that board has, too, for as long as somebody else holds it.
    pub fn publish(&self, board: &Arc<Board>) {
        self.registry.lock().register_collector(Box::new(Published(Arc::downgrade(board))));
    }

    /// Counts what that authority does, too, for as long as somebody else holds it.
    pub fn follow(&self, authority: &SharedAuthority, clock: &Clock) {
        self.registry.lock().register_collector(Box::new(Certificates(Arc::downgrade(authority), clock.clone())));
    }

    /// A response of that type was sent.
    pub fn pushed(&self, url: &str) {
        self.pushes.get_or_create(&type_label(url)).inc();
    }

    /// A client refused a response of that type.
    pub fn nacked(&self, url: &str) {
        self.rejected.get_or_create(&type_label(url)).inc();
    }

    /// A proxy runs its epoch without that resource, `TYPE NAME`.
    pub fn resource_refused(&self, resource: &str) {
        let kind = resource.split(' ').next().unwrap_or_default();
        self.refused.get_or_create(&type_label(kind)).inc();
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
    let places = super::strangers::Shares::new(CONNECTIONS_MAX, CONNECTIONS_OF_ORIGIN_MAX);
    loop {
        let accepted: std::io::Result<(tokio::net::TcpStream, SocketAddr)> = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(place) = places.take(address.ip()) else { continue };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that breaks off concerns nobody.
            let _ = timeout(CONNECTION_LIFE, connection).await;
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
    use crate::clock::Clock;

    #[test]
    fn the_text_names_what_it_counts() {
        // Aim: every metric is there from the start.
        let metrics = Metrics::default();
        metrics.epoch.set(7);
        let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
        metrics.publish(&board);
        let text = metrics.text();
        metrics.pushed(proto::xds::CLUSTER);
        metrics.nacked("type.googleapis.com/of.somebody.Else");
        metrics.resource_refused("Listener inbound");
        metrics.translated.observe(0.002);
        let text = text + &metrics.text();
        for line in [
            "meshwright_control_config_errors 0",
            "meshwright_control_config_epoch 7",
            "meshwright_control_proxies_waiting 0",
            "meshwright_control_writer_queue 0",
            "meshwright_control_epoch_live_seconds_count 0",
            "meshwright_control_ads_pushes_total{type=\"Cluster\"} 1",
            "meshwright_control_config_rejected_total{type=\"other\"} 1",
            "meshwright_control_resources_refused_total{type=\"Listener\"} 1",
            "meshwright_control_translate_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    /// Aim: one address that holds all the connections it can get and says nothing keeps no kubelet out, and is cut.
    #[tokio::test]
    async fn nobody_keeps_a_kubelet_out() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Arc::default(), stop.clone()));
        let connect = async |from: &str| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(from.parse().unwrap()).unwrap();
            socket.connect(address).await.unwrap()
        };
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX + 8 {
            held.push(connect("127.0.0.2:0").await);
        }
        let mut kubelet = connect("127.0.0.1:0").await;
        let began = tokio::time::Instant::now();
        kubelet.write_all(b"GET /healthz/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        // One answer is all there is on a connection.
        timeout(Duration::from_secs(5), kubelet.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        tokio::time::pause();
        for mut one in held {
            let ended = timeout(CONNECTION_LIFE * 2, one.read(&mut [0])).await;
            assert!(ended.is_ok(), "the connection is still open");
        }
        stop.cancel();
        serving.await.unwrap();
    }
}
