//! The board's part in `tap` and `stat`: who watches requests, and what proxies count.

use proto::mesh::{Command, RouteTraffic, command};

use super::board::Board;
use super::peer::Claim;
use super::stats::StatBook;
use super::taps::Tap;

impl Board {
    /// Opens a tap, which is about nobody yet. `None`: there are [`super::taps::TAPS_MAX`].
    pub fn tap(&self) -> Option<Tap> {
        self.taps.open(self.ticket())
    }

    /// Tells a proxy something that it does not answer. False: it is not connected, or has too much to do.
    pub fn tell(&self, key: &str, id: u64, kind: command::Kind) -> bool {
        let told = self.correspondent(key, |correspondent| correspondent.commands.try_send(Command { id, kind: Some(kind) }).is_ok());
        told == Some(true)
    }

    /// A proxy tells what it counted.
    pub fn counted(&self, claim: &Claim, rows: &[RouteTraffic]) {
        if !rows.is_empty() {
            self.stats.lock().take(claim, rows, self.clock.ms());
        }
    }

    /// Looks at what is called.
    pub fn stats<T>(&self, look: impl FnOnce(&StatBook) -> T) -> T {
        look(&self.stats.lock())
    }
}
