//! `meshwright.v1.Certificates` over gRPC. The server it joins does TLS and says, by its [`Gate`], whether the caller may have what it
//! asks for.

use std::sync::Arc;
use std::time::Duration;

use proto::identity::Applicant;
use proto::mesh::certificates_server::{Certificates, CertificatesServer};
use proto::mesh::{SignRequest, SignResponse};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Code, Extensions, Request, Response, Status};

use crate::attest::TokenError;
use crate::ca::{Ca, CaError, Proof};
use crate::csr::{CSR_BYTES_MAX, Csr};

/// The server's own word on a caller, found by a request's extensions: the leaf that it proved, if any, or why it gets none.
pub type Gate = Arc<dyn Fn(&Extensions, &Applicant<'_>) -> Result<Option<CertificateDer<'static>>, Status> + Send + Sync>;

/// Largest message that is decoded: a request, a token, and room.
pub const MESSAGE_BYTES_MAX: usize = CSR_BYTES_MAX + (8 << 10);

/// The service, to be added to a server.
pub fn service(ca: Arc<Ca>, gate: Gate) -> CertificatesServer<CertificateService> {
    CertificatesServer::new(CertificateService { ca, gate }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// See [`service`].
pub struct CertificateService {
    ca: Arc<Ca>,
    gate: Gate,
}

#[tonic::async_trait]
impl Certificates for CertificateService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let (ca, gate) = (self.ca.clone(), self.gate.clone());
        let (_, extensions, request) = request.into_parts();
        // Once begun it ends, also when the caller hangs up: a token taken is a leaf in the book.
        let signed = tokio::task::spawn_blocking(move || sign(&ca, &request, &gate, &extensions));
        signed.await.map_err(|_| Status::internal("signing ended unexpectedly"))?.map(Response::new)
    }
}

fn sign(ca: &Ca, request: &SignRequest, gate: &Gate, extensions: &Extensions) -> Result<SignResponse, Status> {
    let refused = |status: Status| {
        tracing::warn!(instance = request.instance, reason = status.message(), "refused to sign");
        status
    };
    let csr = Csr::parse(&request.csr_der).map_err(|error| refused(status(&error.into())))?;
    let by_token = !request.token.is_empty();
    let applicant = Applicant { identity: &csr.identity, workload: &csr.workload, instance: &request.instance, by_token };
    let peer = gate(extensions, &applicant).map_err(refused)?;
    let proof = match (request.token.as_str(), &peer) {
        ("", None) => {
            return Err(Status::unauthenticated(
                "neither a join token nor a client certificate; make a token with `meshwright token create --workload NS/NAME`",
            ));
        }
        ("", Some(leaf)) => Proof::Leaf(leaf),
        (token, _) => Proof::Token(token),
    };
    let life = request.life.as_ref().map(|life| Duration::from_secs(u64::try_from(life.seconds).unwrap_or(0)));
    let leaf = ca.sign(&csr, &proof, &request.instance, life).map_err(|error| refused(status(&error)))?;
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
        CaError::Sign(_) | CaError::Random | CaError::External(_) | CaError::NotOurRoot => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn timestamp(at: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.unix_timestamp(), nanos: 0 }
}
