//! A limit that three proxies share, in virtual time.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const LIMIT: &str = "shop/limits/per-consumer/rate";

/// Proxies that hold one key, the store they ask, and the answers under way.
struct Play {
    book: LimitBook,
    numbers: Numbers,
    ahead: u64,
    proxies: Vec<HeldShare>,
    /// Answers with the time when they arrive, by proxy.
    under_way: VecDeque<(u64, usize, ShareAsk)>,
    travel_millis: u64,
    passed: Vec<(u64, u64)>,
}

impl Play {
    fn new(numbers: Numbers, ahead: u64, travel_millis: u64) -> Self {
        let book = LimitBook::new(8, 100);
        Self { book, numbers, ahead, proxies: vec![HeldShare::default(); 3], under_way: VecDeque::new(), travel_millis, passed: Vec::new() }
    }

    fn ask(&mut self, proxy: usize, want: u64, at: u64) {
        let held = &mut self.proxies[proxy];
        let (known, spent) = (held.known(1, now(at).moment), held.owed());
        let ask = ShareAsk { limit: LIMIT.into(), key: 7, want, back: 0, spent, known };
        self.under_way.push_back((at + self.travel_millis, proxy, ask));
    }

    /// A request that costs one. Who has to ask waits, and tries again when the answer comes.
    fn request(&mut self, proxy: usize, at: u64) {
        match self.proxies[proxy].take(1, self.ahead, now(at).moment) {
            Taking::Taken { more, .. } => {
                self.passed.push((at, 1));
                if more > 0 {
                    self.ask(proxy, more, at);
                }
            }
            Taking::Empty(_) => {}
            Taking::Ask(want) => self.ask(proxy, want, at),
        }
    }

    /// Lets arrive what has; who waited tries once more.
    fn arrive(&mut self, at: u64) {
        while self.under_way.front().is_some_and(|(due, ..)| *due <= at) {
            let Some((_, proxy, ask)) = self.under_way.pop_front() else { return };
            let grant = self.book.take(&ask, &self.numbers, now(at)).unwrap();
            self.proxies[proxy].granted(&grant, now(at).moment);
            if let Taking::Taken { .. } = self.proxies[proxy].take(1, 0, now(at).moment) {
                self.passed.push((at, 1));
            }
        }
    }

    fn sum(&self, from: u64, to: u64) -> u64 {
        self.passed.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, count)| count).sum()
    }
}

#[test]
fn who_waited_for_an_answer_is_not_told_that_there_is_none() {
    // Aim: many requests come at one moment and find nothing in hand; each tries again as the answers arrive, by the moment at which it came,
    // and what others have spent meanwhile sends it to the store again: nobody is refused while hundreds are left.
    let (numbers, book) = (rate(600, 60_000, 600), LimitBook::new(8, 100));
    let mut held = HeldShare::default();
    let (came, answered) = (now(1_000).moment, now(1_003));
    let Taking::Ask(want) = held.under(&numbers).take(1, 6, came) else { panic!("nothing is in hand") };
    let grant = book.take(&ShareAsk { limit: LIMIT.into(), key: 7, want, back: 0, spent: 0, known: None }, &numbers, answered).unwrap();
    held.granted(&grant, answered.moment);
    let taken = (0..want).filter(|_| matches!(held.under(&numbers).take(1, 6, came), Taking::Taken { .. })).count();
    assert_eq!(taken as u64, want);
    assert!(matches!(held.under(&numbers).take(1, 6, came), Taking::Ask(_)));
}

