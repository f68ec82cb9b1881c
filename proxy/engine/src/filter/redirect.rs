//! Sends clients elsewhere (Gateway API, `RequestRedirect`).

use http::{HeaderValue, StatusCode, header};

use super::path::PathChange;
use super::rewrite::hostname;
use super::{Exchange, Verdict};
use crate::failure::{LocalReply, Reason};
use crate::matching::{RequestHead, without_port};
use crate::rejected::Wrong;

/// Answers with another place to ask.
#[derive(Clone, Debug)]
pub struct Redirect {
    scheme: Option<Scheme>,
    hostname: Option<String>,
    path: Option<PathChange>,
    port: Option<u16>,
    status: StatusCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    const fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Redirect {
    pub(crate) fn compile(raw: &proto::mesh::Redirect) -> Result<Self, Wrong> {
        let proto::mesh::Redirect { scheme, hostname: name, path, port, status } = raw;
        let scheme = match scheme.as_str() {
            "" => None,
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            other => return Err(Wrong::new("scheme", format!("`{}` is neither http nor https", other.escape_debug()))),
        };
        let port = match port {
            0 => None,
            port => Some(u16::try_from(*port).map_err(|_| Wrong::new("port", format!("{port} is not a port")))?),
        };
        let code = u16::try_from(*status).ok().filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308));
        let status = code.and_then(|code| StatusCode::from_u16(code).ok());
        Ok(Self {
            scheme,
            hostname: hostname(name)?,
            path: path.as_ref().map(PathChange::compile).transpose().map_err(|wrong| wrong.within("path"))?,
            port,
            status: status.ok_or_else(|| Wrong::new("status", "is none of 301, 302, 303, 307 and 308"))?,
        })
    }

    /// Always answers.
    pub fn on_request(&self, exchange: &Exchange<'_>) -> Verdict {
        let reply = match self.location(exchange) {
            Some(location) => LocalReply {
                status: self.status,
                reason: None,
                headers: vec![(header::LOCATION, location)],
                body: bytes::Bytes::new(),
                grpc_status: None,
            },
            None => LocalReply::of(Reason::BadRequest),
        };
        Verdict::Answer(Box::new(reply))
    }

    /// Always absolute, so that a path like `//other` names no host; `None` where the client named none and none is given.
    fn location(&self, exchange: &Exchange<'_>) -> Option<HeaderValue> {
        let request = &*exchange.request;
        let head = RequestHead::new(&request.method, &request.uri, &request.headers);
        let asked = without_port(head.host.rsplit_once('@').map_or(head.host, |(_, host)| host));
        let host = self.hostname.as_deref().unwrap_or(asked);
        if host.is_empty() {
            return None;
        }
        let scheme = self.scheme.unwrap_or(if exchange.called.tls { Scheme::Https } else { Scheme::Http });
        let port = self.port.unwrap_or(if self.scheme.is_some() { scheme.port() } else { exchange.called.port });
        let mut location = format!("{}://{host}", scheme.text());
        if port != scheme.port() {
            location.push_str(&format!(":{port}"));
        }
        let path = if head.path.starts_with('/') { head.path } else { "/" };
        match &self.path {
            Some(change) => location.push_str(&change.changed(path)),
            None => location.push_str(path),
        }
        if let Some(query) = head.query {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let scheme = self.scheme.map(|scheme| format!(" scheme {}", scheme.text()));
        let host = self.hostname.as_ref().map(|host| format!(" host {host}"));
        let port = self.port.map(|port| format!(" port {port}"));
        let path = self.path.as_ref().map(|path| format!(" {}", path.story()));
        let parts: Vec<String> = [scheme, host, port, path].into_iter().flatten().collect();
        let to = if parts.is_empty() { " the same place".to_owned() } else { parts.join(",") };
        format!("answers {}: go to{to}", self.status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;
    use proto::mesh::path_change::Kind;

    use super::*;
    use crate::filter::Called;
    use crate::filter::tests::exchange;

    fn raw() -> proto::mesh::Redirect {
        proto::mesh::Redirect { status: 302, ..Default::default() }
    }

    fn path(kind: Kind) -> Option<proto::mesh::PathChange> {
        Some(proto::mesh::PathChange { kind: Some(kind) })
    }

    fn location(raw: &proto::mesh::Redirect, (port, tls): (u16, bool), uri: &str, host: &str) -> String {
        let mut parts = Request::get(uri).header("host", host).body(()).unwrap().into_parts().0;
        let mut exchange = exchange(&mut parts);
        exchange.called = Called { port, tls };
        let Verdict::Answer(reply) = Redirect::compile(raw).unwrap().on_request(&exchange) else { panic!() };
        assert_eq!((u32::from(reply.status.as_u16()), reply.reason), (raw.status, None));
        reply.headers[0].1.to_str().unwrap().to_owned()
    }

    #[test]
    fn locations_are_those_of_gateway_api() {
        // Aim: scheme, host, port and path by default and by wish; the listener's port, not the one behind it; the query is kept.
        let prefix = proto::mesh::PrefixChange { matched: "/a".into(), replacement: "/z".into() };
        let https = || proto::mesh::Redirect { scheme: "https".into(), ..raw() };
        let http = || proto::mesh::Redirect { scheme: "http".into(), ..raw() };
        let cases = [
            (raw(), (8080, false), "http://shop.example:8080/a/b?c=d&e"),
            (raw(), (80, false), "http://shop.example/a/b?c=d&e"),
            (raw(), (443, true), "https://shop.example/a/b?c=d&e"),
            (raw(), (8443, true), "https://shop.example:8443/a/b?c=d&e"),
            (https(), (8080, false), "https://shop.example/a/b?c=d&e"),
            (http(), (443, true), "http://shop.example/a/b?c=d&e"),
            (proto::mesh::Redirect { port: 8080, ..http() }, (443, true), "http://shop.example:8080/a/b?c=d&e"),
            (proto::mesh::Redirect { port: 443, ..https() }, (80, false), "https://shop.example/a/b?c=d&e"),
            (proto::mesh::Redirect { port: 443, ..http() }, (80, false), "http://shop.example:443/a/b?c=d&e"),
            (proto::mesh::Redirect { port: 80, ..raw() }, (8080, false), "http://shop.example/a/b?c=d&e"),
            (proto::mesh::Redirect { hostname: "else.example".into(), ..raw() }, (80, false), "http://else.example/a/b?c=d&e"),
            (proto::mesh::Redirect { path: path(Kind::Full("/x".into())), ..raw() }, (80, false), "http://shop.example/x?c=d&e"),
            (proto::mesh::Redirect { path: path(Kind::Prefix(prefix)), ..raw() }, (80, false), "http://shop.example/z/b?c=d&e"),
            (proto::mesh::Redirect { status: 308, ..raw() }, (80, false), "http://shop.example/a/b?c=d&e"),
        ];
        for (raw, called, wanted) in cases {
            assert_eq!(location(&raw, called, "/a/b?c=d&e", "shop.example:1234"), wanted, "{raw:?}");
        }
        assert_eq!(location(&raw(), (80, false), "//evil.example/x", "shop.example"), "http://shop.example//evil.example/x");
        assert_eq!(location(&raw(), (81, false), "/", "[fd00::1]:81"), "http://[fd00::1]:81/");
        assert_eq!(location(&raw(), (80, false), "*", "shop.example"), "http://shop.example/");
    }

    #[test]
    fn who_names_no_host_is_told_so() {
        // Aim: without any host there is no absolute location, and a relative one could be turned against the client.
        let redirect = Redirect::compile(&raw()).unwrap();
        let mut parts = Request::get("//evil.example").body(()).unwrap().into_parts().0;
        let Verdict::Answer(reply) = redirect.on_request(&exchange(&mut parts)) else { panic!() };
        assert_eq!((reply.status, reply.reason), (StatusCode::BAD_REQUEST, Some(Reason::BadRequest)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        // Aim: by name of the field.
        for (bad, field) in [
            (proto::mesh::Redirect { scheme: "ftp".into(), ..raw() }, "scheme"),
            (proto::mesh::Redirect { hostname: "a b".into(), ..raw() }, "hostname"),
            (proto::mesh::Redirect { port: 65_536, ..raw() }, "port"),
            (proto::mesh::Redirect { status: 200, ..raw() }, "status"),
            (proto::mesh::Redirect { path: Some(proto::mesh::PathChange { kind: None }), ..raw() }, "path.kind"),
        ] {
            assert!(Redirect::compile(&bad).unwrap_err().of("T", "n").to_string().contains(field), "{bad:?}");
        }
    }

    proptest! {
        /// Aim: whatever target and host a client sends, there is an answer, and it never leads to a host that the client chose by its path.
        #[test]
        fn any_request_is_answered(uri in "\\*|/[!-~]{0,30}|https?://[a-z0-9@:.\\[\\]-]{1,20}(/[!-~]{0,9})?", host in "[!-~]{0,20}") {
            let Ok(uri) = uri.parse::<http::Uri>() else { return Ok(()) };
            let mut parts = Request::new(()).into_parts().0;
            parts.headers.insert("host", HeaderValue::try_from(host).unwrap());
            let named = uri.host().map(str::to_owned);
            parts.uri = uri;
            let Verdict::Answer(reply) = Redirect::compile(&raw()).unwrap().on_request(&exchange(&mut parts)) else { panic!() };
            let location = reply.headers.first().map(|(_, location)| location.to_str().unwrap().to_owned());
            prop_assert_eq!(location.is_none(), reply.status == StatusCode::BAD_REQUEST);
            if let (Some(location), Some(named)) = (location, named) {
                prop_assert!(location.starts_with("http://") && location[7..].starts_with(named.as_str()), "{location}");
            }
        }
    }
}
