//! The cookies of a login: one that binds a browser to the logins that it began, and a session's, cut into as many as it needs.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// Most cookies of one session.
pub const SESSION_COOKIES_MAX: usize = 4;
/// Bytes of one of them: 3.8 KiB, since browsers take 4,096 with its name and attributes.
pub const COOKIE_BYTES_MAX: usize = 3_891;
/// What the names of all cookies of logins begin with, behind their prefix.
const STEM: &str = "mw-login-";
/// Only of the host that set it, by TLS (RFC 6265bis, section 4.1.3).
const OF_HOST: &str = "__Host-";
/// Set by TLS.
const OF_DOMAIN: &str = "__Secure-";
/// Logins of which one browser has come back without a session since.
pub const LOGINS_IN_VAIN_MAX: u8 = 3;
/// Seconds that a browser keeps what binds it: a login may take so long, and further ones begin from it.
const BOUND_SECS: u64 = 24 * 3600;

/// Whose requests bring a cookie along that other sites have caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Links.
    Lax,
    /// None.
    Strict,
    /// All.
    None,
}

impl SameSite {
    const fn text(self) -> &'static str {
        match self {
            Self::Lax => "Lax",
            Self::Strict => "Strict",
            Self::None => "None",
        }
    }
}

/// The names and manner of one login's cookies.
#[derive(Debug)]
pub(super) struct LoginCookies {
    session: String,
    binding: String,
    domain: String,
    pub(super) same_site: SameSite,
}

/// What binds a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BrowserBinding {
    /// Drawn.
    pub(super) secret: String,
    /// Logins since a session was shown.
    pub(super) in_vain: u8,
}

impl LoginCookies {
    /// `tag`: what tells logins apart.
    pub(super) fn new(tag: &str, domain: &str, same_site: SameSite) -> Self {
        let prefix = if domain.is_empty() { OF_HOST } else { OF_DOMAIN };
        Self { session: format!("{prefix}{STEM}{tag}-"), binding: format!("{OF_HOST}{STEM}{tag}-b"), domain: domain.to_owned(), same_site }
    }

    /// The session that a request shows, sealed. `None`: there is none, or a part is missing.
    pub(super) fn session(&self, headers: &HeaderMap) -> Option<String> {
        let mut parts: [Option<&str>; SESSION_COOKIES_MAX] = Default::default();
        for (name, value) in pairs(headers) {
            let place = name.strip_prefix(self.session.as_str()).and_then(|place| place.parse::<usize>().ok());
            if let Some(slot) = place.and_then(|place| parts.get_mut(place)) {
                slot.get_or_insert(value);
            }
        }
        let (cookies, first) = parts[0]?.split_once('.')?;
        let cookies: usize = cookies.parse().ok().filter(|count| (1..=SESSION_COOKIES_MAX).contains(count))?;
        let rest: Option<Vec<&str>> = parts[1..cookies].iter().copied().collect();
        Some(std::iter::once(first).chain(rest?).collect())
    }

