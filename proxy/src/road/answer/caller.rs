//! What a request's caller brings along, and whether it may: its session, its patience, its token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::authenticate::{Accepted, TokenVerdict};
use engine::client::ClientFound;
use engine::consumers::CONSUMER_HEADER;
use engine::decide::{Plan, RequestHead, TurnedAway};
use engine::failure::Reason;
use engine::model::{Rule, SessionHome};
use http::{HeaderMap, request};

use super::{Connection, Door, InForce, Short};
use crate::ground::body::Received;
use crate::http::{CLIENT_CERT_HEADER, Caller, Hop, OfHop, Patient, WebForm, inspect, take_patience};
use crate::observe::{Account, Direction};
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

    /// Looks whether a client from outside asks for no more than it may, and says of whoever asks what only this proxy may say; who that is.
    #[inline]
    pub(super) fn introduce(
        &self,
        view: &InForce<D::Listener>,
        (parts, fields): (&mut request::Parts, usize),
        (found, of_hop): (Option<&ClientFound>, OfHop),
    ) -> Result<IpAddr, Short<'static>> {
        if let Some(rules) = self.door.rules(&view.listener) {
            inspect(parts, fields, rules).map_err(|fault| Short::Refused(TurnedAway::of_fault(fault)))?;
        }
        self.door.mark((view, &self.downstream), parts, (found, of_hop));
        if of_hop.consumer && !self.door.believes(&view.snapshot, &self.downstream) {
            parts.headers.remove(CONSUMER_HEADER);
        }
        if of_hop.client_cert && !self.door.believes(&view.snapshot, &self.downstream) {
            parts.headers.remove(CLIENT_CERT_HEADER);
        }
        Ok(found.map_or_else(|| self.downstream.address.ip(), |found| found.address))
    }

    /// Asks the policies.
    #[inline]
    pub(super) fn authorized(
        &self,
        view: &InForce<D::Listener>,
        (head, client): (&RequestHead<'_>, IpAddr),
        token: Option<&Accepted>,
        account: &mut Account,
    ) -> Result<(), Short<'static>> {
        let claims = token.map(|token| &*token.claims);
        let Some(judgement) = self.door.judge(&view.snapshot, (&self.downstream, client), (head, claims)) else { return Ok(()) };
        if !judgement.is_silent() {
            account.judged(&judgement);
        }
        judgement.refusal().map_or(Ok(()), |reason| Err(Short::Denied(reason)))
    }

    /// Judges the token of a call to the application, and takes from the request what the application is not to see.
    pub(super) fn authenticated(
        &self,
        view: &InForce<D::Listener>,
        parts: &mut request::Parts,
    ) -> Result<Option<Arc<Accepted>>, Short<'static>> {
        let rules = view.snapshot.authentication.as_ref().filter(|_| D::DIRECTION == Direction::Inbound);
        let Some(rules) = rules else { return Ok(None) };
        let head = RequestHead::nameless(&parts.method, &parts.uri, &parts.headers);
        let verdict = rules.judge(&head, &mut self.shared.tokens.borrow_mut(), self.shared.wall_secs().into());
        match verdict {
            TokenVerdict::Refused(fault) => {
                tracing::debug!(why = fault.text(), "a token is not believed");
                if fault.reason() == Reason::PolicyUnavailable {
                    self.shared.snapshots.miss_key();
                }
                Err(Short::Decided(fault.reply()))
            }
            verdict => {
                rules.carry_out(&verdict, parts);
                Ok(if let TokenVerdict::Accepted(accepted) = verdict { Some(accepted) } else { None })
            }
        }
    }

    pub(super) fn hop(&self) -> Hop {
        if self.downstream.peer.is_some() { Hop::Inner } else { Hop::First }
    }
}
