use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn seen(version: &str, holder: &str, renewed: &str, transitions: u32) -> Seen {
    Seen { version: version.into(), holder: holder.into(), renewed: renewed.into(), duration: Some(TERMS.duration), transitions }
}

fn read(candidate: &mut Candidate, lease: Option<Seen>, now: Instant) -> Step {
    assert_eq!(candidate.next(now), Step::Read);
    candidate.on(Outcome::Read(lease), now);
    candidate.next(now)
}

/// One that has taken the free lease at `now`.
fn holder(now: Instant) -> Candidate {
    let mut candidate = Candidate::new("me", TERMS, now);
    assert!(matches!(read(&mut candidate, Some(seen("1", "", "t", 4)), now), Step::Write(_)));
    candidate.on(Outcome::Written(seen("2", "me", "t0", 5)), now + 10 * MS);
    candidate
}

#[test]
fn the_terms_fit_together() {
    // Aim: a holder is over before another begins, with time to stop; it may miss a renewal; a takeover fits into 5 s.
    let Terms { duration, hold, renew, look, call } = TERMS;
    assert!(hold + Duration::from_secs(1) <= duration && renew + call < hold);
    assert!(duration + look + Duration::from_millis(500) < Duration::from_secs(5));
    assert_eq!(duration.subsec_nanos(), 0, "the Lease says it in seconds");
}

#[test]
fn what_is_seen_says_what_is_next() {
    // Aim: free is taken at once, mine is renewed, another's is left alone as long as it lasts; so is what nobody held.
    let now = Instant::now();
    let bid = |over: &str, transitions, renewal| Step::Write(Bid { over: Some(over.into()), transitions, renewal });
    let look = Step::Wait(now + TERMS.look);
    let table = [
        ("given back", Some(seen("1", "", "t", 4)), bid("1", 5, false)),
        ("a write of mine that was given up", Some(seen("1", "me", "t", 4)), bid("1", 4, true)),
        ("another's", Some(seen("1", "you", "t", 4)), look),
        ("none at all", None, Step::Write(Bid { over: None, transitions: 0, renewal: false })),
        ("one that nobody has held", Some(seen("1", "", "", 0)), bid("1", 1, false)),
    ];
    for (what, lease, step) in table {
        let mut candidate = Candidate::new("me", TERMS, now);
        assert_eq!(read(&mut candidate, lease, now), step, "{what}");
        assert_eq!(candidate.holds(now), None, "{what}");
    }
}

#[test]
fn another_lasts_as_long_as_it_shows_signs_of_life_by_my_own_clock() {
    // Aim: the time counts from the last change that I saw; a new version alone is none; what it says of its length is believed up to a bound.
    let begin = Instant::now();
    let mut candidate = Candidate::new("me", TERMS, begin);
    let mut now = begin;
    for (version, renewed) in [("1", "t1"), ("2", "t2"), ("3", "t2"), ("4", "t2")] {
        assert_eq!(read(&mut candidate, Some(seen(version, "you", renewed, 4)), now), Step::Wait(now + TERMS.look), "{version}");
        now += TERMS.look;
    }
    let free_at = begin + TERMS.look + TERMS.duration;
    while now + TERMS.look < free_at {
        read(&mut candidate, Some(seen("4", "you", "t2", 4)), now);
        now += TERMS.look;
    }
    assert_eq!(read(&mut candidate, Some(seen("4", "you", "t2", 4)), now), Step::Wait(free_at), "never later than need be");
    let bid = Bid { over: Some("4".into()), transitions: 5, renewal: false };
    assert_eq!(read(&mut candidate, Some(seen("4", "you", "t2", 4)), free_at), Step::Write(bid));
    let long = Seen { duration: Some(Duration::from_secs(1 << 30)), ..seen("1", "you", "t", 4) };
    let mut candidate = Candidate::new("me", TERMS, begin);
    read(&mut candidate, Some(long.clone()), begin);
    assert!(matches!(read(&mut candidate, Some(long), begin + DURATION_MAX), Step::Write(_)));
}

