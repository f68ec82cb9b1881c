//! Whom a new edition concerns. Each stream says what its view depends on; a turn wakes those of whom something is touched, and whoever
//! cannot rest yet. All others sleep on, whatever their number: who rests runs what is newest, and the book need not be told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use proto::names::Mode;
use tokio::sync::Notify;

use super::peer::{of_gateway, of_key};
use crate::translate::{Affected, Subject};

/// Everybody who follows.
#[derive(Default)]
pub struct Concerns {
    state: Mutex<State>,
    /// Somebody who was behind has caught up.
    caught: Notify,
}

#[derive(Default)]
struct State {
    /// Of the newest edition.
    serial: u64,
    /// Its epoch.
    epoch: u64,
    next: u64,
    followers: HashMap<u64, Follower>,
    /// Followers by what they depend on.
    of: HashMap<Subject, BTreeSet<u64>>,
    /// Followers that look at every edition.
    restless: BTreeSet<u64>,
    /// How the followers of each proxy stand, where the book goes by what they answer.
    proxies: BTreeMap<String, Stand>,
}

/// See [`State::proxies`].
#[derive(Default)]
struct Stand {
    followers: usize,
    restless: usize,
    /// The newest epoch when it rested last.
    ran: u64,
}

impl Stand {
    fn rests(&self) -> bool {
        self.followers > 0 && self.restless == 0
    }
}

/// Whom an edition concerns.
pub struct Woken<'a> {
    /// Keys of those proxies of which some stream is woken.
    pub keys: BTreeSet<&'a str>,
    /// How many other proxies there are.
    pub quiet: usize,
    proxies: &'a BTreeMap<String, Stand>,
}

impl Woken<'_> {
    /// Whether any stream of a proxy follows, or of one of several of a Gateway by the Gateway's key.
    pub fn follows(&self, key: &str) -> bool {
        let is_gateway = || of_key(key).is_some_and(|(.., mode)| mode == Mode::Edge);
        self.proxies.contains_key(key) || (is_gateway() && of_gateway(self.proxies, key).next().is_some())
    }
}

struct Follower {
    wake: Arc<Notify>,
    /// The proxy's key, where the book goes by what this stream answers.
    key: Option<String>,
    subjects: Vec<Subject>,
    /// The newest edition that woke it.
    woken: u64,
    /// The oldest edition that it may not have answered yet, endpoints too; `None`: it has.
    owes: Option<u64>,
}

/// One who follows; until it says otherwise, it is woken by every edition. Forgotten when dropped.
pub struct Concerned {
    concerns: Arc<Concerns>,
    number: u64,
    wake: Arc<Notify>,
}

impl Concerns {
    /// Begins to follow. `key`: of the proxy, where the book goes by what this stream answers.
    pub fn follow(self: &Arc<Self>, key: Option<String>) -> Concerned {
        let wake = Arc::new(Notify::new());
        let mut state = self.state.lock();
        state.next += 1;
        let number = state.next;
        if let Some(key) = &key {
            state.proxies.entry(key.clone()).or_default();
        }
        let serial = state.serial;
        state.followers.insert(number, Follower { wake: wake.clone(), key, subjects: Vec::new(), woken: serial, owes: Some(serial) });
        state.rouse(number);
        if let Some(stand) = state.stand(number) {
            stand.followers += 1;
        }
        drop(state);
        Concerned { concerns: self.clone(), number, wake }
    }

