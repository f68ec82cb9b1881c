//! `meshwright ca`.

mod audit;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use proto::mesh::{Json, RootsRequest, RotateRootRequest};
use serde_json::Value;

use super::apply;
use crate::client::{self, WhichMesh};
use crate::duration;
use crate::output::{self, Columns, ProgressLine, TextOrJson};

/// Arguments of `meshwright ca`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshwright ca show\n  meshwright ca rotate-root --plan")]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    action: CaAction,
}

#[derive(Debug, Subcommand)]
enum CaAction {
    /// Shows the roots, where their rotation stands, the issuers in use and how many certificates each of them has out.
    #[command(after_help = "Example: meshwright ca show -o json")]
    Show {
        #[command(flatten)]
        place: WhichMesh,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: TextOrJson,
    },
    /// Lists who was given which certificate and by what proof, the newest first; or who was refused.
    #[command(after_help = audit::EXAMPLE)]
    Audit(audit::AuditArgs),
    /// Replaces the root: every proxy believes the new one, every certificate is issued anew below it, then the old one is dropped.
    #[command(
        after_help = "Examples:\n  meshwright ca rotate-root --plan\n  meshwright ca rotate-root\n  Returns when the old root is gone. A rotation goes on by itself when this command ends, and when the control plane starts again;\n  this command joins the one under way."
    )]
    RotateRoot(RotateArgs),
}

/// Arguments of `meshwright ca rotate-root`.
#[derive(Debug, Args)]
struct RotateArgs {
    /// Only say which steps there are and whom each of them waits for
    #[arg(long, conflicts_with_all = ["no_wait", "timeout"])]
    plan: bool,
    /// Return when the first step is taken
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
    /// How long to wait; the rotation goes on after that [default: as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    timeout: Option<Duration>,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

pub(crate) fn run(args: CaArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        match args.action {
            CaAction::Show { place, output } => show(&place, output).await,
            CaAction::Audit(args) => audit::run(&args).await,
            CaAction::RotateRoot(args) => rotate(&args).await,
        }
    })
}

