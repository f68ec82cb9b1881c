//! From "starting" to "live", and what is shown then: URLs, what runs, what to try, and the golden metrics once a second.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use proto::mesh::{StatRequest, WaitRequest};
use serde_json::Value;
use tokio::time::sleep;

use super::gateway::url;
use super::golden;
use super::mesh::Mesh;
use super::screen::News;
use crate::output::Columns;
use crate::state::CONTROL_SOCKET;
use crate::{client, shop};

/// How long one question "is it live?" lasts.
const WAIT_SECS: i64 = 30;
/// Pause before a question is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// Pause between two looks at the metrics.
const METRICS: Duration = Duration::from_secs(1);

/// Waits until everything declared is live, says so, and then shows metrics on a terminal. Never returns.
pub(crate) async fn watch(mesh: &Rc<Mesh>, folder: &Path, began: std::time::Instant) {
    mesh.screen.moving("starting the control plane");
    let epoch = loop {
        match wait(mesh).await {
            Ok(Some(epoch)) => break epoch,
            Ok(None) => {}
            Err(_) => sleep(RETRY).await,
        }
    };
    mesh.screen.still();
    let instances = mesh.roster.borrow().instances.len();
    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    mesh.screen.tell(&News::Live { epoch, instances, elapsed_ms });
    summary(mesh, folder);
    loop {
        sleep(METRICS).await;
        if mesh.screen.moves()
            && let Ok(rows) = golden_metrics(mesh).await
        {
            mesh.screen.moving(&golden::line(&rows));
        }
    }
}

/// One question to the control plane: the epoch that is live, or nothing yet.
async fn wait(mesh: &Mesh) -> anyhow::Result<Option<u64>> {
    let mut control = client::connect_to(&mesh.state.join(CONTROL_SOCKET)).await?;
    let timeout = Some(prost_types::Duration { seconds: WAIT_SECS, nanos: 0 });
    let mut progress = control.wait(WaitRequest { epoch: 0, timeout }).await?.into_inner();
    while let Some(step) = progress.message().await? {
        if step.done {
            let answer: Value = serde_json::from_str(&step.json).unwrap_or_default();
            if !step.ok {
                mesh.screen.notice(format!("not live after {WAIT_SECS} s: {}", laggards(&answer)));
            }
            return Ok(step.ok.then(|| answer["epoch"].as_u64().unwrap_or_default()));
        }
        mesh.screen.moving(&step.waiting_for);
    }
    Ok(None)
}

fn laggards(answer: &Value) -> String {
    let waiting = answer.pointer("/proxies/waiting").and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<String> = waiting.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
    if names.is_empty() {
        "`meshwright get objects` shows what was refused".to_owned()
    } else {
        format!("waiting for {}", names.join(", "))
    }
}

fn summary(mesh: &Mesh, folder: &Path) {
    let roster = mesh.roster.borrow();
    let mut table = Columns::new(&[("NAMESPACE", ""), ("INSTANCE", ""), ("ADDRESS", ""), ("SIDECAR", ""), ("READY", ""), ("PID", "")]);
    for (key, entry) in &roster.entries {
        let (ready, pid) = match roster.instances.get(key) {
            Some(state) if !entry.edge => (state.ready, state.pid),
            _ => roster.gateways.get(key).map_or((false, 0), |state| (state.ready, state.proxy_pid)),
        };
        let sidecar = match (entry.edge, entry.meshed) {
            (true, _) => "edge",
            (false, true) => "yes",
            (false, false) => "no",
        };
        table.cells([
            key.0.clone(),
            key.1.clone(),
            entry.addresses.first().cloned().unwrap_or_default(),
            sidecar.to_owned(),
            if ready { "yes" } else { "no" }.to_owned(),
            pid.to_string(),
        ]);
    }
    mesh.screen.people(&format!("\n{}", table.render("nothing is declared to run here")));
    let edge = roster.gateways.values().flat_map(|gateway| &gateway.bound).find(|bound| !bound.udp);
    let edge = edge.and_then(|bound| u16::try_from(bound.host_port).ok()).map(|port| url("http", port));
    let tries = shop::what_to_try(folder, &this_program(), edge.as_deref());
    if !tries.trim().is_empty() {
        mesh.screen.people(&format!("\nWhat to try, in another terminal:\n{tries}"));
    }
    mesh.screen.people("Ctrl-C stops everything.");
}

/// How the user can call this program from another terminal.
fn this_program() -> String {
    let own = std::env::current_exe().ok();
    let on_path =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| Some(folder.join("meshwright")) == own));
    match own {
        Some(own) if !on_path => own.display().to_string(),
        _ => "meshwright".to_owned(),
    }
}

/// What `stat` says of services.
async fn golden_metrics(mesh: &Mesh) -> anyhow::Result<Value> {
    let mut control = client::connect_to(&mesh.state.join(CONTROL_SOCKET)).await?;
    Ok(serde_json::from_str(&control.stat(StatRequest::default()).await?.into_inner().json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: laggards are named.
    #[test]
    fn laggards_have_names() {
        let answer = serde_json::json!({"proxies": {"waiting": ["shop/web", "shop/db"]}});
        assert_eq!(laggards(&answer), "waiting for shop/web, shop/db");
    }
}
