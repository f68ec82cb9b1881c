//! `meshwright check`: will a mesh run here, and how is the one that runs?

mod host;
mod mesh;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::client::WhichMesh;
use crate::output::{self, Columns, TextOrJson};

/// Arguments of `meshwright check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright check\n  Exit code 1 when something failed; warnings alone are none. Without a running mesh only the machine is looked at."
)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    place: WhichMesh,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
    /// Only try nf_tables in a namespace of this process' own, and say what came of it
    #[arg(long, hide = true)]
    probe: bool,
}

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum CheckState {
    Ok,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    state: CheckState,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, state: CheckState::Ok, message: message.into(), remedy: None }
    }

    fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: CheckState::Warning, message: message.into(), remedy: Some(remedy.into()) }
    }

    fn failed(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state: CheckState::Failed, message: message.into(), remedy: Some(remedy.into()) }
    }
}

pub(crate) fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    if args.probe {
        // Before any thread starts: a user namespace can be entered by a process of one thread only.
        host::probe()?;
        return Ok(ExitCode::SUCCESS);
    }
    let of_mesh = output::block_on(async { Ok(mesh::findings(&args.place).await) })?;
    let mut findings = host::findings();
    match of_mesh {
        // The mesh that runs holds ports itself.
        Some(of_mesh) => findings.extend(of_mesh),
        None => findings.extend(host::ports().into_iter().chain([Finding::ok("mesh", "none is running")])),
    }
    match args.output {
        TextOrJson::Json => output::print(&serde_json::to_string_pretty(&findings)?)?,
        TextOrJson::Text => output::print(&render(&findings))?,
    }
    let failed = findings.iter().any(|finding| finding.state == CheckState::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(findings: &[Finding]) -> String {
    let mut table = Columns::new(&[("CHECK", ""), ("STATE", ""), ("", "")]);
    for finding in findings {
        let state = match finding.state {
            CheckState::Ok => "ok",
            CheckState::Warning => "warning",
            CheckState::Failed => "FAILED",
        };
        table.cells([finding.check.to_owned(), state.to_owned(), finding.message.clone()]);
    }
    let remedies: String =
        findings.iter().filter_map(|finding| Some(format!("{}: {}\n", finding.check, finding.remedy.as_ref()?))).collect();
    let gap = if remedies.is_empty() { "" } else { "\nWhat to do:\n" };
    table.render("") + gap + &remedies
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: remedies stand below the table, and there is no heading for none.
    #[test]
    fn remedies_stand_below() {
        let fine = [Finding::ok("kernel", "6.1")];
        assert!(!render(&fine).contains("What to do"));
        let text = render(&[Finding::ok("kernel", "6.1"), Finding::failed("rights", "none", "run as root")]);
        assert!(text.contains("rights   FAILED   none\n") && text.ends_with("What to do:\nrights: run as root\n"), "{text}");
    }
}
