//! What is seen of the proxies while a rotation waits for them.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Following;
use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::publish::epoch::Book;
use crate::publish::trust::Roots;
use crate::serve::authority::Issued;

/// How a refusal names the resource.
const TRUST: &str = "Trust trust";

/// Every proxy of ours that is connected, or has a leaf and is declared, and how far it has followed what `epoch` told.
pub(super) fn proxies(
    board: &Board,
    edition: &Edition,
    issued: &[Issued],
    roots: &Roots,
    epoch: u64,
    absent: impl Fn(&str) -> bool,
) -> Vec<(String, Following)> {
    let below: BTreeMap<&str, &str> = issued.iter().map(|leaf| (leaf.serial.as_str(), leaf.root.as_str())).collect();
    let present: BTreeSet<String> =
        board.present().into_iter().filter(|presence| presence.claim.ours()).map(|presence| presence.claim.key()).collect();
    let index = edition.world.index();
    let declared = |leaf: &&Issued| {
        let name = (leaf.namespace.clone(), leaf.instance.clone());
        index.instances.contains_key(&name) || index.gateways.contains_key(&name)
    };
    let held = issued.iter().filter(declared).map(|leaf| format!("{}/{}", leaf.namespace, leaf.instance));
    let all: BTreeSet<String> = present.iter().cloned().chain(held).collect();
    let issuing = roots.issuing.fingerprint();
    let following = |key: &String| {
        if !present.contains(key) {
            return if absent(key) { Following::Away } else { Following::Silent };
        }
        match board.read(|book| believes(book, key, epoch)) {
            None => Following::Silent,
            Some(Err(reason)) => Following::Refuses(reason),
            Some(Ok(())) => {
                let serial = board.correspondent(key, |told| told.certificate.as_ref().map(|leaf| leaf.serial.clone())).flatten();
                let renewed = serial.is_some_and(|serial| below.get(serial.as_str()) == Some(&issuing.as_str()));
                if renewed { Following::Whole } else { Following::Believes }
            }
        }
    };
    all.iter().map(|key| (key.clone(), following(key))).collect()
}

/// What a proxy says of the roots that `epoch` told: nothing yet, that it goes by them, or why not.
fn believes(book: &Book, proxy: &str, epoch: u64) -> Option<Result<(), String>> {
    if book.running(proxy) < epoch {
        return None;
    }
    let refusal = book.refusing(proxy).iter().find(|refusal| refusal.object == TRUST);
    Some(refusal.map_or(Ok(()), |refusal| Err(refusal.reason.clone())))
}

/// Why the resource cannot be sent at all: our own engine refuses it.
pub(super) fn own_fault(board: &Board) -> Option<String> {
    let fault = board.cache.refused().into_iter().find(|(object, _)| object == TRUST);
    fault.map(|(_, reason)| format!("the roots cannot be told to proxies: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_believes_what_it_acknowledged_and_did_not_refuse() {
        // Aim: nothing before the epoch; a refusal counts until it is taken back, also past epochs that change nothing for the proxy; one of
        // another object does not.
        let mut book = Book::default();
        let expected: BTreeSet<String> = ["shop/a", "shop/b"].map(str::to_owned).into();
        book.open(7, Vec::new(), expected.clone(), 1);
        assert_eq!(believes(&book, "shop/a", 7), None);
        let message = proto::refusal::write(["Trust trust: roots[1]: is no certificate", "Cluster x: bad"]);
        book.refused("shop/a", 7, &message, 2);
        book.refused("shop/b", 7, &proto::refusal::write(["Cluster x: bad"]), 2);
        assert!(believes(&book, "shop/a", 7).unwrap().unwrap_err().contains("roots[1]"));
        assert_eq!(believes(&book, "shop/b", 7), Some(Ok(())));
        book.open(8, Vec::new(), expected, 3);
        book.unaffected("shop/a", 8, 4);
        assert!(believes(&book, "shop/a", 8).unwrap().is_err());
        book.acknowledged("shop/a", 8, 4);
        assert_eq!(believes(&book, "shop/a", 7), Some(Ok(())));
        assert_eq!(believes(&book, "shop/b", 8), None);
    }
}
