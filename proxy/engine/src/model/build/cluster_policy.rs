//! How a destination is treated, from our own `ClusterPolicy`.

use std::time::Duration;

use proto::mesh::active_check::Kind;
use proto::mesh::balance::{Algorithm as RawAlgorithm, Prefer as RawPrefer};
use proto::mesh::{
    ActiveCheck as RawCheck, Balance as RawBalance, ClusterPolicy as RawPolicy, GrpcCheck, HttpCheck, Limits as RawLimits,
    Outlier as RawOutlier, RetryBudget as RawBudget, TcpCheck,
};

use super::duration;
use crate::budget::RetryBudget;
use crate::gate::Limits;
use crate::health::{ActiveCheck, CheckQuestion, Outlier};
use crate::model::{Algorithm, Balance, ClusterKind, ClusterPolicy, Prefer};
use crate::rejected::{Wrong, refuse};

/// Most good statuses of one check.
const STATUSES_MAX: usize = 500;
/// What a check that names no status takes for a good answer.
const STATUS_GOOD: u16 = 200;
/// Shortest time between two checks of one endpoint, and shortest interval of outlier detection: below, they would be most of the work.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);

pub(super) fn compile(raw: &RawPolicy, kind: ClusterKind) -> Result<ClusterPolicy, Wrong> {
    let RawPolicy { balance, limits, outlier, check, budget, sessions } = raw;
    if kind != ClusterKind::Endpoints {
        // There is one place to go to.
        refuse(balance.is_some(), "balance")?;
        refuse(outlier.is_some(), "outlier")?;
        refuse(check.is_some(), "check")?;
        refuse(*sessions, "sessions")?;
    }
    Ok(ClusterPolicy {
        balance: balance.as_ref().map(judged_balance).transpose().map_err(|wrong| wrong.within("balance"))?.unwrap_or_default(),
        limits: limits.as_ref().map(judged_limits).transpose().map_err(|wrong| wrong.within("limits"))?.unwrap_or_default(),
        outlier: outlier.as_ref().map(judged_outlier).transpose().map_err(|wrong| wrong.within("outlier"))?,
        check: check.as_ref().map(judged_check).transpose().map_err(|wrong| wrong.within("check"))?,
        budget: budget.as_ref().map(judged_budget).transpose().map_err(|wrong| wrong.within("budget"))?.unwrap_or_default(),
        sessions: *sessions,
        resolves: None,
    })
}

fn judged_balance(raw: &RawBalance) -> Result<Balance, Wrong> {
    let RawBalance { algorithm, slow_start, prefer, failover_below_healthy_percent, panic_below_healthy_percent } = raw;
    let algorithm = match RawAlgorithm::try_from(*algorithm) {
        Ok(RawAlgorithm::LeastRequest) => Algorithm::LeastRequest,
        Ok(RawAlgorithm::PeakEwma) => Algorithm::PeakEwma,
        Ok(RawAlgorithm::RoundRobin) => Algorithm::RoundRobin,
        Ok(RawAlgorithm::Random) => Algorithm::Random,
        Ok(RawAlgorithm::RingHash) => Algorithm::RingHash,
        Ok(RawAlgorithm::Maglev) => Algorithm::Maglev,
        Err(_) => return Err(Wrong::new("algorithm", format!("unknown value {algorithm}"))),
    };
    // An endpoint's place on a hash does not grow. The control plane says so to who asks for both, for one may come from another object.
    let slow_start = span(slow_start.as_ref(), "slow_start")?.filter(|_| !algorithm.hashes());
    Ok(Balance {
        algorithm,
        slow_start,
        prefer: match RawPrefer::try_from(*prefer) {
            Ok(RawPrefer::None) => Prefer::Anywhere,
            Ok(RawPrefer::Zone) => Prefer::Zone,
            Ok(RawPrefer::Region) => Prefer::Region,
            Err(_) => return Err(Wrong::new("prefer", format!("unknown value {prefer}"))),
        },
        failover_below_percent: percent(*failover_below_healthy_percent, "failover_below_healthy_percent")?,
        panic_below_percent: percent(*panic_below_healthy_percent, "panic_below_healthy_percent")?,
    })
}

fn judged_limits(raw: &RawLimits) -> Result<Limits, Wrong> {
    let RawLimits { connections, requests, pending, pending_timeout, requests_per_connection } = raw;
    Ok(Limits {
        connections: some(*connections),
        requests: some(*requests),
        pending: *pending,
        pending_timeout: span(pending_timeout.as_ref(), "pending_timeout")?,
        requests_per_connection: some(*requests_per_connection),
    })
}

