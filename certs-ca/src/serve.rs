//! `meshwright.v1.Certificates` over gRPC. The server it joins does TLS and says, by [`PeerOf`], which leaf the caller proved.

use std::sync::Arc;
use std::time::Duration;

use proto::mesh::certificates_server::{Certificates, CertificatesServer};
use proto::mesh::{SignRequest, SignResponse};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Code, Extensions, Request, Response, Status};

use crate::attest::TokenError;
use crate::ca::{Ca, CaError, Proof};
use crate::csr::CSR_BYTES_MAX;

/// Reads the verified leaf of the caller out of a request's extensions.
pub type PeerOf = fn(&Extensions) -> Option<CertificateDer<'static>>;

/// Largest message that is decoded: a request, a token, and room.
pub const MESSAGE_BYTES_MAX: usize = CSR_BYTES_MAX + (8 << 10);

/// The service, to be added to a server.
pub fn service(ca: Arc<Ca>, peer_of: PeerOf) -> CertificatesServer<Service> {
    CertificatesServer::new(Service { ca, peer_of }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// See [`service`].
pub struct Service {
    ca: Arc<Ca>,
    peer_of: PeerOf,
}

#[tonic::async_trait]
impl Certificates for Service {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = (self.peer_of)(request.extensions());
        let (ca, request) = (self.ca.clone(), request.into_inner());
        // Once begun it ends, also when the caller hangs up: a token taken is a leaf in the book.
        let signed = tokio::task::spawn_blocking(move || sign(&ca, &request, peer.as_ref()));
        signed.await.map_err(|_| Status::internal("signing ended unexpectedly"))?.map(Response::new)
    }
}

fn sign(ca: &Ca, request: &SignRequest, peer: Option<&CertificateDer<'_>>) -> Result<SignResponse, Status> {
    let proof = match (request.token.as_str(), peer) {
        ("", None) => {
            return Err(Status::unauthenticated(
                "neither a join token nor a client certificate; make a token with `meshwright token create --workload NS/NAME`",
            ));
        }
        ("", Some(leaf)) => Proof::Leaf(leaf),
        (token, _) => Proof::Token(token),
    };
    let life = request.life.as_ref().map(|life| Duration::from_secs(u64::try_from(life.seconds).unwrap_or(0)));
    let leaf = ca.sign(&request.csr_der, &proof, &request.instance, life).map_err(|error| {
        tracing::warn!(instance = request.instance, %error, "refused to sign");
        status(&error)
    })?;
    Ok(SignResponse {
        chain_der: leaf.chain.iter().map(|certificate| certificate.to_vec().into()).collect(),
        bundle_der: ca.roots().der().iter().map(|root| root.to_vec().into()).collect(),
        not_before: Some(timestamp(leaf.not_before)),
        not_after: Some(timestamp(leaf.not_after)),
    })
}

fn status(error: &CaError) -> Status {
    let code = match error {
        CaError::Csr(_) | CaError::Name(..) => Code::InvalidArgument,
        CaError::Token(TokenError::Other { .. }) | CaError::TrustDomain { .. } | CaError::NotYours { .. } => Code::PermissionDenied,
        CaError::Token(_) | CaError::Leaf(_) => Code::Unauthenticated,
        CaError::Store(_) => Code::Unavailable,
        CaError::Sign(_) | CaError::Random => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn timestamp(at: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.unix_timestamp(), nanos: 0 }
}
