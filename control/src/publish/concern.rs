//! Whom a new edition concerns. Each stream says what its view depends on; a turn wakes those of whom something is touched, and whoever
//! cannot rest yet. All others sleep on, whatever their number, and are advanced in the book.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::translate::{Affected, Subject};

/// Everybody who follows.
#[derive(Default)]
pub struct Concerns {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the newest edition.
    serial: u64,
    next: u64,
    followers: HashMap<u64, Follower>,
    /// Followers by what they depend on.
    of: HashMap<Subject, BTreeSet<u64>>,
    /// Followers that look at every edition.
    restless: BTreeSet<u64>,
}

struct Follower {
    wake: Arc<Notify>,
    /// The proxy's key, where the book goes by what this stream answers.
    key: Option<String>,
    subjects: Vec<Subject>,
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
        state.followers.insert(number, Follower { wake: wake.clone(), key, subjects: Vec::new() });
        state.restless.insert(number);
        drop(state);
        Concerned { concerns: self.clone(), number, wake }
    }

    /// A new edition can be seen. Wakes whom it concerns, and shows `quiet` the keys of those proxies of which no stream is woken.
    pub fn turn(&self, serial: u64, touched: &Affected, quiet: Option<&mut dyn FnMut(&str)>) {
        let mut state = self.state.lock();
        state.serial = serial;
        let woken: BTreeSet<u64> = match touched {
            Affected::All => state.followers.keys().copied().collect(),
            Affected::Some(subjects) => {
                let concerned = subjects.iter().filter_map(|subject| state.of.get(subject)).flatten();
                concerned.chain(&state.restless).copied().collect()
            }
        };
        let key = |number: &u64| state.followers.get(number).and_then(|follower| follower.key.as_deref());
        if let Some(quiet) = quiet {
            let busy: BTreeSet<&str> = woken.iter().filter_map(key).collect();
            let others = state.followers.iter().filter(|(number, _)| !woken.contains(number));
            let keys: BTreeSet<&str> = others.filter_map(|(_, follower)| follower.key.as_deref()).collect();
            keys.difference(&busy).for_each(|key| quiet(key));
        }
        for number in &woken {
            if let Some(follower) = state.followers.get(number) {
                follower.wake.notify_one();
            }
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
        self.concerns.state.lock().restless.insert(self.number);
    }

    /// Rests: what it has is of the edition with that serial and depends on these subjects, so only they wake it. False: there is a newer
    /// edition already, which it has to look at first.
    pub fn rest(&self, serial: u64, subjects: &[Subject]) -> bool {
        let mut state = self.concerns.state.lock();
        if state.serial > serial {
            return false;
        }
        let State { followers, of, restless, .. } = &mut *state;
        let Some(follower) = followers.get_mut(&self.number) else { return true };
        if follower.subjects != subjects {
            forget(of, &follower.subjects, self.number);
            follower.subjects = subjects.to_vec();
            subjects.iter().for_each(|subject| _ = of.entry(*subject).or_default().insert(self.number));
        }
        restless.remove(&self.number);
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
        let State { followers, of, restless, .. } = &mut *state;
        if let Some(follower) = followers.remove(&self.number) {
            forget(of, &follower.subjects, self.number);
        }
        restless.remove(&self.number);
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
    fn those_are_woken_whom_it_concerns() {
        // Aim: who rests is woken by what it depends on, by everything, and by nothing else; who does not rest, always; and the others' keys
        // are told, unless another stream of the same proxy is woken.
        let concerns = Arc::new(Concerns::default());
        let all = ["a", "b", "c", "c"].map(|key| concerns.follow(Some(key.to_owned())));
        let followers: Vec<&Concerned> = all.iter().collect();
        assert!(followers[0].rest(0, &[subject("web"), subject("db")]));
        assert!(followers[1].rest(0, &[subject("db")]));
        assert!(followers[2].rest(0, &[subject("other")]));
        let turn = |serial, touched: &Affected| {
            let mut quiet = Vec::new();
            concerns.turn(serial, touched, Some(&mut |key: &str| quiet.push(key.to_owned())));
            let woken: Vec<bool> = followers.iter().map(|one| one.woken().now_or_never().is_some()).collect();
            (woken, quiet)
        };
        assert_eq!(turn(1, &touched(&["web"])), (vec![true, false, false, true], vec!["b".to_owned()]));
        assert!(!followers[0].rest(0, &[]), "it has not seen the newest edition");
        assert!(followers[0].rest(1, &[subject("web")]) && followers[3].rest(1, &[]));
        assert_eq!(turn(2, &touched(&["db"])), (vec![false, true, false, false], vec!["a".to_owned(), "c".to_owned()]));
        assert_eq!(turn(3, &Affected::All), (vec![true; 4], vec![]));
        followers[3].rouse();
        assert_eq!(turn(4, &touched(&[])), (vec![false, false, false, true], vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn nothing_is_left_of_those_who_are_gone() {
        // Aim: a stream that ends takes all that is known of it along.
        let concerns = Arc::new(Concerns::default());
        let one = concerns.follow(None);
        one.rest(0, &[subject("web")]);
        drop(one);
        let state = concerns.state.lock();
        assert!(state.followers.is_empty() && state.of.is_empty() && state.restless.is_empty());
    }
}