fn judged_outlier(raw: &RawOutlier) -> Result<Outlier, Wrong> {
    let RawOutlier {
        consecutive_errors,
        consecutive_connect_failures,
        success_rate_min_percent,
        latency_factor,
        interval,
        eject_for,
        max_ejected_percent,
    } = raw;
    // Written so that what is no number is refused, too.
    let factor_fits = *latency_factor == 0.0 || (*latency_factor > 1.0 && latency_factor.is_finite());
    if !factor_fits {
        return Err(Wrong::new("latency_factor", format!("{latency_factor} is neither 0 (off) nor above 1")));
    }
    let success = percent(*success_rate_min_percent, "success_rate_min_percent")?;
    Ok(Outlier {
        consecutive_errors: some(*consecutive_errors),
        consecutive_connect_failures: some(*consecutive_connect_failures),
        success_rate_min_percent: (success > 0.0).then_some(success),
        latency_factor: (*latency_factor > 0.0).then_some(*latency_factor),
        interval: pace(interval.as_ref(), "interval")?,
        eject_for: pace(eject_for.as_ref(), "eject_for")?,
        max_ejected_percent: percent(*max_ejected_percent, "max_ejected_percent")?,
    })
}

fn judged_check(raw: &RawCheck) -> Result<ActiveCheck, Wrong> {
    let RawCheck { interval, timeout, healthy_after, unhealthy_after, kind } = raw;
    for (count, field) in [(healthy_after, "healthy_after"), (unhealthy_after, "unhealthy_after")] {
        if *count == 0 {
            return Err(Wrong::new(field, "must be at least 1"));
        }
    }
    Ok(ActiveCheck {
        question: match kind {
            None => return Err(Wrong::new("", "says neither http, grpc nor tcp")),
            Some(Kind::Http(http)) => judged_http(http).map_err(|wrong| wrong.within("http"))?,
            Some(Kind::Grpc(GrpcCheck { service })) => CheckQuestion::Grpc { service: service.clone() },
            Some(Kind::Tcp(TcpCheck {})) => CheckQuestion::Tcp,
        },
        interval: pace(interval.as_ref(), "interval")?,
        timeout: pace(timeout.as_ref(), "timeout")?,
        healthy_after: *healthy_after,
        unhealthy_after: *unhealthy_after,
    })
}

fn judged_http(HttpCheck { path, expect, host }: &HttpCheck) -> Result<CheckQuestion, Wrong> {
    if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(Wrong::new("path", format!("`{}` is not a path like /healthz", path.escape_debug())));
    }
    if !host.is_empty() && host.parse::<http::uri::Authority>().is_err() {
        return Err(Wrong::new("host", format!("`{}` is not a host name", host.escape_debug())));
    }
    if expect.len() > STATUSES_MAX {
        return Err(Wrong::new("expect", format!("holds more than {STATUSES_MAX} entries")));
    }
    let status = |(index, status): (usize, &u32)| {
        let status = u16::try_from(*status).ok().filter(|status| (200..600).contains(status));
        status.ok_or_else(|| Wrong::new(format!("expect[{index}]"), "is not a status from 200 to 599"))
    };
    let mut expect: Vec<u16> = expect.iter().enumerate().map(status).collect::<Result<_, _>>()?;
    if expect.is_empty() {
        expect.push(STATUS_GOOD);
    }
    Ok(CheckQuestion::Http { path: path.clone(), expect, host: host.clone() })
}

fn judged_budget(RawBudget { percent: share, min_per_second }: &RawBudget) -> Result<RetryBudget, Wrong> {
    Ok(RetryBudget { percent: percent(*share, "percent")?, min_per_second: *min_per_second })
}

/// Zero is "none".
fn some(count: u32) -> Option<u32> {
    (count > 0).then_some(count)
}

/// A duration of which zero is "none".
fn span(raw: Option<&prost_types::Duration>, field: &str) -> Result<Option<Duration>, Wrong> {
    Ok(duration(raw, field)?.filter(|span| *span > Duration::ZERO))
}

/// A duration that must be there and not absurdly short.
fn pace(raw: Option<&prost_types::Duration>, field: &str) -> Result<Duration, Wrong> {
    match duration(raw, field)? {
        Some(pace) if pace >= INTERVAL_MIN => Ok(pace),
        Some(_) => Err(Wrong::new(field, format!("is shorter than {INTERVAL_MIN:?}"))),
        None => Err(Wrong::new(field, "is missing")),
    }
}

