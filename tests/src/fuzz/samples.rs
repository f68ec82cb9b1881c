//! Valid inputs.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

/// `catalog-v1` of `spiffe://cluster.local/ns/shop/sa/catalog`; its key is nobody's.
const REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBFzCBvgIBADAVMRMwEQYDVQQDDApjYXRhbG9nLXYxMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAE72XbzRpnDKaqiuPj7ygMSUHVPZHlOWlnr/5/dUmH5MCR6c5U
8w0Ag0f7q8GtkeSI8YE+JhG1wykE4Sm7JvrcDqBHMEUGCSqGSIb3DQEJDjE4MDYw
NAYDVR0RBC0wK4Ypc3BpZmZlOi8vY2x1c3Rlci5sb2NhbC9ucy9zaG9wL3NhL2Nh
dGFsb2cwCgYIKoZIzj0EAwIDSAAwRQIgDivG+zIJQOOriFXBGsbQV3/Qvq8+90Js
po8Xvx5L+GwCIQDKQOmgYcGCqRdjoISUn3PXtdanGx+/yKnolLH4R3wVKQ==
-----END CERTIFICATE REQUEST-----";
/// The same, signed by itself.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBtjCCAV2gAwIBAgIUHta8xwZWcBc83/2Nn0a+ZwNGBiIwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKY2F0YWxvZy12MTAeFw0yNjExMjkwODM2MDBaFw0zNjExMjYw
ODM2MDBaMBUxEzARBgNVBAMMCmNhdGFsb2ctdjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATvZdvNGmcMpqqK4+PvKAxJQdU9keU5aWev/n91SYfkwJHpzlTzDQCD
R/urwa2R5IjxgT4mEbXDKQThKbsm+twOo4GKMIGHMB0GA1UdDgQWBBTycWpEv5bN
A7QzrEkFrMAvXKtHiTAfBgNVHSMEGDAWgBTycWpEv5bNA7QzrEkFrMAvXKtHiTAP
BgNVHRMBAf8EBTADAQH/MDQGA1UdEQQtMCuGKXNwaWZmZTovL2NsdXN0ZXIubG9j
YWwvbnMvc2hvcC9zYS9jYXRhbG9nMAoGCCqGSM49BAMCA0cAMEQCICZdklTaZ394
2FigmExI+h4jSCKvHh/Ku4e0WwwCOVzDAiBC9vnbf6cvqkdVqgBuhXEo3XuvyHFw
oiWAsNMkpuaiUQ==
-----END CERTIFICATE-----";

/// Public half of a key that nobody has any more.
pub(super) const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"-I6ea_HuWoLVr_rG0nbq-cFmlInVso-vtMXaSzTRKQY","y":"7Gtp_lgUYL2pFTDRXCU_-GzXsTn58pTxM9X8jDWhspw"}]}"#;
/// Of that key: `ada`, until 2100.
const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJzdWIiOiJhZGEiLCJleHAiOjQxMDI0NDQ4MDB9.\
                     Cdzb-CWYiQhcJCTVqFHOR5zjyNiLvP-exsDbVERMYXhzXQLaEa_0d3CD3_ZEyVvIsvjonApmPy-cmWBcAsNH2A";

fn all(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn sized(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(0).to_be_bytes();
    [&length[4 - length_bytes..], content].concat()
}

/// A ClientHello in one record (RFC 8446, section 4.1.2), with a server name and protocols.
fn client_hello(name: &str, protocols: &[&str]) -> Vec<u8> {
    let extension = |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &sized(2, content)].concat();
    let names = sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat());
    let offered: Vec<u8> = protocols.iter().flat_map(|protocol| sized(1, protocol.as_bytes())).collect();
    let extensions = [extension(0, &names), extension(16, &sized(2, &offered)), extension(43, &[2, 3, 4])].concat();
    let hello = [&[3, 3][..], &[7; 32], &[0], &sized(2, &[0x13, 1]), &[1, 0], &sized(2, &extensions)].concat();
    let message = [&[1][..], &sized(3, &hello)].concat();
    [&[22, 3, 1][..], &sized(2, &message)].concat()
}

