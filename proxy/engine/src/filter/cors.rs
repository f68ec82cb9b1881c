//! Cross-origin requests (Gateway API, `HTTPCORSFilter`; Fetch, section 3.2): preflights are answered here and never sent on; answers say
//! to which origins they may be shown.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request};

use super::{Exchange, Verdict};
use crate::failure::LocalReply;
use crate::rejected::Wrong;

/// Most entries of one list.
pub const CORS_LIST_MAX: usize = 64;
/// Longest origin, in bytes: a scheme, a host name and a port.
const ORIGIN_BYTES_MAX: usize = 300;

/// What an upstream must not say beside us.
const OURS: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// Who may call across origins, and what they may see.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Vec<Origin>,
    methods: Listed,
    headers: Listed,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Any,
    /// Lower case.
    Exact(String),
    /// `scheme://*.suffix`: what stands before the star, and after it.
    Below(String, String),
}

impl Origin {
    fn compile(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new("", format!("`{}` is none of scheme://host[:port], scheme://*.suffix and *", text.escape_debug()));
        if text == "*" {
            return Ok(Self::Any);
        }
        let text = text.to_ascii_lowercase();
        let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
        let host_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        let (star, name) = host.strip_prefix("*.").map_or((false, host), |rest| (true, rest));
        let fits = !scheme.is_empty() && !name.is_empty() && text.len() <= ORIGIN_BYTES_MAX;
        if !fits || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) || !name.bytes().all(host_byte) {
            return Err(wrong());
        }
        Ok(if star { Self::Below(format!("{scheme}://"), format!(".{name}")) } else { Self::Exact(text) })
    }

    fn holds(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(text) => origin.eq_ignore_ascii_case(text.as_bytes()),
            Self::Below(before, after) => {
                let Some((start, rest)) = origin.split_at_checked(before.len()) else { return false };
                let Some((labels, end)) = rest.len().checked_sub(after.len()).and_then(|at| rest.split_at_checked(at)) else {
                    return false;
                };
                let label = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
                start.eq_ignore_ascii_case(before.as_bytes())
                    && end.eq_ignore_ascii_case(after.as_bytes())
                    && !labels.is_empty()
                    && labels.iter().all(label)
            }
        }
    }
}

/// Methods or headers that a preflight allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listed {
    /// The header is not sent.
    None,
    /// Whatever is asked for.
    Any,
    These(HeaderValue),
}

impl Listed {
    fn compile(list: &[String], field: &str) -> Result<Self, Wrong> {
        if list.iter().any(|text| text == "*") {
            return Ok(Self::Any);
        }
        Ok(joined(list, field)?.map_or(Self::None, Self::These))
    }

    /// With credentials `*` would be a name like any other (Fetch), so what was asked for is said back.
    fn said(&self, asked: Option<&HeaderValue>, credentials: bool) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Any if credentials => asked.cloned(),
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::These(list) => Some(list.clone()),
        }
    }
}

/// Names as one header value; all of them are tokens.
fn joined(list: &[String], field: &str) -> Result<Option<HeaderValue>, Wrong> {
    if list.len() > CORS_LIST_MAX {
        return Err(Wrong::new(field, format!("holds more than {CORS_LIST_MAX}")));
    }
    if let Some((index, odd)) =
        list.iter().enumerate().find(|(_, text)| text.as_str() != "*" && Method::from_bytes(text.as_bytes()).is_err())
    {
        return Err(Wrong::new(format!("{field}[{index}]"), format!("`{}` is not a name", odd.escape_debug())));
    }
    if list.is_empty() {
        return Ok(None);
    }
    HeaderValue::try_from(list.join(", ")).map(Some).map_err(|_| Wrong::new(field, "does not fit into a header"))
}

