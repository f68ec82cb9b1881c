//! Keeps the cluster up to date with what [`crate::bundle`] decides: watches, compares, writes. One replica does it at a time (the holder of
//! the lease); two would do no harm but work.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource, ResourceExt as _};
use proto::annotations;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::{self, HookService, Hooks};
use crate::settings::KubernetesVersion;

/// Who writes, as managed fields tell.
const FIELD_MANAGER: &str = "meshwright-injector";
/// After this, everything is compared again, whatever was or was not seen.
const LOOK: Duration = Duration::from_secs(300);
/// Pause after a failure; twice as long after each further one, up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for an answer.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Failures of a round that are told by name.
const FAILURES_TOLD_MAX: usize = 8;
/// Longest time for one round of comparing and writing; what it has written by then stays, and the next round goes on from there.
const ROUND_MAX: Duration = Duration::from_secs(120);
/// What happens within this time is worked on at once.
const GATHER: Duration = Duration::from_millis(200);
/// Longest wait for the cluster's version.
const VERSION_WAIT: Duration = Duration::from_secs(10);
/// Namespaces in one page of a list.
const PAGE: u32 = 500;
/// Writes under way at once.
const WRITES_MAX: usize = 8;

/// The cluster's version, which says whether sidecars are native there.
///
/// # Errors
/// The API server does not say, or not in a way that can be read.
pub async fn version(client: &Client) -> Result<KubernetesVersion, String> {
    let told = tokio::time::timeout(VERSION_WAIT, client.apiserver_version()).await;
    let told = told.map_err(|_| format!("no answer within {VERSION_WAIT:?}"))?.map_err(|error| error.to_string())?;
    format!("{}.{}", told.major, told.minor).parse().map_err(|_| format!("its version is `{}`, which is none", told.git_version))
}

/// Keeps `caBundle` of all webhooks that ask `service` at `roots` (PEM; empty: not known yet), until `stop`, and makes configurations of these
/// webhooks that somebody deletes again, as they were seen last: owned by the ClusterRole `role`, so that they end with the mesh's rights, and
/// not where that is gone. Needs the rights to list, watch, create and patch both kinds of webhook configurations, and to get that role.
pub async fn bundles(client: Client, (service, role): (HookService, &str), roots: watch::Receiver<String>, stop: CancellationToken) {
    tokio::join!(
        kept::<MutatingWebhookConfiguration>(client.clone(), (&service, role), roots.clone(), &stop),
        kept::<ValidatingWebhookConfiguration>(client, (&service, role), roots, &stop),
    );
}

/// Configurations of our webhooks by name, as they were seen last.
type Seen<K> = Mutex<BTreeMap<String, K>>;

async fn kept<K>(client: Client, (service, role): (&HookService, &str), roots: watch::Receiver<String>, stop: &CancellationToken)
where
    K: Hooks + Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let (api, roles): (Api<K>, Api<ClusterRole>) = (Api::all(client.clone()), Api::all(client));
    let changes = watcher(api.clone(), watcher::Config::default()).default_backoff().boxed();
    let known = Seen::<K>::default();
    let work = |pem: String| {
        let (api, roles, known) = (&api, &roles, &known);
        async move {
            let there = within(api.list(&ListParams::default())).await?.items;
            let restored = restored(api, (roles, role), (service, known, &pem), &there).await;
            rebundled(api, service, &pem, there).await.and(restored)
        }
    };
    let failed = "the webhook's roots could not be written where API servers look for them";
    follow(changes, roots, stop, work, failed).await;
}

/// Works now and whenever the roots or what is watched change, again after a failure, and now and then anyway; until `stop`. The same failure
/// again is not told again.
async fn follow<T, W: Future<Output = Result<(), String>>>(
    mut changes: BoxStream<'_, watcher::Result<watcher::Event<T>>>,
    mut roots: watch::Receiver<String>,
    stop: &CancellationToken,
    work: impl Fn(String) -> W,
    failed: &str,
) {
    let (mut told, mut pause) = (None, RETRY);
    loop {
        let pem = roots.borrow_and_update().clone();
        let worked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            worked = tokio::time::timeout(ROUND_MAX, work(pem)) => worked,
        };
        let error = match worked {
            Ok(worked) => worked.err(),
            Err(_) => Some(format!("the API server has not taken all of it within {} s", ROUND_MAX.as_secs())),
        };
        if let Some(error) = error.as_ref().filter(|_| told != error) {
            tracing::warn!(error, "{failed}");
        }
        let again = if error.is_none() { LOOK } else { pause };
        pause = if error.is_none() { RETRY } else { LOOK.min(pause * 2) };
        told = error;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = roots.changed() => if changed.is_err() { return },
            () = seen(&mut changes) => {}
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// What a call comes to, in time.
async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(answered) => answered.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {CALL_MAX:?}")),
    }
}

/// What a round comes to that did all it could: where somebody else stands in the way of one, the others have theirs all the same.
fn all_of(outcomes: impl IntoIterator<Item = (String, Result<(), String>)>) -> Result<(), String> {
    let mut failed: Vec<String> = outcomes.into_iter().filter_map(|(name, done)| Some(format!("{name}: {}", done.err()?))).collect();
    failed.sort();
    let more = failed.len().saturating_sub(FAILURES_TOLD_MAX);
    failed.truncate(FAILURES_TOLD_MAX);
    match (failed.is_empty(), more) {
        (true, _) => Ok(()),
        (false, 0) => Err(failed.join("; ")),
        (false, _) => Err(format!("{}; and {more} more", failed.join("; "))),
    }
}

