//! How the running mesh is.

use std::time::Duration;

use proto::mesh::WaitRequest;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Finding;
use crate::client::{self, Control, WhichMesh};
use crate::command::{apply, get};
use crate::duration;
use crate::output::{self, ProgressLine};

/// Time in which `wait` is to say how things stand: it looks at once.
const LOOK: Duration = Duration::from_millis(1);
/// Proxies named in one line.
const NAMED_MAX: usize = 5;
/// A leaf renews at two thirds of its life; one that has less left than this part of it is late.
const LATE_SHARE: f64 = 0.2;

/// What the control plane says of its mesh; `None` where none runs.
pub(super) async fn findings(place: &WhichMesh) -> Option<Vec<Finding>> {
    let control = match place.connect().await {
        Ok(control) => control,
        Err(_) if place.is_here() => return None,
        Err(error) => {
            let message = format!("{:#}", anyhow::Error::from(error));
            return Some(vec![Finding::failed(
                "control plane",
                message,
                "look whether it runs, and at --control, --control-ca and --token-file",
            )]);
        }
    };
    let mut findings = Vec::new();
    let mut answers = Vec::new();
    let asked = [standing(control).await, get::fetch(place, "proxies", None, None).await, get::fetch(place, "certs", None, None).await];
    for json in asked {
        match json.and_then(|json| output::parse(&json)) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                findings.push(Finding::failed("control plane", format!("{error:#}"), "look at `meshwright logs control`"));
                return Some(findings);
            }
        }
    }
    findings.push(Finding::ok("control plane", "answers"));
    findings.extend(live(&answers[0]));
    findings.push(proxies(&answers[1], answers[0]["epoch"].as_u64()));
    findings.push(certificates(&answers[2], OffsetDateTime::now_utc()));
    Some(findings)
}

/// What `meshwright wait` would say now, so that both mean the same by "live".
async fn standing(mut control: Control) -> anyhow::Result<String> {
    let request = WaitRequest { epoch: 0, timeout: Some(duration::to_message(LOOK)) };
    let line = ProgressLine::start("looking at the mesh");
    let answer = async { apply::last(control.wait(request).await?.into_inner(), &line).await };
    Ok(answer.await.map_err(|status| client::refused(&status))?.json)
}

/// The newest epoch, and what of the declared mesh is not up.
fn live(standing: &Value) -> Vec<Finding> {
    let number = &standing["epoch"];
    let texts = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let (down, waiting) = (texts(&standing["down"]), texts(&standing["proxies"]["waiting"]));
    let mut findings = Vec::new();
    if let Some(refused) = standing["refused"].as_array().filter(|refused| !refused.is_empty()) {
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or("?").to_owned();
        let line = |row: &Value| format!("{} refused {}: {}", text(row, "proxy"), text(row, "object"), text(row, "reason"));
        let lines: Vec<String> = refused.iter().map(line).collect();
        let message = format!("{number} is not live: {}", named(&lines));
        findings.push(Finding::failed("epoch", message, "mend that object; what was live before stays in force meanwhile"));
    } else if number.as_u64().unwrap_or(0) == 0 {
        findings.push(Finding::warning("epoch", "no configuration has been accepted yet", "look at `meshwright logs control`"));
    } else if waiting.is_empty() {
        findings.push(Finding::ok("epoch", format!("{number} is live")));
    } else {
        let message = format!("{number} is not yet live; waiting for {}", named(&waiting));
        findings.push(Finding::warning("epoch", message, "`meshwright wait` returns when it is live, or names who holds it up"));
    }
    findings.extend(down.iter().take(NAMED_MAX).map(|line| is_down(line)));
    if down.len() > NAMED_MAX {
        let message = format!("{} more are down", down.len() - NAMED_MAX);
        findings.push(Finding::failed("workload", message, "`meshwright wait` names them all, and returns when they are up"));
    }
    findings
}

/// A line of `wait`: `NAMESPACE/INSTANCE (why)`.
fn is_down(line: &str) -> Finding {
    let (namespace, name) = line.split_once(' ').map_or(line, |(key, _)| key).split_once('/').unwrap_or_default();
    let remedy = format!("`meshwright logs -n {namespace} {name}` says why, with --proxy its sidecar's side");
    Finding::failed("workload", format!("{line} is down"), remedy)
}

