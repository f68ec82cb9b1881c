//! What an edge says to the mesh of a client outside. What somebody said of it who is not trusted is replaced, never added to.

use std::fmt::Write as _;
use std::net::IpAddr;

use engine::client::{ClientFound, ForwardedHeader, elements_of};
use engine::failure::REASON_HEADER;
use http::header::{FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, request};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// What a Gateway has seen of its client's certificate, as the sidecar of an application in the mesh tells it: there `x-forwarded-client-cert` is
/// of the caller in the mesh, which is the Gateway.
pub const CLIENT_CERT_HEADER: HeaderName = HeaderName::from_static("x-meshwright-client-cert");
/// Their family.
const X_FORWARDED: &str = "x-forwarded-";

/// Who has connected, and who asks.
#[derive(Debug)]
pub struct Outsider<'c> {
    /// Who has connected.
    pub peer: IpAddr,
    /// The same as a header's value.
    pub peer_value: Option<&'c HeaderValue>,
    /// Who asks, and what of the head is believed.
    pub found: &'c ClientFound,
    /// By TLS that was ended here.
    pub https: bool,
    /// What the client has proved by its certificate.
    pub certificate: Option<&'c HeaderValue>,
}

/// Whether a header says for whom a proxy asks, and is none of those that an edge always says itself.
pub(super) fn is_forwarded(name: &str) -> bool {
    match name.len() {
        9 => name == "forwarded",
        13.. => name.starts_with(X_FORWARDED) && !matches!(&name[X_FORWARDED.len()..], "for" | "proto" | "client-cert" | "client_cert"),
        _ => false,
    }
}

/// Says who called and how, and takes off what only the mesh may say. `more`: some header is one that forwarders write.
pub fn mark_outside(parts: &mut request::Parts, outsider: &Outsider<'_>, more: bool) {
    let by_tls = outsider.found.came_by_tls(&parts.headers).unwrap_or(outsider.https);
    if more {
        rest_of_family(parts, outsider);
    }
    let headers = &mut parts.headers;
    match outsider.certificate {
        Some(told) => drop(headers.insert(X_FORWARDED_CLIENT_CERT, told.clone())),
        None => drop(headers.remove(X_FORWARDED_CLIENT_CERT)),
    }
    headers.remove(REASON_HEADER);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if by_tls { "https" } else { "http" }));
    match outsider.peer_value {
        Some(peer) if outsider.found.believed.is_empty() => drop(headers.insert(X_FORWARDED_FOR, peer.clone())),
        _ => chain(headers, outsider),
    }
}

