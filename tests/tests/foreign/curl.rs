//! curl, with what it has, against an edge before nginx and the test service. Whatever it asks for arrives, and what comes back is what was sent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::look::free_port;

use crate::edge::{Authority, NAME, gateway, http, https, route, run, shop};
use crate::mesh::{Mesh, client, eventually, python, text};

/// Bytes of the file that is fetched.
const FILE_BYTES: usize = 1_000_000;
/// Bytes of an upload that no proxy may hold.
const UPLOAD_BYTES: usize = 100_000_000;
/// What a proxy's memory may grow by while it passes that on.
const GROWTH_KIB_MAX: u64 = 24 << 10;
/// What a client may hold of its answer there that takes next to nothing of it.
const READER_KIB_MAX: u64 = 2 << 10;
/// What others wait beside such clients, on a crowded machine.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Ports of the Gateways on this machine.
struct Ports {
    plain: u16,
    tls: u16,
    /// Where clients come by the PROXY protocol.
    proxied: u16,
    /// Where they prove themselves.
    proven: u16,
}

/// The edge and what is needed to ask it.
struct Ground {
    mesh: Mesh,
    authority: Authority,
    ports: Ports,
}

/// nginx with a file, compressed where that is asked for, a cookie, and an answer with a trailer.
fn nginx(folder: &str) -> String {
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].iter().map(|kind| format!("{kind}_temp_path {folder}/{kind};")).collect();
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
         events {{}}
         http {{
           access_log off; default_type text/plain; gzip on; gzip_types text/plain; {temporary}
           server {{
             listen 8081;
             root {folder}/www;
             location /files/cookie {{ add_header Set-Cookie 'seen=1; Path=/'; return 200 'cookie=$http_cookie\\n'; }}
             location /files/trailers {{ alias {folder}/www/files/small; gzip off; add_trailer x-sum abc; }}
           }}
         }}"
    )
}

impl Ground {
    fn new() -> Self {
        let authority = Authority::new();
        authority.issue("a", &format!("DNS:{NAME}"), false);
        // With its issuer behind it: curl looks for that in the chain when it reads what is stapled.
        let chain = ["a.crt", "ca.crt"].map(|file| fs::read_to_string(authority.file(file)).unwrap());
        fs::write(authority.file("a.crt"), chain.concat()).unwrap();
        authority.issue("client", "URI:spiffe://partner/acme,DNS:acme.example", false);
        fs::set_permissions(authority.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        let folder = authority.folder().display().to_string();
        fs::create_dir_all(authority.file("www/files")).unwrap();
        let line = "what is sent arrives, whole and in its order\n";
        fs::write(authority.file("www/files/big"), &line.repeat(FILE_BYTES / line.len() + 1)[..FILE_BYTES]).unwrap();
        fs::write(authority.file("www/files/small"), "hello\n").unwrap();
        fs::write(authority.file("nginx.conf"), nginx(&folder)).unwrap();
        let ports = Ports { plain: free_port(), tls: free_port(), proxied: free_port(), proven: free_port() };
        let command = format!("[nginx, -c, {folder}/nginx.conf]");
        let mesh = Mesh::start(&[("mesh.yaml", &manifests(&authority, &ports, &command))]);
        let ground = Self { mesh, authority, ports };
        eventually("nginx answers", Duration::from_secs(20), || {
            ground.curl(&["-o", "/dev/null", &ground.tls("/files/small")]).ends_with(" 200").then_some(())
        });
        ground
    }

    fn tls(&self, path: &str) -> String {
        format!("https://{NAME}:{}{path}", self.ports.tls)
    }

    fn plain(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports.plain)
    }

    /// Runs curl; what it says, and in the last line the version and the status of the last answer.
    fn curl(&self, more: &[&str]) -> String {
        let authority = self.authority.path("ca.crt");
        let connect = format!("{NAME}::127.0.0.1:");
        let always = ["-s", "--max-time", "60", "--cacert", &authority, "--connect-to", &connect, "-w", "\n%{http_version} %{http_code}"];
        run("curl", &[&always[..], more].concat())
    }
}

