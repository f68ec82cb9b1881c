//! Opening connections: TCP or the hairpin, then mTLS where the endpoint has an identity, then TLS where it has a name (inside the mTLS, where
//! it has both), then HTTP where it is wanted.

#![allow(clippy::disallowed_types, reason = "hands a door's socket on")]

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use engine::failure::{Failure, Reason};
use engine::gate::Pass;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::To;
use super::counts::{Counts, Open};
use super::http1::{Http1, Rest};
use super::multiplexed::Multiplexed;
use crate::ground::limits;
use crate::ground::line::Line;
use crate::ground::patience::Patience;
use crate::ground::tally::{Sender, Tally};
use crate::ground::wakes::Wakes;
use crate::ground::windows::Bodies;
use crate::http::http2::client_builder;
use crate::io::{Attended, Called, Network, Notes, Pressure, Rewound, Socket, Stream, Unstalled, gather};
use crate::tls::{Bond, Bonds, Carries, TlsFacts, bound};

/// Gives a connection to this proxy's own inbound side where an address is one of the instance's own; `None` elsewhere.
pub type Hairpin = Rc<dyn Fn(&engine::model::Endpoint) -> Option<Socket>>;

/// Opens upstream connections. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    network: Network,
    bonds: Rc<Bonds>,
    hairpin: Option<Hairpin>,
    pressure: Pressure,
}

/// A connection that was opened.
pub struct Opened {
    /// Its bytes.
    pub stream: Stream,
    /// How it is encrypted; `None`: plaintext.
    pub tls: Option<TlsFacts>,
    /// The peer's, where it proved itself: whoever keeps the connection gives it up when that breaks.
    pub bond: Option<Bond>,
}

impl Connector {
    /// A connector over a network. `hairpin` is consulted for every endpoint that is not said to be local.
    pub fn new(network: Network, bonds: Rc<Bonds>, hairpin: Option<Hairpin>, pressure: Pressure) -> Self {
        Self { network, bonds, hairpin, pressure }
    }

    /// See `Tls::generation`.
    pub fn generation(&self) -> u64 {
        self.bonds.tls().generation()
    }

    /// A socket of datagrams towards an endpoint.
    ///
    /// # Errors
    /// See [`Network::datagrams_to`].
    pub fn datagrams_to(&self, address: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
        self.network.datagrams_to(address)
    }

    /// Opens a connection within the time allowed. Dropping the future gives it up.
    ///
    /// # Errors
    /// [`Reason::ConnectFailed`], [`Reason::ConnectTimeout`], and TLS's own. Nothing of a request was written.
    pub async fn open(&self, to: &To, carries: Carries) -> Result<Opened, Failure> {
        let live = &to.endpoint.live;
        match tokio::time::timeout(to.timeout, self.open_unbounded(to, carries)).await {
            Ok(Ok(opened)) => {
                live.connected();
                Ok(opened)
            }
            Ok(Err(failure)) => {
                live.connect_failed();
                Err(failure)
            }
            Err(_) => {
                live.connect_failed();
                let cause = format!("no connection to {} within {:?}", to.endpoint.address, to.timeout);
                Err(Failure::never_written(Reason::ConnectTimeout, cause))
            }
        }
    }

    async fn open_unbounded(&self, to: &To, carries: Carries) -> Result<Opened, Failure> {
        let address = to.endpoint.address;
        let socket = self.dial(to).await.map_err(|error| refused(address, &error))?;
        if let Some(identity) = &to.endpoint.identity {
            // TLS of the application's own is opaque to its proxy.
            let outer = if to.named.is_some() { Carries::Tcp } else { carries };
            let connected = self.bonds.tls().connect(identity, address, outer, socket).await?;
            let bond = Some(self.bonds.join(&connected.peer));
            let Some(named) = &to.named else {
                return Ok(Opened { stream: Stream::opened(connected.stream), tls: Some(connected.facts), bond });
            };
            let inside = Box::pin(self.bonds.tls().connect_named(named, address, carries, connected.stream)).await?;
            let facts = TlsFacts { holds_tls: true, ..connected.facts };
            return Ok(Opened { stream: Stream::inside(inside), tls: Some(facts), bond });
        }
        let stream = match &to.named {
            // Boxed because few connections leave the mesh so, and all would keep room for it.
            Some(named) => Stream::opened(Box::pin(self.bonds.tls().connect_named(named, address, carries, socket)).await?),
            None => Stream::Plain(socket),
        };
        Ok(Opened { stream, tls: None, bond: None })
    }

