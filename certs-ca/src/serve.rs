//! `meshwright.v1.Certificates` over gRPC. The server it joins does TLS and says, by its [`Gate`], whether the caller may have what it
//! asks for.

mod bulletin;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proto::identity::Applicant;
use proto::mesh::certificates_server::{Certificates, CertificatesServer};
use proto::mesh::{BundlesRequest, BundlesResponse, MintTokenRequest, MintTokenResponse, SignRequest, SignResponse};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::codegen::tokio_stream::Stream;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Extensions, Request, Response, Status};

use self::bulletin::Bulletin;
use crate::attest::{Attestation, ServiceAccountError, TokenError};
use crate::audit::Refusal;
use crate::ca::{Application, Ca, CaError, Fault, Proof};
use crate::csr::{CSR_BYTES_MAX, Csr};
use crate::held::Held;

/// The server's own word on a caller, found by a request's extensions.
pub trait Gate: Send + Sync {
    /// The leaf that it proved, if any, or why what it asks for is not for it.
    ///
    /// # Errors
    /// The refusal as the caller is told it.
    fn admit(&self, extensions: &Extensions, applicant: &Applicant<'_>) -> Result<Option<CertificateDer<'static>>, Status>;

    /// The leaf of a caller whose certificate holds now.
    ///
    /// # Errors
    /// It has none, or it has ended.
    fn holder(&self, extensions: &Extensions) -> Result<CertificateDer<'static>, Status>;

    /// Unique id of the pod that is the applicant's instance now, empty: there is none; `None`: nobody knows of pods here.
    fn pod_uid(&self, applicant: &Applicant<'_>) -> Option<String>;

    /// Where it calls from; `None` where that is no network.
    fn address(&self, extensions: &Extensions) -> Option<IpAddr>;
}

/// Largest message that is decoded: a request, a token, and room.
pub const MESSAGE_BYTES_MAX: usize = CSR_BYTES_MAX + (16 << 10);

/// The service, to be added to a server.
/// Streams end at `stop`, so that nobody hears of an authority that does not sign any more.
pub fn service(ca: Arc<Ca>, gate: Arc<dyn Gate>, stop: CancellationToken) -> CertificatesServer<CertificateService> {
    let asked = ca.clone();
    let bulletin = Bulletin::new(move || bundles(&asked).map_err(|error| status(&error)), stop);
    CertificatesServer::new(CertificateService { ca, gate, bulletin }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// See [`service`].
pub struct CertificateService {
    ca: Arc<Ca>,
    gate: Arc<dyn Gate>,
    bulletin: Arc<Bulletin>,
}

#[tonic::async_trait]
impl Certificates for CertificateService {
    type BundlesStream = Pin<Box<dyn Stream<Item = Result<BundlesResponse, Status>> + Send>>;

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let (ca, gate) = (self.ca.clone(), self.gate.clone());
        let (_, extensions, request) = request.into_parts();
        // Once begun it ends, also when the caller hangs up: a token taken is a leaf in the book.
        let signed = tokio::task::spawn_blocking(move || sign(&ca, &request, &*gate, &extensions));
        signed.await.map_err(|_| Status::internal("signing ended unexpectedly"))?.map(Response::new)
    }

    async fn mint_token(&self, request: Request<MintTokenRequest>) -> Result<Response<MintTokenResponse>, Status> {
        let (ca, gate) = (self.ca.clone(), self.gate.clone());
        let (_, extensions, request) = request.into_parts();
        let minted = tokio::task::spawn_blocking(move || mint(&ca, &request, &*gate, &extensions));
        minted.await.map_err(|_| Status::internal("minting ended unexpectedly"))?.map(Response::new)
    }

    async fn bundles(&self, request: Request<BundlesRequest>) -> Result<Response<Self::BundlesStream>, Status> {
        self.gate.holder(request.extensions())?;
        let (sender, receiver) = mpsc::channel(1);
        let (listening, told) = (self.ca.listen(), self.bulletin.clone().tell(sender));
        tokio::spawn(async move {
            let _listening = listening;
            told.await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn bundles(ca: &Ca) -> Result<BundlesResponse, CaError> {
    Ok(BundlesResponse {
        trust_domain: ca.trust_domain(),
        roots_der: ca.roots().der().iter().map(|root| root.to_vec().into()).collect(),
        token_keys: ca.token_keys()?,
    })
}

fn sign(ca: &Ca, request: &SignRequest, gate: &dyn Gate, extensions: &Extensions) -> Result<SignResponse, Status> {
    let from = gate.address(extensions);
    let attestation = attestation(request);
    let mut refusal = Refusal {
        time: 0,
        identity: String::new(),
        namespace: String::new(),
        workload: String::new(),
        instance: request.instance.clone(),
        attestation,
        peer: from,
        reason: String::new(),
    };
    let signed = signed(ca, request, gate, extensions, &mut refusal);
    signed.map_err(|(refused, fault)| {
        if refused.code() == Code::ResourceExhausted {
            // A flood of these must wash away neither the log nor what is remembered of others.
            ca.note_limited();
            return refused;
        }
        refused.message().clone_into(&mut refusal.reason);
        let (instance, identity) = (refusal.instance.clone(), refusal.identity.clone());
        if let Err(limited) = ca.note_refusal(refusal, fault) {
            ca.note_limited();
            return status(&limited);
        }
        tracing::warn!(instance, identity, reason = refused.message(), "refused to sign");
        refused
    })
}

fn attestation(request: &SignRequest) -> Attestation {
    match (request.token.as_str(), request.service_account_token.as_str()) {
        ("", "") => Attestation::Certificate,
        ("", _) => Attestation::ServiceAccount,
        _ => Attestation::Token,
    }
}

/// The road of one request. With a refusal comes what it says of the caller; what was asked for is left in `asked`.
fn signed(
    ca: &Ca,
    request: &SignRequest,
    gate: &dyn Gate,
    extensions: &Extensions,
    asked: &mut Refusal,
) -> Result<SignResponse, (Status, Fault)> {
    let by_token = asked.attestation != Attestation::Certificate;
    let judged = |error: CaError| (status(&error), fault(&error, by_token));
    if by_token {
        ca.may_try(asked.peer, None).map_err(judged)?;
    }
    let csr = Csr::parse(&request.csr_der).map_err(|error| judged(error.into()))?;
    asked.identity = csr.identity.to_string();
    csr.identity.namespace().clone_into(&mut asked.namespace);
    asked.workload.clone_from(&csr.workload);
    if asked.attestation == Attestation::Token {
        ca.may_try(None, Some(&format!("{}/{}", asked.namespace, asked.workload))).map_err(judged)?;
    }
    let applicant = Applicant { identity: &csr.identity, workload: &csr.workload, instance: &request.instance, by_token };
    let peer = gate.admit(extensions, &applicant).map_err(|status| (status, Fault::TurnedAway))?;
    let proof = match (asked.attestation, &peer) {
        (Attestation::Token, _) => Proof::Token(&request.token),
        (Attestation::ServiceAccount, _) => Proof::ServiceAccount(&request.service_account_token),
        (Attestation::Certificate, Some(leaf)) => Proof::Leaf(leaf),
        (Attestation::Certificate, None) => {
            let none = "neither a join token nor a client certificate; make a token with `meshwright token create --workload NS/NAME`";
            return Err((Status::unauthenticated(none), Fault::TurnedAway));
        }
    };
    let pod_uid = gate.pod_uid(&applicant);
    let application = Application {
        csr: &csr,
        instance: &request.instance,
        life: request.life.as_ref().map(|life| Duration::from_secs(u64::try_from(life.seconds).unwrap_or(0))),
        from: asked.peer,
        for_application: request.for_application,
        pod_uid: pod_uid.as_deref(),
    };
    let leaf = ca.issue(&application, &proof).map_err(judged)?;
    Ok(SignResponse {
        chain_der: leaf.chain.iter().map(|certificate| certificate.to_vec().into()).collect(),
        bundle_der: ca.roots().der().iter().map(|root| root.to_vec().into()).collect(),
        not_before: Some(timestamp(leaf.not_before)),
        not_after: Some(timestamp(leaf.not_after)),
    })
}

fn mint(ca: &Ca, request: &MintTokenRequest, gate: &dyn Gate, extensions: &Extensions) -> Result<MintTokenResponse, Status> {
    let leaf = gate.holder(extensions)?;
    let Held { identity, workload, .. } = Held::read(&leaf).map_err(|why| status(&CaError::Leaf(why)))?;
    // As for a renewal: a workload that nobody declares any more gets no tokens either.
    let applicant = Applicant { identity: &identity, workload: &workload, instance: &request.instance, by_token: false };
    gate.admit(extensions, &applicant)?;
    let minted = ca.mint(&leaf, &request.audience).map_err(|error| status(&error))?;
    Ok(MintTokenResponse { token: minted.token, issued: Some(timestamp(minted.issued)), expires: Some(timestamp(minted.expires)) })
}

/// Whether somebody who is refused so may be trying what comes to mind.
fn fault(error: &CaError, by_token: bool) -> Fault {
    let guess = match error {
        CaError::NotIssued => true,
        CaError::Token(_) | CaError::Csr(_) | CaError::Name(..) | CaError::TrustDomain { .. } | CaError::Control(_) => by_token,
        CaError::ServiceAccount(error) => by_token && !matches!(error, ServiceAccountError::Unreachable(_)),
        _ => false,
    };
    if guess { Fault::Guess } else { Fault::Other }
}

fn status(error: &CaError) -> Status {
    let code = match error {
        CaError::Csr(_) | CaError::Name(..) | CaError::Audience(_) => Code::InvalidArgument,
        CaError::Token(TokenError::Other { .. })
        | CaError::ServiceAccount(ServiceAccountError::Other { .. })
        | CaError::TrustDomain { .. }
        | CaError::Control(_)
        | CaError::Application
        | CaError::AnotherPod(_)
        | CaError::NotYours { .. } => Code::PermissionDenied,
        CaError::ServiceAccount(ServiceAccountError::NoVerifier) => Code::FailedPrecondition,
        CaError::ServiceAccount(ServiceAccountError::Unreachable(_)) => Code::Unavailable,
        CaError::Token(_) | CaError::Leaf(_) | CaError::NotIssued | CaError::ServiceAccount(_) => Code::Unauthenticated,
        CaError::Limited(_) => Code::ResourceExhausted,
        CaError::Store(_) => Code::Unavailable,
        CaError::Sign(_) | CaError::Random | CaError::External(_) | CaError::NotOurRoot => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn timestamp(at: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.unix_timestamp(), nanos: 0 }
}

#[cfg(test)]
mod tests;
