//! What authorization policies say of the call that is asked about.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::view::PolicyView;
use super::{Explanation, Way};
use crate::authorize::{CallVerdict, Judgement, Told};
use crate::claims::Claims;
use crate::decide::{self, RequestHead};
use crate::failure::Reason;

/// Most policies that are told one by one; the judgement is of all.
const POLICIES_TOLD_MAX: usize = 100;

/// Adds each policy's verdict and what they come to; the reason of the refusal, if it is one. The head is `None` for opaque bytes; the claims are a
/// verified token's.
pub(super) fn told(
    mut explanation: Explanation,
    way: &Way<'_>,
    (head, claims): (Option<&RequestHead<'_>>, Option<&Claims>),
) -> (Explanation, Option<Reason>) {
    let Some((snapshot, caller)) = way.judged else { return door(explanation, way, head) };
    let Some(authorization) = snapshot.authorization.as_deref() else { return (explanation, None) };
    let call = decide::call(snapshot, caller, head, claims);
    explanation.policies = authorization.told(&call).into_iter().take(POLICIES_TOLD_MAX).map(view).collect();
    let judgement = authorization.judge(&call);
    let refusal = judgement.refusal();
    let verdict = match (refusal, head) {
        (None, _) => "Continue",
        (Some(_), Some(_)) => "Reply",
        (Some(_), None) => "Close",
    };
    let why = said(&judgement);
    (explanation.stage("authorization", verdict, why), refusal)
}

/// What a Gateway's port says of addresses, before there is a route.
fn door(explanation: Explanation, way: &Way<'_>, head: Option<&RequestHead<'_>>) -> (Explanation, Option<Reason>) {
    let known = |address: Option<IpAddr>| address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let source = SocketAddr::new(known(way.address), 0);
    let caller = decide::Caller { peer: None, workload: "", source, port: way.called.port };
    let judgement = way.door.and_then(|snapshot| decide::door(snapshot, way.called.port, (caller, known(way.peer)), head));
    let Some(judgement) = judgement else { return (explanation, None) };
    let refusal = judgement.refusal();
    let verdict = if refusal.is_some() { "Reply" } else { "Continue" };
    (explanation.stage("address_rules", verdict, said(&judgement)), refusal)
}

/// A judgement in words.
fn said(judgement: &Judgement<'_>) -> String {
    let mut why = match judgement.verdict {
        CallVerdict::Allowed => "no policy forbids it".to_owned(),
        CallVerdict::Denied(ruling) if ruling.rule.is_empty() => format!("no rule of {} allows it", ruling.policy),
        CallVerdict::Denied(ruling) => format!("rule {} of {} denies it", ruling.rule, ruling.policy),
        CallVerdict::Unavailable => "this workload's policies were refused and none were in force before: nobody is let in".to_owned(),
    };
    if let Some(ruling) = judgement.would_deny {
        why += &format!("; {} would deny it, and is on trial", ruling.label);
    }
    if judgement.unanswered > 0 {
        why += "; a condition could not be evaluated, which counts against the caller";
    }
    why
}

fn view(told: Told<'_>) -> PolicyView {
    let (namespace, name) = told.policy.split_once('/').unwrap_or(("", told.policy));
    PolicyView {
        kind: "AuthorizationPolicy".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        rule: told.rule.map(|ruling| ruling.rule.to_string()).unwrap_or_default(),
        verdict: told.verdict.text().to_owned(),
    }
}
