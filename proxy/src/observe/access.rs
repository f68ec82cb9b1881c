//! The access log: who writes its lines, and where to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::batch::{Batch, Outbox, Outboxes};
use super::line::Lines;
use super::written;

/// Pause of the writer after it has written all there was: records gather meanwhile, and a worker need not wake it for each.
const GATHER: Duration = Duration::from_millis(20);
/// Bytes gathered before they are written: all of a usual batch.
const WRITE_BYTES: usize = 256 << 10;
/// Steps of [`AccessLog::close`], and how many make a second.
const CLOSE_STEP: Duration = Duration::from_millis(2);
const CLOSE_STEPS_MAX: u32 = 500;

/// Where lines go.
#[derive(Clone, Debug, Default)]
pub enum LogLines {
    /// To standard output, by a thread of its own.
    #[default]
    Stdout,
    /// To an open file or pipe, by a thread of its own.
    File(Arc<File>),
    /// Into memory and at once, for simulation and tests.
    Memory(Arc<Mutex<Vec<String>>>),
}

/// Takes records from workers and writes their lines; nobody ever waits for the device.
#[derive(Debug)]
pub struct AccessLog {
    lines: LogLines,
    outboxes: Arc<Outboxes>,
    writer: OnceLock<Option<JoinHandle<()>>>,
    ending: Arc<AtomicBool>,
    /// Lines that the device refused.
    lost: Arc<AtomicU64>,
}

impl AccessLog {
    /// The writer's thread starts with the first worker that logs: most proxies never write a line.
    pub(super) fn new(lines: LogLines) -> Self {
        Self { lines, outboxes: Arc::default(), writer: OnceLock::new(), ending: Arc::default(), lost: Arc::default() }
    }

    /// One more worker's records.
    pub(super) fn open(&self) -> Arc<Outbox> {
        if !matches!(self.lines, LogLines::Memory(_)) {
            self.writer.get_or_init(|| self.start());
        }
        self.outboxes.open()
    }

    /// A worker has added to its outbox.
    pub(super) fn added(&self, outbox: &Outbox) {
        if let LogLines::Memory(kept) = &self.lines
            && let Some(batch) = outbox.take()
        {
            let mut lines = Lines::default();
            batch.records.iter().for_each(|record| written::push(&mut lines, &batch, record));
            kept.lock().extend(String::from_utf8_lossy(lines.bytes()).lines().map(str::to_owned));
            outbox.give_back(batch);
        }
    }

    /// Records that wait for the writer.
    pub(super) fn waiting(&self) -> u64 {
        self.outboxes.waiting()
    }

    /// Lines that could not be written.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes out what the workers have left and ends the writer; gives up after a second.
    pub(super) fn close(&self) {
        let Some(Some(writer)) = self.writer.get() else { return };
        self.ending.store(true, Ordering::SeqCst);
        self.outboxes.bell.ring();
        for _ in 0..CLOSE_STEPS_MAX {
            if writer.is_finished() {
                return;
            }
            std::thread::sleep(CLOSE_STEP);
        }
    }

    fn start(&self) -> Option<JoinHandle<()>> {
        let out = match &self.lines {
            LogLines::File(file) => file.try_clone(),
            // Past the library's own buffer, which looks for the last line's end in all that is written.
            _ => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        };
        let writer = |out| LogWriter {
            out,
            outboxes: Arc::clone(&self.outboxes),
            ending: Arc::clone(&self.ending),
            lost: Arc::clone(&self.lost),
            lines: Lines::default(),
            pending: 0,
        };
        let thread = out.and_then(|out| {
            let mut writer = writer(out);
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())
        });
        match thread {
            Ok(thread) => {
                let woken = thread.thread().clone();
                self.outboxes.bell.rings(move || woken.unpark());
                Some(thread)
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the access log's writer; no access log will be written until restart");
                None
            }
        }
    }
}

/// The thread that encodes and writes.
struct LogWriter<W> {
    out: W,
    outboxes: Arc<Outboxes>,
    ending: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    lines: Lines,
    /// Lines in `lines`.
    pending: u64,
}

impl<W: Write> LogWriter<W> {
    fn run(&mut self) {
        let mut resting = false;
        loop {
            let ending = self.ending.load(Ordering::SeqCst);
            let any = self.write_out();
            if ending {
                return;
            }
            if any {
                resting = false;
                std::thread::park_timeout(GATHER);
            } else if resting {
                resting = false;
                std::thread::park();
            } else {
                // Once more after having said so: see `Bell::rest`.
                resting = true;
                self.outboxes.forget_spares();
                self.lines.clear(0);
                self.outboxes.bell.rest();
            }
        }
    }

    /// Writes what the workers have left, in one go unless it is much. Whether there was anything.
    fn write_out(&mut self) -> bool {
        let mut any = false;
        for outbox in self.outboxes.all() {
            let Some(batch) = outbox.take() else { continue };
            any = true;
            self.encode(&batch);
            outbox.give_back(batch);
        }
        self.flush();
        any
    }

    fn encode(&mut self, batch: &Batch) {
        for record in &batch.records {
            written::push(&mut self.lines, batch, record);
            self.pending += 1;
            if self.lines.bytes().len() >= WRITE_BYTES {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.pending > 0 && self.out.write_all(self.lines.bytes()).is_err() {
            self.lost.fetch_add(self.pending, Ordering::Relaxed);
        }
        self.pending = 0;
        self.lines.clear(2 * WRITE_BYTES);
    }
}
