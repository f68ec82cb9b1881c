//! The API's calls. Streams stay open until the caller hangs up or the proxy ends: a library opens one that was ended in good order again
//! each second, and gives up for good where the caller is at fault (`facts.md`).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use proto::generated::spiffe_workload_api_server::SpiffeWorkloadApi;
use proto::generated::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::svid::{NotServed, domain_id, x509_bundles, x509_svids};
use super::token::Tokens;
use super::token_keys::TokenKeys;
use super::{Demand, FIRST_WAIT};
use crate::identity::{Bundles, Exposed};
use crate::io::Clock;
use crate::tls::TrustCell;

/// Every call must carry it, so that no browser or server can be made to make one (SPIFFE Workload Endpoint, section 5).
const MARK: &str = "workload.spiffe.io";

/// See the module.
pub(super) struct Service {
    pub(super) tokens: Tokens,
    pub(super) exposed: watch::Receiver<Option<Arc<Exposed>>>,
    pub(super) bundles: watch::Receiver<Option<Arc<Bundles>>>,
    pub(super) want_leaf: Demand,
    pub(super) want_bundles: Demand,
    pub(super) trust: Arc<TrustCell>,
    pub(super) clock: Clock,
    pub(super) streams: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl From<NotServed> for Status {
    /// What is not there yet is "permission denied" (SPIFFE Workload API, section 6.1): libraries come again.
    fn from(error: NotServed) -> Self {
        Self::permission_denied(error.to_string())
    }
}

fn marked<T>(request: &Request<T>) -> Result<(), Status> {
    if request.metadata().get(MARK).is_some_and(|value| value.as_bytes() == b"true") {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("the call lacks the metadata `{MARK}: true`")))
}

impl Service {
    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| Status::unavailable("too many streams are open; close some");
        Arc::clone(&self.streams).try_acquire_owned().map_err(full)
    }

    /// A stream of what `make` gives, at once and whenever it gives something else after one of `changes`. The first answer is waited for
    /// a little; what cannot be served later on leaves the last answer standing.
    async fn stream<T, F>(&self, make: F, mut changes: [watch::Receiver<u64>; 2]) -> Result<Response<Answers<T>>, Status>
    where
        T: PartialEq + Clone + Send + 'static,
        F: Fn() -> Result<T, Status> + Send + 'static,
    {
        let place = self.place()?;
        let first = async {
            loop {
                if let Ok(answer) = make() {
                    return answer;
                }
                changed(&mut changes).await;
            }
        };
        let first = match timeout(FIRST_WAIT, first).await {
            Ok(answer) => answer,
            Err(_) => make()?,
        };
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut told = first.clone();
            // There is room for one.
            let _ = sender.send(Ok(first)).await;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {
                        // Never in good order: the caller is to come again later, not at once.
                        let _ = sender.send(Err(Status::unavailable("the proxy ends"))).await;
                        return;
                    }
                    () = sender.closed() => return,
                    () = changed(&mut changes) => {}
                }
                match make() {
                    Ok(answer) if answer == told => {}
                    Ok(answer) => {
                        told = answer.clone();
                        if sender.send(Ok(answer)).await.is_err() {
                            return;
                        }
                    }
                    Err(status) => debug!("the SPIFFE Workload API keeps its last answer: {}", status.message()),
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    /// The authority's bundles, waited for a little.
    async fn told(&self) -> Result<Arc<Bundles>, Status> {
        self.want_bundles.raise();
        let mut bundles = self.bundles.clone();
        let known = timeout(FIRST_WAIT, bundles.wait_for(Option::is_some)).await;
        let known = known.ok().and_then(Result::ok).and_then(|known| known.clone());
        known.ok_or_else(|| Status::unavailable("the keys of the trust domain are not known yet; try again"))
    }
}

/// Waits until one of two has changed.
async fn changed(changes: &mut [watch::Receiver<u64>; 2]) {
    let [one, other] = changes;
    tokio::select! {
        Ok(()) = one.changed() => {}
        Ok(()) = other.changed() => {}
        else => std::future::pending().await,
    }
}

/// A counter that goes up with each change of `source`, so that streams of several kinds wait alike.
fn counted<T: Send + Sync + 'static>(mut source: watch::Receiver<T>) -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                changed = source.changed() => if changed.is_err() { return },
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    receiver
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        marked(&request)?;
        self.want_leaf.raise();
        let (exposed, trust, clock) = (self.exposed.clone(), Arc::clone(&self.trust), self.clock);
        let changes = [counted(self.exposed.clone()), self.trust.changes()];
        let make = move || {
            let leaf = exposed.borrow().clone();
            let (roots, federated) = trust.bundles();
            Ok(x509_svids(leaf.as_deref(), &roots, &federated, clock.wall())?)
        };
        self.stream(make, changes).await
    }

    async fn fetch_x509_bundles(&self, request: Request<X509BundlesRequest>) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        marked(&request)?;
        let identity = self.tokens.identity().ok_or(NotServed::NoSvid)?;
        let trust = Arc::clone(&self.trust);
        let changes = [self.trust.changes(), watch::channel(0).1];
        let make = move || {
            let (roots, federated) = trust.bundles();
            Ok(x509_bundles(identity.trust_domain(), &roots, &federated)?)
        };
        self.stream(make, changes).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        marked(&request)?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        if audience.is_empty() {
            return Err(Status::invalid_argument("a JWT-SVID needs an audience: the name of who is to accept it"));
        }
        let identity = self.tokens.identity().ok_or(NotServed::NoSvid)?;
        if !spiffe_id.is_empty() && spiffe_id != identity.to_string() {
            return Err(Status::permission_denied(format!("this workload is {identity}, not the identity that was asked for")));
        }
        let token = self.tokens.fetch(&identity, audience).await?;
        let svid = Jwtsvid { spiffe_id: identity.to_string(), svid: token.to_string(), hint: "internal".to_owned() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(&self, request: Request<JwtBundlesRequest>) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        marked(&request)?;
        self.tokens.identity().ok_or(NotServed::NoSvid)?;
        self.want_bundles.raise();
        let bundles = self.bundles.clone();
        let changes = [counted(self.bundles.clone()), watch::channel(0).1];
        let make = move || {
            let told = bundles.borrow().clone().ok_or(NotServed::NoBundle)?;
            let keys = Bytes::copy_from_slice(told.token_keys.as_bytes());
            Ok(JwtBundlesResponse { bundles: BTreeMap::from([(domain_id(&told.trust_domain), keys)]) })
        };
        self.stream(make, changes).await
    }

    async fn validate_jwtsvid(&self, request: Request<ValidateJwtsvidRequest>) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        marked(&request)?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("a token and the audience it is to be for are needed"));
        }
        let told = self.told().await?;
        let keys = TokenKeys::read(&told.trust_domain, &told.token_keys).map_err(|error| Status::internal(error.to_string()))?;
        let judged = keys.judge(&svid, &audience, self.clock.unix());
        let (identity, claims) = judged.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let claims = claims.into_iter().map(|(name, value)| (name, value_of(value))).collect();
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id: identity.to_string(), claims: Some(prost_types::Struct { fields: claims }) }))
    }
}

/// JSON as protobuf has it.
fn value_of(value: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(items) => Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(value_of).collect() }),
        serde_json::Value::Object(fields) => {
            Kind::StructValue(prost_types::Struct { fields: fields.into_iter().map(|(name, value)| (name, value_of(value))).collect() })
        }
    };
    prost_types::Value { kind: Some(kind) }
}