#[test]
fn the_holder_counts_from_before_it_sent() {
    // Aim: a slow answer does not lengthen the hold, and a renewal that was not taken ends it in time.
    let sent = Instant::now();
    let mut candidate = holder(sent);
    let until = sent + TERMS.hold;
    assert_eq!((candidate.holds(sent), candidate.transitions()), (Some(until), 5));
    assert_eq!(candidate.next(sent + 10 * MS), Step::Wait(sent + TERMS.renew));
    let renewing = sent + TERMS.renew;
    assert_eq!(candidate.next(renewing), Step::Write(Bid { over: Some("2".into()), transitions: 5, renewal: true }));
    candidate.on(Outcome::Written(seen("3", "me", "t1", 5)), renewing + 1400 * MS);
    assert_eq!(candidate.holds(renewing), Some(renewing + TERMS.hold));
    assert!(matches!(candidate.next(renewing + 1400 * MS), Step::Write(_)), "one that took so long is followed by the next at once");
    candidate.on(Outcome::Failed, renewing + 2900 * MS);
    assert_eq!(candidate.holds(renewing + 2900 * MS), Some(renewing + TERMS.hold));
    assert_eq!(candidate.holds(renewing + TERMS.hold), None);
}

#[test]
fn a_write_of_unknown_end_is_looked_at_before_the_next() {
    // Aim: after no answer, and after a conflict, the Lease is read; mine is renewed over its new version, another's ends my hold at once.
    for outcome in [Outcome::Failed, Outcome::Overtaken, Outcome::Forbidden] {
        let sent = Instant::now();
        let mut candidate = holder(sent);
        let renewing = sent + TERMS.renew;
        candidate.next(renewing);
        candidate.on(outcome, renewing);
        let later = renewing + FORBIDDEN_PAUSE;
        let mut other = candidate.clone();
        let over = read(&mut candidate, Some(seen("9", "me", "t1", 5)), later);
        assert_eq!(over, Step::Write(Bid { over: Some("9".into()), transitions: 5, renewal: true }));
        assert!(matches!(read(&mut other, Some(seen("9", "you", "t1", 6)), renewing + TERMS.look + FORBIDDEN_PAUSE), Step::Wait(_)));
        assert_eq!((other.holds(renewing + MS), other.holder()), (None, Some("you")));
    }
}

#[test]
fn one_refusal_costs_a_holder_nothing() {
    // Aim: a renewal gets 403 once: the next one is in time; who stands by asks less often.
    let sent = Instant::now();
    let mut candidate = holder(sent);
    let renewing = sent + TERMS.renew;
    assert!(matches!(candidate.next(renewing), Step::Write(_)));
    candidate.on(Outcome::Forbidden, renewing);
    let again = renewing + TERMS.look;
    assert!(matches!(read(&mut candidate, Some(seen("2", "me", "t0", 5)), again), Step::Write(_)));
    candidate.on(Outcome::Written(seen("3", "me", "t1", 5)), again + 10 * MS);
    assert!(candidate.holds(sent + Duration::from_millis(3_500)).is_some());
    let mut other = Candidate::new("you", TERMS, sent);
    assert_eq!(other.next(sent), Step::Read);
    other.on(Outcome::Forbidden, sent);
    assert_eq!(other.next(sent), Step::Wait(sent + FORBIDDEN_PAUSE));
}

