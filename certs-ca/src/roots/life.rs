//! The life of our own roots, pure: steady -> trusting (the next one is believed) -> issuing (it issues, the former one is believed
//! still) -> steady (the former one is retired). Each step gives a new [`Life`], which the caller writes down before anybody sees it;
//! a step that has been taken already changes nothing, so it may be taken again after a crash.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{Phase, RootSet};
use crate::authority::FORMER_MAX;

/// A certificate of the authority, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// DER in base64.
    certificate: String,
    /// No longer of use after this second since 1970.
    until: i64,
}

impl Kept {
    /// A certificate that is of use until then.
    pub fn new(certificate: &CertificateDer<'_>, until: i64) -> Self {
        Self { certificate: STANDARD.encode(certificate), until }
    }

    /// `None`: what was written down does not read back.
    fn der(&self) -> Option<CertificateDer<'static>> {
        STANDARD.decode(&self.certificate).ok().map(CertificateDer::from)
    }
}

/// Where a rotation stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// One root.
    #[default]
    Steady,
    /// The next one is believed, too.
    Trusting {
        /// Subject and key of the next root, signed by the one that issues; `None` where that had ended already.
        cross: Option<Kept>,
    },
    /// The next one issues.
    Issuing {
        /// The one that issued before.
        former: Kept,
    },
}

/// What is remembered beside the certificates in force: written down as one row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// See [`Stage`].
    pub stage: Stage,
    /// From each root to the one before it, the newest first: a bearer of an old root finds its way along them.
    pub crosses: Vec<Kept>,
    /// Believed no more; whoever holds a leaf below one of them may ask for the next leaf until that has been long enough.
    pub retired: Vec<Kept>,
}

/// The roots of the mesh and where their rotation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    issuing: CertificateDer<'static>,
    /// In [`Stage::Trusting`] only.
    next: Option<CertificateDer<'static>>,
    history: History,
}

impl Life {
    /// Joins what was written down. `None`: it does not fit together.
    pub fn restore(issuing: CertificateDer<'static>, next: Option<CertificateDer<'static>>, history: History) -> Option<Self> {
        let trusting = matches!(history.stage, Stage::Trusting { .. });
        let crossed = if let Stage::Trusting { cross: Some(cross) } = &history.stage { Some(cross) } else { None };
        let former = if let Stage::Issuing { former } = &history.stage { Some(former) } else { None };
        let kept = history.crosses.iter().chain(&history.retired).chain(crossed).chain(former);
        let reads = kept.map(Kept::der).all(|der| der.is_some());
        (reads && trusting == next.is_some()).then_some(Self { issuing, next, history })
    }

    /// The first root of a mesh.
    pub fn begin(root: CertificateDer<'static>) -> Self {
        Self { issuing: root, next: None, history: History::default() }
    }

    /// The root below which leaves are issued.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// What has to be written down beside issuing and next root.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Where the rotation stands.
    pub fn phase(&self) -> Phase {
        match self.history.stage {
            Stage::Steady => Phase::Steady,
            Stage::Trusting { .. } => Phase::Trusting,
            Stage::Issuing { .. } => Phase::Issuing,
        }
    }

    /// The next root is believed from now on. A rotation under way stays as it is, with the next root that it has.
    #[must_use]
    pub fn trust(&self, next: CertificateDer<'static>, cross: Option<Kept>) -> Self {
        if self.phase() != Phase::Steady {
            return self.clone();
        }
        let stage = Stage::Trusting { cross };
        Self { issuing: self.issuing.clone(), next: Some(next), history: History { stage, ..self.history.clone() } }
    }

    /// The next root issues from now on; the former one, which ends at `former_end`, is believed still.
    #[must_use]
    pub fn issue(&self, former_end: i64) -> Self {
        let (Stage::Trusting { cross }, Some(next)) = (&self.history.stage, &self.next) else { return self.clone() };
        let mut crosses: Vec<Kept> = cross.iter().chain(&self.history.crosses).cloned().collect();
        if cross.is_none() {
            // Where one is missing, those beyond it lead nowhere.
            crosses.clear();
        }
        crosses.truncate(FORMER_MAX);
        let stage = Stage::Issuing { former: Kept::new(&self.issuing, former_end) };
        Self { issuing: next.clone(), next: None, history: History { stage, crosses, retired: self.history.retired.clone() } }
    }

    /// The former root is believed no more; leaves below it may ask for the next leaf until `until`.
    #[must_use]
    pub fn retire(&self, until: i64) -> Self {
        let Stage::Issuing { former } = &self.history.stage else { return self.clone() };
        let mut retired = self.history.retired.clone();
        retired.insert(0, Kept { until, ..former.clone() });
        retired.truncate(FORMER_MAX);
        let history = History { stage: Stage::Steady, crosses: self.history.crosses.clone(), retired };
        Self { issuing: self.issuing.clone(), next: None, history }
    }

