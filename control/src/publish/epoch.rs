//! The book of epochs: which proxies an epoch concerns, who runs it, who refused it. Pure: time comes in as microseconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::refusal;
use serde::{Deserialize, Serialize};

use super::peer::gateway_of;

/// Epochs kept for `get epochs`; older ones are forgotten.
pub const EPOCHS_MAX: usize = 256;
/// Refusals kept per epoch.
pub const REFUSALS_MAX: usize = 256;

/// What is persisted: the newest number, and a digest of the objects behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Never goes back.
    pub number: u64,
    /// The same objects after a restart are the same epoch.
    pub content: String,
}

/// [`Touched::result`] of an object that is as it was.
pub const UNCHANGED: &str = "unchanged";

/// One object of an epoch, as `apply` prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Touched {
    /// Its kind.
    pub kind: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `created`, `changed`, `unchanged` or `deleted`.
    pub result: &'static str,
}

/// What an epoch came of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Where the change is from: `Folder`, `Cluster`, `Applied`, or `Roots` for whom the mesh believes.
    pub from: &'static str,
    /// When it was taken up, microseconds since 1970.
    pub began_us: u64,
}

/// A proxy that runs an epoch without something, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyRefusal {
    /// By its key, see [`super::peer::Claim::key`].
    pub proxy: String,
    /// The resource, type first.
    pub object: String,
    /// As the proxy says it.
    pub reason: String,
}

/// Where one epoch stands. Who has answered is counted, not named: proxies are many, and so are the epochs that are remembered.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// When it was accepted, microseconds since 1970.
    pub accepted_us: u64,
    /// What changed.
    pub objects: Vec<Touched>,
    /// Why there is this epoch; `None`: not told yet, or it is from before a restart.
    pub cause: Option<Cause>,
    /// Proxies (by key, see [`super::peer::Claim::key`]) that have not answered, and whether it is known to change something for them.
    /// Those that are not connected are among them.
    waiting: BTreeMap<String, bool>,
    /// Of all proxies, for how many the view changed.
    pub concerned: usize,
    /// Of the concerned, how many run it.
    pub acknowledged: usize,
    /// How many were advanced in the book: nothing changed for them.
    pub unaffected: usize,
    /// Said no to a part.
    pub refused: Vec<ProxyRefusal>,
    /// From acceptance to the last answer.
    pub live_ms: Option<f64>,
    /// [`Book::lived`] counts it.
    counted: bool,
}

/// Upper bounds of [`Lived`], in milliseconds; one without bound follows.
pub const LIVED_BOUNDS_MS: [f64; 10] = [5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 5000.0, 30_000.0, 120_000.0];

/// How long epochs took from their acceptance to the last answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lived {
    /// By [`LIVED_BOUNDS_MS`].
    pub buckets: [u64; LIVED_BOUNDS_MS.len() + 1],
    /// All together.
    pub sum_ms: f64,
}

impl Entry {
    /// Every proxy runs it, whole.
    pub fn live(&self) -> bool {
        self.waiting.is_empty() && self.refused.is_empty()
    }

    /// Nobody has still to answer.
    pub fn settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Proxies that have not answered, in order; those that are not connected are among them.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &String> {
        self.waiting.keys()
    }

    /// `proxies` of `apply` and `wait`.
    pub fn counts(&self) -> serde_json::Value {
        let waiting: Vec<_> = self.waiting().collect();
        serde_json::json!({"concerned": self.concerned, "unaffected": self.unaffected, "waiting": waiting})
    }

    /// One row of `get epochs`.
    pub fn row(&self) -> serde_json::Value {
        let waiting: Vec<_> = self.waiting().collect();
        serde_json::json!({
            "epoch": self.number,
            "accepted": moment(self.accepted_us / 1000),
            "live": self.live(),
            "live_ms": self.live_ms,
            "objects": self.objects,
            "refused": self.refused,
            "proxies": {
                "concerned": self.concerned,
                "acknowledged": self.acknowledged,
                "unaffected": self.unaffected,
                "waiting": waiting,
            },
        })
    }

    /// One that stands for a Gateway while none of its proxies is there is settled by the first of them that answers.
    fn settle_by(&mut self, proxy: &str, now_us: u64) -> Option<bool> {
        self.settle(proxy, now_us).or_else(|| self.settle(gateway_of(proxy)?, now_us))
    }

    /// A proxy need not be waited for any more; whether it was known to be concerned, if it was waited for.
    fn settle(&mut self, proxy: &str, now_us: u64) -> Option<bool> {
        let concerned = self.waiting.remove(proxy)?;
        if self.waiting.is_empty() {
            self.live_ms = Some(since(self.accepted_us, now_us));
        }
        Some(concerned)
    }
}

/// Milliseconds.
fn since(start_us: u64, now_us: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    let span = now_us.saturating_sub(start_us) as f64;
    span / 1000.0
}