fn manifests(authority: &Authority, ports: &Ports, nginx: &str) -> String {
    let clients = format!(
        "
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: clients, namespace: shop}}
data:
  ca.crt: |
{}
---
apiVersion: meshwright.dev/v1alpha1
kind: ClientPolicy
metadata: {{name: proxied, namespace: shop}}
spec: {{targetRefs: [{{kind: Gateway, name: proxied}}], proxyProtocol: {{mode: Require, trustedCidrs: [127.0.0.0/8]}}}}
---
apiVersion: meshwright.dev/v1alpha1
kind: ClientPolicy
metadata: {{name: edge, namespace: shop}}
spec: {{targetRefs: [{{kind: Gateway, name: edge}}], headers: {{hsts: 1h}}}}
",
        authority.indented("ca.crt")
    );
    let believed = "  tls: {frontend: {default: {validation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: clients}]}}}}";
    let all = ["edge", "proxied", "proven"];
    [
        shop(&[("echo", "[meshwright, echo, --http=8080]", 8080), ("files", nginx, 8081)]),
        authority.secret("a", &stapled(authority)),
        clients,
        gateway("edge", &[http("http", ports.plain), https("https", ports.tls, NAME, "a")], ""),
        gateway("proxied", &[https("https", ports.proxied, "", "a")], ""),
        gateway("proven", &[https("https", ports.proven, "", "a")], believed),
        route("echo", &all, "", "echo"),
        route("files", &all, "[{path: {type: PathPrefix, value: /files}}]", "files"),
    ]
    .concat()
}

/// What the authority says of its certificate, to be stapled (RFC 6960).
fn stapled(authority: &Authority) -> String {
    let serial = text(&authority.openssl(&["x509", "-in", "a.crt", "-noout", "-serial"]).stdout);
    let serial = serial.trim().trim_start_matches("serial=");
    fs::write(authority.file("index.txt"), format!("V\t360101000000Z\t\t{serial}\tunknown\t/CN=a\n")).unwrap();
    let by =
        ["ocsp", "-index", "index.txt", "-CA", "ca.crt", "-rsigner", "ca.crt", "-rkey", "ca.key", "-issuer", "ca.crt", "-cert", "a.crt"];
    authority.openssl(&[&by[..], &["-ndays", "7", "-respout", "staple.der"]].concat());
    let base64 = text(&authority.openssl(&["base64", "-A", "-in", "staple.der"]).stdout);
    format!("data: {{tls.ocsp-staple: {}}}", base64.trim())
}

/// What curl is asked to do, and what it has to say: its last line, and words before.
type Case<'c> = (&'c str, Vec<&'c str>, &'c str, &'c [&'c str]);

fn versions<'c>(plain: &'c str, tls: &'c str) -> Vec<Case<'c>> {
    vec![
        ("HTTP/1.1", vec!["--http1.1", tls], "1.1 200", &["\"workload\":\"echo\""]),
        ("HTTP/1.0", vec!["--http1.0", tls], "1 200", &["\"workload\":\"echo\""]),
        ("HTTP/2 by ALPN", vec!["--http2", tls], "2 200", &["\"x-forwarded-proto\":[\"https\"]"]),
        ("no ALPN", vec!["--no-alpn", tls], "1.1 200", &["\"workload\":\"echo\""]),
        ("TLS 1.2", vec!["--tls-max", "1.2", tls], "2 200", &["\"workload\":\"echo\""]),
        ("TLS 1.3", vec!["--tlsv1.3", tls], "2 200", &["\"workload\":\"echo\""]),
        ("TLS 1.1", vec!["--tls-max", "1.1", tls], "0 000", &[]),
        ("HTTP/2 by prior knowledge", vec!["--http2-prior-knowledge", plain], "2 200", &["\"x-forwarded-proto\":[\"http\"]"]),
        ("an upgrade to HTTP/2, which is none", vec!["--http2", plain], "1.1 200", &["\"workload\":\"echo\""]),
        ("the same with a body", vec!["--http2", "-d", "abc", plain], "1.1 200", &["\"body_bytes\":3"]),
        ("a stapled status", vec!["--cert-status", tls], "2 200", &["\"workload\":\"echo\""]),
        ("HSTS", vec!["-D", "-", "-o", "/dev/null", tls], "2 200", &["strict-transport-security: max-age=3600"]),
    ]
}

