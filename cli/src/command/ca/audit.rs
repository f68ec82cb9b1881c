//! `meshwright ca audit`.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use proto::mesh::GetRequest;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::WhichMesh;
use crate::command::get;
use crate::duration;
use crate::output::{self, Columns, TextOrJson};

pub(super) const EXAMPLE: &str = "Example: meshwright ca audit -n shop --workload catalog --since 1h -o json";

/// Arguments of `meshwright ca audit`.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only of this workload, or of one instance
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Nothing older: a time like 2026-01-31T08:00:00Z, or how long ago, like 1h
    #[arg(long, value_name = "TIME|DURATION", value_parser = since)]
    since: Option<OffsetDateTime>,
    /// Who was refused, and why, instead of who was given a certificate; since the control plane's start
    #[arg(long)]
    refused: bool,
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

fn since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let wrong = |_| format!("`{text}` is neither a time like 2026-01-31T08:00:00Z nor a duration like 1h");
    Ok(OffsetDateTime::from(SystemTime::now()) - duration::parse(text).map_err(wrong)?)
}

pub(super) async fn run(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    let request = GetRequest {
        kind: if args.refused { "refusals" } else { "audit" }.to_owned(),
        namespace: args.namespace.clone().unwrap_or_default(),
        name: args.workload.clone().unwrap_or_default(),
        since_unix_secs: args.since.map_or(0, OffsetDateTime::unix_timestamp),
        ..GetRequest::default()
    };
    let rows = output::parse(&get::ask(&args.place, request).await?)?;
    match args.output {
        TextOrJson::Json => output::print(&serde_json::to_string_pretty(&rows)?)?,
        TextOrJson::Text => output::print(&render(&rows, args.refused))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(rows: &Value, refused: bool) -> String {
    let columns: &[(&str, &str)] = if refused {
        &[
            ("TIME", "time"),
            ("IDENTITY", "identity"),
            ("INSTANCE", "instance"),
            ("PEER", "peer"),
            ("BY", "attestation"),
            ("REASON", "reason"),
        ]
    } else {
        &[
            ("TIME", "time"),
            ("IDENTITY", "identity"),
            ("INSTANCE", "instance"),
            ("HOLDER", "holder"),
            ("BY", "attestation"),
            ("PEER", "peer"),
            ("SERIAL", "serial"),
            ("NOT AFTER", "not_after"),
        ]
    };
    let mut table = Columns::new(columns);
    for row in rows.as_array().into_iter().flatten() {
        table.row(row);
    }
    table.render(if refused { "nobody was refused\n" } else { "no certificate was given out\n" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: a time or how long ago it was; anything else is told with both forms.
    #[test]
    fn since_is_a_time_or_an_age() {
        assert_eq!(since("2026-01-31T08:00:00Z").unwrap().unix_timestamp(), 1_769_846_400);
        let hour_ago = OffsetDateTime::from(SystemTime::now()).unix_timestamp() - 3600;
        assert!((since("1h").unwrap().unix_timestamp() - hour_ago).abs() < 60);
        assert!(since("yesterday").unwrap_err().contains("1h"));
    }

    /// Aim: a row says when, who, by what and until when; without rows it says so in words.
    #[test]
    fn rows_become_a_table() {
        let row = json!({"time": "t", "identity": "i", "attestation": "Token", "not_after": "n", "reason": "because"});
        assert!(render(&json!([row]), false).contains("Token"));
        assert!(render(&json!([row]), true).contains("because"));
        assert!(render(&json!([]), true).contains("nobody"));
    }
}
