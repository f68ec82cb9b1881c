//! Metrics leave by OTLP/gRPC, where a Telemetry asks for it: read and sent at its interval, from the control thread. Numbers are cumulative, so what a
//! collector did not take is held by the next ones; nothing is kept for it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::model::OtlpProtocol;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::time::Instant;

use super::collector::Way;
use super::otlp::{METRICS, OtlpClient};
use super::otlp_points::{Window, request, shares};
use super::refusal::Refusal;
use super::span::resource_of;
use super::telemetry::Telemetry;

/// A collector that asks for a longer pause than this between two tries of one request is left alone until then.
const WAITED_MAX: Duration = Duration::from_secs(5);
/// Pause before a request is sent again; twice as long each time.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How often it is sent again.
const RETRIES_MAX: u32 = 3;
/// Longest pause that a collector may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// What is read at the end gets so long to leave.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// A failing collector is complained about once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Reads and sends. Rests for good while nobody asks for it.
#[derive(Debug)]
pub struct MetricsExporter {
    telemetry: Arc<Telemetry>,
    way: Way,
    client: Option<OtlpClient>,
    /// When numbers were read last.
    before: SystemTime,
    /// Until when the collector wants to be left alone.
    paused: Option<Instant>,
    complained: Option<Instant>,
}

impl MetricsExporter {
    /// Nothing leaves before it is run.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        let before = telemetry.started;
        let way = Way { network: telemetry.options.network.clone(), tls: telemetry.options.tls.clone() };
        Self { telemetry, way, client: None, before, paused: None, complained: None }
    }

    /// Exports until `stop` is done, then once more, for at most two seconds. Runs inside a tokio runtime.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut due: Option<Instant> = None;
        loop {
            let interval = self.order().map(|(_, interval)| interval);
            let Some(interval) = interval else {
                self.telemetry.registry.lock().forget_sketches();
                (self.client, self.paused, due) = (None, None, None);
                tokio::select! {
                    biased;
                    () = &mut stop => return,
                    () = self.telemetry.metrics_redirected.notified() => {}
                }
                continue;
            };
            let at = *due.get_or_insert_with(|| Instant::now() + interval);
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = self.telemetry.metrics_redirected.notified() => due = None,
                () = tokio::time::sleep_until(at) => {
                    self.export().await;
                    // One that took too long is not made up for.
                    due = Some((at + interval).max(Instant::now()));
                }
            }
        }
        // Nobody is left who could act on numbers that did not make it.
        let _ = tokio::time::timeout(LAST_EXPORT_TIMEOUT, self.export()).await;
    }

    /// Where metrics go now, and how often.
    fn order(&self) -> Option<(String, Duration)> {
        self.telemetry.settings.load().as_ref()?.metrics_otlp.clone()
    }

    /// Reads and sends all there is.
    async fn export(&mut self) {
        if self.paused.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.paused = None;
        let Some((endpoint, _)) = self.order() else { return };
        let telemetry = Arc::clone(&self.telemetry);
        let families = telemetry.sketched();
        let window = Window { started: telemetry.started, now: telemetry.clock.wall(), before: self.before };
        self.before = window.now;
        let settings = telemetry.settings.load_full();
        let resource = Resource::from(&resource_of(settings.as_deref(), &telemetry.options.instance));
        let mut lost = false;
        for share in shares(&families) {
            let (request, count) = request(&share, resource.clone(), window);
            // Whoever did not take one request takes none now; the others are not tried.
            let sent = if lost { Ok(count) } else { self.send(&endpoint, request).await };
            let refused = match sent {
                Ok(refused) => refused.min(count),
                Err(why) => {
                    lost = true;
                    self.complain(&endpoint, &why);
                    count
                }
            };
            telemetry.points_dropped.fetch_add(refused, Ordering::Relaxed);
            telemetry.points_exported.fetch_add(count - refused, Ordering::Relaxed);
        }
    }

    /// Sends one request; what may be sent again is (OTLP specification, "Failures"). How many numbers the collector took note of and refused.
    async fn send(&mut self, endpoint: &str, request: ExportMetricsServiceRequest) -> Result<u64, String> {
        let to = (endpoint, OtlpProtocol::Grpc);
        let mut client = match self.client.take().filter(|client| client.is_of(to)) {
            Some(client) => client,
            None => OtlpClient::new(to, &self.way)?,
        };
        let parts = [Arc::new(request.encode_to_vec()), Arc::default()];
        let sent = self.patiently(&mut client, parts).await;
        self.client = Some(client);
        sent
    }

    async fn patiently(&mut self, client: &mut OtlpClient, parts: [Arc<Vec<u8>>; 2]) -> Result<u64, String> {
        let mut pause = RETRY_AFTER;
        for tries_left in (0..=RETRIES_MAX).rev() {
            let now_unix_secs = self.telemetry.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            match client.send(METRICS, parts.clone(), now_unix_secs).await {
                // A partial success is final: nothing of it is sent again.
                Ok(refused) => return Ok(refused),
                Err(Refusal::Again { after, .. }) if tries_left > 0 && after.is_none_or(|after| after <= WAITED_MAX) => {
                    tokio::time::sleep(after.unwrap_or(pause)).await;
                }
                Err(Refusal::Again { why, after }) => {
                    self.paused = after.map(|after| Instant::now() + after.min(PAUSE_MAX));
                    return Err(why);
                }
                Err(Refusal::Never(why)) => return Err(why),
            }
            pause *= 2;
        }
        Ok(0)
    }

    fn complain(&mut self, endpoint: &str, why: &str) {
        let now = Instant::now();
        if self.complained.is_some_and(|last| now.saturating_duration_since(last) < COMPLAIN_EVERY) {
            return;
        }
        self.complained = Some(now);
        tracing::warn!(
            endpoint = %endpoint,
            error = %why,
            "metrics cannot be exported; check that an OTLP/gRPC collector listens there (said once a minute)"
        );
    }
}
