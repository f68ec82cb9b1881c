//! What guards a rule at an edge, out of its policy (`edge.proto`).

use std::sync::Arc;

use proto::mesh::{EdgeLimits, EdgePolicy};

use super::authentication::Cells;
use crate::edge::{self, ApiKeys, Guard, Identify, LimitStage, Limits};
use crate::filter::Stage;
use crate::limit::Memories;
use crate::rejected::Wrong;

/// Guards in their fixed order (`edge-kinds.md`), which is said here and nowhere else: 5 maintenance, 6 limits that guard the guards,
/// 7 who calls, 8 whether they may, 9 rates and quotas. CORS (4) goes before all of them: it is the rule's own filter.
pub(super) fn guards(raw: &EdgePolicy, (_cells, memories): (&mut Cells, &Memories)) -> Result<Vec<Stage>, Wrong> {
    let EdgePolicy { unavailable, api_keys, limits } = raw;
    if !unavailable.is_empty() {
        return Ok(vec![Stage::Guard(Guard::Unavailable(unavailable.as_str().into()))]);
    }
    let keys = api_keys.as_ref().map(ApiKeys::compile).transpose().map_err(|wrong| wrong.within("api_keys"))?;
    let identify = Identify::new(keys).map(|identify| Stage::Guard(Guard::Identify(Arc::new(identify))));
    let early = limited(limits, LimitStage::BeforeAuth, memories)?;
    let late = limited(limits, LimitStage::AfterAuth, memories)?;
    Ok(early.into_iter().chain(identify).chain(late).collect())
}

/// The limits of one stage, the narrowest object first.
fn limited(raw: &[EdgeLimits], stage: LimitStage, memories: &Memories) -> Result<Option<Stage>, Wrong> {
    let of_stage = |(_, raw): &(usize, &EdgeLimits)| raw.before_auth == (stage == LimitStage::BeforeAuth);
    let read = |(index, raw): (usize, &EdgeLimits)| {
        edge::object(raw, memories).map(Arc::new).map_err(|wrong| wrong.within(format!("limits[{index}]")))
    };
    let objects = raw.iter().enumerate().filter(of_stage).map(read).collect::<Result<_, _>>()?;
    Ok(Limits::new(objects).map(|limits| Stage::Guard(Guard::Limit(Arc::new(limits), stage))))
}
