//! What sets versions of HTTP apart for those who look at a request and not at its connection.

use http::Version;

/// Whether many exchanges share a connection, each a stream of its own whose target names its host (HTTP/2 and HTTP/3).
pub fn has_streams(version: Version) -> bool {
    version == Version::HTTP_2 || version == Version::HTTP_3
}

/// As Envoy writes it where a service is told of a request.
pub fn text(version: Version) -> &'static str {
    match version {
        Version::HTTP_3 => "HTTP/3",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
