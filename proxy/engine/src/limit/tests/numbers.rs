use proptest::prelude::*;

use super::*;

/// How many of `asked` requests at one moment get through.
fn through(numbers: &Numbers, meter: &mut Meter, millis: u64, asked: usize) -> usize {
    (0..asked).filter(|_| numbers.take(meter, 1, now(millis)).is_ok()).count()
}

#[test]
fn a_bucket_gives_what_it_holds_and_then_its_rate() {
    // Aim: all of the burst at once, then one by one as they come back, and after a pause no more than a bucket holds.
    let (numbers, mut meter) = (rate(10, 1000, 15), Meter::default());
    let counts = [(5000, 15), (5099, 0), (5100, 1), (5600, 5), (60_000, 15)];
    for (millis, expected) in counts {
        assert_eq!(through(&numbers, &mut meter, millis, 100), expected, "{millis}");
    }
    let standing = numbers.look(&mut meter, 1, now(60_000));
    assert_eq!(standing, KeyStanding { remaining: 0, reset: Duration::from_millis(1500), retry: Duration::from_millis(100) });
}

#[test]
fn odd_and_slow_rates_lose_nothing_to_rounding() {
    // Aim: 7 a second are 7 a second however often it is asked, and one a year comes back although it is asked every millisecond.
    let (odd, mut meter) = (rate(7, 1000, 7), Meter::default());
    through(&odd, &mut meter, 0, 100);
    let let_through: usize = (1..=100_000).map(|millis| through(&odd, &mut meter, millis, 2)).sum();
    assert_eq!(let_through, 700);
    let year = 365 * 24 * 3600 * 1000;
    let (slow, mut meter) = (rate(1, year, 1), Meter::default());
    assert_eq!(through(&slow, &mut meter, 0, 2), 1);
    let early: usize = (1..10_000).map(|millis| through(&slow, &mut meter, millis, 1)).sum();
    let late: usize = (year - 10_000..=year).map(|millis| through(&slow, &mut meter, millis, 1)).sum();
    assert_eq!((early, late), (0, 1));
}

#[test]
fn a_cost_takes_all_of_it_or_nothing() {
    // Aim: what is too dear now takes nothing and is told when to come back; what is dearer than the whole never gets through.
    let (numbers, mut meter) = (rate(10, 1000, 10), Meter::default());
    assert_eq!(numbers.take(&mut meter, 7, now(0)).map(|left| left.remaining), Ok(3));
    let refused = numbers.take(&mut meter, 4, now(0)).unwrap_err();
    assert_eq!((refused.remaining, refused.retry), (3, Duration::from_millis(100)));
    assert!(numbers.take(&mut meter, 4, now(100)).is_ok());
    assert!(numbers.take(&mut meter, 11, now(60_000)).is_err());
    assert_eq!(through(&numbers, &mut meter, 60_000, 100), 10);
    numbers.give_back(&mut meter, 3, now(60_000));
    assert_eq!(through(&numbers, &mut meter, 60_000, 100), 3);
}

#[test]
fn an_edit_gives_nobody_anything_back_and_takes_nothing_away() {
    // Aim: 6 of 10 that were used are 6 of 100 and all of 5; a rate becomes another's without a new start.
    let mut meter = Meter::default();
    assert_eq!(through(&rate(10, 1000, 10), &mut meter, 0, 6), 6);
    let (mut wider, mut narrower) = (meter, meter);
    assert_eq!(through(&rate(100, 1000, 100), &mut wider, 0, 1000), 94);
    assert_eq!(through(&rate(5, 1000, 5), &mut narrower, 0, 1000), 0);
    assert_eq!(through(&rate(5, 1000, 5), &mut narrower, 200, 1000), 1, "it is no emptier than empty");
}

#[test]
fn a_clock_that_jumps_gives_nothing_twice() {
    // Aim: a bucket waits where time seems to run backwards; a quota whose wall clock is set back goes on with what was used.
    let (numbers, mut meter) = (rate(10, 1000, 10), Meter::default());
    assert_eq!(through(&numbers, &mut meter, 5000, 99), 10);
    assert_eq!(through(&numbers, &mut meter, 1000, 99), 0);
    assert_eq!(through(&numbers, &mut meter, 5100, 99), 1);
    let (daily, mut meter) = (quota(5, Every::Day, "UTC"), Meter::default());
    let day = 24 * 3600 * 1000;
    assert_eq!(through(&daily, &mut meter, 3 * day, 99), 5);
    assert_eq!(through(&daily, &mut meter, 0, 99), 0, "set back three days: nothing is given again");
    assert_eq!(through(&daily, &mut meter, day, 99), 5, "and the next day begins as ever");
}

