//! Part of the case table by processes: one `up`, every proxy and application a process in a namespace of its own, real redirection, and
//! curl for a client.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tests::cases::judge::{Outcome, Seen, judge};
use tests::cases::objects::{HOME, Pod, Stage, destination, manifests};
use tests::cases::table::{Case, Only, Proto, Table, tables};

use super::running::{LIVE_MAX, Up};

/// Who asks, in a namespace of its own, so that all tables have one client.
const CLIENT: &str = "asker/client";
/// Between two answers.
const MARK: &str = "=====";

/// A manifest whose home is a namespace of the table's own.
fn moved(object: &Value, home: &str) -> Value {
    match object {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let is_home = value == HOME && (name == "namespace" || (name == "name" && object.get("labels").is_some()));
                (name.clone(), if is_home { home.into() } else { moved(value, home) })
            };
            Value::Object(fields.iter().map(field).collect())
        }
        Value::Array(items) => items.iter().map(|item| moved(item, home)).collect(),
        other => other.clone(),
    }
}

/// A pod as a process.
fn process(pod: &Pod, workload: &Value) -> Value {
    let mut workload = workload.clone();
    let mut command = vec![json!("meshwright"), json!("echo")];
    command.extend(pod.ports.iter().flat_map(|port| [json!("--http"), json!(port.to_string())]));
    workload["spec"] = json!({"command": command, "ports": workload["spec"]["ports"]});
    workload
}

fn town(tables: &[Table]) -> anyhow::Result<String> {
    let client = json!({"apiVersion": "meshwright.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "client", "namespace": "asker"},
        "spec": {"command": ["sleep", "100000"]}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "asker", "labels": {"meshwright.dev/inject": "enabled"}}});
    let mut text = manifests([&namespace, &client]);
    for table in tables {
        let mut stage = Stage::of(table)?;
        for client in &stage.clients {
            stage.objects.remove(&format!("workload/{}/{}", client.namespace, client.name));
        }
        for pod in stage.pods.clone() {
            let key = format!("workload/{}/{}", pod.namespace, pod.name);
            let workload = stage.objects.get_mut(&key).context("a pod without a Workload")?;
            *workload = process(&pod, workload);
        }
        let objects: Vec<Value> = stage.objects.values().map(|object| moved(object, &table.name)).collect();
        text += &manifests(&objects);
    }
    Ok(text)
}

/// Whether curl and `echo` can tell: neither of them knows of anything but one request, and HEAD does not say who answered.
fn can_tell(case: &Case) -> bool {
    let (ask, want) = (&case.get, &case.want);
    let plain = ask.repeat == 1 && ask.answer.is_none() && ask.keep.is_none() && want.seen.body.is_none();
    let telling = ask.method != "HEAD" && ask.path != "*" && matches!(ask.proto, Proto::Http1 | Proto::Http2);
    plain && telling && case.only != Some(Only::Unit)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// All requests of a table as a shell's script.
fn script(table: &Table, cases: &[&Case]) -> anyhow::Result<String> {
    let mut script = String::new();
    for case in cases {
        let (ask, to) = (&case.get, destination(&case.get.to)?);
        let host = ask.host.clone().unwrap_or_else(|| to.name.clone());
        let version = if ask.proto == Proto::Http2 { "--http2-prior-knowledge" } else { "--http1.1" };
        let how = format!("-X {} {version}", ask.method);
        let mut headers = format!("-H {}", quoted(&format!("Host: {host}")));
        for (name, values) in &ask.headers {
            for value in values.all() {
                let field = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
                write!(headers, " -H {}", quoted(&field))?;
            }
        }
        let body = if ask.body.is_empty() { String::new() } else { format!("--data-raw {}", quoted(&ask.body)) };
        let url = quoted(&format!("http://{}.{}:{}{}", to.name, table.name, to.port, ask.path));
        writeln!(script, "curl -sS -m 10 --path-as-is -i {how} {headers} {body} {url}; echo; echo {MARK}")?;
    }
    Ok(script)
}

fn outcome(text: &str) -> anyhow::Result<Outcome> {
    let text = text.replace('\r', "");
    let (head, body) = text.trim_start().split_once("\n\n").unwrap_or((text.trim(), ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no answer")?.parse()?;
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers.append(HeaderName::try_from(name)?, HeaderValue::from_str(value)?);
    }
    let mut outcome = Outcome { status, headers, ..Outcome::default() };
    if let Ok(told) = serde_json::from_str::<Value>(body.trim()) {
        let word = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
        let mut seen = Seen { pod: word("workload"), method: word("method"), path: word("path"), host: word("host"), ..Seen::default() };
        for (name, values) in told["headers"].as_object().into_iter().flatten() {
            for value in values.as_array().into_iter().flatten().filter_map(Value::as_str) {
                seen.headers.append(HeaderName::try_from(name)?, HeaderValue::from_str(value)?);
            }
        }
        outcome.pod.clone_from(&seen.pod);
        outcome.seen.push(seen);
    }
    Ok(outcome)
}

/// Aim: what the table says of matches, redirects, rewrites, headers and origins holds for real processes behind real redirection, too.
#[test]
fn processes_do_as_the_table_says() {
    let tables: Vec<Table> = tables().unwrap().into_iter().filter(|table| table.netns).collect();
    let up = Up::start(&[&town(&tables).unwrap()], &[]);
    up.wait_for("live", LIVE_MAX);
    let (mut wrong, mut count) = (Vec::new(), BTreeMap::new());
    for table in &tables {
        let cases: Vec<&Case> = table.cases.iter().filter(|case| can_tell(case)).collect();
        let output = up.exec(CLIENT, &["sh", "-c", &script(table, &cases).unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers: Vec<&str> = text.split(&format!("{MARK}\n")).collect();
        for (case, answer) in cases.iter().zip(&answers) {
            let judged = outcome(answer).and_then(|outcome| judge(&case.want, &[outcome]));
            wrong.extend(judged.err().map(|error| format!("{}: {}: {error:#}\n{answer}", table.name, case.name)));
        }
        assert_eq!(answers.len(), cases.len() + 1, "{}: {text}\n{}", table.name, String::from_utf8_lossy(&output.stderr));
        count.insert(&table.name, cases.len());
    }
    println!("cases: {count:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    up.end();
}
