//! Resumption that never outlives what it rests on.
//!
//! A ticket carries the client's certificate and stands for the server's; resuming with one of them expired would fail a connection
//! that a full handshake would have opened. So the client drops tickets when its own leaf or the trust bundle changes or the server's
//! leaf ends, and the server hands out tickets that live a quarter of a leaf's life at most.
//!
//! Each ticket is used once. Pooled connections bring back the one they took; opaque ones, which come in numbers, fetch a batch where the
//! stock is low (RFC 9149), so that most of them have no ticket to wake up for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::ServerName;
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;

use super::credential::CredentialCell;
use super::trust::TrustCell;

/// Servers remembered; beyond it the memory starts afresh.
const SERVERS_MAX: usize = 1024;
/// Tickets kept per server; the newest win. So many handshakes at once can resume.
pub(super) const TICKETS_PER_SERVER_MAX: usize = 16;
/// Tickets an opaque connection asks for where the stock is low.
pub(super) const TICKETS_PER_BATCH: u8 = 8;
/// Tickets for handshakes that begin before a batch has come.
const TICKETS_LOW: usize = 2;
/// Longest life of a ticket, seconds.
const TICKET_SECS_MAX: u32 = 6 * 3600;

#[derive(Debug)]
struct Server {
    group: Option<NamedGroup>,
    tickets: VecDeque<Tls13ClientSessionValue>,
    generation: u64,
    trust: u64,
    until: u64,
}

/// The client side's tickets, by server address.
#[derive(Debug)]
pub(super) struct Sessions {
    credentials: Arc<CredentialCell>,
    trust: Arc<TrustCell>,
    time: Arc<dyn TimeProvider>,
    servers: Mutex<HashMap<ServerName<'static>, Server>>,
}

impl Sessions {
    pub(super) fn new(credentials: Arc<CredentialCell>, trust: Arc<TrustCell>, time: Arc<dyn TimeProvider>) -> Self {
        Self { credentials, trust, time, servers: Mutex::default() }
    }

    /// Records on what the tickets of this server rest from now on: our credential's generation, and the second until both leaves hold.
    pub(super) fn note(&self, name: &ServerName<'static>, generation: u64, until: u64) {
        let trust = self.trust.edition();
        self.edit(name, |server| {
            if (server.generation, server.trust) != (generation, trust) {
                server.tickets.clear();
            }
            (server.generation, server.trust, server.until) = (generation, trust, until);
        });
    }

    /// Whether this server's tickets run low.
    pub(super) fn low(&self, name: &ServerName<'_>) -> bool {
        self.servers.lock().get(name).is_none_or(|server| server.tickets.len() <= TICKETS_LOW)
    }

    #[cfg(test)]
    pub(super) fn stock(&self, name: &ServerName<'_>) -> usize {
        self.servers.lock().get(name).map_or(0, |server| server.tickets.len())
    }

    fn edit(&self, name: &ServerName<'static>, change: impl FnOnce(&mut Server)) {
        let mut servers = self.servers.lock();
        if servers.len() >= SERVERS_MAX && !servers.contains_key(name) {
            servers.clear();
        }
        let empty = || Server { group: None, tickets: VecDeque::new(), generation: 0, trust: 0, until: 0 };
        change(servers.entry(name.clone()).or_insert_with(empty));
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.edit(&name, |server| server.group = Some(group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.servers.lock().get(&name.to_owned())?.group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.edit(&name, |server| {
            if server.tickets.len() >= TICKETS_PER_SERVER_MAX {
                server.tickets.pop_front();
            }
            server.tickets.push_back(ticket);
        });
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let now = self.time.current_time()?.as_secs();
        let mut servers = self.servers.lock();
        let server = servers.get_mut(name)?;
        let holds = server.generation == self.credentials.generation() && server.trust == self.trust.edition() && now < server.until;
        if !holds {
            server.tickets.clear();
            return None;
        }
        server.tickets.pop_back()
    }
}

/// The server side's tickets: rustls' own construction, with a life bounded by the leaf's.
#[derive(Debug)]
pub(super) struct BoundedTickets {
    credentials: Arc<CredentialCell>,
    inner: Arc<dyn ProducesTickets>,
}

impl BoundedTickets {
    pub(super) fn new(credentials: Arc<CredentialCell>) -> Result<Self, rustls::Error> {
        Ok(Self { credentials, inner: Ticketer::new()? })
    }
}

impl ProducesTickets for BoundedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        let life = self.credentials.current().map_or(0, |credential| credential.life().as_secs() / 4);
        u32::try_from(life).unwrap_or(TICKET_SECS_MAX).min(TICKET_SECS_MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.inner.decrypt(cipher)
    }
}
