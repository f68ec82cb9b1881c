//! `meshwright analyze`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use control::clock::Clock;
use control::source::{FileChange, Folder, load};
use control::translate::{self, ResolvedSetting};
use control::world::{Allocations, Change, Object, Origin, Problem, Severity, Spec, World, WorldSettings};

use crate::output::{self, Columns, TextOrJson};
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
    let world = args.show_defaults.then(|| world_of(files.clone()));
    let mut problems = world.as_ref().map(defaults).unwrap_or_default();
    let now_ms = Clock::new(SystemTime::now).age_ms();
    problems.extend(translate::analyze_at(files, now_ms));
    let policy = world.as_ref().map(translate::resolved).unwrap_or_default();
    match args.output {
        TextOrJson::Json => {
            // In front of the judgement, as in the text.
            let mut all: Vec<Problem> = policy.iter().map(line).collect();
            all.append(&mut problems.clone());
            output::print(&serde_json::to_string_pretty(&all)?)?;
        }
        TextOrJson::Text => output::print(&(table(&policy) + &render(&problems, count)))?,
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

/// Traffic policy, a row for each setting that holds.
fn table(settings: &[ResolvedSetting]) -> String {
    if settings.is_empty() {
        return String::new();
    }
    let mut table = Columns::new(&[("OBJECT", ""), ("PART", ""), ("SETTING", ""), ("VALUE", ""), ("FROM", "")]);
    for ResolvedSetting { key, part, field, value, from } in settings {
        let from = from.as_ref().map_or_else(|| "default".to_owned(), ToString::to_string);
        table.cells([key.to_string(), part.clone(), (*field).to_owned(), value.clone(), from]);
    }
    table.render("") + "\n"
}

/// The same as a line of `analyze -o json`.
fn line(setting: &ResolvedSetting) -> Problem {
    let ResolvedSetting { key, part, field, value, from } = setting;
    let remedy = from.as_ref().map(|policy| format!("set by {policy}")).unwrap_or_default();
    Problem { remedy, ..info(&key.kind.to_string(), &key.namespace, &key.name, &format!("{part}.{field}"), value.clone()) }
}

fn world_of(files: Vec<FileChange>) -> World {
    let mut world = World::new(WorldSettings { assume_ready: true, ..WorldSettings::default() }, Allocations::default());
    let mut changes = Folder::default().update(files, i64::MAX);
    changes.push(Change::Synced(Origin::Folder));
    world.apply(changes);
    world
}

/// What holds for each object, whether its manifest says it or not.
fn defaults(world: &World) -> Vec<Problem> {
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
        let found = defaults(&world_of(file(mesh)));
        let value = |field: &str| found.iter().find(|problem| problem.field == field).map(|problem| problem.message.clone());
        assert_eq!(value("spec.certificates.leafLife").as_deref(), Some("1h"));
        assert_eq!(value("spec.trustDomain").as_deref(), Some("cluster.local"));
    }

    /// Aim: every setting of a Service port is told with its value and with the policy that says it; what a rule has otherwise, too.
    #[test]
    fn traffic_policy_is_resolved() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n---\n\
            apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\n\
            spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{name: slow, backendRefs: [{name: web, port: 80}]}]}\n---\n\
            apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: all, namespace: shop}\n\
            spec: {timeouts: {request: 15s}, retry: {attempts: 2}}\n---\n\
            apiVersion: meshwright.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: one, namespace: shop}\n\
            spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web, sectionName: slow}], timeouts: {request: 1m}}\n";
        let settings = translate::resolved(&world_of(file(text)));
        let find = |part: &str, field: &str| {
            let found = settings.iter().find(|setting| setting.part == part && setting.field == field);
            found.map(|setting| (setting.value.as_str(), setting.from.as_ref().map_or("default", |key| key.name.as_str())))
        };
        for (part, field, wanted) in [
            ("ports[80]", "loadBalancer.algorithm", Some(("LeastRequest", "default"))),
            ("ports[80]", "health.outlier.consecutiveErrors", Some(("5", "default"))),
            ("ports[80]", "timeouts.request", Some(("15s", "all"))),
            ("ports[80]", "retry.attempts", Some(("2", "all"))),
            ("rules[0]", "timeouts.request", Some(("1m", "one"))),
            ("rules[0]", "retry.attempts", None),
        ] {
            assert_eq!(find(part, field), wanted, "{part} {field}");
        }
        let text = table(&settings);
        assert!(text.lines().any(|line| line.starts_with("HTTPRoute shop/web") && line.ends_with("TrafficPolicy shop/one")), "{text}");
        let json = line(settings.iter().find(|setting| setting.part == "rules[0]").unwrap());
        assert_eq!((json.field.as_str(), json.message.as_str()), ("rules[0].timeouts.request", "1m"));
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
