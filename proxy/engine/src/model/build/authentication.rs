//! The rules for tokens out of their resource.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderName;
use proto::mesh::{Authentication as Raw, ClaimHeader, TokenHeader, TokenRule as RawRule, WithheldTokens};

use super::{Parts, Staged, duration, stamp, unpack};
use crate::authenticate::{Authentication, KeyCell, KeySet, Keys, KeysUri, TOKEN_RULES_MAX, TokenPlace, TokenRule};
use crate::authenticate::{PREFIX_BYTES_MAX, claim_header, plain_type};
use crate::rejected::Wrong;

/// Most places, audiences and headers that one rule names, of each.
const LISTED_MAX: usize = 64;
/// Longest text in a rule, in bytes; key sets have a bound of their own.
const TEXT_BYTES_MAX: usize = 2048;
/// Most places of each kind, and headers, of rules that were left out.
pub const WITHHELD_MAX: usize = 1024;
/// Clocks that differ by more are broken.
const SKEW_MAX: Duration = Duration::from_secs(600);
/// Cells of keys by where they come from: they outlive the rules that name them in one epoch and the next.
pub(super) type Cells = BTreeMap<String, Weak<KeyCell>>;

impl Parts {
    /// Where nothing good was said before, what cannot be understood lets nothing in.
    pub(super) fn put_authentication(&mut self, name: &str, version: String, resource: &prost_types::Any) -> Result<(), Wrong> {
        let cells = self.policies.key_cells();
        cells.retain(|_, cell| cell.strong_count() > 0);
        match unpack(resource).and_then(|raw| compile(name, &raw, cells)) {
            Ok(content) => self.authentication = Some(Staged { version, content: Arc::new(content) }),
            Err(wrong) => {
                if name == proto::names::INBOUND && self.authentication.is_none() {
                    let content = Arc::new(Authentication::broken());
                    self.authentication = Some(Staged { version: String::new(), content });
                }
                return Err(wrong);
            }
        }
        Ok(())
    }
}

fn compile(name: &str, raw: &Raw, cells: &mut Cells) -> Result<Authentication, Wrong> {
    if name != proto::names::INBOUND {
        return Err(Wrong::new("", format!("the only resource of this type is `{}`", proto::names::INBOUND)));
    }
    let Raw { rules, withheld } = raw;
    of_rules(rules, withheld.as_ref(), cells)
}

/// Rules for tokens, in order; and where tokens are looked for that no rule accepts.
pub(super) fn of_rules(rules: &[RawRule], withheld: Option<&WithheldTokens>, cells: &mut Cells) -> Result<Authentication, Wrong> {
    if rules.is_empty() || rules.len() > TOKEN_RULES_MAX {
        return Err(Wrong::new("rules", format!("holds {} rules, not 1 to {TOKEN_RULES_MAX}", rules.len())));
    }
    let one = |(index, raw): (usize, &RawRule)| rule(raw, cells).map_err(|wrong| wrong.within(format!("rules[{index}]")));
    let rules = rules.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    let withheld = withheld.map(self::withheld).transpose().map_err(|wrong| wrong.within("withheld"))?;
    Ok(Authentication::new(rules, withheld.unwrap_or_default(), stamp()))
}

/// Where tokens are looked for that no rule accepts, and the headers that no claim fills any more.
fn withheld(raw: &WithheldTokens) -> Result<(Vec<TokenPlace>, Vec<HeaderName>), Wrong> {
    let WithheldTokens { from_headers, from_query, from_cookies, headers } = raw;
    for (field, count) in [
        ("from_headers", from_headers.len()),
        ("from_query", from_query.len()),
        ("from_cookies", from_cookies.len()),
        ("headers", headers.len()),
    ] {
        if count > WITHHELD_MAX {
            return Err(Wrong::new(field, format!("holds {count}, which is more than {WITHHELD_MAX}")));
        }
    }
    let places = places(from_headers, from_query, from_cookies)?;
    Ok((places, headers.iter().map(|name| filled(name, "headers")).collect::<Result<_, _>>()?))
}

fn places(from_headers: &[TokenHeader], from_query: &[String], from_cookies: &[String]) -> Result<Vec<TokenPlace>, Wrong> {
    let mut places = Vec::new();
    for TokenHeader { name, prefix } in from_headers {
        let name = name.parse().map_err(|_| Wrong::new("from_headers.name", format!("`{}` is not a header name", name.escape_debug())))?;
        if prefix.len() > PREFIX_BYTES_MAX {
            return Err(Wrong::new("from_headers.prefix", "is too long"));
        }
        places.push(TokenPlace::Header(name, prefix.clone()));
    }
    places.extend(texts("from_query", from_query)?.into_iter().map(TokenPlace::Query));
    places.extend(texts("from_cookies", from_cookies)?.into_iter().map(TokenPlace::Cookie));
    Ok(places)
}

