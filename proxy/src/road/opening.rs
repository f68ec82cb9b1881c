//! Opening what carries opaque bytes to where a forward leads.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::decide::choose;
use engine::failure::{Failure, Reason};
use engine::model::{Cluster, Forward, Snapshot, Target};

use crate::road::attempt::{self, OpenedTcp};
use crate::road::shared::Shared;

/// Opens the opaque connection that a forward of the listener `name` leads to.
///
/// # Errors
/// It leads nowhere, or nobody is reached there.
pub async fn open(
    shared: &Shared,
    (name, snapshot): (&str, &Snapshot),
    forward: Option<&Arc<Forward>>,
    destination: SocketAddr,
) -> Result<OpenedTcp, Failure> {
    let Some(target) = forward.and_then(|forward| choose(forward, shared.draw.next())) else {
        return Err(Failure::new(Reason::NoRoute, format!("{name} has no backend for opaque bytes")));
    };
    match &target.target {
        Target::Cluster(cluster) => {
            let only = Shared::fixed(cluster.kind, snapshot, destination);
            attempt::open(shared, Some(cluster), only).await
        }
        Target::Reply(answer) => {
            Err(Failure::new(answer.reason.unwrap_or(Reason::BadBackend), format!("{name}: the backend does not exist")))
        }
    }
}

/// The cluster of a forward that has only one, so that a connection that failed is counted there.
pub fn only_cluster(forward: &Forward) -> Option<Arc<Cluster>> {
    match forward.backends.as_slice() {
        [only] => match &only.target {
            Target::Cluster(cluster) => Some(Arc::clone(cluster)),
            Target::Reply(_) => None,
        },
        _ => None,
    }
}
