//! What TLS an edge speaks, asked by a scanner in bytes of its own and by openssl: the table of docs/edge-clients.md is all of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use tests::look::free_port;
use tests::scan::{FirstWords, Hello, Kind, SSL2_HELLO, Spoken, Version, named, records, say, survey};

use crate::edge::{Authority, NAME, RSA_NAME, gateway, https, route, run, shop};
use crate::mesh::{Mesh, root};

/// The cell of the page's table whose first row names the profiles.
const CORNER: &str = "`tls.profile`";
/// Alerts by number (RFC 8446, section 6).
const DECODE_ERROR: u8 = 50;
const HANDSHAKE_FAILURE: u8 = 40;
const ILLEGAL_PARAMETER: u8 = 47;
const NO_APPLICATION_PROTOCOL: u8 = 120;
const PROTOCOL_VERSION: u8 = 70;
const UNRECOGNIZED_NAME: u8 = 112;
/// The end of the randomness of a server that could have spoken TLS 1.3 (RFC 8446, section 4.1.3).
const DOWNGRADE: &[u8] = b"DOWNGRD\x01";

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// A Gateway that shows both certificates by name, and whatever says more of it.
fn edge(name: &str, port: u16, spec: &str) -> String {
    let listeners = [https("ec", port, NAME, "a"), https("rsa", port, RSA_NAME, "r")];
    let policy = format!(
        "
---
apiVersion: meshwright.dev/v1alpha1
kind: ClientPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{kind: Gateway, name: {name}}}]
  {spec}
"
    );
    gateway(name, &listeners, "") + &policy
}

/// Certificates of both kinds, their Secrets and the service behind.
fn ground(authority: &Authority) -> String {
    authority.issue("a", &format!("DNS:{NAME},DNS:b.example"), false);
    authority.issue("r", &format!("DNS:{RSA_NAME}"), true);
    [shop(&[("echo", "[meshwright, echo, --http=8080]", 8080)]), authority.secret("a", ""), authority.secret("r", "")].concat()
}

/// The page's table: by profile, what each row says.
fn page() -> BTreeMap<String, Vec<(String, String)>> {
    let text = fs::read_to_string(root().join("docs/edge-clients.md")).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {CORNER} ")));
    let profiles = cells(lines.next().expect("the page has the table"));
    let mut by_profile: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for row in lines.skip(1).take_while(|line| line.starts_with('|')).map(cells) {
        assert_eq!(row.len(), profiles.len(), "{row:?}");
        for (profile, cell) in profiles.iter().zip(&row).skip(1) {
            by_profile.entry(profile.trim_matches('`').to_owned()).or_default().push((row[0].clone(), cell.clone()));
        }
    }
    by_profile
}

/// What was found at both names, as the page says it.
fn told(ec: &Spoken, rsa: &Spoken) -> Vec<(String, String)> {
    assert!(!ec.ssl2 && !rsa.ssl2, "SSL 2.0 is spoken");
    assert_eq!(
        (&ec.versions, &ec.suites_13, &ec.groups_13),
        (&rsa.versions, &rsa.suites_13, &rsa.groups_13),
        "one terms, two certificates"
    );
    assert_eq!(ec.groups_12, rsa.groups_12);
    let list = |kind: Kind, numbers: &[u16]| match numbers {
        [] => "–".to_owned(),
        numbers => numbers.iter().map(|number| named(kind, *number)).collect::<Vec<_>>().join(", "),
    };
    let bare = match (ec.versions.contains(&Version::Tls12), ec.bare_12) {
        (false, _) => "–",
        (true, true) => "served",
        (true, false) => "sent away",
    };
    let versions: Vec<_> = ec.versions.iter().map(|version| version.text()).collect();
    [
        ("versions", versions.join(", ")),
        ("suites of 1.3", list(Kind::Suite, &ec.suites_13)),
        ("groups of 1.3", list(Kind::Group, &ec.groups_13)),
        ("signatures of 1.3, key of P-256", list(Kind::Scheme, &ec.schemes_13)),
        ("signatures of 1.3, RSA key", list(Kind::Scheme, &rsa.schemes_13)),
        ("1.2 without the extended master secret (RFC 7627)", bare.to_owned()),
        ("suites of 1.2, key of P-256", list(Kind::Suite, &ec.suites_12)),
        ("suites of 1.2, RSA key", list(Kind::Suite, &rsa.suites_12)),
        ("groups of 1.2", list(Kind::Group, &ec.groups_12)),
        ("signatures of 1.2, key of P-256", list(Kind::Scheme, &ec.schemes_12)),
        ("signatures of 1.2, RSA key", list(Kind::Scheme, &rsa.schemes_12)),
    ]
    .map(|(row, cell)| (row.to_owned(), cell))
    .to_vec()
}

