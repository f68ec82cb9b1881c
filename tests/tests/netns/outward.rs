//! What crosses the edge of the fabric under `up`: `--nat`, `--plaintext-xds`, telemetry; and how the mesh speaks of its parts.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::names::{NODE_CLIENT, NODE_WORKLOAD};
use proto::xds::discovery::DeltaDiscoveryRequest;
use proto::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::xds::{LISTENER, SECRET};
use tests::look::{free_port, until};
use tokio_stream::wrappers::ReceiverStream;

use crate::running::{LIVE_MAX, MANIFESTS, Up};

/// How long something takes that a proxy or the mesh does by itself.
const SOON: Duration = Duration::from_secs(20);

/// A host with a network of its own that holds a server at this address, which is nobody's; then the program becomes the arguments.
const ELSEWHERE: &str = "http://198.51.100.7:8000/";
const HOST: &str = r#"
set -e
ip link set lo up
ip addr add 198.51.100.7/32 dev lo
cd /usr/share
setpriv --pdeathsig KILL python3 -m http.server -b 198.51.100.7 8000 >/dev/null 2>&1 &
exec "$@"
"#;

/// Aim: with `--nat` workloads inside and outside the mesh reach what the host reaches; without it nobody does.
#[test]
fn nat_leads_out_of_the_mesh() {
    for (flags, codes) in [(&["--nat"][..], ["200", "200"]), (&[], ["", ""])] {
        let up = Up::start_within(&["unshare", "-n", "sh", "-c", HOST, "host"], &[MANIFESTS], flags);
        up.wait_for("live", LIVE_MAX);
        for (workload, code) in ["shop/client", "outside/stranger"].into_iter().zip(codes) {
            let command = ["curl", "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", ELSEWHERE];
            let output = up.exec(workload, &command);
            let seen = String::from_utf8_lossy(&output.stdout).into_owned();
            if code.is_empty() {
                assert_ne!(seen, "200", "{workload} {flags:?}");
            } else {
                assert_eq!(seen, code, "{workload} {flags:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        // The mesh's own names go on as ever.
        assert_eq!(up.curl("shop/client", "http://web/"), "200");
        up.end();
    }
}

/// Aim: `--plaintext-xds` serves a stock client on the host's loopback its routing, and no secret.
#[test]
fn plaintext_xds_is_served_on_the_hosts_loopback() {
    let address = format!("127.0.0.1:{}", free_port());
    let up = Up::start(&[MANIFESTS], &[&format!("--plaintext-xds={address}")]);
    up.wait_for("live", LIVE_MAX);
    let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let fields = [(NODE_CLIENT.to_owned(), text("proxy")), (NODE_WORKLOAD.to_owned(), text("shop/client"))].into();
    let ask = |type_url: String| {
        let metadata = Some(prost_types::Struct { fields: Clone::clone(&fields) });
        let node = proto::xds::core::Node { id: "sidecar/shop/client".into(), metadata, ..Default::default() };
        DeltaDiscoveryRequest { node: Some(node), type_url, resource_names_subscribe: vec!["*".into()], ..Default::default() }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names = runtime.block_on(async {
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        for type_url in [SECRET, LISTENER].map(str::to_owned) {
            sender.send(ask(type_url)).await.unwrap();
        }
        let mut responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let mut names = Vec::new();
        let read = async {
            // Secrets were asked for first, and would come first.
            while let Some(response) = responses.message().await.unwrap() {
                names.extend(response.resources.iter().map(|resource| resource.name.clone()));
                if response.type_url == LISTENER {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, read).await.expect("listeners");
        names
    });
    assert!(names.contains(&"inbound".to_owned()), "{names:?}");
    assert!(!names.contains(&"ROOTCA".to_owned()), "{names:?}");
    drop(runtime);
    up.end();
}

/// Aim: a sidecar's metrics and health ports answer whoever asks, meshed, unmeshed and its own workload, by IPv4 and IPv6, although its
/// namespace is Strict; metrics come in the format that the scraper accepts.
#[test]
fn scrapers_reach_a_sidecar_from_everywhere() {
    const STRICT: &str = r#"
apiVersion: meshwright.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: Strict}}
"#;
    let up = Up::start(&[MANIFESTS, STRICT], &[]);
    up.wait_for("live", LIVE_MAX);
    let book = up.book();
    let instances = book["instances"].as_array().unwrap();
    let web = instances.iter().find(|instance| instance["instance"] == "web").unwrap();
    let addresses: Vec<_> = web["addresses"].as_array().unwrap().iter().map(|address| address.as_str().unwrap().to_owned()).collect();
    assert_eq!(addresses.len(), 2, "{web}");
    for address in addresses {
        let host = if address.contains(':') { format!("[{address}]") } else { address };
        for asker in ["shop/client", "outside/stranger", "shop/web"] {
            assert_eq!(up.curl(asker, &format!("http://{host}:15021/healthz/ready")), "200", "{asker} {host}");
            for (accept, ends) in [("*/*", false), ("application/openmetrics-text", true)] {
                let url = format!("http://{host}:15020/metrics");
                let output = up.exec(asker, &["curl", "-sS", "-m", "10", "-H", &format!("accept: {accept}"), &url]);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains("meshwright_config_epoch"), "{asker} {host}: {output:?}");
                assert_eq!(text.ends_with("# EOF\n"), ends, "{asker} {host} {accept}");
            }
        }
    }
    let explained = up.meshwright(&[
        "explain",
        "--from",
        "shop/client",
        "GET",
        &format!("http://{}:15020/metrics", web["addresses"][0].as_str().unwrap()),
    ]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("Forward") && !explained.contains("spiffe://"), "{explained}");
    up.end();
}

/// A collector that never answers, at the endpoint: what the first to come says, up to its spans' names.
fn spans_heard() -> (String, thread::JoinHandle<Vec<u8>>) {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let heard = thread::spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut bytes = Vec::new();
        let mut some = [0; 4096];
        // Its names travel as they are within the protocol's frames; nobody answers, so they come once.
        while !bytes.windows(12).any(|window| window == b"service.name") {
            match stream.read(&mut some) {
                Ok(count @ 1..) => bytes.extend_from_slice(&some[..count]),
                other => panic!("no spans: {other:?}"),
            }
        }
        bytes
    });
    (endpoint, heard)
}

/// Aim: a loopback OTLP endpoint means the host's: spans of a sidecar arrive at a collector that listens there, and at another one from the change
/// of the endpoint on.
#[test]
fn telemetry_is_relayed_to_the_hosts_loopback() {
    let telemetry = |endpoint: &str| {
        format!(
            r#"
apiVersion: meshwright.dev/v1alpha1
kind: Telemetry
metadata: {{name: default, namespace: meshwright-system}}
spec: {{tracing: {{otlp: {{endpoint: "{endpoint}", protocol: Grpc}}, samplePercent: 100}}}}
"#
        )
    };
    let [(first, at_first), (second, at_second)] = [spans_heard(), spans_heard()];
    let up = Up::start(&[MANIFESTS, &telemetry(&first)], &[]);
    up.wait_for("live", LIVE_MAX);
    let asks = || assert_eq!(up.curl("shop/client", "http://web/"), "200");
    let heard = |at: thread::JoinHandle<Vec<u8>>| {
        let until = Instant::now() + SOON;
        while !at.is_finished() {
            assert!(Instant::now() < until, "nobody brings spans");
            asks();
            thread::sleep(Duration::from_millis(200));
        }
        let bytes = at.join().unwrap();
        assert!(bytes.starts_with(b"PRI * HTTP/2.0"), "{}", String::from_utf8_lossy(&bytes));
    };
    heard(at_first);
    fs::write(up.folder.path().join("1.yaml"), telemetry(&second)).unwrap();
    heard(at_second);
    up.end();
}

/// Aim: a workload finds the host's collector by `OTEL_EXPORTER_OTLP_ENDPOINT` as programs on the host do, through its sidecar's redirection.
#[test]
fn workloads_find_the_hosts_collector() {
    const SENDER: &str = r#"
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: sender, namespace: shop}
spec: {command: [sh, -c, 'while sleep 0.2; do curl -s -m 1 "$OTEL_EXPORTER_OTLP_ENDPOINT/from-a-workload"; done']}
"#;
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{}", collector.local_addr().unwrap());
    let (heard, listening) = mpsc::channel();
    thread::spawn(move || {
        // Sidecars send their spans here, too.
        for stream in collector.incoming().map_while(Result::ok) {
            let heard = heard.clone();
            thread::spawn(move || {
                let mut first = [0; 22];
                let mut stream = stream;
                if stream.read_exact(&mut first).is_ok() && first == *b"GET /from-a-workload H" {
                    let _ = heard.send(());
                }
            });
        }
    });
    let up = Up::start_within(&["env", &endpoint], &[MANIFESTS, SENDER], &[]);
    up.wait_for("live", LIVE_MAX);
    listening.recv_timeout(SOON).expect("a call of the workload's own");
    up.end();
}