    async fn dial(&self, to: &To) -> io::Result<Socket> {
        let address = to.endpoint.address;
        let Some(local) = to.local else {
            if let Some(hairpin) = &self.hairpin
                && let Some(socket) = hairpin(&to.endpoint)
            {
                return Ok(socket);
            }
            return self.network.connect(address).await;
        };
        match (self.network.connect(address).await, local.fallback) {
            (Err(error), Some(other)) if error.kind() == io::ErrorKind::ConnectionRefused => self.network.connect(other).await,
            (connected, _) => connected,
        }
    }

    fn attended(&self, stream: Stream) -> Attended {
        Unstalled::new(Rewound::new(bytes::Bytes::new(), stream), Notes::new(&self.pressure, false))
    }

    pub(super) async fn open_http1(
        &self,
        to: &To,
        counts: &Rc<Counts>,
        patience: &Rc<Patience>,
        pass: Option<Pass>,
    ) -> Result<Box<Http1>, Failure> {
        let Opened { stream, tls, bond } = self.open(to, Carries::H1).await?;
        let open = Open::count(counts, to.local.is_some(), pass);
        let wakes = Arc::new(Wakes::default());
        let line = Line::of(Arc::clone(&wakes));
        let added = if tls.is_some_and(|tls| tls.is_hop()) { limits::HEAD_BYTES_ADDED_MAX } else { 0 };
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_header_size(limits::HEAD_BYTES_MAX + added)
            .max_buf_size(limits::HTTP1_BUFFER_BYTES)
            .handshake(TokioIo::new(Called::new(self.attended(stream), Arc::clone(&line))))
            .await
            .map_err(|error| refused(to.endpoint.address, &io::Error::other(error)))?;
        let peer = bond.as_ref().and_then(Bond::peer);
        let driven = wakes.drive(bound([bond], connection.with_upgrades()));
        let rest = Rc::new(Rest::default());
        let (resting, patience) = (Rc::clone(&rest), Rc::clone(patience));
        tokio::task::spawn_local(async move {
            match driven.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an upstream HTTP/1 connection ended badly"),
                Err(error) => tracing::debug!(%error, "an upstream HTTP/1 connection was cut"),
            }
            if resting.is_on() {
                // It is to be swept, and its tick is to be the present one.
                patience.stir();
                resting.broken(patience.tick());
            }
            drop(open);
        });
        Ok(Box::new(Http1 { sender, line, tls, peer, age: 0, served: 0, rest }))
    }

    pub(super) async fn open_http2(
        &self,
        to: &To,
        counts: &Rc<Counts>,
        (bodies, patience): (&Rc<Bodies>, &Rc<Patience>),
        pass: Option<Pass>,
    ) -> Result<Rc<Multiplexed>, Failure> {
        let Opened { stream, tls, bond } = self.open(to, Carries::H2).await?;
        let open = Open::count(counts, to.local.is_some(), pass);
        let windows = bodies.connection();
        let (stream, gathering) = gather(self.attended(stream), Tally::new(Sender::Server, bodies.floods()));
        let (sender, mut connection) =
            client_builder(&windows).handshake(stream).await.map_err(|error| refused(to.endpoint.address, &io::Error::other(error)))?;
        let pings = tls.filter(TlsFacts::is_hop).and_then(|_| connection.ping_pong());
        let multiplexed = Multiplexed::new(sender, tls, windows, patience);
        let driving = bound([bond], Rc::clone(&multiplexed).drive(connection, gathering, open));
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = driving.await {
                tracing::debug!(%error, "an upstream HTTP/2 connection was cut");
            }
        });
        if let Some(pings) = pings {
            tokio::task::spawn_local(Rc::clone(&multiplexed).keep_alive(pings, driver.abort_handle()));
        }
        Ok(multiplexed)
    }
}

fn refused(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::never_written(Reason::ConnectFailed, format!("connect to {address}: {error}"))
}