#[test]
fn a_share_is_a_part_and_never_nothing() {
    // Aim: what a replica lets through on its own, of three.
    let cases = [((10, 1000, 10), 3, 3), ((2, 1000, 2), 3, 1), ((600, 60_000, 600), 1, 600), ((600, 60_000, 600), 0, 600)];
    for ((amount, per, burst), of, at_once) in cases {
        let (share, mut meter) = (rate(amount, per, burst).share(of), Meter::default());
        assert_eq!(through(&share, &mut meter, 0, 10_000), at_once);
    }
    let (share, mut meter) = (rate(2, 1000, 2).share(3), Meter::default());
    assert_eq!((0..30_000).map(|millis| through(&share, &mut meter, millis, 1)).sum::<usize>(), 20, "three of them: two a second");
    assert_eq!(quota(10, Every::Month, "UTC").share(4).whole(), 2);
}

#[test]
fn numbers_have_their_bounds() {
    // Aim: zero and too much are refused at the door.
    let second = Duration::from_secs(1);
    for (amount, per, burst) in
        [(0, second, 1), (1, Duration::ZERO, 1), (1, second, 0), (AMOUNT_MAX + 1, second, 1), (1, second, AMOUNT_MAX + 1)]
    {
        assert!(Rate::new(amount, per, burst).is_none(), "{amount} {per:?} {burst}");
    }
    assert!(Rate::new(AMOUNT_MAX, PERIOD_MAX, AMOUNT_MAX).is_some());
    assert!(Rate::new(1, PERIOD_MAX + second, 1).is_none());
    assert!(Quota::new(0, Calendar::new(Every::Day, "UTC").unwrap()).is_none());
}

proptest! {
    /// Aim: in no span of time is more let through than the burst and the rate's share of the span, and never less than that as long as
    /// somebody asks.
    #[test]
    fn no_window_holds_more_than_burst_and_rate(
        amount in 1..1000_u64, per_millis in 1..100_000_u64, burst in 1..1000_u64,
        steps in prop::collection::vec((0..2000_u64, 1..50_u64, 1..6_u64), 1..200),
    ) {
        let (numbers, mut meter) = (rate(amount, per_millis, burst), Meter::default());
        let (mut at, mut taken) = (0, Vec::new());
        for (wait, asked, cost) in steps {
            at += wait;
            let count = (0..asked).filter(|_| numbers.take(&mut meter, cost, now(at)).is_ok()).count() as u64 * cost;
            let standing = numbers.look(&mut meter, cost, now(at));
            prop_assert_eq!(standing.retry.is_zero(), standing.remaining >= cost);
            taken.push((at, count));
        }
        for (first, (from, _)) in taken.iter().enumerate() {
            let mut sum = 0;
            for (to, count) in &taken[first..] {
                sum += count;
                let allowed = u128::from(burst) * u128::from(per_millis) + u128::from(to - from) * u128::from(amount);
                prop_assert!(u128::from(sum) * u128::from(per_millis) <= allowed, "{sum} from {from} to {to}");
            }
        }
    }

    /// Aim: who comes back when told to is let through, and a moment before is not.
    #[test]
    fn retry_is_exact(amount in 1..1000_u64, per_millis in 1..100_000_u64, burst in 1..1000_u64, cost in 1..1000_u64, at in 0..10_000_u64) {
        prop_assume!(cost <= burst);
        let (numbers, mut meter) = (rate(amount, per_millis, burst), Meter::default());
        let start = now(at);
        while numbers.take(&mut meter, cost, start).is_ok() {}
        let retry = numbers.look(&mut meter, cost, start).retry;
        let later = |nanos: u64| Now { moment: Moment::of_nanos(start.moment.nanos() + nanos), ..start };
        let nanos = u64::try_from(retry.as_nanos()).unwrap();
        prop_assert!(numbers.take(&mut meter.clone(), cost, later(nanos - 1)).is_err());
        prop_assert!(numbers.take(&mut meter, cost, later(nanos)).is_ok());
    }
}
