//! Active checks of endpoints: asks those that are due whether they are well, and books the answers. One task of one worker does it for the
//! whole proxy, for the clusters of the live snapshot.

use std::fmt::Display;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::Moment;
use engine::health::CheckQuestion;
use engine::model::{Cluster, ClusterKind, Endpoint, Protocol};
use h2::RecvStream;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::ground::limits::{CHECK_LISTEN, CHECKS_MAX, HEAD_BYTES_MAX};
use crate::http::health;
use crate::io::Stream;
use crate::pool::To;
use crate::road::shared::Shared;
use crate::tls::Carries;

/// Shortest pause between two looks for what is due.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest: endpoints that came meanwhile are seen then.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Who asks.
const CHECKER: &str = "meshwright-check";

/// Asks whoever is due, until the worker is gone. At most [`CHECKS_MAX`] are asked at once; further ones wait for that.
pub async fn run(shared: Weak<Shared>) {
    let places = Arc::new(Semaphore::new(CHECKS_MAX));
    let Some(mut changes) = shared.upgrade().map(|shared| shared.snapshots.changes()) else { return };
    loop {
        changes.mark_unchanged();
        let Some(own) = shared.upgrade() else { return };
        let clusters = checked_clusters(&own);
        for cluster in &clusters {
            for endpoint in cluster.checks_due(now(&own)) {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let (shared, cluster) = (Rc::clone(&own), Arc::clone(cluster));
                tokio::task::spawn_local(async move {
                    check(&shared, &cluster, &endpoint).await;
                    drop(place);
                });
            }
        }
        let next = clusters.iter().filter_map(|cluster| cluster.next_check()).min();
        let pause = next.map_or(PAUSE_MAX, |next| next.since(now(&own)).clamp(PAUSE_MIN, PAUSE_MAX));
        let pause = (!clusters.is_empty()).then_some(pause);
        drop((own, clusters));
        if !rest(&mut changes, pause).await {
            return;
        }
    }
}

fn checked_clusters(shared: &Shared) -> Vec<Arc<Cluster>> {
    let checked = |cluster: &&Arc<Cluster>| cluster.policy.check.is_some() && cluster.kind == ClusterKind::Endpoints;
    shared.reader.with(|live| live.clusters.values().filter(checked).cloned().collect())
}

fn now(shared: &Shared) -> Moment {
    shared.moment(shared.clock.now())
}

/// Waits for the next look; whether there is one. Without a pause, until the snapshot changes.
async fn rest(changes: &mut watch::Receiver<u64>, pause: Option<Duration>) -> bool {
    match pause {
        None => changes.changed().await.is_ok(),
        Some(pause) => tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            () = sleep(pause) => true,
        },
    }
}

/// Asks one endpoint and books what comes of it.
async fn check(shared: &Shared, cluster: &Cluster, endpoint: &Arc<Endpoint>) {
    let Some(policy) = &cluster.policy.check else { return };
    let to = To { endpoint: Arc::clone(endpoint), named: cluster.tls.clone(), local: None, timeout: policy.timeout, bounded: None };
    let asking = ask(shared, &to, cluster.protocol, &policy.question);
    let result = match timeout(policy.timeout, asking).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {:?}", policy.timeout)),
    };
    if cluster.checked(endpoint, result.is_ok(), now(shared)) {
        let (address, why) = (endpoint.address, result.err().unwrap_or_default());
        tracing::info!(cluster = %cluster.name, endpoint = %address, well = why.is_empty(), why, "an endpoint's active checks turn");
    }
}

/// What an endpoint answers.
///
/// # Errors
/// Why that is not good.
async fn ask(shared: &Shared, to: &To, speaks: Protocol, question: &CheckQuestion) -> Result<(), String> {
    let address = to.endpoint.address.to_string();
    match question {
        CheckQuestion::Tcp => listen(shared, to).await,
        CheckQuestion::Http { path, expect, host } => {
            let host = if host.is_empty() { &address } else { host };
            let status = match speaks {
                Protocol::Http2 => {
                    let request = Request::get(format!("http://{host}{path}")).header(USER_AGENT, CHECKER).body(()).map_err(told)?;
                    stream(shared, to, request, None).await?.1.status()
                }
                _ => http1_status(shared, to, host, path).await?,
            };
            if expect.contains(&status.as_u16()) { Ok(()) } else { Err(format!("the answer is {status}")) }
        }
        CheckQuestion::Grpc { service } => {
            let request = health::question(&address).header(USER_AGENT, CHECKER).body(()).map_err(told)?;
            let (_driver, response) = stream(shared, to, request, Some(health::framed(service))).await?;
            health::serving(response).await
        }
    }
}

/// A check is over soon, so that nobody need watch whether its peer is still believed.
async fn open(shared: &Shared, to: &To, carries: Carries) -> Result<Stream, String> {
    shared.pool.connector().open(to, carries).await.map(|opened| opened.stream).map_err(told)
}

/// A connection is a good answer. Behind a peer of the mesh it is only good if it stays: that proxy closes it where the application is not there.
/// Where the application has ended TLS of its own it has answered.
async fn listen(shared: &Shared, to: &To) -> Result<(), String> {
    let mut stream = open(shared, to, Carries::Tcp).await?;
    if to.endpoint.identity.is_none() || to.named.is_some() {
        return Ok(());
    }
    match timeout(CHECK_LISTEN, stream.read(&mut [0])).await {
        Err(_) | Ok(Ok(1..)) => Ok(()),
        Ok(Ok(0)) => Err("the connection was closed at once".to_owned()),
        Ok(Err(error)) => Err(told(error)),
    }
}

async fn http1_status(shared: &Shared, to: &To, host: &str, path: &str) -> Result<StatusCode, String> {
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, CHECKER)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(told)?;
    let stream = open(shared, to, Carries::H1).await?;
    let (mut sender, connection) =
        http1::Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await.map_err(told)?;
    let mut driver = JoinSet::new();
    driver.spawn_local(connection);
    sender.send_request(request).await.map(|response| response.status()).map_err(told)
}

/// Sends a request over HTTP/2. The connection lives as long as what drives it.
async fn stream(
    shared: &Shared,
    to: &To,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<(JoinSet<Result<(), h2::Error>>, Response<RecvStream>), String> {
    let stream = open(shared, to, Carries::H2).await?;
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(HEAD_BYTES_MAX as u32).enable_push(false);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.map_err(told)?;
    let mut driver = JoinSet::new();
    driver.spawn_local(connection);
    let mut sender = sender.ready().await.map_err(told)?;
    let (answer, mut upload) = sender.send_request(request, body.is_none()).map_err(told)?;
    if let Some(body) = body {
        upload.send_data(body, true).map_err(told)?;
    }
    Ok((driver, answer.await.map_err(told)?))
}

fn told(error: impl Display) -> String {
    error.to_string()
}
