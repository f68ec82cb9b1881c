//! Standard output, and what stands for it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use engine::model::LogSinkKind;
use parking_lot::Mutex;

use super::Losses;
use super::queue::SheetQueue;

/// What stands for standard output.
#[derive(Clone, Debug, Default)]
pub enum LogLines {
    /// It itself.
    #[default]
    Stdout,
    /// An open file or pipe.
    File(Arc<File>),
    /// Memory, at once and without any other sink, for simulation and tests.
    Memory(Arc<Mutex<Vec<String>>>),
}

impl LogLines {
    /// Past the library's own buffer, which looks for the last line's end in all that is written.
    pub(super) fn device(&self) -> io::Result<File> {
        match self {
            Self::File(file) => file.try_clone(),
            Self::Stdout | Self::Memory(_) => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        }
    }
}

/// Writes until there will be no more, beside other sinks.
pub(super) fn run(mut out: File, mut queue: SheetQueue, losses: &Losses) {
    while let Some(sheet) = queue.wait() {
        if out.write_all(&sheet.bytes).is_err() {
            losses.add(LogSinkKind::Stdout, sheet.lines);
        }
    }
}
