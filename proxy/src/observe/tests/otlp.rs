//! Metrics by OTLP: what a collector reads, and one that refuses, asks for patience or is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint, number_data_point};
use parking_lot::Mutex;

use super::{World, settings, snapshot, some_traffic, world};
use crate::observe::MetricsExporter;

/// Takes metrics: answers as many requests as it is told with an error first, and refuses so many numbers of each.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    unavailable: Arc<AtomicU32>,
    refuses: i64,
}

impl Collector {
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(self.clone()));
        tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        url
    }

    /// All metrics of the last request, by name.
    fn last(&self) -> BTreeMap<String, Metric> {
        let taken = self.taken.lock();
        let request = taken.last().unwrap();
        request.resource_metrics[0].scope_metrics[0].metrics.iter().map(|metric| (metric.name.clone(), metric.clone())).collect()
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        if self.unavailable.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(tonic::Status::unavailable("in a moment"));
        }
        self.taken.lock().push(request.into_inner());
        let partial_success = ExportMetricsPartialSuccess { rejected_data_points: self.refuses, error_message: "too many".into() };
        Ok(tonic::Response::new(ExportMetricsServiceResponse { partial_success: (self.refuses > 0).then_some(partial_success) }))
    }
}

/// A world that has seen traffic, told to send its metrics there.
async fn told(url: &str) -> World {
    let world = world();
    let mut settings = settings(false, Some("http://127.0.0.1:4317"), 0);
    settings.metrics_otlp = Some((url.to_owned(), Duration::from_secs(10)));
    let snapshot = snapshot(settings);
    world.telemetry.configured(snapshot.settings.as_ref().unwrap());
    tokio::time::pause();
    some_traffic(&world, &snapshot).await;
    tokio::time::resume();
    world
}

fn attributes(point: &NumberDataPoint) -> BTreeMap<String, String> {
    point.attributes.iter().map(|one| (one.key.clone(), format!("{:?}", one.value))).collect()
}

/// Aim: a collector reads what a scraper does: sums since their beginning, gauges, and durations as exponential histograms with exemplars, from the
/// same resource as spans; empty labels are not there.
#[tokio::test]
async fn metrics_leave_by_otlp() {
    let collector = Collector::default();
    let url = collector.serve().await;
    let world = told(&url).await;
    MetricsExporter::new(Arc::clone(&world.telemetry)).run(async {}).await;
    let metrics = collector.last();
    let resource = format!("{:?}", collector.taken.lock()[0].resource_metrics[0].resource);
    for wanted in ["service.name", "frontend", "service.namespace", "shop", "service.instance.id", "frontend-0"] {
        assert!(resource.contains(wanted), "{wanted} in {resource}");
    }
    let Some(Data::Sum(requests)) = &metrics["meshwright_requests"].data else { panic!("{metrics:?}") };
    assert!(requests.is_monotonic && requests.aggregation_temporality == 2);
    let outbound = requests.data_points.iter().find(|point| attributes(point)["direction"].contains("outbound")).unwrap();
    assert_eq!(outbound.value, Some(number_data_point::Value::AsInt(1)));
    assert!(outbound.start_time_unix_nano >= 1_800_000_000_000_000_000 && outbound.time_unix_nano >= outbound.start_time_unix_nano);
    assert!(attributes(outbound).contains_key("route") && !attributes(outbound).contains_key("grpc_code"));
    let Some(Data::ExponentialHistogram(durations)) = &metrics["meshwright_request_duration"].data else { panic!("{metrics:?}") };
    assert_eq!((metrics["meshwright_request_duration"].unit.as_str(), durations.aggregation_temporality), ("s", 2));
    let point = durations.data_points.iter().find(|point| point.sum > Some(0.0)).unwrap();
    let positive = point.positive.as_ref().unwrap();
    assert_eq!((point.count, point.scale, positive.bucket_counts.clone(), point.sum), (1, 3, vec![1], Some(0.0045)));
    // 4.5 ms lie between 2^(-63/8) and 2^(-62/8) seconds.
    assert_eq!(positive.offset, -63);
    assert_eq!(point.exemplars[0].trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(metrics["meshwright_request"].unit, "By");
    assert!(matches!(&metrics["meshwright_config_epoch"].data, Some(Data::Gauge(gauge)) if gauge.data_points.len() == 1));
    assert!(matches!(&metrics["meshwright_event_loop_lag"].data, Some(Data::Histogram(_))));
    let text = world.telemetry.render();
    let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap();
    assert!(of("meshwright_metric_points_exported_total ") > 30 && of("meshwright_metric_points_dropped_total ") == 0, "{text}");
}

/// Aim: what is transient is sent again, a partial success is final and its refused numbers are counted, and a collector that is away costs only
/// the numbers of that time.
#[tokio::test]
async fn collectors_may_fail() {
    for (unavailable, refuses, requests) in [(2, 0, 1), (0, 5, 1), (9, 0, 0)] {
        let collector = Collector { refuses, unavailable: Arc::new(AtomicU32::new(unavailable)), ..Collector::default() };
        let url = collector.serve().await;
        let world = told(&url).await;
        MetricsExporter::new(Arc::clone(&world.telemetry)).run(async {}).await;
        assert_eq!(collector.taken.lock().len(), requests, "{unavailable} {refuses}");
        let text = world.telemetry.render();
        let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap();
        let dropped = of("meshwright_metric_points_dropped_total ");
        match requests {
            1 => assert_eq!(dropped, u64::try_from(refuses).unwrap()),
            _ => assert!(dropped > 30, "{text}"),
        }
    }
}

/// Aim: without an order nothing is read, kept or sent, and one that comes takes effect at its interval.
#[tokio::test(start_paused = true)]
async fn orders_come_and_go() {
    let world = world();
    let exporter = MetricsExporter::new(Arc::clone(&world.telemetry));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(exporter.run(async { drop(stopped.await) }));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.telemetry.points_dropped.load(Ordering::Relaxed), 0);
    let mut ordered = settings(false, None, 0);
    ordered.metrics_otlp = Some(("http://127.0.0.1:1".to_owned(), Duration::from_secs(60)));
    world.telemetry.configured(&Arc::new(ordered));
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(world.telemetry.points_dropped.load(Ordering::Relaxed), 0);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let dropped = world.telemetry.points_dropped.load(Ordering::Relaxed);
    assert!(dropped > 0, "nobody listens there");
    world.telemetry.configured(&Arc::new(settings(false, None, 0)));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.telemetry.points_dropped.load(Ordering::Relaxed), dropped);
    drop(stop);
    running.await.unwrap();
}
