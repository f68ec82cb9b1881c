//! `meshwright.v1.Control`: the one API of every command that looks at a running mesh or changes it.

mod apply;
mod audit;
pub(crate) mod away;
mod consumers;
mod explain;
mod find;
mod get;
mod keys;
pub(crate) mod live;
mod ready;
mod rotate;
mod stat;
mod tap;
mod wait;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use proto::identity::Identity;
use proto::mesh::control_server::{Control, ControlServer};
use proto::mesh::{
    ApplyRequest, CanariesRequest, ExplainRequest, FindRequest, GetRequest, HealthRequest, Json, Progress, RootsRequest, RotateRootRequest,
    StatRequest, SteerCanaryRequest, TapNews, TapRequest, TokenRequest, TokenResponse, WaitRequest,
};
use proto::names::{Mode, NodeId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::canary::{CanaryHelm, CanaryVerb};
use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::rotation::Rotation;
use crate::serve::authority::{SharedAuthority, TokenOrder};
use crate::store::Store;
use crate::translate;
use crate::world::{Kind, ObjectKey};

/// Largest request: a folder of manifests.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Largest answer: a dump of every proxy.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How long a proxy may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(2);
/// A wait that names no timeout ends after this long (`kinds.md`).
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// The service.
pub struct Api {
    board: Arc<Board>,
    authority: SharedAuthority,
    store: Arc<Store>,
    rotation: Rotation,
    canaries: CanaryHelm,
    stop: CancellationToken,
}

impl Api {
    /// To be added to the server of the Unix socket, and behind the API token to that of the TLS door.
    pub fn service(
        board: Arc<Board>,
        authority: SharedAuthority,
        store: Arc<Store>,
        (rotation, canaries): (Rotation, CanaryHelm),
        stop: CancellationToken,
    ) -> ControlServer<Self> {
        ControlServer::new(Self { board, authority, store, rotation, canaries, stop })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(ANSWER_BYTES_MAX)
    }

    fn edition(&self) -> Result<Arc<Edition>, Status> {
        self.board.edition().ok_or_else(|| Status::unavailable("the manifests have not been read yet; try again in a moment"))
    }

    /// Runs `work` beside the answer's stream; it ends when the caller hangs up or we stop.
    fn progress<F, T>(&self, work: impl FnOnce(Arc<Board>, mpsc::Sender<Result<T, Status>>) -> F) -> Response<Answers<T>>
    where
        F: Future<Output = ()> + Send + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(16);
        let (gone, stop) = (sender.clone(), self.stop.clone());
        let work = work(self.board.clone(), sender);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = work => {}
                () = gone.closed() => {}
                () = stop.cancelled() => {
                    // The caller may be gone already.
                    let _ = gone.try_send(Err(Status::unavailable("the control plane is stopping")));
                }
            }
        });
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Progresses = Answers<Progress>;

fn timeout(given: Option<prost_types::Duration>) -> Duration {
    given.and_then(|given| Duration::try_from(given).ok()).filter(|given| !given.is_zero()).unwrap_or(TIMEOUT_DEFAULT)
}

fn last(json: &serde_json::Value, ok: bool) -> Progress {
    Progress { waiting_for: String::new(), json: json.to_string(), done: true, ok }
}

