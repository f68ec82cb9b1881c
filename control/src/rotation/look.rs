//! What is seen of the proxies while a rotation waits for them.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Following;
use crate::publish::board::{Board, holders};
use crate::publish::edition::Edition;
use crate::publish::epoch::ProxyRefusal;
use crate::publish::trust::Root;
use crate::serve::authority::Authority;

/// How a refusal names the resource.
const TRUST: &str = "Trust trust";

/// What is known of leaves.
pub(super) struct Leaves {
    /// Serials of the unexpired leaves below the issuing root, as the authority's book says.
    renewed: BTreeSet<String>,
    /// Proxies that came with a leaf below it, by key: another replica may have issued that, and no book here has it.
    shown: BTreeSet<String>,
    /// Declared proxies that have a leaf of their own, by key, and its serial number.
    pub(super) held: BTreeMap<String, String>,
}

impl Leaves {
    /// Reads it, where that root issues. May block on a disk.
    pub(super) fn read(authority: &dyn Authority, board: &Board, edition: &Edition, issuing: &Root) -> Self {
        let fingerprint = issuing.fingerprint();
        let renewed = authority.roots_of_leaves().into_iter().filter(|(_, root)| *root == fingerprint).map(|(serial, _)| serial).collect();
        let below = board.present().into_iter().filter(|presence| presence.counts && presence.below == Some(issuing.sha256));
        let shown = below.map(|presence| presence.key).collect();
        let mut held = BTreeMap::new();
        for leaf in authority.issued().iter().filter(|leaf| !leaf.for_application) {
            held.extend(holders(&edition.world, leaf.place()).map(|key| (key, leaf.serial.clone())));
        }
        Self { renewed, shown, held }
    }
}

/// Proxies of ours with an open stream, by key.
pub(super) fn present(board: &Board) -> BTreeSet<String> {
    board.present().into_iter().filter(|presence| presence.counts).map(|presence| presence.key).collect()
}

/// Every proxy that is present, or has a leaf and is declared, and how far it has followed what `epoch` told.
pub(super) fn proxies(
    board: &Board,
    present: &BTreeSet<String>,
    leaves: &Leaves,
    epoch: u64,
    absent: impl Fn(&str) -> bool,
) -> Vec<(String, Following)> {
    let following = |key: &String| {
        if !present.contains(key) {
            return if absent(key) { Following::Away } else { Following::Silent };
        }
        let running = board.running(key);
        match board.read(|book| believes(running, book.refusing(key), epoch)) {
            None => Following::Silent,
            Some(Err(reason)) => Following::Refuses(reason),
            Some(Ok(())) => {
                let serial = board.correspondent(key, |told| told.certificate.as_ref().map(|leaf| leaf.serial.clone())).flatten();
                let renewed = serial.is_some_and(|serial| leaves.renewed.contains(&serial)) || leaves.shown.contains(key);
                if renewed { Following::Whole } else { Following::Believes }
            }
        }
    };
    present.iter().chain(leaves.held.keys().filter(|key| !present.contains(*key))).map(|key| (key.clone(), following(key))).collect()
}

/// What a proxy says of the roots that `epoch` told: nothing yet, that it goes by them, or why not.
fn believes(running: u64, refusing: &[ProxyRefusal], epoch: u64) -> Option<Result<(), String>> {
    if running < epoch {
        return None;
    }
    let refusal = refusing.iter().find(|refusal| refusal.object == TRUST);
    Some(refusal.map_or(Ok(()), |refusal| Err(refusal.reason.clone())))
}

/// Why the resource cannot be sent at all: our own engine refuses it.
pub(super) fn own_fault(board: &Board) -> Option<String> {
    let fault = board.cache.refused().into_iter().find(|(object, _)| object == TRUST);
    fault.map(|(_, reason)| format!("the roots cannot be told to proxies: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::AWAY_GRACE;
    use super::super::absence::Absences;
    use super::*;
    use crate::clock::Clock;
    use crate::publish::epoch::Book;

    #[test]
    fn a_look_at_many_is_quick() {
        // Aim: the cost of a look grows with the number of proxies, not with its square, which would be a minute here.
        let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
        let names = |range: std::ops::Range<usize>| range.map(|number| format!("shop/catalog-{number}")).collect::<BTreeSet<String>>();
        let (present, leaves) = (
            names(10_000..30_000),
            Leaves {
                renewed: names(0..40_000),
                shown: BTreeSet::new(),
                held: names(0..20_000).into_iter().map(|name| (name, String::new())).collect(),
            },
        );
        let began = Instant::now();
        let mut absences = Absences::new(began);
        absences.look(leaves.held.keys().cloned().collect(), began);
        absences.look(present.clone(), began);
        let following = proxies(&board, &present, &leaves, 7, |key| absences.is_away(key, began + AWAY_GRACE));
        assert_eq!((following.len(), following.iter().filter(|(_, following)| *following == Following::Away).count()), (30_000, 10_000));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn a_proxy_believes_what_it_acknowledged_and_did_not_refuse() {
        // Aim: nothing before the epoch; a refusal counts until it is taken back, also past epochs that change nothing for the proxy; one of
        // another object does not.
        let mut book = Book::default();
        let believes = |book: &Book, proxy, epoch| believes(book.running(proxy), book.refusing(proxy), epoch);
        let expected: BTreeSet<String> = ["shop/a", "shop/b"].map(str::to_owned).into();
        book.open(7, Vec::new(), (expected.clone(), 0), 1);
        assert_eq!(believes(&book, "shop/a", 7), None);
        let message = proto::refusal::write(["Trust trust: roots[1]: is no certificate", "Cluster x: bad"]);
        book.refused("shop/a", 7, &message, 2);
        book.refused("shop/b", 7, &proto::refusal::write(["Cluster x: bad"]), 2);
        assert!(believes(&book, "shop/a", 7).unwrap().unwrap_err().contains("roots[1]"));
        assert_eq!(believes(&book, "shop/b", 7), Some(Ok(())));
        book.open(8, Vec::new(), (expected, 0), 3);
        book.unaffected("shop/a", 8, 4);
        assert!(believes(&book, "shop/a", 8).unwrap().is_err());
        book.acknowledged("shop/a", 8, 4);
        assert_eq!(believes(&book, "shop/a", 7), Some(Ok(())));
        assert_eq!(believes(&book, "shop/b", 8), None);
    }
}
