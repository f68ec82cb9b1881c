//! What a request becomes that stays open: a place among what is asked again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::claims::Claims;
use engine::filter::guard::Found;
use http::request;

use super::{Connection, Door, InForce};
use crate::http::Upgrade;
use crate::road::standing::{AskedOutside, Stand};

impl<D: Door> Connection<D> {
    /// What a request begins with that asks to become something else: who comes from outside finds its place when all guards have let it on, which
    /// of a bare way is now.
    #[inline]
    pub(super) fn upgrading(
        &self,
        (view, client): (&InForce<D::Listener>, IpAddr),
        (parts, claims): (&request::Parts, Option<&Arc<Claims>>),
        (upgrade, bare): (Upgrade, bool),
    ) -> (Found, Option<Box<Stand>>) {
        if upgrade == Upgrade::No {
            return (Found::default(), None);
        }
        if !D::OUTSIDE {
            return (Found::default(), self.door.stand(&self.shared, &view.snapshot, &self.downstream, (parts, claims)));
        }
        let mut found = Found::keeping(parts);
        let stand = if bare { self.stands_outside(&mut found, client) } else { None };
        (found, stand)
    }

    /// A place for a caller from outside the mesh that may stay for as long as what it showed holds, and whatever let it in does. `None`: it does
    /// not come from outside.
    pub(super) fn stands_outside(&self, found: &mut Found, client: IpAddr) -> Option<Box<Stand>> {
        let head = found.take_head()?;
        let who = found.identified().cloned().map(Box::new);
        let until = who.as_ref().and_then(|who| who.until_secs);
        let holds = until.map(|until| Duration::from_secs(until.saturating_sub(self.shared.wall_secs().into())));
        let rejudge = self.door.rejudge((&self.downstream, client), AskedOutside { head, who })?;
        Some(Box::new(self.shared.standing.enter_outside(&self.downstream, rejudge, holds, &self.shared.reader.load())))
    }
}