/// The method that a preflight asks for; `None`: it is no preflight.
pub(crate) fn preflight<'h>(method: &Method, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    if *method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    pub(crate) fn compile(raw: &proto::mesh::Cors) -> Result<Self, Wrong> {
        let proto::mesh::Cors { allow_origins, allow_methods, allow_headers, expose_headers, allow_credentials, max_age_secs } = raw;
        if allow_origins.is_empty() || allow_origins.len() > CORS_LIST_MAX {
            return Err(Wrong::new("allow_origins", format!("holds {} of 1 to {CORS_LIST_MAX} origins", allow_origins.len())));
        }
        let origin = |(index, text): (usize, &String)| Origin::compile(text).map_err(|w| w.within(format!("allow_origins[{index}]")));
        Ok(Self {
            origins: allow_origins.iter().enumerate().map(origin).collect::<Result<_, _>>()?,
            methods: Listed::compile(allow_methods, "allow_methods")?,
            headers: Listed::compile(allow_headers, "allow_headers")?,
            expose: joined(expose_headers, "expose_headers")?,
            credentials: *allow_credentials,
            max_age: HeaderValue::from(*max_age_secs),
        })
    }

    /// Answers a preflight; everything else goes on.
    pub fn on_request(&self, exchange: &Exchange<'_>) -> Verdict {
        let request = &*exchange.request;
        let Some(method) = preflight(&request.method, &request.headers) else { return Verdict::Go };
        Verdict::Answer(Box::new(self.answer(request, method)))
    }

    fn answer(&self, request: &request::Parts, method: &HeaderValue) -> LocalReply {
        let mut headers = Vec::new();
        if !self.alike() {
            headers.push((header::VARY, HeaderValue::from_static("Origin")));
        }
        if let Some(origin) = request.headers.get(header::ORIGIN).and_then(|origin| self.allowed(origin)) {
            headers.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin));
            if self.credentials {
                headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
            }
            let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let methods = self.methods.said(Some(method), self.credentials);
            let names = self.headers.said(asked, self.credentials);
            headers.extend(methods.map(|methods| (header::ACCESS_CONTROL_ALLOW_METHODS, methods)));
            headers.extend(names.map(|names| (header::ACCESS_CONTROL_ALLOW_HEADERS, names)));
            headers.push((header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone()));
            // Browsers read it in answers alone; Gateway API's conformance asks for it here, too.
            headers.extend(self.expose.clone().map(|expose| (header::ACCESS_CONTROL_EXPOSE_HEADERS, expose)));
        }
        LocalReply { status: StatusCode::NO_CONTENT, reason: None, headers, body: bytes::Bytes::new(), grpc_status: None }
    }

    /// Says who may see an upstream's answer, in place of what the upstream says.
    pub fn on_response(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in &OURS {
            headers.remove(name);
        }
        if !self.alike() {
            vary(headers);
        }
        let Some(allowed) = origin.and_then(|origin| self.allowed(origin)) else { return };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    /// Whether every origin is told the same.
    fn alike(&self) -> bool {
        self.anyone() && !self.credentials
    }

    fn anyone(&self) -> bool {
        self.origins.contains(&Origin::Any)
    }

    /// What an allowed origin is told. With credentials never `*`.
    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.alike() {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|allowed| allowed.holds(origin.as_bytes())).then(|| origin.clone())
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let text = |origin: &Origin| match origin {
            Origin::Any => "*".to_owned(),
            Origin::Exact(text) => text.clone(),
            Origin::Below(before, after) => format!("{before}*{after}"),
        };
        let origins: Vec<String> = self.origins.iter().map(text).collect();
        let credentials = if self.credentials { ", with credentials" } else { "" };
        format!("answers preflights; lets {} in{credentials}", origins.join(", "))
    }
}