/// Aim: of every profile that the page names, all versions, suites, groups and signatures that are spoken are those of its table: every number that
/// there is was offered.
#[test]
fn what_an_edge_speaks_is_what_its_page_says() {
    let authority = Authority::new();
    let profiles = page();
    assert!(profiles.contains_key("Modern") && profiles.contains_key("Strict13"), "{:?}", profiles.keys());
    let mut manifests = ground(&authority);
    let ports: Vec<(&String, u16)> = profiles.keys().map(|profile| (profile, free_port())).collect();
    for (profile, port) in &ports {
        manifests += &edge(&profile.to_lowercase(), *port, &format!("tls: {{profile: {profile}}}"));
    }
    let mesh = Mesh::start(&[("mesh.yaml", &manifests)]);
    for (profile, port) in ports {
        let [ec, rsa] = [NAME, RSA_NAME].map(|name| survey(at(port), name).unwrap());
        assert_eq!(told(&ec, &rsa), profiles[profile], "{profile}");
    }
    mesh.leave();
}

/// What is wanted of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Taken,
    Alert(u8),
    /// Whatever way: over a sealed alert, or none, nothing more can be said.
    Refused,
}

fn wanted(what: &str, answer: &FirstWords, wanted: Wanted) {
    let found = match (answer, wanted) {
        (FirstWords::Hello(_), _) => Wanted::Taken,
        (FirstWords::Alert(_) | FirstWords::Sealed | FirstWords::Closed, Wanted::Refused) => Wanted::Refused,
        (FirstWords::Alert(description), _) => Wanted::Alert(*description),
        (other, _) => panic!("{what}: {other:?}"),
    };
    assert_eq!(found, wanted, "{what}: {answer:?}");
}

/// Names, protocols, compression and extensions of a hello, and what comes of them.
fn hellos(version: Version) -> Vec<(String, Hello, Wanted)> {
    // With a share that is taken: so an alert of TLS 1.3 is about the rest.
    let plain =
        Hello { groups: vec![29], shares: if version == Version::Tls13 { vec![29] } else { Vec::new() }, ..Hello::of(version, NAME) };
    let name = |name: &[u8]| Hello { name: Some(name.to_vec()), ..plain.clone() };
    let alpn = |names: &[&str]| Hello { alpn: names.iter().map(|name| (*name).to_owned()).collect(), ..plain.clone() };
    let more = |number: u16, content: &[u8]| Hello { more: vec![(number, content.to_vec())], ..plain.clone() };
    let compressed = |methods: &[u8]| Hello { compressions: methods.to_vec(), ..plain.clone() };
    let is_13 = version == Version::Tls13;
    // Of TLS 1.3 an alert after the server's hello is sealed.
    let no_protocol = if is_13 { Wanted::Refused } else { Wanted::Alert(NO_APPLICATION_PROTOCOL) };
    let by_13 = |otherwise| if is_13 { Wanted::Alert(ILLEGAL_PARAMETER) } else { otherwise };
    let all = [
        ("as it should be", plain.clone(), Wanted::Taken),
        ("a name in upper case", name(b"A.EXAMPLE"), Wanted::Taken),
        ("an unknown name", name(b"nobody.example"), Wanted::Alert(UNRECOGNIZED_NAME)),
        ("a name that ends with a dot", name(b"a.example."), Wanted::Alert(UNRECOGNIZED_NAME)),
        ("an empty name", name(b""), Wanted::Alert(UNRECOGNIZED_NAME)),
        ("an address as a name", name(b"127.0.0.1"), Wanted::Alert(UNRECOGNIZED_NAME)),
        ("a name with a zero", name(b"a.example\0"), Wanted::Alert(UNRECOGNIZED_NAME)),
        ("a name that is no text", name(&[0xff, 0xfe]), Wanted::Alert(UNRECOGNIZED_NAME)),
        ("no name", Hello { name: None, ..plain.clone() }, Wanted::Alert(UNRECOGNIZED_NAME)),
        ("the name twice", more(0, b"\0\x0c\0\0\x09a.example"), Wanted::Alert(ILLEGAL_PARAMETER)),
        ("h2", alpn(&["h2"]), Wanted::Taken),
        ("http/1.0", alpn(&["http/1.0"]), Wanted::Taken),
        ("a protocol nobody knows, then one of ours", alpn(&["spdy/3", "http/1.1"]), Wanted::Taken),
        ("only protocols nobody knows", alpn(&["spdy/3"]), no_protocol),
        ("a protocol of the mesh's own", alpn(&["mw-h2", "mw-h1", "mw-tcp"]), no_protocol),
        ("compression beside none", compressed(&[1, 0]), by_13(Wanted::Taken)),
        ("compression alone", compressed(&[1]), Wanted::Alert(ILLEGAL_PARAMETER)),
        ("not even no compression", compressed(&[]), Wanted::Alert(DECODE_ERROR)),
        ("no suites", Hello { suites: Vec::new(), ..plain.clone() }, Wanted::Alert(DECODE_ERROR)),
        ("no groups", Hello { groups: Vec::new(), ..plain.clone() }, Wanted::Alert(HANDSHAKE_FAILURE)),
        ("no signatures", Hello { schemes: Vec::new(), ..plain.clone() }, Wanted::Alert(HANDSHAKE_FAILURE)),
        ("heartbeats", more(15, &[1]), Wanted::Taken),
        ("early data without a session", more(42, &[]), Wanted::Taken),
        ("15 KiB of padding", more(21, &[0; 15 << 10]), Wanted::Taken),
        ("60 KiB of padding, which is not looked into", more(21, &[0; 60 << 10]), Wanted::Alert(UNRECOGNIZED_NAME)),
    ];
    all.map(|(what, hello, wanted)| (format!("{}, {what}", version.text()), hello, wanted)).to_vec()
}

