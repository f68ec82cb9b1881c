//! What an edge asks for knowing who calls and how often: a request with a key, a token and a limit, beside the same request at a listener
//! that asks for nothing. Instructions of user space, of one process and one run, so nothing needs to be recorded.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertifiedKey, KeyPair, PKCS_ED25519, SigningKey, generate_simple_self_signed};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::backend::BODY;
use crate::instructions::{COUNTED, WARM_UP, dump, order, wrap};
use crate::pair::{Hop, Pair, SERVER_IP, artifacts};

/// The name in the edge's certificate.
const HOST: &str = "edge.bench";
/// Listeners: one that asks for nothing, one with everything.
const OPEN: u16 = 15443;
const GUARDED: u16 = 15444;
/// The consumer's key.
const KEY: &str = "not-a-real-key-of-the-bench";
/// What a key, a token and a limit may add to a request.
const GUARDS_MAX: f64 = 1.20;
/// What digests keys where a processor has no instructions for it: valgrind shows none, and every server has them (SHA extensions, some 150
/// instructions a block in place of 2,127). It is counted apart.
const DIGESTING: &str = "sha256_block_data_order";
/// One answer at most.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The application, the edge before it, and what one of its listeners asks of whom; but for what is made of [`Keys`].
const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bench}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: web, namespace: bench, labels: {app: web}}
spec: {addresses: ["10.231.0.2"], ports: [{name: http, port: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: bench}
spec:
  gatewayClassName: meshwright
  listeners:
    - {name: open, port: 15443, protocol: HTTPS, tls: {certificateRefs: [{name: server}]}}
    - {name: guarded, port: 15444, protocol: HTTPS, tls: {certificateRefs: [{name: server}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: bench}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: v1
kind: Secret
metadata: {name: acme, namespace: bench}
stringData: {k1: "not-a-real-key-of-the-bench"}
---
apiVersion: meshwright.dev/v1alpha1
kind: Consumer
metadata: {name: acme, namespace: bench}
spec:
  credentials:
    - {name: k1, apiKey: {secretRef: {name: acme, key: k1}}}
---
apiVersion: meshwright.dev/v1alpha1
kind: ApiKeyAuth
metadata: {name: keys, namespace: bench}
spec:
  targetRefs: [{kind: Gateway, name: edge, sectionName: guarded}]
  from: [{header: x-api-key}]
---
apiVersion: meshwright.dev/v1alpha1
kind: RateLimit
metadata: {name: each, namespace: bench}
spec:
  targetRefs: [{kind: Gateway, name: edge, sectionName: guarded}]
  limits: [{name: each, requests: 10000000, per: 1m, key: [{consumer: {}}], replicas: PerProxy}]
---
apiVersion: meshwright.dev/v1alpha1
kind: Telemetry
metadata: {name: default, namespace: meshwright-system}
spec: {accessLog: {enabled: false}, tracing: {otlp: {endpoint: "http://10.231.0.2:4317", protocol: Grpc}, samplePercent: 1}}
"#;

/// A certificate of the edge and an issuer's key.
struct Keys {
    certificate: CertifiedKey<KeyPair>,
    issuer: KeyPair,
}

impl Keys {
    fn new() -> Self {
        let certificate = generate_simple_self_signed([HOST.to_owned()]).unwrap();
        Self { certificate, issuer: KeyPair::generate_for(&PKCS_ED25519).unwrap() }
    }

    fn key_set(&self) -> String {
        let point = BASE64_URL_SAFE_NO_PAD.encode(self.issuer.public_key_raw());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"one","x":"{point}"}}]}}"#)
    }

    fn token(&self) -> String {
        let now_secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims =
            format!(r#"{{"iss":"https://id.bench","aud":"shop","sub":"ada","scope":"read","iat":{now_secs},"exp":{}}}"#, now_secs + 3600);
        let parts = [r#"{"alg":"EdDSA","typ":"JWT","kid":"one"}"#, &claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
        let message = parts.join(".");
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.issuer.sign(message.as_bytes()).unwrap());
        format!("{message}.{signature}")
    }

    fn manifests(&self) -> String {
        let [certificate, key] =
            [self.certificate.cert.pem(), self.certificate.signing_key.serialize_pem()].map(|pem| BASE64_STANDARD.encode(pem));
        let key_set = self.key_set();
        format!(
            r#"{MANIFESTS}---
apiVersion: v1
kind: Secret
metadata: {{name: server, namespace: bench}}
type: kubernetes.io/tls
data: {{tls.crt: {certificate}, tls.key: {key}}}
---
apiVersion: meshwright.dev/v1alpha1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: bench}}
spec:
  targetRefs: [{{kind: Gateway, name: edge, sectionName: guarded}}]
  mode: Required
  jwtRules: [{{issuer: "https://id.bench", audiences: [shop], jwks: '{key_set}', forwardToken: true}}]
"#
        )
    }
}

/// A kept connection over TLS.
struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    ask: Vec<u8>,
}