/// Aim: another number of replicas, and with it other names, costs no request: from several to one and back.
#[test]
fn a_change_of_replicas_leaves_somebody_to_serve() {
    let replicas = |count: u32| MANIFESTS.replace("spec: {command: [python3", &format!("spec: {{replicas: {count}, command: [python3"));
    let up = Up::start(&[&replicas(2)], &[]);
    up.wait_for("live", LIVE_MAX);
    for (count, last) in [(1, "web"), (2, "web-1")] {
        let script = "for i in $(seq 150); do curl -s -m 5 -o /dev/null -w '%{http_code} ' http://web/; sleep 0.03; done";
        let mut command = Command::new(tests::look::program());
        command.args(["exec", "-n", "shop", "client", "--", "sh", "-c", script]).env("MESHWRIGHT_STATE_DIR", up.state.path());
        let mut calls = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut answers = calls.stdout.take().unwrap();
        let mut first = [0; 4];
        answers.read_exact(&mut first).unwrap();
        fs::write(up.folder.path().join("0.yaml"), replicas(count)).unwrap();
        up.wait_until(SOON, last, |event| event["event"] == "instance" && event["instance"] == last && event["state"] == "ready");
        let mut codes = String::from_utf8(first.to_vec()).unwrap();
        answers.read_to_string(&mut codes).unwrap();
        calls.wait().unwrap();
        assert!(codes.split_whitespace().count() == 150 && codes.split_whitespace().all(|code| code == "200"), "to {count}: {codes}");
    }
    up.end();
}

/// Aim: `check` and `wait` say the same of a mesh whose workload died and stays dead: which one, and where to look.
#[test]
fn check_names_what_is_down() {
    let up = Up::start(&[MANIFESTS], &["--no-restart"]);
    up.wait_for("live", LIVE_MAX);
    let check = || {
        let output = up.meshwright(&["check"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = check();
    assert!(code == Some(0) && said.contains("is live"), "{said}");
    let book = up.book();
    let web = book["instances"].as_array().unwrap().iter().find(|one| one["instance"] == "web").unwrap();
    kill(Pid::from_raw(i32::try_from(web["pid"].as_i64().unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    let (_, said) = until(SOON, || match check() {
        (Some(1), said) => Ok((1, said)),
        (code, said) => Err(format!("{code:?}: {said}")),
    })
    .unwrap();
    assert!(said.contains("shop/web (not ready") && said.contains("meshwright logs"), "{said}");
    assert_eq!(up.meshwright(&["wait", "--timeout", "1s"]).status.code(), Some(1));
    up.end();
}