fn requests<'c>(plain: &'c str, tls: &'c str) -> Vec<Case<'c>> {
    let long = ["-H", "Transfer-Encoding: chunked", "-d", "hello"];
    let with = |more: &[&'c str]| [more, &[tls]].concat();
    vec![
        ("a method of its own", with(&["-X", "FROB-NICATE"]), "2 200", &["\"method\":\"FROB-NICATE\""]),
        ("DELETE", with(&["-X", "DELETE"]), "2 200", &["\"method\":\"DELETE\""]),
        ("OPTIONS of the server", with(&["-X", "OPTIONS", "--request-target", "*"]), "2 200", &["\"path\":\"*\""]),
        (
            "a target in absolute form",
            vec!["--http1.1", "--request-target", "http://b.example/x", plain],
            "1.1 200",
            &["\"host\":\"b.example\"", "\"path\":\"/x\""],
        ),
        ("a form", with(&["-F", "a=b", "-F", "c=d;type=text/plain"]), "2 200", &["multipart/form-data; boundary="]),
        ("chunks over HTTP/1.1", with(&[&["--http1.1"][..], &long].concat()), "1.1 200", &["\"body_bytes\":5"]),
        ("a body without a length over HTTP/2", with(&["-T", "/dev/null"]), "2 200", &["\"method\":\"PUT\"", "\"body_bytes\":0"]),
        (
            "Expect over HTTP/1.1",
            with(&["-v", "--http1.1", "-H", "Expect: 100-continue", "-d", "abc"]),
            "1.1 200",
            &["< HTTP/1.1 100 Continue", "\"body_bytes\":3"],
        ),
        ("Expect over HTTP/2", with(&["-v", "--http2", "-H", "Expect: 100-continue", "-d", "abc"]), "2 200", &["\"body_bytes\":3"]),
        ("an expectation that is none", with(&["--http1.1", "-H", "Expect: the best", "-d", "abc"]), "1.1 417", &["bad_request"]),
        ("TE: gzip", with(&["--http1.1", "--tr-encoding"]), "1.1 200", &["\"workload\":\"echo\""]),
        (
            "a header of this hop",
            with(&["--http1.1", "-H", "Connection: x-hop", "-H", "x-hop: 1", "-H", "x-kept: 2"]),
            "1.1 200",
            &["\"x-kept\":[\"2\"]"],
        ),
        ("an empty header", with(&["-H", "x-empty;"]), "2 200", &["\"x-empty\":[\"\"]"]),
        ("no host", with(&["--http1.1", "-H", "Host:"]), "1.1 400", &["bad_request"]),
        ("the host of no listener", with(&["-H", "Host: r.example"]), "2 404", &["no_route"]),
        ("a password", with(&["-u", "ada:secret"]), "2 200", &["\"authorization\":[\"Basic YWRhOnNlY3JldA==\"]"]),
    ]
}

fn files<'c>(big: &'c str, small: &'c str, etag: &'c str) -> Vec<Case<'c>> {
    let quiet = ["-o", "/dev/null"];
    let range = |range: &'c str| vec!["-i", "-r", range, big];
    vec![
        ("a range", range("10-19"), "2 206", &["content-range: bytes 10-19/1000000", "\r\n\r\nnt arrives\n"]),
        ("the last bytes", range("-5"), "2 206", &["content-range: bytes 999995-999999/1000000"]),
        ("two ranges", range("0-3,10-13"), "2 206", &["multipart/byteranges", "Content-Range: bytes 10-13/1000000"]),
        ("a range of nothing", range("2000000-"), "2 416", &["content-range: bytes */1000000"]),
        (
            "going on where it broke off",
            [&["-C", "999990"][..], &quiet, &["-D", "-", big]].concat(),
            "2 206",
            &["bytes 999990-999999/1000000"],
        ),
        ("only the head", vec!["-I", big], "2 200", &["content-length: 1000000", "accept-ranges: bytes"]),
        ("only the head over HTTP/1.1", vec!["--http1.1", "-I", big], "1.1 200", &["Content-Length: 1000000"]),
        ("a tag that is kept", [&["--etag-save", etag][..], &quiet, &[small]].concat(), "2 200", &[]),
        ("a tag that is still so", [&["--etag-compare", etag][..], &quiet, &[small]].concat(), "2 304", &[]),
        ("nothing newer", [&["-z", "Tue, 01 Dec 2037 00:00:00 GMT"][..], &quiet, &[small]].concat(), "2 304", &[]),
        ("no more than so much", [&["--max-filesize", "1000"][..], &quiet, &[big]].concat(), "2 200", &[]),
    ]
}