    /// Cookies of a session that a request brings along, whether or not they make a whole one.
    pub(super) fn there(&self, headers: &HeaderMap) -> Vec<usize> {
        let places = pairs(headers).filter_map(|(name, _)| name.strip_prefix(self.session.as_str())?.parse().ok());
        let mut places: Vec<usize> = places.filter(|place| *place < SESSION_COOKIES_MAX).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Cookies that keep a session for so long, and let go what `there` is beside them. `None`: it is larger than cookies may be.
    pub(super) fn keep(&self, sealed: &str, life_secs: u64, there: &[usize]) -> Option<Vec<HeaderValue>> {
        // The first one says how many there are.
        let count = (sealed.len() + 2).div_ceil(COOKIE_BYTES_MAX);
        if count > SESSION_COOKIES_MAX {
            return None;
        }
        let whole = format!("{count}.{sealed}");
        let cut = whole.as_bytes().chunks(COOKIE_BYTES_MAX).enumerate();
        let kept = cut.map(|(place, part)| self.cookie(&format!("{}{place}", self.session), &String::from_utf8_lossy(part), life_secs));
        let gone = there.iter().filter(|place| **place >= count).map(|place| self.cookie(&format!("{}{place}", self.session), "", 0));
        kept.chain(gone).collect()
    }

    /// Cookies that let a session go.
    pub(super) fn forget(&self, there: &[usize]) -> Vec<HeaderValue> {
        there.iter().filter_map(|place| self.cookie(&format!("{}{place}", self.session), "", 0)).collect()
    }

    /// What binds the browser.
    pub(super) fn binding(&self, headers: &HeaderMap) -> Option<BrowserBinding> {
        let (_, value) = pairs(headers).find(|(name, _)| *name == self.binding)?;
        let (secret, in_vain) = value.split_once('.')?;
        let good = (20..=64).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        Some(BrowserBinding { secret: secret.to_owned(), in_vain: in_vain.parse().ok()? }).filter(|_| good)
    }

    /// A cookie that binds it. A provider sends it back from another site, by a link, so it is never stricter than that.
    pub(super) fn bind(&self, BrowserBinding { secret, in_vain }: &BrowserBinding) -> Option<HeaderValue> {
        let text = format!("{}={secret}.{in_vain}; Path=/; Max-Age={BOUND_SECS}; Secure; HttpOnly; SameSite=Lax", self.binding);
        sensitive(&text)
    }

    fn cookie(&self, name: &str, value: &str, life_secs: u64) -> Option<HeaderValue> {
        let domain = if self.domain.is_empty() { String::new() } else { format!("; Domain={}", self.domain) };
        let same_site = self.same_site.text();
        sensitive(&format!("{name}={value}; Path=/; Max-Age={life_secs}{domain}; Secure; HttpOnly; SameSite={same_site}"))
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether a cookie of that name is a login's, whichever.
pub(super) fn is_of_login(name: &str) -> bool {
    [OF_HOST, OF_DOMAIN].iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(STEM)))
}

/// Takes the cookies of all logins out of what is sent on.
pub fn strip_logins(headers: &mut HeaderMap) {
    let of_login = |pair: &[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        std::str::from_utf8(name).is_ok_and(is_of_login)
    };
    let pairs = |value: &HeaderValue| value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::to_vec).collect::<Vec<_>>();
    if !headers.get_all(COOKIE).iter().any(|value| value.as_bytes().split(|byte| *byte == b';').any(of_login)) {
        return;
    }
    let kept = |value: &HeaderValue| {
        let kept: Vec<Vec<u8>> = pairs(value).into_iter().filter(|pair| !of_login(pair)).collect();
        kept.join(&b';').trim_ascii().to_vec()
    };
    let values: Vec<Vec<u8>> = headers.get_all(COOKIE).iter().map(kept).collect();
    headers.remove(COOKIE);
    for value in values.into_iter().filter(|value| !value.is_empty()) {
        // Less of a value is a value.
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.append(COOKIE, value);
        }
    }
}

