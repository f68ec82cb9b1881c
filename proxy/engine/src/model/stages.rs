//! What a request passes on its way to a place, and its answer on the way back: the stages of rule and backend in their order.

use http::{HeaderMap, header};

use super::{Backend, Forward};
use crate::filter::cors::preflight;
use crate::filter::guard::Passed;
use crate::filter::{Answered, Exchange, Filter, Passage, Remote, Resume, Stage, Verdict};

impl Forward {
    /// The gates that a request to this place passes, in their order: the rule's, then the backend's.
    pub(crate) fn gates(&self, place: Option<usize>) -> impl Iterator<Item = &Stage> {
        let own = self.backend(place).map_or(&[][..], |backend| &backend.steps.gates);
        self.policy.steps.gates.iter().chain(own)
    }

    /// Parameters of queries in which its policies look for credentials: nothing for a log.
    pub fn secret_parameters(&self) -> Vec<&str> {
        let guards = self.gates(None).filter_map(|stage| if let Stage::Guard(guard) = stage { Some(guard) } else { None });
        guards.flat_map(|guard| guard.secret_parameters()).collect()
    }

    /// What alters a request to this place and its answer, in order: the backend's, then the rule's, as Envoy does.
    pub(crate) fn changes(&self, place: Option<usize>) -> impl Iterator<Item = &Filter> {
        let own = self.backend(place).map_or(&[][..], |backend| &backend.steps.changes);
        own.iter().chain(&self.policy.steps.changes)
    }

    fn backend(&self, place: Option<usize>) -> Option<&Backend> {
        self.backends.get(place?)
    }

    /// What the answer to a request will need of it. To be asked before [`Forward::forth`], which may change the request.
    pub fn answered(&self, exchange: &Exchange<'_>) -> Answered {
        let shared = self.is_cross_origin();
        if !shared && self.policy.hash.is_empty() {
            return Answered::default();
        }
        let request = &*exchange.request;
        let origin = request.headers.get(header::ORIGIN).filter(|_| shared).cloned();
        let asks = shared && preflight(&request.method, &request.headers).is_some();
        Answered::of(origin, self.policy.made_cookie(exchange), asks)
    }

    /// Runs the request side of all stages from one on: gates, until one answers or waits, then changes.
    pub fn forth(&self, place: Option<usize>, from: Resume, exchange: &mut Exchange<'_>) -> Passage<'_> {
        for (at, stage) in self.gates(place).enumerate().skip(from.0) {
            let ends = match stage {
                Stage::Local(filter) => run(filter, exchange),
                Stage::Remote(Remote::Delay(fault)) => {
                    fault.wait(exchange).map(|delay| Passage::Wait { delay, policy: fault.policy(), next: Resume(at + 1) })
                }
                Stage::Guard(guard) => match guard.on_request(exchange) {
                    Passed::On => None,
                    Passed::Answered(reply) => Some(Passage::Answered(reply)),
                    Passed::Asks(question) => Some(Passage::Ask { question, next: Resume(at) }),
                },
            };
            if let Some(passage) = ends {
                return passage;
            }
        }
        if let Some(watch) = &mut exchange.watch {
            watch.found.judged(exchange.request);
        }
        self.changes(place).find_map(|filter| run(filter, exchange)).unwrap_or(Passage::Through)
    }

    /// Runs the response side of all stages over the head of an upstream's answer: changes, then gates.
    pub fn back(&self, place: Option<usize>, answered: &Answered, headers: &mut HeaderMap) {
        self.changes(place).for_each(|filter| filter.on_response(answered, headers));
        for stage in self.gates(place) {
            match stage {
                Stage::Local(filter) => filter.on_response(answered, headers),
                Stage::Remote(Remote::Delay(_)) | Stage::Guard(_) => {}
            }
        }
        if let Some(cookie) = answered.cookie() {
            headers.append(header::SET_COOKIE, cookie.clone());
        }
    }

    /// Says on an answer of the mesh's own who may see it, as on an upstream's: a page of another origin is to learn its status, too.
    /// Nothing else is done to it, and nothing to the answer of a preflight, which has said it all.
    pub fn show(&self, place: Option<usize>, answered: &Answered, headers: &mut HeaderMap) {
        if !self.is_cross_origin() || answered.is_preflight() {
            return;
        }
        for stage in self.gates(place) {
            if let Stage::Local(filter @ Filter::Cors(_)) = stage {
                filter.on_response(answered, headers);
            }
        }
    }
}

/// How a passage ends at a filter, if it does.
fn run<'f>(filter: &'f Filter, exchange: &mut Exchange<'_>) -> Option<Passage<'f>> {
    Some(match (filter.on_request(exchange), filter) {
        (Verdict::Go, _) => return None,
        (Verdict::Answer(reply), Filter::Abort(abort)) => Passage::Aborted { reply, policy: abort.policy() },
        (Verdict::Answer(reply), _) => Passage::Answered(reply),
        (Verdict::Reset, Filter::Abort(abort)) => Passage::Cut { policy: abort.policy() },
        (Verdict::Reset, _) => Passage::Cut { policy: "" },
    })
}
