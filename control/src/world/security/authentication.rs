//! RequestAuthentication: which tokens are believed, and what becomes of them.

use std::time::Duration;

use engine::authenticate::{KeySet, KeysUri, TOKEN_RULES_MAX};
use engine::model::build::{PREFIX_BYTES_MAX, claim_header};
use proto::mesh::{Authentication, ClaimHeader, TokenHeader, TokenRule};
use proto::names;

use super::taken;
use crate::world::ObjectKey;
use crate::world::content::ContentRef;
use crate::world::door::{Cursor, Fields};
use crate::world::edge::{EdgeAttachment, entry, on_error, timeout};
use crate::world::own::{Selector, read_selector};

/// Most entries of each list in a rule.
const LISTED_MAX: usize = 64;
/// Clocks may differ by so much where nothing says more or less.
const SKEW_DEFAULT: Duration = Duration::from_secs(30);
/// Clocks that differ by more are broken.
const SKEW_MAX: Duration = Duration::from_secs(600);
/// Keys that cannot be fetched again are believed so long at least, and at most.
const STALE_MIN: Duration = Duration::from_secs(60);
const STALE_MAX: Duration = Duration::from_secs(720 * 3600);
/// How long an authorization server's word counts where nothing else is said, and at most.
const INTROSPECTED_FOR: Duration = Duration::from_secs(30);
const INTROSPECTED_FOR_MAX: Duration = Duration::from_secs(3600);
/// How long it is waited for where nothing else is said.
const INTROSPECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest issuer, audience, claim, name and prefix, in bytes.
const TEXT_BYTES_MAX: usize = 2048;

/// Rules for tokens, and for whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestAuthentication {
    /// At which Gateways and routes; by itself, nothing.
    pub attachment: EdgeAttachment,
    /// For whom, inside the mesh.
    pub selector: Selector,
    /// At an edge: whether a request without a token is let through.
    pub optional: Option<bool>,
    /// One per issuer.
    pub rules: Vec<JwtRule>,
    /// At an edge: who knows tokens that no rule claims.
    pub introspection: Option<Introspection>,
}

/// An authorization server that says what an opaque token is (RFC 7662).
#[derive(Clone, Debug, PartialEq)]
pub struct Introspection {
    /// Where it is asked.
    pub url: KeysUri,
    /// Who we are there; empty: nobody.
    pub client_id: String,
    /// What we prove that with; `None`: a public client's word.
    pub secret: Option<ContentRef>,
    /// How long its word counts.
    pub cache: Duration,
    /// How long it is waited for.
    pub timeout: Duration,
    /// Whether requests go on, as nobody's, where it does not answer.
    pub allow_without: bool,
    /// Where it stands.
    pub line: u32,
}

/// How tokens of one issuer are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtRule {
    /// `iss` of its tokens.
    pub issuer: String,
    /// One of them must be in `aud`; none: any.
    pub audiences: Vec<String>,
    /// Its keys.
    pub keys: JwtKeys,
    /// Name and prefix of headers that hold tokens.
    pub headers: Vec<(String, String)>,
    /// Names of parameters of the query that do.
    pub query: Vec<String>,
    /// Names of cookies that do.
    pub cookies: Vec<String>,
    /// The application sees the token, too.
    pub forward: bool,
    /// Path of a claim, and the header that it fills.
    pub fills: Vec<(String, String)>,
    /// How much clocks may differ.
    pub skew: Duration,
    /// At an edge: its consumers are those whose credentials name this claim.
    pub consumer: Option<String>,
    /// Types of tokens that are taken; none: any.
    pub types: Vec<String>,
    /// How long keys that cannot be fetched again are believed.
    pub stale: Option<Duration>,
    /// Where it stands.
    pub line: u32,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq)]
pub enum JwtKeys {
    /// Here: a JWKS.
    Given(String),
    /// There.
    Fetched(KeysUri),
}

impl RequestAuthentication {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let attachment = EdgeAttachment::read_targets(&mut fields);
        let selector = read_selector(&mut fields);
        if selector.is_some() && !attachment.targets.is_empty() {
            fields.at().error("it has both targetRefs and a selector", "keep one of them");
        }
        let mode = fields.get("mode");
        let optional = mode.as_ref().and_then(|at| at.word(&[("Optional", true), ("Required", false)]));
        if let Some(at) = mode.filter(|_| attachment.targets.is_empty() && optional == Some(false)) {
            at.error("inside the mesh it is an AuthorizationPolicy that demands a token", "remove it, or name a Gateway in targetRefs");
        }
        let introspection = fields.get("introspection").and_then(|at| introspection(&at, !attachment.targets.is_empty()));
        let opaque = fields.has("introspection");
        let rules = if opaque { fields.get("jwtRules") } else { fields.need("jwtRules") };
        let rules = rules.map(|at| (at.list(TOKEN_RULES_MAX), at));
        if let Some((rules, at)) = &rules
            && rules.is_empty()
        {
            at.error("there are no rules", "add one per issuer");
        }
        let rules = rules.map(|(rules, _)| rules).unwrap_or_default();
        let rules = rules.iter().filter_map(|rule| JwtRule::read(rule.fields(), rule.line())).collect();
        let at = fields.at().clone();
        fields.done();
        let read = Self { attachment, selector, optional, rules, introspection };
        if read.attachment.targets.is_empty()
            && let Some(rule) = read.rules.iter().position(|rule| rule.consumer.is_some())
        {
            at.below(&format!("jwtRules[{rule}].consumer"))
                .error("consumers call at Gateways", "remove it, or name a Gateway in targetRefs");
        }
        if !at.refused()
            && !read.rules.is_empty()
            && let Err(wrong) = taken(names::INBOUND, &Authentication { rules: read.sent(at.key()), withheld: None })
        {
            at.error(format!("proxies would not take it: {wrong}"), "correct it, or make it smaller");
        }
        Some(read)
    }

    /// As proxies are told.
    pub fn sent(&self, key: &ObjectKey) -> Vec<TokenRule> {
        self.rules.iter().map(|rule| rule.sent(key)).collect()
    }
}

