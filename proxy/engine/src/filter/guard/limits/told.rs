//! `RateLimit-Policy`: which limits a client hears of. Those that count every request are one text, made once; each of the others has its own, for
//! requests that it counts: nobody is told of limits that others have.

use std::sync::Arc;

use http::HeaderValue;

use super::key::Seen;
use super::{Count, IfMissing, Limit, LimitGuard, ObjectLimits};
use crate::limit::policy_item;

/// Of the limits that count every request.
pub(super) fn policy(objects: &[Arc<ObjectLimits>]) -> Option<HeaderValue> {
    let limits = objects.iter().filter(|object| object.told.draft).flat_map(|object| &object.limits);
    let items: Vec<String> = limits.filter(|limit| !limit.dry_run && limit.policy.is_none()).map(Limit::told).collect();
    HeaderValue::try_from(items.join(", ")).ok().filter(|text| !text.is_empty())
}

impl LimitGuard {
    /// Notes what the answer is to say; `counts`: whether a limit, by its object and place there, counts the request.
    pub(super) fn tell_policies(&self, count: &mut Count, counts: impl Fn(&Arc<ObjectLimits>, usize, &Limit) -> bool) {
        count.policies.extend(self.policy.clone());
        for object in self.objects.iter().filter(|object| object.told.draft) {
            for (place, limit) in object.limits.iter().enumerate().filter(|(_, limit)| !limit.dry_run) {
                count.policies.extend(limit.policy.as_ref().filter(|_| counts(object, place, limit)).cloned());
            }
        }
    }
}

impl Limit {
    /// The same with its own part, if it does not count every request.
    pub(super) fn with_policy(self) -> Self {
        let some = self.when.is_some() || self.missing == IfMissing::Skip;
        Self { policy: if some { HeaderValue::try_from(self.told()).ok() } else { None }, ..self }
    }

    /// Whether it counts this request.
    pub(super) fn counts_this(&self, seen: &Seen<'_, '_>) -> bool {
        self.when.as_ref().is_none_or(|when| seen.call(|call| when.holds(call)))
            && (self.missing != IfMissing::Skip || seen.key(&self.name, &self.key, false).is_ok())
    }

    fn told(&self) -> String {
        let (quota, secs) = self.numbers.nominal();
        policy_item(&self.name, quota, secs)
    }
}
