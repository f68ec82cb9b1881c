//! What a log must not keep: credentials in queries, and names of users in hosts.

use std::borrow::Cow;

/// Parameters that hold secrets wherever they occur, in lower case: what OAuth 2.0, OpenID Connect and signed addresses of object stores put there,
/// and what people call a key.
const NAMES: [&str; 26] = [
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "assertion",
    "auth",
    "authorization",
    "awsaccesskeyid",
    "client_assertion",
    "client_secret",
    "code",
    "id_token",
    "id_token_hint",
    "key",
    "password",
    "passwd",
    "refresh_token",
    "secret",
    "session_token",
    "sig",
    "signature",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-goog-signature",
];
/// What stands in place of a value.
const REDACTED: &str = "***";

/// Whose values are not written, beside [`NAMES`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Secret<'a> {
    /// By name.
    pub(super) named: &'a [Box<str>],
    /// All of them.
    pub(super) all: bool,
}

impl Secret<'_> {
    /// A path, or a whole address, without values of secret parameters. Allocates only where there is one.
    pub(super) fn redact<'t>(&self, target: &'t str) -> Cow<'t, str> {
        let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
        if !query.split(['&', ';']).any(|pair| self.holds(pair)) {
            return Cow::Borrowed(target);
        }
        let mut out = String::with_capacity(target.len());
        out.push_str(path);
        out.push('?');
        for pair in query.split_inclusive(['&', ';']) {
            let (bare, end) = match pair.char_indices().next_back() {
                Some((at, '&' | ';')) => pair.split_at(at),
                _ => (pair, ""),
            };
            match bare.split_once('=').filter(|_| self.holds(bare)) {
                Some((name, _)) => out.extend([name, "=", REDACTED]),
                None => out.push_str(bare),
            }
            out.push_str(end);
        }
        Cow::Owned(out)
    }

    /// Whether a pair's value is secret. An empty one tells nothing.
    fn holds(&self, pair: &str) -> bool {
        let Some((name, _)) = pair.split_once('=').filter(|(_, value)| !value.is_empty()) else { return false };
        self.all || NAMES.iter().any(|known| is_called(name, known)) || self.named.iter().any(|known| is_called(name, known))
    }
}

/// Whether applications read that name as the known one, in whatever case: decoded, and without what frameworks append to it (`token[]`).
fn is_called(name: &str, known: &str) -> bool {
    let name = name.strip_suffix("[]").unwrap_or(name).as_bytes();
    let mut at = 0;
    let mut next = || {
        let (byte, width) = match name.get(at..)? {
            [b'%', high, low, ..] => (hexadecimal(*high)? << 4 | hexadecimal(*low)?, 3),
            [byte, ..] => (*byte, 1),
            [] => return None,
        };
        at += width;
        Some(byte)
    };
    known.bytes().all(|wanted| next().is_some_and(|byte| byte.eq_ignore_ascii_case(&wanted))) && next().is_none()
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A host without the name and password that an absolute address may have before it.
pub(super) fn without_user(host: &str) -> &str {
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: values of parameters that hold secrets are not written, however the name is spelt; everything else stays as it came.
    #[test]
    fn secrets_in_queries_are_not_written() {
        let named: Vec<Box<str>> = vec!["K2".into()];
        let secret = Secret { named: &named, all: false };
        for (target, wanted) in [
            ("/a", "/a"),
            ("/a?", "/a?"),
            ("/a?b=1&c", "/a?b=1&c"),
            ("/a?token=x", "/a?token=***"),
            ("/a?b=1&Access_Token=x&c=2", "/a?b=1&Access_Token=***&c=2"),
            ("/a?api%5fkey=x;k2=y", "/a?api%5fkey=***;k2=***"),
            ("/a?token[]=x&token=", "/a?token[]=***&token="),
            ("/a?tokens=x&mytoken=y", "/a?tokens=x&mytoken=y"),
            ("https://u.example/?code=a=b&state=s", "https://u.example/?code=***&state=s"),
            ("/a?b=c?token=x", "/a?b=c?token=x"),
        ] {
            assert_eq!(secret.redact(target), wanted, "{target}");
        }
        assert_eq!(Secret { all: true, ..Secret::default() }.redact("/a?b=1&c"), "/a?b=***&c");
        assert_eq!((without_user("a:b@c.example"), without_user("c.example:80")), ("c.example", "c.example:80"));
    }
}
