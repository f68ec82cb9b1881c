//! Who may use the admin pages. They are on loopback, and every program of the machine's user may call there; what must not is a web
//! page that its browser shows: not by a name that leads to loopback (DNS rebinding), and not by a form that it sends across.

use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;

/// Set by browsers, and by nothing that runs in them.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Judges a request by what browsers say of themselves. Programs that are none say nothing of it, but may have to name their host.
///
/// # Errors
/// A sentence for its sender.
pub(super) fn judge(head: &Parts) -> Result<(), &'static str> {
    let text = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let named = head.uri.authority().map(Authority::as_str).or_else(|| text(HOST.as_str()));
    if named.is_some_and(|host| !is_loopback(host)) {
        return Err("the admin pages answer to loopback's own names only: call http://127.0.0.1 or http://localhost");
    }
    let own = |origin: &str| origin.strip_prefix("http://").is_some_and(|host| Some(host) == named);
    if text(ORIGIN.as_str()).is_some_and(|origin| !own(origin)) {
        return Err("the admin pages take nothing from other sites' pages");
    }
    match text(SEC_FETCH_SITE) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err("the admin pages take nothing from other sites' pages"),
    }
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = name.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
    !host.contains('@') && (address || name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case("localhost."))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_page_of_another_site_moves_nothing() {
        // Aim: programs pass with loopback's names and addresses or none; a name that was bound to loopback, a form of another site, an
        // opaque origin and a browser's own word that it comes from elsewhere do not.
        for (fields, passes) in [
            (&[("host", "127.0.0.1:15000")][..], true),
            (&[("host", "localhost:15000")], true),
            (&[("host", "LocalHost")], true),
            (&[("host", "[::1]:15000")], true),
            (&[("host", "127.8.8.8")], true),
            (&[], true),
            (&[("host", "rebound.example:15000")], false),
            (&[("host", "127.0.0.1.example")], false),
            (&[("host", "localhost@evil.example")], false),
            (&[("host", "10.77.0.1:15000")], false),
            (&[("host", "")], false),
            (&[("host", "127.0.0.1:15000"), ("origin", "http://127.0.0.1:15000")], true),
            (&[("host", "127.0.0.1:15000"), ("origin", "http://127.0.0.1:3000")], false),
            (&[("host", "127.0.0.1:15000"), ("origin", "https://evil.example")], false),
            (&[("host", "127.0.0.1:15000"), ("origin", "null")], false),
            (&[("host", "127.0.0.1:15000"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "127.0.0.1:15000"), ("sec-fetch-site", "none")], true),
        ] {
            let mut request = Request::post("/quitquitquit");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let head = request.body(()).unwrap().into_parts().0;
            assert_eq!(judge(&head).is_ok(), passes, "{fields:?}");
        }
        let head = Request::post("http://evil.example/quitquitquit").header(HOST, "127.0.0.1").body(()).unwrap().into_parts().0;
        assert!(judge(&head).is_err(), "the target's authority is the host");
    }
}