#[test]
fn an_edit_of_the_numbers_is_asked_about() {
    // Aim: what the store did not have of one limit it may have of a wider one, whichever of its numbers was edited; the same numbers are let be.
    let book = LimitBook::new(8, 100);
    let narrow = rate(3, 3_600_000, 3);
    let ask = |want| ShareAsk { limit: LIMIT.into(), key: 7, want, back: 0, spent: 0, known: None };
    for (wide, left) in [(rate(10, 3_600_000, 10), 7), (rate(3, 3_600_000, 10), 7), (rate(3, 1_000, 3), 0)] {
        let mut held = HeldShare::default();
        held.under(&narrow);
        held.granted(&book.take(&ask(10), &narrow, now(5)).unwrap(), now(5).moment);
        while let Taking::Taken { .. } = held.under(&narrow).take(1, 1, now(6).moment) {}
        assert!(matches!(held.under(&narrow).take(1, 1, now(7).moment), Taking::Empty(_)));
        let Taking::Ask(want) = held.under(&wide).take(10, 1, now(7).moment) else { panic!("{wide:?} is asked about") };
        assert_eq!(book.take(&ask(want), &wide, now(7)).unwrap().granted, left, "{wide:?}");
        book.keep(|_| false);
    }
}

#[test]
fn three_proxies_let_through_what_one_would() {
    // Aim: a shared limit of 600 a minute over three proxies under twelve times its load: within 2 % in the first minute and in the ten after.
    for ahead in [0, 6] {
        let mut play = Play::new(rate(600, 60_000, 600), ahead, 1);
        for at in 0..660_000_u64 {
            play.arrive(at);
            if at % 25 == 0 {
                (0..3).for_each(|proxy| play.request(proxy, at));
            }
        }
        let (first, rest) = (play.sum(0, 60_000), play.sum(60_000, 660_000));
        assert!((1176..=1224).contains(&first), "a full bucket and a minute of its rate: {first}, {ahead} ahead");
        assert!((5880..=6120).contains(&rest), "ten minutes of its rate: {rest}, {ahead} ahead");
    }
}

#[test]
fn a_lopsided_load_finds_the_whole_limit() {
    // Aim: where one of three proxies has all the load, nothing worth a word stays with the others.
    let mut play = Play::new(rate(600, 60_000, 600), 6, 1);
    (0..3).for_each(|proxy| play.request(proxy, 0));
    for at in 1..120_000_u64 {
        play.arrive(at);
        if at % 20 == 0 {
            play.request(0, at);
        }
    }
    let passed = play.sum(0, 120_000);
    assert!((1764..=1836).contains(&passed), "{passed}");
}

#[test]
fn a_store_that_begins_anew_goes_on_from_what_proxies_know() {
    // Aim: a takeover in the middle of a month gives no second month, and of a bucket no second burst.
    for numbers in [quota(1000, Every::Month, "UTC"), rate(10, 60_000, 1000)] {
        let mut play = Play::new(numbers, 10, 1);
        for at in 0..20_000_u64 {
            if at == 10_000 {
                play.book = LimitBook::new(8, 100);
                play.proxies.iter_mut().for_each(|held| _ = held.known(0, now(at).moment));
            }
            play.arrive(at);
            if at % 10 == 0 {
                (0..3).for_each(|proxy| play.request(proxy, at));
            }
        }
        let passed = play.sum(0, 20_000);
        assert!((900..=1030).contains(&passed), "{passed}");
    }
}

#[test]
fn what_one_proxy_knows_to_be_used_up_a_store_that_forgot_gives_nobody() {
    // Aim: a proxy that refuses by itself tells a store that begins anew, once, and asks it for nothing; after that others get nothing, either.
    let numbers = rate(10, 3_600_000, 10);
    let ask = |want, known| ShareAsk { limit: LIMIT.into(), key: 7, want, back: 0, spent: 0, known };
    let (old, new) = (LimitBook::new(8, 100), LimitBook::new(8, 100));
    let mut held = HeldShare::default();
    assert!(!held.tells(1, now(0).moment), "nothing is known yet");
    let known = held.known(1, now(0).moment);
    held.under(&numbers).granted(&old.take(&ask(11, known), &numbers, now(1)).unwrap(), now(1).moment);
    (0..10).for_each(|_| _ = held.take(1, 0, now(2).moment));
    assert!(matches!(held.take(1, 0, now(3).moment), Taking::Empty(_)) && !held.tells(1, now(3).moment));
    assert!(matches!(held.take(1, 0, now(4).moment), Taking::Empty(_)) && held.tells(2, now(4).moment) && !held.tells(2, now(5).moment));
    let known = held.known(2, now(5).moment);
    held.granted(&new.take(&ask(0, known), &numbers, now(6)).unwrap(), now(6).moment);
    assert!(!held.tells(2, now(7).moment));
    assert_eq!(new.take(&ask(5, None), &numbers, now(8)).unwrap().granted, 0);
}

