//! Who a request says that it is from: its token (JWT, RFC 7519) is found, judged by the rules of its issuer, and taken out or passed on; its
//! claims go to whoever judges by them, and into headers.
//!
//! [`Authentication::judge`] decides, [`Authentication::carry_out`] does. A signature is verified once per token and worker: [`Remembered`]
//! holds what was verified, for as long as the token and the keys hold.

mod cell;
mod fault;
mod fills;
mod id_token;
mod keys;
mod logout_token;
mod places;
mod refresh;
mod remembered;
#[cfg(test)]
pub(crate) mod tests;
mod token;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, request};

use crate::claims::Claims;
use crate::matching::RequestHead;

pub use cell::{KEPT_MAX, KeyCell, KeysUri, MISSED_PAUSE_SECS};
pub use fault::TokenFault;
pub use fills::claim_header;
pub use id_token::{IdTokenFault, IdTokenTerms, believed, id_token};
pub use keys::{KEY_SET_BYTES_MAX, KEYS_MAX, KeySet};
pub use logout_token::{LogoutFault, LogoutSaid, logout_token};
pub use places::PREFIX_BYTES_MAX;
pub(crate) use places::TokenPlace;
use places::{RuleBits, Shown};
pub use refresh::{FRESH_MAX, FRESH_MIN, Refresh, fresh_for};
pub use remembered::{REMEMBERED_BYTES_MAX, Remembered};
pub use token::TOKEN_BYTES_MAX;
use token::Token;
pub(crate) use token::plain_type;

/// Most rules of one workload.
pub const TOKEN_RULES_MAX: usize = RuleBits::BITS as usize;
/// Longest value of a header that a claim fills, in bytes.
const CLAIM_HEADER_BYTES_MAX: usize = 4096;

/// All that a workload demands of tokens. A request without any passes: that there is one is for authorization to demand.
#[derive(Debug, Default)]
pub struct Authentication {
    rules: Vec<TokenRule>,
    places: Vec<(TokenPlace, RuleBits)>,
    /// Headers that claims fill: whatever a caller says there goes.
    filled: Vec<HeaderName>,
    /// Some of them have a `_`.
    underscored: bool,
    /// Stamp of the content, unique in this process.
    content: u64,
    /// What was sent cannot be carried out: nothing is let in.
    broken: bool,
}

/// How tokens of one issuer are judged, by one object.
#[derive(Debug)]
pub struct TokenRule {
    /// `NAMESPACE/NAME` of the object.
    pub policy: Arc<str>,
    pub(crate) issuer: Arc<str>,
    pub(crate) audiences: Vec<String>,
    pub(crate) keys: Keys,
    /// Whether the application sees the token, too.
    pub(crate) forward: bool,
    /// Path of a claim, and the header that it fills.
    pub(crate) fills: Vec<(String, HeaderName)>,
    pub(crate) skew: Duration,
    /// Header `typ`, in lower case and without "application/"; none: any.
    pub(crate) types: Vec<Box<str>>,
}

/// Where a rule's keys are.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    /// In the rule itself.
    Given(Arc<KeySet>),
    /// Fetched.
    Fetched(Arc<KeyCell>),
}

/// A token that holds.
#[derive(Debug)]
pub struct Accepted {
    /// What it says.
    pub claims: Arc<Claims>,
    token: Box<[u8]>,
    rule: usize,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Unix time from which on it does not hold any more.
    until_secs: u64,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum TokenVerdict {
    /// It shows no token.
    Without,
    /// It shows one that holds.
    Accepted(Arc<Accepted>),
    /// It is answered here.
    Refused(TokenFault),
}

impl Authentication {
    /// `withheld`: where a token that no rule accepts is refused, too, and further headers in which a caller says nothing.
    pub(crate) fn new(rules: Vec<(TokenRule, Vec<TokenPlace>)>, withheld: (Vec<TokenPlace>, Vec<HeaderName>), content: u64) -> Self {
        let (places, filled) = withheld;
        let places = places.into_iter().map(|place| (place, 0)).collect();
        let mut authentication = Self { content, places, filled, ..Self::default() };
        for (number, (rule, places)) in rules.into_iter().enumerate() {
            let bit = 1 << number;
            for place in places {
                match authentication.places.iter_mut().find(|(known, _)| *known == place) {
                    Some((_, rules)) => *rules |= bit,
                    None => authentication.places.push((place, bit)),
                }
            }
            for (_, header) in &rule.fills {
                if !authentication.filled.contains(header) {
                    authentication.filled.push(header.clone());
                }
            }
            authentication.rules.push(rule);
        }
        authentication.underscored = authentication.filled.iter().any(|header| header.as_str().contains('_'));
        authentication
    }

