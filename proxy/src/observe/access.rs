//! The access log: one JSON line per exchange, with the fields of kinds.md in that order.

use std::fmt;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use engine::failure::{Blame, Reason};
use http::Version;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::labels::{CODE_NONE, GRPC_NONE, Wire};
use super::record::{Party, Record, Who};
use super::trace::{hex_of_u64, hex_of_u128};

/// Lines waiting for the writer; beyond, lines are dropped and counted.
const LINE_QUEUE_MAX: usize = 16_384;
/// Pause of the writer after it has written all there was: lines gather meanwhile, and a busy worker need not wake it for each.
const GATHER: Duration = Duration::from_millis(2);
/// Pauses of [`AccessLog::close`], a second in all.
const CLOSE_STEPS_MAX: u32 = 500;
/// A first guess at the length of a line.
const LINE_BYTES: usize = 1024;
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 64 << 10;

/// Where lines go.
#[derive(Clone, Debug, Default)]
pub enum LogLines {
    /// To standard output, by a thread of its own.
    #[default]
    Stdout,
    /// Into memory, for simulation and tests.
    Memory(Arc<Mutex<Vec<String>>>),
}

/// The writing end; never waits for the device.
#[derive(Debug)]
pub struct AccessLog {
    lines: LogLines,
    writer: OnceLock<Option<Writer>>,
}

#[derive(Debug)]
struct Writer {
    /// `None` is the last message: write out and end.
    queue: SyncSender<Option<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl AccessLog {
    /// The writer's thread starts with the first line: most proxies never write one.
    pub(super) fn new(lines: LogLines) -> Self {
        Self { lines, writer: OnceLock::new() }
    }

    /// Queues one line, its line feed included. False: the queue is full and the line is lost.
    pub(super) fn write(&self, line: Vec<u8>) -> bool {
        match &self.lines {
            LogLines::Memory(lines) => {
                lines.lock().push(String::from_utf8_lossy(&line).trim_end().to_owned());
                true
            }
            LogLines::Stdout => {
                self.writer.get_or_init(start_writer).as_ref().is_some_and(|writer| writer.queue.try_send(Some(line)).is_ok())
            }
        }
    }

    /// Writes out what is queued and ends the writer; gives up after a second.
    pub(super) fn close(&self) {
        let Some(Some(writer)) = self.writer.get() else { return };
        let mut patience = CLOSE_STEPS_MAX;
        while matches!(writer.queue.try_send(None), Err(TrySendError::Full(_))) && patience > 0 {
            patience -= 1;
            std::thread::sleep(GATHER);
        }
        while !writer.thread.is_finished() && patience > 0 {
            patience -= 1;
            std::thread::sleep(GATHER);
        }
    }
}

fn start_writer() -> Option<Writer> {
    let (queue, receiver) = sync_channel(LINE_QUEUE_MAX);
    let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_out(&receiver, std::io::stdout()));
    match thread {
        Ok(thread) => Some(Writer { queue, thread }),
        Err(error) => {
            tracing::error!(%error, "cannot start the access log's writer; no access log will be written until restart");
            None
        }
    }
}

/// Until the last message. A line that standard output refuses is lost: nobody is left to be told.
fn write_out(queue: &Receiver<Option<Vec<u8>>>, out: impl Write) {
    let mut out = BufWriter::with_capacity(WRITE_BYTES, out);
    while let Ok(Some(first)) = queue.recv() {
        let _ = out.write_all(&first);
        loop {
            match queue.try_recv() {
                Ok(Some(line)) => {
                    let _ = out.write_all(&line);
                }
                Ok(None) => return drop(out.flush()),
                Err(_) => break,
            }
        }
        let _ = out.flush();
        std::thread::sleep(GATHER);
    }
}

