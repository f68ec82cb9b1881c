//! From a client's checked claim to what translation knows of it.

use proto::names::NodeId;
use tonic::Status;

use crate::publish::peer::Claim;
use crate::translate::{self, Audience};
use crate::world::World;

/// The audience a claim stands for; `None` for stock clients, which have no generator yet.
///
/// # Errors
/// `FAILED_PRECONDITION` where nothing of that name is declared or meshed, `PERMISSION_DENIED` where the instance is another
/// workload's.
pub(super) fn audience(claim: &Claim, world: &World) -> Result<Option<Audience>, Status> {
    if !claim.ours() {
        return Ok(None);
    }
    let node = NodeId { mode: claim.mode, namespace: claim.namespace.clone(), instance: claim.instance.clone() };
    let audience = translate::audience(world, &node).ok_or_else(|| {
        Status::failed_precondition(format!(
            "nothing declared is {node}; add its Workload or Gateway, or label its namespace, and connect again"
        ))
    })?;
    if audience.workload != claim.workload {
        return Err(Status::permission_denied(format!(
            "{node} is an instance of {}/{}, the certificate is for workload {}",
            claim.namespace, audience.workload, claim.workload
        )));
    }
    Ok(Some(audience))
}
