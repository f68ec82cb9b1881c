//! The control plane as a part of `up`.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::mesh::{Mesh, Phase, left_running};
use super::process::Start;
use super::screen::News;
use super::tidy;
use crate::client;
use crate::state::CONTROL_SOCKET;

/// A control plane that dies this often before it ever answered will not do better.
const DEATHS_MAX: u32 = 3;
/// How often we look whether it answers.
const LOOK: Duration = Duration::from_millis(50);
/// What it may take to end.
const GRACE: Duration = Duration::from_millis(1500);

/// The running control plane.
#[derive(Debug)]
pub(crate) struct Plane {
    phase: watch::Sender<Phase>,
    failed: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

/// Starts it in the fabric and keeps it running.
pub(crate) fn start(mesh: &Rc<Mesh>, folder: &Path) -> Plane {
    let (phase, receiver) = watch::channel(Phase::Run);
    let (fail, failed) = watch::channel(None);
    let task = spawn_local(keep(Rc::clone(mesh), folder.to_owned(), receiver, fail));
    Plane { phase, failed, task }
}

impl Plane {
    /// Resolves when it cannot be started at all, with why.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        match self.failed.wait_for(Option::is_some).await {
            Ok(reason) => anyhow!("the control plane does not start: {}", reason.clone().unwrap_or_default()),
            // It ended because it was told to.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.phase.send_replace(Phase::Stop);
        let _ = super::at_most(GRACE * 2, self.task).await;
    }
}

async fn keep(mesh: Rc<Mesh>, folder: PathBuf, phase: watch::Receiver<Phase>, fail: watch::Sender<Option<String>>) {
    let log = mesh.log("control");
    let (pid, answered, deaths) = (watch::Sender::new(0), Cell::new(false), Cell::new(0));
    let start = async || {
        Start {
            state: &mesh.state,
            namespace: &mesh.fabric.borrow().namespace,
            mounts: &[],
            command: command(&mesh, &folder),
            // The host's OTLP endpoint as it is: the control plane asks for a relay where it is a loopback one.
            env: Vec::new(),
            env_removed: &[],
            directory: None,
            log: &log,
            input: None,
            drop_rights: false,
        }
        .spawn()
    };
    let on = |change: Result<u32, String>| match change {
        Ok(number) => drop(pid.send_replace(number)),
        Err(reason) => {
            pid.send_replace(0);
            deaths.set(deaths.get() + 1);
            if !answered.get() && (deaths.get() >= DEATHS_MAX || mesh.settings.no_restart) {
                fail.send_replace(Some(format!("it {reason}; see {}", log.display())));
            }
        }
    };
    let stop = async {
        left_running(&mut phase.clone()).await;
        GRACE
    };
    let announce = async {
        let mut pids = pid.subscribe();
        loop {
            let number = *pids.borrow_and_update();
            if number > 0 && wait_for_answer(&mesh, &pid, number).await {
                answered.set(true);
                mesh.screen.tell(&News::ControlReady { address: mesh.control_address().to_string(), pid: number });
            }
            if pids.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = mesh.keep("control plane", &log, start, on, stop) => {}
        () = announce => {}
    }
}

/// Whether the process of that number came to answer, before it ended.
async fn wait_for_answer(mesh: &Mesh, pid: &watch::Sender<u32>, number: u32) -> bool {
    while *pid.borrow() == number {
        if client::connect_to(&mesh.state.join(CONTROL_SOCKET)).await.is_ok() {
            return true;
        }
        sleep(LOOK).await;
    }
    false
}

/// What a user would type.
fn command(mesh: &Mesh, folder: &Path) -> Vec<OsString> {
    let ranges = mesh.settings.ranges;
    let mut command: Vec<OsString> = vec!["meshwright".into(), "control".into(), "--config".into(), folder.into(), "--data-dir".into()];
    command.push(mesh.state.join(tidy::CONTROL_DATA).into());
    command.extend(["--api-socket".into(), mesh.state.join(CONTROL_SOCKET).into()]);
    command.extend(["--ca-file".into(), mesh.state.join(tidy::CA_FILE).into()]);
    command.extend(["--listen".into(), mesh.control_address().to_string().into()]);
    command.extend(["--bridge-address".into(), mesh.resolver().to_string().into()]);
    command.extend(["--instance-cidr".into(), format!("{},{}", ranges.instances, ranges.instances_v6).into()]);
    command.extend(["--service-cidr".into(), format!("{},{}", ranges.services, ranges.services_v6).into()]);
    if mesh.settings.plaintext_xds.is_some() {
        command.push("--plaintext-xds".into());
    }
    command
}
