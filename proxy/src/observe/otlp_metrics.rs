//! Metrics leave by OTLP/gRPC, where a Telemetry asks for it: read and sent at its interval, from the control thread. Numbers are cumulative, so what a
//! collector did not take is held by the next ones; nothing is kept for it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use super::collector::{Undelivered, asked_pause, channel, may_come_again};
use super::otlp_points::{Window, request, shares};
use super::span::resource_of;
use super::telemetry::Telemetry;

/// A collector that has not taken a request by then, repetitions included, has failed.
const EXPORT_MAX: Duration = Duration::from_secs(5);
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
    client: Option<(String, MetricsServiceClient<Channel>)>,
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
        Self { telemetry, client: None, before, paused: None, complained: None }
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
                Err(undelivered) => {
                    lost = true;
                    self.complain(&undelivered);
                    count
                }
            };
            telemetry.points_dropped.fetch_add(refused, Ordering::Relaxed);
            telemetry.points_exported.fetch_add(count - refused, Ordering::Relaxed);
        }
    }

    /// Sends one request; what may be sent again is (OTLP specification, "Failures"). How many numbers the collector took note of and refused.
    async fn send(&mut self, endpoint: &str, request: ExportMetricsServiceRequest) -> Result<u64, Undelivered> {
        let undelivered = |why: String| Undelivered { endpoint: endpoint.to_owned(), why };
        if self.client.as_ref().is_none_or(|(known, _)| known != endpoint) {
            let channel = channel(endpoint, &self.telemetry.options.network)?;
            self.client = Some((endpoint.to_owned(), MetricsServiceClient::new(channel)));
        }
        let Some((_, client)) = &mut self.client else { return Ok(0) };
        match tokio::time::timeout(EXPORT_MAX, patiently(client, request)).await {
            // A partial success is final: nothing of it is sent again.
            Ok(Ok(answer)) => Ok(answer.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_data_points).unwrap_or(0))),
            Ok(Err(status)) => {
                self.paused = asked_pause(&status).map(|pause| Instant::now() + pause.min(PAUSE_MAX));
                Err(undelivered(format!("{:?}: {}", status.code(), status.message())))
            }
            Err(_) => Err(undelivered(format!("no answer within {EXPORT_MAX:?}"))),
        }
    }

    fn complain(&mut self, undelivered: &Undelivered) {
        let now = Instant::now();
        if self.complained.is_some_and(|last| now.saturating_duration_since(last) < COMPLAIN_EVERY) {
            return;
        }
        self.complained = Some(now);
        tracing::warn!(
            endpoint = %undelivered.endpoint,
            error = %undelivered.why,
            "metrics cannot be exported; check that an OTLP/gRPC collector listens there (said once a minute)"
        );
    }
}

async fn patiently(
    client: &mut MetricsServiceClient<Channel>,
    request: ExportMetricsServiceRequest,
) -> Result<ExportMetricsServiceResponse, Status> {
    let mut pause = RETRY_AFTER;
    for _ in 0..RETRIES_MAX {
        match client.export(request.clone()).await {
            Err(status) if may_come_again(&status) => {
                let asked = asked_pause(&status);
                if asked.is_some_and(|asked| asked > EXPORT_MAX) {
                    return Err(status);
                }
                tokio::time::sleep(asked.unwrap_or(pause)).await;
            }
            other => return other.map(tonic::Response::into_inner),
        }
        pause *= 2;
    }
    client.export(request).await.map(tonic::Response::into_inner)
}
