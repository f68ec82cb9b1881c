use super::*;

/// RFC 3339 in seconds since 1970.
fn at(text: &str) -> u64 {
    text.parse::<jiff::Timestamp>().unwrap().as_second() as u64
}

#[test]
fn windows_are_those_of_the_place() {
    // Aim: each period by its zone, weeks by their first day, days of 23 and 25 hours, and a zone with half hours.
    let cases = [
        (Every::Hour, "UTC", "2026-03-29T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"),
        (Every::Hour, "Asia/Kolkata", "2026-03-29T01:15:00Z", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"),
        (Every::Day, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        (Every::Day, "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        (Every::Week(1), "UTC", "2026-11-29T23:59:59Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
        (Every::Week(1), "UTC", "2026-11-30T00:00:00Z", "2026-11-30T00:00:00Z", "2026-12-07T00:00:00Z"),
        (Every::Week(7), "UTC", "2026-11-30T00:00:00Z", "2026-11-29T00:00:00Z", "2026-12-06T00:00:00Z"),
        (Every::Month, "Europe/Berlin", "2026-02-28T23:30:00Z", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"),
        (Every::Month, "UTC", "2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        (Every::Year, "America/New_York", "2027-01-01T04:59:59Z", "2026-01-01T05:00:00Z", "2027-01-01T05:00:00Z"),
    ];
    for (every, zone, time, begins, ends) in cases {
        let window = Calendar::new(every, zone).unwrap().window(at(time));
        assert_eq!(window, Window { begins: at(begins), ends: at(ends) }, "{every:?} {zone} {time}");
    }
}

#[test]
fn zones_that_do_not_exist_are_refused() {
    // Aim: names are those of the database, and nothing else is taken for one.
    for zone in ["", "Mars/Olympus", "Europe/Berlin\n", "../../etc/passwd", "+02:00"] {
        assert!(Calendar::new(Every::Day, zone).is_err(), "{zone}");
    }
    assert!(Calendar::new(Every::Week(0), "UTC").is_err());
    assert!(Calendar::new(Every::Week(8), "UTC").is_err());
}

#[test]
fn a_window_follows_another_without_a_gap() {
    // Aim: for ten years in a zone with changes of clocks, each window holds the time it was asked for and ends where the next begins.
    for every in [Every::Hour, Every::Day, Every::Week(3), Every::Month, Every::Year] {
        let calendar = Calendar::new(every, "Europe/Berlin").unwrap();
        let mut time = at("2026-01-01T00:00:00Z");
        for _ in 0..2000 {
            let window = calendar.window(time);
            assert!(window.holds(time) && window.holds(window.ends - 1), "{every:?} {time}");
            assert_eq!(calendar.window(window.ends).begins, window.ends);
            time = window.ends;
        }
    }
}

#[test]
fn a_quota_begins_anew_with_its_window() {
    // Aim: what was used counts to the window's last second, and the answer says when that is.
    let (monthly, mut meter) = (quota(3, Every::Month, "Europe/Berlin"), Meter::default());
    let now = |text: &str| Now { moment: Moment::default(), wall_secs: at(text) };
    for left in [2, 1, 0] {
        assert_eq!(monthly.take(&mut meter, 1, now("2026-11-30T22:00:00Z")).unwrap().remaining, left);
    }
    let refused = monthly.take(&mut meter, 1, now("2026-11-30T22:59:59Z")).unwrap_err();
    assert_eq!((refused.retry, refused.reset), (Duration::from_secs(1), Duration::from_secs(1)));
    assert_eq!(monthly.take(&mut meter, 1, now("2026-11-30T23:00:00Z")).unwrap().remaining, 2);
    assert_eq!((monthly.nominal(), rate(10, 1000, 25).nominal()), ((3, 30 * 24 * 3600), (25, 3)));
}
