//! The lines of one round, in each form that some sink wants. Each is encoded once, however many sinks want it.

use engine::model::LogSinkKind;

use super::super::finished::Finished;
use super::super::line::Lines;
use super::super::wire::prefix;
use super::super::written;
use super::queue::Sheet;
use super::{entry, semantic};

/// Bytes gathered before they are handed over: all of a usual batch.
const PAGE_BYTES: usize = 256 << 10;
/// Fields of `StreamAccessLogsMessage`.
const HTTP_LOGS: u32 = 2;
const TCP_LOGS: u32 = 3;

/// In which forms.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::observe) struct Wants {
    /// As they are written.
    pub(super) lines: bool,
    /// As records of OTLP.
    pub(super) records: bool,
    /// As entries of Envoy's access log service.
    pub(super) entries: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::observe) struct Page {
    lines: Lines,
    /// As fields of `ScopeLogs`.
    records: Vec<u8>,
    /// As fields of `HTTPAccessLogEntries` and `TCPAccessLogEntries`, and how many of the latter.
    requests: Vec<u8>,
    connections: Vec<u8>,
    connected: u64,
    count: u64,
}

impl Page {
    /// Adds an exchange.
    pub(in crate::observe) fn add(&mut self, told: &Finished<'_>, wants: Wants) {
        self.count += 1;
        if wants.lines || wants.records {
            let start = self.lines.bytes().len();
            written::push(&mut self.lines, told.batch, told.record);
            if wants.records {
                let line = self.lines.bytes()[start..].trim_ascii_end();
                semantic::push(&mut self.records, told, &String::from_utf8_lossy(line));
            }
            if !wants.lines {
                self.lines.clear(PAGE_BYTES);
            }
        }
        if wants.entries {
            match told.record.version {
                Some(version) => entry::push_request(&mut self.requests, told, version),
                None => {
                    entry::push_connection(&mut self.connections, told);
                    self.connected += 1;
                }
            }
        }
    }

    /// Whether it is to be handed over before more is added.
    pub(in crate::observe) fn is_full(&self) -> bool {
        let longest = self.lines.bytes().len().max(self.records.len());
        longest.max(self.requests.len()).max(self.connections.len()) >= PAGE_BYTES
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn lines(&self) -> &[u8] {
        self.lines.bytes()
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// What a sink of that kind is sent.
    pub(super) fn sheets(&self, kind: LogSinkKind) -> impl Iterator<Item = Sheet> {
        let sheets = match kind {
            LogSinkKind::Stdout | LogSinkKind::File => [(self.lines().to_vec(), self.count), (Vec::new(), 0)],
            LogSinkKind::Otlp => [(self.records.clone(), self.count), (Vec::new(), 0)],
            LogSinkKind::Als => {
                let requests = (entries(HTTP_LOGS, &self.requests), self.count - self.connected);
                [requests, (entries(TCP_LOGS, &self.connections), self.connected)]
            }
        };
        sheets.into_iter().filter(|(_, lines)| *lines > 0).map(|(bytes, lines)| Sheet { bytes, lines })
    }

    /// Empty, with its usual room.
    pub(super) fn clear(&mut self) {
        self.lines.clear(2 * PAGE_BYTES);
        for bytes in [&mut self.records, &mut self.requests, &mut self.connections] {
            bytes.clear();
            bytes.shrink_to(2 * PAGE_BYTES);
        }
        (self.count, self.connected) = (0, 0);
    }

    /// Empty, without room.
    pub(in crate::observe) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A `StreamAccessLogsMessage` without the stream's identifier, which may stand before it.
fn entries(field: u32, entries: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(entries.len() + 8);
    prefix(&mut message, field, entries.len());
    message.extend_from_slice(entries);
    message
}
