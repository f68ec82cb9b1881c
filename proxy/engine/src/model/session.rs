//! Sessions: a client keeps its endpoint by a token that it was given with an answer.
//!
//! A token is a code of the endpoint that only who has the mesh's session key can make, and it leads only to endpoints that the mesh
//! handed out: nobody can name an address. Where sessions end by time, the times travel beside the token, under a code of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Cluster, Endpoint, Forward, Target, cookie};
use crate::raw::duration;
use crate::rejected::Wrong;

/// Shortest time after which a session ends: its clock counts whole seconds.
pub const SESSION_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Bytes of a token.
const TOKEN_BYTES: usize = 16;
/// Bytes of the code over token and times.
const CODE_BYTES: usize = 12;
/// Token, two times and code.
const TIMED_BYTES: usize = TOKEN_BYTES + 8 + CODE_BYTES;

/// Names one endpoint of one cluster without telling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionToken([u8; TOKEN_BYTES]);

/// The token of an endpoint. The same in every proxy that has the same key, so that a session outlives its proxy.
pub fn session_token(key: &[u8], cluster: &str, address: SocketAddr) -> SessionToken {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(b"endpoint\0");
    context.update(cluster.as_bytes());
    context.update(&[0]);
    match address {
        SocketAddr::V4(address) => context.update(&address.ip().octets()),
        SocketAddr::V6(address) => context.update(&address.ip().octets()),
    }
    context.update(&address.port().to_be_bytes());
    SessionToken(first(context.sign().as_ref()))
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut cut = [0; N];
    cut.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    cut
}

/// Where a session leads.
#[derive(Clone, Debug)]
pub struct SessionHome {
    /// The backend, by its place in the rule.
    pub place: usize,
    /// Its cluster.
    pub cluster: Arc<Cluster>,
    /// The endpoint that answered before.
    pub endpoint: Arc<Endpoint>,
}

impl Forward {
    /// Where a session leads, among all backends of the rule, those without weight too: a weight decides about new clients. `None`: to nobody
    /// who may be picked still.
    pub fn home(&self, token: &SessionToken) -> Option<SessionHome> {
        self.backends.iter().enumerate().find_map(|(place, backend)| {
            let Target::Cluster(cluster) = &backend.target else { return None };
            let endpoint = Arc::clone(cluster.endpoints.load().of_session(token)?);
            Some(SessionHome { place, cluster: Arc::clone(cluster), endpoint })
        })
    }
}

/// How sessions of a rule are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Name of the header; for a cookie that of `set-cookie`.
    carrier: HeaderName,
    /// Name and path of the cookie, if it is one.
    cookie: Option<(String, String)>,
    /// Ends a session that long after it began.
    absolute_timeout: Option<Duration>,
    /// Ends a session that long after its last use.
    idle_timeout: Option<Duration>,
    /// The cookie outlives the browser.
    permanent: bool,
}

/// What reading and making session values takes beside the configuration.
#[derive(Clone, Copy, Debug)]
pub struct SessionTerms<'k> {
    /// [`super::Settings::session_key`].
    pub key: &'k [u8],
    /// Seconds since 1970 by the wall clock: sessions outlive processes.
    pub wall_secs: u32,
    /// The client came by TLS.
    pub secure: bool,
}

/// A session that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKept {
    /// Its endpoint's.
    pub token: SessionToken,
    /// When it began; 0 where that does not count.
    began_secs: u32,
    /// When it was last told to the client.
    used_secs: u32,
}

impl Session {
    pub(crate) fn compile(raw: &proto::mesh::Session) -> Result<Self, Wrong> {
        let proto::mesh::Session { name, header, absolute_timeout, idle_timeout, permanent, path } = raw;
        let times = |raw: &Option<prost_types::Duration>, field: &str| match duration(raw.as_ref(), field)? {
            Some(time) if time < SESSION_TIMEOUT_MIN => Err(Wrong::new(field, "is shorter than a second")),
            time => Ok(time),
        };
        let absolute_timeout = times(absolute_timeout, "absolute_timeout")?;
        let idle_timeout = times(idle_timeout, "idle_timeout")?;
        if *permanent && (*header || absolute_timeout.is_none()) {
            return Err(Wrong::new("permanent", "is for a cookie with an absolute_timeout"));
        }
        let (carrier, cookie) = if *header {
            if !path.is_empty() {
                return Err(Wrong::new("path", "is for a cookie"));
            }
            let wrong = || Wrong::new("name", format!("`{}` is not a header name", name.escape_debug()));
            (name.parse::<HeaderName>().map_err(|_| wrong())?, None)
        } else {
            (header::SET_COOKIE, Some((cookie::name(name)?, cookie::path(path)?)))
        };
        Ok(Self { carrier, cookie, absolute_timeout, idle_timeout, permanent: *permanent })
    }

    const fn timed(&self) -> bool {
        self.absolute_timeout.is_some() || self.idle_timeout.is_some()
    }