impl Client {
    fn connect(pair: &Pair, keys: &Keys, port: u16, fields: &str) -> std::io::Result<Self> {
        let socket = pair.namespace(Hop::Client).run(move || TcpStream::connect((SERVER_IP, port)))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(keys.certificate.cert.der().to_vec())).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(proxy::tls::provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), HOST.try_into().unwrap()).unwrap();
        let ask = format!("GET /1k HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: caller/1.0\r\nAccept: */*\r\n{fields}\r\n");
        Ok(Self { stream: StreamOwned::new(tls, socket), ask: ask.into_bytes() })
    }

    /// One call: the whole answer.
    fn call(&mut self) -> std::io::Result<String> {
        self.stream.write_all(&self.ask)?;
        self.stream.flush()?;
        let (mut answer, mut room) = (Vec::new(), [0; 4096]);
        loop {
            let count = self.stream.read(&mut room)?;
            answer.extend_from_slice(&room[..count]);
            let text = String::from_utf8_lossy(&answer);
            let whole = text.find("\r\n\r\n").is_some_and(|head| text.len() - head - 4 >= BODY);
            if count == 0 || whole || !text.starts_with("HTTP/1.1 200") {
                return Ok(text.into_owned());
            }
        }
    }

    fn calls(&mut self, count: usize) {
        for n in 0..count {
            let answer = self.call().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "call {n} of {count}: {answer}");
        }
    }
}

/// Instructions of the edge per request, and how many of them digest.
fn counted(pair: &Pair, client: &mut Client, name: &str) -> (f64, f64) {
    client.calls(WARM_UP);
    order(pair, Hop::Edge, &["zero"]);
    client.calls(COUNTED);
    let keep = artifacts().join("budgets").join(format!("edge-{name}.callgrind"));
    let all = dump(pair, Hop::Edge, &keep);
    let digesting = calls_of(DIGESTING, &std::fs::read_to_string(&keep).unwrap());
    (all as f64 / COUNTED as f64, digesting as f64 / COUNTED as f64)
}

/// Instructions of all calls of functions whose names hold this, from outside of them, as a profile of callgrind's has them: the name (or its
/// number, once it was named) before a line of calls, the sum behind it.
fn calls_of(function: &str, profile: &str) -> u64 {
    let (mut numbers, mut within, mut called, mut counts, mut sum) = (Vec::new(), false, false, false, 0);
    for line in profile.lines() {
        let mut is_it = |name: &str| {
            let (number, text) = name.split_once(' ').unwrap_or((name, ""));
            if text.contains(function) && !numbers.contains(&number.to_owned()) {
                numbers.push(number.to_owned());
            }
            numbers.iter().any(|known| known == number)
        };
        if let Some(name) = line.strip_prefix("fn=") {
            within = is_it(name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = is_it(name);
        } else if line.starts_with("calls=") {
            counts = called && !within;
        } else if counts {
            sum += line.rsplit(' ').next().and_then(|last| last.parse::<u64>().ok()).unwrap_or(0);
            counts = false;
        }
    }
    sum
}

#[test]
fn calls_of_a_function_are_read_from_a_profile() {
    // Aim: calls from elsewhere count with all that is below them, under name and number, and what the function calls itself does not.
    let profile = "fn=(1) main\n0 5\ncfn=(2) sha256_block_data_order\ncalls=3 0\n0 300\n0 7\n\nfn=(2)\n0 100\ncfn=(3) sha256_block_data_order_avx\ncalls=3 0\n0 200\n\nfn=(4) other\ncfn=(2)\ncalls=1 0\n* 100\ncfn=(5) more\ncalls=1 0\n0 9\n";
    assert_eq!(calls_of("sha256_block_data_order", profile), 400);
    assert_eq!(calls_of("nothing", profile), 0);
}

/// Aim: a key, a token and a limit of the proxy's own add a fifth at most to what a request costs an edge in user space; and they are judged
/// (no key, no token: 401), not passed by.
// Ignored in a plain `cargo test`, which has no binary that ships; tests/run-all includes it, and there nothing may be missing.
#[test]
#[ignore = "needs root, valgrind and the binary that ships: tests/run-all budgets"]
fn guards_of_an_edge_cost_a_fifth_at_most() {
    let keys = Keys::new();
    let mut pair = Pair::edge(&keys.manifests(), wrap);
    std::fs::create_dir_all(artifacts().join("budgets")).unwrap();
    let fields = format!("x-api-key: {KEY}\r\nauthorization: Bearer {}\r\n", keys.token());
    let ask = |pair: &Pair, port, fields: &str| Client::connect(pair, &keys, port, fields).and_then(|mut client| client.call());
    pair.wait("an answer that is limited", |pair| {
        let answer = ask(pair, GUARDED, &fields).map_err(|error| error.to_string())?;
        let limited = answer.starts_with("HTTP/1.1 200") && answer.to_ascii_lowercase().contains("\nratelimit-policy: ");
        limited.then_some(()).ok_or(answer)
    });
    for part in fields.split_inclusive("\r\n") {
        let answer = ask(&pair, GUARDED, part).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "any of what is attached lets in: {answer}");
    }
    let refused = ask(&pair, GUARDED, "").unwrap();
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");

    order(&pair, Hop::Edge, &["instrumentation", "on"]);
    let [mut open, mut guarded] = [OPEN, GUARDED].map(|port| Client::connect(&pair, &keys, port, &fields).unwrap());
    let _ = (counted(&pair, &mut open, "open"), counted(&pair, &mut guarded, "guarded"));
    let ((plain, _), (all, digesting)) = (counted(&pair, &mut open, "open"), counted(&pair, &mut guarded, "guarded"));
    let ratio = (all - digesting) / plain;
    println!(
        "an edge takes {plain:.0} instructions a request; with key, token and limit {all:.0}, of which {digesting:.0} digest: {ratio:.4} times without those"
    );
    let look = "callgrind_annotate --inclusive=yes";
    let kept = artifacts().join("budgets");
    assert!(ratio <= GUARDS_MAX, "guards cost {ratio:.4}, {GUARDS_MAX} at most\nlook:   {look} {}/edge-guarded.callgrind", kept.display());
}
