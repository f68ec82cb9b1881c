//! The other half: gathers spans and sends them by the OTLP library, where the objects say by then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use proto::annotations::ROOT_NAMESPACE;
use proto::mesh::Tracing;
use proto::mesh::tracing::OtlpProtocol;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tower::service_fn;

use super::Counts;
use super::door::{Posts, connect};

/// Spans that leave together.
const TOGETHER_MAX: usize = 64;
/// Longest wait of a span for others.
const GATHERED_EVERY: Duration = Duration::from_secs(1);
/// How long spans are sent again, if they may be.
const KEPT_MAX: Duration = Duration::from_secs(30);
/// A collector that has not answered a call of gRPC by then has failed.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Pauses between, and their number; growing from the first to the second.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const RETRIES_MAX: usize = 10;
/// What is left at the end gets so long.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// A failing collector is complained about once in this time.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Sends spans; made by [`super::start`].
pub struct SpanExport {
    instance: String,
    spans: mpsc::Receiver<SpanData>,
    to: watch::Receiver<Option<Tracing>>,
    counts: Arc<Counts>,
    /// The last destination's.
    exporter: Option<(Tracing, SpanExporter)>,
    complained: Option<Instant>,
}

impl SpanExport {
    pub(super) fn new(
        instance: String,
        spans: mpsc::Receiver<SpanData>,
        to: watch::Receiver<Option<Tracing>>,
        counts: Arc<Counts>,
    ) -> Self {
        Self { instance, spans, to, counts, exporter: None, complained: None }
    }

    /// Sends what is made until `stop`, then what is left, for at most two seconds. Runs inside a tokio runtime.
    pub async fn run(mut self, stop: CancellationToken) {
        // Until the objects have been read nobody knows where spans go; they wait.
        let known = async { self.to.wait_for(Option::is_some).await.is_ok() };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            known = known => if !known { return },
        }
        loop {
            let mut batch = Vec::with_capacity(TOGETHER_MAX);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = self.spans.recv_many(&mut batch, TOGETHER_MAX) => if count == 0 { return },
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = sleep(GATHERED_EVERY) => {}
            }
            self.fill(&mut batch);
            // The batch is lost where the end comes in the middle; whoever looks at the end looks at its log.
            tokio::select! {
                biased;
                () = async { stop.cancelled().await; sleep(LAST_EXPORT_TIMEOUT).await } => return,
                () = self.send(batch) => {}
            }
        }
        let mut batch = Vec::new();
        self.fill(&mut batch);
        let _ = timeout(LAST_EXPORT_TIMEOUT, self.send(batch)).await;
    }

    fn fill(&mut self, batch: &mut Vec<SpanData>) {
        while batch.len() < TOGETHER_MAX
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
    }

    /// Sends spans to where they go by now; where that changes meanwhile, to the new place.
    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let sent = loop {
            let to = self.to.borrow_and_update().clone().unwrap_or_default();
            if count == 0 || to.otlp_endpoint.is_empty() {
                // Nobody wants them.
                return;
            }
            let mut moves = self.to.clone();
            tokio::select! {
                sent = timeout(KEPT_MAX, self.export(&to, batch.clone())) => {
                    break sent.unwrap_or_else(|_| Err(format!("not taken within {} s", KEPT_MAX.as_secs())));
                }
                Ok(()) = moves.changed() => {}
            }
        };
        match sent {
            Ok(()) => drop(self.counts.exported.fetch_add(count, Ordering::Relaxed)),
            Err(why) => {
                self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                self.complain(&why);
            }
        }
    }

    async fn export(&mut self, to: &Tracing, mut batch: Vec<SpanData>) -> Result<(), String> {
        let exporter = match self.exporter.take() {
            Some((known, exporter)) if known == *to => exporter,
            _ => exporter(to, &self.instance)?,
        };
        let (_, exporter) = self.exporter.insert((to.clone(), exporter));
        let facts = to.attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        let facts: Vec<KeyValue> = facts.collect();
        batch.iter_mut().for_each(|span| span.attributes.extend(facts.iter().cloned()));
        exporter.export(batch).await.map_err(|error| error.to_string())
    }

    fn complain(&mut self, why: &str) {
        if self.complained.is_some_and(|last| last.elapsed() < COMPLAIN_EVERY) {
            return;
        }
        self.complained = Some(Instant::now());
        let endpoint = self.to.borrow().as_ref().map(|to| to.otlp_endpoint.clone()).unwrap_or_default();
        tracing::warn!(
            endpoint,
            error = why,
            "spans of the control plane cannot be exported and are dropped; check that a collector listens there (said once a minute)"
        );
    }
}

#[cfg(test)]
impl SpanExport {
    /// The next span, without sending it.
    pub(super) async fn next(&mut self) -> SpanData {
        self.spans.recv().await.unwrap()
    }
}

/// Connects at the first use and again after each loss.
fn exporter(to: &Tracing, instance: &str) -> Result<SpanExporter, String> {
    let endpoint = if to.otlp_endpoint.contains("://") { to.otlp_endpoint.clone() } else { format!("http://{}", to.otlp_endpoint) };
    let uri: Uri = endpoint.parse().map_err(|_| format!("`{endpoint}` is no URL"))?;
    let pace = RetryPolicy::disabled().with_max_retries(RETRIES_MAX).with_initial_delay(PAUSE).with_max_delay(PAUSE_MAX);
    let pace = pace.with_max_jitter(PAUSE);
    let mut exporter = if to.protocol() == OtlpProtocol::Http {
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let http = SpanExporter::builder().with_http().with_http_client(Posts).with_protocol(Protocol::HttpBinary);
        http.with_endpoint(url).with_timeout(KEPT_MAX).with_retry_policy(pace).build()
    } else {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        // TLS is the connector's: to the transport every collector is one in plaintext, but for what its requests say.
        let target = Endpoint::from_shared(format!("http://{authority}")).map_err(|error| error.to_string())?;
        let target = target.origin(uri.clone()).timeout(ANSWER_MAX);
        let connector = service_fn(move |_: Uri| {
            let uri = uri.clone();
            async move { connect(&uri, b"h2").await.map(TokioIo::new) }
        });
        let channel = target.connect_with_connector_lazy(connector);
        SpanExporter::builder().with_tonic().with_channel(channel).with_timeout(KEPT_MAX).with_retry_policy(pace).build()
    }
    .map_err(|error| error.to_string())?;
    let facts = [KeyValue::new("service.namespace", ROOT_NAMESPACE), KeyValue::new("service.instance.id", instance.to_owned())];
    exporter.set_resource(&Resource::builder().with_service_name("meshwright-control").with_attributes(facts).build());
    Ok(exporter)
}
