//! What guards that are no limits have to say on the answer: it goes with what limits say there.

use super::Counted;
use crate::filter::HeaderOp;

impl Counted {
    /// Notes it.
    pub(in crate::filter::guard) fn say(&mut self, ops: &[HeaderOp]) {
        if !ops.is_empty() {
            self.0.get_or_insert_default().said.extend_from_slice(ops);
        }
    }
}
