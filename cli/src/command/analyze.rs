//! `meshwright analyze`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use control::source::{FileChange, Folder, load};
use control::translate;
use control::world::{Allocations, Change, Object, Problem, Severity, Spec, World, WorldSettings};

use crate::output::{self, TextOrJson};
use crate::{documents, duration};

/// Arguments of `meshwright analyze`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: meshwright analyze examples/shop\n  Uses the control plane's translator and the proxies' engine; needs no running mesh. Exit code 1 when something is refused."
)]
pub(crate) struct AnalyzeArgs {
    /// A folder of manifests, a file, or `-` for standard input
    #[arg(value_name = "DIR")]
    place: PathBuf,
    /// Also print what holds where the manifests say nothing, resolved for each object
    #[arg(long)]
    show_defaults: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
}

pub(crate) fn run(args: AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let files = if args.place.is_dir() {
        load(&args.place).with_context(|| format!("cannot read {}", args.place.display()))?
    } else {
        let documents = documents::read(std::slice::from_ref(&args.place))?;
        documents.into_iter().map(|document| FileChange { file: document.path, text: Some(Ok(document.text)) }).collect()
    };
    let count = files.len();
    let mut problems = if args.show_defaults { defaults(files.clone()) } else { Vec::new() };
    problems.extend(translate::analyze(files));
    match args.output {
        TextOrJson::Json => output::print(&serde_json::to_string_pretty(&problems)?)?,
        TextOrJson::Text => output::print(&render(&problems, count))?,
    }
    let refused = problems.iter().any(|problem| problem.severity == Severity::Error);
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One paragraph per finding, as compilers do, and a sum.
fn render(problems: &[Problem], files: usize) -> String {
    let mut text = String::new();
    for problem in problems {
        let place = match (problem.file.is_empty(), problem.line) {
            (true, _) => String::new(),
            (false, 0) => format!("{}: ", problem.file),
            (false, line) => format!("{}:{line}: ", problem.file),
        };
        let slash = if problem.namespace.is_empty() { "" } else { "/" };
        let object = format!("{} {}{slash}{}", problem.kind, problem.namespace, problem.name);
        let object = if problem.kind.is_empty() { String::new() } else { format!("{object}: ") };
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        text += &format!("{place}{}: {object}{field}{}\n", problem.severity.text().to_lowercase(), problem.message);
        if !problem.remedy.is_empty() {
            text += &format!("    {}\n", problem.remedy);
        }
    }
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let some = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let sum = [some(files, "file"), some(count(Severity::Error), "error"), some(count(Severity::Warning), "warning")];
    text + &sum.join(", ") + "\n"
}

/// What holds for each object, whether its manifest says it or not.
fn defaults(files: Vec<FileChange>) -> Vec<Problem> {
    let mut world = World::new(WorldSettings { assume_ready: true, ..WorldSettings::default() }, Allocations::default());
    let mut changes = Folder::default().update(files, 0);
    changes.push(Change::FolderRead);
    world.apply(changes);
    let mesh = &world.index().mesh;
    let seconds = |life: Duration| duration::show(life);
    let mut found: Vec<Problem> = [
        ("spec.trustDomain", mesh.trust_domain.clone()),
        ("spec.certificates.leafLife", seconds(mesh.leaf_life)),
        ("spec.certificates.rotateAtPercent", mesh.rotate_at_percent.to_string()),
        ("spec.certificates.intermediateLife", seconds(mesh.intermediate_life)),
        ("spec.certificates.rootLife", seconds(mesh.root_life)),
        ("spec.outsideMesh", (if mesh.outside_denied { "Deny" } else { "Allow" }).to_owned()),
    ]
    .into_iter()
    .map(|(field, value)| info("Mesh", proto::annotations::ROOT_NAMESPACE, "default", field, value))
    .collect();
    for (_, object) in world.live() {
        found.extend(resolved(object));
    }
    found
}

fn resolved(object: &Object) -> Vec<Problem> {
    let fields: Vec<(&str, String)> = match &object.spec {
        // No policy of this version changes these (kinds.md, "defaults").
        Spec::Service(_) => [
            ("loadBalancer.algorithm", "LeastRequest"),
            ("timeouts.connect", "1s"),
            ("timeouts.idle", "5m"),
            ("timeouts.request", "none"),
            ("retry", "only what was never written upstream"),
        ]
        .map(|(field, value)| (field, value.to_owned()))
        .into(),
        Spec::Workload(workload) => vec![
            ("spec.serviceAccount", workload.service_account.clone()),
            ("spec.replicas", workload.replicas.to_string()),
            ("spec.weight", workload.weight.to_string()),
        ],
        _ => Vec::new(),
    };
    let key = &object.key;
    fields.into_iter().map(|(field, value)| info(&key.kind.to_string(), &key.namespace, &key.name, field, value)).collect()
}

fn info(kind: &str, namespace: &str, name: &str, field: &str, message: String) -> Problem {
    Problem {
        file: String::new(),
        line: 0,
        severity: Severity::Info,
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        field: field.to_owned(),
        message,
        remedy: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Vec<FileChange> {
        vec![FileChange { file: "a.yaml".to_owned(), text: Some(Ok(text.to_owned())) }]
    }

    /// Aim: what the manifests say and what they leave out are both resolved.
    #[test]
    fn defaults_are_resolved() {
        let mesh = "apiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default, namespace: meshwright-system}\n\
                    spec: {certificates: {leafLife: 1h}}\n";
        let found = defaults(file(mesh));
        let value = |field: &str| found.iter().find(|problem| problem.field == field).map(|problem| problem.message.clone());
        assert_eq!(value("spec.certificates.leafLife").as_deref(), Some("1h"));
        assert_eq!(value("spec.trustDomain").as_deref(), Some("cluster.local"));
    }

    /// Aim: a finding reads like a compiler's: place, severity, object, field, message, remedy.
    #[test]
    fn findings_read_well() {
        let problem = Problem {
            file: "a.yaml".into(),
            line: 3,
            remedy: "add it".into(),
            ..info("HTTPRoute", "shop", "catalog", "spec.rules", "no".into())
        };
        assert_eq!(
            render(&[problem], 1),
            "a.yaml:3: info: HTTPRoute shop/catalog: spec.rules: no\n    add it\n1 file, 0 errors, 0 warnings\n"
        );
    }

    /// Aim: the example that newcomers run first is beyond reproach.
    #[test]
    fn the_shop_is_without_fault() {
        let files = load(std::path::Path::new("../examples/shop")).unwrap();
        let problems = translate::analyze(files.clone());
        assert!(problems.is_empty(), "{}", render(&problems, files.len()));
    }
}
