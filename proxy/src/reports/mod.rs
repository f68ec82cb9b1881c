//! The Reports stream beside ADS: what this proxy is and does goes up, questions come down.

mod taps;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::mesh::command::Kind as Asked;
use proto::mesh::report::Kind as Told;
use proto::mesh::reports_client::ReportsClient;
use proto::mesh::{Answer, Certificate, Command, Draining, Hello, Report, Traffic};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::debug;

use crate::io::Draw;
use crate::observe::{CallsTold, Telemetry};
use crate::snapshots::Snapshots;
use crate::status::inspect::{self, Time};
use crate::status::lifecycle::Lifecycle;
use crate::status::logs::LogFilter;
use crate::tls::dial::Uplink;
use crate::tls::{Credential, CredentialCell, TrustCell};
use crate::xds::{Backoff, NodeIdentity};

use taps::TapLeases;

/// Reports waiting to be sent; beyond it the stream waits.
const REPORTS_AHEAD: usize = 16;
/// How often traffic is summed up, if it changed.
const TRAFFIC_EVERY: Duration = Duration::from_secs(2);
/// The same while a rule leads to a version of a canary: what harms is to be seen soon.
const CANARIES_EVERY: Duration = Duration::from_millis(500);
/// Questions answered at once.
const ANSWERS_MAX: usize = 16;
/// Largest answer; the control plane takes no more.
const ANSWER_BYTES_MAX: usize = 3 << 20;

/// See the module.
#[derive(Debug)]
pub struct Reporter {
    /// Reconnects by itself; the one ADS uses.
    pub uplink: Uplink,
    /// Who we are.
    pub node: NodeIdentity,
    /// What questions are answered from.
    pub snapshots: Snapshots,
    /// Where traffic is counted.
    pub telemetry: Arc<Telemetry>,
    /// The leaf in use.
    pub credentials: Arc<CredentialCell>,
    /// The roots in use.
    pub trust: Arc<TrustCell>,
    /// When to say that we leave.
    pub lifecycle: Lifecycle,
    /// The log's filter, changed on demand.
    pub logs: LogFilter,
    /// Questions being answered; make it with [`answering`].
    pub answering: Arc<Semaphore>,
}

/// The bound on questions answered at once.
pub fn answering() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ANSWERS_MAX))
}

