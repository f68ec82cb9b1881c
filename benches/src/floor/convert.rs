//! What both sides of the floor share: a request from one HTTP to the other, and the windows of HTTP/2.

use std::io;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri, Version, header};

/// Windows that do not stand in the way of bulk.
pub(super) const STREAM_WINDOW_BYTES: u32 = 1 << 20;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A request as HTTP/1.1 has it: the path alone, and the authority as host.
pub(super) fn into_h1<B>(request: &mut Request<B>) -> io::Result<()> {
    if request.version() == Version::HTTP_2 {
        if let Some(authority) = request.uri().authority() {
            let host = HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?;
            request.headers_mut().insert(header::HOST, host);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
        *request.version_mut() = Version::HTTP_11;
    }
    request.headers_mut().remove(header::CONNECTION);
    Ok(())
}

/// A request as HTTP/2 has it: the host as authority.
pub(super) fn into_h2<B>(request: &mut Request<B>) -> io::Result<()> {
    if request.version() == Version::HTTP_2 {
        return Ok(());
    }
    let host = request.headers_mut().remove(header::HOST).ok_or_else(|| io::Error::other("a request without host"))?;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(host.as_bytes()).map_err(io::Error::other)?);
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).map_err(io::Error::other)?;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::CONNECTION);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_cross_from_one_http_to_the_other() {
        // Aim: host and authority are one thing in two places, and the path is kept as it came.
        let mut request = Request::builder().uri("/a?b=c").header("host", "web:80").header("connection", "keep-alive").body(()).unwrap();
        into_h2(&mut request).unwrap();
        assert_eq!((request.uri().to_string().as_str(), request.version()), ("http://web:80/a?b=c", Version::HTTP_2));
        assert!(request.headers().is_empty());
        into_h1(&mut request).unwrap();
        assert_eq!((request.uri().to_string().as_str(), request.version()), ("/a?b=c", Version::HTTP_11));
        assert_eq!(request.headers()["host"], "web:80");
        assert!(into_h2(&mut Request::new(())).is_err(), "without host");
    }
}