fn percent(value: f64, field: &str) -> Result<f64, Wrong> {
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(Wrong::new(field, format!("{value} is not between 0 and 100"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn outlier() -> RawOutlier {
        RawOutlier { interval: seconds(10), eject_for: seconds(30), ..RawOutlier::default() }
    }

    fn check(kind: Option<Kind>) -> RawCheck {
        RawCheck { interval: seconds(5), timeout: seconds(1), healthy_after: 2, unhealthy_after: 3, kind }
    }

    fn http(path: &str, expect: &[u32]) -> RawCheck {
        check(Some(Kind::Http(HttpCheck { path: path.into(), expect: expect.to_vec(), host: String::new() })))
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        // Aim: the text names the field and says what would do.
        let balance = |balance| RawPolicy { balance: Some(balance), ..RawPolicy::default() };
        let judged = |outlier| RawPolicy { outlier: Some(outlier), ..RawPolicy::default() };
        let checked = |check| RawPolicy { check: Some(check), ..RawPolicy::default() };
        let cases = [
            (balance(RawBalance { algorithm: 9, ..RawBalance::default() }), "balance.algorithm: unknown value 9"),
            (balance(RawBalance { prefer: 9, ..RawBalance::default() }), "balance.prefer: unknown value 9"),
            (balance(RawBalance { panic_below_healthy_percent: f64::NAN, ..RawBalance::default() }), "is not between 0 and 100"),
            (balance(RawBalance { failover_below_healthy_percent: 101.0, ..RawBalance::default() }), "failover_below_healthy_percent: 101"),
            (judged(RawOutlier { interval: None, ..outlier() }), "outlier.interval: is missing"),
            (judged(RawOutlier { eject_for: seconds(0), ..outlier() }), "outlier.eject_for: is shorter than 10ms"),
            (judged(RawOutlier { latency_factor: 0.5, ..outlier() }), "neither 0 (off) nor above 1"),
            (judged(RawOutlier { latency_factor: f64::INFINITY, ..outlier() }), "neither 0 (off) nor above 1"),
            (checked(check(None)), "neither http, grpc nor tcp"),
            (checked(RawCheck { healthy_after: 0, ..http("/", &[]) }), "check.healthy_after: must be at least 1"),
            (checked(http("healthz", &[])), "check.http.path"),
            (checked(http("/a b", &[])), "check.http.path"),
            (checked(http("/", &[200, 99])), "check.http.expect[1]: is not a status from 200 to 599"),
            (RawPolicy { budget: Some(RawBudget { percent: -1.0, min_per_second: 0 }), ..RawPolicy::default() }, "budget.percent"),
        ];
        for (raw, part) in cases {
            let text = compile(&raw, ClusterKind::Endpoints).unwrap_err().of("t", "c").to_string();
            assert!(text.contains(part), "{text} should hold {part}");
        }
        let text = compile(&judged(outlier()), ClusterKind::Local).unwrap_err().of("t", "c").to_string();
        assert!(text.contains("outlier"), "there is one place only: {text}");
    }

    #[test]
    fn absent_parts_are_off_but_the_budget() {
        // Aim: zeros are "none"; a policy that says nothing is the default, whose retries have a budget.
        assert_eq!(compile(&RawPolicy::default(), ClusterKind::Endpoints), Ok(ClusterPolicy::default()));
        let raw = RawPolicy {
            limits: Some(RawLimits { pending_timeout: seconds(0), ..RawLimits::default() }),
            outlier: Some(outlier()),
            check: Some(http("/", &[])),
            ..RawPolicy::default()
        };
        let policy = compile(&raw, ClusterKind::Endpoints).unwrap();
        assert_eq!(policy.limits, Limits::default());
        let outlier = policy.outlier.unwrap();
        assert!(outlier.consecutive_errors.is_none() && outlier.success_rate_min_percent.is_none() && outlier.latency_factor.is_none());
        assert!(matches!(policy.check.unwrap().question, CheckQuestion::Http { expect, .. } if expect == [200]));
        assert_eq!(policy.budget, RetryBudget { percent: 20.0, min_per_second: 10 });
        for (algorithm, wanted) in [(0, Some(Duration::from_secs(1))), (4, None), (5, None)] {
            let balance = Some(RawBalance { algorithm, slow_start: seconds(1), ..RawBalance::default() });
            let policy = compile(&RawPolicy { balance, ..RawPolicy::default() }, ClusterKind::Endpoints).unwrap();
            assert_eq!(policy.balance.slow_start, wanted, "{algorithm}");
        }
    }
}
