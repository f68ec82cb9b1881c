//! What a request passes on its way to a place, and its answer on the way back: the stages of rule and backend in their order.

use http::{HeaderMap, StatusCode, header};

use super::{Backend, Forward};
use crate::filter::{Answered, Exchange, Filter, Passage, Remote, Resume, Stage, Verdict};

impl Forward {
    /// The gates that a request to this place passes, in their order: the rule's, then the backend's.
    pub(crate) fn gates(&self, place: Option<usize>) -> impl Iterator<Item = &Stage> {
        let own = self.backend(place).map_or(&[][..], |backend| &backend.steps.gates);
        self.policy.steps.gates.iter().chain(own)
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
        let origin = exchange.request.headers.get(header::ORIGIN).filter(|_| shared).cloned();
        Answered::of(origin, self.policy.made_cookie(exchange))
    }

    /// Runs the request side of all stages from one on: gates, until one answers or waits, then changes.
    pub fn forth(&self, place: Option<usize>, from: Resume, exchange: &mut Exchange<'_>) -> Passage {
        for (at, stage) in self.gates(place).enumerate().skip(from.0) {
            let verdict = match stage {
                Stage::Local(filter) => filter.on_request(exchange),
                Stage::Remote(Remote::Delay(delay)) => match delay.wait(exchange) {
                    Some(delay) => return Passage::Wait { delay, next: Resume(at + 1) },
                    None => Verdict::Go,
                },
            };
            match verdict {
                Verdict::Go => {}
                Verdict::Answer(reply) => return Passage::Answered(reply),
                Verdict::Reset => return Passage::Cut,
            }
        }
        for filter in self.changes(place) {
            match filter.on_request(exchange) {
                Verdict::Go => {}
                Verdict::Answer(reply) => return Passage::Answered(reply),
                Verdict::Reset => return Passage::Cut,
            }
        }
        Passage::Through
    }

    /// Runs the response side of all stages over the head of an upstream's answer: changes, then gates.
    pub fn back(&self, place: Option<usize>, answered: &Answered, headers: &mut HeaderMap, _status: StatusCode) {
        self.changes(place).for_each(|filter| filter.on_response(answered, headers));
        for stage in self.gates(place) {
            match stage {
                Stage::Local(filter) => filter.on_response(answered, headers),
                Stage::Remote(Remote::Delay(_)) => {}
            }
        }
        if let Some(cookie) = answered.cookie() {
            headers.append(header::SET_COOKIE, cookie.clone());
        }
    }
}