fn proxies(proxies: &Value, newest: Option<u64>) -> Finding {
    let all: Vec<&Value> = proxies.as_array().into_iter().flatten().collect();
    let behind: Vec<String> =
        all.iter().filter(|proxy| newest.is_some() && proxy["epoch"].as_u64() < newest).map(|proxy| name(proxy)).collect();
    if behind.is_empty() {
        return Finding::ok("proxies", format!("{} connected", all.len()));
    }
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
    if !expired.is_empty() {
        return Finding::failed(
            "certificates",
            format!("expired: {}", named(&expired)),
            "restart those workloads, and look at `meshwright logs control`",
        );
    }
    if !late.is_empty() {
        return Finding::warning(
            "certificates",
            format!("late to renew: {}", named(&late)),
            "look at the proxies' logs: `meshwright logs --proxy`",
        );
    }
    let next = soonest.and_then(|end| end.format(&Rfc3339).ok()).map(|end| format!(", the next expires at {end}")).unwrap_or_default();
    Finding::ok("certificates", format!("{} in use{next}", all.len()))
}

fn name(row: &Value) -> String {
    format!("{}/{}", row["namespace"].as_str().unwrap_or("?"), row["instance"].as_str().unwrap_or("?"))
}

fn named(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let shown = names[..names.len().min(NAMED_MAX)].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::super::CheckState;
    use super::*;
    use serde_json::json;

    /// Aim: expired and late certificates are told apart from healthy ones.
    #[test]
    fn certificates_are_judged_by_their_life() {
        let now = OffsetDateTime::parse("2026-01-01T12:00:00Z", &Rfc3339).unwrap();
        let cert = |from: &str, to: &str| json!([{"namespace": "shop", "instance": "a", "not_before": from, "not_after": to}]);
        for (from, to, state) in [
            ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", CheckState::Ok),
            ("2026-01-01T00:00:00Z", "2026-01-01T13:00:00Z", CheckState::Warning),
            ("2026-01-01T00:00:00Z", "2026-01-01T12:00:00Z", CheckState::Failed),
        ] {
            assert_eq!(certificates(&cert(from, to), now).state, state, "{to}");
        }
    }

    /// Aim: proxies behind the newest epoch are named, a few of them.
    #[test]
    fn laggards_are_named() {
        let all: Vec<Value> = (0..8).map(|n| json!({"namespace": "shop", "instance": format!("i{n}"), "epoch": 3})).collect();
        assert_eq!(proxies(&Value::from(all.clone()), Some(3)).state, CheckState::Ok);
        let finding = proxies(&Value::from(all), Some(4));
        assert!(
            finding.message.contains("8 behind the newest epoch: shop/i0") && finding.message.ends_with("and 3 more"),
            "{}",
            finding.message
        );
    }

    /// Aim: what `wait` would not call live is not called live here: each thing that is down is named, with what to do.
    #[test]
    fn what_is_down_is_named() {
        let said = |standing: Value| live(&standing).into_iter().map(|finding| (finding.state, finding.message)).collect::<Vec<_>>();
        assert_eq!(said(json!({"epoch": 0})), [(CheckState::Warning, "no configuration has been accepted yet".to_owned())]);
        assert_eq!(said(json!({"epoch": 2, "down": [], "proxies": {"waiting": []}})), [(CheckState::Ok, "2 is live".to_owned())]);
        let down = json!({"epoch": 2, "down": ["shop/catalog (not ready: port 8080 refuses)"],
            "proxies": {"waiting": ["shop/catalog (not ready: port 8080 refuses)", "shop/b (has not acknowledged epoch 2)"]}});
        let findings = live(&down);
        assert_eq!((findings[0].state, findings[1].state), (CheckState::Warning, CheckState::Failed));
        assert_eq!(findings[1].message, "shop/catalog (not ready: port 8080 refuses) is down");
        assert!(findings[1].remedy.as_ref().unwrap().contains("meshwright logs -n shop catalog"));
        let many = json!({"epoch": 2, "down": vec!["a/b (c)"; 7], "proxies": {"waiting": ["a/b (c)"]}});
        assert_eq!(live(&many).last().unwrap().message, "2 more are down");
        let refused = said(json!({"epoch": 3, "refused": [{"proxy": "shop/a", "object": "Listener inbound", "reason": "no"}]}));
        assert_eq!(refused, [(CheckState::Failed, "3 is not live: shop/a refused Listener inbound: no".to_owned())]);
    }
}
