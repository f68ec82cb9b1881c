//! Names as programs ask for them, through the sidecar's resolver and, outside the mesh, through the cluster's.

use crate::running::{LIVE_MAX, MANIFESTS, Up};

/// Endpoints of the headless Service: too many for an answer by UDP.
const MANY: usize = 200;

/// Asks as the C library does, then by itself: code, answers and authorities of an SRV, of a name that only has names below it, and of
/// one that does not exist.
const ASKING: &str = r"
import socket, struct
def ask(name, kind):
    labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
    question = struct.pack('>6H', 7, 256, 1, 0, 0, 0) + labels + b'\0' + struct.pack('>2H', kind, 1)
    server = [line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver')][0]
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.settimeout(5)
    asking.connect((server, 53))
    asking.send(question)
    head = struct.unpack('>6H', asking.recv(4096)[:12])
    return head[1] & 15, head[3], head[4]
many = socket.getaddrinfo('many.shop', 80, socket.AF_INET, socket.SOCK_STREAM)
print(len({address[4][0] for address in many}))
print(socket.gethostbyaddr(socket.gethostbyname('web.shop'))[0])
print(ask('_http._tcp.web.shop.svc.cluster.local', 33), ask('svc.cluster.local', 1), ask('nobody.shop.svc.cluster.local', 1))
";

/// Aim: inside the mesh and outside, a stock resolver gets every endpoint of a large headless Service (by TCP, for UDP has no room), the
/// name of an address, named ports, names that only have names below them, and denials with their SOA; and a Service on port 53 is a
/// Service, not the resolver.
#[test]
fn names_are_what_kubernetes_says() {
    let endpoints: Vec<String> = (1..=MANY).map(|last| format!("{{addresses: [198.51.100.{last}]}}")).collect();
    let more = format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: many, namespace: shop}}
spec: {{clusterIP: None, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: many-1, namespace: shop, labels: {{kubernetes.io/service-name: many}}}}
addressType: IPv4
ports: [{{port: 80}}]
endpoints: [{}]
---
apiVersion: v1
kind: Service
metadata: {{name: named, namespace: shop}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 53, targetPort: 8080}}]}}
",
        endpoints.join(", ")
    );
    let up = Up::start(&[MANIFESTS, &more], &[]);
    up.wait_for("live", LIVE_MAX);
    for asker in ["shop/client", "outside/stranger"] {
        let output = up.exec(asker, &["python3", "-c", ASKING]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, format!("{MANY}\nweb.shop.svc.cluster.local\n(0, 1, 0) (0, 0, 1) (3, 0, 1)\n"), "{asker}");
        assert_eq!(up.curl(asker, "http://named.shop:53/"), "200", "{asker}");
    }
    up.end();
}
