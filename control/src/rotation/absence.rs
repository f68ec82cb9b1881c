//! Who is away, and since when.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::AWAY_GRACE;

/// What successive looks found. A proxy that was there at one look and is not at the next is missed from then on; one that was not seen
/// since the start, from the start.
#[derive(Debug)]
pub(super) struct Absences {
    started: Instant,
    there: BTreeSet<String>,
    /// Those that went within [`AWAY_GRACE`], or made the certificate call within it and have not come further.
    missed: BTreeMap<String, Instant>,
    /// Serial number of the leaf of each declared proxy at the last look of this rotation.
    serials: BTreeMap<String, String>,
}

impl Absences {
    pub(super) fn new(started: Instant) -> Self {
        Self { started, there: BTreeSet::new(), missed: BTreeMap::new(), serials: BTreeMap::new() }
    }

    /// Takes in a look. While a rotation rests looks are rare, but there has to be one now and then: whoever goes just before the next
    /// rotation is waited for like anybody else.
    pub(super) fn look(&mut self, present: BTreeSet<String>, now: Instant) {
        self.missed.retain(|proxy, at| !present.contains(proxy) && now.saturating_duration_since(*at) < AWAY_GRACE);
        self.missed.extend(self.there.difference(&present).map(|proxy| (proxy.clone(), now)));
        self.there = present;
    }

    /// Takes in who has which leaf. Who has another one than at the look before is coming back: its stream follows within seconds, and
    /// until then it may hold a leaf below a root that it believes by its cross certificate only.
    pub(super) fn heard(&mut self, serials: &BTreeMap<String, String>, now: Instant) {
        let fresh = |(proxy, serial): &(&String, &String)| self.serials.get(*proxy).is_some_and(|before| before != *serial);
        self.missed
            .extend(serials.iter().filter(fresh).filter(|(proxy, _)| !self.there.contains(*proxy)).map(|(proxy, _)| (proxy.clone(), now)));
        self.serials.clone_from(serials);
    }

    /// No rotation is under way: leaves are no sign of anything.
    pub(super) fn rest(&mut self) {
        self.serials.clear();
    }

    /// Whether one that is not there is waited for no more.
    pub(super) fn is_away(&self, proxy: &str, now: Instant) -> bool {
        now.saturating_duration_since(*self.missed.get(proxy).unwrap_or(&self.started)) >= AWAY_GRACE
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn whoever_goes_is_missed_for_a_while_however_long_it_was_there() {
        // Aim: gone just before a rotation is as good as gone within it; who comes back starts afresh; who was never seen counts from the
        // start; nothing is remembered of those that are waited for no more.
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let there = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let mut absences = Absences::new(start);
        assert!(!absences.is_away("a", at(29)) && absences.is_away("a", at(30)));
        absences.look(there(&["a", "b"]), at(1000));
        absences.look(there(&["b"]), at(1010));
        assert!(!absences.is_away("a", at(1039)) && absences.is_away("a", at(1040)));
        absences.look(there(&["a", "b"]), at(1020));
        absences.look(there(&[]), at(1030));
        assert!(!absences.is_away("a", at(1059)) && !absences.is_away("b", at(1059)) && absences.is_away("a", at(1060)));
        absences.look(there(&[]), at(1060));
        assert!(absences.missed.is_empty() && absences.is_away("b", at(1061)));
    }

    #[test]
    fn a_certificate_call_is_a_sign_of_coming_back() {
        // Aim: who was given up and has a new leaf is waited for as if it had just gone; the first look of a rotation is no sign, nor is
        // the same leaf, nor a new one of somebody who is there.
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let leaves =
            |serials: [&str; 2]| [("a", serials[0]), ("b", serials[1])].map(|(name, serial)| (name.to_owned(), serial.to_owned())).into();
        let mut absences = Absences::new(start);
        absences.look(BTreeSet::from(["b".to_owned()]), at(100));
        absences.heard(&leaves(["1", "2"]), at(100));
        assert!(absences.is_away("a", at(100)));
        absences.heard(&leaves(["1", "2"]), at(110));
        assert!(absences.is_away("a", at(110)));
        absences.heard(&leaves(["3", "4"]), at(120));
        assert!(!absences.is_away("a", at(149)) && absences.is_away("a", at(150)));
        assert!(!absences.missed.contains_key("b"));
        absences.look(BTreeSet::new(), at(151));
        absences.rest();
        absences.heard(&leaves(["5", "6"]), at(152));
        assert!(absences.is_away("a", at(152)));
    }
}
