//! A request on its way through its rule's stages.

use std::net::IpAddr;

use engine::filter::guard::{Denied, Watch};
use engine::filter::{Called, Exchange, Passage, Resume};
use engine::model::Forward;
use http::request;

use super::{Connection, Door};
use crate::observe::Account;
use crate::road::asking;
use crate::road::journey::Leg;

impl<D: Door> Connection<D> {
    /// What stages see of a request.
    pub(super) fn exchange<'e>(
        &'e self,
        (request, client): (&'e mut request::Parts, IpAddr),
        draw: u64,
        account: &Account,
    ) -> Exchange<'e> {
        Exchange {
            request,
            caller: self.downstream.peer.as_deref().map(|peer| &*peer.identity),
            address: client,
            called: Called { port: self.downstream.local.port(), tls: self.downstream.tls.is_some() },
            watch: None,
            now: self.shared.moment(account.started()),
            draw,
        }
    }

    /// How far the gates of a way let a request, and who it is that calls, as its guards find out.
    pub(super) fn gates<'f>(
        &self,
        parts: &mut request::Parts,
        (forward, place): (&'f Forward, Option<usize>),
        (from, leg): (Resume, &mut Leg),
        account: &mut Account,
    ) -> Passage<'f> {
        if !forward.is_guarded() {
            return forward.forth(place, from, &mut self.exchange((parts, leg.client), leg.draw, account));
        }
        let book = self.view.borrow().snapshot.consumers.load();
        let passage = {
            let (mut tokens, mut verified) = (self.shared.tokens.borrow_mut(), self.shared.verified.borrow_mut());
            let mut exchange = self.exchange((parts, leg.client), leg.draw, account);
            exchange.watch = Some(Watch {
                book: &book,
                tokens: &mut tokens,
                peer: self.door.peer(&self.downstream),
                port: self.downstream.address.port(),
                certificate: self.downstream.certificate.as_deref(),
                verified: &mut verified,
                wall_secs: self.shared.wall_secs().into(),
                found: &mut leg.found,
                counted: &mut leg.counted,
            });
            forward.forth(place, from, &mut exchange)
        };
        for ask in leg.counted.aside() {
            self.shared.snapshots.limit_questions().aside(ask);
        }
        if let Some(ask) = leg.found.take_refresh() {
            asking::refresh(&self.shared, ask);
        }
        if leg.found.denied() == Some(Denied::NoKeys) {
            self.shared.snapshots.miss_key();
        }
        if !matches!(passage, Passage::Ask { .. }) {
            account.identified(&mut leg.found);
        }
        // After who called: a log's words are told in their order.
        if let Some(limit) = leg.counted.refused() {
            account.limited(limit);
        }
        passage
    }
}
