//! When an answer was made.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

/// `Date` of a worker's own answers (RFC 9110, section 6.6.1), written once a second.
#[derive(Debug, Default)]
pub struct WrittenDate(RefCell<Option<(u32, HeaderValue)>>);

impl WrittenDate {
    /// The value at that second since 1970; `None`: there is no text of it.
    pub fn at(&self, unix_secs: u32) -> Option<HeaderValue> {
        let mut written = self.0.borrow_mut();
        if written.as_ref().is_none_or(|(at, _)| *at != unix_secs) {
            let text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_secs.into()));
            *written = Some((unix_secs, HeaderValue::try_from(text).ok()?));
        }
        written.as_ref().map(|(_, date)| date.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_its_second() {
        // Aim: the form of RFC 9110, section 5.6.7; the same second is the same text, not another one like it; the next one is another.
        let written = WrittenDate::default();
        let first = written.at(784_111_777).unwrap();
        assert_eq!(first, "Sun, 06 Nov 1994 08:49:37 GMT");
        let again = written.at(784_111_777).unwrap();
        assert_eq!(first.as_bytes().as_ptr(), again.as_bytes().as_ptr());
        assert_eq!(written.at(784_111_778).unwrap(), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(written.at(u32::MAX).unwrap(), "Sun, 07 Feb 2106 06:28:15 GMT");
    }
}
