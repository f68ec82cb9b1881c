//! What was called since it was told last, per route, service and caller: for `meshwright stat`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::mesh::RouteTraffic;

use super::labels::{Direction, Labels, MetricFamily, is_failure};
use super::series::{BUCKETS, Sum};
use super::telemetry::Telemetry;

/// Rows told at once; what others count is told in one row per direction.
const ROWS_MAX: usize = 256;

/// What was told of each label set on one stream; as many as there are label sets.
#[derive(Debug)]
pub struct RoutesTold {
    counts: HashMap<Arc<Labels>, Told>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    count: u64,
    buckets: [u64; BUCKETS],
}

/// What one row is about: direction, route, service, and who called.
type RowKey<'a> = (Direction, &'a str, (&'a str, &'a str), (&'a str, &'a str));

impl Told {
    fn of(sum: &Sum) -> Self {
        Self { count: sum.count, buckets: sum.buckets }
    }

    /// What came since `before`. A label set that was forgotten meanwhile counts from zero.
    fn since(self, before: Self) -> Self {
        let before = if before.count > self.count { Self::default() } else { before };
        let mut buckets = self.buckets;
        for (bucket, before) in buckets.iter_mut().zip(before.buckets) {
            *bucket = bucket.saturating_sub(before);
        }
        Self { count: self.count - before.count, buckets }
    }
}

impl RoutesTold {
    fn of(sums: &[(Arc<Labels>, Sum)]) -> Self {
        let http = sums.iter().filter(|(labels, _)| labels.family == MetricFamily::Http);
        Self { counts: http.map(|(labels, sum)| (Arc::clone(labels), Told::of(sum))).collect() }
    }

    /// What is new in `sums`, which are told with this.
    fn news(&mut self, sums: &[(Arc<Labels>, Sum)]) -> Vec<RouteTraffic> {
        let mut rows: BTreeMap<RowKey<'_>, RouteTraffic> = BTreeMap::new();
        for (labels, sum) in sums.iter().filter(|(labels, _)| labels.family == MetricFamily::Http) {
            let told = self.counts.get(labels).copied().unwrap_or_default();
            let new = Told::of(sum).since(told);
            if new.count > 0 {
                add(rows.entry(key(labels)).or_insert_with(|| row(labels)), new, is_failure(labels.code, labels.grpc_code, labels.reason));
            }
        }
        let rows = bounded(rows.into_values().collect());
        *self = Self::of(sums);
        rows
    }
}

fn key(labels: &Labels) -> RowKey<'_> {
    let source = match labels.direction {
        Direction::Inbound => (&*labels.source_namespace, &*labels.source_workload),
        // It is this proxy's own.
        Direction::Outbound => ("", ""),
    };
    (labels.direction, &labels.route, (&labels.destination_namespace, &labels.destination_service), source)
}

fn row(labels: &Labels) -> RouteTraffic {
    let (direction, route, (namespace, service), (source_namespace, source_workload)) = key(labels);
    RouteTraffic {
        direction: direction.text().to_owned(),
        route: route.to_owned(),
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        source_namespace: source_namespace.to_owned(),
        source_workload: source_workload.to_owned(),
        duration_buckets: vec![0; BUCKETS],
        ..RouteTraffic::default()
    }
}

fn add(row: &mut RouteTraffic, new: Told, failed: bool) {
    row.requests += new.count;
    row.failures += if failed { new.count } else { 0 };
    for (total, more) in row.duration_buckets.iter_mut().zip(new.buckets) {
        *total += more;
    }
}

/// The busiest rows, and one for the others of each direction.
fn bounded(mut rows: Vec<RouteTraffic>) -> Vec<RouteTraffic> {
    if rows.len() <= ROWS_MAX {
        return rows;
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.requests));
    // Two places are for the rest, one of each direction.
    let others = rows.split_off(ROWS_MAX - 2);
    let mut rest: BTreeMap<String, RouteTraffic> = BTreeMap::new();
    for other in others {
        let direction = other.direction.clone();
        let row = rest.entry(other.direction).or_insert_with(|| RouteTraffic {
            direction,
            duration_buckets: vec![0; BUCKETS],
            rest: true,
            ..RouteTraffic::default()
        });
        row.requests += other.requests;
        row.failures += other.failures;
        for (total, more) in row.duration_buckets.iter_mut().zip(other.duration_buckets) {
            *total += more;
        }
    }
    rows.extend(rest.into_values());
    rows
}

impl Telemetry {
    /// From here on [`Telemetry::routes`] tells what is new.
    pub fn routes_from_now(&self) -> RoutesTold {
        RoutesTold::of(&self.registry.lock().sums())
    }

    /// HTTP requests since this was asked last, per direction, route, service and caller: at most 256 rows, the busiest, and what the others
    /// counted together.
    pub fn routes(&self, told: &mut RoutesTold) -> Vec<RouteTraffic> {
        let sums = self.registry.lock().sums();
        told.news(&sums)
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Extra, GRPC_NONE, Wire};
    use super::*;

    fn labels(route: &str, code: u16) -> Arc<Labels> {
        let text = |text: &str| Arc::<str>::from(text);
        Arc::new(Labels {
            family: MetricFamily::Http,
            direction: Direction::Outbound,
            source_namespace: text("shop"),
            source_workload: text("frontend"),
            destination_namespace: text("shop"),
            destination_service: text("catalog"),
            destination_workload: text("catalog-v1"),
            route: text(route),
            wire: Wire::Http1,
            code,
            grpc_code: GRPC_NONE,
            reason: None,
            mtls: true,
            ruled: None,
            extra: Extra::default(),
        })
    }

    fn sum(count: u64) -> Sum {
        let mut buckets = [0; BUCKETS];
        buckets[1] = count;
        Sum { count, buckets, ..Sum::default() }
    }

    /// Aim: what was told is not told again, codes of one row are added up, and a label set that was forgotten begins anew.
    #[test]
    fn only_news_is_told() {
        let (fine, failed) = (labels("shop/catalog", 200), labels("shop/catalog", 503));
        let mut told = RoutesTold::of(&[(Arc::clone(&fine), sum(100))]);
        let rows = told.news(&[(Arc::clone(&fine), sum(110)), (Arc::clone(&failed), sum(2))]);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.requests, row.failures, row.duration_buckets[1], row.rest), (12, 2, 12, false));
        assert_eq!((row.route.as_str(), row.service.as_str(), row.source_workload.as_str()), ("shop/catalog", "catalog", ""));
        assert_eq!(told.news(&[(Arc::clone(&fine), sum(110)), (Arc::clone(&failed), sum(2))]), []);
        let rows = told.news(&[(fine, sum(3))]);
        assert_eq!(rows.iter().map(|row| row.requests).collect::<Vec<_>>(), [3]);
    }

    /// Aim: beyond the bound the busiest are told apart, and nothing is left out of the sum.
    #[test]
    fn rows_are_bounded_and_nothing_is_lost() {
        let sums: Vec<_> = (1..=300_u64).map(|n| (labels(&format!("shop/r{n}"), 200), sum(n))).collect();
        let rows = RoutesTold { counts: HashMap::new() }.news(&sums);
        assert!(rows.len() <= ROWS_MAX, "{}", rows.len());
        assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), 300 * 301 / 2);
        assert_eq!(rows[0].route, "shop/r300");
        let rest: Vec<_> = rows.iter().filter(|row| row.rest).map(|row| row.requests).collect();
        assert_eq!(rest, [(1..=46).sum::<u64>()]);
    }
}