fn check(ground: &Ground, cases: Vec<Case<'_>>) {
    for (what, arguments, last, words) in cases {
        let said = ground.curl(&arguments);
        assert!(said.ends_with(&format!("\n{last}")), "{what}: {said}");
        for word in words {
            assert!(said.contains(word), "{what}: no {word:?} in {said}");
        }
    }
}

/// Every request of many at once is answered 200; how many connections that took.
fn at_once(ground: &Ground, version: &str, count: usize) -> usize {
    let url = ground.tls(&format!("/?bytes=20000&n=[1-{count}]"));
    let format = ["-Z", "--parallel-max", "100", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n"];
    let said = ground.curl(&[&format[..], &[version, &url]].concat());
    let answers: Vec<&str> = said.lines().filter(|line| line.starts_with("200 ")).collect();
    assert_eq!(answers.len(), count, "{said}");
    answers.iter().map(|line| line[4..].parse::<usize>().unwrap()).sum()
}

/// Aim: whatever curl can ask of a server over every version that it speaks arrives at the backend, and what comes back is whole.
#[test]
fn curl_gets_what_it_asks_for() {
    let ground = Ground::new();
    let (plain, tls) = (ground.plain("/"), ground.tls("/"));
    let (big, small, etag) = (ground.tls("/files/big"), ground.tls("/files/small"), ground.authority.path("etag"));
    check(&ground, versions(&plain, &tls));
    check(&ground, requests(&plain, &tls));
    check(&ground, files(&big, &small, &etag));
    assert!(!ground.curl(&["-D", "-", "-o", "/dev/null", &plain]).contains("strict-transport-security"), "HSTS is said over TLS alone");
    assert!(
        !ground.curl(&["--http1.1", "-H", "Connection: x-hop", "-H", "x-hop: 1", &tls]).contains("x-hop"),
        "a header of one hop went on"
    );

    let jar = ground.authority.path("jar");
    let cookie = ground.tls("/files/cookie");
    let said = ground.curl(&["-b", "", "-c", &jar, &cookie, &cookie]);
    assert!(said.contains("cookie=\n") && said.contains("cookie=seen=1\n"), "{said}");
    let whole = fs::read(ground.authority.file("www/files/big")).unwrap();
    for more in [&["--compressed", "--http1.1"][..], &["--compressed", "--http2"], &["--limit-rate", "200k"]] {
        let got = ground.authority.path("got");
        let said = ground.curl(&[more, &["-D", "-", "-o", &got, &big]].concat());
        assert_eq!(fs::read(&got).unwrap(), whole, "{more:?}");
        assert_eq!(said.to_lowercase().contains("content-encoding: gzip"), more[0] == "--compressed", "{said}");
    }
    let trailers = ground.tls("/files/trailers");
    let said = ground.curl(&["--http1.1", "--raw", "-H", "TE: trailers", &trailers]);
    assert!(said.contains("6\r\nhello\n\r\n0\r\nx-sum: abc\r\n\r\n"), "{said}");
    let said = ground.curl(&["--http2", "-v", "-H", "TE: trailers", &trailers]);
    assert!(said.contains("< x-sum: abc"), "{said}");

    assert_eq!(at_once(&ground, "--http2", 400), 1, "one connection of HTTP/2 has room for a hundred at once");
    assert!(at_once(&ground, "--http1.1", 400) <= 100);
    let said = ground.curl(&["-w", "%{num_connects}\n", "-o", "/dev/null", "-o", "/dev/null", "--http1.1", &tls, &tls]);
    assert_eq!(said, "1\n0\n", "a connection is kept");
    ground.mesh.leave();
}

/// Aim: heads beyond the bounds are told so over both versions, by the reason; clients of the PROXY protocol and with certificates are met as such,
/// others not at all.
#[test]
fn curl_is_told_what_is_too_much_and_who_it_is() {
    let ground = Ground::new();
    let tls = ground.tls("/");
    let long = format!("x-long: {}", "a".repeat(70_000));
    let many: Vec<String> = (0..100).flat_map(|n| ["-H".to_owned(), format!("x-{n}: 1")]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let path = ground.tls(&format!("/{}", "a".repeat(17_000)));
    for (version, last) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let said = ground.curl(&[&["-i", version][..], &many, &[tls.as_str()]].concat());
        assert!(said.contains("too_large") && said.ends_with(&format!("\n{last} 431")), "{said}");
        let said = ground.curl(&[version, &path]);
        assert!(said.contains("too_large") && said.ends_with(&format!("\n{last} 414")), "{said}");
    }
    let said = ground.curl(&["--http1.1", "-i", "-H", &long, &tls]);
    assert!(said.contains("too_large") && said.ends_with("\n1.1 431"), "{said}");

    let proxied = format!("https://{NAME}:{}/", ground.ports.proxied);
    let said = ground.curl(&["--haproxy-protocol", &proxied]);
    assert!(said.contains("\"x-forwarded-for\":[\"127.0.0.1\"]") && said.ends_with("\n2 200"), "{said}");
    assert!(ground.curl(&[&proxied]).ends_with("\n0 000"), "who does not say whom it brings is closed");

    let proven = format!("https://{NAME}:{}/", ground.ports.proven);
    let (certificate, key) = (ground.authority.path("client.crt"), ground.authority.path("client.key"));
    for version in ["1.2", "1.3"] {
        let said = ground.curl(&["--tls-max", version, "--cert", &certificate, "--key", &key, &proven]);
        assert!(said.contains("URI=spiffe://partner/acme;DNS=acme.example") && said.ends_with("\n2 200"), "{said}");
        assert!(ground.curl(&["--tls-max", version, &proven]).ends_with(" 000"), "who shows nothing is not let in");
    }
    let websocket = format!("ws://127.0.0.1:{}/", ground.ports.plain);
    assert_eq!(run(python().to_str().unwrap(), &[&client("websocket_echo.py"), &websocket]).trim(), "websocket ok");
    ground.mesh.leave();
}

/// A client that ends with the test.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Aim: an upload of 100 MB over each version goes through without being held: the proxy's memory stays where it was; and beside a client that
/// takes a byte now and then others are served at once.
#[test]
fn nothing_long_is_held() {
    let ground = Ground::new();
    let proxies = ground.mesh.json(&["get", "proxies"]);
    let pid = proxies.as_array().unwrap().iter().find(|proxy| proxy["instance"] == "edge").and_then(|proxy| proxy["pid"].as_u64()).unwrap();
    let memory_kib = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    ground.curl(&["-d", "warm", &ground.tls("/")]);
    let before = memory_kib();
    for version in ["--http1.1", "--http2"] {
        let authority = ground.authority.path("ca.crt");
        let line = format!(
            "head -c {UPLOAD_BYTES} /dev/zero | curl -s {version} --max-time 120 --cacert {authority} --connect-to {NAME}::127.0.0.1: -T - {}",
            ground.tls("/upload")
        );
        let seen: Value = serde_json::from_str(&run("sh", &["-c", &line])).unwrap();
        assert_eq!(seen["body_bytes"], UPLOAD_BYTES, "{version}");
    }
    let grown = memory_kib().saturating_sub(before);
    eprintln!("the edge grew by {grown} KiB");
    assert!(grown < GROWTH_KIB_MAX, "grown by {grown} KiB");

    let slow: Vec<_> = (0..50)
        .map(|_| {
            let authority = ground.authority.path("ca.crt");
            let url = ground.tls("/?bytes=50000000");
            let arguments = [
                "-s",
                "--cacert",
                &authority,
                "--connect-to",
                &format!("{NAME}::127.0.0.1:"),
                "--limit-rate",
                "1",
                "-o",
                "/dev/null",
                &url,
            ];
            Reader(Command::new("curl").args(arguments).stdout(Stdio::null()).spawn().unwrap())
        })
        .collect();
    thread::sleep(Duration::from_secs(3));
    for _ in 0..20 {
        let began = Instant::now();
        assert!(ground.curl(&["-o", "/dev/null", &ground.tls("/")]).ends_with("\n2 200"));
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
    let grown = memory_kib().saturating_sub(before);
    eprintln!("with fifty slow readers the edge has grown by {grown} KiB");
    assert!(grown < GROWTH_KIB_MAX + 50 * READER_KIB_MAX, "grown by {grown} KiB");
    drop(slow);
    ground.mesh.leave();
}