/// Bytes that are no hello as it should be, or come in another shape.
fn shapes(version: Version) -> Vec<(String, Vec<u8>, Wanted)> {
    let hello = Hello { groups: vec![29], ..Hello::of(version, NAME) };
    let (message, bytes) = (hello.message(), hello.bytes());
    let changed = |places: &[(usize, u8)]| {
        let mut changed = bytes.clone();
        places.iter().for_each(|(place, byte)| changed[*place] = *byte);
        changed
    };
    let oversized = |length: u16| {
        let mut record = [&[22, 3, 1][..], &length.to_be_bytes(), &message].concat();
        record.resize(5 + usize::from(length), 0);
        record
    };
    let all = [
        ("a byte a record", records(version, &message, 1), Wanted::Taken),
        ("in records of 100", records(version, &message, 100), Wanted::Taken),
        ("records of another version", changed(&[(2, 4)]), Wanted::Taken),
        ("records of no version", changed(&[(1, 5), (2, 5)]), Wanted::Refused),
        ("a record of more than there may be", oversized(0x4101), Wanted::Refused),
        ("the longest length", oversized(0xffff), Wanted::Refused),
        ("an empty record first", [&[22, 3, 1, 0, 0][..], &bytes].concat(), Wanted::Refused),
        ("a change of ciphers first", [&[20, 3, 1, 0, 1, 1][..], &bytes].concat(), Wanted::Refused),
        ("application data first", [&[23, 3, 1, 0, 1, 1][..], &bytes].concat(), Wanted::Refused),
        ("a byte too many", [&message[..], &[0]].concat(), Wanted::Refused),
    ];
    let mut all: Vec<_> = all.map(|(what, bytes, wanted)| (format!("{}, {what}", version.text()), bytes, wanted)).to_vec();
    if let Some((_, bytes, _)) = all.last_mut() {
        let length = (bytes.len() as u32 - 4).to_be_bytes();
        bytes[1..4].copy_from_slice(&length[1..]);
        *bytes = records(version, bytes, tests::scan::RECORD_BYTES_MAX);
    }
    all
}

