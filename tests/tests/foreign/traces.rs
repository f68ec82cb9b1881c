//! Spans at programs that take them: the OpenTelemetry Collector of its own modules, one that answers in every way the specification has, and
//! Zipkin's server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::look::free_port;

use crate::mesh::{Mesh, client, eventually, go_program, python, root, said, text};

const SOON: Duration = Duration::from_secs(40);
/// Calls from `w1` to `w6`.
const HOPS: usize = 5;

/// Six workloads, each of which calls the next by HTTP and by gRPC, and where spans go.
fn chain(telemetry: &str) -> Mesh {
    let mut texts = vec![
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: hops, labels: {meshwright.dev/inject: enabled}}\n".to_owned(),
        "apiVersion: meshwright.dev/v1alpha1\nkind: Workload\nmetadata: {name: w1, namespace: hops}\nspec: {command: [sleep, infinity]}\n"
            .to_owned(),
    ];
    for place in 2..=HOPS + 1 {
        let next = place + 1;
        let calls = match place <= HOPS {
            true => format!(r#", "--call=http://w{next}/", "--call=/meshwright.echo.v1.Echo=grpc://w{next}:9090""#),
            false => String::new(),
        };
        texts.push(format!(
            r#"
apiVersion: v1
kind: Service
metadata: {{name: w{place}, namespace: hops}}
spec:
  selector: {{app: w{place}}}
  ports:
    - {{name: http, port: 80, targetPort: 8080, appProtocol: http}}
    - {{name: grpc, port: 9090, appProtocol: kubernetes.io/h2c}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: w{place}, namespace: hops, labels: {{app: w{place}}}}}
spec:
  command: [meshwright, echo, --http=8080, --grpc=9090{calls}]
  ports:
    - {{name: http, port: 8080, appProtocol: http}}
    - {{name: grpc, port: 9090, appProtocol: kubernetes.io/h2c}}
"#
        ));
    }
    Mesh::start(&[("chain.yaml", &texts.join("---\n")), ("telemetry.yaml", telemetry)])
}

fn telemetry(tracing: &str) -> String {
    format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: Telemetry\nmetadata: {{name: default, namespace: meshwright-system}}\nspec: {{tracing: {{samplePercent: 100, {tracing}}}}}\n"
    )
}

