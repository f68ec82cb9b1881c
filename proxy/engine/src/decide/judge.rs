//! Whether a caller may: what this workload's policies say of a request, or of the connection of opaque bytes.

use std::net::{IpAddr, SocketAddr};

use proto::identity::Identity;

use super::{Decision, RequestHead, decide};
use crate::authorize::{AtEdge, Call, Judgement, Own};
use crate::claims::Claims;
use crate::consumers::Identified;
use crate::filter::{Guard, Stage};
use crate::model::{Chain, RouteTable, Snapshot};

/// Who calls, and where.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'c> {
    /// What it proved; `None`: it came in plaintext.
    pub peer: Option<&'c Identity>,
    /// Its workload by its own signed word; empty: it says none.
    pub workload: &'c str,
    /// Its address.
    pub source: SocketAddr,
    /// The application's port.
    pub port: u16,
}

/// Judges a call by the policies of a snapshot; with it comes who called at the mesh's edge, where a Gateway says so. `head` is as it is sent on; `None`: opaque bytes. `None` comes back where no policy selects
/// this workload: then everybody may.
#[inline]
pub fn judge<'s>(
    snapshot: &'s Snapshot,
    (caller, told): (Caller<'_>, Option<&Identified>),
    head: Option<&RequestHead<'_>>,
    claims: Option<&Claims>,
) -> Option<Judgement<'s>> {
    let call = Call { auth: told, ..call(snapshot, caller, head, claims) };
    Some(snapshot.authorization.as_deref()?.judge(&call))
}

/// Judges whoever comes to a Gateway's port, before any rule is asked, and connections that have none: by addresses alone. `caller` is the
/// client, `peer` who has connected: a proxy in front of us, perhaps.
pub fn door<'s>(
    snapshot: &'s Snapshot,
    port: u16,
    (caller, peer): (Caller<'_>, IpAddr),
    head: Option<&RequestHead<'_>>,
) -> Option<Judgement<'s>> {
    let policies = snapshot.doors.get(&port)?;
    let book = snapshot.consumers.load();
    let edge = Some(AtEdge { peer, book: &book });
    Some(policies.judge(&Call { edge, ..call(snapshot, Caller { port, ..caller }, head, None) }))
}

/// Judges a connection whose bytes are carried at a Gateway's port: by what the port asks of all, then by what its chain asks, if it has one.
/// `caller` and `peer` are as [`door`] has them.
pub fn carried_by<'s>(
    snapshot: &'s Snapshot,
    port: u16,
    chain: Option<&'s Chain>,
    (caller, peer): (Caller<'_>, IpAddr),
) -> impl Iterator<Item = Judgement<'s>> {
    let by_chain = chain.and_then(|chain| chain.policies.as_deref()).map(|policies| {
        let book = snapshot.consumers.load();
        let edge = Some(AtEdge { peer, book: &book });
        policies.judge(&Call { edge, ..call(snapshot, Caller { port, ..caller }, None, None) })
    });
    [door(snapshot, port, (caller, peer), None), by_chain].into_iter().flatten()
}

/// Judges again what became of a request of an edge's client, by the policies of the rule that the request would meet in a table by now. `None`:
/// it would meet none, or nobody is asked there. `caller` and `peer` are as [`door`] has them.
pub fn at_rule<'s>(
    snapshot: &Snapshot,
    table: &'s RouteTable,
    (caller, peer): (Caller<'_>, IpAddr),
    (head, who): (&RequestHead<'_>, Option<&Identified>),
) -> Option<Judgement<'s>> {
    // Whichever backend it would be led to: guards are the rule's.
    let Decision::Forward(plan) = decide(table, head, 0) else { return None };
    let book = snapshot.consumers.load();
    let call = Call {
        peer: caller.peer,
        workload: caller.workload,
        source: caller.source,
        port: caller.port,
        head: Some(head),
        claims: who.and_then(|who| who.claims.as_deref()),
        auth: who,
        edge: Some(AtEdge { peer, book: &book }),
        own: Own::default(),
    };
    plan.forward.policy.steps.gates.iter().find_map(|stage| match stage {
        Stage::Guard(Guard::Unavailable(_)) => Some(Judgement::unavailable()),
        Stage::Guard(Guard::Authorize(policies)) => Some(policies.judge(&call)).filter(|judgement| !judgement.allows()),
        _ => None,
    })
}

/// The same call, for whoever asks more of it.
#[inline]
pub fn call<'c>(snapshot: &'c Snapshot, caller: Caller<'c>, head: Option<&'c RequestHead<'c>>, claims: Option<&'c Claims>) -> Call<'c> {
    let own = snapshot.settings.as_deref().map_or(Own::default(), |settings| Own {
        trust_domain: &settings.trust_domain,
        namespace: &settings.namespace,
        workload: &settings.workload,
    });
    let Caller { peer, workload, source, port } = caller;
    Call { peer, workload, source, port, head, claims, auth: None, edge: None, own }
}
