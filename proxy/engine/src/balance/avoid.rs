//! Who is passed over, and who takes what would have been theirs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Choice;
use crate::model::{Cluster, Endpoint, EndpointSet};
use crate::spread::{mix, scale};

/// After one failed connect an endpoint is passed over for so long; after each further one for twice as long.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// But never for longer.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(5);
/// So often another endpoint is drawn instead of one that is passed over. Draws, not steps: where many in a row are passed over, steps lead
/// to the neighbour of them all.
const REDRAWS_MAX: u64 = 32;
/// And then at so many in a row a look is taken: no endpoint of a small cluster escapes it, and in a large one whose endpoints all fail a
/// pick does not look at each.
const SCAN_MAX: usize = 64;

/// Whether an endpoint may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    /// Nothing speaks against it.
    Good,
    /// Its last connects failed, and this request is the one that sees whether it is back.
    Probed,
    /// It was tried in vain, or its last connects failed.
    Avoided,
}

/// How long an endpoint of so many failed connects in a row, at least one, is passed over.
fn probe_wait(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    PROBE_WAIT.saturating_mul(doubled).min(PROBE_WAIT_MAX)
}

/// Where a pick may look: the members of the tier that was drawn, and the set of the cluster they are of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search<'a, 'c> {
    pub(super) cluster: &'c Cluster,
    pub(super) set: &'a EndpointSet,
    pub(super) members: &'a [Arc<Endpoint>],
    pub(super) choice: &'c Choice<'c>,
}

impl<'a> Search<'a, '_> {
    /// Whether this endpoint may be picked. Who is `Probed` is to be picked: there is no other such request for a while. A request that has
    /// failed once sees nothing for others, for it has few attempts left.
    pub(super) fn fitness(&self, endpoint: &Endpoint) -> Fitness {
        if self.is_good(endpoint) {
            Fitness::Good
        } else if self.choice.tried.is_empty() && self.begins_probe(endpoint) {
            Fitness::Probed
        } else {
            Fitness::Avoided
        }
    }

    fn is_good(&self, endpoint: &Endpoint) -> bool {
        endpoint.live.connect_failures.load(Ordering::Relaxed) == 0 && !self.choice.tried.contains(&endpoint.address)
    }

    /// Whether this request is the one that sees whether connects to it succeed again.
    #[cold]
    fn begins_probe(&self, endpoint: &Endpoint) -> bool {
        let Choice { now, trials, .. } = *self.choice;
        let live = &self.cluster.live;
        let may = || live.probes.begin(trials.then(|| live.budget.requests()), now);
        endpoint.live.begin_probe(probe_wait(endpoint.live.connect_failures.load(Ordering::Relaxed)), now, may)
    }

    /// That one, or if it is out another; `again`: whom a draw leads to.
    pub(super) fn suitable(&self, index: usize, again: impl Fn(u64) -> usize) -> Option<&'a Arc<Endpoint>> {
        let endpoint = self.members.get(index)?;
        match self.fitness(endpoint) {
            Fitness::Good | Fitness::Probed => Some(endpoint),
            Fitness::Avoided => self.elsewhere(index, self.choice.draw, again),
        }
    }

    /// Who was chosen is out: another good one of its tier, of any tier, one that was not tried, or after all the one chosen. `base` is what
    /// further draws follow from.
    #[cold]
    pub(super) fn elsewhere(&self, chosen: usize, base: u64, again: impl Fn(u64) -> usize) -> Option<&'a Arc<Endpoint>> {
        let all = &self.set.ready;
        let other_tiers = || {
            let any = |draw: u64| scale(draw >> 32, all.len() as u64) as usize;
            if all.len() > self.members.len() { self.another(all, base, any) } else { None }
        };
        let members = self.members;
        let good = self.another(members, base, again).or_else(other_tiers);
        good.or_else(|| self.untried(chosen, base)).or_else(|| members.get(chosen))
    }

    /// A good one of these: by further draws, then by a look at those that follow one.
    fn another(&self, among: &'a [Arc<Endpoint>], base: u64, again: impl Fn(u64) -> usize) -> Option<&'a Arc<Endpoint>> {
        let drawn = (1..=REDRAWS_MAX).filter_map(|n| among.get(again(redraw(base, n))));
        drawn.chain(from_drawn(among, base).take(SCAN_MAX)).find(|endpoint| self.is_good(endpoint))
    }

    /// Nobody good was found: the one chosen if it was not tried, else one that was not. There are few tried ones.
    fn untried(&self, chosen: usize, base: u64) -> Option<&'a Arc<Endpoint>> {
        let tried = &self.choice.tried;
        let enough = tried.len() + 1;
        let mut others = from_drawn(self.members, base).take(enough).chain(from_drawn(&self.set.ready, base).take(enough));
        let is_untried = |endpoint: &&'a Arc<Endpoint>| !tried.contains(&endpoint.address);
        self.members.get(chosen).filter(is_untried).or_else(|| others.find(is_untried))
    }
}

/// The n-th further draw.
const fn redraw(base: u64, n: u64) -> u64 {
    mix(base.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// All of them, from a drawn one on.
fn from_drawn(among: &[Arc<Endpoint>], base: u64) -> impl Iterator<Item = &Arc<Endpoint>> {
    let start = scale(redraw(base, REDRAWS_MAX + 1) >> 32, among.len() as u64) as usize;
    let (before, after) = among.split_at(start.min(among.len()));
    after.iter().chain(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_few_seconds() {
        // Aim: a tenth of a second after one failure, and five seconds however many there are.
        for (failures, millis) in [(1, 100), (2, 200), (4, 800), (6, 3_200), (7, 5_000), (32, 5_000), (33, 5_000), (u32::MAX, 5_000)] {
            assert_eq!(probe_wait(failures), Duration::from_millis(millis), "{failures}");
        }
    }
}
