//! The way to a Service of the mesh that is told of exchanges.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use engine::authenticate::KeysUri;

use super::Callout;
use crate::observe::{Duplex, ToServices};
use crate::tls::Carries;

/// Added to a draw for the next one, and what mixes it.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Services by the proxy's own calls.
pub struct CalledServices {
    callout: Callout,
    node: String,
    /// Chooses among endpoints.
    draw: AtomicU64,
}

impl CalledServices {
    /// `node`: who this proxy is, as the control plane knows it.
    pub const fn new(callout: Callout, node: String, seed: u64) -> Self {
        Self { callout, node, draw: AtomicU64::new(seed) }
    }
}

#[async_trait]
impl ToServices for CalledServices {
    fn node(&self) -> &str {
        &self.node
    }

    async fn open(&self, url: &str) -> Result<Box<dyn Duplex>, String> {
        let at = KeysUri::read(url).map_err(str::to_owned)?;
        let drawn = self.draw.fetch_add(STEP, Ordering::Relaxed);
        let wire = self.callout.open(&at, Carries::H2, (drawn ^ drawn >> 32).wrapping_mul(STEP)).await;
        Ok(Box::new(wire.map_err(|away| away.to_string())?))
    }
}

impl fmt::Debug for CalledServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CalledServices").field("node", &self.node).finish_non_exhaustive()
    }
}