#[test]
fn a_proxy_on_its_own_has_its_share_of_what_was_left() {
    // Aim: the store goes away when 400 of 1000 are used: three proxies let the rest through between them, and owe it to the store.
    let numbers = quota(1000, Every::Month, "UTC");
    let mut play = Play::new(numbers.clone(), 0, 0);
    for request in 0..400 {
        play.request(request % 3, request as u64);
        play.arrive(request as u64);
    }
    let share = numbers.share(3);
    let alone: u64 =
        play.proxies.iter_mut().map(|held| (0..1000).filter(|_| held.alone(1, &share, 3, now(500)).is_ok()).count() as u64).sum();
    assert!((590..=600).contains(&alone), "{alone}");
    assert_eq!(play.proxies.iter_mut().map(HeldShare::owed).sum::<u64>(), alone);
}

#[test]
fn a_store_that_falls_silent_gives_nobody_more_than_was_left() {
    // Aim: before it is known to be away each request asks in vain and then goes by itself: all of them together have what was left, once. The
    // answers that come late pay for that.
    let (book, numbers) = (LimitBook::new(8, 100), rate(5, 3_600_000, 5));
    let ask = |want, spent| ShareAsk { limit: LIMIT.into(), key: 7, want, back: 0, spent, known: None };
    let mut held = HeldShare::default();
    held.under(&numbers).take(2, 0, now(0).moment);
    held.granted(&book.take(&ask(2, 0), &numbers, now(1)).unwrap(), now(1).moment);
    assert!(matches!(held.take(2, 0, now(1).moment), Taking::Taken { .. }));
    let silent = |held: &mut HeldShare, at| {
        assert!(matches!(held.under(&numbers).take(1, 0, now(at).moment), Taking::Ask(1)), "{at}");
        held.alone(1, &numbers, 1, now(at + 50)).is_ok()
    };
    assert_eq!((2..8).filter(|request| silent(&mut held, request * 100)).count(), 3);
    for _ in 2..8 {
        held.granted(&book.take(&ask(1, 0), &numbers, now(900)).unwrap(), now(900).moment);
    }
    assert_eq!((held.have(), held.owed()), (0, 0));
    assert!(matches!(held.under(&numbers).take(1, 0, now(901).moment), Taking::Empty(_)));
}

#[test]
fn a_book_has_its_bound() {
    // Aim: beyond its limits a book counts nothing and says so; one that is forgotten makes room.
    let (book, numbers) = (LimitBook::new(2, 16), rate(1, 1000, 1));
    let ask = |limit: &str| ShareAsk { limit: limit.into(), key: 7, want: 1, back: 0, spent: 0, known: None };
    assert_eq!([1, 1, 0], ["a", "b", "a"].map(|limit| book.take(&ask(limit), &numbers, now(0)).unwrap().granted));
    assert_eq!((book.take(&ask("c"), &numbers, now(0)), book.refused(), book.len()), (None, 1, 2));
    assert!(book.is_full());
    book.keep(|limit| limit != "a");
    assert!(!book.is_full());
    assert_eq!(book.take(&ask("c"), &numbers, now(0)).map(|grant| grant.granted), Some(1));
}

