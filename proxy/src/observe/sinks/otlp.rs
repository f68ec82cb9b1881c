//! Lines as log records of OTLP, by gRPC.

use std::sync::Arc;
use std::time::Duration;

use engine::model::{LogSinkKind, OtlpProtocol, Settings};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::otlp::{LOGS, OtlpClient};
use super::super::refusal::Refusal;
use super::super::span::envelope;
use super::SinkMeans;
use super::complaint::Complaint;
use super::queue::{Sheet, SheetQueue};

/// A request is sent when its records take so much, or after the longest wait of a record for others.
const REQUEST_BYTES: usize = 256 << 10;
const REQUEST_EVERY: Duration = Duration::from_secs(1);
/// How long a request is tried again: a collector that restarts takes less. Meanwhile others wait in the queue.
const KEPT_MAX: Duration = Duration::from_secs(30);
/// First pause after a failure; twice as long each time, and no longer than the second.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct OtlpSink {
    endpoint: String,
    settings: Option<Arc<Settings>>,
    means: SinkMeans,
    complaint: Complaint,
}

impl OtlpSink {
    /// `settings`: whose resource the records have.
    pub(super) fn new(endpoint: String, settings: Option<Arc<Settings>>, means: SinkMeans) -> Self {
        let complaint = Complaint::new(means.clock);
        Self { endpoint, settings, means, complaint }
    }

    /// Sends until there will be no more.
    pub(super) async fn run(mut self, mut queue: SheetQueue) {
        let mut client = OtlpClient::new((&self.endpoint, OtlpProtocol::Grpc), &self.means.way);
        while let Some(first) = queue.next().await {
            let request = gathered(first, &mut queue).await;
            let outcome = match &mut client {
                Ok(client) => self.deliver(client, &request, &queue).await,
                Err(why) => Err(why.clone()),
            };
            let lost = match outcome {
                Ok(rejected) => rejected.min(request.lines),
                Err(why) => {
                    self.complain(&why);
                    request.lines
                }
            };
            self.means.losses.add(LogSinkKind::Otlp, lost);
        }
    }

    /// Tries until it is taken, refused, or too old; at the end of the process once. How many of its records were refused.
    async fn deliver(&self, client: &mut OtlpClient, request: &Sheet, queue: &SheetQueue) -> Result<u64, String> {
        let until = Instant::now() + KEPT_MAX;
        let records = Arc::new(request.bytes.clone());
        let head = Arc::new(envelope(self.settings.as_deref(), &self.means.instance, records.len()));
        let mut pause = PAUSE;
        loop {
            let sent = client.send(LOGS, [Arc::clone(&head), Arc::clone(&records)], self.means.clock.unix().as_secs());
            match sent.await {
                Ok(rejected) => return Ok(rejected),
                Err(Refusal::Never(why)) => return Err(why),
                Err(Refusal::Again { why, after }) => {
                    let rest = after.unwrap_or(pause);
                    if queue.is_closed() || Instant::now() + rest > until {
                        return Err(why);
                    }
                    sleep(rest).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn complain(&mut self, why: &str) {
        if self.complaint.is_due() {
            tracing::warn!(endpoint = %self.endpoint, error = %why,
                "lines of the access log cannot be sent and are dropped; check that an OTLP/gRPC collector listens there (said once a minute)");
        }
    }
}

/// What comes soon goes along.
async fn gathered(mut request: Sheet, queue: &mut SheetQueue) -> Sheet {
    let due = Instant::now() + REQUEST_EVERY;
    while request.bytes.len() < REQUEST_BYTES {
        let Ok(Some(more)) = timeout_at(due, queue.next()).await else { break };
        request.bytes.extend_from_slice(&more.bytes);
        request.lines += more.lines;
    }
    request
}
