//! `meshwright get`.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use proto::mesh::GetRequest;
use serde_json::Value;

use crate::client::{self, WhichMesh};
use crate::output::{self, Columns, Format};

/// Arguments of `meshwright get`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshwright get proxies\n  meshwright get objects catalog -n shop -o yaml\n  meshwright get endpoints frontend -n shop"
)]
pub(crate) struct GetArgs {
    /// What to show
    #[arg(value_enum)]
    kind: GetKind,
    /// Only the object, workload or instance of this name, or the epoch of this number
    name: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GetKind {
    /// Every object, its status, and the last good version where a newer one is refused
    Objects,
    /// Who may call from outside, and with which credentials
    Consumers,
    /// Connected proxies and the epoch each of them runs
    Proxies,
    /// Listeners that each proxy runs
    Listeners,
    /// Routes that each proxy runs
    Routes,
    /// Clusters that each proxy runs
    Clusters,
    /// Endpoints that each proxy knows
    Endpoints,
    /// Policies that each proxy enforces
    Policies,
    /// Certificates in use
    Certs,
    /// Epochs, newest first
    Epochs,
    /// Who still speaks plaintext to whom
    Plaintext,
    /// Calls past the mesh that were cut, or that an EgressPolicy in mode Audit would cut
    Egress,
    /// How much of each limit at the edge is left, by key
    Limits,
}

/// Headings and the fields below them.
type Layout = &'static [(&'static str, &'static str)];

const CONSUMERS: Layout = &[
    ("NAMESPACE", "namespace"),
    ("NAME", "name"),
    ("TEAM", "team"),
    ("GROUPS", "groups"),
    ("DISABLED", "disabled"),
    ("EXPIRES AT", "expires_at"),
    ("CREDENTIALS", "credentials"),
];
const PROXIES: Layout = &[
    ("NAMESPACE", "namespace"),
    ("INSTANCE", "instance"),
    ("WORKLOAD", "workload"),
    ("KIND", "kind"),
    ("MODE", "mode"),
    ("EPOCH", "epoch"),
    ("VERSION", "version"),
    ("PID", "pid"),
    ("CONNECTED SINCE", "connected_since"),
];
const CERTS: Layout = &[
    ("NAMESPACE", "namespace"),
    ("INSTANCE", "instance"),
    ("IDENTITY", "identity"),
    ("SERIAL", "serial"),
    ("NOT AFTER", "not_after"),
    ("ISSUER", "issuer"),
    ("ORDER", "acme.order"),
    ("NEXT TRY", "acme.next_try"),
    ("PROBLEM", "problem"),
];
const EPOCHS: Layout = &[
    ("EPOCH", "epoch"),
    ("ACCEPTED", "accepted"),
    ("LIVE", "live"),
    ("LIVE MS", "live_ms"),
    ("CONCERNED", "proxies.concerned"),
    ("ACKNOWLEDGED", "proxies.acknowledged"),
    ("WAITING", "proxies.waiting"),
    ("OBJECTS", "objects"),
];
const EGRESS: Layout = &[
    ("SOURCE", "source"),
    ("DESTINATION", "destination"),
    ("PORT", "port"),
    ("VERDICT", "verdict"),
    ("CALLS", "calls"),
    ("LAST SEEN", "last_seen"),
    ("WHY", "why"),
];
const LIMITS: Layout = &[
    ("NAMESPACE", "namespace"),
    ("NAME", "name"),
    ("LIMIT", "limit"),
    ("KEY", "key"),
    ("USED", "used"),
    ("OF", "limit_value"),
    ("RESETS AT", "resets_at"),
    ("STORE", "store"),
    ("DEGRADED", "degraded"),
];
const PLAINTEXT: Layout =
    &[("SOURCE", "source"), ("DESTINATION", "destination"), ("PORT", "port"), ("CONNECTIONS", "connections"), ("LAST SEEN", "last_seen")];
const LISTENERS: Layout = &[
    ("PROXY", "proxy"),
    ("NAME", "name"),
    ("DIRECTION", "direction"),
    ("ADDRESS", "address"),
    ("PROTOCOL", "protocol"),
    ("MTLS", "mtls"),
    ("ROUTES", "routes"),
    ("TCP", "tcp"),
    ("SERVICE", "service"),
];
const ROUTES: Layout = &[
    ("PROXY", "proxy"),
    ("TABLE", "table"),
    ("KIND", "kind"),
    ("NAMESPACE", "namespace"),
    ("NAME", "name"),
    ("RULE", "rule"),
    ("MATCHES", "matches"),
    ("BACKENDS", "backends"),
    ("TIMEOUT MS", "request_timeout_ms"),
];
const CLUSTERS: Layout = &[
    ("PROXY", "proxy"),
    ("NAME", "name"),
    ("KIND", "kind"),
    ("PROTOCOL", "protocol"),
    ("READY", "ready"),
    ("KNOWN", "known"),
    ("CONNECT TIMEOUT MS", "connect_timeout_ms"),
];
const ENDPOINTS: Layout = &[
    ("PROXY", "proxy"),
    ("CLUSTER", "cluster"),
    ("ADDRESS", "address"),
    ("INSTANCE", "instance"),
    ("HEALTH", "health"),
    ("STANDING", "standing"),
    ("WEIGHT", "weight"),
    ("IN FLIGHT", "in_flight"),
    ("SENT", "sent"),
    ("IDENTITY", "identity"),
];
const POLICIES: Layout = &[
    ("PROXY", "proxy"),
    ("KIND", "kind"),
    ("NAMESPACE", "namespace"),
    ("NAME", "name"),
    ("ACTION", "action"),
    ("DRY RUN", "dry_run"),
    ("RULES", "rules"),
];
/// Columns that stand in front, where the rows have them; long ones come last.
const FIRST: &[&str] = &[
    "proxy",
    "kind",
    "namespace",
    "name",
    "address",
    "service",
    "route",
    "cluster",
    "workload",
    "status",
    "live",
    "source",
    "error",
    "file",
];

impl GetKind {
    /// As the control plane names it, which is as the command line does.
    const fn text(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Consumers => "consumers",
            Self::Proxies => "proxies",
            Self::Listeners => "listeners",
            Self::Routes => "routes",
            Self::Clusters => "clusters",
            Self::Endpoints => "endpoints",
            Self::Policies => "policies",
            Self::Certs => "certs",
            Self::Epochs => "epochs",
            Self::Plaintext => "plaintext",
            Self::Egress => "egress",
            Self::Limits => "limits",
        }
    }

