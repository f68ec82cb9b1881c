//! What a call past the mesh meets: the mesh's switch, or EgressPolicies by address, name and DNS answer.

use std::net::SocketAddr;
use std::sync::Arc;

use super::view::PolicyView;
use super::way::Way;
use super::{Explanation, Visitor, inbound, routed};
use crate::decide::outside::{self, Departure, Forbidden};
use crate::decide::{Course, Facts, First, Terms, admit};
use crate::failure::{LocalReply, Reason};
use crate::model::{RouteTable, Snapshot};

/// Goes on where the connection's course ends.
pub(super) fn told(
    explanation: Explanation,
    (snapshot, to, names): (&Snapshot, SocketAddr, &[Arc<str>]),
    (course, client): (Course, &Visitor),
    way: &Way<'_>,
) -> Explanation {
    // The instance's own address is reached by way of its inbound side.
    let own = snapshot.settings.as_ref().is_some_and(|settings| settings.own_addresses.contains(&to.ip()));
    if course == Course::Outside && own && snapshot.inbound.is_some() {
        return inbound(snapshot, to.port(), None, way.asked);
    }
    if let Course::Serve(_) = course {
        return asked(explanation, (snapshot, to, names), way);
    }
    match outside::departure(snapshot, to, names, First::Client(&client.first).spoken()) {
        Ok(departure) => {
            let explanation = explanation.stage("listener", "Continue", format!("{to} is outside the mesh: passed through as it is"));
            allowed(explanation, snapshot, &departure)
        }
        Err(forbidden) => {
            let explanation =
                barred(explanation, snapshot, to, forbidden, if course == Course::Close(Reason::Denied) { "Close" } else { "Reply" });
            match course {
                Course::Close(reason) => explanation.closed(reason),
                _ => explanation.reply(&LocalReply::of(Reason::Denied)),
            }
        }
    }
}

/// A request of a connection whose requests are judged one by one.
fn asked(explanation: Explanation, (snapshot, to, names): (&Snapshot, SocketAddr, &[Arc<str>]), way: &Way<'_>) -> Explanation {
    let head = &way.asked.head;
    if let Err(refusal) = admit(Terms::Outside(&snapshot.egress.plain), Facts { proved: false, fault: way.asked.fault }) {
        return explanation.stage("head", "Reply", refusal.why.unwrap_or_default()).reply(&refusal.reply());
    }
    match outside::departure(snapshot, to, names, Some(crate::model::Spoken::Http(head.host))) {
        Err(forbidden) => barred(explanation, snapshot, to, forbidden, "Reply").reply(&LocalReply::of(Reason::Denied)),
        Ok(departure) => {
            let explanation =
                explanation.stage("listener", "Continue", format!("{to} is outside the mesh: each request is judged by its host"));
            let explanation = routed(allowed(explanation, snapshot, &departure), departure.table, way);
            // A table that no policy wrote has no object to name.
            let route = explanation.route.clone().filter(|route| !route.kind.is_empty());
            Explanation { route, ..explanation }
        }
    }
}

fn allowed(mut explanation: Explanation, snapshot: &Snapshot, departure: &Departure<'_>) -> Explanation {
    if let Some(barred) = departure.told {
        for policy in &snapshot.egress.policies {
            explanation.policies.push(verdict(policy, "", "Audit"));
        }
        return explanation.stage("egress", "Continue", format!("mode Audit: Enforce would cut it, because {}", barred.why()));
    }
    let Some((policy, rule)) = author(departure.table) else { return explanation };
    explanation.policies.push(verdict(&policy, &rule, "Allow"));
    explanation.stage("egress", "Continue", format!("EgressPolicy {policy} allows it by its rule {rule}"))
}

fn barred(mut explanation: Explanation, snapshot: &Snapshot, to: SocketAddr, forbidden: Forbidden, how: &'static str) -> Explanation {
    if forbidden == Forbidden::Mesh {
        return explanation.stage("listener", how, format!("{to} is outside the mesh, and outsideMesh is Deny"));
    }
    for policy in &snapshot.egress.policies {
        explanation.policies.push(verdict(policy, "", "Deny"));
    }
    explanation.stage("egress", how, format!("{to} is outside the mesh: {}", forbidden.why()))
}

/// The policy and the rule behind a table, if they are.
fn author(table: &RouteTable) -> Option<(String, String)> {
    let source = &table.hosts.first()?.rules.first()?.source;
    (!source.kind.is_empty()).then(|| (format!("{}/{}", source.namespace, source.name), source.rule.to_string()))
}

fn verdict(policy: &str, rule: &str, verdict: &str) -> PolicyView {
    let (namespace, name) = policy.split_once('/').unwrap_or(("", policy));
    PolicyView {
        kind: "EgressPolicy".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        rule: rule.to_owned(),
        verdict: verdict.to_owned(),
    }
}
