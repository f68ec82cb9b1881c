//! Who calls: any of what is attached. A credential that is there and bad is 401 at once and tried nowhere else; none at all is 401, unless
//! everything that is attached is optional.

use std::net::SocketAddr;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::api_key::{ApiKeys, Fill};
use super::book::Digest;
use super::found::{CONSUMER_HEADER, Identified};
use super::{Passed, Watch, unavailable};
use crate::authorize::{Call, Own};
use crate::failure::{LocalReply, Reason};
use crate::filter::Exchange;
use crate::matching::RequestHead;

/// gRPC's code (<https://grpc.io/docs/guides/status-codes>).
const GRPC_UNAUTHENTICATED: u8 = 16;

/// Why a caller is not let on. Who is told learns less than the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "`text` says what each is")]
pub enum Denied {
    Nothing,
    Several,
    TooLong,
    Malformed,
    Unknown,
    Elsewhere,
    Disabled,
    Expired,
    TooEarly,
    Scope,
    Value,
}

impl Denied {
    /// Every one, in order; `denied as usize` is its place.
    pub const ALL: [Self; 11] = [
        Self::Nothing,
        Self::Several,
        Self::TooLong,
        Self::Malformed,
        Self::Unknown,
        Self::Elsewhere,
        Self::Disabled,
        Self::Expired,
        Self::TooEarly,
        Self::Scope,
        Self::Value,
    ];

    /// In words, for logs and explanations.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Nothing => "no credential is shown",
            Self::Several => "different credentials are shown at one place",
            Self::TooLong => "the credential is too long",
            Self::Malformed => "the credential is malformed",
            Self::Unknown => "nobody has that credential",
            Self::Elsewhere => "the consumer is none that counts here",
            Self::Disabled => "the consumer is disabled",
            Self::Expired => "the credential, or its consumer, has expired",
            Self::TooEarly => "the credential does not hold yet",
            Self::Scope => "the credential is not good for this: a scope is missing",
            Self::Value => "an expression for a header came to nothing",
        }
    }

    /// As the metric spells it.
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Nothing => "missing",
            Self::Several => "several",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Elsewhere => "elsewhere",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::TooEarly => "too_early",
            Self::Scope => "scope",
            Self::Value => "value",
        }
    }
}

/// All that says who calls a rule, and what is asked of whom.
#[derive(Debug)]
pub struct Identify {
    keys: Option<ApiKeys>,
    /// A request without any credential goes on.
    optional: bool,
    /// Headers that are filled: whatever a caller says there goes.
    filled: Vec<HeaderName>,
    /// What is asked for, of who shows nothing good.
    challenges: Vec<HeaderValue>,
}

/// How a credential was shown, for what becomes of it.
enum Way {
    Key(Digest),
}

impl Identify {
    /// `None`: nobody asks who calls.
    pub(crate) fn new(keys: Option<ApiKeys>) -> Option<Self> {
        keys.as_ref()?;
        let optional = keys.iter().all(|keys| keys.optional);
        let mut filled: Vec<HeaderName> = keys.iter().flat_map(|keys| &keys.fills).map(|fill| fill.name.clone()).collect();
        filled.push(CONSUMER_HEADER);
        let challenges = keys.iter().map(ApiKeys::challenge).collect();
        Some(Self { keys, optional, filled, challenges })
    }

    pub(super) fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        unsay(&mut exchange.request.headers, &self.filled);
        let Some(watch) = &mut exchange.watch else { return Passed::Answered(Box::new(unavailable())) };
        let head = RequestHead::nameless(&exchange.request.method, &exchange.request.uri, &exchange.request.headers);
        let (identified, way) = match self.who(&head, watch) {
            Ok(Some(found)) => found,
            Ok(None) if self.optional => return Passed::On,
            Ok(None) => return self.denied(watch, Denied::Nothing),
            Err(denied) => return self.denied(watch, denied),
        };
        *watch.found = super::Found::of(identified);
        match self.carry_out(exchange, &way) {
            Ok(()) => Passed::On,
            Err(_) => Passed::Answered(Box::new(LocalReply { status: http::StatusCode::INTERNAL_SERVER_ERROR, ..unavailable() })),
        }
    }

    /// Asks one after the other.
    fn who(&self, head: &RequestHead<'_>, watch: &Watch<'_>) -> Result<Option<(Identified, Way)>, Denied> {
        if let Some(keys) = &self.keys
            && let Some((found, digest)) = keys.judge(head, watch.book, watch.wall_secs, false)?
        {
            return Ok(Some((found, Way::Key(digest))));
        }
        Ok(None)
    }

    /// Takes out what the backend is not to see, and says what it is to know.
    fn carry_out(&self, exchange: &mut Exchange<'_>, way: &Way) -> Result<(), Denied> {
        let fills: &[Fill] = match way {
            Way::Key(_) => self.keys.as_ref().map_or(&[], |keys| &keys.fills),
        };
        let mut values = Vec::new();
        if !fills.is_empty() {
            let found = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
            let head = RequestHead::new(&exchange.request.method, &exchange.request.uri, &exchange.request.headers);
            let call = Call {
                peer: None,
                workload: "",
                source: SocketAddr::new(exchange.address, 0),
                port: exchange.called.port,
                head: Some(&head),
                claims: found.and_then(|found| found.claims.as_deref()),
                auth: found,
                own: Own::default(),
            };
            for fill in fills {
                values.push((fill.name.clone(), fill.of(&call)?));
            }
        }
        match way {
            Way::Key(digest) => {
                if let Some(keys) = &self.keys {
                    keys.strip(exchange.request, digest);
                }
            }
        }
        let headers = &mut exchange.request.headers;
        values.into_iter().for_each(|(name, value)| _ = headers.insert(name, value));
        let found = exchange.watch.as_ref().and_then(|watch| watch.found.identified());
        if let Some(told) = found.and_then(Identified::credential).and_then(|credential| credential.told.as_ref()) {
            headers.insert(CONSUMER_HEADER, told.clone());
        }
        Ok(())
    }

    fn denied(&self, watch: &mut Watch<'_>, why: Denied) -> Passed {
        watch.found.deny(why);
        let reason = if why == Denied::Scope { Reason::Denied } else { Reason::Unauthenticated };
        let mut reply = LocalReply::of(reason);
        if reason == Reason::Unauthenticated {
            reply.grpc_status = Some(GRPC_UNAUTHENTICATED);
            reply.headers = self.challenges.iter().map(|challenge| (WWW_AUTHENTICATE, challenge.clone())).collect();
        }
        Passed::Answered(Box::new(reply))
    }

    /// The name that `explain` prints.
    #[allow(clippy::unused_self, reason = "there will be more than one")]
    pub(super) fn name(&self) -> &'static str {
        "api_key"
    }

    /// What it does, in words.
    pub(super) fn story(&self) -> String {
        self.keys.iter().map(ApiKeys::story).collect::<Vec<_>>().join("; ")
    }
}

/// Takes off what a caller says in headers that are the edge's to fill; names with `_` for `-` are the same to many applications.
fn unsay(headers: &mut HeaderMap, filled: &[HeaderName]) {
    for name in filled {
        headers.remove(name);
    }
    if !headers.keys().any(|name| name.as_str().contains('_')) {
        return;
    }
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let alike = |a: &HeaderName, b: &HeaderName| a.as_str().bytes().map(plain).eq(b.as_str().bytes().map(plain));
    let twins: Vec<HeaderName> = headers.keys().filter(|name| filled.iter().any(|filled| alike(filled, name))).cloned().collect();
    for twin in twins {
        headers.remove(twin);
    }
}
