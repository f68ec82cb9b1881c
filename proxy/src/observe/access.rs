//! The access log: who writes its lines, and where to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use engine::model::Settings;

use super::batch::{Batch, Outbox, Outboxes};
use super::finished::Finished;
use super::line::Lines;
use super::sinks::{LogLines, Losses, Page, SinkMeans, Sinks, ToServices};
use super::written;

/// Pause of the writer after it has written all there was: records gather meanwhile, and a worker need not wake it for each.
const GATHER: Duration = Duration::from_millis(20);
/// Steps of [`AccessLog::close`], and how many make a second.
const CLOSE_STEP: Duration = Duration::from_millis(2);
const CLOSE_STEPS_MAX: u32 = 500;
/// How many of them sinks have for what they still hold.
const SINKS_STEPS_MAX: u32 = 450;

/// Takes records from workers and has their lines written; nobody ever waits for a sink.
#[derive(Debug)]
pub struct AccessLog {
    lines: LogLines,
    outboxes: Arc<Outboxes>,
    writer: OnceLock<Option<JoinHandle<()>>>,
    ending: Arc<AtomicBool>,
    means: SinkMeans,
    /// In force: they say which sinks there are.
    settings: Arc<ArcSwapOption<Settings>>,
    filters_failed: Arc<AtomicU64>,
}

impl AccessLog {
    /// The writer's thread starts with the first worker that logs: most proxies never write a line.
    pub(super) fn new(lines: LogLines, means: SinkMeans, settings: Arc<ArcSwapOption<Settings>>) -> Self {
        Self {
            lines,
            outboxes: Arc::default(),
            writer: OnceLock::new(),
            ending: Arc::default(),
            means,
            settings,
            filters_failed: Arc::default(),
        }
    }

    /// How Services of the mesh are reached; told once, when the proxy starts.
    pub(super) fn reach_services(&self, services: Arc<dyn ToServices>) {
        let _ = self.means.services.set(services);
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
            let told = batch.records.iter().filter(|record| is_told(&Finished::of(&batch, record), &self.filters_failed));
            told.for_each(|record| written::push(&mut lines, &batch, record));
            kept.lock().extend(String::from_utf8_lossy(lines.bytes()).lines().map(str::to_owned));
            outbox.give_back(batch);
        }
    }

    /// Records that wait for the writer.
    pub(super) fn waiting(&self) -> u64 {
        self.outboxes.waiting()
    }

    /// Lines that sinks lost.
    pub(super) fn losses(&self) -> &Losses {
        &self.means.losses
    }

    /// Filters that came to nothing; their lines were written.
    pub(super) fn filters_failed(&self) -> u64 {
        self.filters_failed.load(Ordering::Relaxed)
    }

    /// Writes out what the workers have left and ends the writer; gives up after a second.
    pub(super) fn close(&self) {
        let Some(Some(writer)) = self.writer.get() else { return };
        self.ending.store(true, Ordering::SeqCst);
        self.outboxes.bell.ring();
        finished(std::slice::from_ref(writer), CLOSE_STEPS_MAX);
    }

    fn start(&self) -> Option<JoinHandle<()>> {
        let mut writer = LogWriter {
            outboxes: Arc::clone(&self.outboxes),
            ending: Arc::clone(&self.ending),
            sinks: Sinks::new(self.lines.clone(), self.means.clone()),
            settings: Arc::clone(&self.settings),
            arranged: None,
            filters_failed: Arc::clone(&self.filters_failed),
            page: Page::default(),
        };
        match std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run()) {
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

/// Waits for threads to end, for so many steps.
fn finished(threads: &[JoinHandle<()>], steps_max: u32) {
    for _ in 0..steps_max {
        if threads.iter().all(JoinHandle::is_finished) {
            return;
        }
        std::thread::sleep(CLOSE_STEP);
    }
}

/// Whether an exchange is what its filter wants to be told of. One that cannot be judged is.
fn is_told(told: &Finished<'_>, failed: &AtomicU64) -> bool {
    let Some(filter) = told.filter() else { return true };
    filter.holds(told).unwrap_or_else(|| {
        failed.fetch_add(1, Ordering::Relaxed);
        true
    })
}

/// The thread that filters, encodes and hands over.
struct LogWriter {
    outboxes: Arc<Outboxes>,
    ending: Arc<AtomicBool>,
    sinks: Sinks,
    settings: Arc<ArcSwapOption<Settings>>,
    /// The settings that the sinks are those of; the outer `None`: of none yet.
    arranged: Option<Option<Arc<Settings>>>,
    filters_failed: Arc<AtomicU64>,
    page: Page,
}

impl LogWriter {
    fn run(&mut self) {
        let mut resting = false;
        loop {
            let ending = self.ending.load(Ordering::SeqCst);
            let any = self.write_out();
            if ending {
                return finished(&self.sinks.close(), SINKS_STEPS_MAX);
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
                self.page.forget();
                self.outboxes.bell.rest();
            }
        }
    }

    /// Hands on what the workers have left, in one go unless it is much. Whether there was anything.
    fn write_out(&mut self) -> bool {
        let mut any = false;
        for outbox in self.outboxes.all() {
            let Some(batch) = outbox.take() else { continue };
            any = true;
            self.arrange();
            self.encode(&batch);
            outbox.give_back(batch);
        }
        self.sinks.give(&mut self.page);
        any
    }

    /// Follows the settings in force.
    fn arrange(&mut self) {
        let settings = self.settings.load();
        let known = self.arranged.as_ref().is_some_and(|arranged| same(arranged.as_ref(), settings.as_ref()));
        if !known {
            self.sinks.give(&mut self.page);
            self.sinks.arrange(settings.as_ref());
            self.arranged = Some(settings.clone());
        }
    }

    fn encode(&mut self, batch: &Batch) {
        let wants = self.sinks.wants();
        for record in &batch.records {
            let told = Finished::of(batch, record);
            if !is_told(&told, &self.filters_failed) {
                continue;
            }
            self.page.add(&told, wants);
            if self.page.is_full() {
                self.sinks.give(&mut self.page);
            }
        }
    }
}

fn same(one: Option<&Arc<Settings>>, other: Option<&Arc<Settings>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}
