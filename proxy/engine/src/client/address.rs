//! Who a client is where proxies stand in front of us: what they say of it counts as far as they are trusted, and nothing else does.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::consumers::AddressList;

/// Most proxies in front of us that are counted.
pub const HOPS_MAX: usize = 16;
/// Entries that are looked at, from the right; what stands before them is not believed.
const ENTRIES_MAX: usize = 64;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whom to believe. By default nobody: the client is whoever connects.
#[derive(Debug, Default)]
pub struct ClientAddress {
    trust: Trust,
    header: ForwardedHeader,
}

#[derive(Debug, Default)]
enum Trust {
    #[default]
    Nobody,
    /// So many proxies stand in front of us.
    Hops(usize),
    /// Those at these addresses.
    Ranges(AddressList),
}

/// Where proxies say for whom they ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, and with it its whole family.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFound {
    /// The client's address.
    pub address: IpAddr,
    /// What is believed of the header, from the client to the proxy before the last; none: the client has connected itself.
    pub believed: SmallVec<[IpAddr; 4]>,
    /// Whoever connects is believed, and by which header; what else that family says is its word, too.
    pub trusted: Option<ForwardedHeader>,
}

impl ClientFound {
    /// Whoever connects is the client.
    pub fn peer(peer: IpAddr) -> Self {
        Self { address: peer, believed: SmallVec::new(), trusted: None }
    }
}

impl ClientAddress {
    /// Believes so many proxies, whatever their addresses; 0: nobody.
    pub fn of_hops(hops: usize, header: ForwardedHeader) -> Self {
        let trust = if hops == 0 { Trust::Nobody } else { Trust::Hops(hops) };
        Self { trust, header }
    }

    /// Believes proxies at these addresses.
    pub const fn of_ranges(ranges: AddressList, header: ForwardedHeader) -> Self {
        Self { trust: Trust::Ranges(ranges), header }
    }

    /// Who asks, where `peer` has connected.
    ///
    /// Of n hops the client is the nth entry from the right; with fewer entries, or one that is no address, it is the peer. By ranges it is the
    /// first address from the right that is not in them, or the last one that can be read.
    #[inline]
    pub fn find(&self, peer: IpAddr, headers: &HeaderMap) -> ClientFound {
        match &self.trust {
            Trust::Nobody => ClientFound::peer(peer),
            Trust::Hops(hops) => self.by_hops(*hops, peer, headers),
            Trust::Ranges(ranges) => self.by_ranges(ranges, peer, headers),
        }
    }

    /// Who the client is, in words.
    pub fn story(&self) -> String {
        let header = match self.header {
            ForwardedHeader::XForwardedFor => "X-Forwarded-For",
            ForwardedHeader::Forwarded => "Forwarded",
        };
        match &self.trust {
            Trust::Nobody => "whoever connects".to_owned(),
            Trust::Hops(hops) => format!("entry {hops} from the right of {header}"),
            Trust::Ranges(_) => {
                format!("of a trusted peer the first address from the right of {header} that is not trusted, else whoever connects")
            }
        }
    }

    fn by_hops(&self, hops: usize, peer: IpAddr, headers: &HeaderMap) -> ClientFound {
        let mut believed: SmallVec<[IpAddr; 4]> = SmallVec::new();
        self.walk(headers, |entry| {
            believed.extend(entry);
            entry.is_some() && believed.len() < hops
        });
        if believed.len() < hops { ClientFound::peer(peer) } else { self.found(peer, believed) }
    }

    fn by_ranges(&self, ranges: &AddressList, peer: IpAddr, headers: &HeaderMap) -> ClientFound {
        if !ranges.holds(peer) {
            return ClientFound::peer(peer);
        }
        let mut believed: SmallVec<[IpAddr; 4]> = SmallVec::new();
        self.walk(headers, |entry| {
            believed.extend(entry);
            entry.is_some_and(|entry| ranges.holds(entry))
        });
        self.found(peer, believed)
    }

