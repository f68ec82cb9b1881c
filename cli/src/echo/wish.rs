//! What a request wants its answer to be: `?status=503&delay=200ms&fail=10%&bytes=1024`.

use std::time::Duration;

use http::StatusCode;

use crate::duration;

/// Longest body that a request may ask for.
const BYTES_MAX: usize = 64 << 20;

/// The wish, read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Wish {
    /// Status of the answer.
    pub(super) status: Option<StatusCode>,
    /// Wait before the answer.
    pub(super) delay: Duration,
    /// Share of requests, 0 to 1, that get `status` (503 where none is wished); the others get 200.
    pub(super) fail: Option<f64>,
    /// So many bytes instead of JSON.
    pub(super) bytes: Option<usize>,
}

/// How this server answers requests that wish for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Habit {
    /// Wait before each answer.
    pub(crate) delay: Duration,
    /// Share of requests, 0 to 1, that are answered 503.
    pub(crate) fail: Option<f64>,
}

impl Wish {
    /// Reads a query; fields of other names are not ours.
    ///
    /// # Errors
    /// A field of ours has an impossible value; the sentence says which.
    pub(super) fn read(query: &str) -> Result<Self, String> {
        let mut wish = Self::default();
        for (name, value) in query.split('&').filter_map(|field| field.split_once('=')) {
            let wrong = |example: &str| format!("{name}={value} is not understood; write for example {name}={example}");
            match name {
                "status" => wish.status = Some(status(value).ok_or_else(|| wrong("503"))?),
                "delay" => wish.delay = duration::parse(value).map_err(|_| wrong("200ms"))?,
                "fail" => wish.fail = Some(share(value).ok_or_else(|| wrong("10%"))?),
                "bytes" => {
                    wish.bytes = Some(value.parse().ok().filter(|bytes| *bytes <= BYTES_MAX).ok_or_else(|| wrong("1024"))?);
                }
                _ => {}
            }
        }
        Ok(wish)
    }

    /// What it leaves open is as the server is used to.
    pub(super) fn or(self, habit: Habit) -> Self {
        let delay = if self.delay.is_zero() { habit.delay } else { self.delay };
        // Whoever wishes for a status is to have it.
        let fail = self.fail.or_else(|| habit.fail.filter(|_| self.status.is_none()));
        Self { delay, fail, ..self }
    }

    /// The status to answer with, given a draw from 0 to 1.
    pub(super) fn status(&self, draw: f64) -> StatusCode {
        match (self.fail, self.status) {
            (None, status) => status.unwrap_or(StatusCode::OK),
            (Some(share), status) if draw < share => status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            (Some(_), _) => StatusCode::OK,
        }
    }
}

fn status(text: &str) -> Option<StatusCode> {
    // 1xx are no final answers.
    StatusCode::from_bytes(text.as_bytes()).ok().filter(|status| (200..600).contains(&status.as_u16()))
}

/// Reads `--fail`.
///
/// # Errors
/// A sentence for clap that shows the right form.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    share(text).ok_or_else(|| "write a share of requests, for example 30%".to_owned())
}

/// `10`, `10%` or `10%25` (a percent sign, encoded) as 0.1.
fn share(text: &str) -> Option<f64> {
    let number = text.strip_suffix("%25").or_else(|| text.strip_suffix('%')).unwrap_or(text);
    number.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent)).map(|percent| percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: every wish of the contract is understood, and what is impossible is refused with an example.
    #[test]
    fn wishes_are_read() {
        let wish = Wish::read("status=503&delay=200ms&fail=10%&bytes=7&other=x").unwrap();
        assert_eq!(wish.status, Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(wish.delay, Duration::from_millis(200));
        assert_eq!(wish.fail, Some(0.1));
        assert_eq!(wish.bytes, Some(7));
        assert_eq!(Wish::read("fail=2.5%25").unwrap().fail, Some(0.025));
        assert_eq!(Wish::read("").unwrap(), Wish::default());
        for wrong in ["status=99", "status=100", "delay=5", "fail=101%", "fail=NaN", "bytes=99999999999"] {
            assert!(Wish::read(wrong).unwrap_err().contains("for example"), "{wrong}");
        }
    }

    /// Aim: `fail` hits its share only, with the status wished for.
    #[test]
    fn failing_hits_its_share() {
        let wish = Wish::read("fail=10%&status=500").unwrap();
        assert_eq!(wish.status(0.05), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(wish.status(0.5), StatusCode::OK);
        assert_eq!(Wish::read("fail=10").unwrap().status(0.0), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(Wish::default().status(0.0), StatusCode::OK);
    }

    /// Aim: a server that is slow and flaky by habit is so unless the request wishes for something else.
    #[test]
    fn wishes_go_before_habits() {
        let habit = Habit { delay: Duration::from_secs(1), fail: Some(0.5) };
        let of = |query: &str| Wish::read(query).unwrap().or(habit);
        assert_eq!(of(""), Wish { delay: habit.delay, fail: habit.fail, ..Wish::default() });
        assert_eq!(of("").status(0.4), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(of("delay=5ms").delay, Duration::from_millis(5));
        assert_eq!(of("fail=0").status(0.4), StatusCode::OK);
        assert_eq!(of("status=404").status(0.4), StatusCode::NOT_FOUND);
        assert_eq!(Wish::read("").unwrap().or(Habit::default()), Wish::default());
        assert!(percent("30%").is_ok() && percent("x").unwrap_err().contains("30%"));
    }

    proptest::proptest! {
        /// Aim: no query makes it panic.
        #[test]
        fn any_query_is_survived(query in "\\PC{0,60}|((status|delay|fail|bytes)=[-+0-9a-zA-Z.%]{0,12}&?){0,5}") {
            let _ = Wish::read(&query);
        }
    }
}