    /// The session that a request says it belongs to, unless it is over or forged. Allocates nothing.
    pub fn wanted(&self, headers: &HeaderMap, terms: SessionTerms<'_>) -> Option<SessionKept> {
        let text = match &self.cookie {
            Some((name, _)) => cookie::find(headers, name)?,
            None => headers.get(&self.carrier)?.as_bytes(),
        };
        let mut bytes = [0; TIMED_BYTES + 12];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let bytes = bytes.get(..length)?;
        if !self.timed() {
            let token = SessionToken(bytes.try_into().ok()?);
            return Some(SessionKept { token, began_secs: 0, used_secs: 0 });
        }
        let (token, rest) = bytes.split_first_chunk::<TOKEN_BYTES>()?;
        let (began, rest) = rest.split_first_chunk::<4>()?;
        let (used, code) = rest.split_first_chunk::<4>()?;
        let kept =
            SessionKept { token: SessionToken(*token), began_secs: u32::from_be_bytes(*began), used_secs: u32::from_be_bytes(*used) };
        let genuine = aws_lc_rs::constant_time::verify_slices_are_equal(code, &self.code(kept, terms.key)).is_ok();
        (genuine && self.lives(kept, terms.wall_secs)).then_some(kept)
    }

    fn lives(&self, kept: SessionKept, now_secs: u32) -> bool {
        let within = |timeout: Option<Duration>, since: u32| {
            timeout.is_none_or(|timeout| u64::from(now_secs.saturating_sub(since)) < timeout.as_secs())
        };
        within(self.absolute_timeout, kept.began_secs) && within(self.idle_timeout, kept.used_secs)
    }