/// One line with its line feed.
pub(super) fn line(record: &Record<'_>) -> Vec<u8> {
    let mut line = Vec::with_capacity(LINE_BYTES);
    // Writing into memory fails for no value of these types.
    let _ = serde_json::to_writer(&mut line, &Line::of(record));
    line.push(b'\n');
    line
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "as_text")]
    time: Rfc3339,
    direction: &'static str,
    epoch: u64,
    trace_id: Option<Hex<32>>,
    span_id: Option<Hex<16>>,
    method: Option<&'a str>,
    scheme: Option<&'static str>,
    host: Option<&'a str>,
    path: Option<&'a str>,
    protocol: &'static str,
    status: Option<u16>,
    grpc_status: Option<u8>,
    reason: Option<&'static str>,
    blame: Option<&'static str>,
    route: Option<&'a str>,
    rule: Option<&'a str>,
    source: Source<'a>,
    destination: Destination<'a>,
    mtls: Option<Mtls>,
    request_bytes: u64,
    response_bytes: u64,
    duration_ms: f64,
    upstream_ms: Option<f64>,
    attempts: u32,
    retries: Vec<RetryLine>,
    fault: Option<&'static str>,
    user_agent: Option<&'a str>,
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Source<'a> {
    namespace: Option<&'a str>,
    workload: Option<&'a str>,
    identity: Option<AsText<Who<'a>>>,
    address: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Destination<'a> {
    namespace: Option<&'a str>,
    service: Option<&'a str>,
    workload: Option<&'a str>,
    identity: Option<AsText<Who<'a>>>,
    address: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Mtls {
    version: &'static str,
    cipher: &'static str,
    group: &'static str,
}

#[derive(Serialize)]
struct RetryLine {
    address: SocketAddr,
    reason: &'static str,
}

impl<'a> Line<'a> {
    fn of(record: &'a Record<'_>) -> Self {
        let (seen, detail) = (record.seen, record.detail);
        let head = detail.head.as_ref();
        let rule = seen.rule.as_ref().map(|rule| &rule.source);
        let Party { namespace, workload, identity, address, .. } = record.source();
        let source = Source { namespace, workload, identity: identity.map(AsText), address };
        let Party { namespace, service, workload, identity, address } = record.destination();
        let destination = Destination { namespace, service, workload, identity: identity.map(AsText), address };
        let reason = seen.reason.map(Reason::text);
        Self {
            time: Rfc3339(record.started),
            direction: seen.direction.text(),
            epoch: seen.snapshot.epoch,
            trace_id: detail.context.map(|context| Hex(hex_of_u128(context.trace_id))),
            span_id: detail.context.filter(|context| context.sampled).map(|context| Hex(hex_of_u64(context.span_id))),
            method: head.map(|head| head.method.as_str()),
            scheme: head.map(|head| head.scheme),
            host: head.map(|head| head.host.as_str()),
            path: head.map(|head| head.path.as_str()),
            protocol: head.map_or("TCP", |head| version_text(head.version)),
            status: Some(seen.code).filter(|code| *code != CODE_NONE),
            grpc_status: Some(seen.grpc).filter(|code| *code != GRPC_NONE && seen.wire == Wire::Grpc),
            reason,
            blame: seen.blame.map(Blame::text),
            route: rule.map(|rule| &*rule.label).filter(|label| !label.is_empty()),
            rule: rule.map(|rule| &*rule.rule),
            source,
            destination,
            mtls: detail.tls.as_ref().map(|tls| Mtls { version: tls.version, cipher: tls.cipher, group: tls.group }),
            request_bytes: seen.request_bytes,
            response_bytes: seen.response_bytes,
            duration_ms: millis(record.duration),
            upstream_ms: detail.upstream.map(millis),
            attempts: seen.attempts,
            retries: detail.retries.iter().map(|(address, reason)| RetryLine { address: *address, reason: reason.text() }).collect(),
            fault: reason.filter(|_| seen.reason == Some(Reason::Fault)),
            user_agent: head.and_then(|head| head.user_agent.as_deref()),
            request_id: head.and_then(|head| head.request_id.as_deref()),
        }
    }
}

fn version_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// Milliseconds with three decimals.
#[allow(clippy::cast_precision_loss, reason = "exact below 285 years")]
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

struct AsText<T>(T);

impl<T: fmt::Display> Serialize for AsText<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

struct Hex<const N: usize>([u8; N]);

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.0).unwrap_or(""))
    }
}

/// A moment as RFC 3339 in UTC with microseconds.
pub(super) struct Rfc3339(pub(super) SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(self.0);
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z", at.hour(), at.minute(), at.second(), at.microsecond())
    }
}