/// All cookies, name and value, of whichever header line. Another's that is no text says nothing of those beside it.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    all.filter_map(|pair| std::str::from_utf8(pair).ok()?.trim_ascii().split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(cookies: &[HeaderValue]) -> HeaderMap {
        let pair = |cookie: &HeaderValue| HeaderValue::from_str(cookie.to_str().unwrap().split(';').next().unwrap()).unwrap();
        cookies.iter().map(|cookie| (COOKIE, pair(cookie))).collect()
    }

    #[test]
    fn a_session_is_cut_and_joined() {
        // Aim: at every length around a bound it comes back as it was, in as few cookies as may be; one more byte than four take is too much;
        // a part that is missing, and a number that is none, is no session.
        let cookies = LoginCookies::new("ab", "", SameSite::Lax);
        for (length, count) in
            [(1, 1), (COOKIE_BYTES_MAX - 2, 1), (COOKIE_BYTES_MAX - 1, 2), (2 * COOKIE_BYTES_MAX - 2, 2), (4 * COOKIE_BYTES_MAX - 2, 4)]
        {
            let sealed = "x".repeat(length);
            let kept = cookies.keep(&sealed, 60, &[]).unwrap();
            assert_eq!(kept.len(), count, "{length}");
            assert!(kept.iter().all(|cookie| cookie.len() < 4_096 && cookie.is_sensitive()));
            let mut headers = shown(&kept);
            assert_eq!(cookies.session(&headers).unwrap(), sealed);
            assert_eq!(cookies.there(&headers), (0..count).collect::<Vec<_>>());
            headers = shown(&kept[..count - 1]);
            assert!(cookies.session(&headers).is_none(), "{length} cut");
        }
        assert!(cookies.keep(&"x".repeat(4 * COOKIE_BYTES_MAX - 1), 60, &[]).is_none());
        for broken in ["__Host-mw-login-ab-0=5.x", "__Host-mw-login-ab-0=0.x", "__Host-mw-login-ab-0=x", "__Host-mw-login-cd-0=1.x"] {
            assert!(cookies.session(&HeaderMap::from_iter([(COOKIE, HeaderValue::from_static(broken))])).is_none(), "{broken}");
        }
    }

    #[test]
    fn what_is_not_needed_any_more_goes() {
        // Aim: a shorter session lets go the cookies of a longer one; all go at the end; attributes are what protects them.
        let cookies = LoginCookies::new("ab", "", SameSite::Strict);
        let kept = cookies.keep("short", 60, &[0, 1, 3]).unwrap();
        let text: Vec<&str> = kept.iter().map(|cookie| cookie.to_str().unwrap()).collect();
        assert_eq!(
            text,
            [
                "__Host-mw-login-ab-0=1.short; Path=/; Max-Age=60; Secure; HttpOnly; SameSite=Strict",
                "__Host-mw-login-ab-1=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict",
                "__Host-mw-login-ab-3=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict",
            ]
        );
        let wide = LoginCookies::new("ab", "shop.example", SameSite::None);
        let gone = wide.forget(&[0]);
        assert_eq!(
            gone[0].to_str().unwrap(),
            "__Secure-mw-login-ab-0=; Path=/; Max-Age=0; Domain=shop.example; Secure; HttpOnly; SameSite=None"
        );
        let bound = wide.bind(&BrowserBinding { secret: "s".repeat(22), in_vain: 1 }).unwrap();
        assert!(bound.to_str().unwrap().starts_with("__Host-mw-login-ab-b=") && bound.to_str().unwrap().ends_with("SameSite=Lax"));
    }

    #[test]
    fn a_browser_is_bound_by_one_cookie() {
        // Aim: what was bound is found; what somebody made up of other letters, or without a number, is none.
        let cookies = LoginCookies::new("ab", "", SameSite::Lax);
        let binding = BrowserBinding { secret: "A-_9".repeat(6), in_vain: 2 };
        assert_eq!(cookies.binding(&shown(&[cookies.bind(&binding).unwrap()])), Some(binding));
        for value in ["short.0", "aaaaaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaa%.0", "aaaaaaaaaaaaaaaaaaaaaaaa.x"] {
            let text = format!("__Host-mw-login-ab-b={value}");
            assert_eq!(cookies.binding(&HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(&text).unwrap())])), None, "{value}");
        }
    }

    #[test]
    fn what_other_cookies_hold_logs_nobody_out() {
        // Aim: a cookie of another's that is not ASCII, or no text at all, stands in the same line, as browsers write them: the session and what binds
        // the browser are found beside it.
        let cookies = LoginCookies::new("ab", "", SameSite::Lax);
        let binding = BrowserBinding { secret: "A-_9".repeat(6), in_vain: 2 };
        for other in ["name=\u{e4}\u{f6}".as_bytes(), b"name=\xff\xfe"] {
            let own = format!("; __Host-mw-login-ab-0=1.x; __Host-mw-login-ab-b={}.2", binding.secret);
            let line = HeaderValue::from_bytes(&[other, own.as_bytes()].concat()).unwrap();
            let headers = HeaderMap::from_iter([(COOKIE, line)]);
            assert_eq!((cookies.session(&headers).as_deref(), cookies.binding(&headers)), (Some("x"), Some(binding.clone())));
        }
    }

    #[test]
    fn the_backend_sees_none_of_them() {
        // Aim: cookies of any login go, in whichever line they stand, and no other does.
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; __Host-mw-login-ab-0=1.x; b=2"));
        headers.append(COOKIE, HeaderValue::from_static("__Secure-mw-login-cd-1=y"));
        headers.append(COOKIE, HeaderValue::from_static("mw-login-c=3; __Host-mine=4"));
        strip_logins(&mut headers);
        let left: Vec<&str> = headers.get_all(COOKIE).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(left, ["a=1; b=2", "mw-login-c=3; __Host-mine=4"]);
        strip_logins(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().count(), 2);
    }
}