#[tonic::async_trait]
impl Control for Api {
    type ApplyStream = Progresses;
    type WaitStream = Progresses;
    type RotateRootStream = Progresses;
    type TapStream = Answers<TapNews>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<Progresses>, Status> {
        let request = request.into_inner();
        Ok(self.progress(|board, sender| apply::run(board, request, sender)))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Progresses>, Status> {
        let request = request.into_inner();
        Ok(self.progress(|board, sender| wait::run(board, request, sender)))
    }

    async fn rotate_root(&self, request: Request<RotateRootRequest>) -> Result<Response<Progresses>, Status> {
        let request = request.into_inner();
        let (authority, rotation) = (self.authority.clone(), self.rotation.clone());
        Ok(self.progress(|board, sender| rotate::run(board, authority, rotation, request, sender)))
    }

    async fn roots(&self, _request: Request<RootsRequest>) -> Result<Response<Json>, Status> {
        let json = rotate::show(&self.board, &self.authority, &self.rotation).await?;
        Ok(Response::new(Json { json: json.to_string(), note: self.authority.leaves_out().unwrap_or_default() }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Json>, Status> {
        let request = request.into_inner();
        let edition = self.edition()?;
        let rows = get::rows(&self.board, &self.authority, &edition, &request).await?;
        let of_books = matches!(request.kind.as_str(), "certs" | "audit" | "refusals");
        let note = self.authority.leaves_out().filter(|_| of_books).unwrap_or_default();
        Ok(Response::new(Json { json: rows.to_string(), note }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Json>, Status> {
        let edition = self.edition()?;
        let json = explain::run(&self.board, &edition, request.into_inner()).await?;
        Ok(Response::new(Json { json: json.to_string(), note: String::new() }))
    }

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Answers<TapNews>>, Status> {
        let request = request.into_inner();
        let edition = self.edition()?;
        let tap = tap::begin(&self.board, &edition, &request)?;
        Ok(self.progress(|board, sender| tap::run(board, tap, request, sender)))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<Json>, Status> {
        stat::rows(&self.board, &request.into_inner()).map(Response::new)
    }

    async fn find(&self, request: Request<FindRequest>) -> Result<Response<Json>, Status> {
        find::run(&self.board, request.into_inner()).await.map(Response::new)
    }

    async fn create_token(&self, request: Request<TokenRequest>) -> Result<Response<TokenResponse>, Status> {
        let request = request.into_inner();
        let edition = self.edition()?;
        let identity = identity_of(&edition, &request.workload, &request.instance)?;
        let order = TokenOrder {
            workload: request.workload,
            identity,
            instance: Some(request.instance).filter(|instance| !instance.is_empty()),
            life: request.life.and_then(|life| Duration::try_from(life).ok()).filter(|life| !life.is_zero()),
        };
        let authority = self.authority.clone();
        let token = tokio::task::spawn_blocking(move || authority.create_token(&order)).await;
        let token = token.map_err(|_| Status::internal("making a token ended unexpectedly"))?.map_err(Status::failed_precondition)?;
        Ok(Response::new(TokenResponse { token }))
    }

    async fn canaries(&self, request: Request<CanariesRequest>) -> Result<Response<Json>, Status> {
        let CanariesRequest { namespace, name } = request.into_inner();
        let rows = self.canaries.rows(&namespace, &name);
        if rows.is_empty() && !name.is_empty() {
            return Err(Status::not_found(format!("there is no Canary {namespace}/{name}")));
        }
        Ok(Response::new(Json { json: serde_json::Value::from(rows).to_string(), note: String::new() }))
    }

    async fn steer_canary(&self, request: Request<SteerCanaryRequest>) -> Result<Response<Json>, Status> {
        let SteerCanaryRequest { namespace, name, verb } = request.into_inner();
        let Some(verb) = CanaryVerb::find(&verb) else {
            return Err(Status::invalid_argument(format!("`{verb}` is none of promote, abort, pause, resume and approve")));
        };
        let row = self.canaries.steer(ObjectKey::new(Kind::Canary, namespace, name), verb).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(Json { json: row.to_string(), note: String::new() }))
    }

    async fn health(&self, _request: Request<HealthRequest>) -> Result<Response<Json>, Status> {
        let edition = self.edition()?;
        let json = get::problems(&self.board, &self.store, &self.authority, &edition);
        Ok(Response::new(Json { json: json.to_string(), note: String::new() }))
    }
}

/// The identity of a declared, meshed Workload or Gateway, and whether the instance is one of its own.
fn identity_of(edition: &Edition, workload: &str, instance: &str) -> Result<Identity, Status> {
    let index = edition.world.index();
    let Some((namespace, name)) = workload.split_once('/') else {
        return Err(Status::invalid_argument(format!("`{workload}` is not of the form NAMESPACE/NAME")));
    };
    let key = (namespace.to_owned(), name.to_owned());
    let (mode, first) = if let Some(instances) = index.workloads.get(&key) {
        let wanted = instances.iter().find(|(_, known)| instance.is_empty() || known == instance);
        let Some((_, wanted)) = wanted else {
            return Err(Status::not_found(format!("Workload {workload} has no instance `{instance}`")));
        };
        (Mode::Sidecar, wanted.clone())
    } else if index.gateways.contains_key(&key) {
        (Mode::Edge, name.to_owned())
    } else {
        return Err(Status::not_found(format!("there is no Workload or Gateway {workload}; declare it first")));
    };
    if mode == Mode::Sidecar && index.instances.get(&(namespace.to_owned(), first.clone())).is_none_or(|instance| !instance.meshed) {
        return Err(Status::failed_precondition(format!(
            "Workload {workload} is not part of the mesh; label it or its namespace `{}: {}`",
            proto::annotations::INJECT,
            proto::annotations::ENABLED
        )));
    }
    let node = NodeId { mode, namespace: namespace.to_owned(), instance: first };
    let audience = translate::audience(&edition.world, &node).ok_or_else(|| Status::not_found(format!("nothing declared is {node}")))?;
    Identity::new(&index.mesh.trust_domain, namespace, &audience.service_account)
        .map_err(|error| Status::failed_precondition(error.to_string()))
}