    /// `believed` from the right.
    fn found(&self, peer: IpAddr, mut believed: SmallVec<[IpAddr; 4]>) -> ClientFound {
        believed.reverse();
        ClientFound { address: believed.first().copied().unwrap_or(peer), believed, trusted: Some(self.header) }
    }

    /// Shows entries from the right, as long as more are wanted; `None`: it is no address.
    fn walk(&self, headers: &HeaderMap, mut wanted: impl FnMut(Option<IpAddr>) -> bool) {
        let mut left = ENTRIES_MAX;
        let mut show = |entry: Option<IpAddr>| {
            left -= 1;
            wanted(entry) && left > 0
        };
        match self.header {
            ForwardedHeader::XForwardedFor => {
                for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
                    for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
                        if !show(node(entry)) {
                            return;
                        }
                    }
                }
            }
            ForwardedHeader::Forwarded => {
                for line in headers.get_all(http::header::FORWARDED).iter().rev() {
                    for element in elements(line).iter().rev() {
                        if !show(parameter(element, b"for").and_then(node)) {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// The elements of a `Forwarded` line, left to right (RFC 7239, section 4): parted by commas that are not quoted. Read from the right, where
/// those stand who are believed: a quote that a client never closes would hide what is written behind it.
pub fn elements(line: &HeaderValue) -> SmallVec<[&[u8]; 4]> {
    let text = line.as_bytes();
    let escaped = |at: usize| text[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
    let (mut found, mut end, mut quoted) = (SmallVec::new(), text.len(), false);
    for at in (0..text.len()).rev() {
        match text[at] {
            b'"' => quoted = !quoted || escaped(at),
            b',' if !quoted => {
                found.push(text[at + 1..end].trim_ascii());
                end = at;
            }
            _ => {}
        }
    }
    found.push(text[..end].trim_ascii());
    found.reverse();
    found
}

/// The last `count` elements of all lines, left to right.
pub fn elements_of(headers: &HeaderMap, count: usize) -> Vec<&[u8]> {
    let mut all: Vec<&[u8]> = Vec::new();
    for line in headers.get_all(http::header::FORWARDED).iter().rev() {
        if all.len() >= count {
            break;
        }
        all.extend(elements(line).iter().rev().take(count - all.len()));
    }
    all.reverse();
    all
}

/// The parts of one element.
fn parts(text: &[u8], mark: u8) -> SmallVec<[&[u8]; 4]> {
    let (mut found, mut start, mut quoted, mut escaped) = (SmallVec::new(), 0, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if *byte == mark && !quoted => {
                found.push(text[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(text[start..].trim_ascii());
    found
}

/// A parameter of an element, without its quotes.
pub(super) fn parameter<'e>(element: &'e [u8], name: &[u8]) -> Option<&'e [u8]> {
    parts(element, b';').into_iter().find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let value = &pair[at + 1..];
        pair[..at].eq_ignore_ascii_case(name).then(|| value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value))
    })
}

/// Whether the client's own element says that it came by TLS; `None`: it does not say how.
pub(super) fn proto_of(element: &[u8]) -> Option<bool> {
    match parameter(element, b"proto")? {
        proto if proto.eq_ignore_ascii_case(b"https") => Some(true),
        proto if proto.eq_ignore_ascii_case(b"http") => Some(false),
        _ => None,
    }
}

impl ClientFound {
    /// What proxies that are believed say of how the client came: whether by TLS. `None`: nothing.
    pub fn came_by_tls(&self, headers: &HeaderMap) -> Option<bool> {
        match self.trusted? {
            ForwardedHeader::Forwarded => elements_of(headers, self.believed.len()).first().and_then(|element| proto_of(element)),
            ForwardedHeader::XForwardedFor => {
                let mut told = headers.get_all("x-forwarded-proto").iter();
                match (told.next().map(HeaderValue::as_bytes), told.next()) {
                    (Some(b"https"), None) => Some(true),
                    (Some(b"http"), None) => Some(false),
                    _ => None,
                }
            }
        }
    }
}

/// An address as proxies write it: with a port or without, IPv6 in brackets or not.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.0.1";

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, line.parse().unwrap());
        }
        headers
    }

    fn found(rule: &ClientAddress, name: &'static str, lines: &[&str]) -> (String, usize, bool) {
        let found = rule.find(PEER.parse().unwrap(), &headers(name, lines));
        (found.address.to_string(), found.believed.len(), found.trusted.is_some())
    }

    #[test]
    fn nobody_is_believed_by_default() {
        // Aim: without a word of ours a client cannot choose its address.
        let told = found(&ClientAddress::default(), "x-forwarded-for", &["203.0.113.9"]);
        assert_eq!(told, (PEER.to_owned(), 0, false));
    }

    #[test]
    fn hops_are_counted_from_the_right() {
        // Aim: the nth entry across lines, and the peer where there are fewer, or one of them is no address.
        let rule = ClientAddress::of_hops(2, ForwardedHeader::XForwardedFor);
        for (lines, wanted) in [
            (&["203.0.113.9, 192.0.2.1"][..], ("203.0.113.9", 2, true)),
            (&["evil, 203.0.113.9", "192.0.2.1:4711"], ("203.0.113.9", 2, true)),
            (&["198.51.100.1", "[2001:db8::1]:80,::ffff:192.0.2.1"], ("2001:db8::1", 2, true)),
            (&["192.0.2.1"], (PEER, 0, false)),
            (&[], (PEER, 0, false)),
            (&["203.0.113.9, unknown"], (PEER, 0, false)),
            (&["unknown, 192.0.2.1"], (PEER, 0, false)),
            (&["203.0.113.9,,192.0.2.1"], (PEER, 0, false)),
        ] {
            let (address, believed, trusted) = found(&rule, "x-forwarded-for", lines);
            assert_eq!((address.as_str(), believed, trusted), wanted, "{lines:?}");
        }
    }

    #[test]
    fn ranges_end_at_the_first_stranger() {
        // Aim: the first untrusted address from the right; where all are trusted the last; a text that is no address ends the walk.
        let ranges = |text: &str| ClientAddress::of_ranges(AddressList::read(text).unwrap(), ForwardedHeader::XForwardedFor);
        let rule = ranges("10.0.0.0/8\n192.0.2.1");
        for (lines, wanted) in [
            (&["198.51.100.1, 203.0.113.9, 192.0.2.1, 10.1.1.1"][..], ("203.0.113.9", 3, true)),
            (&["10.2.2.2, 10.1.1.1"], ("10.2.2.2", 2, true)),
            (&["203.0.113.9, secret, 10.1.1.1"], ("10.1.1.1", 1, true)),
            (&["secret"], (PEER, 0, true)),
            (&[], (PEER, 0, true)),
        ] {
            let (address, believed, trusted) = found(&rule, "x-forwarded-for", lines);
            assert_eq!((address.as_str(), believed, trusted), wanted, "{lines:?}");
        }
        let elsewhere = found(&ranges("172.16.0.0/12"), "x-forwarded-for", &["203.0.113.9"]);
        assert_eq!(elsewhere, (PEER.to_owned(), 0, false), "who connects is not trusted");
    }

    #[test]
    fn forwarded_is_read_as_its_grammar_says() {
        // Aim: quotes, ports, any case; commas within quotes part nothing; obfuscated nodes are no addresses.
        let rule = ClientAddress::of_hops(1, ForwardedHeader::Forwarded);
        for (line, wanted) in [
            ("for=203.0.113.9;proto=https", "203.0.113.9"),
            ("for=a, For=\"[2001:db8::9]:4711\";by=x", "2001:db8::9"),
            ("for=198.51.100.1, host=\"a,b\";for=203.0.113.9", "203.0.113.9"),
            ("for=_hidden", PEER),
            ("proto=https", PEER),
            ("for=\"203.0.113.9", PEER),
        ] {
            assert_eq!(found(&rule, "forwarded", &[line]).0, wanted, "{line}");
        }
        assert_eq!(found(&rule, "x-forwarded-for", &["203.0.113.9"]).0, PEER, "the other header does not count");
    }

    #[test]
    fn a_quote_that_is_never_closed_hides_nobody() {
        // Aim: whatever a client writes before it, the address that a trusted proxy adds to the same line is the client's, and what the proxy
        // quotes itself stays whole.
        let rule = ClientAddress::of_hops(1, ForwardedHeader::Forwarded);
        for client in ["for=\"", "for=\"\\\"", "x=\"\\", "for=1.1.1.1;host=\"a\\\"", "\"\"\"", "\\", "for=\"[::1]\";by=\"\\\\"] {
            for proxy in ["for=203.0.113.9", "for=\"203.0.113.9:80\";host=\"a,\\\",b\"", "host=\"\\\\\";for=203.0.113.9"] {
                assert_eq!(found(&rule, "forwarded", &[&format!("{client}, {proxy}")]).0, "203.0.113.9", "{client}, {proxy}");
            }
        }
    }

    #[test]
    fn how_the_client_came_is_believed_of_the_same_family_only() {
        // Aim: `proto` of the client's own element, or X-Forwarded-Proto where that family counts; nothing of strangers.
        let told = |rule: &ClientAddress, pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            rule.find(PEER.parse().unwrap(), &headers).came_by_tls(&headers)
        };
        let x = ClientAddress::of_hops(1, ForwardedHeader::XForwardedFor);
        let forwarded = ClientAddress::of_hops(1, ForwardedHeader::Forwarded);
        let for_x = ("x-forwarded-for", "203.0.113.9");
        assert_eq!(told(&x, &[for_x, ("x-forwarded-proto", "https")]), Some(true));
        assert_eq!(told(&x, &[for_x, ("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")]), None);
        assert_eq!(told(&x, &[("x-forwarded-proto", "https")]), None, "no entry: nobody is believed");
        assert_eq!(told(&forwarded, &[("forwarded", "for=203.0.113.9;proto=http"), ("x-forwarded-proto", "https")]), Some(false));
        assert_eq!(told(&ClientAddress::default(), &[for_x, ("x-forwarded-proto", "https")]), None);
    }

