//! Durations on the command line, in the form of Gateway API (GEP-2257): `1h30m`, `150ms`, `10s`.

use std::time::Duration;

/// Reads a duration: one to four numbers of up to five digits, each with `h`, `m`, `s` or `ms`.
///
/// # Errors
/// A sentence for clap that shows the right form.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write for example 30s, 1m30s or 150ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut terms = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        terms += 1;
        if terms > 4 || digits > 5 {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(wrong()),
        };
        rest = tail;
    }
    if terms == 0 { Err(wrong()) } else { Ok(total) }
}

/// The same, but not zero: where nothing could come of it.
///
/// # Errors
/// As [`parse`].
pub(crate) fn positive(text: &str) -> Result<Duration, String> {
    match parse(text) {
        Ok(Duration::ZERO) => Err(format!("`{text}` is no time at all; write for example 30s")),
        other => other,
    }
}

/// A duration as [`parse`] reads it, in the largest units: `1h30m`, `150ms`.
pub(crate) fn show(duration: Duration) -> String {
    let (seconds, ms) = (duration.as_secs(), duration.subsec_millis());
    let terms = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (u64::from(ms), "ms")];
    let text: String = terms.into_iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The same for a message to the control plane.
pub(crate) fn to_message(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what GEP-2257 allows is read, everything else is refused with an example.
    #[test]
    fn durations_are_read_or_refused() {
        for (text, ms) in [("150ms", 150), ("1m30s", 90_000), ("1h", 3_600_000), ("0s", 0), ("1s500ms", 1500)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
        assert!(positive("0s").is_err() && positive("1ms").is_ok());
        for text in ["", "5", "5d", "s", "-1s", "1.5s", "123456s", "1h1m1s1ms1ms", "10 s"] {
            assert!(parse(text).unwrap_err().contains("for example"), "{text}");
        }
    }

    proptest::proptest! {
        /// Aim: no text makes it panic, and what is read is shown so that it reads the same.
        #[test]
        fn any_text_is_survived(text in "\\PC{0,20}|([0-9]{1,6}(h|m|s|ms))(([0-9]{1,6})(h|m|s|ms)){0,4}") {
            if let Ok(duration) = parse(&text)
                && duration < Duration::from_secs(99_999 * 3600)
            {
                proptest::prop_assert_eq!(parse(&show(duration)), Ok(duration));
            }
        }
    }
}