    /// In place of what was sent and cannot be carried out, where nothing good was sent before: every request is answered 503.
    pub(crate) fn broken() -> Self {
        Self { broken: true, ..Self::default() }
    }

    /// Whether what was sent could not be carried out, so that nothing is let in.
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Its rules, in order.
    pub fn rules(&self) -> &[TokenRule] {
        &self.rules
    }

    /// Where keys are fetched from.
    pub fn cells(&self) -> impl Iterator<Item = &Arc<KeyCell>> {
        self.rules.iter().filter_map(|rule| if let Keys::Fetched(cell) = &rule.keys { Some(cell) } else { None })
    }

    /// Judges a request's token at that time. Where a key is missing that may have been added at its issuer meanwhile, its cell says so
    /// ([`KeyCell::is_missed`]).
    pub fn judge(&self, request: &RequestHead<'_>, remembered: &mut Remembered, now_secs: u64) -> TokenVerdict {
        self.judge_only(request, remembered, now_secs, &|_| true)
    }

    /// Where tokens are looked for.
    pub(crate) fn places(&self) -> impl Iterator<Item = &TokenPlace> {
        self.places.iter().map(|(place, _)| place)
    }

    /// The same, of what may be a token at all: the rest of what stands at its places is somebody else's.
    pub(crate) fn judge_only(
        &self,
        request: &RequestHead<'_>,
        remembered: &mut Remembered,
        now_secs: u64,
        may_be: &dyn Fn(&[u8]) -> bool,
    ) -> TokenVerdict {
        if self.broken {
            return TokenVerdict::Refused(TokenFault::Unconfigured);
        }
        let shown = match places::shown(&self.places, request, may_be) {
            Ok(None) => return TokenVerdict::Without,
            Ok(Some(shown)) => shown,
            Err(fault) => return TokenVerdict::Refused(fault),
        };
        let at_hand = |accepted: &Accepted, keys: &Arc<KeySet>| self.rules.get(accepted.rule).is_some_and(|rule| rule.keys.are(keys));
        if let Some(known) = remembered.find(&shown.token, (self.content, shown.rules), now_secs, at_hand) {
            return TokenVerdict::Accepted(Arc::clone(known));
        }
        match self.verify(&shown, now_secs) {
            Ok((accepted, keys)) => {
                let accepted = Arc::new(accepted);
                remembered.keep((self.content, 1 << accepted.rule), keys, Arc::clone(&accepted));
                TokenVerdict::Accepted(accepted)
            }
            Err(fault) => TokenVerdict::Refused(fault),
        }
    }

    /// By the rules of its issuer, in order: one that accepts it is enough.
    #[cold]
    fn verify(&self, shown: &Shown<'_>, now_secs: u64) -> Result<(Accepted, Arc<KeySet>), TokenFault> {
        let token = Token::read(&shown.token)?;
        let issuer = token.issuer().ok_or(TokenFault::Issuer)?;
        let mut fault = TokenFault::Issuer;
        for (number, rule) in self.rules.iter().enumerate() {
            if shown.rules & 1 << number == 0 || *rule.issuer != *issuer {
                continue;
            }
            match rule.verify(&token, now_secs) {
                Ok((until_secs, keys)) => {
                    let claims = Arc::new(Claims { issuer: Arc::clone(&rule.issuer), content: token.claims.clone() });
                    let headers =
                        rule.fills.iter().filter_map(|(claim, header)| Some((header.clone(), claim_value(&claims, claim)?))).collect();
                    let token = (&*shown.token).into();
                    return Ok((Accepted { claims, token, rule: number, headers, until_secs }, keys));
                }
                // A rule that may accept it in a moment says more than one that never will.
                Err(found) if fault != TokenFault::KeysPending => fault = found,
                Err(_) => {}
            }
        }
        Err(fault)
    }

