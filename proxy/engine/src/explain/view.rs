//! The shapes of `explain -o json` (kinds.md): fields are added, never renamed.

use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::Moment;
use crate::failure::{LocalReply, Reason};
use crate::filter::guard::LimitOutlook;
use crate::health::{Ejection, Wellness};
use crate::model::Endpoint;

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Epoch of the snapshot that was asked.
    pub epoch: u64,
    /// Name of the listener; empty where none is known for the destination.
    pub listener: String,
    /// The rule that matched.
    pub route: Option<RouteView>,
    /// What happens on the way, in order.
    pub stages: Vec<StageView>,
    /// Verdicts of authorization policies.
    pub policies: Vec<PolicyView>,
    /// How it stands at limits of edges; nothing is taken of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitView>,
    /// Whether it goes on or is answered by the mesh.
    pub decision: Verb,
    /// The mesh's own answer.
    pub reply: Option<ReplyView>,
    /// The cluster (of a split: the likeliest).
    pub cluster: Option<String>,
    /// Every backend of the rule.
    pub backends: Vec<BackendView>,
    /// Every endpoint of those backends.
    pub endpoints: Vec<EndpointView>,
    /// The same from the server's side; joined in by the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Box<Explanation>>,
}

/// How a request stands at one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitView {
    /// `NAMESPACE/NAME/LIMIT`.
    pub name: String,
    /// Whose share, hashed; null where it is not counted, or lacks a part of the key.
    pub key: Option<String>,
    /// What is left, as far as this proxy knows.
    pub remaining: u64,
    /// `allowed`, `refused`, `would_refuse`, `no_key`, `not_counted` or `would_ask`.
    pub verdict: &'static str,
}

impl LimitView {
    pub(super) fn of(outlook: LimitOutlook) -> Self {
        let LimitOutlook { path, key, remaining, verdict } = outlook;
        Self { name: path.to_string(), key: key.map(|key| format!("{key:032x}")), remaining, verdict }
    }
}

/// See [`Explanation::decision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verb {
    /// To a backend.
    Forward,
    /// Answered by the mesh.
    Reply,
}

/// The object behind the rule, and why it was this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Rule name, else its index.
    pub rule: String,
    /// Which conditions held, and why earlier rules did not match.
    pub why: String,
}

/// One step on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageView {
    /// What it is.
    pub name: String,
    /// `Continue`, `Reply` or `Close`.
    pub verdict: &'static str,
    /// A sentence for people.
    pub why: String,
}

/// One authorization policy's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The rule that holds; empty where none does.
    pub rule: String,
    /// Allow, Deny, Audit or NoMatch; on trial WouldAllow or WouldDeny.
    pub verdict: String,
}

/// An answer of the mesh's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplyView {
    /// Status; 0: the connection is closed without an answer.
    pub status: u16,
    /// Reason code.
    pub reason: Option<&'static str>,
}

/// One weighted backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendView {
    /// Its cluster.
    pub cluster: Option<String>,
    /// The answer in place of a cluster.
    pub reply: Option<ReplyView>,
    /// Its weight.
    pub weight: u64,
    /// Its share of requests, 0 to 1.
    pub chance: f64,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointView {
    /// `IP:PORT`.
    pub address: String,
    /// `NAMESPACE/NAME` of the workload.
    pub workload: String,
    /// The identity that it must prove by mesh TLS; absent: it is met in plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Its weight.
    pub weight: u32,
    /// `Healthy`, `Unhealthy` or `Draining`.
    pub health: &'static str,
    /// Requests in flight from this proxy.
    pub in_flight: u32,
    /// Chance that this request goes there while all are idle, 0 to 1.
    pub chance: f64,
    /// What this proxy thinks of it.
    #[serde(flatten)]
    pub standing: StandingView,
    /// How far it is: 0 is nearest; absent where it takes no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<usize>,
    /// Recent latency, where the cluster is balanced by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewma_ms: Option<f64>,
}

/// What a proxy thinks of an endpoint by itself; nothing is said of one that is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StandingView {
    /// `Ejected`, `HalfOpen` (one request at a time until one succeeds) or `FailsChecks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<&'static str>,
    /// Why it was thrown out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_for: Option<&'static str>,
    /// How long it is out still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_ms: Option<u64>,
}

impl StandingView {
    pub(super) fn of(endpoint: &Endpoint, now: Option<Moment>) -> Self {
        let (standing, cause, until) = match endpoint.live.wellness() {
            Wellness::Well => return Self::default(),
            Wellness::Ejected(cause, until) => ("Ejected", Some(cause), Some(until)),
            Wellness::HalfOpen(cause) => ("HalfOpen", Some(cause), None),
            Wellness::FailsChecks => ("FailsChecks", None, None),
        };
        let left = until.zip(now).map(|(until, now)| until.since(now).as_millis());
        Self {
            standing: Some(standing),
            ejected_for: cause.map(Ejection::text),
            ejected_ms: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
        }
    }
}

impl Explanation {
    pub(super) fn new(epoch: u64, listener: &str) -> Self {
        Self {
            epoch,
            listener: listener.to_owned(),
            route: None,
            stages: Vec::new(),
            policies: Vec::new(),
            limits: Vec::new(),
            decision: Verb::Forward,
            reply: None,
            cluster: None,
            backends: Vec::new(),
            endpoints: Vec::new(),
            server: None,
        }
    }

    pub(super) fn stage(mut self, name: &str, verdict: &'static str, why: impl Into<String>) -> Self {
        self.stages.push(StageView { name: name.to_owned(), verdict, why: why.into() });
        self
    }

    pub(super) fn reply(mut self, reply: &LocalReply) -> Self {
        self.decision = Verb::Reply;
        self.reply = Some(ReplyView::of(reply));
        self
    }
}

impl Explanation {
    /// The connection is closed without an answer: there is no status to see.
    pub(super) fn closed(self, reason: Reason) -> Self {
        self.unanswered(Some(reason.text()))
    }

    /// The same for what would have been an answer of the mesh's own.
    pub(super) fn unanswered(mut self, reason: Option<&'static str>) -> Self {
        self.decision = Verb::Reply;
        self.reply = Some(ReplyView { status: 0, reason });
        self
    }
}

impl ReplyView {
    pub(super) fn of(reply: &LocalReply) -> Self {
        Self { status: reply.status.as_u16(), reason: reply.reason.map(|reason| reason.text()) }
    }
}

impl EndpointView {
    pub(super) fn of(endpoint: &Endpoint, chance: f64, tier: Option<usize>) -> Self {
        Self {
            address: endpoint.address.to_string(),
            workload: workload(endpoint),
            identity: endpoint.identity.as_ref().map(|identity| identity.to_string()),
            weight: endpoint.weight,
            health: endpoint.health.text(),
            in_flight: endpoint.live.in_flight.load(Ordering::Relaxed),
            chance,
            standing: StandingView::of(endpoint, None),
            tier,
            ewma_ms: endpoint.live.ewma().map(|ewma| ewma.as_secs_f64() * 1e3),
        }
    }
}

/// `NAMESPACE/NAME`, empty where the control plane names none.
pub(super) fn workload(endpoint: &Endpoint) -> String {
    if endpoint.workload.is_empty() { String::new() } else { format!("{}/{}", endpoint.namespace, endpoint.workload) }
}
