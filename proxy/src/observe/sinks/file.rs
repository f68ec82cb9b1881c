//! Lines into a file: put aside as it grows, opened anew when somebody else moves or removes it. A full disk costs lines and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::model::{LogFile, LogSinkKind};

use super::complaint::Complaint;
use super::queue::{Sheet, SheetQueue};
use super::{Losses, SinkMeans};
use crate::io::Clock;

/// How often is looked whether the path still leads to the file, and how soon one that cannot be opened is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Who may read it: its owner's group too.
const MODE: u32 = 0o640;

/// See the module.
#[derive(Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    bytes_max: u64,
    keep: u32,
    clock: Clock,
    losses: Arc<Losses>,
    complaint: Complaint,
    open: Option<OpenFile>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct OpenFile {
    out: File,
    bytes: u64,
    /// Device and inode.
    id: (u64, u64),
    /// Devices and pipes have no size, and are not put aside.
    is_regular: bool,
    /// A line's beginning was written and its end was not.
    is_torn: bool,
}

impl FileSink {
    pub(super) fn new(LogFile { path: _, bytes_max, keep }: &LogFile, path: String, means: &SinkMeans) -> Self {
        Self {
            path: path.into(),
            bytes_max: *bytes_max,
            keep: *keep,
            clock: means.clock,
            losses: Arc::clone(&means.losses),
            complaint: Complaint::new(means.clock),
            open: None,
            looked: None,
        }
    }

    /// Writes until there will be no more.
    pub(super) fn run(mut self, mut queue: SheetQueue) {
        while let Some(sheet) = queue.wait() {
            self.write(&sheet);
        }
    }

    fn write(&mut self, sheet: &Sheet) {
        let mut rest = &sheet.bytes[..];
        if !self.is_ready() {
            return self.losses.add(LogSinkKind::File, sheet.lines);
        }
        while !rest.is_empty() {
            let (written, outcome) = self.write_some(rest);
            rest = &rest[written..];
            if let Err(error) = outcome {
                // The end of a line that was begun is lost with it.
                let lost = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.losses.add(LogSinkKind::File, lost);
                if self.complaint.is_due() {
                    tracing::warn!(path = %self.path.display(), %error,
                        "the access log cannot be written to its file, and lines are dropped; check its folder, its owner and the disk (said once a minute)");
                }
                return;
            }
        }
    }

    /// Whether it makes sense to write. Once in a while it is looked whether the path still leads to the open file.
    fn is_ready(&mut self) -> bool {
        let now = self.clock.now();
        let due = self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK_EVERY);
        if due {
            self.looked = Some(now);
            let there = fs::metadata(&self.path).ok().map(|there| (there.dev(), there.ino()));
            self.open.take_if(|open| there != Some(open.id));
        }
        due || self.open.is_some()
    }

    /// Writes as much as fits into the file before it is put aside; how much, and what stopped it.
    fn write_some(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let open = match &mut self.open {
            Some(open) => open,
            closed => match OpenFile::at(&self.path) {
                Ok(open) => closed.insert(open),
                Err(error) => return (0, Err(error)),
            },
        };
        let piece = match open.is_regular {
            true => piece(bytes, self.bytes_max.saturating_sub(open.bytes), open.bytes == 0),
            false => bytes.len(),
        };
        if piece == 0 {
            self.open = None;
            return (0, put_aside(&self.path, self.keep));
        }
        let (written, outcome) = open.append(&bytes[..piece]);
        // An open file that cannot be written may be one that no longer is there.
        if outcome.is_err() && !open.is_torn {
            self.open = None;
        }
        (written, outcome)
    }
}

/// How many bytes of whole lines have room; of an empty file, one line at least.
fn piece(bytes: &[u8], room: u64, empty: bool) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if bytes.len() <= room {
        return bytes.len();
    }
    let end_within = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1);
    match end_within(&bytes[..room]) {
        Some(end) => end,
        None if empty => bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1),
        None => 0,
    }
}

/// `PATH.1` becomes `PATH.2` and so on, the last one goes, and `PATH` becomes `PATH.1`.
fn put_aside(path: &Path, keep: u32) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..keep).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(1))
}

impl OpenFile {
    fn at(path: &Path) -> io::Result<Self> {
        // A pipe that nobody reads must not keep the thread.
        let out = OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let there = out.metadata()?;
        Ok(Self { bytes: there.len(), id: (there.dev(), there.ino()), is_regular: there.is_file(), is_torn: false, out })
    }

    /// How much was written, and what stopped it.
    fn append(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        if self.is_torn {
            if let Err(error) = self.out.write_all(b"\n") {
                return (0, Err(error));
            }
            (self.is_torn, self.bytes) = (false, self.bytes + 1);
        }
        let (written, outcome) = write_out(&mut self.out, bytes);
        self.bytes += written as u64;
        self.is_torn = written > 0 && bytes[written - 1] != b'\n';
        (written, outcome)
    }
}

/// As `write_all`, but says how far it came.
fn write_out(out: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