fn texts(field: &str, texts: &[String]) -> Result<Vec<String>, Wrong> {
    texts.iter().map(|item| text(item).map_err(|wrong| wrong.within(field))).collect()
}

fn rule(raw: &RawRule, cells: &mut Cells) -> Result<(TokenRule, Vec<TokenPlace>), Wrong> {
    let RawRule {
        policy,
        issuer,
        audiences,
        jwks,
        jwks_uri,
        from_headers,
        from_query,
        from_cookies,
        forward_token,
        claims_to_headers,
        clock_skew,
        consumer_claim: _,
        token_types,
        jwks_max_stale,
    } = raw;
    let counts = [
        ("audiences", audiences.len()),
        ("from_headers", from_headers.len()),
        ("from_query", from_query.len()),
        ("from_cookies", from_cookies.len()),
        ("claims_to_headers", claims_to_headers.len()),
        ("token_types", token_types.len()),
    ];
    if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count > LISTED_MAX) {
        return Err(Wrong::new(field, format!("holds more than {LISTED_MAX}")));
    }
    let skew = duration(clock_skew.as_ref(), "clock_skew")?.unwrap_or_default();
    if skew > SKEW_MAX {
        return Err(Wrong::new("clock_skew", format!("is longer than {} s", SKEW_MAX.as_secs())));
    }
    let places = places(from_headers, from_query, from_cookies)?;
    if places.is_empty() {
        return Err(Wrong::new("from_headers", "nothing says where a token is"));
    }
    let keys = keys(jwks, jwks_uri, cells)?;
    if let (Keys::Fetched(cell), Some(stale)) = (&keys, duration(jwks_max_stale.as_ref(), "jwks_max_stale")?) {
        cell.keep(stale);
    }
    let rule = TokenRule {
        policy: policy.as_str().into(),
        issuer: text(issuer).map_err(|wrong| wrong.within("issuer"))?.into(),
        audiences: texts("audiences", audiences)?,
        keys,
        types: token_types.iter().map(|kind| plain_type(kind).to_ascii_lowercase().into()).collect(),
        forward: *forward_token,
        fills: claims_to_headers.iter().map(fill).collect::<Result<_, _>>()?,
        skew,
    };
    Ok((rule, places))
}

fn text(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(Wrong::new("", format!("has {} bytes, not 1 to {TEXT_BYTES_MAX}", text.len())));
    }
    Ok(text.to_owned())
}

fn keys(jwks: &str, jwks_uri: &str, cells: &mut Cells) -> Result<Keys, Wrong> {
    match (jwks.is_empty(), jwks_uri.is_empty()) {
        (false, true) => KeySet::read(jwks.as_bytes()).map(|keys| Keys::Given(Arc::new(keys))).map_err(|why| Wrong::new("jwks", why)),
        (true, false) => {
            let at = KeysUri::read(jwks_uri).map_err(|why| Wrong::new("jwks_uri", why))?;
            if let Some(known) = cells.get(jwks_uri).and_then(Weak::upgrade) {
                return Ok(Keys::Fetched(known));
            }
            let cell = KeyCell::new(at);
            cells.insert(jwks_uri.to_owned(), Arc::downgrade(&cell));
            Ok(Keys::Fetched(cell))
        }
        _ => Err(Wrong::new("jwks", "one of jwks and jwks_uri says where the keys are")),
    }
}

fn fill(raw: &ClaimHeader) -> Result<(String, HeaderName), Wrong> {
    let ClaimHeader { claim, header } = raw;
    let name = filled(header, "claims_to_headers.header")?;
    Ok((text(claim).map_err(|wrong| wrong.within("claims_to_headers.claim"))?, name))
}

/// The name of a header that claims may fill.
fn filled(text: &str, field: &str) -> Result<HeaderName, Wrong> {
    let name: HeaderName = text.parse().map_err(|_| Wrong::new(field, format!("`{}` is not a header name", text.escape_debug())))?;
    if !claim_header(name.as_str()) {
        return Err(Wrong::new(field, format!("`{name}` is not a claim's to fill")));
    }
    Ok(name)
}