impl Introspection {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let mut fields = at.fields();
        let url = fields.need("url").and_then(|at| {
            let read = KeysUri::read(&at.text()?);
            if let Err(why) = &read {
                at.error(format!("it {why}"), "write it as https://HOST[:PORT]/PATH");
            }
            read.ok()
        });
        let client_id = fields.get("clientId").map_or(Some(String::new()), |at| text(&at));
        let secret = fields.get("clientSecretRef").map(|at| entry(&at));
        if secret.is_some() && !fields.has("clientId") {
            at.error("a secret of nobody", "say whose it is: clientId");
        }
        let cache = fields.get("cache").map_or(Some(INTROSPECTED_FOR), |at| {
            let cache = at.duration()?;
            if cache > INTROSPECTED_FOR_MAX {
                at.error("it is longer than an hour", "use at most 1h: a token that was revoked since is believed so long");
            }
            Some(cache)
        });
        let timeout = fields.get("timeout").map_or(Some(INTROSPECTION_TIMEOUT), |at| timeout(&at));
        let allow_without = on_error(&mut fields).unwrap_or_default();
        fields.done();
        let secret = match secret {
            Some(secret) => Some(secret?),
            None => None,
        };
        Some(Self { url: url?, client_id: client_id?, secret, cache: cache?, timeout: timeout?, allow_without, line: at.line() })
    }
}

/// One authorization server; `edge`: at a Gateway.
fn introspection(at: &Cursor<'_>, edge: bool) -> Option<Introspection> {
    if !edge {
        at.error("opaque tokens are asked about at Gateways", "remove it, or name a Gateway in targetRefs");
    }
    let listed = at.list(1);
    if at.is_list() && listed.is_empty() {
        at.error("it names no authorization server", "name one, or remove the list");
    }
    listed.first().and_then(Introspection::read)
}

impl JwtRule {
    fn read(mut fields: Fields<'_>, line: u32) -> Option<Self> {
        let issuer = fields.need("issuer").and_then(|at| text(&at));
        let audiences = fields.get("audiences").map(|at| texts(&at)).unwrap_or_default();
        let keys = read_keys(&mut fields);
        let places = ["fromHeaders", "fromQuery", "fromCookies"].map(|name| fields.get(name).map(|at| at.list(LISTED_MAX)));
        let [from_headers, from_query, from_cookies] = places.each_ref().map(|listed| listed.as_deref().unwrap_or_default());
        let mut headers: Vec<_> = from_headers.iter().filter_map(read_header).collect();
        let query = from_query.iter().filter_map(text).collect();
        let cookies = from_cookies.iter().filter_map(cookie).collect();
        if places.iter().all(Option::is_none) {
            headers.push(("authorization".to_owned(), "Bearer ".to_owned()));
        } else if places.iter().flatten().all(Vec::is_empty) {
            fields.at().error(
                "nothing says where a token is",
                "name a header, a parameter or a cookie, or none of the three lists for `Authorization: Bearer`",
            );
        }
        let forward = fields.get("forwardToken").and_then(|at| at.flag()).unwrap_or_default();
        let fills = fields.get("claimsToHeaders").map(|at| at.list(LISTED_MAX)).unwrap_or_default().iter().filter_map(read_fill).collect();
        let skew = fields.get("clockSkew").map_or(Some(SKEW_DEFAULT), |at| {
            let skew = at.duration()?;
            if skew > SKEW_MAX {
                at.error("no clocks differ so much", format!("use at most {}m", SKEW_MAX.as_secs() / 60));
            }
            Some(skew)
        });
        let consumer = fields.get("consumer").map(|at| {
            let mut consumer = at.fields();
            let claim = consumer.need("claim").and_then(|at| text(&at));
            consumer.done();
            claim
        });
        let types = fields.get("tokenTypes").map(|at| texts(&at)).unwrap_or_default();
        let stale = fields.get("jwksMaxStale").and_then(|at| {
            let stale = at.duration()?;
            if stale < STALE_MIN || stale > STALE_MAX {
                at.error("it is too short or too long", "use 1m to 720h");
            }
            Some(stale)
        });
        fields.done();
        let consumer = match consumer {
            Some(claim) => Some(claim?),
            None => None,
        };
        Some(Self {
            consumer,
            types,
            stale,
            issuer: issuer?,
            audiences,
            keys: keys?,
            headers,
            query,
            cookies,
            forward,
            fills,
            skew: skew?,
            line,
        })
    }