/// RFC 3339, with milliseconds.
pub fn moment(ms: u64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    at.ok().and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

/// Every epoch that is remembered, and which one each proxy runs by its answers; who rests on what it has runs every newer one, too
/// ([`super::concern`]).
#[derive(Debug, Default)]
pub struct Book {
    entries: VecDeque<Entry>,
    running: BTreeMap<String, u64>,
    /// What each proxy does without at present, as it said last.
    refusing: BTreeMap<String, Vec<ProxyRefusal>>,
    lived: Lived,
}

impl Book {
    /// How long epochs took until all had answered, as far as it was asked for.
    pub fn lived(&mut self) -> Lived {
        // An older epoch waits for nobody for whom a newer one does not.
        for entry in self.entries.iter_mut().rev() {
            let Some(live_ms) = entry.live_ms else { continue };
            if std::mem::replace(&mut entry.counted, true) {
                break;
            }
            let bucket = LIVED_BOUNDS_MS.iter().position(|bound| live_ms <= *bound).unwrap_or(LIVED_BOUNDS_MS.len());
            self.lived.buckets[bucket] += 1;
            self.lived.sum_ms += live_ms;
        }
        self.lived
    }

    /// Begins an epoch. `expected` are all proxies that have to answer, `unaffected` is how many rest on what they have.
    ///
    /// # Panics
    /// Never; a number that is not higher than the last is ignored, because numbers never go back.
    pub fn open(&mut self, number: u64, objects: Vec<Touched>, (expected, unaffected): (BTreeSet<String>, usize), now_us: u64) {
        if self.newest().is_some_and(|newest| newest.number >= number) {
            return;
        }
        let live_ms = expected.is_empty().then_some(0.0);
        let waiting = expected.into_iter().map(|proxy| (proxy, false)).collect();
        self.entries.push_back(Entry { number, accepted_us: now_us, objects, waiting, unaffected, live_ms, ..Entry::default() });
        if self.entries.len() > EPOCHS_MAX {
            self.entries.pop_front();
        }
    }

    /// Tells why the newest epoch is.
    pub fn caused(&mut self, cause: Cause) {
        if let Some(newest) = self.entries.back_mut() {
            newest.cause = Some(cause);
        }
    }

    /// The newest epoch.
    pub fn newest(&self) -> Option<&Entry> {
        self.entries.back()
    }

    /// One epoch, while it is remembered.
    pub fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.number == number)
    }

    /// All, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }

    /// What a proxy runs as it said last; 0: nothing yet.
    pub fn running(&self, proxy: &str) -> u64 {
        self.running.get(proxy).copied().unwrap_or(0)
    }

    /// What a proxy refuses at present: as its last answer says, however many epochs that changed nothing for it have passed since.
    pub fn refusing(&self, proxy: &str) -> &[ProxyRefusal] {
        self.refusing.get(proxy).map(Vec::as_slice).unwrap_or_default()
    }

    /// The epoch changes something for that proxy.
    pub fn concerned(&mut self, proxy: &str, number: u64) {
        for entry in self.up_to(number) {
            let waiting = if entry.waiting.contains_key(proxy) { proxy } else { gateway_of(proxy).unwrap_or(proxy) };
            let Some(concerned) = entry.waiting.get_mut(waiting) else { continue };
            entry.concerned += usize::from(!std::mem::replace(concerned, true));
        }
    }

    /// Nothing changes for that proxy, and it has answered everything before: it is advanced.
    pub fn unaffected(&mut self, proxy: &str, number: u64, now_us: u64) {
        self.run(proxy, number);
        for entry in self.up_to(number) {
            match entry.settle_by(proxy, now_us) {
                Some(true) => entry.acknowledged += 1,
                Some(false) => entry.unaffected += 1,
                None => {}
            }
        }
    }

    /// The proxy runs that epoch, and so every one before.
    pub fn acknowledged(&mut self, proxy: &str, number: u64, now_us: u64) {
        self.run(proxy, number);
        self.refusing.remove(proxy);
        for entry in self.up_to(number) {
            if let Some(concerned) = entry.settle_by(proxy, now_us) {
                entry.concerned += usize::from(!concerned);
                entry.acknowledged += 1;
            }
        }
    }

    /// The proxy runs that epoch without what `message` names ([`proto::refusal`]).
    pub fn refused(&mut self, proxy: &str, number: u64, message: &str, now_us: u64) {
        if number > 0 {
            self.acknowledged(proxy, number - 1, now_us);
        }
        self.run(proxy, number);
        let named: Vec<ProxyRefusal> = refusals(proxy, message).into_iter().take(REFUSALS_MAX).collect();
        for entry in self.up_to(number).filter(|entry| entry.number == number) {
            if let Some(concerned) = entry.settle_by(proxy, now_us) {
                entry.concerned += usize::from(!concerned);
                let room = REFUSALS_MAX.saturating_sub(entry.refused.len());
                entry.refused.extend(named.iter().take(room).cloned());
            }
        }
        self.refusing.insert(proxy.to_owned(), named);
    }

    /// Waits no longer for a proxy that is neither declared nor connected any more.
    pub fn forget(&mut self, proxy: &str, now_us: u64) {
        self.running.remove(proxy);
        self.refusing.remove(proxy);
        for entry in &mut self.entries {
            if let Some(concerned) = entry.settle(proxy, now_us) {
                entry.concerned -= usize::from(concerned);
            }
        }
    }

    /// The last proxy of a Gateway is gone, which is declared still: whatever waits for it waits for whoever comes in its place.
    pub fn leave_to_gateway(&mut self, proxy: &str) {
        self.running.remove(proxy);
        self.refusing.remove(proxy);
        let Some(gateway) = gateway_of(proxy) else { return };
        for entry in &mut self.entries {
            if let Some(concerned) = entry.waiting.remove(proxy) {
                entry.waiting.insert(gateway.to_owned(), concerned);
            }
        }
    }

    /// Waits for nobody but these.
    pub fn expect(&mut self, expected: &BTreeSet<String>, now_us: u64) {
        let waiting = self.entries.iter().flat_map(|entry| entry.waiting.keys());
        let known: BTreeSet<&String> = waiting.chain(self.running.keys()).chain(self.refusing.keys()).collect();
        let gone: Vec<String> = known.into_iter().filter(|proxy| !expected.contains(*proxy)).cloned().collect();
        gone.iter().for_each(|proxy| self.forget(proxy, now_us));
    }

    fn run(&mut self, proxy: &str, number: u64) {
        let running = self.running.entry(proxy.to_owned()).or_default();
        *running = (*running).max(number);
    }

    /// Epochs up to a number that somebody has still to answer.
    fn up_to(&mut self, number: u64) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(move |entry| entry.number <= number && !entry.settled())
    }
}

