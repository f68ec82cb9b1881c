//! Keys that are fetched: where from, those at hand, and whether newer ones are wanted.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Uri;

use super::keys::KeySet;
use crate::raw::is_host;

/// Keys that could not be fetched again for so long are not believed any more, where no rule says otherwise.
pub const KEPT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest address of a key set, in bytes.
const URI_BYTES_MAX: usize = 2048;
/// A token of an unknown key has the set fetched anew, this often at most: nobody who makes tokens up drives an issuer hard.
pub const MISSED_PAUSE_SECS: u64 = 10;

/// Schemes of servers that speak no HTTP.
const STORE: &str = "redis";
const STORE_SECURE: &str = "rediss";

/// Where a key set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysUri {
    uri: Uri,
    host: Arc<str>,
}

impl KeysUri {
    /// Reads an `https://` or `http://` address.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        if text.len() > URI_BYTES_MAX {
            return Err("is too long");
        }
        let uri: Uri = text.parse().map_err(|_| "is no URI")?;
        if !matches!(uri.scheme_str(), Some("https" | "http")) {
            return Err("is not of the form https://HOST/PATH");
        }
        let authority = uri.authority().ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err("holds a user's name or password, which would be seen by everybody who may look at the mesh");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        if is_host(&host) { Ok(Self { host: host.into(), uri }) } else { Err("names no host") }
    }

    /// Reads `HOST:PORT` of a server that speaks neither HTTP nor anything else that is led by what it says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_store(address: &str, secure: bool) -> Result<Self, &'static str> {
        if address.len() > URI_BYTES_MAX {
            return Err("is too long");
        }
        let scheme = if secure { STORE_SECURE } else { STORE };
        let uri: Uri = format!("{scheme}://{address}/").parse().map_err(|_| "is not of the form HOST:PORT")?;
        let authority = uri.authority().filter(|_| uri.path() == "/" && uri.query().is_none()).ok_or("is not of the form HOST:PORT")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        if is_host(&host) { Ok(Self { host: host.into(), uri }) } else { Err("names no host") }
    }

    /// Whether no HTTP is spoken there.
    pub fn is_opaque(&self) -> bool {
        matches!(self.uri.scheme_str(), Some(STORE | STORE_SECURE))
    }

    /// The whole address.
    pub const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Host name in lower case, or IP address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.is_secure() { 443 } else { 80 })
    }

    /// Whether the server proves itself.
    pub fn is_secure(&self) -> bool {
        matches!(self.uri.scheme_str(), Some("https" | STORE_SECURE))
    }

    /// Whether it is this very machine.
    pub fn is_loopback(&self) -> bool {
        self.host() == "localhost" || self.host().parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// The keys at one place, at hand for every request. It lives as long as a rule names the place, whatever else changes.
#[derive(Debug)]
pub struct KeyCell {
    at: KeysUri,
    current: ArcSwapOption<KeySet>,
    /// When they were last asked for, in seconds since 1970.
    asked_secs: AtomicU64,
    missed: AtomicBool,
    /// What was asked for last has not come: it is under way, or could not be had.
    awaited: AtomicBool,
    /// How long they are believed where they cannot be fetched again, in seconds: as long as the most patient rule says.
    kept_secs: AtomicU64,
}

impl KeyCell {
    /// No keys yet.
    pub fn new(at: KeysUri) -> Arc<Self> {
        Arc::new(Self {
            at,
            current: ArcSwapOption::empty(),
            asked_secs: AtomicU64::new(0),
            missed: AtomicBool::default(),
            awaited: AtomicBool::default(),
            kept_secs: AtomicU64::new(0),
        })
    }

    /// Where they come from.
    pub const fn at(&self) -> &KeysUri {
        &self.at
    }

    /// A rule believes them so long where they cannot be fetched again.
    pub(crate) fn keep(&self, kept: Duration) {
        self.kept_secs.fetch_max(kept.as_secs().max(1), Ordering::Relaxed);
    }

    /// How long they are believed where they cannot be fetched again.
    pub fn kept(&self) -> Duration {
        match self.kept_secs.load(Ordering::Relaxed) {
            0 => KEPT_MAX,
            secs => Duration::from_secs(secs),
        }
    }

    /// Those at hand.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.current.load_full()
    }

    /// They are asked for now. Whoever misses a key is told to wait until they have come, and some time later again.
    pub fn asked(&self, now_secs: u64) {
        self.asked_secs.store(now_secs, Ordering::Relaxed);
        self.missed.store(false, Ordering::Relaxed);
        self.awaited.store(true, Ordering::Relaxed);
    }

    /// These came. Equal content changes nothing, so what was verified with it stays so. A set without any key that can be used is an issuer's
    /// word, too: those at hand are gone.
    ///
    /// # Errors
    /// They are no keys: those at hand stay.
    pub fn publish(&self, text: &[u8]) -> Result<Arc<KeySet>, String> {
        let known = self.current().filter(|known| known.is_of(text));
        let set = match known {
            Some(known) => known,
            None => {
                let set = Arc::new(KeySet::read_any(text)?);
                self.current.store(Some(Arc::clone(&set)));
                set
            }
        };
        self.awaited.store(false, Ordering::Relaxed);
        Ok(set)
    }

    /// They are too old to be believed.
    pub fn expire(&self) {
        self.current.store(None);
    }

    /// Whether somebody missed a key since they were asked for.
    pub fn is_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// A token is signed by a key that is not at hand. Whether that may be because the keys at hand are old; where nobody has asked for newer
    /// ones just now, they are wanted.
    pub(super) fn miss(&self, now_secs: u64) -> bool {
        let asked = self.asked_secs.load(Ordering::Relaxed);
        // A clock that was set back has the last time in the future.
        let old = now_secs < asked || now_secs >= asked.saturating_add(MISSED_PAUSE_SECS);
        if old {
            self.missed.store(true, Ordering::Relaxed);
        }
        old || self.awaited.load(Ordering::Relaxed)
    }

    /// Whether these are the keys at hand.
    pub(super) fn holds(&self, keys: &Arc<KeySet>) -> bool {
        self.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, keys))
    }
}