    /// Changes a request's head as its verdict wants: what a caller says in headers that claims fill goes, always; then claims fill them, and
    /// the token goes where the application is not to see it.
    pub fn carry_out(&self, verdict: &TokenVerdict, request: &mut request::Parts) {
        self.unsay(&mut request.headers);
        let TokenVerdict::Accepted(accepted) = verdict else { return };
        if self.rules.get(accepted.rule).is_some_and(|rule| !rule.forward) {
            places::strip(&self.places, request, &accepted.token);
        }
        accepted.fill(&mut request.headers);
    }

    /// Takes off what a caller says in headers that claims fill, or in trailers of such names.
    pub fn unsay(&self, headers: &mut HeaderMap) {
        for header in &self.filled {
            headers.remove(header);
        }
        if !self.filled.is_empty() && (self.underscored || headers.keys().any(|name| name.as_str().contains('_'))) {
            self.remove_twins(headers);
        }
    }

    /// Names with `_` for `-`, or the other way round, are the same to applications that know headers as variables (CGI, RFC 3875, section 4.1.18).
    #[cold]
    fn remove_twins(&self, headers: &mut HeaderMap) {
        let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
        let alike = |a: &HeaderName, b: &HeaderName| a.as_str().bytes().map(plain).eq(b.as_str().bytes().map(plain));
        let twins: Vec<HeaderName> = headers.keys().filter(|name| self.filled.iter().any(|filled| alike(filled, name))).cloned().collect();
        for twin in twins {
            headers.remove(twin);
        }
    }

    /// The object whose rule accepted a token.
    pub fn policy(&self, accepted: &Accepted) -> &str {
        self.rules.get(accepted.rule).map_or("", |rule| &rule.policy)
    }
}

impl Accepted {
    /// Whether that is the token.
    pub(crate) fn is(&self, token: &[u8]) -> bool {
        *self.token == *token
    }

    /// The place of the rule that accepted it.
    pub(crate) const fn rule_number(&self) -> usize {
        self.rule
    }

    /// Unix time from which on it does not hold any more.
    pub(crate) const fn until_secs(&self) -> u64 {
        self.until_secs
    }

    /// Puts its claims into their headers.
    pub fn fill(&self, headers: &mut HeaderMap) {
        for (header, value) in &self.headers {
            headers.insert(header.clone(), value.clone());
        }
    }
}

impl TokenRule {
    fn verify(&self, token: &Token<'_>, now_secs: u64) -> Result<(u64, Arc<KeySet>), TokenFault> {
        token.is_for(&self.audiences)?;
        token.is_of(&self.types)?;
        let until_secs = token.holds(now_secs, self.skew)?;
        let keys = match &self.keys {
            Keys::Given(keys) => Arc::clone(keys),
            Keys::Fetched(cell) => cell.current().ok_or(TokenFault::KeysPending)?,
        };
        match (token.verify(&keys), &self.keys) {
            (Ok(()), _) => Ok((until_secs, keys)),
            (Err(_), Keys::Fetched(cell)) if !token.is_known_to(&keys) && cell.miss(now_secs) => Err(TokenFault::KeysPending),
            (Err(fault), _) => Err(fault),
        }
    }

    /// In words, for dumps: the issuer, and where its keys come from.
    pub fn story(&self) -> String {
        match &self.keys {
            Keys::Given(keys) => format!("{} by {} given keys", self.issuer, keys.len()),
            Keys::Fetched(cell) => {
                let at_hand = cell.current().map_or_else(|| "not fetched yet".to_owned(), |keys| format!("{} at hand", keys.len()));
                format!("{} by the keys of {} ({at_hand})", self.issuer, cell.at().uri())
            }
        }
    }
}

impl Keys {
    /// Whether these are the keys at hand.
    fn are(&self, keys: &Arc<KeySet>) -> bool {
        match self {
            Self::Given(given) => Arc::ptr_eq(given, keys),
            Self::Fetched(cell) => cell.holds(keys),
        }
    }
}

/// What a header says of a claim: its items, with commas between. `None`: nothing that a header can say, and an item that holds a comma
/// itself would say more than was signed.
pub(crate) fn claim_value(claims: &Claims, path: &str) -> Option<HeaderValue> {
    let listed = claims.is_list(path);
    let items: Vec<_> = claims.texts(path).filter(|item| !listed || !item.contains(',')).collect();
    let text = items.join(",");
    let fits = !text.is_empty() && text.len() <= CLAIM_HEADER_BYTES_MAX;
    fits.then(|| HeaderValue::from_bytes(text.as_bytes()).ok()).flatten()
}