/// The client, and the proxies on its way to us.
fn chain(headers: &mut HeaderMap, outsider: &Outsider<'_>) {
    let mut text = String::new();
    for address in &outsider.found.believed {
        let _ = write!(text, "{address}, ");
    }
    let _ = write!(text, "{}", outsider.peer);
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// What else proxies say: kept of those that are trusted, if it is of the family that counts; else taken off, and where it is there
/// `x-forwarded-host` and `forwarded` say what is so.
#[cold]
fn rest_of_family(parts: &mut request::Parts, outsider: &Outsider<'_>) {
    let named = parts.uri.authority().map(|name| name.as_str().as_bytes());
    let host = named.or_else(|| parts.headers.get(HOST).map(HeaderValue::as_bytes)).unwrap_or_default().to_vec();
    if parts.headers.contains_key(FORWARDED) {
        let believed = match outsider.found.trusted {
            Some(ForwardedHeader::Forwarded) => elements_of(&parts.headers, outsider.found.believed.len()),
            _ => Vec::new(),
        };
        let value = forwarded(&believed, outsider, &host);
        match value {
            Some(value) => drop(parts.headers.insert(FORWARDED, value)),
            None => drop(parts.headers.remove(FORWARDED)),
        }
    }
    if outsider.found.trusted == Some(ForwardedHeader::XForwardedFor) {
        return;
    }
    let told = if parts.headers.contains_key(X_FORWARDED_HOST) { HeaderValue::from_bytes(&host).ok() } else { None };
    let others: Vec<HeaderName> = parts.headers.keys().filter(|name| is_forwarded(name.as_str()) && **name != FORWARDED).cloned().collect();
    for name in others {
        parts.headers.remove(name);
    }
    if let Some(told) = told {
        parts.headers.insert(X_FORWARDED_HOST, told);
    }
}

/// What is believed, and an element of our own (RFC 7239).
fn forwarded(believed: &[&[u8]], outsider: &Outsider<'_>, host: &[u8]) -> Option<HeaderValue> {
    let mut text = believed.join(&b", "[..]);
    if !text.is_empty() {
        text.extend_from_slice(b", ");
    }
    let node = match outsider.peer {
        IpAddr::V4(v4) => format!("for={v4}"),
        IpAddr::V6(v6) => format!("for=\"[{v6}]\""),
    };
    text.extend_from_slice(node.as_bytes());
    text.extend_from_slice(if outsider.https { b";proto=https" } else { b";proto=http" });
    if !host.is_empty() && !host.contains(&b'"') && !host.contains(&b'\\') {
        text.extend_from_slice(b";host=\"");
        text.extend_from_slice(host);
        text.push(b'"');
    }
    HeaderValue::from_bytes(&text).ok()
}

#[cfg(test)]
mod tests {
    use engine::client::ClientAddress;

    use super::*;

    /// What is sent on, of these headers, by a rule.
    fn marked(rule: &ClientAddress, headers: &[(&'static str, &str)]) -> String {
        let mut request = http::Request::builder().uri("/").header(HOST, "shop.example:8443");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let value = HeaderValue::from_static("10.0.0.1");
        let found = rule.find(peer, &parts.headers);
        let more = parts.headers.keys().any(|name| is_forwarded(name.as_str()));
        let outsider = Outsider { peer, peer_value: Some(&value), found: &found, https: true, certificate: None };
        mark_outside(&mut parts, &outsider, more);
        let told = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<String> = parts.headers.iter().filter(|(name, _)| **name != HOST).map(told).collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    #[test]
    fn what_a_stranger_says_is_replaced() {
        // Aim: one value of our own each, whatever was there; of the rest of the family nothing is left.
        let told = marked(
            &ClientAddress::default(),
            &[
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-for", "127.0.0.2"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-port", "1"),
                ("x-forwarded-user", "root"),
                ("x-forwarded-client-cert", "URI=me"),
                ("forwarded", "for=127.0.0.1;host=evil.example"),
            ],
        );
        let wanted = "forwarded: for=10.0.0.1;proto=https;host=\"shop.example:8443\"\nx-forwarded-for: 10.0.0.1\n\
                      x-forwarded-host: shop.example:8443\nx-forwarded-proto: https";
        assert_eq!(told, wanted);
        assert_eq!(marked(&ClientAddress::default(), &[]), "x-forwarded-for: 10.0.0.1\nx-forwarded-proto: https");
    }

    #[test]
    fn what_trusted_proxies_say_is_kept_from_the_client_on() {
        // Aim: the client first, then the proxies; what stood before the client is gone; the other family's word does not count.
        let x = ClientAddress::of_hops(2, ForwardedHeader::XForwardedFor);
        let told = marked(
            &x,
            &[
                ("x-forwarded-for", "127.0.0.1, 203.0.113.9, 192.0.2.1"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "www.example"),
                ("x-forwarded-port", "80"),
                ("forwarded", "for=127.0.0.1"),
            ],
        );
        let wanted = "forwarded: for=10.0.0.1;proto=https;host=\"shop.example:8443\"\nx-forwarded-for: 203.0.113.9, 192.0.2.1, 10.0.0.1\n\
                      x-forwarded-host: www.example\nx-forwarded-port: 80\nx-forwarded-proto: http";
        assert_eq!(told, wanted);
        let forwarded = ClientAddress::of_hops(1, ForwardedHeader::Forwarded);
        let told = marked(
            &forwarded,
            &[("forwarded", "for=127.0.0.1"), ("forwarded", "for=\"[2001:db8::9]\";proto=http"), ("x-forwarded-host", "evil.example")],
        );
        let wanted = "forwarded: for=\"[2001:db8::9]\";proto=http, for=10.0.0.1;proto=https;host=\"shop.example:8443\"\n\
                      x-forwarded-for: 2001:db8::9, 10.0.0.1\nx-forwarded-host: shop.example:8443\nx-forwarded-proto: http";
        assert_eq!(told, wanted);
    }
}