#[test]
fn a_lease_that_somebody_deletes_is_made_again_by_its_holder() {
    // Aim: the holder goes on; whoever stands by and makes it first holds once the holder's time is over, in which it learns of it.
    let now = Instant::now();
    let mut mine = holder(now);
    mine.next(now + TERMS.renew);
    mine.on(Outcome::Overtaken, now + TERMS.renew);
    let made = Step::Write(Bid { over: None, transitions: 0, renewal: false });
    let later = now + TERMS.renew + OVERTAKEN_PAUSE;
    assert_eq!(read(&mut mine, None, later), made);
    mine.on(Outcome::Written(seen("9", "me", "t", 0)), later);
    assert_eq!(mine.holds(later), Some(later + TERMS.hold));
    for (lease, lost_answer) in [(None, false), (None, true), (Some(seen("1", "", "", 0)), false)] {
        let mut other = Candidate::new("you", TERMS, now);
        assert!(matches!(read(&mut other, lease, now), Step::Write(_)));
        let mut at = now;
        if lost_answer {
            other.on(Outcome::Failed, at);
            at += TERMS.look;
            assert!(matches!(read(&mut other, Some(seen("1", "you", "t", 0)), at), Step::Write(_)));
        }
        other.on(Outcome::Written(seen("2", "you", "t", 0)), at);
        let from = at + TERMS.probation();
        while at + TERMS.renew < from {
            at += TERMS.renew;
            assert!(matches!(other.next(at), Step::Write(_)));
            other.on(Outcome::Written(seen("3", "you", "t", 0)), at);
            assert_eq!(other.holds(at), None);
        }
        assert_eq!(other.next(at), Step::Wait(from));
        assert!(other.holds(from).is_some());
    }
}

#[test]
fn a_holder_that_slept_makes_a_deleted_lease_anew_like_anybody() {
    // Aim: whether it slept before it looked or before it wrote: another may have made the Lease meanwhile, and lost it to a second deletion
    // without knowing.
    let now = Instant::now();
    for (looks, wakes) in
        [(TERMS.renew, 2 * TERMS.duration), (TERMS.renew, TERMS.hold - 10 * MS), (TERMS.hold - 20 * MS, TERMS.hold - 10 * MS)]
    {
        let mut mine = holder(now);
        mine.next(now + TERMS.renew);
        mine.on(Outcome::Overtaken, now + looks - OVERTAKEN_PAUSE);
        let own = mine.holds(now + looks);
        assert!(own.is_some());
        assert!(matches!(read(&mut mine, None, now + looks), Step::Write(Bid { over: None, .. })));
        let woken = now + wakes;
        mine.on(Outcome::Written(seen("9", "me", "t", 0)), woken);
        assert_eq!(mine.holds(woken), None, "{looks:?} {wakes:?}");
        assert!(matches!(mine.next(woken.max(now + looks + TERMS.renew)), Step::Write(_)), "it is renewed all the same");
        mine.on(Outcome::Written(seen("10", "me", "t2", 0)), woken + TERMS.renew);
        assert_eq!(mine.holds(woken + TERMS.renew), None, "another may believe that it holds");
    }
}

#[test]
fn only_what_is_mine_is_given_back() {
    // Aim: the bid names the version that I wrote; after a failure, or when the time is over, there is none.
    let now = Instant::now();
    let mut candidate = holder(now);
    assert_eq!(candidate.release(now + MS).map(|bid| bid.over), Some(Some("2".into())));
    assert_eq!(candidate.release(now + TERMS.hold), None);
    candidate.next(now + TERMS.renew);
    candidate.on(Outcome::Failed, now + TERMS.renew);
    assert_eq!(candidate.release(now + TERMS.renew), None);
}

/// What may happen to a replica at its turn.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The call and its answer take so many milliseconds each.
    Answered(u64, u64),
    /// It never reaches the API server.
    Lost,
    /// It is taken, and the answer never comes.
    Unanswered(u64),
    /// The process stands still for so long before it sends what it has decided.
    Paused(u64),
    /// Somebody deletes the Lease.
    Deleted,
    /// Somebody writes a label on it.
    Labelled,
    /// A clean stop, and a new process in its place.
    Released,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => (1_u64..80, 1_u64..80).prop_map(|(there, back)| Fate::Answered(there, back)),
        2 => (200_u64..1400, 1_u64..100).prop_map(|(there, back)| Fate::Answered(there, back)),
        3 => Just(Fate::Lost),
        2 => (1_u64..1400).prop_map(Fate::Unanswered),
        2 => (100_u64..12_000).prop_map(Fate::Paused),
        1 => Just(Fate::Deleted),
        2 => Just(Fate::Labelled),
        1 => Just(Fate::Released),
    ]
}

/// An API server with one Lease, and those who stand for it, in simulated time.
struct Arena {
    lease: Option<Seen>,
    version: u64,
    /// Who, its time, and what it has decided and not done yet.
    replicas: Vec<(Candidate, Instant, Option<Step>)>,
}

