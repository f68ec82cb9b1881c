//! The thin half of an installation: [`super::objects`] go to an API server, or away from it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use apiserver::client::{Access, CALL_MAX, CallError, Fault, connect, within};
use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use proto::annotations::{CA_CONFIG_MAP, INJECTED, ROOT_NAMESPACE};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{DEFINITION, FIELD_MANAGER, HOOKS, NAME, Target};
use crate::output::ProgressLine;

/// Between two looks at what is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a call that may do later is made.
const TRIES_MAX: u32 = 5;
/// Pods in one answer.
const PAGE: u32 = 500;
/// Pods that are named where sidecars are left.
const NAMED_MAX: usize = 5;

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Kubeconfig of the cluster [default: KUBECONFIG, else ~/.kube/config, else the pod's own account]
    #[arg(long, value_name = "FILE", requires = "apply")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", requires = "apply")]
    context: Option<String>,
}

impl ClusterArgs {
    async fn client(&self) -> anyhow::Result<Client> {
        let home = || std::env::home_dir().map(|home| home.join(".kube/config")).filter(|file| file.is_file());
        let named = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let kubeconfig = self.kubeconfig.clone().or(named).or_else(home);
        Ok(connect(&Access { kubeconfig, context: self.context.clone() }, "install").await?)
    }
}

fn api(client: &Client, target: &Target) -> Api<DynamicObject> {
    let resource = target.resource();
    match &target.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Applies everything in its order, each kind of ours before an object of it, and waits until the control plane serves.
///
/// # Errors
/// The API server refuses an object, somebody else owns a field, or the control plane is not there in time; what was applied stays.
pub(crate) async fn install(objects: &[Value], cluster: &ClusterArgs, force: bool, timeout: Duration) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let line = ProgressLine::start("applying");
    let until = Instant::now() + timeout;
    let mut defined = Vec::new();
    for object in objects {
        let target = Target::of(object);
        // Definitions come in a row, and are ready together.
        if target.kind != DEFINITION {
            for definition in std::mem::take(&mut defined) {
                awaited(&client, &definition, until, established).await?;
            }
        }
        line.say(&format!("applying {}", target.shown()));
        match put(&client, &target, object, force).await {
            Ok(()) => {}
            Err(error) if error.fault == Fault::Missing && target.kind == "GatewayClass" => {
                eprintln!("left out {}: Gateway API is not installed in this cluster; install it, and run this again", target.shown());
            }
            Err(error) if error.fault == Fault::Conflict => {
                bail!("cannot apply {}: {}; --force-conflicts takes the fields over", target.shown(), error.text)
            }
            Err(error) => return Err(error).with_context(|| format!("cannot apply {}", target.shown())),
        }
        if target.kind == DEFINITION {
            defined.push(target);
        }
    }
    let control = Target::new("apps/v1", "Deployment", Some(ROOT_NAMESPACE), NAME);
    line.say("waiting for the control plane");
    awaited(&client, &control, until, available).await?;
    // Until then every pod of the mesh would be refused.
    line.say("waiting for the webhooks to be believed");
    for hooks in objects.iter().map(Target::of).filter(|target| target.kind.ends_with(HOOKS)) {
        awaited(&client, &hooks, until, believed).await?;
    }
    drop(line);
    println!("installed: {} objects applied, the control plane serves in namespace {ROOT_NAMESPACE}", objects.len());
    Ok(())
}

async fn put(client: &Client, target: &Target, object: &Value, force: bool) -> Result<(), CallError> {
    let mut params = PatchParams::apply(FIELD_MANAGER);
    params.force = force;
    let api = api(client, target);
    let patch = Patch::Apply(object);
    again(|| within(CALL_MAX, api.patch(&target.name, &params, &patch))).await.map(drop)
}

/// Makes a call that may do later a few times.
async fn again<T, F: Future<Output = Result<T, CallError>>>(call: impl Fn() -> F) -> Result<T, CallError> {
    let mut pause = LOOK_EVERY;
    for _ in 1..TRIES_MAX {
        match call().await {
            Err(error) if error.fault == Fault::Later => sleep(pause).await,
            answer => return answer,
        }
        pause *= 2;
    }
    call().await
}

/// Why an object is not what is awaited; `None`: it is.
type Wanting = fn(&Value) -> Option<String>;

async fn awaited(client: &Client, target: &Target, until: Instant, wanting: Wanting) -> anyhow::Result<()> {
    let api = api(client, target);
    loop {
        let object =
            again(|| within(CALL_MAX, api.get(&target.name))).await.with_context(|| format!("cannot look at {}", target.shown()))?;
        let Some(why) = wanting(&object.data) else { return Ok(()) };
        if Instant::now() >= until {
            bail!("{} is not ready in time: {why}", target.shown());
        }
        sleep(LOOK_EVERY).await;
    }
}

fn established(object: &Value) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == "Established");
    match found {
        Some(condition) if condition["status"] == "True" => None,
        Some(condition) => Some(condition["message"].as_str().unwrap_or("not established").to_owned()),
        None => Some("not established yet".to_owned()),
    }
}

