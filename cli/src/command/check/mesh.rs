//! How the running mesh is.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Finding;
use crate::command::get;
use crate::{client, output, state};

/// Proxies named in one line.
const NAMED_MAX: usize = 5;
/// A leaf renews at two thirds of its life; one that has less left than this part of it is late.
const LATE_SHARE: f64 = 0.2;

/// What the control plane says of its mesh; `None` where none runs.
pub(super) async fn findings() -> Option<Vec<Finding>> {
    client::connect_to(&state::control_socket()).await.ok()?;
    let mut findings = Vec::new();
    let mut answers = Vec::new();
    for kind in ["epochs", "proxies", "certs"] {
        match get::fetch(kind, None, None).await.and_then(|json| output::parse(&json)) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                findings.push(Finding::failed("control plane", format!("{error:#}"), "look at `meshwright logs control`"));
                return Some(findings);
            }
        }
    }
    findings.push(Finding::ok("control plane", "answers"));
    let epoch = answers[0][0]["epoch"].as_u64();
    findings.push(epochs(&answers[0]));
    findings.push(proxies(&answers[1], epoch));
    findings.push(certificates(&answers[2], OffsetDateTime::now_utc()));
    Some(findings)
}

fn epochs(epochs: &Value) -> Finding {
    let newest = &epochs[0];
    let number = &newest["epoch"];
    if newest.is_null() {
        return Finding::warning("epoch", "no configuration has been accepted yet", "look at `meshwright logs control`");
    }
    let waiting: Vec<&str> = newest["proxies"]["waiting"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if waiting.is_empty() {
        return Finding::ok("epoch", format!("{number} is live"));
    }
    let message = format!("{number} is not yet live; waiting for {}", named(&waiting));
    Finding::warning("epoch", message, "run `meshwright wait`; it names who refuses what")
}

fn proxies(proxies: &Value, newest: Option<u64>) -> Finding {
    let all: Vec<&Value> = proxies.as_array().into_iter().flatten().collect();
    let behind: Vec<String> =
        all.iter().filter(|proxy| newest.is_some() && proxy["epoch"].as_u64() < newest).map(|proxy| name(proxy)).collect();
    if behind.is_empty() {
        return Finding::ok("proxies", format!("{} connected", all.len()));
    }
    let behind: Vec<&str> = behind.iter().map(String::as_str).collect();
    let message = format!("{} connected, {} behind the newest epoch: {}", all.len(), behind.len(), named(&behind));
    Finding::warning("proxies", message, "`meshwright get epochs` shows what they wait for")
}

fn certificates(certs: &Value, now: OffsetDateTime) -> Finding {
    let time = |cert: &Value, field: &str| cert[field].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let (mut expired, mut late, mut soonest) = (Vec::new(), Vec::new(), None);
    let all: Vec<&Value> = certs.as_array().into_iter().flatten().collect();
    for cert in &all {
        let (Some(start), Some(end)) = (time(cert, "not_before"), time(cert, "not_after")) else { continue };
        soonest = soonest.map_or(Some(end), |soonest: OffsetDateTime| Some(soonest.min(end)));
        if end <= now {
            expired.push(name(cert));
        } else if (end - now).as_seconds_f64() < (end - start).as_seconds_f64() * LATE_SHARE {
            late.push(name(cert));
        }
    }
    let names = |of: &[String]| named(&of.iter().map(String::as_str).collect::<Vec<_>>());
    if !expired.is_empty() {
        return Finding::failed(
            "certificates",
            format!("expired: {}", names(&expired)),
            "restart those workloads, and look at `meshwright logs control`",
        );
    }
    if !late.is_empty() {
        return Finding::warning(
            "certificates",
            format!("late to renew: {}", names(&late)),
            "look at the proxies' logs: `meshwright logs --proxy`",
        );
    }
    let next = soonest.and_then(|end| end.format(&Rfc3339).ok()).map(|end| format!(", the next expires at {end}")).unwrap_or_default();
    Finding::ok("certificates", format!("{} in use{next}", all.len()))
}

fn name(row: &Value) -> String {
    format!("{}/{}", row["namespace"].as_str().unwrap_or("?"), row["instance"].as_str().unwrap_or("?"))
}

fn named(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let shown = names[..names.len().min(NAMED_MAX)].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use serde_json::json;

    /// Aim: expired and late certificates are told apart from healthy ones.
    #[test]
    fn certificates_are_judged_by_their_life() {
        let now = OffsetDateTime::parse("2026-01-01T12:00:00Z", &Rfc3339).unwrap();
        let cert = |from: &str, to: &str| json!([{"namespace": "shop", "instance": "a", "not_before": from, "not_after": to}]);
        for (from, to, state) in [
            ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", State::Ok),
            ("2026-01-01T00:00:00Z", "2026-01-01T13:00:00Z", State::Warning),
            ("2026-01-01T00:00:00Z", "2026-01-01T12:00:00Z", State::Failed),
        ] {
            assert_eq!(certificates(&cert(from, to), now).state, state, "{to}");
        }
    }

    /// Aim: proxies behind the newest epoch are named, a few of them.
    #[test]
    fn laggards_are_named() {
        let all: Vec<Value> = (0..8).map(|n| json!({"namespace": "shop", "instance": format!("i{n}"), "epoch": 3})).collect();
        assert_eq!(proxies(&Value::from(all.clone()), Some(3)).state, State::Ok);
        let finding = proxies(&Value::from(all), Some(4));
        assert!(
            finding.message.contains("8 behind the newest epoch: shop/i0") && finding.message.ends_with("and 3 more"),
            "{}",
            finding.message
        );
        assert_eq!(epochs(&json!([])).state, State::Warning);
        assert_eq!(epochs(&json!([{"epoch": 2, "proxies": {"waiting": []}}])).message, "2 is live");
    }
}
