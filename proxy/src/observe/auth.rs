//! What came of asking who calls from outside the mesh: one number for each way to prove it and each verdict.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::consumers::AuthMethod;
use engine::filter::guard::Denied;

/// Ways to prove it, and none.
const KINDS: usize = AuthMethod::ALL.len() + 1;
/// Refusals, and acceptance.
const VERDICTS: usize = Denied::ALL.len() + 1;

/// See the module. A consumer is no label: there may be very many.
#[derive(Debug, Default)]
pub struct AuthCounts([[AtomicU64; VERDICTS]; KINDS]);

impl AuthCounts {
    /// Counts one request; `None`: nothing was shown, or nothing refused.
    pub fn count(&self, method: Option<AuthMethod>, denied: Option<Denied>) {
        let kind = method.map_or(KINDS - 1, |method| method as usize);
        let verdict = denied.map_or(VERDICTS - 1, |denied| denied as usize);
        self.0[kind][verdict].fetch_add(1, Ordering::Relaxed);
    }

    /// Kind, verdict and number, as far as there is one.
    pub(super) fn rows(&self) -> Vec<(&'static str, &'static str, u64)> {
        let kinds = AuthMethod::ALL.iter().map(|method| method.text()).chain(["None"]);
        let mut rows = Vec::new();
        for (kind, counts) in kinds.zip(&self.0) {
            let verdicts = Denied::ALL.iter().map(|denied| denied.verdict()).chain(["accepted"]);
            let read = verdicts.zip(counts).map(|(verdict, count)| (kind, verdict, count.load(Ordering::Relaxed)));
            rows.extend(read.filter(|(.., count)| *count > 0));
        }
        rows
    }
}