pub(super) fn first_bytes() -> Vec<Vec<u8>> {
    let mut first =
        all(&["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /a?b HTTP/1.0\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "SSH-2.0-x\r\n"]);
    first.push(client_hello("catalog.shop", &["h2", "http/1.1"]));
    first.push(client_hello("", &[]));
    // The same in records of a few bytes.
    let hello = client_hello("a", &["mw-h2"]);
    first.push(hello[5..].chunks(9).flat_map(|piece| [&[22, 3, 1][..], &sized(2, piece)].concat()).collect());
    first
}

pub(super) fn frames() -> Vec<Vec<u8>> {
    let frame = |kind: u8, flags: u8, payload: &[u8]| [&sized(3, payload)[..3], &[kind, flags, 0, 0, 0, 1], payload].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let some = [
        frame(4, 0, &[0, 3, 0, 0, 0, 100]),
        frame(1, 4, b"\x82\x84\x86"),
        frame(0, 0, &[7; 50]),
        frame(8, 0, &[0, 0, 0, 9]),
        frame(0, 1, &[]),
    ];
    vec![[preface, some.concat()].concat(), some.concat(), frame(6, 0, &[0; 8]).repeat(50), frame(0, 0, &[]).repeat(90)]
}

pub(super) fn questions() -> Vec<Vec<u8>> {
    let question = |name: &str, kind: u16, edns: bool| {
        let labels: Vec<u8> = name.split('.').filter(|label| !label.is_empty()).flat_map(|label| sized(1, label.as_bytes())).collect();
        let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        let option: &[u8] = if edns { &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0] } else { &[] };
        [&head[..], &labels, &[0], &kind.to_be_bytes(), &[0, 1], option].concat()
    };
    vec![
        question("catalog.shop.svc.cluster.local", 1, true),
        question("catalog.shop.svc.cluster.local", 28, false),
        question("catalog.shop", 255, false),
        question("_http._tcp.catalog.shop.svc.cluster.local", 33, true),
        question("1.0.96.10.in-addr.arpa", 12, false),
        question("none.shop.svc.cluster.local", 1, true),
        question("example.com", 1, true),
    ]
}

pub(super) fn heads() -> Vec<Vec<u8>> {
    let packed =
        format!("GET / HTTP/1.1\nhost: a\n{}x-meshwright-fields: x-p:3:abc", (0..99).map(|n| format!("x-{n}: {n}\n")).collect::<String>());
    let mut heads = all(&[
        "GET / HTTP/1.1\nhost: a\nconnection: keep-alive, x-a\nx-a: b\nte: trailers",
        "POST http://a:80/b/../c?d HTTP/1.1\nhost: b\ntransfer-encoding: gzip, chunked\nexpect: 100-continue",
        "GET http://a/b HTTP/2\nhost: a\ncookie: a=1\ncookie: b=2\ngrpc-timeout: 10S\ncontent-type: application/grpc",
        "CONNECT a:80 HTTP/1.1\nhost: a:80",
        "GET / HTTP/1.1\nhost: a\nupgrade: websocket\nconnection: Upgrade",
        "GET / HTTP/1.0\ncontent-length: 5\nx-meshwright-deadline-ms: 100\nx-meshwright-retry: 1\ntracestate: mw=rd1780272001000,a=b",
        "GET / HTTP/1.1\nhost: [::1]:80\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate: a=b,c=d",
        "GET / HTTP/1.1\nhost: a\nb3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90",
        "GET / HTTP/1.1\nhost: a\nx-b3-traceid: 80f198ee56343ba8\nx-b3-spanid: e457b5a2e4d86bd1\nx-b3-sampled: 1\nx-b3-flags: 1",
        "OPTIONS * HTTP/1.1\nhost: a\norigin: https://a\naccess-control-request-method: PUT",
    ]);
    heads.push(packed.into_bytes());
    heads
}

pub(super) fn tokens() -> Vec<Vec<u8>> {
    let head = |line: &str, fields: &str| format!("GET {line} HTTP/1.1\nhost: a\n{fields}").into_bytes();
    vec![
        head("/", &format!("authorization: Bearer {TOKEN}\nx-user: root\nx_user: root")),
        head(&format!("/a?b=c&token={TOKEN}&d"), "x-user: root"),
        head("/", &format!("cookie: a=b; sid={TOKEN}; c=d\ncookie: sid=\"{TOKEN}\"")),
        head(&format!("/?token={TOKEN}"), &format!("authorization: bearer  {TOKEN}")),
        head("/?token=&%74oken=a", "authorization: Basic YTpi\ncookie: sid="),
    ]
}

pub(super) fn paths() -> Vec<Vec<u8>> {
    all(&[
        "/a/./b/../c?d=/../e",
        "/%2e%2E/a",
        "/a/%2e./b;c/..;/d",
        "//a//../b",
        "http://a/b/../c",
        "/a%2f..%2fb",
        "/a/%252e%252e/b",
        "/%c0%ae%c0%ae/",
    ])
}

pub(super) fn names() -> Vec<Vec<u8>> {
    all(&[
        "spiffe://cluster.local/ns/shop/sa/catalog",
        "sidecar/shop/catalog-v1-0",
        "edge/shop/gateway",
        "out/10.96.0.1:80",
        "out/[fd00:6d77::1]:80",
        "edge/8080",
        "dns/catalog.shop.svc.cluster.local",
        "HTTPRoute/shop/catalog/0",
        "1.0.96.10.in-addr.arpa",
        "Cluster shop/catalog:80: name: is empty\nListener inbound: filter_chains[3]: refused\n… and 7 more",
        "mw1.eyJ3b3JrbG9hZCI6InNob3AvY2F0YWxvZyIsImNhIjoiMDAiLCJzZWNyZXQiOiJhYSIsImlkZW50aXR5IjoiIn0",
    ])
}

pub(super) fn certificates() -> Vec<Vec<u8>> {
    let request = CertificateSigningRequestDer::from_pem_slice(REQUEST.as_bytes()).expect("a request");
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).expect("a certificate");
    vec![request.to_vec(), certificate.to_vec()]
}