async fn show(place: &WhichMesh, output: TextOrJson) -> anyhow::Result<ExitCode> {
    let answer = place.connect().await?.roots(RootsRequest {}).await.map_err(|status| client::refused(&status))?;
    let Json { json, note } = answer.into_inner();
    output::note(&note);
    match output {
        TextOrJson::Json => output::print(&serde_json::to_string_pretty(&output::parse(&json)?)?)?,
        TextOrJson::Text => output::print(&render(&output::parse(&json)?))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate(args: &RotateArgs) -> anyhow::Result<ExitCode> {
    let line = ProgressLine::start(if args.plan { "planning" } else { "rotating the root" });
    let timeout = args.timeout.map(duration::to_message);
    let request = RotateRootRequest { plan: args.plan, wait: !args.plan && !args.no_wait, timeout };
    let mut control = args.place.connect().await?;
    let stream = control.rotate_root(request).await.map_err(|status| client::refused(&status))?.into_inner();
    let last = match apply::last(stream, &line).await {
        Ok(last) => last,
        Err(status) if status.code() == tonic::Code::Unavailable && !args.plan => bail!(
            "the control plane went away ({}); the rotation goes on once it is back: `meshwright ca show` says where it stands",
            status.message()
        ),
        Err(status) => return Err(client::refused(&status)),
    };
    drop(line);
    let value = output::parse(&last.json)?;
    match args.output {
        TextOrJson::Json => output::print(&last.json)?,
        TextOrJson::Text if args.plan => output::print(&steps(&value))?,
        TextOrJson::Text if last.ok => output::print(&outcome(&value))?,
        TextOrJson::Text => eprintln!("error: {}", failure(&value)),
    }
    Ok(if last.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The steps that are left, for people.
fn steps(plan: &Value) -> String {
    let mut rows = Columns::new(&[("STEP", "step"), ("WHAT HAPPENS", "what"), ("EARLIEST", "earliest"), ("WAITS FOR", "waiting")]);
    for step in plan.as_array().into_iter().flatten() {
        let what = match step["step"].as_str().unwrap_or_default() {
            "Trust" => "the new root is believed beside the old one",
            "Issue" => "certificates are issued below the new root, and every proxy renews its own",
            _ => "the old root is believed no more",
        };
        rows.row(
            &serde_json::json!({"step": step["step"], "what": what, "earliest": step["earliest"], "waiting": names(&step["waiting"])}),
        );
    }
    rows.render("nothing is left to do\n")
}

fn outcome(result: &Value) -> String {
    let root = |field: &str| result[field].as_str().unwrap_or_default().chars().take(16).collect::<String>();
    if result["rotated"].as_bool() == Some(true) {
        return format!("every proxy believes root {} only; {} is gone\n", root("new"), root("old"));
    }
    let begun = if result["joined"].as_bool() == Some(true) { "a rotation is under way already" } else { "the rotation has begun" };
    format!("{begun}, from root {} to {}; `meshwright ca show` says where it stands\n", root("old"), root("new"))
}

fn failure(result: &Value) -> String {
    if let Some(reason) = result["stopped"].as_str() {
        return format!("{reason}; the roots stay as they are until that is mended, then the rotation goes on by itself");
    }
    format!(
        "the root is not rotated yet, because of {}; it goes on: `meshwright ca show` says where it stands, `meshwright get proxies` shows who is connected",
        names(&result["waiting"])
    )
}

fn names(list: &Value) -> String {
    let names: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn render(shown: &Value) -> String {
    let mut roots = Columns::new(&[
        ("ROOT (SHA-256)", "sha256"),
        ("STATE", "state"),
        ("ENDS", "not_after"),
        ("LEAVES", "leaves"),
        ("BELIEVED BY PROXIES", "proxies"),
    ]);
    let mut issuers =
        Columns::new(&[("ISSUER", "issuer"), ("LEAVES", "leaves"), ("FIRST EXPIRY", "first_expiry"), ("LAST EXPIRY", "last_expiry")]);
    for root in shown["roots"].as_array().into_iter().flatten() {
        roots.row(root);
    }
    for issuer in shown["issuers"].as_array().into_iter().flatten() {
        issuers.row(issuer);
    }
    let rotation = match (shown["stopped"].as_str(), shown["step"].as_str()) {
        (Some(reason), _) => format!("{reason}\n\n"),
        (None, Some(step)) => format!("the root is being rotated, step {step}: waiting for {}\n\n", names(&shown["waiting"])),
        (None, None) => String::new(),
    };
    format!("{rotation}{}\n{}", roots.render("there is no root yet\n"), issuers.render("no certificate is in use yet\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: people read each root with its state, and whom a rotation waits for or why it stopped.
    #[test]
    fn roots_read_well() {
        let roots = json!([{"sha256": "aa", "state": "Issuing", "not_after": "2036-01-01T00:00:00Z", "leaves": 3, "proxies": 2}]);
        let shown = json!({"phase": "Trusting", "step": "Trust", "waiting": ["shop/a", "shop/b"], "stopped": null, "roots": roots});
        let text = render(&shown);
        assert!(text.starts_with("the root is being rotated, step Trust: waiting for shop/a, shop/b\n"), "{text}");
        assert!(text.contains("aa") && text.contains("Issuing") && text.contains("no certificate"), "{text}");
        let stopped = json!({"stopped": "the proxy of shop/a refuses the roots: x", "roots": roots});
        assert!(render(&stopped).starts_with("the proxy of shop/a refuses"));
    }

    /// Aim: an end says which root is gone; a begin, a wait that was too short and a stop each say what goes on and where to look.
    #[test]
    fn results_say_what_goes_on() {
        let (old, new) = ("a".repeat(64), "b".repeat(64));
        let result = |rotated, joined, waiting: &[&str], stopped: Option<&str>| json!({"rotated": rotated, "joined": joined, "old": old, "new": new, "waiting": waiting, "stopped": stopped});
        assert_eq!(
            outcome(&result(true, false, &[], None)),
            format!("every proxy believes root {} only; {} is gone\n", &new[..16], &old[..16])
        );
        assert!(outcome(&result(false, true, &[], None)).starts_with("a rotation is under way already"));
        assert!(failure(&result(false, false, &["shop/a"], None)).contains("because of shop/a"));
        assert!(failure(&result(false, false, &[], Some("shop/a refuses"))).contains("goes on by itself"));
        assert!(steps(&json!([{"step": "Drop", "waiting": [], "earliest": "x"}])).contains("nobody"));
    }
}
