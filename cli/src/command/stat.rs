//! `meshwright stat`.

use std::cmp::Ordering;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::mesh::{Json, StatRequest};
use serde_json::Value;
use tokio::sync::mpsc;

use super::token;
use crate::client::{self, Control, WhichMesh};
use crate::duration;
use crate::output::terminal::{self, Canvas, harmless};
use crate::output::{self, Columns, TextOrJson};

/// How often a watched table is drawn.
const FRAME: Duration = Duration::from_secs(1);
/// Longest window that the control plane knows.
const WINDOW_MAX: Duration = Duration::from_secs(60);
/// Keys of a watched table.
const KEYS: &str = "keys: r rate, s success, p p99, n name, q quit";

/// Arguments of `meshwright stat`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshwright stat\n  meshwright stat routes -n shop --watch\n  meshwright stat services --from shop/frontend --sort p99\n  meshwright stat workloads catalog-v2 -o json"
)]
pub(crate) struct StatArgs {
    /// What each row is about
    #[arg(value_enum, default_value_t)]
    view: View,
    /// Only this service, route or workload (`gateway/NAME` a Gateway)
    name: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only what this workload calls
    #[arg(long, value_name = "NS/WORKLOAD", value_parser = token::workload)]
    from: Option<String>,
    /// What comes first: the highest rate, the lowest success, the longest p99, or by name
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// The time that is looked at, in whole seconds up to 60s
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    window: Duration,
    /// Goes on, once a second; in place on a terminal, where keys change the order
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum View {
    /// Services that are called
    #[default]
    Services,
    /// Services and the routes that led there
    Routes,
    /// Workloads that are called, and Gateways
    Workloads,
}

impl View {
    const fn text(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Routes => "routes",
            Self::Workloads => "workloads",
        }
    }

