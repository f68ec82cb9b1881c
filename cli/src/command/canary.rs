//! `meshwright canary`: how canaries stand, drawn in the terminal, and what is to become of one.

mod draw;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use proto::mesh::{CanariesRequest, Json, SteerCanaryRequest};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::{self, Control, WhichMesh};
use crate::output::terminal::{self, Canvas};
use crate::output::{self, TextOrJson};

/// How often a watched canary is drawn.
const FRAME: Duration = Duration::from_millis(500);

/// Arguments of `meshwright canary`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  meshwright canary status -n shop catalog --watch\n  meshwright canary abort -n shop catalog")]
pub(crate) struct CanaryArgs {
    #[command(subcommand)]
    action: CanaryAction,
}

#[derive(Debug, Subcommand)]
enum CanaryAction {
    /// Shows how canaries stand: steps, both versions side by side, what is waited for, and each decision with its numbers.
    #[command(
        after_help = "Examples:\n  meshwright canary status\n  meshwright canary status -n shop catalog --watch\n  --watch of one canary returns when it is over: 0 where it was promoted, 1 where it was rolled back."
    )]
    Status(StatusArgs),
    /// Gives the candidate everything now, whatever the evidence says.
    #[command(after_help = "Example: meshwright canary promote -n shop catalog")]
    Promote(SteerArgs),
    /// Gives the stable version everything now.
    #[command(after_help = "Example: meshwright canary abort -n shop catalog")]
    Abort(SteerArgs),
    /// Keeps a canary at the step where it is.
    #[command(after_help = "Example: meshwright canary pause -n shop catalog")]
    Pause(SteerArgs),
    /// Lets a paused canary go on from where it is.
    #[command(after_help = "Example: meshwright canary resume -n shop catalog")]
    Resume(SteerArgs),
    /// Lets a canary leave a step that says `approve: true`, once all else is fulfilled.
    #[command(after_help = "Example: meshwright canary approve -n shop catalog")]
    Approve(SteerArgs),
}

/// Arguments of `meshwright canary status`.
#[derive(Debug, Args)]
struct StatusArgs {
    /// Only this one
    name: Option<String>,
    /// Only those of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Goes on: in place on a terminal, elsewhere one line for each decision
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

/// Which canary is meant.
#[derive(Debug, Args)]
struct SteerArgs {
    /// Its name
    name: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

pub(crate) fn run(args: CanaryArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        match args.action {
            CanaryAction::Status(args) if args.watch => watch(&args).await,
            CanaryAction::Status(args) => status(&args).await,
            CanaryAction::Promote(args) => steer(args, "promote").await,
            CanaryAction::Abort(args) => steer(args, "abort").await,
            CanaryAction::Pause(args) => steer(args, "pause").await,
            CanaryAction::Resume(args) => steer(args, "resume").await,
            CanaryAction::Approve(args) => steer(args, "approve").await,
        }
    })
}

async fn ask(control: &mut Control, args: &StatusArgs) -> anyhow::Result<Vec<Value>> {
    let request = CanariesRequest { namespace: args.namespace.clone().unwrap_or_default(), name: args.name.clone().unwrap_or_default() };
    let Json { json, .. } = control.canaries(request).await.map_err(|status| client::refused(&status))?.into_inner();
    let Value::Array(rows) = output::parse(&json)? else { bail!("the control plane's answer is no list of canaries") };
    if let (Some(name), true) = (&args.name, rows.is_empty()) {
        bail!("there is no Canary {name}; `meshwright canary status` lists all");
    }
    Ok(rows)
}

async fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut control = args.place.connect().await?;
    let rows = ask(&mut control, args).await?;
    match args.output {
        TextOrJson::Json => output::print(&printed(args, rows)?)?,
        TextOrJson::Text => output::print(&draw::all(&rows, terminal::colours()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One canary is an object, several are a list.
fn printed(args: &StatusArgs, mut rows: Vec<Value>) -> anyhow::Result<String> {
    let value = match rows.len() {
        1 if args.name.is_some() => rows.remove(0),
        _ => Value::Array(rows),
    };
    Ok(serde_json::to_string(&value)?)
}

/// Until Ctrl-C, `q` on a terminal, or the end of all canaries that were named.
async fn watch(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut control = args.place.connect().await?;
    let live = args.output == TextOrJson::Text && terminal::size().is_some();
    let (mut canvas, mut keys) = if live {
        let (canvas, keys) = Canvas::open();
        (Some(canvas), keys)
    } else {
        (None, mpsc::channel(1).1)
    };
    let mut every = interval(FRAME);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Vec::new();
    loop {
        tokio::select! {
            biased;
            Ok(()) = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            Some(key) = keys.recv() => if key == b'q' { return Ok(ExitCode::SUCCESS) },
            _ = every.tick() => {}
        }
        let rows = ask(&mut control, args).await?;
        let over = args.name.is_some() && rows.iter().all(|row| matches!(row["phase"].as_str(), Some("Promoted" | "RolledBack")));
        let back = rows.iter().any(|row| row["phase"] == "RolledBack");
        match &mut canvas {
            Some(canvas) => canvas.draw(&draw::all(&rows, terminal::colours())),
            None if args.output == TextOrJson::Json => news(&mut told, &rows, |row, _| row.to_string())?,
            None => news(&mut told, &rows, draw::decision)?,
        }
        if over {
            return Ok(if back { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    }
}

/// Prints what was decided since the last look, the oldest first.
fn news(told: &mut Vec<String>, rows: &[Value], line: impl Fn(&Value, &Value) -> String) -> anyhow::Result<()> {
    let mut now = Vec::new();
    for row in rows {
        for decision in row["decisions"].as_array().into_iter().flatten() {
            let key = format!("{}/{} {decision}", row["namespace"], row["name"]);
            if !told.contains(&key) {
                output::print(&line(row, decision))?;
            }
            now.push(key);
        }
    }
    *told = now;
    Ok(())
}

async fn steer(args: SteerArgs, verb: &str) -> anyhow::Result<ExitCode> {
    let SteerArgs { name, namespace, place, output } = args;
    let request = SteerCanaryRequest { namespace, name, verb: verb.to_owned() };
    let answer = place.connect().await?.steer_canary(request).await.map_err(|status| client::refused(&status))?;
    let json = answer.into_inner().json;
    match output {
        TextOrJson::Json => output::print(&json)?,
        TextOrJson::Text => output::print(&draw::all(&[output::parse(&json)?], terminal::colours()))?,
    }
    Ok(ExitCode::SUCCESS)
}