/// Caches must not give one origin's answer to another.
fn vary(headers: &mut HeaderMap) {
    let told = |value: &HeaderValue| {
        let names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        names.into_iter().any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"))
    };
    if !headers.get_all(header::VARY).iter().any(told) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::filter::tests::exchange;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn raw(origins: &[&str], methods: &[&str], headers: &[&str], allow_credentials: bool) -> proto::mesh::Cors {
        proto::mesh::Cors {
            allow_origins: strings(origins),
            allow_methods: strings(methods),
            allow_headers: strings(headers),
            expose_headers: strings(&["x-one", "x-two"]),
            allow_credentials,
            max_age_secs: 5,
        }
    }

    fn cors(origins: &[&str], methods: &[&str], headers: &[&str], credentials: bool) -> Cors {
        Cors::compile(&raw(origins, methods, headers, credentials)).unwrap()
    }

    /// The headers of a preflight's answer, sorted; `None`: it went on.
    fn asked(cors: &Cors, method: &str, headers: &[(&str, &str)]) -> Option<Vec<String>> {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match cors.on_request(&exchange(&mut request.body(()).unwrap().into_parts().0)) {
            Verdict::Answer(reply) => {
                assert_eq!((reply.status, reply.reason), (StatusCode::NO_CONTENT, None));
                let mut told: Vec<String> =
                    reply.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
                told.sort();
                Some(told)
            }
            Verdict::Go => None,
            Verdict::Reset => unreachable!(),
        }
    }

    const ASK: [(&str, &str); 3] =
        [("origin", "https://a.example"), ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-a, x-b")];

    #[test]
    fn preflights_are_answered_and_nothing_else() {
        // Aim: allowed origins are told everything, others nothing; only a whole preflight is one.
        let plain = cors(&["https://a.example"], &["GET", "PUT"], &["x-a"], false);
        let told = [
            "access-control-allow-headers: x-a",
            "access-control-allow-methods: GET, PUT",
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: x-one, x-two",
            "access-control-max-age: 5",
            "vary: Origin",
        ];
        assert_eq!(asked(&plain, "OPTIONS", &ASK).unwrap(), told);
        let other = [("origin", "https://b.example"), ASK[1], ASK[2]];
        assert_eq!(asked(&plain, "OPTIONS", &other).unwrap(), ["vary: Origin"]);
        assert_eq!(asked(&plain, "GET", &ASK), None);
        assert_eq!(asked(&plain, "OPTIONS", &ASK[..1]), None);
        assert_eq!(asked(&plain, "OPTIONS", &ASK[1..]), None);
    }

    #[test]
    fn stars_are_stars_only_without_credentials() {
        // Aim: with credentials origin, method and headers are said back, never `*`; without, `*` is for everyone alike.
        let open = cors(&["*"], &["*"], &["*"], false);
        let told = ["access-control-allow-headers: *", "access-control-allow-methods: *", "access-control-allow-origin: *"];
        assert_eq!(asked(&open, "OPTIONS", &ASK).unwrap()[..3], told);
        let trusting = cors(&["*"], &["*"], &["*"], true);
        let told = [
            "access-control-allow-credentials: true",
            "access-control-allow-headers: x-a, x-b",
            "access-control-allow-methods: PUT",
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: x-one, x-two",
            "access-control-max-age: 5",
            "vary: Origin",
        ];
        assert_eq!(asked(&trusting, "OPTIONS", &ASK).unwrap(), told);
        let bare = cors(&["*"], &[], &[], false);
        let told = ["access-control-allow-origin: *", "access-control-expose-headers: x-one, x-two", "access-control-max-age: 5"];
        assert_eq!(asked(&bare, "OPTIONS", &ASK).unwrap(), told);
    }

    #[test]
    fn origins_are_compared_whole() {
        // Aim: scheme, host and port; a star stands for one label or more, and for nothing else.
        for (allowed, origin, holds) in [
            ("https://a.example", "https://a.example", true),
            ("https://A.example", "https://a.EXAMPLE", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example:8443", "https://a.example:8443", true),
            ("https://*.bar.com", "https://www.bar.com", true),
            ("https://*.bar.com", "https://xpto.www.bar.com", true),
            ("https://*.bar.com", "https://bar.com", false),
            ("https://*.bar.com", "https://.bar.com", false),
            ("https://*.bar.com", "https://foobar.com", false),
            ("https://*.bar.com", "http://www.bar.com", false),
            ("https://*.bar.com", "https://evil.com/.bar.com", false),
            ("https://*.bar.com", "https://www.bar.com:81", false),
            ("https://*.bar.com:81", "https://www.bar.com:81", true),
            ("*", "null", true),
            ("https://a.example", "null", false),
            ("https://a.example", "", false),
        ] {
            assert_eq!(Origin::compile(allowed).unwrap().holds(origin.as_bytes()), holds, "{allowed} {origin}");
        }
    }

    #[test]
    fn answers_say_who_may_see_them() {
        // Aim: what the upstream says of itself is taken off; an origin that is not allowed sees no such headers; caches tell them apart.
        let told = |cors: &Cors, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert("access-control-allow-origin", HeaderValue::from_static("*"));
            headers.insert("access-control-allow-credentials", HeaderValue::from_static("true"));
            headers.insert("vary", HeaderValue::from_static("Accept"));
            cors.on_response(origin.map(HeaderValue::from_static).as_ref(), &mut headers);
            let mut told: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            told.sort();
            told
        };
        let some = cors(&["https://a.example"], &[], &[], true);
        let wanted = [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: x-one, x-two",
            "vary: Accept",
            "vary: Origin",
        ];
        assert_eq!(told(&some, Some("https://a.example")), wanted);
        for stranger in [Some("https://b.example"), None] {
            assert_eq!(told(&some, stranger), wanted[3..], "{stranger:?}");
        }
        let open = cors(&["*"], &[], &[], false);
        let everyone = ["access-control-allow-origin: *", "access-control-expose-headers: x-one, x-two", "vary: Accept"];
        assert_eq!(told(&open, Some("https://b.example")), everyone);
        let mut headers = HeaderMap::from_iter([(header::VARY, HeaderValue::from_static("accept, ORIGIN"))]);
        vary(&mut headers);
        assert_eq!(headers.get_all("vary").iter().count(), 1);
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        // Aim: by name, and within bounds.
        let many: Vec<String> = (0..=CORS_LIST_MAX).map(|n| format!("https://a{n}.example")).collect();
        for (bad, field) in [
            (raw(&[], &[], &[], false), "allow_origins"),
            (raw(&["a.example"], &[], &[], false), "allow_origins[0]"),
            (raw(&["https://"], &[], &[], false), "allow_origins[0]"),
            (raw(&["https://a.*.example"], &[], &[], false), "allow_origins[0]"),
            (raw(&["https://a.example/path"], &[], &[], false), "allow_origins[0]"),
            (proto::mesh::Cors { allow_origins: many.clone(), ..raw(&[], &[], &[], false) }, "allow_origins"),
            (raw(&["*"], &["G ET"], &[], false), "allow_methods[0]"),
            (raw(&["*"], &[], &["x-a", "x b"], false), "allow_headers[1]"),
            (proto::mesh::Cors { expose_headers: vec!["a".into(); CORS_LIST_MAX + 1], ..raw(&["*"], &[], &[], false) }, "expose_headers"),
        ] {
            assert!(Cors::compile(&bad).unwrap_err().of("T", "n").to_string().contains(field), "{bad:?}");
        }
    }
}