    fn columns(self) -> Vec<(&'static str, &'static str)> {
        let named: &[(&str, &str)] = match self {
            Self::Services => &[("SERVICE", "service")],
            Self::Routes => &[("SERVICE", "service"), ("ROUTE", "route")],
            Self::Workloads => &[("WORKLOAD", "workload")],
        };
        let golden = [("RPS", "rps"), ("SUCCESS", "success"), ("P50", "p50"), ("P95", "p95"), ("P99", "p99")];
        named.iter().copied().chain(golden).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Sort {
    #[default]
    Rps,
    Success,
    P99,
    Name,
}

impl Sort {
    const fn text(self) -> &'static str {
        match self {
            Self::Rps => "rps",
            Self::Success => "success",
            Self::P99 => "p99",
            Self::Name => "name",
        }
    }

    /// What a key asks for; `None`: nothing.
    const fn of_key(key: u8) -> Option<Self> {
        match key {
            b'r' => Some(Self::Rps),
            b's' => Some(Self::Success),
            b'p' => Some(Self::P99),
            b'n' => Some(Self::Name),
            _ => None,
        }
    }

    fn order(self, a: &Value, b: &Value) -> Ordering {
        // Where there is no number there is nothing to look at: last.
        let number = |row: &Value, field: &str, none: f64| row[field].as_f64().unwrap_or(none);
        let by_name = || name(a).cmp(&name(b));
        let ordered = match self {
            Self::Rps => number(b, "rps", 0.0).total_cmp(&number(a, "rps", 0.0)),
            Self::Success => number(a, "success", f64::MAX).total_cmp(&number(b, "success", f64::MAX)),
            Self::P99 => number(b, "p99_ms", -1.0).total_cmp(&number(a, "p99_ms", -1.0)),
            Self::Name => Ordering::Equal,
        };
        ordered.then_with(by_name)
    }
}

fn name(row: &Value) -> [&str; 4] {
    ["namespace", "service", "route", "workload"].map(|field| row[field].as_str().unwrap_or_default())
}

fn window(text: &str) -> Result<Duration, String> {
    let window = duration::positive(text)?;
    if window > WINDOW_MAX || window.subsec_nanos() > 0 {
        return Err(format!("a window has whole seconds, 1s to {}; for longer times ask Prometheus", duration::show(WINDOW_MAX)));
    }
    Ok(window)
}

pub(crate) fn run(args: StatArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        let mut control = args.place.connect().await?;
        if args.watch {
            watch(&mut control, &args).await?;
        } else {
            let answer = ask(&mut control, &args).await?;
            show(&args, &answer)?;
            output::note(&answer.note);
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn ask(control: &mut Control, args: &StatArgs) -> anyhow::Result<Json> {
    let request = StatRequest {
        view: args.view.text().to_owned(),
        namespace: args.namespace.clone().unwrap_or_default(),
        name: args.name.clone().unwrap_or_default(),
        from: args.from.clone().unwrap_or_default(),
        window: Some(duration::to_message(args.window)),
    };
    Ok(control.stat(request).await.map_err(|status| client::refused(&status))?.into_inner())
}

fn show(args: &StatArgs, answer: &Json) -> anyhow::Result<()> {
    let rows = sorted(&answer.json, args.sort)?;
    match args.output {
        TextOrJson::Json => output::print(&Value::Array(rows).to_string()),
        TextOrJson::Text => output::print(&table(args.view, &rows)),
    }
}

/// Until Ctrl-C, or `q` on a terminal.
async fn watch(control: &mut Control, args: &StatArgs) -> anyhow::Result<()> {
    let live = args.output == TextOrJson::Text && terminal::size().is_some();
    let (mut canvas, mut keys) = if live {
        let (canvas, keys) = Canvas::open();
        (Some(canvas), keys)
    } else {
        (None, mpsc::channel(1).1)
    };
    let (mut sort, mut interrupts) = (args.sort, terminal::interrupts()?);
    let mut every = tokio::time::interval(FRAME);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answer = ask(control, args).await?;
    loop {
        if let Some(canvas) = &mut canvas {
            canvas.draw(&frame(args, sort, &answer)?);
        }
        tokio::select! {
            biased;
            _ = interrupts.recv() => return Ok(()),
            Some(key) = keys.recv() => match (key, Sort::of_key(key)) {
                (b'q', _) => return Ok(()),
                (_, Some(wanted)) => sort = wanted,
                _ => {}
            },
            _ = every.tick() => {
                answer = ask(control, args).await?;
                if canvas.is_none() {
                    show(args, &answer)?;
                }
            }
        }
    }
}

/// What stands on a terminal.
fn frame(args: &StatArgs, sort: Sort, answer: &Json) -> anyhow::Result<String> {
    let rows = sorted(&answer.json, sort)?;
    let heading = format!("{} of the last {}, by {}; {KEYS}", args.view.text(), duration::show(args.window), sort.text());
    Ok(format!("{heading}\n\n{}\n{}\n", table(args.view, &rows).trim_end(), answer.note))
}

fn sorted(json: &str, sort: Sort) -> anyhow::Result<Vec<Value>> {
    let Value::Array(mut rows) = output::parse(json)? else { anyhow::bail!("the control plane's answer is no list of rows") };
    rows.sort_by(|a, b| sort.order(a, b));
    Ok(rows)
}

fn table(view: View, rows: &[Value]) -> String {
    let mut table = Columns::new(&view.columns());
    rows.iter().for_each(|row| {
        table.row(&cells(row));
    });
    table.render("no requests now")
}

/// A row as people read it.
fn cells(row: &Value) -> Value {
    let text = |field: &str| row[field].as_str().map(harmless);
    let within = |field: &str| text(field).map(|name| format!("{}/{name}", text("namespace").unwrap_or_default()));
    let ms = |field: &str| row[field].as_f64().map(|ms| if ms >= 10_000.0 { "> 10 s".to_owned() } else { output::milliseconds(ms) });
    serde_json::json!({
        "service": within("service"),
        "route": text("route"),
        "workload": within("workload"),
        "rps": row["rps"].as_f64().map(|rps| format!("{rps:.1}")),
        "success": row["success"].as_f64().map(percent),
        "p50": ms("p50_ms"),
        "p95": ms("p95_ms"),
        "p99": ms("p99_ms"),
    })
}

/// Cut and not rounded: a failure never reads as 100 %.
fn percent(success: f64) -> String {
    format!("{:.2}%", (success * 100.0).floor() / 100.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows() -> String {
        json!([
            {"namespace": "shop", "service": "catalog", "route": "shop/catalog", "workload": null, "rps": 12.5, "success": 99.999,
             "p50_ms": 1.25, "p95_ms": 9.0, "p99_ms": 10_000.0},
            {"namespace": "shop", "service": "idle", "route": null, "workload": null, "rps": 0.0, "success": null, "p50_ms": null,
             "p95_ms": null, "p99_ms": null},
            {"namespace": "shop", "service": "store", "route": null, "workload": null, "rps": 100.0, "success": 100.0, "p50_ms": 0.5,
             "p95_ms": 1.0, "p99_ms": 2.0},
        ])
        .to_string()
    }

    /// Aim: rows read as a table with units; a failure never reads as 100 %, and what is beyond the histogram says so.
    #[test]
    fn rows_read_as_a_table() {
        let text = table(View::Routes, &sorted(&rows(), Sort::Rps).unwrap());
        insta::assert_snapshot!("routes", text);
        assert_eq!(table(View::Services, &[]), "no requests now");
    }

    /// Aim: what most deserves a look comes first, and idle rows last.
    #[test]
    fn rows_are_sorted() {
        for (sort, wanted) in [
            (Sort::Rps, ["store", "catalog", "idle"]),
            (Sort::Success, ["catalog", "store", "idle"]),
            (Sort::P99, ["catalog", "store", "idle"]),
            (Sort::Name, ["catalog", "idle", "store"]),
        ] {
            let rows = sorted(&rows(), sort).unwrap();
            assert_eq!(rows.iter().map(|row| row["service"].as_str().unwrap()).collect::<Vec<_>>(), wanted, "{sort:?}");
        }
        assert_eq!(
            [b'r', b's', b'p', b'n', b'x'].map(Sort::of_key),
            [Some(Sort::Rps), Some(Sort::Success), Some(Sort::P99), Some(Sort::Name), None]
        );
        assert!(window("10s").is_ok() && window("61s").is_err() && window("1500ms").is_err());
    }
}
