//! Who asks. Nobody proves it, so whatever is bounded is bounded for each origin, too: one that asks without end, or never to the end, waits in
//! a queue of its own, and others' pods do not wait with it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use proto::origin;
use tokio::sync::Semaphore;

/// Most connections of one origin; further ones are closed. An API server has one or two.
pub const CONNECTIONS_OF_ORIGIN_MAX: usize = 32;
/// Questions of one origin under way on each path; further ones wait.
pub const REVIEWS_OF_ORIGIN_MAX: usize = 16;
/// Objects of one origin that are judged or wait for it; fewer than may be under way, so that there is somebody to say that it is too much.
pub const ANALYSES_OF_ORIGIN_MAX: usize = 12;

/// The places of one origin.
#[derive(Debug)]
pub struct Caller {
    pub(crate) connections: Semaphore,
    pub(crate) injections: Semaphore,
    pub(crate) validations: Semaphore,
    pub(crate) analyses: Semaphore,
}

impl Default for Caller {
    fn default() -> Self {
        Self {
            connections: Semaphore::new(CONNECTIONS_OF_ORIGIN_MAX),
            injections: Semaphore::new(REVIEWS_OF_ORIGIN_MAX),
            validations: Semaphore::new(REVIEWS_OF_ORIGIN_MAX),
            analyses: Semaphore::new(ANALYSES_OF_ORIGIN_MAX),
        }
    }
}

/// All who are there; an origin is forgotten when its last connection has ended.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<BTreeMap<IpAddr, Weak<Caller>>>);

impl Callers {
    /// The origin of a connection from there.
    pub(crate) fn of(&self, address: IpAddr) -> Arc<Caller> {
        let mut callers = self.0.lock();
        callers.retain(|_, caller| caller.strong_count() > 0);
        let slot = callers.entry(origin::of(address)).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let caller = Arc::default();
            *slot = Arc::downgrade(&caller);
            caller
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: one host's connections share their places, another's have theirs, and who has gone is forgotten.
    #[test]
    fn an_origin_is_one_caller_while_it_is_there() {
        let callers = Callers::default();
        let of = |text: &str| callers.of(text.parse().unwrap());
        let first = of("192.0.2.1");
        assert!(Arc::ptr_eq(&first, &of("::ffff:192.0.2.1")));
        assert!(!Arc::ptr_eq(&first, &of("192.0.2.2")));
        drop(first);
        drop(of("192.0.2.3"));
        assert_eq!(callers.0.lock().len(), 1);
    }
}
