//! What comes in from sockets before anybody knows what it is.

use std::future::{Future, ready};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use engine::client::proxy_protocol::{self, HEADER_BYTES_MAX, Heard};
use engine::dns::{Place, place};
use engine::model::DnsAnswer;
use engine::sniff::{SNIFF_BYTES_MAX, Sniffed, sniff};
use proxy::dns::{Names, Resolver, Transport, Upstream};
use proxy::ground::tally::{Floods, Sender, Tally};
use proxy::io::Network;
use proxy::snapshots::NameLookup;

/// A decision comes in time and never changes with more bytes.
pub(super) fn first_bytes(bytes: &[u8]) {
    let whole = sniff(bytes);
    assert!(bytes.len() < SNIFF_BYTES_MAX || whole != Sniffed::NeedMore, "undecided after {} bytes", bytes.len());
    for cut in [bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let early = sniff(&bytes[..cut]);
        assert!(early == Sniffed::NeedMore || early == whole, "{early:?} after {cut} bytes became {whole:?}");
    }
}

/// A header is found in time, whole within its bytes, and no further bytes change what was decided.
pub(super) fn proxied(bytes: &[u8]) {
    let whole = proxy_protocol::read(bytes);
    assert!(bytes.len() < HEADER_BYTES_MAX || whole != Heard::NeedMore, "undecided after {} bytes", bytes.len());
    if let Heard::Header { bytes: length, .. } = whole {
        assert!((8..=bytes.len()).contains(&length), "{length} of {}", bytes.len());
    }
    for cut in [bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let early = proxy_protocol::read(&bytes[..cut]);
        assert!(early == Heard::NeedMore || early == whole, "{early:?} after {cut} bytes became {whole:?}");
    }
}

/// Frames are counted alike however they are cut.
pub(super) fn frames(bytes: &[u8]) {
    let floods = Floods::default();
    for sender in [Sender::Stranger, Sender::Server] {
        let (mut whole, mut pieces) = (Tally::new(sender, &floods), Tally::new(sender, &floods));
        let at_once = whole.read(bytes);
        let in_pieces = bytes.chunks(7).all(|piece| pieces.read(piece));
        assert_eq!(at_once, in_pieces);
    }
}

/// A mesh with one name.
struct OneName;

impl Names for OneName {
    fn place(&self, host: &str) -> Place {
        place(host, &["cluster.local"], |address| address == IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)))
    }

    fn find(&self, host: &str, _: IpAddr) -> impl Future<Output = NameLookup> + Send {
        let found = host.starts_with("catalog.").then(|| {
            let addresses = (0..40).map(|last| IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))).collect();
            let services = vec![(80, "catalog.shop.svc.cluster.local".to_owned())];
            NameLookup::Found(Arc::new(DnsAnswer {
                addresses,
                services,
                pointers: vec!["catalog.shop.svc.cluster.local".to_owned()],
                ttl_secs: 5,
            }))
        });
        ready(found.unwrap_or(NameLookup::Absent))
    }
}

/// An answer has the question's id, says that it is one, and fits what the question allows.
pub(super) fn dns(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without doors");
    let resolver = Resolver::new(OneName, Upstream::new(Network::Kernel { mark: None }, Vec::new()));
    for (transport, bytes_max) in [(Transport::Udp, 1232), (Transport::Tcp, usize::from(u16::MAX))] {
        let asker = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Some(answer) = runtime.block_on(resolver.answer(bytes, asker, transport)) else { continue };
        assert!(answer.len() >= 12 && answer.len() <= bytes_max, "{} bytes", answer.len());
        assert_eq!(answer[..2], bytes[..2], "another id");
        assert!(answer[2] & 0x80 != 0, "a question as an answer");
    }
}
