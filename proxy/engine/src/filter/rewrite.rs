//! Changes what a request asks for before it is sent on (Gateway API, `URLRewrite`).

use http::uri::{Parts, PathAndQuery};
use http::{HeaderValue, Uri, header, request};

use super::path::PathChange;
use super::{Exchange, Verdict};
use crate::failure::Reason;
use crate::rejected::Wrong;
use crate::versions::has_streams;

/// Longest host name (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// Gives a request another host, another path, or both. The query stays.
#[derive(Clone, Debug)]
pub struct Rewrite {
    hostname: Option<HeaderValue>,
    path: Option<PathChange>,
}

impl Rewrite {
    pub(crate) fn compile(raw: &proto::mesh::Rewrite) -> Result<Self, Wrong> {
        let proto::mesh::Rewrite { hostname: name, path } = raw;
        let host = hostname(name)?.map(HeaderValue::try_from).transpose();
        let path = path.as_ref().map(PathChange::compile).transpose().map_err(|wrong| wrong.within("path"))?;
        let rewrite = Self { hostname: host.map_err(|_| Wrong::new("hostname", "is not a host name"))?, path };
        if rewrite.hostname.is_none() && rewrite.path.is_none() {
            return Err(Wrong::new("", "holds neither hostname nor path"));
        }
        Ok(rewrite)
    }

    /// Changes the head in place. A path that would become longer than paths can be is answered.
    pub fn on_request(&self, exchange: &mut Exchange<'_>) -> Verdict {
        if let Some(change) = &self.path
            && !repath(exchange.request, change)
        {
            return Verdict::Answer(Box::new(Reason::BadRequest.into()));
        }
        if let Some(host) = &self.hostname {
            rename(exchange.request, host);
        }
        Verdict::Go
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        let host = self.hostname.as_ref().and_then(|host| host.to_str().ok()).map(|host| format!("host {host}"));
        let parts: Vec<String> = host.into_iter().chain(self.path.as_ref().map(PathChange::story)).collect();
        format!("puts {}", parts.join(" and "))
    }
}

fn repath(request: &mut request::Parts, change: &PathChange) -> bool {
    // A CONNECT has no path; `*` is none.
    let path = request.uri.path();
    if !path.starts_with('/') || request.uri.path_and_query().is_none() {
        return true;
    }
    let mut text = change.changed(path);
    if let Some(query) = request.uri.query() {
        text.push('?');
        text.push_str(query);
    }
    let Ok(target) = PathAndQuery::try_from(text) else { return false };
    let mut parts = std::mem::take(&mut request.uri).into_parts();
    parts.path_and_query = Some(target);
    request.uri = whole(parts);
    true
}

/// Beside an HTTP/2 authority, a host is the route's own word (`http::convert` in the shell); an HTTP/1 target in absolute form would go
/// before it, so that becomes a path.
fn rename(request: &mut request::Parts, host: &HeaderValue) {
    request.headers.insert(header::HOST, host.clone());
    if !has_streams(request.version)
        && request.uri.authority().is_some()
        && let Some(target) = request.uri.path_and_query()
    {
        request.uri = Uri::from(target.clone());
    }
}

/// A path in place of a path: what was whole before is whole again.
fn whole(parts: Parts) -> Uri {
    Uri::from_parts(parts).unwrap_or_default()
}

/// A host name without port; `None` where empty.
pub(super) fn hostname(text: &str) -> Result<Option<String>, Wrong> {
    if text.is_empty() {
        return Ok(None);
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.len() > HOST_BYTES_MAX || !text.bytes().all(fits) {
        return Err(Wrong::new("hostname", format!("`{}` is not a host name", text.escape_debug())));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use http::{Request, Version};
    use proto::mesh::path_change::Kind;

    use super::*;
    use crate::filter::tests::exchange;

    fn rewrite(hostname: &str, kind: Option<Kind>) -> Rewrite {
        let path = kind.map(|kind| proto::mesh::PathChange { kind: Some(kind) });
        Rewrite::compile(&proto::mesh::Rewrite { hostname: hostname.into(), path }).unwrap()
    }

    fn prefix(matched: &str, replacement: &str) -> Option<Kind> {
        Some(Kind::Prefix(proto::mesh::PrefixChange { matched: matched.into(), replacement: replacement.into() }))
    }

    #[test]
    fn host_and_path_change_and_the_query_stays() {
        // Aim: origin form, absolute form and HTTP/2, each as the shell turns it into an upstream request.
        for (version, uri, wanted) in [
            (Version::HTTP_11, "/a/b?c=d", "/z/b?c=d"),
            (Version::HTTP_11, "http://x:81/a?", "/z?"),
            (Version::HTTP_2, "http://x/a/b?c", "http://x/z/b?c"),
            (Version::HTTP_11, "/else?a", "/else?a"),
            (Version::HTTP_11, "*", "*"),
        ] {
            let mut parts = Request::get(uri).version(version).header("host", "old").body(()).unwrap().into_parts().0;
            assert!(matches!(rewrite("new", prefix("/a", "/z")).on_request(&mut exchange(&mut parts)), Verdict::Go));
            assert_eq!((parts.uri.to_string().as_str(), &parts.headers["host"]), (wanted, &HeaderValue::from_static("new")), "{uri}");
        }
        let mut parts = Request::get("/a?b").header("host", "old").body(()).unwrap().into_parts().0;
        assert!(matches!(rewrite("", Some(Kind::Full("/one".into()))).on_request(&mut exchange(&mut parts)), Verdict::Go));
        assert_eq!((parts.uri.to_string().as_str(), &parts.headers["host"]), ("/one?b", &HeaderValue::from_static("old")));
    }

    #[test]
    fn a_tunnel_has_no_path() {
        // Aim: the target of a CONNECT stays what it is.
        let mut parts = Request::connect("x:80").body(()).unwrap().into_parts().0;
        assert!(matches!(rewrite("", prefix("/", "/z")).on_request(&mut exchange(&mut parts)), Verdict::Go));
        assert_eq!(parts.uri.to_string(), "x:80");
    }

    #[test]
    fn a_path_that_grows_too_long_is_answered() {
        // Aim: no panic and no silent other path at the bound of what a target can be.
        let mut parts = Request::get(format!("/a{}", "/".repeat(65_000))).body(()).unwrap().into_parts().0;
        let long = format!("/{}", "z".repeat(8000));
        let verdict = rewrite("", prefix("/a", &long)).on_request(&mut exchange(&mut parts));
        assert!(matches!(verdict, Verdict::Answer(reply) if reply.reason == Some(Reason::BadRequest)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        // Aim: nothing to do, and hosts that are none.
        let raw = |hostname: &str| proto::mesh::Rewrite { hostname: hostname.into(), path: None };
        let long = "a".repeat(HOST_BYTES_MAX + 1);
        assert!(["", "a b", "a:80", "a/b", "ä", "a\r\nb", &long].iter().all(|host| Rewrite::compile(&raw(host)).is_err()));
    }
}