/// A mesh, object by object.
pub(super) fn manifests() -> Vec<Vec<u8>> {
    let whole = include_str!("samples.yaml");
    let parts = whole.split("\n---\n").map(|part| part.as_bytes().to_vec());
    [whole.as_bytes().to_vec()].into_iter().chain(parts).collect()
}

/// Headers of the PROXY protocol, of both versions.
pub(super) fn proxied() -> Vec<Vec<u8>> {
    let binary = |command: u8, family: u8, addresses: &[u8]| {
        let length = u16::try_from(addresses.len()).unwrap_or_default().to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, addresses, b"GET / HTTP/1.1\r\n"].concat()
    };
    vec![
        b"PROXY TCP4 203.0.113.9 10.0.0.1 8080 443\r\nGET / HTTP/1.1\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::9 ::1 8080 443\r\n\x16\x03\x01".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        binary(0x21, 0x11, &[203, 0, 113, 9, 10, 0, 0, 1, 31, 144, 1, 187]),
        binary(0x21, 0x21, &[1; 36]),
        binary(0x21, 0x11, &[&[1; 12][..], &[3, 0, 4, 1, 2, 3, 4]].concat()),
        binary(0x20, 0, &[]),
    ]
}

#[cfg(test)]
mod tests {
    use control::source;
    use control::world::Severity;

    use super::*;
    use crate::fuzz::changes;

    #[test]
    fn every_object_is_taken_and_every_kind_of_resource_comes_of_them() {
        // Aim: mutants begin from what is read to its end: a sample that is refused at its first field reaches no other.
        let objects = manifests();
        // The last shows what YAML can do and is no object.
        let (_, objects) = objects[1..].split_last().unwrap();
        for text in objects {
            let text = String::from_utf8_lossy(text);
            let parsed = source::parse("sample.yaml", &text);
            let problems = parsed.problems.iter().chain(parsed.candidates.iter().flat_map(|candidate| &candidate.problems));
            let errors: Vec<_> = problems.filter(|problem| problem.severity == Severity::Error).map(ToString::to_string).collect();
            assert_eq!(errors, Vec::<String>::new(), "{text}");
        }
        let made = changes::kinds_made();
        for kind in
            ["Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment", "Authorization", "Authentication", "Egress", "Trust"]
        {
            assert!(made.iter().any(|url| url.ends_with(&format!(".{kind}"))), "{kind} of {made:?}");
        }
    }
}
