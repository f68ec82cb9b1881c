//! Names, identities, tokens and what vouches for them.

use certs_ca::attest::Token;
use certs_ca::csr::Csr;
use proto::identity::Identity;
use proto::names::{self, NodeId};
use proto::refusal;
use proxy::tls::read_peer;
use rustls_pki_types::CertificateDer;

/// What is a name is printed as it was read; nobody's name is read as another's.
pub(super) fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
        assert!(!identity.namespace().contains('/') && !identity.service_account().contains('/'));
    }
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.to_string(), text);
    }
    if let Some(address) = names::outbound_address(&text) {
        assert_eq!(names::outbound_address(&names::outbound(address)), Some(address));
    }
    if let Some(port) = names::edge_port(&text) {
        assert_eq!(names::edge_port(&names::edge(port)), Some(port));
    }
    if let Some([kind, namespace, name, rule]) = names::rule_parts(&text) {
        assert_eq!(names::rule(kind, namespace, name, rule), text);
    }
    let _ = names::dns_host(&text);
    let _ = engine::dns::reversed(&text);
    if let Ok(token) = Token::decode(&text) {
        assert_eq!(Token::decode(&token.encode()).ok(), Some(token));
    }
    let read = refusal::read(&text);
    assert!(!read.is_empty());
    let lines: Vec<String> = read.iter().map(|refusal| format!("{}: {}", refusal.resource, refusal.reason)).collect();
    let written = refusal::write(lines.iter().map(String::as_str));
    assert!(written.len() <= refusal::NACK_BYTES_MAX && !refusal::read(&written).is_empty());
}

/// A request for a certificate, or a certificate, names one identity that is one, or is refused.
pub(super) fn certificates(bytes: &[u8]) {
    if let Ok(csr) = Csr::parse(bytes) {
        assert_eq!(csr.identity.to_string().parse::<Identity>().ok(), Some(csr.identity));
        assert!(certs_ca::csr::is_name(&csr.workload));
    }
    if let Ok(peer) = read_peer(&CertificateDer::from_slice(bytes)) {
        assert_eq!(peer.identity.to_string().parse::<Identity>().as_ref().ok(), Some(&*peer.identity));
    }
}
