//! Who calls from outside, as far as guards have found out.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Method, Uri, request};

use super::denied::Denied;
use crate::authorize::Ruling;
use crate::callout::CalloutTold;
use crate::consumers::{AuthMethod, Digest, Identified, Password};

/// Who calls, and why not; nothing for most requests.
#[derive(Clone, Debug, Default)]
pub struct Found {
    who: Option<Box<Identified>>,
    denied: Option<Denied>,
    answer: Option<Box<(Digest, bool)>>,
    ruling: Option<Arc<Ruling>>,
    /// How somebody tried to prove who it is, and did not.
    shown: Option<AuthMethod>,
    told: bool,
    /// Of a request that may become something that stays open.
    head: Option<Box<KeptHead>>,
    /// What a service answered that is asked by the guard whose turn it is.
    callout: Option<Box<CalloutTold>>,
    /// It goes on although a service did not say who calls.
    unchecked: bool,
}

/// A request's head as policies were asked about it: they are asked again of what became of it.
#[derive(Clone)]
pub struct KeptHead {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// Its fields.
    pub headers: HeaderMap,
}

impl fmt::Debug for KeptHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptHead").field("method", &self.method).finish_non_exhaustive()
    }
}

impl KeptHead {
    fn of(request: &request::Parts) -> Box<Self> {
        Box::new(Self { method: request.method.clone(), uri: request.uri.clone(), headers: request.headers.clone() })
    }
}

impl Found {
    /// Somebody; what was found before does not count any more.
    pub(crate) fn identify(&mut self, identified: Identified) {
        *self = Self { who: Some(Box::new(identified)), head: self.head.take(), unchecked: self.unchecked, ..Self::default() };
    }

    /// Nobody yet; the request's head is kept, since it may become something that stays open.
    pub fn keeping(request: &request::Parts) -> Self {
        Self { head: Some(KeptHead::of(request)), ..Self::default() }
    }

    /// All guards have let it on: so was it judged, without what they took out of it.
    pub(crate) fn judged(&mut self, request: &request::Parts) {
        if let Some(head) = &mut self.head {
            *head = KeptHead::of(request);
        }
    }

    /// The head that was kept.
    pub fn take_head(&mut self) -> Option<Box<KeptHead>> {
        self.head.take()
    }

    /// Who, if anybody.
    pub fn identified(&self) -> Option<&Identified> {
        self.who.as_deref()
    }

    /// Why nobody is let on.
    pub const fn denied(&self) -> Option<Denied> {
        self.denied
    }

    /// What came of a question: the guard that asked is asked again.
    pub fn tell(&mut self, password: &Password, good: bool) {
        self.answer = Some(Box::new((password.key, good)));
    }

    /// What came of a question to a service: the guard that asked is asked again.
    pub fn tell_callout(&mut self, told: CalloutTold) {
        self.callout = Some(Box::new(told));
    }

    pub(super) fn take_callout(&mut self) -> Option<CalloutTold> {
        self.callout.take().map(|told| *told)
    }

    pub(super) fn go_on_unchecked(&mut self) {
        self.unchecked = true;
    }

    pub(super) const fn is_unchecked(&self) -> bool {
        self.unchecked
    }

    /// There was no room to find something out.
    pub fn overflow(&mut self) {
        self.denied = Some(Denied::Overflow);
    }

    /// The rule that denies it, or would.
    pub fn ruling(&self) -> Option<&Arc<Ruling>> {
        self.ruling.as_ref()
    }

    pub(super) fn note(&mut self, ruling: Option<Arc<Ruling>>) {
        self.ruling = ruling;
    }

    pub(super) fn answer(&self) -> Option<(Digest, bool)> {
        self.answer.as_deref().copied()
    }

    /// How somebody tried to prove who it is, and did not.
    pub const fn shown(&self) -> Option<AuthMethod> {
        self.shown
    }

    /// Whether there is something that was not told yet; it counts as told then.
    pub fn is_news(&mut self) -> bool {
        (self.who.is_some() || self.denied.is_some()) && !std::mem::replace(&mut self.told, true)
    }

    pub(super) fn deny(&mut self, why: Denied) {
        self.denied = Some(why);
    }

    pub(super) fn refuse(&mut self, shown: Option<AuthMethod>, why: Denied) {
        (self.shown, self.denied) = (shown, Some(why));
    }
}
