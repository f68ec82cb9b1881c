//! What retries of several layers add up to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Incoming;
use tests::application::{Answering, answer};
use tests::play::{Callers, Home, Load};
use tests::shop::{namespace, policy, service, workload};
use tests::sim::{Simulation, extent, seed};

use crate::{NETWORK, SECOND};

/// Requests a second of the client.
const RATE: u32 = 250;
/// The layers, and what each calls.
const LAYERS: [(&str, Option<&str>); 3] = [("first", Some("second.chain")), ("second", Some("third.chain")), ("third", None)];

fn manifests() -> String {
    let retry =
        "retry: {attempts: 3, backoff: {base: 5ms, max: 20ms}}, health: {outlier: {consecutiveErrors: 0, consecutiveConnectFailures: 0}}";
    let layer = |(number, (name, _)): (usize, &(&str, Option<&str>))| {
        // Two of each, so that there is always another to try.
        let addresses = [0, 1].map(|copy| format!("{NETWORK}.{}", 3 + 2 * number + copy));
        let workloads = [format!("{name}-a"), format!("{name}-b")];
        let pair: String = workloads.iter().zip(&addresses).map(|(workload_name, at)| workload("chain", workload_name, name, at)).collect();
        [pair, service("chain", name, name), policy("chain", name, retry)].concat()
    };
    let layers: String = LAYERS.iter().enumerate().map(layer).collect();
    [namespace("chain"), workload("chain", "client", "client", &format!("{NETWORK}.2")), layers].concat()
}

/// What a service passes on of what it was sent.
fn passed(headers: &HeaderMap, forwards: bool, mut onward: http::request::Builder) -> http::request::Builder {
    for name in ["traceparent", "tracestate"].into_iter().filter(|_| forwards) {
        for value in headers.get_all(name) {
            onward = onward.header(name, value);
        }
    }
    onward
}

/// Calls on, and answers 502 where that fails; without anybody to call it always answers 503.
async fn layer(home: Home, next: Option<&'static str>, forwards: bool, attempts: Arc<AtomicU64>) -> anyhow::Result<()> {
    let callers = Arc::new(tokio::sync::OnceCell::<Callers>::new());
    let place = home.clone();
    let known = Arc::clone(&callers);
    let fetch = async move {
        if let Some(next) = next {
            let _ = known.set(place.callers(next).await?);
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    let answering: Answering = Arc::new(move |request: Request<Incoming>| {
        attempts.fetch_add(1, Ordering::Relaxed);
        let callers = Arc::clone(&callers);
        async move {
            let status = match callers.get() {
                None => StatusCode::SERVICE_UNAVAILABLE,
                Some(callers) => {
                    let onward = passed(request.headers(), forwards, Request::get("/"));
                    let called = callers.send(onward).await.map(|answer| answer.status);
                    if called.is_ok_and(|status| status == StatusCode::OK) { StatusCode::OK } else { StatusCode::BAD_GATEWAY }
                }
            };
            answer("layer", status, &request)
        }
        .boxed()
    });
    tokio::select! {
        served = home.serve(answering, None) => served,
        fetched = fetch => fetched,
    }
}

/// Requests of the client, and attempts at each layer, while the last one fails always.
fn attempts(forwards: bool) -> anyhow::Result<(u64, [u64; 3])> {
    let mut sim = Simulation::new(seed(41), &manifests())?;
    sim.join_as(("chain", "client", "client"), |home| async move { home.load(Load::of("first.chain", RATE)).await });
    let counts: [Arc<AtomicU64>; 3] = Default::default();
    let names = [["first-a", "first-b"], ["second-a", "second-b"], ["third-a", "third-b"]];
    for (((account, next), workloads), count) in LAYERS.into_iter().zip(names).zip(&counts) {
        for name in workloads {
            let count = Arc::clone(count);
            sim.join_as(("chain", name, account), move |home| layer(home, next, forwards, Arc::clone(&count)));
        }
    }
    sim.run_until("all are ready", 60 * SECOND, |sim| names.iter().flatten().all(|name| sim.epoch(name) > 0))?;
    sim.run_for(3 * SECOND)?;
    sim.forget_shots();
    let read = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    let before = read();
    let time = extent(30, 5);
    sim.run_for(time * SECOND)?;
    let [first, second, third] = read();
    assert!(sim.shots().iter().all(|shot| shot.answer.is_err()), "somebody was answered");
    Ok((u64::from(RATE * time), [first - before[0], second - before[1], third - before[2]]))
}

/// Aim: where everything fails, retries of three layers do not multiply: the last service meets at most a quarter more than was asked for,
/// as long as applications pass the trace headers on.
#[test]
fn retries_do_not_multiply() -> anyhow::Result<()> {
    let (requests, layers) = attempts(true)?;
    let factors = layers.map(|attempts| attempts as f64 / requests as f64);
    eprintln!("trace headers passed on: {requests} requests, attempts at each layer {layers:?}, factors {factors:.3?}");
    assert!(factors[2] <= 1.25 && factors[2] >= 1.0, "{factors:?}");
    Ok(())
}

/// Aim: where applications drop the trace headers, each layer's budget still bounds what it adds: a fifth, and ten a second of each of its
/// two callers.
#[test]
fn budgets_bound_what_cannot_be_known() -> anyhow::Result<()> {
    let (requests, layers) = attempts(false)?;
    let factors = layers.map(|attempts| attempts as f64 / requests as f64);
    eprintln!("trace headers dropped: {requests} requests, attempts at each layer {layers:?}, factors {factors:.3?}");
    assert!(factors[2] <= 1.28_f64.powi(3), "{factors:?}");
    Ok(())
}
