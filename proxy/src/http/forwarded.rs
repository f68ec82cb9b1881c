//! What an edge says to the mesh of a client outside.

use engine::failure::REASON_HEADER;
use http::{HeaderMap, HeaderName, HeaderValue};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Says who called and how, and takes off what only the mesh may say. `https`: by TLS that was ended here; `certificate`: what the client
/// has proved by its own.
pub fn mark_outside(headers: &mut HeaderMap, client: Option<&HeaderValue>, https: bool, certificate: Option<&HeaderValue>) {
    match certificate {
        Some(told) => drop(headers.insert(X_FORWARDED_CLIENT_CERT, told.clone())),
        None => drop(headers.remove(X_FORWARDED_CLIENT_CERT)),
    }
    headers.remove(REASON_HEADER);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }));
    if let Some(client) = client {
        append(headers, client);
    }
}

/// Adds the client to `x-forwarded-for`: behind what it says itself, as every proxy on the way does.
fn append(headers: &mut HeaderMap, client: &HeaderValue) {
    let before: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    if before.is_empty() {
        headers.insert(X_FORWARDED_FOR, client.clone());
        return;
    }
    let all = [before.as_slice(), &[client.as_bytes()]].concat().join(&b", "[..]);
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_added_behind_what_it_says() {
        // Aim: one header, the nearest hop last.
        for (before, after) in [(&[][..], "192.0.2.7"), (&["a"], "a, 192.0.2.7"), (&["a, b", "c"], "a, b, c, 192.0.2.7")] {
            let mut headers = HeaderMap::new();
            for value in before {
                headers.append(X_FORWARDED_FOR, value.parse().unwrap());
            }
            append(&mut headers, &"192.0.2.7".parse().unwrap());
            assert_eq!(headers.get_all(X_FORWARDED_FOR).iter().collect::<Vec<_>>(), [after]);
        }
    }
}