fn otlp(port: u16, protocol: &str) -> String {
    telemetry(&format!(r#"otlp: {{endpoint: "http://127.0.0.1:{port}", protocol: {protocol}}}"#))
}

/// A span, as a collector wrote it.
#[derive(Clone, Debug, Default)]
struct Seen {
    service: String,
    trace: String,
    span: String,
    parent: String,
    name: String,
    kind: String,
    attributes: BTreeMap<String, String>,
    links: Vec<String>,
}

/// The OpenTelemetry Collector.
struct Stock {
    child: Child,
    grpc: u16,
    http: u16,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Stock {
    fn start() -> Self {
        let (grpc, http) = (free_port(), free_port());
        let mut command = Command::new(go_program("otelcol"));
        command.args([grpc, http].map(|port| format!("127.0.0.1:{port}"))).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let reader = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || reader.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let mut this = Self { child, grpc, http, lines, said: Vec::new() };
        eventually("the collector is ready", SOON, || {
            this.read();
            this.said.iter().any(|line| line.contains("Everything is ready")).then_some(())
        });
        this
    }

    fn read(&mut self) {
        self.said.extend(self.lines.try_iter());
    }

    /// All spans so far.
    fn spans(&mut self) -> Vec<Seen> {
        self.read();
        let (mut spans, mut service, mut section): (Vec<Seen>, _, _) = (Vec::new(), String::new(), String::new());
        for line in &self.said {
            if let Some((key, value)) = line.strip_prefix("     -> ").and_then(|rest| rest.split_once(": ")) {
                // `Str(catalog)`, `Int(200)`.
                let value = value.split_once('(').map_or(value, |(_, value)| value.trim_end_matches(')')).to_owned();
                match (section.as_str(), spans.last_mut()) {
                    ("Resource attributes:", _) if key == "service.name" => service = value,
                    ("Attributes:", Some(span)) => drop(span.attributes.insert(key.to_owned(), value)),
                    ("link", Some(span)) if key == "ID" => span.links.push(value),
                    _ => {}
                }
            } else if let Some((key, value)) = line.trim_start().split_once(':').filter(|_| line.starts_with("    ")) {
                let (key, value) = (key.trim(), value.trim().to_owned());
                let Some(span) = spans.last_mut() else { continue };
                match (section.as_str(), key) {
                    ("span", "Trace ID") => span.trace = value,
                    ("span", "Parent ID") => span.parent = value,
                    ("span", "ID") => span.span = value,
                    ("span", "Name") => span.name = value,
                    ("span", "Kind") => span.kind = value,
                    _ => {}
                }
            } else if line.starts_with("Span #") {
                spans.push(Seen { service: service.clone(), ..Seen::default() });
                section = "span".to_owned();
            } else if line.starts_with("SpanLink #") {
                section = "link".to_owned();
            } else {
                section.clone_from(line);
            }
        }
        spans
    }

    /// Waits for spans that say something.
    fn until<T>(&mut self, what: &str, look: impl Fn(&[Seen]) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        loop {
            let spans = self.spans();
            if let Some(found) = look(&spans) {
                return found;
            }
            assert!(Instant::now() < deadline, "not seen: {what}; {spans:#?}");
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A whole trace whose spans have this attribute: from its root to its last span, where each is the only child of the one before.
fn road(spans: &[Seen], attribute: (&str, &str), hops: usize) -> Option<Vec<Seen>> {
    let of = |span: &&Seen| span.attributes.get(attribute.0).is_some_and(|value| value == attribute.1);
    let traces: Vec<&String> = spans.iter().filter(of).map(|span| &span.trace).collect();
    traces.into_iter().find_map(|trace| {
        let all: Vec<&Seen> = spans.iter().filter(|span| span.trace == *trace).collect();
        let mut road = vec![all.iter().find(|span| span.parent.is_empty())?];
        while let [one] = all.iter().filter(|span| span.parent == road[road.len() - 1].span).collect::<Vec<_>>()[..] {
            road.push(one);
        }
        (road.len() == all.len() && all.len() == 2 * hops).then(|| road.into_iter().map(|span| (*span).clone()).collect())
    })
}

/// Each call is a CLIENT span of the caller's sidecar, and below it a SERVER span of the other's.
fn assert_nested(road: &[Seen]) {
    let rows: Vec<(&str, &str)> = road.iter().map(|span| (span.service.as_str(), span.kind.as_str())).collect();
    let names: Vec<String> = (1..=road.len() / 2 + 1).map(|place| format!("w{place}")).collect();
    let wanted: Vec<(&str, &str)> =
        names.windows(2).flat_map(|pair| [(pair[0].as_str(), "Client"), (pair[1].as_str(), "Server")]).collect();
    assert_eq!(rows, wanted, "{road:#?}");
}

/// Aim: the OpenTelemetry Collector has the trace of five hops complete and rightly nested, of HTTP and of gRPC, whichever way the spans come,
/// also after the endpoint has changed; and the control plane's own spans of that change, linked.
#[test]
fn the_stock_collector_has_whole_traces() {
    let mut stock = Stock::start();
    let mesh = chain(&otlp(stock.grpc, "Grpc"));
    let go = |mark: &str| {
        mesh.inside("hops/w1", &["curl", "-sf", &format!("http://w2/?mark={mark}")]);
        let output = mesh.exec("hops/w1", &[&python().display().to_string(), &client("grpc_call.py"), "w2:9090"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    go("first");
    assert_nested(&stock.until("five hops of HTTP", |spans| road(spans, ("url.query", "mark=first"), HOPS)));
    assert_nested(&stock.until("five hops of gRPC", |spans| road(spans, ("rpc.system.name", "grpc"), HOPS)));
    stock.until("certificates of the control plane", |spans| {
        spans.iter().any(|span| span.name == "certificate" && span.service == "meshwright-control").then_some(())
    });

    let before = stock.spans().len();
    let applied = mesh.apply(&otlp(stock.http, "Http"));
    let epoch = applied["epoch"].to_string();
    let of_control = |spans: &[Seen], name: &str| {
        let about = |span: &&Seen| span.name == name && span.attributes.get("meshwright.epoch") == Some(&epoch);
        spans.iter().find(about).cloned()
    };
    let change = stock.until("the change", |spans| of_control(spans, "change"));
    let push = stock.until("its push", |spans| of_control(spans, "push"));
    assert_eq!((change.service.as_str(), change.attributes["meshwright.change.from"].as_str()), ("meshwright-control", "Applied"));
    assert!(change.attributes["meshwright.change.objects"].contains("Telemetry meshwright-system/default changed"), "{change:?}");
    assert_eq!((&push.links, &push.trace), (&vec![change.span.clone()], &change.trace));
    assert_eq!(push.attributes["meshwright.live"], "true", "{push:?}");
    go("second");
    assert_nested(&stock.until("five hops after the change", |spans| road(&spans[before..], ("url.query", "mark=second"), HOPS)));
    mesh.leave();
}

/// `w2` calls `w3` with nothing of what it was sent; what says `slow` after a while.
const FORGETFUL: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: hops, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: w1, namespace: hops}
spec: {command: [sleep, infinity]}
---
apiVersion: v1
kind: Service
metadata: {name: w2, namespace: hops}
spec: {selector: {app: w2}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: w2, namespace: hops, labels: {app: w2}}
spec:
  command:
    - python3
    - -c
    - |
      import http.server, time, urllib.request
      class Forgetful(http.server.BaseHTTPRequestHandler):
          def do_GET(self):
              time.sleep(3 if "slow" in self.path else 0)
              body = urllib.request.urlopen("http://w3" + self.path).read()
              self.send_response(200)
              self.send_header("content-length", str(len(body)))
              self.end_headers()
              self.wfile.write(body)
      http.server.ThreadingHTTPServer(("", 8080), Forgetful).serve_forever()
  ports: [{name: http, port: 8080, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: w3, namespace: hops}
spec: {selector: {app: w3}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: w3, namespace: hops, labels: {app: w3}}
spec: {command: [meshwright, echo, --http=8080], ports: [{name: http, port: 8080, appProtocol: http}]}
"#;

/// Aim: the trace of a call through an application that passes no headers on is whole where its sidecar can guess, and says that it guessed; where
/// several are under way it says how many; where nobody wants guesses there are none.
#[test]
fn what_an_application_forgets_is_inferred() {
    let mut stock = Stock::start();
    let mesh = Mesh::start(&[("mesh.yaml", FORGETFUL), ("telemetry.yaml", &otlp(stock.grpc, "Grpc"))]);
    // Of calls with this mark.
    let calls = |spans: &[Seen], mark: &str| -> Vec<Seen> {
        let marked = |span: &&Seen| span.attributes.get("url.query").is_some_and(|query| query.starts_with(mark));
        spans.iter().filter(|span| span.service == "w2" && span.kind == "Client").filter(marked).cloned().collect()
    };
    mesh.inside("hops/w1", &["curl", "-sf", "http://w2/?once"]);
    let road = stock.until("two hops", |spans| road(spans, ("url.query", "once"), 2));
    assert_nested(&road);
    let links: Vec<Option<&str>> = road.iter().map(|span| span.attributes.get("meshwright.link").map(String::as_str)).collect();
    assert_eq!(links, [None, None, Some("inferred"), None]);

    mesh.inside("hops/w1", &["curl", "-sfZ", "--parallel-immediate", "http://w2/?slow1", "http://w2/?slow2"]);
    let slow = stock.until("both slow calls", |spans| Some(calls(spans, "slow")).filter(|calls| calls.len() == 2));
    let two = slow.iter().find(|span| span.attributes.get("meshwright.link_candidates").is_some_and(|count| count == "2"));
    assert!(two.is_some_and(|span| span.parent.is_empty()), "{slow:#?}");

    mesh.apply(&telemetry(&format!(r#"otlp: {{endpoint: "http://127.0.0.1:{}"}}, inferLinks: false"#, stock.grpc)));
    mesh.inside("hops/w1", &["curl", "-sf", "http://w2/?unguessed"]);
    let [call] = &stock.until("a call of its own", |spans| Some(calls(spans, "unguessed")).filter(|calls| !calls.is_empty()))[..] else {
        panic!("one call");
    };
    assert!(call.parent.is_empty() && !call.attributes.contains_key("meshwright.link"), "{call:#?}");
    mesh.leave();
}

/// A collector that answers as it is told.
struct Told {
    child: Child,
    lines: Receiver<Value>,
}

impl Told {
    fn start(port: u16, protocol: &str, answers: &[&str]) -> Self {
        let mut command = Command::new(python());
        command.args([client("collector.py"), port.to_string(), protocol.to_owned()]).args(answers).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let (sender, receiver) = channel();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(serde_json::from_str(&line).unwrap()))));
        Self { child, lines: receiver }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Spans that the sidecar of `w1` has lost, by why.
fn dropped(mesh: &Mesh) -> BTreeMap<String, u64> {
    let text = mesh.inside("hops/w1", &["curl", "-sf", "http://127.0.0.1:15020/metrics"]);
    let rows = text.lines().filter_map(|line| line.strip_prefix("meshwright_spans_dropped_total{reason=\"")?.split_once("\"} "));
    rows.map(|(reason, count)| (reason.to_owned(), count.parse().unwrap())).filter(|(_, count)| *count > 0).collect()
}

/// Aim: what a collector says is understood by either protocol: what may come again does, the rest is dropped, and every lost span is counted by
/// its reason.
#[test]
fn a_collector_that_refuses_is_understood() {
    let grpc = ["UNAVAILABLE", "RESOURCE_EXHAUSTED+1", "ABORTED", "partial", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"];
    let http = ["503+1", "429", "502", "partial", "400", "301"];
    for (protocol, name, answers) in [("grpc", "Grpc", grpc), ("http", "Http", http)] {
        let port = free_port();
        let told = Told::start(port, protocol, &answers);
        let mesh = chain(&otlp(port, name));
        let mut lost = BTreeMap::new();
        for reason in ["rejected", "refused", "refused"] {
            // The last workload calls nobody: one CLIENT span each.
            mesh.inside("hops/w1", &["curl", "-sf", "http://w6/"]);
            *lost.entry(reason.to_owned()).or_insert(0) += 1;
            eventually(&format!("{lost:?} by {protocol}"), SOON, || (dropped(&mesh) == lost).then_some(()));
        }
        mesh.inside("hops/w1", &["curl", "-sf", "http://w6/last"]);
        let deadline = Instant::now() + SOON;
        let mut answered = Vec::new();
        loop {
            let line = told.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).expect("the last span");
            if line["client"] == true {
                answered.push(line["answer"].as_str().unwrap().to_owned());
            }
            if line["attributes"]["url.path"] == "/last" && line["kind"] == 3 {
                break;
            }
        }
        let wanted: Vec<&str> = answers.iter().map(|answer| answer.split('+').next().unwrap()).chain(["ok"]).collect();
        assert_eq!(answered, wanted);
        assert_eq!(dropped(&mesh), lost);
        mesh.leave();
    }
}

/// Aim: Zipkin's own server has the trace of five hops, with both ends of every call. It needs Java, and its jar in `MESHWRIGHT_ZIPKIN_JAR`.
#[test]
#[ignore = "needs Java and Zipkin's server; `tests/run-all full` has both"]
fn zipkin_has_whole_traces() {
    let jar = std::env::var("MESHWRIGHT_ZIPKIN_JAR").expect("MESHWRIGHT_ZIPKIN_JAR: where zipkin-server-exec.jar is");
    let port = free_port();
    let mut command = Command::new("java");
    command.args(["-Xmx256m", "-jar", &jar, "--logging.level.root=WARN"]).env("QUERY_PORT", port.to_string());
    let mut server = command.current_dir(root()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let get = |path: &str| {
        let output = Command::new("curl").args(["-sf", &format!("http://127.0.0.1:{port}{path}")]).output().unwrap();
        output.status.success().then(|| text(&output.stdout))
    };
    eventually("zipkin is up", Duration::from_secs(90), || get("/health"));
    let mesh = chain(&telemetry(&format!(r#"zipkin: {{endpoint: "http://127.0.0.1:{port}/api/v2/spans"}}"#)));
    mesh.inside("hops/w1", &["curl", "-sf", "http://w2/?mark=first"]);
    let trace = eventually("a trace of ten spans", SOON, || {
        let traces: Vec<Vec<Value>> = serde_json::from_str(&get("/api/v2/traces?limit=100")?).unwrap();
        traces.into_iter().find(|trace| trace.len() == 2 * HOPS)
    });
    let mut at = trace.iter().find(|span| span["parentId"].is_null()).unwrap();
    for hop in 0..2 * HOPS {
        let (kind, from, to) = if hop % 2 == 0 { ("CLIENT", hop / 2 + 1, hop / 2 + 2) } else { ("SERVER", hop / 2 + 2, hop / 2 + 1) };
        assert_eq!((&at["kind"], &at["localEndpoint"]["serviceName"]), (&kind.into(), &format!("w{from}").into()), "{trace:#?}");
        assert_eq!(at["remoteEndpoint"]["serviceName"], format!("w{to}"), "{at:#?}");
        at = trace.iter().find(|span| span["parentId"] == at["id"]).unwrap_or(at);
    }
    mesh.leave();
    let _ = server.kill();
    let mut last = String::new();
    let _ = server.stderr.take().unwrap().read_to_string(&mut last);
    let _ = server.wait();
    assert!(!last.contains("Exception"), "{last}");
}