impl Reporter {
    /// Runs until `stop`, through any number of streams.
    pub async fn run(self, draw: Draw, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let born = u64::try_from(self.telemetry.times().0.unix().as_nanos()).unwrap_or_default();
        let mut leaves = self.credentials.changes();
        while self.credentials.current().is_none() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = leaves.changed() => {}
            }
        }
        loop {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = self.stream(&mut backoff, born) => ended,
            };
            if ended.code() == Code::Unauthenticated {
                self.uplink.open_anew();
            }
            debug!("the reports stream ended ({:?}: {})", ended.code(), ended.message());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(backoff.next(draw.next())) => {}
            }
        }
    }

    async fn stream(&self, backoff: &mut Backoff, born: u64) -> Status {
        let (reports, outgoing) = mpsc::channel(REPORTS_AHEAD);
        let send = async |kind: Told| reports.send(Report { kind: Some(kind) }).await.is_ok();
        let mut leaves = self.credentials.changes();
        leaves.mark_unchanged();
        let mut roots = self.trust.changes();
        roots.mark_unchanged();
        // Queued before the call: the server may answer nothing before it has heard who speaks.
        let mut fine = send(Told::Hello(self.hello())).await;
        if let Some(leaf) = self.credentials.current() {
            fine &= send(Told::Certificate(self.certificate(&leaf))).await;
        }
        let client = ReportsClient::new(self.uplink.channel());
        let mut commands = match client.max_decoding_message_size(ANSWER_BYTES_MAX).stream(ReceiverStream::new(outgoing)).await {
            Ok(commands) => commands.into_inner(),
            Err(status) => return status,
        };
        let mut due = Instant::now();
        let mut told = Traffic::default();
        let mut calls = CallsTold::default();
        let mut routes = self.telemetry.routes_from_now();
        let mut taps = TapLeases::default();
        let mut said_draining = false;
        while fine {
            fine = tokio::select! {
                biased;
                command = commands.message() => match command {
                    Ok(Some(command)) => {
                        backoff.reset();
                        self.obey(command, &reports, &mut taps).await
                    }
                    Ok(None) => return Status::unavailable("the control plane closed the stream"),
                    Err(status) => return status,
                },
                () = self.lifecycle.draining.cancelled(), if !said_draining => {
                    said_draining = true;
                    send(Told::Draining(Draining {})).await
                }
                Ok(()) = leaves.changed() => match self.credentials.current() {
                    Some(leaf) => send(Told::Certificate(self.certificate(&leaf))).await,
                    None => true,
                },
                // The same leaf, with the roots that are believed beside it now.
                Ok(()) = roots.changed() => match self.credentials.current() {
                    Some(leaf) => send(Told::Certificate(self.certificate(&leaf))).await,
                    None => true,
                },
                () = sleep_until(due) => {
                    let (traffic, called) = (self.traffic(born), self.telemetry.calls(&mut calls));
                    let routes = self.telemetry.routes(&mut routes);
                    due = Instant::now() + if traffic.canaries.is_empty() { TRAFFIC_EVERY } else { CANARIES_EVERY };
                    let mut fine = true;
                    if traffic != told || !routes.is_empty() {
                        told.clone_from(&traffic);
                        fine &= send(Told::Traffic(Traffic { routes, ..traffic })).await;
                        // A stream that carries reports is a working one.
                        backoff.reset();
                    }
                    if let Some(called) = called {
                        fine &= send(Told::Calls(called)).await;
                    }
                    fine
                }
            };
        }
        Status::unavailable("the stream was closed")
    }

    /// All that is told of traffic. Counters are named after when this process began, so that those of the one before are others.
    fn traffic(&self, born: u64) -> Traffic {
        let mut canaries = self.snapshots.load().canaries.rows();
        for row in &mut canaries {
            row.counter = row.counter.wrapping_add(born);
        }
        Traffic { canaries, ..self.telemetry.traffic() }
    }

    fn hello(&self) -> Hello {
        Hello {
            node_id: self.node.id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            mode: self.node.mode().to_owned(),
            workload: self.node.workload.clone(),
            replica: self.node.replica.clone(),
        }
    }

    fn certificate(&self, leaf: &Credential) -> Certificate {
        Certificate {
            identity: leaf.identity.to_string(),
            serial: leaf.serial.clone(),
            not_before: rfc3339(leaf.not_before),
            not_after: rfc3339(leaf.not_after),
            issuer: leaf.issuer.clone(),
            trust_bundle: self.trust.fingerprints(),
        }
    }

    /// Answers a command in a task of its own: an explanation may have to fetch. Beyond the bound it is answered "busy" at once. False: the
    /// stream has ended.
    async fn obey(&self, command: Command, reports: &mpsc::Sender<Report>, taps: &mut TapLeases) -> bool {
        let id = command.id;
        // A command of a newer control plane is passed over.
        let Some(asked) = command.kind else { return true };
        let asked = match asked {
            Asked::Tap(tap) => {
                let Some(refused) = taps.obey(id, tap, &self.telemetry, reports) else { return true };
                return reports.send(Report { kind: Some(Told::Tapped(refused)) }).await.is_ok();
            }
            other => other,
        };
        let permit = Arc::clone(&self.answering).try_acquire_owned();
        let (snapshots, logs, mode, reports) = (self.snapshots.clone(), self.logs.clone(), self.node.id.mode, reports.clone());
        let at = Time::of(&self.telemetry);
        let telemetry = Arc::clone(&self.telemetry);
        tokio::spawn(async move {
            let answered = match (permit, asked) {
                (Err(_), _) => Err(format!("this proxy answers {ANSWERS_MAX} questions already; ask again")),
                (Ok(_), Asked::Explain(ask)) => inspect::explain(&snapshots, mode, &ask, at).await,
                (Ok(_), Asked::Dump(ask)) => inspect::dump(&snapshots.load(), &ask.kind, at),
                (Ok(_), Asked::Find(ask)) => Ok(telemetry.find(&ask.id)),
                // It was obeyed before.
                (Ok(_), Asked::Tap(_)) => return,
                (Ok(_), Asked::LogLevel(ask)) => {
                    logs.set(&ask.filter).map(|()| serde_json::json!({"filter": logs.current()})).map_err(|error| error.to_string())
                }
            };
            let answer = match answered.map(|json| json.to_string()) {
                Ok(json) if json.len() <= ANSWER_BYTES_MAX => Answer { id, json, error: String::new() },
                Ok(json) => {
                    let error = format!("the answer has {} bytes, at most {ANSWER_BYTES_MAX} are sent", json.len());
                    Answer { id, json: String::new(), error }
                }
                Err(error) => Answer { id, json: String::new(), error },
            };
            let _ = reports.send(Report { kind: Some(Told::Answer(answer)) }).await;
        });
        true
    }
}

/// RFC 3339, seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).replace_nanosecond(0).ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}
