//! Forms and queries (application/x-www-form-urlencoded), as far as a login reads and writes them.

use std::borrow::Cow;

/// As a form's value has it; a space is `%20`, which every reader takes.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    out
}

/// The one value of a name; `None`: it is absent, stands twice, or is no text.
pub(super) fn one<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| decoded(key).is_some_and(|key| key == name));
    let (_, value) = values.next()?;
    if values.next().is_some() { None } else { decoded(value) }
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let (bytes, mut out, mut place) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(byte) = bytes.get(place) {
        let digit = |place: usize| bytes.get(place).and_then(|byte| char::from(*byte).to_digit(16));
        match byte {
            b'%' => {
                out.push(u8::try_from(digit(place + 1)? * 16 + digit(place + 2)?).ok()?);
                place += 2;
            }
            b'+' => out.push(b' '),
            other => out.push(*other),
        }
        place += 1;
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_each_thing_once() {
        // Aim: values are read as they were written; a name that stands twice, and what is no text, says nothing.
        let query = "code=a%26b&state=x+y%2Bz&iss=https%3A%2F%2Fid&twice=1&twice=2&bad=%zz&cut=%4&c%6Fde2=1&bytes=%ff&bare";
        for (name, value) in [
            ("code", Some("a&b")),
            ("state", Some("x y+z")),
            ("iss", Some("https://id")),
            ("twice", None),
            ("bad", None),
            ("cut", None),
            ("code2", Some("1")),
            ("bytes", None),
            ("bare", Some("")),
            ("none", None),
        ] {
            assert_eq!(one(query, name).as_deref(), value, "{name}");
        }
        let text = "a b&c=\u{e4}%+/~";
        assert_eq!(one(&format!("x={}", encoded(text)), "x").as_deref(), Some(text));
    }
}
