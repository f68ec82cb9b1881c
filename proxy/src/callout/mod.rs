//! Calls of the proxy itself over HTTP, to what its policies need: keys of token issuers, providers of logins.
//!
//! Authorization servers are asked by the workers themselves, over their pool (`road::asking`); where one of them is, is said here as well.
//!
//! They are made on the control thread, one connection each, as the proxy's own traffic, which redirection leaves alone. A name is the mesh's
//! where the mesh has it: then the call goes to an endpoint of its Service, by mesh TLS where that has an identity (`whither`). Every call is
//! bounded in time, in bytes and in number; redirects are not followed.

pub mod keys;
pub mod providers;
mod services;
#[cfg(test)]
mod tests;
mod whither;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::authenticate::KeysUri;
use engine::failure::Failure;
use engine::model::{Named, Roots};
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::io::Network;
use crate::snapshots::Snapshots;
use crate::tls::{Carries, Tls};
pub use services::CalledServices;
pub use whither::{Place, places};

/// Time to connect, TLS included, to each address of a name.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Time for a whole call.
pub const CALL_MAX: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Who calls.
const CALLER: HeaderValue = HeaderValue::from_static("meshwright");

/// Why there is no answer to a call.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// The name leads nowhere.
    #[error("its name `{0}` has no address")]
    Nowhere(String),
    /// No connection, or not to whom it should be.
    #[error("it is not reached: {0}")]
    Unreached(String),
    /// It took too long.
    #[error("there is no answer within {} s", CALL_MAX.as_secs())]
    Silent,
    /// What it says is no HTTP, or breaks off.
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
    /// It says no.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// It says too much.
    #[error("its answer has more than {0} bytes")]
    TooLong(usize),
}

/// Makes calls. Cheap to clone.
#[derive(Clone)]
pub struct Callout {
    network: Network,
    tls: Arc<Tls>,
    snapshots: Snapshots,
    roots: Roots,
}

/// A connection, whatever it goes through.
pub trait OpenWire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> OpenWire for S {}

impl Callout {
    /// Calls through `network`, to mesh peers by `tls`; others prove themselves below `roots`.
    pub const fn new(network: Network, tls: Arc<Tls>, snapshots: Snapshots, roots: Roots) -> Self {
        Self { network, tls, snapshots, roots }
    }

    /// What is at an address: headers and body of the answer, which is a success. `draw` chooses among endpoints. Dropping the future gives
    /// the call up.
    ///
    /// # Errors
    /// There is no such answer within the bounds.
    pub async fn get(&self, at: &KeysUri, bytes_max: usize, draw: u64) -> Result<(HeaderMap, Bytes), Away> {
        timeout(CALL_MAX, self.get_unbounded(at, bytes_max, draw)).await.map_err(|_| Away::Silent)?
    }

    async fn get_unbounded(&self, at: &KeysUri, bytes_max: usize, draw: u64) -> Result<(HeaderMap, Bytes), Away> {
        let wire = self.open(at, Carries::H1, draw).await?;
        let unreadable = |error: hyper::Error| Away::Unreadable(error.to_string());
        let (mut sender, connection) =
            http1::Builder::new().max_header_size(HEAD_BYTES_MAX).handshake(TokioIo::new(wire)).await.map_err(unreadable)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(request(at)?).await.map_err(unreadable)?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            return Err(Away::Status(head.status));
        }
        let body = Limited::new(body, bytes_max).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => unreadable(*error),
            Err(_) => Away::TooLong(bytes_max),
        })?;
        Ok((head.headers, body.to_bytes()))
    }

    /// A connection that is to carry this, to the server of an address, which has proved itself where it is to. Dropping the future gives it up.
    ///
    /// # Errors
    /// It is not reached, within [`CONNECT_MAX`] for each of its addresses.
    pub async fn open(&self, at: &KeysUri, carries: Carries, draw: u64) -> Result<Box<dyn OpenWire>, Away> {
        let mut last = Away::Nowhere(at.host().to_owned());
        for place in places(&self.snapshots, at, draw).await.into_iter().take(ADDRESSES_MAX) {
            match timeout(CONNECT_MAX, self.connect(&place, at, carries)).await {
                Ok(Ok(wire)) => return Ok(wire),
                Ok(Err(failure)) => last = Away::Unreached(failure.to_string()),
                Err(_) => last = Away::Unreached(format!("no connection to {} within {} s", place.address, CONNECT_MAX.as_secs())),
            }
        }
        Err(last)
    }

    async fn connect(&self, place: &Place, at: &KeysUri, carries: Carries) -> Result<Box<dyn OpenWire>, Failure> {
        let address = place.address;
        let socket =
            self.network.connect(address).await.map_err(|error| {
                Failure::never_written(engine::failure::Reason::ConnectFailed, format!("connect to {address}: {error}"))
            })?;
        // TLS of its own is opaque to a mesh peer.
        let outer = if at.is_secure() { Carries::Tcp } else { carries };
        let wire: Box<dyn OpenWire> = match &place.identity {
            Some(identity) => Box::new(self.tls.connect(identity, address, outer, socket).await?.stream),
            None => Box::new(socket),
        };
        if !at.is_secure() {
            return Ok(wire);
        }
        // A host of an address is a name that can be proved.
        let Some(named) = Named::new(at.host(), self.roots.clone()).map(Arc::new) else { return Ok(wire) };
        Ok(Box::new(self.tls.connect_named(&named, address, carries, wire).await?))
    }
}

fn request(at: &KeysUri) -> Result<Request<Empty<Bytes>>, Away> {
    let target = at.uri().path_and_query().map_or("/", |target| target.as_str());
    let host = at.uri().authority().map_or("", |authority| authority.as_str());
    let request = Request::get(if target.is_empty() { "/" } else { target })
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, CALLER)
        .header(CONNECTION, "close");
    request.body(Empty::new()).map_err(|error| Away::Unreadable(error.to_string()))
}
