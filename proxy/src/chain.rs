//! A route's policy, run forth on the request and back on the answer. Only stages that run in place exist today, so nothing waits here.

use engine::decide::Plan;
use engine::model::{Backend, Forward};
use http::HeaderMap;

/// Before the request is sent.
pub fn forth(plan: &Plan<'_>, headers: &mut HeaderMap) {
    plan.on_request(headers);
}

/// Before the answer goes back. In the same order: the backend's stages, then the rule's, as Envoy does.
pub fn back(backend: &Backend, forward: &Forward, headers: &mut HeaderMap) {
    backend.stages.iter().chain(&forward.stages).for_each(|stage| stage.on_response(headers));
}
