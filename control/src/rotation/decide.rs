//! What a rotation does next, pure.

use crate::publish::trust::Phase;
use crate::serve::authority::Step;

/// How far one proxy has followed the last step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Following {
    /// It believes what was told, and its leaf is below the issuing root.
    Whole,
    /// It believes what was told; its leaf is below another root.
    Believes,
    /// It has not said that it does, or is away since a short while.
    Silent,
    /// It refused, and said why.
    Refuses(String),
    /// It is away, and nobody waits for it any more.
    Away,
}

/// What is known when a decision is taken.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What the authority has written down.
    pub(super) phase: Phase,
    /// The former root was dropped in this process.
    pub(super) ending: bool,
    /// The last step was taken a moment ago, and somebody follows the bundles without saying how far.
    pub(super) heard: bool,
    /// Why proxies cannot be told at all.
    pub(super) fault: Option<String>,
    /// By key.
    pub(super) proxies: Vec<(String, Following)>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing is under way.
    Rest,
    /// Everybody has followed: take this step.
    Take(Step),
    /// These have not followed that step; nobody: those who do not say so get a moment for it.
    Wait(Step, Vec<String>),
    /// Somebody refuses that step, and why.
    Stop(Step, String),
    /// Everybody has followed the last step.
    End,
}

/// A step is taken when everybody who is there has followed the one before: they believe what it told, and, where the next root issues,
/// hold a leaf below it. A refusal stops at once: a proxy that does not believe the next root would be cut off by going on.
pub(super) fn decide(facts: &Facts) -> Next {
    let (step, next) = match (facts.phase, facts.ending) {
        (Phase::Steady, false) => return Next::Rest,
        (Phase::Steady, true) => (Step::Drop, Next::End),
        (Phase::Trusting, _) => (Step::Trust, Next::Take(Step::Issue)),
        (Phase::Issuing, _) => (Step::Issue, Next::Take(Step::Drop)),
    };
    if let Some(fault) = &facts.fault {
        return Next::Stop(step, fault.clone());
    }
    let refusal = facts.proxies.iter().find_map(|(proxy, following)| match following {
        Following::Refuses(reason) => Some(format!("the proxy of {proxy} refuses the roots: {reason}")),
        _ => None,
    });
    if let Some(refusal) = refusal {
        return Next::Stop(step, refusal);
    }
    let behind = |following: &Following| match following {
        Following::Whole | Following::Away => false,
        Following::Believes => step == Step::Issue,
        Following::Silent | Following::Refuses(_) => true,
    };
    let waiting: Vec<String> = facts.proxies.iter().filter(|(_, following)| behind(following)).map(|(proxy, _)| proxy.clone()).collect();
    let hold = facts.heard && matches!(next, Next::Take(_));
    if waiting.is_empty() && !hold { next } else { Next::Wait(step, waiting) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(phase: Phase, ending: bool, proxies: &[(&str, Following)]) -> Facts {
        let proxies = proxies.iter().map(|(proxy, following)| ((*proxy).to_owned(), following.clone())).collect();
        Facts { phase, ending, heard: false, fault: None, proxies }
    }

    #[test]
    fn each_step_waits_for_its_own_sign() {
        // Aim: trust waits for belief, issue for a new leaf too, drop for belief again; whoever is away is not waited for, and nobody at
        // all holds nothing up.
        use Following::{Away, Believes, Silent, Whole};
        let all = [("a", Whole), ("b", Believes), ("c", Silent), ("d", Away)];
        let wait = |step, names: &[&str]| Next::Wait(step, names.iter().map(ToString::to_string).collect());
        assert_eq!(decide(&facts(Phase::Trusting, false, &all)), wait(Step::Trust, &["c"]));
        assert_eq!(decide(&facts(Phase::Issuing, false, &all)), wait(Step::Issue, &["b", "c"]));
        assert_eq!(decide(&facts(Phase::Steady, true, &all)), wait(Step::Drop, &["c"]));
        assert_eq!(decide(&facts(Phase::Steady, false, &all)), Next::Rest);
        let done = [("a", Whole), ("d", Away)];
        assert_eq!(decide(&facts(Phase::Trusting, false, &done)), Next::Take(Step::Issue));
        assert_eq!(decide(&facts(Phase::Issuing, false, &done)), Next::Take(Step::Drop));
        assert_eq!(decide(&facts(Phase::Steady, true, &done)), Next::End);
        assert_eq!(decide(&facts(Phase::Trusting, false, &[])), Next::Take(Step::Issue));
    }

    #[test]
    fn whoever_follows_the_bundles_only_gets_a_moment_for_each_step() {
        // Aim: no step is taken right after the one before where somebody hears of it and cannot answer; the end waits for nobody.
        let heard = |phase, ending| decide(&Facts { heard: true, ..facts(phase, ending, &[]) });
        assert_eq!(heard(Phase::Trusting, false), Next::Wait(Step::Trust, Vec::new()));
        assert_eq!(heard(Phase::Issuing, false), Next::Wait(Step::Issue, Vec::new()));
        assert_eq!((heard(Phase::Steady, true), heard(Phase::Steady, false)), (Next::End, Next::Rest));
    }

    #[test]
    fn a_refusal_stops_and_names_its_proxy() {
        // Aim: whoever refuses is named with its reason, before anybody who is only late; a fault of our own stops, too.
        let all = [("shop/a", Following::Silent), ("shop/b", Following::Refuses("roots[1]: is no certificate".to_owned()))];
        let Next::Stop(step, reason) = decide(&facts(Phase::Trusting, false, &all)) else { unreachable!("it must stop") };
        assert_eq!(step, Step::Trust);
        assert!(reason.contains("shop/b") && reason.contains("roots[1]"), "{reason}");
        let fault = Facts { fault: Some("ours".to_owned()), ..facts(Phase::Issuing, false, &[]) };
        assert_eq!(decide(&fault), Next::Stop(Step::Issue, "ours".to_owned()));
    }

    fn following() -> impl Strategy<Value = Following> {
        prop_oneof![
            Just(Following::Whole),
            Just(Following::Believes),
            Just(Following::Silent),
            Just(Following::Refuses("x".to_owned())),
            Just(Following::Away)
        ]
    }

    proptest! {
        // Aim: the next root never issues before all who are there believe it, and the former one is never dropped while somebody there
        // has a leaf below it.
        #[test]
        fn nothing_is_taken_before_everybody_there_has_followed(
            phase in prop_oneof![Just(Phase::Steady), Just(Phase::Trusting), Just(Phase::Issuing)],
            ending in any::<bool>(),
            heard in any::<bool>(),
            followers in prop::collection::vec(following(), 0..6),
        ) {
            let proxies = followers.iter().enumerate().map(|(index, following)| (index.to_string(), following.clone())).collect();
            let next = decide(&Facts { phase, ending, heard, fault: None, proxies });
            let believes = |following: &Following| matches!(following, Following::Whole | Following::Believes | Following::Away);
            let whole = |following: &Following| matches!(following, Following::Whole | Following::Away);
            match next {
                Next::Take(Step::Issue) => prop_assert!(!heard && phase == Phase::Trusting && followers.iter().all(believes)),
                Next::Take(Step::Drop) => prop_assert!(!heard && phase == Phase::Issuing && followers.iter().all(whole)),
                Next::Take(Step::Trust) => prop_assert!(false, "only somebody who asks begins one"),
                Next::End => prop_assert!(phase == Phase::Steady && followers.iter().all(believes)),
                Next::Wait(_, waiting) => prop_assert!(heard || !waiting.is_empty()),
                Next::Rest | Next::Stop(..) => {}
            }
        }
    }
}