    /// Certificates that lead from the issuing root to former ones, as far as they have not ended.
    pub fn crosses(&self, now: i64) -> Vec<CertificateDer<'static>> {
        self.history.crosses.iter().take_while(|cross| cross.until > now).filter_map(Kept::der).collect()
    }

    /// Roots that were believed once and are remembered still.
    pub fn former(&self, now: i64) -> Vec<CertificateDer<'static>> {
        let former = if let Stage::Issuing { former } = &self.history.stage { former.der() } else { None };
        let retired = self.history.retired.iter().filter(|retired| retired.until > now).filter_map(Kept::der);
        former.into_iter().chain(retired).collect()
    }

    /// What everybody else sees of it.
    pub fn set(&self, now: i64) -> RootSet {
        let other = match &self.history.stage {
            Stage::Steady => None,
            Stage::Trusting { .. } => self.next.clone(),
            Stage::Issuing { former } => former.der(),
        };
        let retired = self.history.retired.iter().filter(|retired| retired.until > now).filter_map(Kept::der).collect();
        RootSet::new(self.issuing.clone(), other.into_iter().collect(), retired, self.phase())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(number: u8) -> CertificateDer<'static> {
        CertificateDer::from(vec![number; 4])
    }

    /// What may happen to an authority.
    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Trust,
        Issue,
        Retire,
        /// The process ends; what was written down is read back. True: before the last step was written.
        Crash(bool),
        Later(u16),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            Just(Happening::Trust),
            Just(Happening::Issue),
            Just(Happening::Retire),
            any::<bool>().prop_map(Happening::Crash),
            any::<u16>().prop_map(Happening::Later),
        ]
    }

    /// Through the row, as a restart goes.
    fn reread(life: &Life) -> Life {
        let row = serde_json::to_vec(life.history()).unwrap();
        Life::restore(life.issuing.clone(), life.next.clone(), serde_json::from_slice(&row).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn whatever_happens_somebody_issues_and_is_believed(story in prop::collection::vec(happening(), 1..60)) {
            // Aim: in any order of steps, repeated or out of turn, and with a crash before or after any write: the issuing root is believed, two
            // at most are, it changes only from trusting to issuing and only to what was believed before, and what is kept is bounded.
            let (mut life, mut before, mut now, mut made) = (Life::begin(root(0)), Life::begin(root(0)), 0_i64, 0_u8);
            for happens in story {
                let former = life.clone();
                match happens {
                    Happening::Trust => {
                        made = made.wrapping_add(1);
                        life = life.trust(root(made), Some(Kept::new(&root(made), now + 1000)));
                    }
                    Happening::Issue => life = life.issue(now + 1000),
                    Happening::Retire => life = life.retire(now + 500),
                    Happening::Crash(true) => life = reread(&before),
                    Happening::Crash(false) => life = reread(&life),
                    Happening::Later(seconds) => now += i64::from(seconds % 700),
                }
                let (seen, was) = (life.set(now), former.set(now));
                prop_assert!(seen.der().contains(life.issuing()) && seen.der().len() <= 2);
                prop_assert_eq!(seen.issuing(), life.issuing());
                if !matches!(happens, Happening::Crash(_)) {
                    if seen.issuing() != was.issuing() {
                        prop_assert_eq!((was.phase(), seen.phase()), (Phase::Trusting, Phase::Issuing));
                        prop_assert!(was.der().contains(seen.issuing()) && seen.der().contains(was.issuing()));
                    }
                    // Taken again it is the same.
                    let again = match happens {
                        Happening::Trust => life.trust(root(made), None),
                        Happening::Issue => life.issue(now),
                        Happening::Retire => life.retire(now),
                        _ => life.clone(),
                    };
                    prop_assert_eq!(&again, &life);
                    if life != former {
                        before = former;
                    }
                }
                prop_assert!(life.history.crosses.len() <= FORMER_MAX && life.history.retired.len() <= FORMER_MAX);
                prop_assert!(!seen.retired().iter().any(|retired| seen.der().contains(retired)));
            }
        }
    }

    #[test]
    fn what_does_not_fit_together_is_not_taken_up() {
        // Aim: a row of another stage than the certificates beside it, or with a certificate that does not read, is no life.
        let trusting = Life::begin(root(0)).trust(root(1), None);
        assert!(Life::restore(root(0), None, trusting.history.clone()).is_none());
        assert!(Life::restore(root(0), Some(root(1)), History::default()).is_none());
        let broken = History { retired: vec![Kept { certificate: "%".to_owned(), until: 1 }], ..History::default() };
        assert!(Life::restore(root(0), None, broken).is_none());
    }

    #[test]
    fn a_retired_root_is_forgotten_in_time() {
        // Aim: it opens the way to a renewal as long as a leaf below it may ask for one, and no longer.
        let life = Life::begin(root(0)).trust(root(1), None).issue(9000).retire(500);
        assert_eq!(life.set(499).retired(), [root(0)]);
        assert!(life.set(500).retired().is_empty() && life.former(500).is_empty());
        assert!(life.crosses(0).is_empty(), "the former root had ended before it could sign one");
    }
}
