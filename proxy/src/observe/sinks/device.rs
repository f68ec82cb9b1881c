//! Standard output beside other sinks.

use std::fs::File;
use std::io::Write as _;

use engine::model::LogSinkKind;

use super::Losses;
use super::queue::SheetQueue;

/// Writes until there will be no more.
pub(super) fn run(mut out: File, mut queue: SheetQueue, losses: &Losses) {
    while let Some(sheet) = queue.wait() {
        if out.write_all(&sheet.bytes).is_err() {
            losses.add(LogSinkKind::Stdout, sheet.lines);
        }
    }
}
