//! Which labels metrics have, as a Telemetry selects them.

use std::sync::Arc;
use std::time::Duration;

use engine::model::{Endpoint, Locality, MetricLabel, Settings};
use http::{HeaderMap, StatusCode};

use super::{TLS, cluster, endpoint, parts, rule, settings, snapshot, some_traffic, world};
use crate::observe::{Direction, Telemetry};

fn with(labels: &[MetricLabel]) -> Settings {
    Settings { metric_labels: labels.iter().copied().collect(), ..settings(false, None, 0) }
}

fn lines(telemetry: &Telemetry, name: &str) -> Vec<String> {
    telemetry.render().lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
}

/// Aim: a dropped label is not there, what differs in it alone is one series, and what is counted by it (denials) is counted as before.
#[tokio::test(start_paused = true)]
async fn dropped_labels_are_gone() {
    use MetricLabel::{DestinationWorkload, GrpcCode, Mtls, Protocol, Reason, Route, SourceNamespace, SourceWorkload};
    let all = [SourceNamespace, SourceWorkload, DestinationWorkload, Route, Protocol, GrpcCode, Reason, Mtls];
    let world = world();
    let snapshot = snapshot(with(&all));
    world.telemetry.configured(snapshot.settings.as_ref().unwrap());
    some_traffic(&world, &snapshot).await;
    some_traffic(&world, &snapshot).await;
    let text = world.telemetry.render();
    for line in text.lines().filter(|line| line.contains("direction=")) {
        assert!(all.iter().all(|label| !line.contains(&format!("{}=", label.text()))), "{line}");
    }
    let shop = |direction: &str, service: &str| {
        format!("{{direction=\"{direction}\",destination_namespace=\"shop\",destination_service=\"{service}\"")
    };
    assert_eq!(
        lines(&world.telemetry, "meshwright_requests_total{"),
        [
            format!("meshwright_requests_total{},code=\"403\"}} 2", shop("inbound", "frontend")),
            format!("meshwright_requests_total{},code=\"200\"}} 2", shop("outbound", "catalog")),
        ]
    );
    assert_eq!(lines(&world.telemetry, "meshwright_tcp_connections_closed_total{").len(), 1, "{text}");
    assert_eq!(
        lines(&world.telemetry, "meshwright_policy_denied_total{"),
        [format!("meshwright_policy_denied_total{},code=\"403\"}} 2", shop("inbound", "frontend"))]
    );
}

/// Aim: added labels are there, tell series apart, and cost no allocation either.
#[tokio::test(start_paused = true)]
async fn added_labels_are_there() {
    let world = world();
    let snapshot = snapshot(with(&[MetricLabel::Method, MetricLabel::DestinationZone]));
    world.telemetry.configured(snapshot.settings.as_ref().unwrap());
    let (rule, cluster) = (rule(), cluster());
    let app = world.caller(Direction::Outbound, &snapshot, false);
    let in_zone = |zone: &str| {
        let locality = Locality { region: "eu".into(), zone: zone.into() };
        Arc::new(Endpoint { locality, ..Arc::into_inner(endpoint()).unwrap() })
    };
    let endpoints = [in_zone("a"), in_zone("b")];
    let mut allocated = 0;
    for (round, method) in ["GET", "GET", "BREW"].into_iter().enumerate() {
        for endpoint in &endpoints {
            let mut head = parts(&[]);
            head.method = method.parse().unwrap();
            let before = crate::tests::allocations();
            let mut account = world.observer.begin_http(Direction::Outbound, &snapshot, &mut head, &app);
            account.routed(&rule, &cluster);
            account.attempted(endpoint);
            account.secured(Some(&TLS));
            account.response(StatusCode::OK, &HeaderMap::new());
            drop(account);
            if round == 1 {
                allocated += crate::tests::allocations() - before;
            }
        }
    }
    assert_eq!(allocated, 0);
    let told: Vec<String> =
        lines(&world.telemetry, "meshwright_requests_total{").iter().map(|line| line.split_once("method=").unwrap().1.to_owned()).collect();
    assert_eq!(
        told,
        [
            "\"_OTHER\",destination_zone=\"a\"} 1",
            "\"_OTHER\",destination_zone=\"b\"} 1",
            "\"GET\",destination_zone=\"a\"} 2",
            "\"GET\",destination_zone=\"b\"} 2",
        ]
    );
}

/// Aim: a series of which nothing is counted for a quarter of an hour leaves what is scraped, and comes again from zero; a worker that knew it counts
/// into the new one.
#[tokio::test(start_paused = true)]
async fn quiet_series_leave_and_come_again() {
    let world = world();
    let snapshot = snapshot(settings(false, None, 0));
    some_traffic(&world, &snapshot).await;
    let count = || lines(&world.telemetry, "meshwright_requests_total{").iter().filter(|line| line.ends_with("} 1")).count();
    assert_eq!(count(), 2);
    for secs in [899, 30, 30] {
        tokio::time::advance(Duration::from_secs(secs)).await;
        world.telemetry.render();
    }
    assert!(lines(&world.telemetry, "meshwright_requests_total{").is_empty());
    assert!(world.telemetry.render().contains("meshwright_metric_series 0\n"));
    some_traffic(&world, &snapshot).await;
    assert_eq!(count(), 2);
}