impl Arena {
    fn serve(&mut self, step: &Step, me: &str, at: Instant) -> Outcome {
        let Step::Write(bid) = step else { return Outcome::Read(self.lease.clone()) };
        if self.lease.as_ref().map(|lease| lease.version.clone()) != bid.over {
            return Outcome::Overtaken;
        }
        self.version += 1;
        let lease = seen(&self.version.to_string(), me, &format!("{at:?}"), bid.transitions);
        self.lease = Some(lease.clone());
        Outcome::Written(lease)
    }

    /// The replica whose turn is next does one thing.
    fn turn(&mut self, fate: Fate) {
        let Some(turn) = (0..self.replicas.len()).min_by_key(|turn| self.replicas[*turn].1) else { return };
        let (mut candidate, mut now, decided) = self.replicas[turn].clone();
        let me = candidate.me.clone();
        let mut left = None;
        match decided.unwrap_or_else(|| candidate.next(now)) {
            Step::Wait(until) => now = until.max(now),
            step => match fate {
                Fate::Answered(there, back) => {
                    let outcome = self.serve(&step, &me, now + MS * u32::try_from(there).unwrap());
                    now += MS * u32::try_from(there + back).unwrap();
                    candidate.on(outcome, now);
                }
                Fate::Lost | Fate::Unanswered(_) => {
                    if let Fate::Unanswered(there) = fate {
                        self.serve(&step, &me, now + MS * u32::try_from(there).unwrap());
                    }
                    now += TERMS.call;
                    candidate.on(Outcome::Failed, now);
                }
                Fate::Paused(ms) => {
                    // It goes on with what it had decided before, and others have their turns meanwhile.
                    now += MS * u32::try_from(ms).unwrap();
                    left = Some(step);
                }
                Fate::Deleted => {
                    self.lease = None;
                    left = Some(step);
                }
                Fate::Labelled => {
                    self.version += 1;
                    let version = self.version.to_string();
                    self.lease.iter_mut().for_each(|lease| lease.version.clone_from(&version));
                    left = Some(step);
                }
                Fate::Released => {
                    if candidate.release(now).is_some_and(|bid| bid.over == self.lease.as_ref().map(|lease| lease.version.clone())) {
                        self.version += 1;
                        let version = self.version.to_string();
                        self.lease
                            .iter_mut()
                            .for_each(|lease| *lease = Seen { version: version.clone(), holder: String::new(), ..lease.clone() });
                    }
                    candidate = Candidate::new(&format!("{me}'"), TERMS, now);
                }
            },
        }
        self.replicas[turn] = (candidate, now, left);
    }

    fn holders(&self, now: Instant) -> usize {
        self.replicas.iter().filter(|(candidate, ..)| candidate.holds(now).is_some()).count()
    }

    fn now(&self) -> Instant {
        self.replicas.iter().map(|(_, at, _)| *at).min().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn never_two_and_soon_one(fates in proptest::collection::vec(fate(), 1..300)) {
        // Aim: whatever calls, processes and people do, no two hold at one moment, and 6 s after the last fault somebody holds.
        let begin = Instant::now();
        let replicas = ["a", "b", "c"].map(|me| (Candidate::new(me, TERMS, begin), begin, None)).into();
        let mut arena = Arena { lease: None, version: 0, replicas };
        for fate in fates {
            arena.turn(fate);
            // Whoever's turn it is sees its own time; what it holds by then counts for everybody.
            let now = arena.now();
            prop_assert!(arena.holders(now) <= 1, "{:?}", arena.replicas);
        }
        let calm = arena.replicas.iter().map(|(_, at, _)| *at).max().unwrap();
        // Whoever was paused is back by then; a Lease that was deleted, and one that somebody held, each last their time.
        while arena.now() < calm + TERMS.probation() + Duration::from_secs(1) {
            arena.turn(Fate::Answered(5, 5));
            prop_assert!(arena.holders(arena.now()) <= 1);
        }
        prop_assert_eq!(arena.holders(arena.now()), 1, "{:?}", arena.replicas);
    }
}