fn refusals(proxy: &str, message: &str) -> Vec<ProxyRefusal> {
    let named = |refusal: refusal::Refusal| ProxyRefusal { proxy: proxy.to_owned(), object: refusal.resource, reason: refusal.reason };
    refusal::read(message).into_iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lives_are_counted_once() {
        // Aim: an epoch counts when the last proxy has answered, once, however often somebody asks, and so does one that nobody has to answer.
        let mut book = book(&["a", "b"]);
        assert_eq!(book.lived(), Lived::default());
        book.open(8, Vec::new(), (set(&["b"]), 0), 1_000_000);
        book.acknowledged("a", 7, 1_004_000);
        assert_eq!(book.lived(), Lived::default());
        book.acknowledged("b", 8, 1_020_000);
        for _ in 0..2 {
            let lived = book.lived();
            assert_eq!((lived.buckets[2], lived.buckets.iter().sum::<u64>(), lived.sum_ms), (2, 2, 40.0));
        }
        book.open(9, Vec::new(), (set(&[]), 3), 2_000_000);
        let lived = book.lived();
        assert_eq!((lived.buckets[0], lived.sum_ms), (1, 40.0));
    }

    fn book(expected: &[&str]) -> Book {
        let mut book = Book::default();
        book.open(7, Vec::new(), (set(expected), 0), 1_000_000);
        book
    }

    #[test]
    fn an_epoch_is_live_when_the_last_concerned_proxy_answers() {
        // Aim: the concerned acknowledge, the others are advanced, and the time is that of the last answer.
        let mut book = book(&["shop/a", "shop/b", "shop/c"]);
        book.concerned("shop/a", 7);
        book.unaffected("shop/b", 7, 1001);
        book.unaffected("shop/c", 7, 1002);
        assert!(!book.newest().unwrap().live());
        book.acknowledged("shop/a", 7, 1_012_500);
        let entry = book.newest().unwrap();
        assert!(entry.live());
        assert_eq!((entry.live_ms, entry.concerned, entry.unaffected), (Some(12.5), 1, 2));
        assert_eq!((book.running("shop/a"), book.running("shop/c"), book.running("x")), (7, 7, 0));
    }

    #[test]
    fn a_refusal_settles_an_epoch_that_is_never_live() {
        // Aim: the book names proxy, object and reason, and a later epoch can be live again.
        let mut book = book(&["shop/a"]);
        let message = refusal::write(["RouteConfiguration shop/catalog:80: match.regex: bad; very bad", "Cluster x: unknown policy"]);
        book.refused("shop/a", 7, &message, 1005);
        let entry = book.newest().unwrap();
        assert!(entry.settled() && !entry.live());
        let said = |refusal: &ProxyRefusal| format!("{} | {} | {}", refusal.proxy, refusal.object, refusal.reason);
        let said: Vec<_> = entry.refused.iter().map(said).collect();
        let wanted = ["shop/a | RouteConfiguration shop/catalog:80 | match.regex: bad; very bad", "shop/a | Cluster x | unknown policy"];
        assert_eq!(said, wanted);
        book.open(8, Vec::new(), (set(&["shop/a"]), 0), 2000);
        book.acknowledged("shop/a", 8, 2001);
        assert!(book.newest().unwrap().live());
        assert!(!book.entry(7).unwrap().live());
    }

    #[test]
    fn a_refusal_lasts_until_the_proxy_takes_back() {
        // Aim: an epoch that changes nothing for a proxy does not make it accept what it refused; its next whole answer does.
        let mut book = book(&["shop/a"]);
        book.refused("shop/a", 7, &refusal::write(["Cluster x: unknown policy"]), 1005);
        book.open(8, Vec::new(), (set(&["shop/a"]), 0), 2000);
        book.unaffected("shop/a", 8, 2001);
        assert_eq!((book.running("shop/a"), book.refusing("shop/a").len()), (8, 1));
        book.acknowledged("shop/a", 8, 2002);
        assert!(book.refusing("shop/a").is_empty());
    }

    #[test]
    fn a_later_answer_settles_what_came_before() {
        // Aim: a proxy that skipped an epoch runs it by running the next one.
        let mut book = book(&["shop/a"]);
        book.concerned("shop/a", 7);
        book.open(8, Vec::new(), (set(&["shop/a"]), 0), 1001);
        book.concerned("shop/a", 8);
        book.acknowledged("shop/a", 8, 1003);
        assert!(book.entry(7).unwrap().live() && book.entry(8).unwrap().live());
    }

    #[test]
    fn nobody_waits_for_the_gone_and_everybody_for_the_absent() {
        // Aim: a declared proxy that is not connected holds an epoch up; one that is no longer declared does not.
        let mut book = book(&["shop/a", "shop/b"]);
        book.acknowledged("shop/a", 7, 1001);
        assert!(book.newest().unwrap().waiting().eq(["shop/b"]));
        book.concerned("shop/b", 7);
        book.expect(&set(&["shop/a"]), 1005);
        let entry = book.newest().unwrap();
        assert!(entry.live());
        assert_eq!((entry.concerned, entry.acknowledged, book.running("shop/a")), (1, 1, 7), "the gone are not counted");
        book.forget("shop/a", 1006);
        assert_eq!(book.running("shop/a"), 0);
    }

    #[test]
    fn every_proxy_of_a_gateway_is_waited_for() {
        // Aim: each of several that were there when the epoch began; where none was, whoever comes answers for the Gateway, also with a
        // refusal; when the last one goes without an answer the next one is waited for.
        let mut book = book(&["edge/shop/a/x", "edge/shop/a/y"]);
        book.acknowledged("edge/shop/a/x", 7, 1);
        assert!(book.newest().unwrap().waiting().eq(["edge/shop/a/y"]));
        book.concerned("edge/shop/a/y", 7);
        book.leave_to_gateway("edge/shop/a/y");
        assert!(book.newest().unwrap().waiting().eq(["edge/shop/a"]));
        book.concerned("edge/shop/a/z", 7);
        book.acknowledged("edge/shop/a/z", 7, 2);
        let entry = book.newest().unwrap();
        assert_eq!((entry.live(), entry.concerned, entry.acknowledged), (true, 2, 2));
        book.open(8, Vec::new(), (set(&["edge/shop/a"]), 0), 3);
        book.refused("edge/shop/a/z", 8, &refusal::write(["Cluster x: bad"]), 4);
        let entry = book.newest().unwrap();
        assert_eq!((entry.settled(), entry.live(), entry.refused[0].proxy.as_str()), (true, false, "edge/shop/a/z"));
        book.open(9, Vec::new(), (set(&["edge/shop/a", "edge/shop/ab"]), 0), 5);
        book.unaffected("edge/shop/a/z", 9, 6);
        assert!(book.newest().unwrap().waiting().eq(["edge/shop/ab"]), "and no other Gateway's");
    }

    #[test]
    fn numbers_never_go_back_and_the_book_is_bounded() {
        // Aim: an old number opens nothing; history keeps its bound; an epoch that concerns nobody is live at once.
        let mut book = book(&[]);
        assert!(book.newest().unwrap().live());
        book.open(7, Vec::new(), (set(&[]), 0), 1);
        book.open(3, Vec::new(), (set(&[]), 0), 1);
        assert_eq!(book.newest_first().count(), 1);
        for number in 8..2000 {
            book.open(number, Vec::new(), (set(&[]), 0), 1);
        }
        assert_eq!(book.newest_first().count(), EPOCHS_MAX);
        assert_eq!(book.newest().unwrap().number, 1999);
    }
}