/// Makes again what of ours was seen before and is not there any more.
async fn restored<K>(
    api: &Api<K>,
    (roles, role): (&Api<ClusterRole>, &str),
    (service, known, pem): (&HookService, &Seen<K>, &str),
    there: &[K],
) -> Result<(), String>
where
    K: Hooks + Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let gone: Vec<K> = {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        for configuration in there {
            // One that asks somebody else by now is not ours.
            let kept = bundle::asks(configuration, service).then(|| configuration.clone());
            match kept {
                Some(configuration) => drop(known.insert(configuration.name_any(), configuration)),
                None => drop(known.remove(&configuration.name_any())),
            }
        }
        known.iter().filter(|(name, _)| !there.iter().any(|one| one.name_any() == **name)).map(|(_, one)| one.clone()).collect()
    };
    if gone.is_empty() {
        return Ok(());
    }
    let Some(owner) = within(roles.get_metadata_opt(role)).await? else {
        tracing::info!(role, "webhook configurations were deleted, and so were the mesh's rights: they are not made again");
        known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        return Ok(());
    };
    let mut outcomes = Vec::new();
    for configuration in gone {
        let (name, kind) = (configuration.name_any(), K::kind(&()));
        // With the roots of now, so that no API server asks before it can believe.
        let configuration = bundle::again(bundle::believing(configuration, service, pem), owner.owner_ref(&()));
        let making = async {
            match api.create(&PostParams::default(), &configuration).await {
                // Somebody else was first.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                made => made.map(|_| tracing::warn!(name, %kind, "a webhook configuration was deleted, and is made again")),
            }
        };
        outcomes.push((format!("{kind} {name}"), within(making).await));
    }
    all_of(outcomes)
}

async fn rebundled<K>(api: &Api<K>, service: &HookService, pem: &str, there: Vec<K>) -> Result<(), String>
where
    K: Hooks + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let mut outcomes = Vec::new();
    for configuration in there {
        let Some(patch) = bundle::rebundle(&configuration, service, pem) else { continue };
        let name = configuration.name_any();
        let told = within(api.patch(&name, &params, &Patch::<()>::Json(patch))).await;
        if told.is_ok() {
            tracing::info!(name, kind = %K::kind(&()), "API servers were told the webhook's roots");
        }
        outcomes.push((format!("{} {name}", K::kind(&())), told.map(|_| ())));
    }
    all_of(outcomes)
}

/// Keeps the roots (PEM; empty: not known yet) in the ConfigMap `meshwright-ca` of every namespace, until `stop`. Needs the rights to list and
/// watch namespaces, and to list, create and patch ConfigMaps.
pub async fn root_maps(client: Client, roots: watch::Receiver<String>, stop: CancellationToken) {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let changes = watcher(namespaces, watcher::Config::default()).default_backoff().boxed();
    let work = |pem: String| {
        let client = client.clone();
        async move { roots_spread(&client, &pem).await }
    };
    follow(changes, roots, &stop, work, "the mesh's roots could not be written into every namespace; pods wait for them").await;
}

/// Compares all namespaces with all ConfigMaps of that name: two lists, however many namespaces there are.
async fn roots_spread(client: &Client, pem: &str) -> Result<(), String> {
    if pem.is_empty() {
        return Ok(());
    }
    let params = ListParams::default().limit(PAGE);
    let namespaces = paged(&params, |params| {
        let api: Api<Namespace> = Api::all(client.clone());
        async move { api.list_metadata(&params).await }
    });
    let named = params.clone().fields(&format!("metadata.name={}", annotations::CA_CONFIG_MAP));
    let maps = paged(&named, |params| {
        let api: Api<ConfigMap> = Api::all(client.clone());
        async move { api.list(&params).await }
    });
    let (namespaces, maps) = tokio::try_join!(namespaces, maps)?;
    let there: BTreeMap<String, String> = maps
        .into_iter()
        .map(|map| {
            (map.namespace().unwrap_or_default(), map.data.and_then(|mut data| data.remove(annotations::CA_KEY)).unwrap_or_default())
        })
        .collect();
    let living = namespaces.into_iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_none()).map(|one| one.name_any());
    let writes = living.filter_map(|namespace| Some((bundle::roots_map(there.get(&namespace).map(String::as_str), pem)?, namespace)));
    let writing = writes.map(|(map, namespace)| {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        async move {
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let writing = async {
                match api.patch(annotations::CA_CONFIG_MAP, &params, &Patch::Apply(&map)).await {
                    // The namespace is going or gone.
                    Err(kube::Error::Api(status)) if status.code == 404 || status.message.contains("being terminated") => Ok(()),
                    written => written.map(|_| ()),
                }
            };
            let written = within(writing).await;
            (format!("namespace {namespace}"), written)
        }
    });
    all_of(futures::stream::iter(writing).buffer_unordered(WRITES_MAX).collect::<Vec<_>>().await)
}

/// All pages of a list.
async fn paged<K, F>(params: &ListParams, list: impl Fn(ListParams) -> F) -> Result<Vec<K>, String>
where
    K: Clone,
    F: Future<Output = Result<kube::core::ObjectList<K>, kube::Error>>,
{
    let (mut all, mut params) = (Vec::new(), params.clone());
    loop {
        let page = within(list(params.clone())).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => params.continue_token = Some(more),
            None => return Ok(all),
        }
    }
}

/// Waits for a change, and a little longer for those that come with it. Errors of a watch are its own to get over.
async fn seen<T>(changes: &mut BoxStream<'_, watcher::Result<watcher::Event<T>>>) {
    loop {
        match changes.next().await {
            Some(Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone)) => break,
            Some(_) => {}
            // A watch has no end; if it had, the next look is by the clock.
            None => std::future::pending().await,
        }
    }
    let gathering = async { while changes.next().await.is_some() {} };
    let _ = tokio::time::timeout(GATHER, gathering).await;
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
