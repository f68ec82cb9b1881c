//! What is wrong with the manifests, told once when it appears: a person who edits a file reads `up`'s terminal, not a log.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::mesh::HealthRequest;
use serde_json::Value;
use tokio::time::sleep;

use super::mesh::Mesh;
use super::screen::News;
use crate::client;
use crate::state::CONTROL_SOCKET;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Problems told of one look; `meshwright get objects` and `analyze` show all.
const TOLD_MAX: usize = 64;

/// Tells every problem once for as long as it lasts. Never returns.
pub(crate) async fn watch(mesh: &Mesh) {
    let mut known = BTreeSet::new();
    loop {
        if let Ok(problems) = look(mesh).await {
            let now: BTreeSet<String> = problems.iter().map(Value::to_string).collect();
            let fresh = problems.iter().filter(|problem| !known.contains(&problem.to_string()));
            fresh.take(TOLD_MAX).for_each(|problem| mesh.screen.tell(&event(problem)));
            known = now;
        }
        sleep(LOOK).await;
    }
}

async fn look(mesh: &Mesh) -> anyhow::Result<Vec<Value>> {
    let mut control = client::connect_to(&mesh.state.join(CONTROL_SOCKET)).await?;
    Ok(serde_json::from_str(&control.health(HealthRequest {}).await?.into_inner().json)?)
}

fn event(problem: &Value) -> News {
    let text = |field: &str| problem[field].as_str().unwrap_or_default().to_owned();
    News::Problem {
        severity: text("severity"),
        file: text("file"),
        line: problem["line"].as_u64().unwrap_or_default(),
        kind: text("kind"),
        namespace: text("namespace"),
        name: text("name"),
        field: text("field"),
        message: text("message"),
        remedy: text("remedy"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a problem reads as `analyze` prints it: place, object, field, what and remedy.
    #[test]
    fn a_problem_is_one_sentence_with_its_place() {
        let problem = serde_json::json!({
            "severity": "Error", "file": "shop/odd.yaml", "line": 4, "kind": "Telemetry", "namespace": "shop", "name": "t",
            "field": "spec.accessLogs", "message": "unknown field `accessLogs`", "remedy": "did you mean `accessLog`?"
        });
        let told = event(&problem).text(false).unwrap();
        assert_eq!(
            told,
            "shop/odd.yaml:4: error: Telemetry shop/t: spec.accessLogs: unknown field `accessLogs`\n    did you mean `accessLog`?"
        );
    }
}