/// Aim: whatever comes first, in pieces or broken, is answered as the page says: a hello, or a refusal with the alert that says why.
#[test]
fn first_words_of_any_kind_are_answered_as_they_should() {
    let authority = Authority::new();
    let (modern, strict) = (free_port(), free_port());
    let edges = [ground(&authority), edge("modern", modern, "tls: {profile: Modern}"), edge("strict", strict, "tls: {profile: Strict13}")];
    let mesh = Mesh::start(&[("mesh.yaml", &edges.concat())]);
    for version in [Version::Tls12, Version::Tls13] {
        for (what, hello, expected) in hellos(version) {
            wanted(&what, &say(at(modern), &hello.bytes()).unwrap(), expected);
        }
        for (what, bytes, expected) in shapes(version) {
            wanted(&what, &say(at(modern), &bytes).unwrap(), expected);
        }
    }
    for version in [Version::Ssl3, Version::Tls10, Version::Tls11, Version::Tls12] {
        let answer = say(at(strict), &Hello::of(version, NAME).bytes()).unwrap();
        // Of older ones the library misses what they do not have (a name, signatures) before it looks at the version.
        let expected = if version == Version::Tls12 { Wanted::Alert(PROTOCOL_VERSION) } else { Wanted::Refused };
        wanted(version.text(), &answer, expected);
    }
    for (what, bytes) in [("SSL 2.0", &SSL2_HELLO[..]), ("plaintext", b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n")] {
        wanted(what, &say(at(modern), bytes).unwrap(), Wanted::Refused);
    }
    let answer = say(at(modern), &Hello::of(Version::Tls12, NAME).bytes()).unwrap();
    let hello = answer.taken().expect("TLS 1.2 is spoken");
    assert!(hello.random.ends_with(DOWNGRADE), "who could have had 1.3 is to notice: {hello:?}");
    assert_eq!((hello.compression, hello.extension(15)), (0, None), "no compression, no heartbeats: {hello:?}");
    mesh.leave();
}

/// Clients that speak TLS 1.2 and nothing newer, as they come: a command that prints `served` where its handshake went through. `PORT` stands for the port.
const CLIENTS_OF_12: [(&str, &str); 6] = [
    (
        "openssl",
        "openssl s_client -tls1_2 -servername a.example -connect 127.0.0.1:PORT </dev/null 2>&1 | grep -q 'Cipher is ECDHE' && echo served",
    ),
    ("curl", "curl -sk --tls-max 1.2 -o /dev/null --resolve a.example:PORT:127.0.0.1 https://a.example:PORT/ && echo served"),
    (
        "python",
        "python3 -c \"import ssl, socket
context = ssl.create_default_context()
context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
context.wrap_socket(socket.create_connection(('127.0.0.1', PORT)), server_hostname='a.example')
print('served')\"",
    ),
    (
        "node",
        "node -e \"require('tls').connect({port: PORT, host: '127.0.0.1', servername: 'a.example', maxVersion: 'TLSv1.2', rejectUnauthorized: false}, \
         () => { console.log('served'); process.exit(0) })\"",
    ),
    ("go", "go run client.go 127.0.0.1:PORT"),
    ("java", "java Client.java PORT"),
];
const GO: &str = "package main

import (\"crypto/tls\"; \"fmt\"; \"os\")

func main() {
	config := tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, ServerName: \"a.example\"}
	if _, err := tls.Dial(\"tcp\", os.Args[1], &config); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(\"served\")
}
";
const JAVA: &str = "import java.security.cert.X509Certificate;
import java.util.List;
import javax.net.ssl.*;

public class Client {
    public static void main(String[] words) throws Exception {
        TrustManager anybody = new X509TrustManager() {
            public void checkClientTrusted(X509Certificate[] chain, String kind) {}
            public void checkServerTrusted(X509Certificate[] chain, String kind) {}
            public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
        };
        SSLContext context = SSLContext.getInstance(\"TLS\");
        context.init(null, new TrustManager[] {anybody}, null);
        SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket(\"127.0.0.1\", Integer.parseInt(words[0]));
        SSLParameters said = socket.getSSLParameters();
        said.setServerNames(List.of(new SNIHostName(\"a.example\")));
        said.setProtocols(new String[] {\"TLSv1.2\"});
        socket.setSSLParameters(said);
        socket.startHandshake();
        System.out.println(\"served\");
    }
}
";

/// Aim: clients of TLS 1.2 that people have are served by `Modern`, for they all say the extended master secret; one that is told not to is sent
/// away there, and served by `Compatible`.
#[test]
fn clients_of_tls_1_2_are_served() {
    let authority = Authority::new();
    let (modern, compatible) = (free_port(), free_port());
    let edges = [
        ground(&authority),
        edge("modern", modern, "tls: {profile: Modern}"),
        edge("compatible", compatible, "tls: {profile: Compatible}"),
    ];
    let mesh = Mesh::start(&[("mesh.yaml", &edges.concat())]);
    fs::write(authority.file("client.go"), GO).unwrap();
    fs::write(authority.file("Client.java"), JAVA).unwrap();
    let served = |command: &str, port: u16| {
        let command = command.replace("PORT", &port.to_string());
        let said = run("sh", &["-c", &format!("cd {} && {{ {command}; }} 2>&1 || true", authority.folder().display())]);
        (said.contains("served"), said)
    };
    for (name, command) in CLIENTS_OF_12 {
        for port in [modern, compatible] {
            let (is, said) = served(command, port);
            assert!(is, "{name}: {said}");
        }
    }
    let without = "java -Djdk.tls.useExtendedMasterSecret=false Client.java PORT";
    for (port, wanted) in [(modern, false), (compatible, true)] {
        let (is, said) = served(without, port);
        assert_eq!(is, wanted, "{said}");
    }
    mesh.leave();
}

/// What openssl's client says of one connection on which it asks for a page.
fn openssl(authority: &Authority, port: u16, more: &[&str]) -> String {
    let line = [
        "timeout 10 openssl s_client -ign_eof -CAfile",
        &authority.path("ca.crt"),
        "-connect",
        &format!("127.0.0.1:{port}"),
        &more.join(" "),
    ]
    .join(" ");
    // It keeps what came of its session once there is an answer.
    run("sh", &["-c", &format!("printf 'GET / HTTP/1.1\\r\\nhost: {NAME}\\r\\nconnection: close\\r\\n\\r\\n' | {line} 2>&1")])
}

/// Aim: a ticket opens the session of its own name, certificate and terms for clients, and no other; nothing is taken before the handshake's end,
/// and nobody negotiates anew.
#[test]
fn sessions_are_those_of_whom_they_were_made_for() {
    let authority = Authority::new();
    let (port, proving) = (free_port(), free_port());
    let clients = format!(
        "
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: clients, namespace: shop}}
data:
  ca.crt: |
{}
",
        authority.indented("ca.crt")
    );
    let believed = "  tls: {frontend: {default: {validation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: clients}]}}}}";
    let listeners = [https("ec", port, NAME, "a"), https("rsa", port, RSA_NAME, "r"), https("other", port, "b.example", "a")];
    let manifests = [
        ground(&authority),
        clients,
        gateway("edge", &listeners, ""),
        gateway("proving", &[https("ec", proving, NAME, "a")], believed),
        route("echo", &["edge", "proving"], "", "echo"),
    ];
    authority.issue("client", "URI:spiffe://partner/acme", false);
    let mesh = Mesh::start(&[("mesh.yaml", &manifests.concat())]);
    let file = |name: &str| authority.path(name);
    let shown = ["-cert", &file("client.crt"), "-key", &file("client.key")].map(str::to_owned);
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    let (shown, nothing): (&[&str], &[&str]) = (&shown, &[]);
    for version in ["-tls1_2", "-tls1_3"] {
        let (own, of_prover) = (file("session"), file("proved"));
        for (port, kept, shown) in [(port, &own, nothing), (proving, &of_prover, shown)] {
            let said = openssl(&authority, port, &[&[version, "-servername", NAME, "-sess_out", kept][..], shown].concat());
            assert!(said.contains("\nNew, ") && said.contains("HTTP/1.1 200"), "{version}: {said}");
            assert!(said.contains("Compression: NONE"), "{said}");
            if version == "-tls1_3" {
                assert!(said.contains("Max Early Data: 0"), "{said}");
            }
        }
        for (what, port, session, name, shown, resumed) in [
            ("its own name", port, &own, NAME, nothing, true),
            ("another name of the same certificate", port, &own, "b.example", nothing, false),
            ("another certificate", port, &own, RSA_NAME, nothing, false),
            ("where clients prove themselves", proving, &own, NAME, shown, false),
            ("of who has proved itself", proving, &of_prover, NAME, shown, true),
            ("of who has proved itself, where nobody does", port, &of_prover, NAME, nothing, false),
        ] {
            let said = openssl(&authority, port, &[&[version, "-servername", name, "-sess_in", session][..], shown].concat());
            assert_eq!(said.contains("\nReused, "), resumed, "{version}, {what}: {said}");
        }
    }
    let again =
        format!("(sleep 1; echo R; sleep 1) | timeout 10 openssl s_client -tls1_2 -servername {NAME} -connect 127.0.0.1:{port} 2>&1");
    let said = run("sh", &["-c", &again]);
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    mesh.leave();
}