    /// Vouches for the times of a session, in this carrier only.
    fn code(&self, kept: SessionKept, key: &[u8]) -> [u8; CODE_BYTES] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
        context.update(b"times\0");
        context.update(self.name().as_bytes());
        context.update(&[0]);
        context.update(&kept.token.0);
        context.update(&kept.began_secs.to_be_bytes());
        context.update(&kept.used_secs.to_be_bytes());
        first(context.sign().as_ref())
    }

    /// Name of the cookie or header.
    pub fn name(&self) -> &str {
        self.cookie.as_ref().map_or(self.carrier.as_str(), |(name, _)| name)
    }

    /// The header that tells the client its session with the endpoint that answered; `None`: it knows already. `kept` is what
    /// [`Session::wanted`] found in the request.
    pub fn answer(&self, token: SessionToken, kept: Option<SessionKept>, terms: SessionTerms<'_>) -> Option<(HeaderName, HeaderValue)> {
        let same = kept.filter(|kept| kept.token == token);
        if same.is_some_and(|kept| self.idle_timeout.is_none() || kept.used_secs == terms.wall_secs) {
            return None;
        }
        let now = terms.wall_secs;
        let told = SessionKept { token, began_secs: same.map_or(now, |kept| kept.began_secs), used_secs: now };
        let text = if self.timed() {
            let mut bytes = [0; TIMED_BYTES];
            let (began, used) = (told.began_secs.to_be_bytes(), told.used_secs.to_be_bytes());
            let parts = told.token.0.into_iter().chain(began).chain(used).chain(self.code(told, terms.key));
            bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
            URL_SAFE_NO_PAD.encode(bytes)
        } else {
            URL_SAFE_NO_PAD.encode(told.token.0)
        };
        let text = match &self.cookie {
            None => text,
            Some((name, path)) => {
                let gone = Duration::from_secs(u64::from(now.saturating_sub(told.began_secs)));
                let life = self.absolute_timeout.filter(|_| self.permanent).map(|whole| whole.saturating_sub(gone));
                cookie::written((name, &text), path, life, terms.secure)
            }
        };
        Some((self.carrier.clone(), HeaderValue::try_from(text).ok()?))
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let kind = if self.cookie.is_some() { "cookie" } else { "header" };
        let time = |word: &str, time: Option<Duration>| time.map(|time| format!(", {word} {time:?}")).unwrap_or_default();
        format!("{kind} {}{}{}", self.name(), time("ends after", self.absolute_timeout), time("ends when unused for", self.idle_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"0123456789abcdef";

    fn at(wall_secs: u32) -> SessionTerms<'static> {
        SessionTerms { key: KEY, wall_secs, secure: false }
    }

    fn raw(header: bool, absolute: Option<i64>, idle: Option<i64>) -> proto::mesh::Session {
        let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
        let (absolute_timeout, idle_timeout) = (absolute.map(seconds), idle.map(seconds));
        proto::mesh::Session { name: "mw-session".into(), header, absolute_timeout, idle_timeout, ..Default::default() }
    }

    /// As a client sends back what it was told.
    fn returned(told: &(HeaderName, HeaderValue)) -> HeaderMap {
        let text = told.1.to_str().unwrap().split(';').next().unwrap();
        let (name, text) = if told.0 == header::SET_COOKIE { ("cookie", format!("a=b; {text}")) } else { ("mw-session", text.to_owned()) };
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::try_from(text).unwrap())])
    }

    fn token() -> SessionToken {
        session_token(KEY, "shop/catalog:80", "10.0.0.1:80".parse().unwrap())
    }

    #[test]
    fn tokens_name_one_endpoint_under_one_key() {
        // Aim: cluster, address, port and key all count; equal input gives equal tokens.
        let of = |key: &[u8], cluster: &str, address: &str| session_token(key, cluster, address.parse().unwrap());
        let mut all = vec![token(), of(b"other", "shop/catalog:80", "10.0.0.1:80")];
        all.extend([of(KEY, "shop/catalog:81", "10.0.0.1:80"), of(KEY, "shop/catalog:80", "10.0.0.2:80")]);
        all.extend([of(KEY, "shop/catalog:80", "10.0.0.1:81"), of(KEY, "shop/catalog:80", "[::1]:80")]);
        for (place, one) in all.iter().enumerate() {
            assert!(!all[..place].contains(one));
        }
        assert_eq!(token(), of(KEY, "shop/catalog:80", "10.0.0.1:80"));
    }

    #[test]
    fn a_session_is_told_once_and_found_again() {
        // Aim: by cookie and by header, with and without times; who has it is not told again, who moves is.
        for (header, absolute, idle) in [(false, None, None), (true, None, None), (false, Some(60), None), (true, Some(60), Some(10))] {
            let session = Session::compile(&raw(header, absolute, idle)).unwrap();
            assert_eq!(session.wanted(&HeaderMap::new(), at(100)), None);
            let told = session.answer(token(), None, at(100)).unwrap();
            let kept = session.wanted(&returned(&told), at(100)).unwrap();
            assert_eq!(kept.token, token());
            assert_eq!(session.answer(token(), Some(kept), at(100)), None);
            let other = session_token(KEY, "c", "10.0.0.2:80".parse().unwrap());
            assert!(session.answer(other, Some(kept), at(100)).is_some());
        }
    }

    #[test]
    fn sessions_end_by_both_clocks() {
        // Aim: the absolute end cannot be put off by use; the idle one is, by each use.
        let session = Session::compile(&raw(false, Some(60), Some(10))).unwrap();
        let mut headers = returned(&session.answer(token(), None, at(100)).unwrap());
        assert_eq!(session.wanted(&headers, at(110)), None, "unused for ten seconds");
        for now in (109..160).step_by(9) {
            let kept = session.wanted(&headers, at(now)).unwrap();
            headers = returned(&session.answer(token(), Some(kept), at(now)).unwrap());
        }
        assert!(session.wanted(&headers, at(159)).is_some());
        assert_eq!(session.wanted(&headers, at(160)), None, "sixty seconds after it began");
    }

    #[test]
    fn what_is_forged_is_not_believed() {
        // Aim: another key, changed bytes, another carrier's value, and rubbish of any length.
        let session = Session::compile(&raw(true, Some(60), None)).unwrap();
        let told = session.answer(token(), None, at(100)).unwrap();
        assert_eq!(session.wanted(&returned(&told), SessionTerms { key: b"other", ..at(100) }), None);
        let text = told.1.to_str().unwrap().to_owned();
        let other = Session::compile(&proto::mesh::Session { name: "other".into(), ..raw(true, Some(60), None) }).unwrap();
        let with =
            |name: &'static str, text: &str| HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::try_from(text).unwrap())]);
        assert_eq!(other.wanted(&with("other", &text), at(100)), None);
        for place in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            assert_eq!(session.wanted(&with("mw-session", std::str::from_utf8(&bytes).unwrap()), at(100)), None, "byte {place}");
            assert_eq!(session.wanted(&with("mw-session", &"A".repeat(place * 3)), at(100)), None);
        }
    }

    #[test]
    fn a_cookie_says_how_long_and_where() {
        // Aim: attributes of a permanent cookie, over TLS and not; and what makes no sense is refused.
        let raw = proto::mesh::Session { permanent: true, path: "/shop".into(), ..raw(false, Some(60), None) };
        let session = Session::compile(&raw).unwrap();
        let (name, value) = session.answer(token(), None, SessionTerms { secure: true, ..at(100) }).unwrap();
        assert_eq!(name, "set-cookie");
        assert!(value.to_str().unwrap().ends_with("; Path=/shop; Max-Age=60; HttpOnly; SameSite=Lax; Secure"));
        for bad in [
            proto::mesh::Session { absolute_timeout: None, ..raw.clone() },
            proto::mesh::Session { header: true, ..raw.clone() },
            proto::mesh::Session { header: true, permanent: false, ..raw.clone() },
            proto::mesh::Session { name: String::new(), ..raw.clone() },
            proto::mesh::Session { name: "a b".into(), ..raw.clone() },
            proto::mesh::Session { idle_timeout: Some(prost_types::Duration { seconds: 0, nanos: 5 }), ..raw.clone() },
        ] {
            assert!(Session::compile(&bad).is_err(), "{bad:?}");
        }
    }
}
