//! `tap`, `stat` and `explain ID` through a whole mesh, in virtual time.

use std::time::Duration;

use anyhow::Context as _;
use proto::mesh::{TapFilter, TapNews, TapRequest};
use serde_json::Value;
use tests::shop::policy;
use tonic::Streaming;

use crate::mesh::{Shop, run};

/// Fails what asks for it.
const FAULTS: &str = r#"faults: [{match: {headers: [{name: x-chaos, value: "on"}]}, percent: 100, abort: {httpStatus: 503}}]"#;
const FINE: u32 = 100;
const FAILED: u32 = 20;

fn request(workload: &str, edit: impl FnOnce(&mut TapFilter)) -> TapRequest {
    let mut filter = TapFilter::default();
    edit(&mut filter);
    TapRequest { namespace: "shop".to_owned(), workload: workload.to_owned(), filter: Some(filter), lines_per_sec: 0 }
}

/// A tap, once its proxies have heard of it.
async fn tap(shop: &Shop, request: TapRequest, proxies: u32) -> anyhow::Result<Streaming<TapNews>> {
    let mut tap = shop.mesh.desk().tap(request).await?;
    let first = tap.message().await?.context("the tap ended")?;
    assert_eq!((first.proxies, first.lines.len()), (proxies, 0), "{first:?}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(tap)
}

/// All that it shows within two seconds: its lines, how many exchanges fitted, and how many of these have none.
async fn shown(tap: &mut Streaming<TapNews>) -> anyhow::Result<(Vec<Value>, u64, u64)> {
    let (mut lines, mut seen, mut dropped) = (Vec::new(), 0, 0);
    while let Ok(news) = tokio::time::timeout(Duration::from_secs(2), tap.message()).await {
        let news = news?.context("the tap ended")?;
        (seen, dropped) = (seen + news.seen, dropped + news.dropped);
        for line in news.lines {
            lines.push(serde_json::from_str(&line)?);
        }
    }
    Ok((lines, seen, dropped))
}

/// Good requests, and some that fail on purpose.
async fn traffic(shop: &Shop) -> anyhow::Result<()> {
    let mut client = shop.client().await?;
    for n in 0..FINE + FAILED {
        let fails = n % 6 == 5;
        let path = format!("/items/{n}?token=secret");
        let request = http::Request::get(path).header("x-request-id", format!("request-{n}"));
        let answer = client.send(if fails { request.header("x-chaos", "on") } else { request }).await?;
        assert_eq!(answer.status, if fails { 503 } else { 200 }, "{n}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Aim: a planted fault is seen by whoever watches for failures, with its reason and no secret; each filter shows just what it says, at the
/// proxies that it names; nothing is counted twice.
#[test]
fn a_planted_fault_is_seen() {
    run(|| async {
        let shop = Shop::with(&policy("shop", "catalog", FAULTS)).await?;
        let mut failures = tap(&shop, request("frontend", |filter| filter.failed = true), 1).await?;
        let mut everything = tap(&shop, request("", |_| {}), 3).await?;
        let mut served =
            tap(&shop, request("", |filter| (filter.direction, filter.path_prefix) = ("inbound".into(), "/items/1".into())), 3).await?;
        traffic(&shop).await?;

        let (lines, seen, dropped) = shown(&mut failures).await?;
        assert_eq!((lines.len(), seen, dropped), (FAILED as usize, u64::from(FAILED), 0));
        for line in &lines {
            assert_eq!(
                (&line["status"], &line["reason"], &line["direction"]),
                (&503.into(), &"fault".into(), &"outbound".into()),
                "{line}"
            );
            assert!(line["path"].as_str().unwrap().ends_with("?token=***"), "{line}");
        }
        let (lines, seen, dropped) = shown(&mut everything).await?;
        assert_eq!((lines.len() as u64 + dropped, seen), (seen, u64::from(2 * FINE + FAILED)));
        let (lines, ..) = shown(&mut served).await?;
        let fits = |line: &Value| line["direction"] == "inbound" && line["path"].as_str().is_some_and(|path| path.starts_with("/items/1"));
        assert!(!lines.is_empty() && lines.iter().all(fits), "{lines:?}");

        let nobody = shop.mesh.desk().tap(request("nobody", |_| {})).await.unwrap_err();
        assert!(nobody.to_string().contains("there is no workload"), "{nobody}");
        Ok(())
    });
}

/// Aim: a tap that nobody listens to any more ends in every proxy, and a control plane that is asked for too many refuses by name.
#[test]
fn taps_end_with_their_watchers() {
    run(|| async {
        let shop = Shop::with("").await?;
        for _ in 0..20 {
            let mut taps = Vec::new();
            for _ in 0..8 {
                taps.push(tap(&shop, request("frontend", |_| {}), 1).await?);
            }
            let mut ninth = shop.mesh.desk().tap(request("frontend", |_| {})).await?;
            let mut told = String::new();
            while !told.contains("8 taps are open") {
                told = ninth.message().await?.context("the tap ended")?.note;
            }
            drop((taps, ninth));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
}

/// Aim: `stat` counts each request once, with the share that failed and a latency, per service, per route and per workload; what rests drops
/// out after its minute.
#[test]
fn what_was_sent_is_what_is_counted() {
    run(|| async {
        let shop = Shop::with(&policy("shop", "catalog", FAULTS)).await?;
        traffic(&shop).await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let desk = shop.mesh.desk();
        let sum = |rows: &Value, field: &str| {
            rows.as_array().into_iter().flatten().map(|row| row[field].as_u64().unwrap_or_default()).sum::<u64>()
        };
        for view in ["services", "routes"] {
            let rows = desk.stat(view).await?;
            assert_eq!((sum(&rows, "requests"), sum(&rows, "failures")), (u64::from(FINE + FAILED), u64::from(FAILED)), "{view}: {rows}");
        }
        let rows = desk.stat("routes").await?;
        assert!(rows.as_array().unwrap().iter().all(|row| row["route"] == "shop/catalog"), "{rows}");
        let rows = desk.stat("workloads").await?;
        assert_eq!((sum(&rows, "requests"), sum(&rows, "failures")), (u64::from(FINE), 0), "{rows}");
        for row in rows.as_array().unwrap() {
            assert_eq!((&row["success"], &row["budget_left"]), (&100.0.into(), &Value::Null), "{row}");
            assert!(row["p99_ms"].as_f64().is_some() && row["workload"].as_str().unwrap().starts_with("catalog-v"), "{row}");
            assert!((row["rps"].as_f64().unwrap() * 30.0 - row["requests"].as_f64().unwrap()).abs() < 1e-6, "{row}");
        }
        tokio::time::sleep(Duration::from_secs(90)).await;
        // Rows are looked through when somebody tells something.
        shop.client().await?.get("/again").await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let rows = desk.stat("services").await?;
        assert_eq!(sum(&rows, "requests"), 1, "{rows}");
        assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
        Ok(())
    });
}

/// Aim: a request that failed is found by its id, with every hop that kept it in order; one that did not is not kept.
#[test]
fn a_failed_request_is_explained() {
    run(|| async {
        let shop = Shop::with(&policy("shop", "catalog", FAULTS)).await?;
        traffic(&shop).await?;
        let hops = shop.mesh.desk().find("request-5").await?;
        let [hop] = hops.as_array().unwrap().as_slice() else { panic!("{hops}") };
        assert_eq!(
            (&hop["proxy"], &hop["reason"], &hop["route"]),
            (&"shop/frontend".into(), &"fault".into(), &"shop/catalog".into()),
            "{hop}"
        );
        let trace = hop["trace_id"].as_str().unwrap().to_owned();
        assert_eq!(shop.mesh.desk().find(&trace).await?.as_array().unwrap().len(), 1);
        assert_eq!(shop.mesh.desk().find("request-6").await?, Value::Array(Vec::new()));
        assert!(shop.mesh.desk().find("no id").await.is_err());
        Ok(())
    });
}
