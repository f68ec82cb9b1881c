//! What was asked for on first use: the names subscribed beside `*`, when each was last used, and what the control plane said.
//!
//! Shared between the workers, which ask, and the xDS client, which turns changes into subscriptions. A name that does not exist stays
//! subscribed while it is used, so that the control plane says so when it appears. A listener that came along with a name is not
//! subscribed by itself; it is when the name goes and the listener is still in use.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Name as _;
use proto::mesh::DnsRecord;
use proto::{names, xds};
use tokio::sync::Notify;
use tokio::time::Instant;

/// A name not used for this long is unsubscribed.
pub const IDLE: Duration = Duration::from_secs(600);
/// A name that does not exist is forgotten sooner: scanners and search domains make many of them.
pub const IDLE_ABSENT: Duration = Duration::from_secs(60);
/// Names held at once. Beyond it the longest unused absent one makes room; if there is none, the new name is refused.
pub const NAMES_MAX: usize = 16_384;

/// One name that may be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Want {
    /// The listener of an original destination.
    Outbound(SocketAddr),
    /// The addresses of a host.
    Name(Arc<str>),
}

impl Want {
    /// Type URL and resource name.
    pub fn resource(&self) -> (String, String) {
        match self {
            Self::Outbound(address) => (xds::LISTENER.to_owned(), names::outbound(*address)),
            Self::Name(host) => (DnsRecord::type_url(), names::dns(host)),
        }
    }

    /// The want behind a resource name; `None` for names that are not fetched on use.
    pub fn of(resource: &str) -> Option<Self> {
        match names::outbound_address(resource) {
            Some(address) => Some(Self::Outbound(address)),
            None => names::dns_host(resource).map(|host| Self::Name(host.into())),
        }
    }
}

/// What is known about a want that the snapshot does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantState {
    /// Asked; the answer is on its way.
    Awaited,
    /// The control plane says, or has said before it went away, that there is no such thing.
    Absent,
    /// No control plane to ask now; it will be asked when it is back.
    Away,
    /// Too many names are held already.
    Refused,
}

/// Subscriptions to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedChange {
    /// To subscribe.
    pub subscribe: Vec<Want>,
    /// To unsubscribe.
    pub unsubscribe: Vec<Want>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Wanted {
    state: Mutex<Wants>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Wants {
    names: HashMap<Want, HeldName>,
    change: WantedChange,
    connected: bool,
}

#[derive(Debug)]
struct HeldName {
    last_used: Instant,
    absent: bool,
    /// Not subscribed: it came along with a name.
    implied: bool,
}

impl Wanted {
    /// Records a use of something the snapshot holds.
    pub fn used(&self, want: &Want, now: Instant) {
        let mut state = self.state.lock();
        if let Some(held) = state.names.get_mut(want) {
            held.last_used = now;
        } else if state.names.len() < NAMES_MAX {
            state.names.insert(want.clone(), HeldName { last_used: now, absent: false, implied: true });
        }
    }

    /// Asks for a name, subscribing it if it is new.
    pub fn ask(&self, want: &Want, now: Instant) -> WantState {
        let mut state = self.state.lock();
        let connected = state.connected;
        let waiting = if connected { WantState::Awaited } else { WantState::Away };
        if let Some(held) = state.names.get_mut(want).filter(|held| !held.implied) {
            held.last_used = now;
            return if held.absent { WantState::Absent } else { waiting };
        }
        if !state.names.contains_key(want) && state.names.len() >= NAMES_MAX && !state.make_room() {
            return WantState::Refused;
        }
        state.names.insert(want.clone(), HeldName { last_used: now, absent: false, implied: false });
        // An unsubscription that waits to be sent stays: what the control plane said before is forgotten, so it has to be asked again.
        state.change.subscribe.push(want.clone());
        drop(state);
        self.changed.notify_one();
        waiting
    }

    /// Waits until [`Wanted::take`] has something. Cancel-safe; for one caller, the xDS client.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The changes since the last call.
    pub fn take(&self) -> WantedChange {
        std::mem::take(&mut self.state.lock().change)
    }

    /// Everything wanted now, for a new stream; pending changes are part of it.
    pub fn all(&self) -> Vec<Want> {
        let mut state = self.state.lock();
        state.change = WantedChange::default();
        state.names.iter().filter(|(_, held)| !held.implied).map(|(want, _)| want.clone()).collect()
    }

    /// Forgets what was not used for long; [`Wanted::take`] then holds the unsubscriptions.
    pub fn expire(&self, now: Instant) {
        let mut state = self.state.lock();
        let Wants { names, change, .. } = &mut *state;
        let mut name_leaves = false;
        names.retain(|want, held| {
            let keep = now.duration_since(held.last_used) < if held.absent { IDLE_ABSENT } else { IDLE };
            if !keep && !held.implied {
                name_leaves |= matches!(want, Want::Name(_));
                change.subscribe.retain(|other| other != want);
                change.unsubscribe.push(want.clone());
            }
            keep
        });
        if name_leaves {
            // Which name brought which listener is not known here; a subscription too many costs little.
            for (want, held) in names.iter_mut().filter(|(_, held)| held.implied) {
                held.implied = false;
                change.subscribe.push(want.clone());
            }
        }
        if *change != WantedChange::default() {
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The control plane said whether this exists.
    pub fn answered(&self, want: &Want, exists: bool) {
        if let Some(held) = self.state.lock().names.get_mut(want) {
            held.absent = !exists;
        }
    }

    /// The stream to the control plane is up, or gone.
    pub fn connected(&self, connected: bool) {
        self.state.lock().connected = connected;
    }

    /// How many names are held.
    pub fn len(&self) -> usize {
        self.state.lock().names.len()
    }

    /// Whether no name is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Wants {
    fn make_room(&mut self) -> bool {
        let oldest = self.names.iter().filter(|(_, held)| held.absent).min_by_key(|(_, held)| held.last_used);
        let Some(want) = oldest.map(|(want, _)| want.clone()) else { return false };
        let held = self.names.remove(&want);
        if held.is_some_and(|held| !held.implied) {
            self.change.subscribe.retain(|other| *other != want);
            self.change.unsubscribe.push(want);
        }
        true
    }
}