    fn sent(&self, key: &ObjectKey) -> TokenRule {
        let Self { issuer, audiences, keys, headers, query, cookies, forward, fills, skew, consumer, types, stale, line: _ } = self;
        let (jwks, jwks_uri) = match keys {
            JwtKeys::Given(set) => (set.clone(), String::new()),
            JwtKeys::Fetched(uri) => (String::new(), uri.uri().to_string()),
        };
        TokenRule {
            policy: key.path(),
            issuer: issuer.clone(),
            audiences: audiences.clone(),
            jwks,
            jwks_uri,
            from_headers: headers.iter().map(|(name, prefix)| TokenHeader { name: name.clone(), prefix: prefix.clone() }).collect(),
            from_query: query.clone(),
            from_cookies: cookies.clone(),
            forward_token: *forward,
            claims_to_headers: fills.iter().map(|(claim, header)| ClaimHeader { claim: claim.clone(), header: header.clone() }).collect(),
            clock_skew: prost_types::Duration::try_from(*skew).ok(),
            consumer_claim: consumer.clone().unwrap_or_default(),
            token_types: types.clone(),
            jwks_max_stale: stale.and_then(|stale| prost_types::Duration::try_from(stale).ok()),
        }
    }
}

fn text(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        at.error(format!("{} bytes", text.len()), format!("use 1 to {TEXT_BYTES_MAX}"));
        return None;
    }
    Some(text)
}

fn texts(at: &Cursor<'_>) -> Vec<String> {
    at.list(LISTED_MAX).iter().filter_map(text).collect()
}

fn cookie(at: &Cursor<'_>) -> Option<String> {
    let name = text(at)?;
    // A token (RFC 6265, section 4.1.1), as a header's name is.
    if http::HeaderName::try_from(name.as_str()).is_err() {
        at.error(format!("`{}` is no cookie's name", name.escape_debug()), "");
        return None;
    }
    Some(name)
}

fn header_name(at: &Cursor<'_>) -> Option<String> {
    let name = text(at)?;
    match http::HeaderName::try_from(name.as_str()) {
        Ok(name) => Some(name.as_str().to_owned()),
        Err(_) => {
            at.error(format!("`{}` is no header's name", name.escape_debug()), "use letters, digits and `-`");
            None
        }
    }
}

fn read_header(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let name = fields.need("name").and_then(|at| header_name(&at));
    let prefix = fields.get("prefix").map(|at| {
        let prefix = at.text()?;
        if prefix.len() > PREFIX_BYTES_MAX {
            at.error(format!("{} bytes", prefix.len()), format!("use at most {PREFIX_BYTES_MAX}"));
        }
        Some(prefix)
    });
    if name.as_deref() == Some("authorization") && prefix.is_none() {
        at.warn("the whole of `authorization` is taken for a token, its scheme included", "add `prefix: \"Bearer \"`");
    }
    fields.done();
    Some((name?, prefix.unwrap_or_else(|| Some(String::new()))?))
}

fn read_fill(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let claim = fields.need("claim").and_then(|at| text(&at));
    let header = fields.need("header").and_then(|at| {
        let name = header_name(&at)?;
        if !claim_header(&name) {
            at.error(format!("`{name}` is not a claim's to fill"), "choose a header of your own, such as x-user");
            return None;
        }
        Some(name)
    });
    fields.done();
    Some((claim?, header?))
}

fn read_keys(fields: &mut Fields<'_>) -> Option<JwtKeys> {
    let (given, fetched) = (fields.get("jwks"), fields.get("jwksUri"));
    match (given, fetched) {
        (Some(at), None) => {
            let text = at.text()?;
            match KeySet::read(text.as_bytes()) {
                Ok(keys) => {
                    for skipped in keys.skipped() {
                        at.warn(format!("left out: {skipped}"), "remove it");
                    }
                    Some(JwtKeys::Given(text))
                }
                Err(why) => {
                    at.error(format!("no key set: {why}"), "paste the issuer's JWKS (RFC 7517) as text");
                    None
                }
            }
        }
        (None, Some(at)) => match KeysUri::read(&at.text()?) {
            Ok(uri) => Some(JwtKeys::Fetched(uri)),
            Err(why) => {
                at.error(format!("it {why}"), "write it as https://HOST[:PORT]/PATH");
                None
            }
        },
        (Some(_), Some(at)) => {
            at.error("jwks says already where the keys are", "keep one of jwks and jwksUri");
            None
        }
        (None, None) => {
            fields
                .at()
                .error("nothing says where the keys are", "add jwks or jwksUri (the issuer's discovery document names it as jwks_uri)");
            None
        }
    }
}
