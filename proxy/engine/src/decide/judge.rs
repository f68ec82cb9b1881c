//! Whether a caller may: what this workload's policies say of a request, or of the connection of opaque bytes.

use std::net::{IpAddr, SocketAddr};

use proto::identity::Identity;

use super::RequestHead;
use crate::authorize::{AtEdge, Call, Judgement, Own};
use crate::claims::Claims;
use crate::consumers::Identified;
use crate::model::Snapshot;

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
