//! `meshwright apply`, and what `delete` shares with it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use proto::mesh::{ApplyRequest, Progress};
use serde_json::Value;
use tonic::Streaming;

use crate::client::{self, WhichMesh};
use crate::output::{self, ProgressLine, TextOrJson};
use crate::{documents, duration};

/// Arguments of `meshwright apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright apply -f examples/shop/catalog-route.yaml --wait\n  Returns when every proxy concerned runs the change and all that it declares is ready, and says how many and how long."
)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

/// What `apply` and `delete` have in common.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// A manifest file, a folder of them, or `-` for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    /// Wait until every proxy concerned has acknowledged the change, and every instance and Gateway that it declares is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::positive)]
    timeout: Duration,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

pub(crate) fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    change(args.change, false)
}

/// Applies or deletes; succeeds when the control plane says so.
pub(super) fn change(args: ChangeArgs, delete: bool) -> anyhow::Result<ExitCode> {
    let documents = documents::read(&args.file)?;
    output::block_on(async {
        let mut control = args.place.connect().await?;
        let request = ApplyRequest { documents, delete, wait: args.wait, timeout: Some(duration::to_message(args.timeout)) };
        let stream = control.apply(request).await.map_err(|status| client::refused(&status))?.into_inner();
        let line = ProgressLine::start(if delete { "deleting" } else { "applying" });
        let last = last(stream, &line).await.map_err(|status| client::refused(&status))?;
        drop(line);
        let result = output::parse(&last.json)?;
        match args.output {
            TextOrJson::Json => output::print(&last.json)?,
            TextOrJson::Text if list(&result, "errors").next().is_none() => output::print(&summary(&result))?,
            TextOrJson::Text => {}
        }
        if !last.ok && args.output == TextOrJson::Text {
            eprintln!("error: {}", failure(&result));
        }
        Ok(if last.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Shows the progress of a stream until its last message.
///
/// # Errors
/// The control plane's refusal, or `Unavailable` where the stream ended without a result.
pub(super) async fn last(mut stream: Streaming<Progress>, line: &ProgressLine) -> Result<Progress, tonic::Status> {
    while let Some(progress) = stream.message().await? {
        if progress.done {
            return Ok(progress);
        }
        line.say(&progress.waiting_for);
    }
    Err(tonic::Status::unavailable("it ended before the result"))
}

/// The result for people: a line per object, then the epoch.
fn summary(result: &Value) -> String {
    let mut text = String::new();
    for object in list(result, "objects") {
        let namespace = string(object, "namespace");
        let slash = if namespace.is_empty() { "" } else { "/" };
        text += &format!("{} {namespace}{slash}{} {}\n", string(object, "kind"), string(object, "name"), string(object, "result"));
    }
    for warning in list(result, "warnings") {
        text += &format!("warning: {}\n", warning.as_str().unwrap_or_default());
    }
    text + &epoch(result)
}

/// `epoch 42 is live after 12.3 ms: 3 proxies took it, 40 are not concerned`.
pub(super) fn epoch(result: &Value) -> String {
    let number = &result["epoch"];
    let Some(live) = result["live"].as_bool() else {
        return format!("epoch {number} accepted; `meshwright wait --epoch {number}` returns when it is live\n");
    };
    let after = result["live_ms"].as_f64().map(|ms| format!(" after {}", output::milliseconds(ms))).unwrap_or_default();
    let state = if live { "is live" } else { "is not live" };
    let proxies = &result["proxies"];
    let taken = proxies.get("acknowledged").or_else(|| proxies.get("concerned")).and_then(Value::as_u64).unwrap_or(0);
    let unaffected = proxies["unaffected"].as_u64().unwrap_or(0);
    let plural = if taken == 1 { "proxy" } else { "proxies" };
    format!("epoch {number} {state}{after}: {taken} {plural} concerned, {unaffected} not\n")
}

/// What stands in the way, as one sentence or several lines.
pub(super) fn failure(result: &Value) -> String {
    let errors: Vec<&str> = list(result, "errors").filter_map(Value::as_str).collect();
    if !errors.is_empty() {
        return format!("nothing was changed, because of\n       {}", errors.join("\n       "));
    }
    let refused: Vec<String> = list(result, "refused")
        .map(|refusal| format!("{} refused {}: {}", string(refusal, "proxy"), string(refusal, "object"), string(refusal, "reason")))
        .collect();
    if !refused.is_empty() {
        return refused.join("\n       ");
    }
    let laggards: Vec<&str> = list(&result["proxies"], "waiting").filter_map(Value::as_str).collect();
    if !laggards.is_empty() {
        return format!(
            "not live in time, because of\n       {}\n`meshwright get proxies` shows their epochs, `meshwright logs -n NAMESPACE WORKLOAD --proxy` their side",
            laggards.join("\n       ")
        );
    }
    "the configuration was not taken; `meshwright get objects` shows what is in force".to_owned()
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn string<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: people read one line per object, then the epoch with its numbers.
    #[test]
    fn a_result_reads_well() {
        let result = json!({"epoch": 42, "objects": [{"kind": "HTTPRoute", "namespace": "shop", "name": "catalog", "result": "changed"}],
            "warnings": ["x"], "live": true, "live_ms": 12.34, "proxies": {"concerned": 1, "unaffected": 40, "waiting": []}});
        assert_eq!(
            summary(&result),
            "HTTPRoute shop/catalog changed\nwarning: x\nepoch 42 is live after 12.3 ms: 1 proxy concerned, 40 not\n"
        );
        let unwaited = json!({"epoch": 7, "objects": []});
        assert_eq!(summary(&unwaited), "epoch 7 accepted; `meshwright wait --epoch 7` returns when it is live\n");
    }

    /// Aim: a failure names who refused what, else who lags, else where to look.
    #[test]
    fn failures_name_the_culprit() {
        let refused = json!({"refused": [{"proxy": "shop/a", "object": "HTTPRoute shop/x", "reason": "bad regex"}]});
        assert_eq!(failure(&refused), "shop/a refused HTTPRoute shop/x: bad regex");
        assert!(failure(&json!({"proxies": {"waiting": ["shop/a", "shop/b"]}})).contains("because of\n       shop/a\n       shop/b\n"));
        assert!(failure(&json!({})).contains("get objects"));
        assert_eq!(failure(&json!({"errors": ["a.yaml:2: no"]})), "nothing was changed, because of\n       a.yaml:2: no");
    }
}
