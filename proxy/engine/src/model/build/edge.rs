//! What guards a rule at an edge, out of its policy (`edge.proto`).

use std::sync::Arc;

use proto::mesh::EdgePolicy;

use super::authentication::Cells;
use crate::edge::{ApiKeys, Guard, Identify};
use crate::filter::Stage;
use crate::rejected::Wrong;

/// Guards in their fixed order (`edge-kinds.md`), which is said here and nowhere else: 5 maintenance, 6 limits that guard the guards,
/// 7 who calls, 8 whether they may, 9 rates and quotas. CORS (4) goes before all of them: it is the rule's own filter.
pub(super) fn guards(raw: &EdgePolicy, _cells: &mut Cells) -> Result<Vec<Stage>, Wrong> {
    let EdgePolicy { unavailable, api_keys } = raw;
    if !unavailable.is_empty() {
        return Ok(vec![Stage::Guard(Guard::Unavailable(unavailable.as_str().into()))]);
    }
    let keys = api_keys.as_ref().map(ApiKeys::compile).transpose().map_err(|wrong| wrong.within("api_keys"))?;
    let identify = Identify::new(keys).map(|identify| Stage::Guard(Guard::Identify(Arc::new(identify))));
    Ok(identify.into_iter().collect())
}
