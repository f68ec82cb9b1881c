//! `ca audit`: who was given which certificate, and who was refused.

use proto::mesh::GetRequest;
use serde_json::{Value, json};
use tonic::Status;

use crate::serve::authority::{AuditQuery, Issuance, Refused, SharedAuthority};

/// Rows of one answer; the newest of those that are meant.
const ROWS_MAX: usize = 10_000;

pub(super) async fn rows(authority: SharedAuthority, request: &GetRequest) -> Result<Value, Status> {
    let query = AuditQuery { namespace: request.namespace.clone(), name: request.name.clone(), since_unix_secs: request.since_unix_secs };
    let refusals = request.kind == "refusals";
    let read = tokio::task::spawn_blocking(move || {
        if refusals {
            return Ok(authority.refusals(&query).into_iter().map(refused).collect());
        }
        authority.audit(&query, ROWS_MAX).map(|rows| rows.into_iter().map(issuance).collect())
    });
    read.await.map_err(|_| Status::internal("reading the audit log ended unexpectedly"))?.map_err(Status::unavailable)
}

fn issuance(row: Issuance) -> Value {
    json!({
        "time": row.time,
        "serial": row.issued.serial,
        "identity": row.issued.identity,
        "namespace": row.issued.namespace,
        "workload": row.issued.workload,
        "instance": row.issued.instance,
        "holder": if row.issued.for_application { "Application" } else { "Proxy" },
        "attestation": row.attestation,
        "not_after": row.issued.not_after,
        "issuer": row.issued.issuer,
        "peer": row.peer,
    })
}

fn refused(row: Refused) -> Value {
    json!({
        "time": row.time,
        "identity": row.identity,
        "namespace": row.namespace,
        "workload": row.workload,
        "instance": row.instance,
        "attestation": row.attestation,
        "reason": row.reason,
        "peer": row.peer,
    })
}
