//! Where lines of the access log go. Standard output alone is written to by whoever encodes; beside or in place of it each sink has a thread
//! and a bounded queue of its own: a slow one holds up nobody else, and what it cannot take is dropped and counted.

mod als;
mod complaint;
mod device;
mod entry;
mod file;
mod otlp;
mod page;
mod queue;
mod semantic;

use std::fs::File;
use std::future::Future;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use engine::model::{LogSink, LogSinkKind, Settings};

use super::collector::Way;
use crate::io::Clock;
pub use als::ToServices;
pub use device::LogLines;
pub(super) use page::{Page, Wants};
use queue::{SheetSender, queue};

/// Where lines go where nothing else is said.
const STDOUT: &[LogSink] = &[LogSink::Stdout];

/// What sinks need.
#[derive(Clone, Debug)]
pub(super) struct SinkMeans {
    pub(super) clock: Clock,
    /// To collectors.
    pub(super) way: Way,
    /// Name of the instance.
    pub(super) instance: String,
    /// To Services of the mesh; not there before the proxy has started.
    pub(super) services: Arc<OnceLock<Arc<dyn ToServices>>>,
    pub(super) losses: Arc<Losses>,
}

/// Lines that were lost, by sink.
#[derive(Debug, Default)]
pub(super) struct Losses([AtomicU64; LogSinkKind::ALL.len()]);

impl Losses {
    pub(super) fn add(&self, sink: LogSinkKind, lines: u64) {
        self.0[sink as usize].fetch_add(lines, Ordering::Relaxed);
    }

    /// Each sink's.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        LogSinkKind::ALL.into_iter().map(|sink| (sink.text(), self.0[sink as usize].load(Ordering::Relaxed)))
    }
}

/// The sinks that are open.
#[derive(Debug)]
pub(super) struct Sinks {
    means: SinkMeans,
    /// What stands for standard output.
    lines: LogLines,
    open: Vec<Open>,
    /// Standard output has a thread; two writers would mix up its lines.
    stdout_queued: bool,
    wants: Wants,
}

#[derive(Debug)]
struct Open {
    sink: LogSink,
    delivery: Delivery,
}

#[derive(Debug)]
enum Delivery {
    /// By whoever encodes.
    Direct(File),
    Queued(SheetSender, JoinHandle<()>),
    /// There is no thread for it; told once.
    Gone,
}

impl Sinks {
    pub(super) fn new(lines: LogLines, means: SinkMeans) -> Self {
        Self { means, lines, open: Vec::new(), stdout_queued: false, wants: Wants::default() }
    }

    /// In which forms lines are wanted.
    pub(super) const fn wants(&self) -> Wants {
        self.wants
    }

    /// Opens those that settings name, and lets others end once they have written what they have.
    pub(super) fn arrange(&mut self, settings: Option<&Arc<Settings>>) {
        let wanted = match settings {
            Some(settings) if !settings.log_sinks.is_empty() => settings.log_sinks.as_slice(),
            _ => STDOUT,
        };
        let alone = wanted.len() == 1 && !self.stdout_queued;
        self.open.retain(|open| wanted.contains(&open.sink) && (alone || !matches!(open.delivery, Delivery::Direct(_))));
        for sink in wanted {
            if self.open.iter().any(|open| open.sink == *sink) {
                continue;
            }
            let delivery = self.opened(sink, alone, settings).unwrap_or_else(|error| {
                tracing::error!(%error, sink = sink.kind().text(), "no thread can be started for a sink of the access log; its lines are dropped");
                Delivery::Gone
            });
            self.open.push(Open { sink: sink.clone(), delivery });
        }
        let wants = |kind| self.open.iter().any(|open| open.sink.kind() == kind);
        self.wants = Wants {
            lines: wants(LogSinkKind::Stdout) || wants(LogSinkKind::File),
            records: wants(LogSinkKind::Otlp),
            entries: wants(LogSinkKind::Als),
        };
    }

    fn opened(&mut self, sink: &LogSink, alone: bool, settings: Option<&Arc<Settings>>) -> io::Result<Delivery> {
        let means = self.means.clone();
        let names = settings.map_or(("", ""), |settings| (settings.namespace.as_str(), settings.workload.as_str()));
        let (sender, queue) = queue();
        let thread = match sink {
            LogSink::Stdout => {
                let out = self.lines.device()?;
                if alone {
                    return Ok(Delivery::Direct(out));
                }
                self.stdout_queued = true;
                spawn("log-stdout", move || device::run(out, queue, &means.losses))?
            }
            LogSink::File(file) => {
                let sink = file::FileSink::new(file, file.path_of(names.0, names.1, &means.instance), &means);
                spawn("log-file", move || sink.run(queue))?
            }
            LogSink::Otlp(endpoint) => {
                let sink = otlp::OtlpSink::new(endpoint.clone(), settings.cloned(), means);
                spawn_async("log-otlp", move || sink.run(queue))?
            }
            LogSink::Als(address) => {
                let sink = als::AlsSink::new(address.clone(), format!("{}/{}", names.0, names.1), means);
                spawn_async("log-als", move || sink.run(queue))?
            }
        };
        Ok(Delivery::Queued(sender, thread))
    }

    /// Hands a page over to all, and empties it.
    pub(super) fn give(&mut self, page: &mut Page) {
        if page.is_empty() {
            return;
        }
        for Open { sink, delivery } in &mut self.open {
            let lost: u64 = match delivery {
                Delivery::Direct(out) => {
                    if out.write_all(page.lines()).is_err() {
                        page.count()
                    } else {
                        0
                    }
                }
                Delivery::Queued(sender, _) => page.sheets(sink.kind()).filter_map(|sheet| sender.send(sheet).err()).sum(),
                Delivery::Gone => page.count(),
            };
            if lost > 0 {
                self.means.losses.add(sink.kind(), lost);
            }
        }
        page.clear();
    }

    /// No more will be given: the threads that write what they still have.
    pub(super) fn close(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.open)
            .into_iter()
            .filter_map(|open| match open.delivery {
                Delivery::Queued(_, thread) => Some(thread),
                Delivery::Direct(_) | Delivery::Gone => None,
            })
            .collect()
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// With a runtime of its own: nothing that the proxy serves waits for it, and it for nothing of that.
fn spawn_async<F: Future<Output = ()>>(name: &str, run: impl FnOnce() -> F + Send + 'static) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    spawn(name, move || runtime.block_on(run()))
}