#[test]
fn what_lies_idle_is_given_back() {
    // Aim: a proxy whose client has left holds nothing after a while.
    let mut held = HeldShare::default();
    held.take(1, 10, now(0).moment);
    let grant = Grant { granted: 11, lasts: Duration::from_secs(60), standing: KeyStanding::default() };
    held.granted(&grant, now(1).moment);
    assert!(matches!(held.take(1, 10, now(1).moment), Taking::Taken { .. }));
    assert_eq!(held.idle(Duration::from_secs(5), now(4000).moment), None);
    assert_eq!(held.idle(Duration::from_secs(5), now(6000).moment), Some(10));
    assert_eq!(held.have(), 0);
}

proptest! {
    /// Aim: over any interleaving of proxies, loads and answers under way, no span of time holds more than the burst, the rate's share of the
    /// span, and what each proxy may have had in hand.
    #[test]
    fn no_interleaving_overspends(
        amount in 1..200_u64, burst in 1..200_u64, ahead in 0..20_u64, travel in 0..40_u64,
        steps in prop::collection::vec((0..400_u64, 0..3_usize, 1..30_u64), 1..120),
    ) {
        let mut play = Play::new(rate(amount, 1000, burst), ahead, travel);
        let mut at = 1;
        for (wait, proxy, requests) in steps {
            at += wait;
            play.arrive(at);
            (0..requests).for_each(|_| play.request(proxy, at));
        }
        play.arrive(at + travel);
        let passed = play.passed.clone();
        for (first, (from, _)) in passed.iter().enumerate() {
            let mut sum = 0;
            for (to, count) in &passed[first..] {
                sum += count;
                // What waits for an answer asks for its own part besides.
                let held = 3 * (ahead + 30);
                prop_assert!(sum * 1000 <= (burst + held) * 1000 + (to - from) * amount, "{sum} from {from} to {to}");
            }
        }
        let at = at + travel;
        let in_hand: u64 = play.proxies.iter().map(HeldShare::have).sum();
        let all = play.sum(0, at + 1);
        prop_assert!((all + in_hand) * 1000 <= burst * 1000 + at * amount, "{all} and {in_hand} in hand by {at}");
    }
}

#[test]
fn who_costs_more_than_one_is_told_when_all_of_it_is_there() {
    // Aim: the store says when one unit is there; whoever takes five comes again when five are, with what is in hand counted, and is let
    // through then and not before. Of a window all come at once.
    let numbers = rate(10, 1_000, 10);
    let book = LimitBook::new(8, 100);
    let mut held = HeldShare::default();
    let ask = |want| ShareAsk { limit: LIMIT.into(), key: 7, want, back: 0, spent: 0, known: None };
    let try_at = |held: &mut HeldShare, cost: u64, at: u64| match held.under(&numbers).take(cost, 0, now(at).moment) {
        Taking::Ask(want) => {
            held.granted(&book.take(&ask(want), &numbers, now(at)).unwrap(), now(at).moment);
            held.take(cost, 0, now(at).moment)
        }
        other => other,
    };
    assert!(matches!(try_at(&mut held, 10, 0), Taking::Taken { .. }));
    assert!(matches!(try_at(&mut held, 5, 0), Taking::Empty(_)));
    assert_eq!(held.until(5, &numbers, now(0).moment), Duration::from_millis(500));
    assert_eq!(held.until(1, &numbers, now(0).moment), Duration::from_millis(100));
    assert_eq!(held.until(u64::MAX, &numbers, now(0).moment), Duration::from_secs(1), "never more than there can be");
    assert!(matches!(try_at(&mut held, 5, 250), Taking::Empty(_)), "two of five");
    assert_eq!((held.have(), held.until(5, &numbers, now(250).moment)), (2, Duration::from_millis(250)));
    assert!(matches!(try_at(&mut held, 5, 500), Taking::Taken { .. }));
    assert_eq!(HeldShare::default().until(5, &quota(10, Every::Day, "UTC"), now(0).moment), Duration::ZERO);
}