    proptest::proptest! {
        #[test]
        fn what_a_trusted_proxy_adds_is_found(text in "[ -~]{0,40}") {
            // Aim: no client's text before it changes what the proxy behind it says, in either header.
            for (name, header, said) in [
                ("forwarded", ForwardedHeader::Forwarded, "for=\"[2001:db8::9]:80\";by=\"_a,b\""),
                ("x-forwarded-for", ForwardedHeader::XForwardedFor, "2001:db8::9"),
            ] {
                let rule = ClientAddress::of_hops(1, header);
                proptest::prop_assert_eq!(found(&rule, name, &[&format!("{text}, {said}")]).0, "2001:db8::9");
            }
        }

        #[test]
        fn no_header_makes_it_panic(text in "[ -~]{0,80}", hops in 0_usize..5) {
            // Aim: whatever a stranger writes, the answer is an address of the header or the peer's.
            for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
                let name = if header == ForwardedHeader::Forwarded { "forwarded" } else { "x-forwarded-for" };
                let headers = headers(name, &[&text]);
                let found = ClientAddress::of_hops(hops, header).find(PEER.parse().unwrap(), &headers);
                proptest::prop_assert!(found.believed.len() == hops || found.address.to_string() == PEER);
                let _ = found.came_by_tls(&headers);
            }
        }
    }
}
