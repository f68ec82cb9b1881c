//! Who is at the other end.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::client::Admitted;
use engine::consumers::ClientCertificate;

use crate::tls::{Peer, TlsFacts};

/// The other end of an accepted connection. One per connection, made by `Observer::downstream`.
#[derive(Clone, Debug)]
pub struct Downstream {
    /// Its address.
    pub address: SocketAddr,
    /// Where it meant to go: the original destination.
    pub local: SocketAddr,
    /// What it proved; `None`: plaintext.
    pub peer: Option<Arc<Peer>>,
    /// How the connection is encrypted.
    pub tls: Option<TlsFacts>,
    /// What the access log says of its TLS, where it is a client from outside that ended here ([`super::client_tls`]).
    pub client_tls: Option<Arc<str>>,
    /// Its certificate, where it is a client from outside and somebody vouches for it who is believed at its listener.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Its place among the clients of an edge's port.
    pub place: Option<Arc<Admitted>>,
    pub(super) source: u32,
    /// The same [`Peer`] for all connections of one caller, as far as they are told apart.
    pub(super) caller: Option<Arc<Peer>>,
}

/// How a client outside the mesh is answered by the mesh itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromOutside {
    /// It takes JSON.
    Json,
    /// It takes something else.
    Text,
}
