//! Calls past the mesh under EgressPolicies: stock curl, a DNS server and servers of a host's network, `up --nat` between them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::running::{LIVE_MAX, MANIFESTS, Up};

/// How long what a proxy counts takes to be told by the control plane.
const SOON: Duration = Duration::from_secs(20);

/// A host with a network of its own: one address that has every name, by a DNS server that gives one of them by an alias, and serves HTTP, TLS and a
/// greeting there. Then the program becomes the arguments.
const HOST: &str = r#"
set -e
ip link set lo up
ip addr add 198.51.100.7/32 dev lo
folder=$(mktemp -d)
echo "nameserver 198.51.100.7" > $folder/resolv.conf
mount --bind $folder/resolv.conf /etc/resolv.conf
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $folder/key -out $folder/cert -days 2 \
    -subj /CN=api.example.com -addext subjectAltName=DNS:api.example.com,DNS:evil.example.org 2>/dev/null
cat > $folder/serve.py <<'PYTHON'
import http.server, socket, socketserver, ssl, struct, sys, threading

def labels(name):
    return b''.join(bytes([len(part)]) + part.encode() for part in name.split('.')) + b'\0'

def dns():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(('198.51.100.7', 53))
    while True:
        asked, client = udp.recvfrom(4096)
        end = asked.index(b'\0', 12) + 5
        kind = struct.unpack('>H', asked[end - 4:end - 2])[0]
        address = lambda owner: owner + struct.pack('>HHIH', 1, 1, 60, 4) + socket.inet_aton('198.51.100.7')
        records = []
        if kind == 1 and asked[12:].startswith(labels('www.example.com')):
            real = labels('cdn.example.net')
            records = [b'\xc0\x0c' + struct.pack('>HHIH', 5, 1, 60, len(real)) + real, address(real)]
        elif kind == 1:
            records = [address(b'\xc0\x0c')]
        head = asked[:2] + b'\x81\x80' + struct.pack('>HHHH', 1, len(records), 0, 0)
        udp.sendto(head + asked[12:end] + b''.join(records), client)

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = b'reached ' + self.headers.get('host', '').encode() + b'\n'
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

class Greeting(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b'220 ready\r\n')

class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True

folder = sys.argv[1]
secure = Server(('198.51.100.7', 443), Page)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(folder + '/cert', folder + '/key')
secure.socket = tls.wrap_socket(secure.socket, server_side=True)
greeting = socketserver.ThreadingTCPServer(('198.51.100.7', 25), Greeting)
for server in [secure, greeting, Server(('198.51.100.7', 80), Page)]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
dns()
PYTHON
setpriv --pdeathsig KILL python3 $folder/serve.py $folder >/dev/null 2>&1 &

exec "$@"
"#;

fn policy(mode: &str) -> String {
    format!(
        r#"
apiVersion: meshwright.dev/v1alpha1
kind: EgressPolicy
metadata: {{name: out, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: client}}}}
  mode: {mode}
  allow:
    - {{hosts: [api.example.com, "www.example.com"], ports: [80, 443, 25]}}
"#
    )
}

/// The body that curl got, or what it said.
fn curl(up: &Up, args: &[&str]) -> String {
    let output = up.exec("shop/client", &[&["curl", "-sS", "-k", "-m", "10"], args].concat());
    String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr }).trim().to_owned()
}

fn rows(up: &Up) -> Vec<(String, u64, String)> {
    let rows: Vec<Value> = serde_json::from_slice(&up.meshwright(&["get", "egress", "-o", "json"]).stdout).unwrap();
    let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(row, "destination"), row["port"].as_u64().unwrap(), text(row, "verdict"))).collect()
}

/// Aim: what stock programs meet under Enforce: allowed names pass by HTTP, TLS and a server's greeting, also by an alias; another name at the
/// same address, an address without a name and a Host that is not what was asked are cut; an audit cuts none of it and lists the same; and
/// `explain` says what happens.
#[test]
fn a_workload_calls_only_where_it_may() {
    let up = Up::start_within(&["unshare", "-n", "-m", "sh", "-c", HOST, "host"], &[MANIFESTS], &["--nat"]);
    up.wait_for("live", LIVE_MAX);
    let calls: [(&[&str], &str, bool); 8] = [
        (&["http://api.example.com/"], "reached api.example.com", true),
        (&["http://www.example.com/"], "reached www.example.com", true),
        (&["https://api.example.com/"], "reached api.example.com", true),
        (&["telnet://api.example.com:25"], "220 ready", true),
        (&["http://evil.example.org/"], "reached evil.example.org", false),
        (&["https://evil.example.org/"], "reached evil.example.org", false),
        (&["http://198.51.100.7/", "-H", "host: evil.example.org"], "reached evil.example.org", false),
        (&["telnet://evil.example.org:25"], "220 ready", false),
    ];
    for (mode, verdict) in [("Audit", "Audit"), ("Enforce", "Deny")] {
        let path = up.folder.path().join("policy.yaml");
        std::fs::write(&path, policy(mode)).unwrap();
        let applied = up.meshwright(&["apply", "--wait", "-f", path.to_str().unwrap()]);
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        for (args, reached, allowed) in calls {
            let seen = curl(&up, args);
            assert_eq!(seen.contains(reached), allowed || mode == "Audit", "{mode} {args:?}: {seen}");
        }
        let began = Instant::now();
        let wanted = ("evil.example.org".to_owned(), 443, verdict.to_owned());
        while !rows(&up).contains(&wanted) {
            assert!(began.elapsed() < SOON, "{:?}", rows(&up));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    // The same port, another name: TLS to it would be told apart only by what it asks for.
    let seen = curl(&up, &["--connect-to", "evil.example.org:443:api.example.com:443", "https://evil.example.org/"]);
    assert!(!seen.contains("reached"), "{seen}");
    // Who is not selected is not concerned.
    let output = up.exec("shop/web", &["curl", "-sS", "-m", "10", "http://evil.example.org/"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "reached evil.example.org");
    for (url, decision) in [("https://api.example.com/", "Forward"), ("https://evil.example.org/", "Reply")] {
        let output = up.meshwright(&["explain", "--from", "shop/client", "-o", "json", "GET", url]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(told["decision"], decision, "{told}");
        assert_eq!(told["policies"][0]["kind"], "EgressPolicy", "{told}");
    }
    up.end();
}
