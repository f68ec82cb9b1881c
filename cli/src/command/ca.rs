//! `meshwright ca`.

mod audit;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::get;
use crate::client::WhichMesh;
use crate::output::{self, Columns, TextOrJson};

/// Arguments of `meshwright ca`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright ca show")]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    action: CaAction,
}

#[derive(Debug, Subcommand)]
enum CaAction {
    /// Shows the roots that are trusted, the issuers in use and how many certificates each of them has out.
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
}

pub(crate) fn run(args: CaArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        CaAction::Show { place, output } => show(&place, output),
        CaAction::Audit(args) => audit::run(&args),
    }
}

fn show(place: &WhichMesh, output: TextOrJson) -> anyhow::Result<ExitCode> {
    output::block_on(async {
        let summary = summarise(&output::parse(&get::fetch(place, "certs", None, None).await?)?);
        match output {
            TextOrJson::Json => output::print(&serde_json::to_string_pretty(&summary)?)?,
            TextOrJson::Text => output::print(&render(&summary))?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Roots and issuers as the certificates in use show them.
fn summarise(certs: &Value) -> Value {
    let mut roots: BTreeMap<&str, u64> = BTreeMap::new();
    let mut issuers: BTreeMap<&str, (u64, &str, &str)> = BTreeMap::new();
    for cert in certs.as_array().into_iter().flatten() {
        for root in cert["trust_bundle"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            *roots.entry(root).or_default() += 1;
        }
        let not_after = cert["not_after"].as_str().unwrap_or_default();
        let issuer = issuers.entry(cert["issuer"].as_str().unwrap_or_default()).or_insert((0, not_after, not_after));
        // RFC 3339 times of one zone order as text.
        *issuer = (issuer.0 + 1, issuer.1.min(not_after), issuer.2.max(not_after));
    }
    json!({
        "roots": roots.iter().map(|(sha256, proxies)| json!({"sha256": sha256, "proxies": proxies})).collect::<Vec<_>>(),
        "issuers": issuers.iter().map(|(issuer, (leaves, first, last))| json!({"issuer": issuer, "leaves": leaves, "first_expiry": first, "last_expiry": last})).collect::<Vec<_>>(),
    })
}

fn render(summary: &Value) -> String {
    let mut roots = Columns::new(&[("ROOT (SHA-256)", "sha256"), ("TRUSTED BY PROXIES", "proxies")]);
    let mut issuers =
        Columns::new(&[("ISSUER", "issuer"), ("LEAVES", "leaves"), ("FIRST EXPIRY", "first_expiry"), ("LAST EXPIRY", "last_expiry")]);
    for root in summary["roots"].as_array().into_iter().flatten() {
        roots.row(root);
    }
    for issuer in summary["issuers"].as_array().into_iter().flatten() {
        issuers.row(issuer);
    }
    format!("{}\n{}", roots.render("no proxy trusts a root yet\n"), issuers.render("no certificate is in use yet\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: certificates of one issuer are counted, with the first and last expiry, and roots by who trusts them.
    #[test]
    fn certificates_are_summed_up() {
        let certs = json!([
            {"issuer": "i", "not_after": "2026-01-02T00:00:00Z", "trust_bundle": ["aa"]},
            {"issuer": "i", "not_after": "2026-01-01T00:00:00Z", "trust_bundle": ["aa", "bb"]},
        ]);
        let summary = summarise(&certs);
        assert_eq!(summary["roots"], json!([{"sha256": "aa", "proxies": 2}, {"sha256": "bb", "proxies": 1}]));
        assert_eq!(summary["issuers"][0]["leaves"], 2);
        assert_eq!(summary["issuers"][0]["first_expiry"], "2026-01-01T00:00:00Z");
        assert!(render(&summarise(&json!([]))).contains("no certificate"));
    }
}
