//! Taps: who watches requests, and what proxies show them. Nobody waits for a watcher: what finds no room is dropped, counted and told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use proto::mesh::{TapNews, Tapped};
use tokio::sync::mpsc;

/// Taps at once.
pub const TAPS_MAX: usize = 32;
/// Messages of proxies that wait for one watcher.
const NEWS_AHEAD: usize = 64;
/// Bytes of lines that are taken from one message.
const LINES_BYTES_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub struct TapBook {
    open: Mutex<BTreeMap<u64, OpenTap>>,
}

#[derive(Debug)]
struct OpenTap {
    /// Keys of those that were asked.
    proxies: BTreeSet<String>,
    news: mpsc::Sender<TapNews>,
    /// Counts of what found no room.
    lost: (u64, u64),
}

/// One tap, until it is dropped.
#[derive(Debug)]
pub struct Tap {
    /// Names it to proxies.
    pub id: u64,
    book: Arc<TapBook>,
    news: mpsc::Receiver<TapNews>,
}

impl TapBook {
    /// Opens a tap. `None`: there are [`TAPS_MAX`].
    pub(super) fn open(self: &Arc<Self>, id: u64) -> Option<Tap> {
        let mut open = self.open.lock();
        if open.len() >= TAPS_MAX {
            return None;
        }
        let (sender, news) = mpsc::channel(NEWS_AHEAD);
        open.insert(id, OpenTap { proxies: BTreeSet::new(), news: sender, lost: (0, 0) });
        Some(Tap { id, book: Arc::clone(self), news })
    }

    /// Takes what a proxy shows; never waits. What nobody asked that proxy for is passed over.
    pub fn told(&self, key: &str, tapped: Tapped) {
        let mut open = self.open.lock();
        let Some(tap) = open.get_mut(&tapped.tap).filter(|tap| tap.proxies.contains(key)) else { return };
        let (told, mut room) = (tapped.lines.len(), LINES_BYTES_MAX);
        let fits = |line: &String| {
            let fits = line.len() <= room;
            room -= if fits { line.len() } else { 0 };
            fits
        };
        let lines: Vec<String> = tapped.lines.into_iter().filter(fits).collect();
        let dropped = tapped.dropped.saturating_add((told - lines.len()) as u64);
        let note = if tapped.error.is_empty() { String::new() } else { format!("{key}: {}", tapped.error) };
        let (lost_seen, lost) = tap.lost;
        let shown = lines.len() as u64;
        let news = TapNews { lines, seen: tapped.seen.saturating_add(lost_seen), dropped: dropped.saturating_add(lost), proxies: 0, note };
        let (seen, all_dropped) = (news.seen, news.dropped.saturating_add(shown));
        tap.lost = match tap.news.try_send(news) {
            Ok(()) => (0, 0),
            Err(_) => (seen, all_dropped),
        };
    }
}

impl Tap {
    /// The next that proxies show.
    pub async fn news(&mut self) -> Option<TapNews> {
        self.news.recv().await
    }

    /// Says whom it is about now; returns those that it was about and is no more.
    pub fn aim(&self, keys: &BTreeSet<String>) -> Vec<String> {
        let mut open = self.book.open.lock();
        let Some(tap) = open.get_mut(&self.id) else { return Vec::new() };
        let before = std::mem::replace(&mut tap.proxies, keys.clone());
        before.difference(keys).cloned().collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.book.open.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tapped(tap: u64, lines: &[&str], (seen, dropped): (u64, u64)) -> Tapped {
        Tapped { tap, lines: lines.iter().map(|line| (*line).to_owned()).collect(), seen, dropped, error: String::new() }
    }

    fn tap(book: &Arc<TapBook>, id: u64, keys: &[&str]) -> Tap {
        let tap = book.open(id).unwrap();
        tap.aim(&keys.iter().map(|key| (*key).to_owned()).collect());
        tap
    }

    /// Aim: a watcher hears of the proxies that were asked, and of nobody else, and whom a tap is about no more is said.
    #[test]
    fn only_those_asked_are_heard() {
        let book = Arc::<TapBook>::default();
        let mut tap = tap(&book, 1, &["shop/a", "shop/b"]);
        book.told("shop/a", tapped(1, &["x"], (3, 2)));
        book.told("shop/c", tapped(1, &["forged"], (1, 0)));
        book.told("shop/a", tapped(2, &["of another"], (1, 0)));
        let news = tap.news.try_recv().unwrap();
        assert_eq!((news.lines.as_slice(), news.seen, news.dropped), (&["x".to_owned()][..], 3, 2));
        assert!(tap.news.try_recv().is_err());
        assert_eq!(tap.aim(&["shop/b".to_owned()].into()), ["shop/a"]);
        book.told("shop/a", tapped(1, &["x"], (1, 0)));
        assert!(tap.news.try_recv().is_err());
    }

    /// Aim: a watcher that reads nothing holds up no proxy, and hears later how much it missed: no exchange is in no count.
    #[test]
    fn a_slow_watcher_holds_up_nobody() {
        let book = Arc::<TapBook>::default();
        let mut tap = tap(&book, 1, &["shop/a"]);
        for _ in 0..NEWS_AHEAD + 100 {
            book.told("shop/a", tapped(1, &["a", "b"], (3, 1)));
        }
        let mut sums = (0, 0, 0);
        let mut read = |tap: &mut Tap| {
            while let Ok(news) = tap.news.try_recv() {
                sums = (sums.0 + news.seen, sums.1 + news.dropped, sums.2 + news.lines.len() as u64);
            }
            sums
        };
        read(&mut tap);
        book.told("shop/a", tapped(1, &["a"], (1, 0)));
        let all = 3 * (NEWS_AHEAD as u64 + 100) + 1;
        assert_eq!(read(&mut tap), (all, all - 2 * NEWS_AHEAD as u64 - 1, 2 * NEWS_AHEAD as u64 + 1));
    }

    /// Aim: taps and the bytes of a message are bounded, and a tap that ends makes room.
    #[test]
    fn taps_are_bounded() {
        let book = Arc::<TapBook>::default();
        let mut taps: Vec<Tap> = (0..TAPS_MAX as u64).map(|id| tap(&book, id, &["shop/a"])).collect();
        assert!(book.open(99).is_none());
        let long = "x".repeat(LINES_BYTES_MAX / 2 + 1);
        book.told("shop/a", tapped(0, &[&long, &long, "short"], (3, 0)));
        let news = taps[0].news.try_recv().unwrap();
        assert_eq!((news.lines.len(), news.dropped), (2, 1));
        taps.pop();
        assert!(book.open(99).is_some());
    }
}
