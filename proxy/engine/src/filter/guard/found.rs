//! Who calls from outside, as far as guards have found out.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Method, Uri, request};

use super::denied::Denied;
use crate::authorize::Ruling;
use crate::callout::CalloutTold;
use crate::consumers::{AuthMethod, Digest, Identified, Password};
use crate::login::{LoginAsk, SessionTold};

/// Who calls, and why not; nothing for most requests, and no more than a word of theirs.
#[derive(Clone, Debug, Default)]
pub struct Found(Option<Box<Findings>>);

#[derive(Clone, Debug, Default)]
struct Findings {
    who: Option<Identified>,
    denied: Option<Denied>,
    answer: Option<(Digest, bool)>,
    ruling: Option<Arc<Ruling>>,
    /// How somebody tried to prove who it is, and did not.
    shown: Option<AuthMethod>,
    told: bool,
    /// Of a request that may become something that stays open.
    head: Option<Box<KeptHead>>,
    /// What a service answered that is asked by the guard whose turn it is.
    callout: Option<CalloutTold>,
    /// It goes on although a service did not say whose token that is.
    unchecked: Option<Digest>,
    /// What refreshes the session that says who calls, beside the road.
    refresh: Option<Arc<LoginAsk>>,
    /// What came of asking whoever keeps the session.
    session: Option<SessionTold>,
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
        let Findings { who, denied, answer, ruling, shown, told, head: _, callout, unchecked: _, refresh: _, session } = self.findings();
        (*who, *denied, *answer, *ruling, *shown, *told, *callout, *session) =
            (Some(identified), None, None, None, None, false, None, None);
    }

    /// Nobody yet; the request's head is kept, since it may become something that stays open.
    pub fn keeping(request: &request::Parts) -> Self {
        Self(Some(Box::new(Findings { head: Some(KeptHead::of(request)), ..Findings::default() })))
    }

    /// All guards have let it on: so was it judged, without what they took out of it.
    pub(crate) fn judged(&mut self, request: &request::Parts) {
        if let Some(head) = self.0.as_mut().and_then(|findings| findings.head.as_mut()) {
            *head = KeptHead::of(request);
        }
    }

    /// The head that was kept.
    pub fn take_head(&mut self) -> Option<Box<KeptHead>> {
        self.0.as_mut()?.head.take()
    }

    /// Who, if anybody.
    pub fn identified(&self) -> Option<&Identified> {
        self.0.as_ref()?.who.as_ref()
    }

    /// Why nobody is let on.
    pub fn denied(&self) -> Option<Denied> {
        self.0.as_ref()?.denied
    }

    /// What came of a question: the guard that asked is asked again.
    pub fn tell(&mut self, password: &Password, good: bool) {
        self.findings().answer = Some((password.key, good));
    }

    /// What came of a question to a service: the guard that asked is asked again.
    pub fn tell_callout(&mut self, told: CalloutTold) {
        self.findings().callout = Some(told);
    }

    pub(super) fn take_callout(&mut self) -> Option<CalloutTold> {
        self.0.as_mut()?.callout.take()
    }

    /// What came of asking whoever keeps sessions: the guard that asked is asked again.
    pub fn tell_session(&mut self, told: SessionTold) {
        self.findings().session = Some(told);
    }

    pub(super) fn take_session(&mut self) -> Option<SessionTold> {
        self.0.as_mut()?.session.take()
    }

    /// What refreshes the session that says who calls; nothing waits for it.
    pub fn take_refresh(&mut self) -> Option<Arc<LoginAsk>> {
        self.0.as_mut()?.refresh.take()
    }

    pub(super) fn refreshes(&mut self, ask: LoginAsk) {
        self.findings().refresh = Some(Arc::new(ask));
    }

    pub(super) fn go_on_unchecked(&mut self, token: Digest) {
        self.findings().unchecked = Some(token);
    }

    pub(super) fn is_unchecked(&self) -> bool {
        self.unchecked().is_some()
    }

    /// What the token is known by that nobody could be asked about.
    pub(super) fn unchecked(&self) -> Option<Digest> {
        self.0.as_ref()?.unchecked
    }

    /// There was no room to find something out.
    pub fn overflow(&mut self) {
        self.deny(Denied::Overflow);
    }

    /// The rule that denies it, or would.
    pub fn ruling(&self) -> Option<&Arc<Ruling>> {
        self.0.as_ref()?.ruling.as_ref()
    }

    pub(super) fn note(&mut self, ruling: Option<Arc<Ruling>>) {
        if ruling.is_some() || self.0.is_some() {
            self.findings().ruling = ruling;
        }
    }

    pub(super) fn answer(&self) -> Option<(Digest, bool)> {
        self.0.as_ref()?.answer
    }

    /// How somebody tried to prove who it is, and did not.
    pub fn shown(&self) -> Option<AuthMethod> {
        self.0.as_ref()?.shown
    }

    /// Whether there is something that was not told yet; it counts as told then.
    pub fn is_news(&mut self) -> bool {
        let Some(findings) = &mut self.0 else { return false };
        (findings.who.is_some() || findings.denied.is_some()) && !std::mem::replace(&mut findings.told, true)
    }

    pub(super) fn deny(&mut self, why: Denied) {
        self.findings().denied = Some(why);
    }

    pub(super) fn refuse(&mut self, shown: Option<AuthMethod>, why: Denied) {
        let findings = self.findings();
        (findings.shown, findings.denied) = (shown, Some(why));
    }

    fn findings(&mut self) -> &mut Findings {
        self.0.get_or_insert_default()
    }
}