    /// A new edition. `show` is told whom it concerns and lets it be seen; then they are woken. Nobody can come to rest on an older one
    /// meanwhile.
    pub fn turn<T>(&self, (serial, epoch): (u64, u64), touched: &Affected, show: impl FnOnce(Woken<'_>) -> T) -> T {
        let mut state = self.state.lock();
        let woken: BTreeSet<u64> = match touched {
            Affected::All => state.followers.keys().copied().collect(),
            Affected::Some(subjects) => {
                let concerned = subjects.iter().filter_map(|subject| state.of.get(subject)).flatten();
                concerned.chain(&state.restless).copied().collect()
            }
        };
        woken.iter().for_each(|number| state.rouse(*number));
        (state.serial, state.epoch) = (serial, epoch);
        for number in &woken {
            if let Some(follower) = state.followers.get_mut(number) {
                follower.woken = serial;
                follower.owes.get_or_insert(serial);
            }
        }
        let keys: BTreeSet<&str> = woken.iter().filter_map(|number| state.followers.get(number)?.key.as_deref()).collect();
        let quiet = state.proxies.len() - keys.len();
        let shown = show(Woken { keys, quiet, proxies: &state.proxies });
        for number in &woken {
            if let Some(follower) = state.followers.get(number) {
                follower.wake.notify_one();
            }
        }
        shown
    }

    /// Keys of proxies that have not answered all that they should have of an edition, which is more than its epoch: endpoints travel beside those.
    pub fn behind(&self, serial: u64) -> BTreeSet<String> {
        let state = self.state.lock();
        let behind = state.followers.values().filter(|follower| follower.owes.is_some_and(|owes| owes <= serial));
        behind.filter_map(|follower| follower.key.clone()).collect()
    }

    /// Waits until somebody has caught up; whoever does after this was first polled counts.
    pub async fn caught(&self) {
        self.caught.notified().await;
    }

    /// The newest epoch that a proxy runs because it rested when that came: nothing of it was touched. 0: it never rested.
    pub fn ran(&self, key: &str) -> u64 {
        let state = self.state.lock();
        state.proxies.get(key).map_or(0, |stand| if stand.rests() { state.epoch } else { stand.ran })
    }
}

impl State {
    /// The proxy of a follower, where the book goes by it.
    fn stand(&mut self, number: u64) -> Option<&mut Stand> {
        self.proxies.get_mut(self.followers.get(&number)?.key.as_ref()?)
    }

    fn rouse(&mut self, number: u64) {
        if !self.restless.insert(number) {
            return;
        }
        let epoch = self.epoch;
        if let Some(stand) = self.stand(number) {
            if stand.rests() {
                stand.ran = epoch;
            }
            stand.restless += 1;
        }
    }

    fn settle(&mut self, number: u64) {
        if self.restless.remove(&number)
            && let Some(stand) = self.stand(number)
        {
            stand.restless -= 1;
        }
    }
}

impl Concerned {
    /// Waits until an edition concerns this one. Nothing is lost when it is dropped.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// To be woken once more, whatever comes.
    pub fn again(&self) {
        self.wake.notify_one();
    }

    /// From now on every edition wakes it. To be said before it looks for the newest one: then none is missed.
    pub fn rouse(&self) {
        self.concerns.state.lock().rouse(self.number);
    }

    /// Has answered all that it should have by the edition with that serial.
    pub fn caught_up(&self, serial: u64) {
        let mut state = self.concerns.state.lock();
        let Some(follower) = state.followers.get_mut(&self.number) else { return };
        if follower.owes.is_some_and(|owes| owes <= serial) {
            follower.owes = (follower.woken > serial).then_some(serial + 1);
            drop(state);
            self.concerns.caught.notify_waiters();
        }
    }

