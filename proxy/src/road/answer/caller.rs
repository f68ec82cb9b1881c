//! What a request's caller brings along: its session, its patience.

use std::time::Duration;

use engine::client::ClientFound;
use engine::decide::Plan;
use engine::model::{Rule, SessionHome};
use http::{HeaderMap, request};

use super::{Connection, Door, InForce};
use crate::ground::body::Received;
use crate::http::{Caller, Hop, OfHop, Patient, WebForm, take_patience};
use crate::observe::Account;
use crate::road::session::Sticky;

impl<D: Door> Connection<D> {
    /// Where a rule keeps a client's session, and the way there if it has one.
    pub(super) fn session(
        &self,
        view: &InForce<D::Listener>,
        plan: &Plan<'_>,
        headers: &HeaderMap,
    ) -> (Option<Box<Sticky>>, Option<SessionHome>) {
        if let Some(session) = &plan.forward.policy.session
            && let Some(settings) = view.snapshot.settings.as_ref().filter(|settings| !settings.session_key.is_empty())
        {
            let terms = (self.downstream.tls.is_some(), self.shared.wall_secs());
            let (found, led) = Sticky::find(session, plan.forward, headers, settings, terms);
            return (Some(found), led);
        }
        (None, None)
    }

    /// How long the caller waits, and whether it retries.
    pub(super) fn patience(&self, headers: &mut HeaderMap, of_hop: OfHop, waited: Duration) -> Patient {
        if !(of_hop.deadline || of_hop.layered || of_hop.grpc_timeout || of_hop.tracestate) {
            return Patient::default();
        }
        let own = self.door.caller(&self.downstream) == Caller::Application;
        // As of its coming.
        let waited = u64::try_from(waited.as_millis()).unwrap_or(0);
        take_patience(headers, of_hop, (self.hop(), own), || self.shared.unix_ms().saturating_sub(waited))
    }

    /// What a request from outside means for its connection, and what is told of its client.
    #[inline]
    pub(super) fn outside(&self, listener: &D::Listener, (received, found): (&Received, Option<&ClientFound>), account: &mut Account) {
        let Some(rules) = self.door.rules(listener) else { return };
        if let Some(found) = found {
            account.came_for(found.address);
        }
        if self.downstream.tls.is_some() {
            account.says_strictly(rules);
        }
        let lives = &rules.lives;
        if lives.max_requests == 0 && lives.max_age.is_none() {
            return;
        }
        let asked = self.asked.get().saturating_add(1);
        self.asked.set(asked);
        let worn = lives.max_requests > 0 && asked >= lives.max_requests;
        let old = lives.max_age.is_some_and(|age| self.since.elapsed() >= age);
        if (worn || old)
            && let Some(line) = received.line()
        {
            line.be_the_last();
        }
    }

    /// How a browser calls gRPC by a GRPCRoute's rule: what goes on is gRPC. Other routes may lead to servers that know that form themselves.
    #[inline]
    pub(super) fn web(&self, rule: &Rule, parts: &mut request::Parts) -> Option<WebForm> {
        if !D::OUTSIDE {
            return None;
        }
        let form = WebForm::of(&parts.headers).filter(|_| &*rule.source.kind == "GRPCRoute")?;
        form.begin(parts);
        Some(form)
    }

    pub(super) fn hop(&self) -> Hop {
        if self.downstream.peer.is_some() { Hop::Inner } else { Hop::First }
    }
}
