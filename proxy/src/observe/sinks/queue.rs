//! From the encoder to one sink: a queue that is bounded in bytes and in number, and never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

/// Encoded lines of one sink that wait, in bytes, and sheets of them; beyond, they are dropped and counted.
pub(super) const QUEUE_BYTES_MAX: usize = 4 << 20;
const SHEETS_MAX: usize = 1024;

/// Encoded lines on their way to a sink.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sheet {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

/// The encoder's end.
#[derive(Debug)]
pub(super) struct SheetSender {
    sheets: mpsc::Sender<Sheet>,
    waiting: Arc<AtomicUsize>,
}

/// The sink's end.
#[derive(Debug)]
pub(super) struct SheetQueue {
    sheets: mpsc::Receiver<Sheet>,
    waiting: Arc<AtomicUsize>,
}

pub(super) fn queue() -> (SheetSender, SheetQueue) {
    let (sender, sheets) = mpsc::channel(SHEETS_MAX);
    let waiting = Arc::<AtomicUsize>::default();
    (SheetSender { sheets: sender, waiting: Arc::clone(&waiting) }, SheetQueue { sheets, waiting })
}

impl SheetSender {
    /// Adds a sheet.
    ///
    /// # Errors
    /// Too much waits, or nobody takes it any more: how many lines are lost.
    pub(super) fn send(&self, sheet: Sheet) -> Result<(), u64> {
        let (bytes, lines) = (sheet.bytes.len(), sheet.lines);
        let room = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES_MAX;
        if !room || self.sheets.try_send(sheet).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            return Err(lines);
        }
        Ok(())
    }
}

impl SheetQueue {
    /// The next one; `None`: there will be none.
    pub(super) async fn next(&mut self) -> Option<Sheet> {
        let sheet = self.sheets.recv().await;
        self.taken(sheet)
    }

    /// The same on a thread that may wait.
    pub(super) fn wait(&mut self) -> Option<Sheet> {
        let sheet = self.sheets.blocking_recv();
        self.taken(sheet)
    }

    /// Whether no more will be added.
    pub(super) fn is_closed(&self) -> bool {
        self.sheets.is_closed()
    }

    fn taken(&self, sheet: Option<Sheet>) -> Option<Sheet> {
        if let Some(sheet) = &sheet {
            self.waiting.fetch_sub(sheet.bytes.len(), Ordering::Relaxed);
        }
        sheet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the queue holds what its bounds say, counts what it does not take, takes again once there is room, and ends in order.
    #[test]
    fn a_queue_is_bounded() {
        let (sender, mut queue) = queue();
        let sheet = |bytes: usize, lines| Sheet { bytes: vec![b'x'; bytes], lines };
        assert_eq!(sender.send(sheet(QUEUE_BYTES_MAX - 1, 3)), Ok(()));
        assert_eq!(sender.send(sheet(2, 4)), Err(4));
        assert_eq!(sender.send(sheet(1, 1)), Ok(()));
        assert_eq!(queue.wait().unwrap().lines, 3);
        assert_eq!(sender.send(sheet(2, 4)), Ok(()));
        assert_eq!((queue.wait().unwrap().lines, queue.wait().unwrap().lines), (1, 4));
        for _ in 0..SHEETS_MAX {
            assert_eq!(sender.send(sheet(1, 1)), Ok(()));
        }
        assert_eq!(sender.send(sheet(1, 7)), Err(7));
        drop(sender);
        assert!(queue.is_closed());
        assert_eq!(std::iter::from_fn(|| queue.wait()).count(), SHEETS_MAX);
    }
}