    /// Rests: what it has is of the edition with that serial and depends on these subjects, so only they wake it. False: there is a newer
    /// edition already, which it has to look at first.
    pub fn rest(&self, serial: u64, subjects: &[Subject]) -> bool {
        let mut state = self.concerns.state.lock();
        if state.serial > serial {
            return false;
        }
        state.settle(self.number);
        let State { followers, of, .. } = &mut *state;
        let Some(follower) = followers.get_mut(&self.number) else { return true };
        if follower.subjects != subjects {
            forget(of, &follower.subjects, self.number);
            follower.subjects = subjects.to_vec();
            subjects.iter().for_each(|subject| _ = of.entry(*subject).or_default().insert(self.number));
        }
        true
    }
}

fn forget(of: &mut HashMap<Subject, BTreeSet<u64>>, subjects: &[Subject], number: u64) {
    for subject in subjects {
        if let Some(followers) = of.get_mut(subject) {
            followers.remove(&number);
            if followers.is_empty() {
                of.remove(subject);
            }
        }
    }
}

impl Drop for Concerned {
    fn drop(&mut self) {
        let mut state = self.concerns.state.lock();
        state.settle(self.number);
        let State { followers, of, proxies, .. } = &mut *state;
        let Some(follower) = followers.remove(&self.number) else { return };
        forget(of, &follower.subjects, self.number);
        if let Some(key) = &follower.key
            && let Some(stand) = proxies.get_mut(key)
        {
            stand.followers -= 1;
            if stand.followers == 0 {
                proxies.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn subject(name: &str) -> Subject {
        Subject::service(&("shop".to_owned(), name.to_owned()))
    }

    fn touched(names: &[&str]) -> Affected {
        Affected::Some(names.iter().map(|name| subject(name)).collect())
    }

    #[test]
    fn who_has_not_answered_an_edition_is_behind_it() {
        // Aim: whoever an edition wakes is behind until it says that it has answered all of that one, or of a newer one; who sleeps on is not; one
        // that is woken again while it answers has an older edition answered all the same, and the newer not; who leaves is nobody.
        let concerns = Arc::new(Concerns::default());
        let [one, other] = ["a", "b"].map(|key| concerns.follow(Some(key.to_owned())));
        let behind = |serial| concerns.behind(serial).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(behind(0), "a b", "what they were told first is not answered");
        one.caught_up(0);
        other.caught_up(0);
        assert!(one.rest(0, &[subject("web")]) && other.rest(0, &[subject("db")]));
        concerns.turn((1, 1), &touched(&["web"]), |_| ());
        assert_eq!((behind(0), behind(1)), (String::new(), "a".to_owned()));
        let caught = concerns.caught();
        let mut caught = std::pin::pin!(caught);
        assert!(caught.as_mut().now_or_never().is_none());
        concerns.turn((2, 2), &touched(&["web"]), |_| ());
        one.caught_up(1);
        assert!(caught.now_or_never().is_some(), "whoever waits is told");
        assert_eq!((behind(1), behind(2)), (String::new(), "a".to_owned()));
        one.caught_up(2);
        assert_eq!(behind(9), "");
        concerns.turn((3, 3), &Affected::All, |_| ());
        drop(one);
        assert_eq!(behind(3), "b");
    }

    #[test]
    fn those_are_woken_whom_it_concerns() {
        // Aim: who rests is woken by what it depends on, by everything, and by nothing else; who does not rest, always; a proxy is quiet
        // unless some stream of it is woken, and runs what was newest when all of its streams rested.
        let concerns = Arc::new(Concerns::default());
        let all = ["a", "b", "c", "c"].map(|key| concerns.follow(Some(key.to_owned())));
        let followers: Vec<&Concerned> = all.iter().collect();
        assert!(followers[0].rest(0, &[subject("web"), subject("db")]));
        assert!(followers[1].rest(0, &[subject("db")]));
        assert!(followers[2].rest(0, &[subject("other")]));
        // Each edition is an epoch, ten times its number.
        let turn = |serial, touched: &Affected| {
            let (keys, quiet) =
                concerns.turn((serial, serial * 10), touched, |woken| (woken.keys.into_iter().collect::<Vec<_>>().join(" "), woken.quiet));
            let woken: Vec<bool> = followers.iter().map(|one| one.woken().now_or_never().is_some()).collect();
            (woken, keys, quiet, ["a", "b", "c", "d"].map(|key| concerns.ran(key)))
        };
        let said = |woken: [bool; 4], keys: &str, quiet, ran| (woken.to_vec(), keys.to_owned(), quiet, ran);
        assert_eq!(turn(1, &touched(&["web"])), said([true, false, false, true], "a c", 1, [0, 10, 0, 0]));
        assert!(!followers[0].rest(0, &[]), "it has not seen the newest edition");
        assert!(followers[0].rest(1, &[subject("web")]) && followers[3].rest(1, &[]));
        assert_eq!(turn(2, &touched(&["db"])), said([false, true, false, false], "b", 2, [20, 10, 20, 0]));
        assert_eq!(turn(3, &Affected::All), said([true; 4], "a b c", 0, [20, 10, 20, 0]));
        assert_eq!(turn(4, &touched(&[])), said([true; 4], "a b c", 0, [20, 10, 20, 0]));
        followers[..3].iter().for_each(|one| assert!(one.rest(4, &[])));
        followers[0].rouse();
        assert_eq!(turn(5, &touched(&[])), said([true, false, false, true], "a c", 1, [40, 50, 20, 0]));
    }

    #[test]
    fn nothing_is_left_of_those_who_are_gone() {
        // Aim: a stream that ends takes all that is known of it along.
        let concerns = Arc::new(Concerns::default());
        for key in [None, Some("a".to_owned())] {
            let one = concerns.follow(key);
            one.rest(0, &[subject("web")]);
        }
        let state = concerns.state.lock();
        assert!(state.followers.is_empty() && state.of.is_empty() && state.restless.is_empty() && state.proxies.is_empty());
    }
}