    /// The columns of a table, where the fields are fixed by kinds.md.
    const fn columns(self) -> Option<Layout> {
        match self {
            Self::Consumers => Some(CONSUMERS),
            Self::Proxies => Some(PROXIES),
            Self::Certs => Some(CERTS),
            Self::Epochs => Some(EPOCHS),
            Self::Plaintext => Some(PLAINTEXT),
            Self::Egress => Some(EGRESS),
            Self::Limits => Some(LIMITS),
            Self::Listeners => Some(LISTENERS),
            Self::Routes => Some(ROUTES),
            Self::Clusters => Some(CLUSTERS),
            Self::Endpoints => Some(ENDPOINTS),
            Self::Policies => Some(POLICIES),
            Self::Objects => None,
        }
    }
}

pub(crate) fn run(args: GetArgs) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        let json = fetch(&args.place, args.kind.text(), args.namespace.as_deref(), args.name.as_deref()).await?;
        if let Some(name) = &args.name {
            found(args.kind, args.namespace.as_deref(), name, &output::parse(&json)?)?;
        }
        match args.output {
            Format::Json => output::print(&json)?,
            Format::Yaml => output::print(&output::yaml(&json)?)?,
            Format::Table => output::print(&table(args.kind, &output::parse(&json)?))?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Who asks for something by its name wants to know that it is not there.
///
/// # Errors
/// Nothing was found.
fn found(kind: GetKind, namespace: Option<&str>, name: &str, answer: &Value) -> anyhow::Result<()> {
    let empty = answer.as_array().is_some_and(Vec::is_empty) || answer.as_object().is_some_and(serde_json::Map::is_empty);
    if !empty {
        return Ok(());
    }
    let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    match kind {
        GetKind::Objects => bail!("there is no object named {name}{place}; `meshwright get objects` lists all that are"),
        GetKind::Consumers => bail!("there is no Consumer {name}{place}; `meshwright get consumers` lists all that are"),
        GetKind::Certs => bail!("no workload or instance {name}{place} has a certificate; `meshwright get certs` lists those that have"),
        GetKind::Limits => bail!("no proxy has counted anything for a RateLimit {name}{place} yet"),
        GetKind::Egress => bail!("no call of a workload or instance {name}{place} past the mesh was cut, or would be by an audit"),
        GetKind::Plaintext => bail!("nobody speaks plaintext to a workload or instance {name}{place}"),
        GetKind::Epochs => bail!("there is no epoch {name} any more, or not yet; `meshwright get epochs` lists those that are remembered"),
        _ => bail!("no proxy of a workload or instance {name}{place} is connected; `meshwright get proxies` lists those that are"),
    }
}

/// One answer of the control plane's `get`.
///
/// # Errors
/// No mesh runs, or it refuses.
pub(super) async fn fetch(place: &WhichMesh, kind: &str, namespace: Option<&str>, name: Option<&str>) -> anyhow::Result<String> {
    let request = GetRequest {
        kind: kind.to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        name: name.unwrap_or_default().to_owned(),
        since: None,
        since_unix_secs: 0,
    };
    ask(place, request).await
}

/// The same, asked in full.
///
/// # Errors
/// As [`fetch`].
pub(super) async fn ask(place: &WhichMesh, request: GetRequest) -> anyhow::Result<String> {
    let mut control = place.connect().await?;
    let answer = control.get(request).await.map_err(|status| client::refused(&status))?.into_inner();
    output::note(&answer.note);
    Ok(answer.json)
}

fn table(kind: GetKind, answer: &Value) -> String {
    let rows = match kind {
        GetKind::Objects => answer.as_array().into_iter().flatten().map(object).collect(),
        _ => rows(answer),
    };
    let mut table = match kind.columns() {
        Some(columns) => Columns::new(columns),
        None => Columns::of(&rows, FIRST),
    };
    for row in &rows {
        table.row(row);
    }
    table.render(&format!("no {} here\n", kind.text()))
}

/// An object with its metadata in front and its conditions in one cell.
fn object(object: &Value) -> Value {
    let mut row = serde_json::Map::new();
    for field in ["kind", "namespace", "name"] {
        let value = object.get(field).or_else(|| object.get("metadata").and_then(|metadata| metadata.get(field)));
        row.insert(field.to_owned(), value.cloned().unwrap_or(Value::Null));
    }
    let mut conditions = Vec::new();
    conditions_of(object.get("status").unwrap_or(&Value::Null), &mut conditions);
    row.insert("status".to_owned(), Value::from(conditions.join(", ")));
    for field in ["source", "live", "error", "file"] {
        if let Some(value) = object.get(field).filter(|value| !value.is_object() && !value.is_array()) {
            row.insert(field.to_owned(), value.clone());
        }
    }
    Value::Object(row)
}

/// Every condition anywhere in a status, as `Accepted` or `ResolvedRefs=False (BackendNotFound)`, each once.
fn conditions_of(status: &Value, found: &mut Vec<String>) {
    match status {
        Value::Array(items) => items.iter().for_each(|item| conditions_of(item, found)),
        Value::Object(fields) => {
            if let (Some(kind), Some(state)) = (status["type"].as_str(), status["status"].as_str()) {
                let reason = status["reason"].as_str().unwrap_or_default();
                let text = if state == "True" { kind.to_owned() } else { format!("{kind}={state} ({reason})") };
                if !found.contains(&text) {
                    found.push(text);
                }
                return;
            }
            fields.values().for_each(|value| conditions_of(value, found));
        }
        _ => {}
    }
}

/// A list as it is; `{"NS/INSTANCE": [ … ]}` as one list with the proxy in each row.
fn rows(answer: &Value) -> Vec<Value> {
    match answer {
        Value::Array(rows) => rows.clone(),
        Value::Object(proxies) => proxies
            .iter()
            .flat_map(|(proxy, rows)| rows.as_array().into_iter().flatten().map(move |row| (proxy, row)))
            .map(|(proxy, row)| match row {
                Value::Object(fields) => {
                    let mut fields = fields.clone();
                    fields.insert("proxy".to_owned(), Value::from(proxy.clone()));
                    Value::Object(fields)
                }
                other => serde_json::json!({"proxy": proxy, "name": other}),
            })
            .collect(),
        other => vec![serde_json::json!({"name": other})],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Aim: what each proxy runs becomes one table that says whose it is.
    #[test]
    fn answers_per_proxy_make_one_table() {
        let answer = json!({"shop/a": [{"name": "inbound"}], "shop/b": [{"name": "out/10.96.0.1:80"}]});
        let text = table(GetKind::Listeners, &answer);
        assert!(text.starts_with("PROXY    NAME               DIRECTION"), "{text}");
        assert!(text.contains("\nshop/b   out/10.96.0.1:80   -"), "{text}");
        assert_eq!(table(GetKind::Clusters, &json!({})), "no clusters here\n");
    }

    /// Aim: a name that nothing has is an error with words, whatever the kind; without a name nothing is a table that says so.
    #[test]
    fn a_name_of_nothing_is_an_error() {
        let said = |kind, namespace, answer| found(kind, namespace, "nope", &answer).map_err(|error| error.to_string());
        for kind in GetKind::value_variants() {
            let empty = if kind.columns().is_some_and(|columns| columns[0].1 == "proxy") { json!({}) } else { json!([]) };
            let words = if *kind == GetKind::Epochs { "nope" } else { "nope in namespace shop" };
            assert!(said(*kind, Some("shop"), empty).unwrap_err().contains(words), "{kind:?}");
            assert_eq!(said(*kind, None, json!([{"name": "nope"}])), Ok(()));
        }
        let wanted = "there is no object named nope; `meshwright get objects` lists all that are";
        assert_eq!(said(GetKind::Objects, None, json!([])), Err(wanted.to_owned()));
    }

    /// Aim: an object's conditions stand in one cell, and those that are not met say why.
    #[test]
    fn objects_show_their_conditions() {
        let status = json!({"parents": [{"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted"},
            {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound"}]}]});
        let answer = json!([{"kind": "HTTPRoute", "metadata": {"namespace": "shop", "name": "catalog"}, "status": status}]);
        let text = table(GetKind::Objects, &answer);
        assert!(text.contains("HTTPRoute   shop        catalog   Accepted, ResolvedRefs=False (BackendNotFound)"), "{text}");
    }

    /// Aim: the columns of kinds.md stand in their order, also when a proxy has no pid.
    #[test]
    fn proxies_have_their_columns() {
        let text = table(GetKind::Proxies, &json!([{"namespace": "shop", "instance": "a", "epoch": 3}]));
        assert!(text.starts_with("NAMESPACE   INSTANCE   WORKLOAD   KIND"), "{text}");
    }

    /// Aim: what is wrong with a certificate is seen without asking for JSON.
    #[test]
    fn certificates_show_their_problems() {
        let text = table(GetKind::Certs, &json!([{"namespace": "shop", "problem": "it is no OCSP response"}]));
        assert!(text.contains("PROBLEM") && text.contains("it is no OCSP response"), "{text}");
    }

    proptest::proptest! {
        /// Aim: no answer of another shape makes a table panic.
        #[test]
        fn any_answer_is_survived(text in "\\PC{0,20}", number in proptest::prelude::any::<i64>(), which in 0_usize..9) {
            let kind = GetKind::value_variants()[which];
            let row = serde_json::json!({"proxies": number, "status": {"conditions": [text, {"type": number}]}, "objects": {"a": [text]}, "kind": number});
            for answer in [row.clone(), serde_json::json!([row, text, number, null]), serde_json::json!({"a/b": [row], "c": text})] {
                table(kind, &answer);
            }
        }
    }
}