fn available(object: &Value) -> Option<String> {
    let (wanted, status) = (object["spec"]["replicas"].as_u64().unwrap_or(1), &object["status"]);
    let count = |name: &str| status[name].as_u64().unwrap_or(0);
    let (updated, available) = (count("updatedReplicas"), count("availableReplicas"));
    (updated < wanted || available < wanted).then(|| {
        format!(
            "{updated} of {wanted} replicas are of this version, {available} are available; look with `kubectl -n {ROOT_NAMESPACE} get pods,events`"
        )
    })
}

/// The control plane writes by which roots API servers are to believe its webhooks, a moment after it serves.
pub(super) fn believed(object: &Value) -> Option<String> {
    let hooks = object["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let silent = hooks.iter().find(|hook| hook["clientConfig"]["caBundle"].as_str().is_none_or(str::is_empty))?;
    Some(format!(
        "API servers have not been told yet by which roots to believe {}; `kubectl -n {ROOT_NAMESPACE} logs deploy/{NAME}` says why",
        silent["name"].as_str().unwrap_or_default()
    ))
}

/// Deletes everything in its order and waits until it is gone.
///
/// # Errors
/// Pods with sidecars are left, the API server refuses, or something does not go in time.
pub(crate) async fn uninstall(removal: &[Target], cluster: &ClusterArgs, despite: bool, timeout: Duration) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let line = ProgressLine::start("looking for pods with sidecars");
    let until = Instant::now() + timeout;
    if !despite {
        without_sidecars(&client, until).await?;
    }
    for target in removal {
        line.say(&format!("deleting {}", target.shown()));
        remove(&client, target).await?;
    }
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let ours = ListParams::default().fields(&format!("metadata.name={CA_CONFIG_MAP}"));
    let maps = again(|| within(CALL_MAX, maps.list_metadata(&ours))).await.context("cannot list the ConfigMaps with our roots")?;
    for map in maps.items {
        let namespace = map.metadata.namespace.unwrap_or_default();
        remove(&client, &Target::new("v1", "ConfigMap", Some(&namespace), CA_CONFIG_MAP)).await?;
    }
    for target in removal {
        line.say(&format!("waiting for the end of {}", target.shown()));
        gone(&client, target, until).await?;
    }
    drop(line);
    println!("uninstalled");
    Ok(())
}

/// What is not there is gone already.
async fn remove(client: &Client, target: &Target) -> anyhow::Result<()> {
    let api = api(client, target);
    let params = DeleteParams::background();
    match again(|| within(CALL_MAX, api.delete(&target.name, &params))).await {
        Err(error) if error.fault != Fault::Missing => Err(error).with_context(|| format!("cannot delete {}", target.shown())),
        _ => Ok(()),
    }
}

async fn gone(client: &Client, target: &Target, until: Instant) -> anyhow::Result<()> {
    let api = api(client, target);
    loop {
        match again(|| within(CALL_MAX, api.get_metadata(&target.name))).await {
            Err(error) if error.fault == Fault::Missing => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", target.shown())),
            Ok(_) if Instant::now() >= until => {
                bail!("{} is still there; a finalizer may hold it: `kubectl get -o yaml` shows which", target.shown())
            }
            Ok(_) => sleep(LOOK_EVERY).await,
        }
    }
}

/// No pod carries a sidecar. One that ends already is waited for: a rollout is complete before its last old pods are gone.
async fn without_sidecars(client: &Client, until: Instant) -> anyhow::Result<()> {
    loop {
        let (staying, ending) = with_sidecars(client).await?;
        if !staying.is_empty() {
            bail!(
                "{}; take the label meshwright.dev/inject from their namespaces and roll them, or delete all the same with --despite-sidecars",
                named("have sidecars", &staying)
            );
        }
        if ending.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!("{} and do not end; wait for them, or delete all the same with --despite-sidecars", named("have sidecars", &ending));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// `7 pods WHAT, A, B and more`.
fn named(what: &str, pods: &[String]) -> String {
    let first = pods.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    format!("{} pods {what}, {first}{}", pods.len(), if pods.len() > NAMED_MAX { " and more" } else { "" })
}

/// Pods that carry a sidecar, `NAMESPACE/NAME`: those that stay, and those that are ending.
async fn with_sidecars(client: &Client) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let pods: Api<Pod> = Api::all(client.clone());
    let (mut staying, mut ending) = (Vec::new(), Vec::new());
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = again(|| within(CALL_MAX, pods.list_metadata(&params))).await.context("cannot look for pods with sidecars")?;
        for pod in page.items {
            if pod.metadata.annotations.is_some_and(|notes| notes.contains_key(INJECTED)) {
                let found = if pod.metadata.deletion_timestamp.is_some() { &mut ending } else { &mut staying };
                found.push(format!("{}/{}", pod.metadata.namespace.unwrap_or_default(), pod.metadata.name.unwrap_or_default()));
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok((staying, ending)),
        }
    }
}
