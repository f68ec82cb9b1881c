//! A route's policy, run forth on the request and back on the answer. Only stages that run in place exist today, so nothing waits here.

use engine::decide::Plan;
use http::HeaderMap;

/// Before the request is sent.
pub fn forth(plan: &Plan<'_>, headers: &mut HeaderMap) {
    plan.on_request(headers);
}

/// Before the answer goes back.
pub fn back(plan: &Plan<'_>, headers: &mut HeaderMap) {
    plan.on_response(headers);
}
