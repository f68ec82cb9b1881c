//! RequestAuthentications of one workload, as its proxy carries them out. They add up.
//!
//! Where they are too many, tokens are still looked for where those that are left out would, so that theirs are refused, and headers that
//! they would fill are still taken from callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::authenticate::KeysUri;
use proto::mesh::{Authentication, TokenHeader, TokenRule, WithheldTokens};

use super::sums::{Meant, Portion, beyond};
use super::undeclared;
use crate::translate::dns;
use crate::translate::mtls::applies;
use crate::world::problem::Severity;
use crate::world::security::authentication::{JwtKeys, JwtRule, RequestAuthentication};
use crate::world::{Index, Object, Spec, World};

/// The content of a RequestAuthentication.
pub(in crate::translate) fn content(object: &Object) -> Option<&RequestAuthentication> {
    if let Spec::RequestAuthentication(spec) = &object.spec { Some(spec) } else { None }
}

/// Nothing of the room for rules.
pub(super) const STAND_IN: usize = 0;

/// The objects that are meant, the oldest first.
pub(super) fn portions<'a>(index: &'a Index, meant: Meant<'_>) -> Vec<Portion<'a, RequestAuthentication, usize>> {
    let portion = |object: &'a Arc<Object>| {
        let content = content(object).filter(|spec| meant(object, &spec.selector))?;
        Some(Portion { object, content, sum: content.rules.len(), tells: false })
    };
    index.request_authentications.iter().filter_map(portion).collect()
}

/// What selects a workload, the oldest first; `None`: nothing does.
pub(in crate::translate) fn authentication(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Authentication> {
    let about = portions(world.index(), &|object, selector| applies(object, selector, namespace, labels));
    let left_out = beyond(world, &about, STAND_IN);
    let (out, taken): (Vec<_>, Vec<_>) = about.iter().partition(|portion| left_out.contains(&portion.object.key));
    let rules: Vec<TokenRule> = taken.iter().flat_map(|portion| portion.content.sent(&portion.object.key)).collect();
    let withheld = (!out.is_empty()).then(|| withheld(out.iter().flat_map(|portion| &portion.content.rules)));
    (!rules.is_empty()).then_some(Authentication { rules, withheld })
}

/// Where rules that are left out look for tokens, and what they fill: nothing of it may open.
fn withheld<'a>(rules: impl Iterator<Item = &'a JwtRule>) -> WithheldTokens {
    let (mut from_headers, mut query, mut cookies, mut headers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for rule in rules {
        from_headers.extend(rule.headers.iter().cloned());
        query.extend(rule.query.iter().cloned());
        cookies.extend(rule.cookies.iter().cloned());
        headers.extend(rule.fills.iter().map(|(_, header)| header.clone()));
    }
    WithheldTokens {
        from_headers: from_headers.into_iter().map(|(name, prefix)| TokenHeader { name, prefix }).collect(),
        from_query: query.into_iter().collect(),
        from_cookies: cookies.into_iter().collect(),
        headers: headers.into_iter().collect(),
    }
}

/// What is worth to be told about one: severity, field and line, message, remedy.
pub(in crate::translate) fn findings(
    index: &Index,
    object: &Object,
    spec: &RequestAuthentication,
) -> Vec<(Severity, (String, u32), String, String)> {
    let undeclared = undeclared::finding(index, object, spec);
    let undeclared = undeclared.map(|(message, remedy)| (Severity::Warning, ("spec.selector".to_owned(), 0), message, remedy));
    let mut found: Vec<_> = undeclared.into_iter().collect();
    for (number, rule) in spec.rules.iter().enumerate() {
        if let JwtKeys::Fetched(uri) = &rule.keys
            && !uri.is_secure()
            && !uri.is_loopback()
            && !is_of_mesh(index, object, uri)
        {
            let message = format!("the keys of {} come in plaintext: whoever is on the way may put in keys of their own", rule.issuer);
            let remedy = "use https, or a Service of the mesh".to_owned();
            found.push((Severity::Warning, (format!("spec.jwtRules[{number}].jwksUri"), rule.line), message, remedy));
        }
    }
    found
}

/// Whether a name is a Service's, which is met by mesh TLS where it is meshed.
fn is_of_mesh(index: &Index, object: &Object, uri: &KeysUri) -> bool {
    dns::record(index, &object.key.namespace, uri.host()).is_some_and(|(record, _)| !record.addresses.is_empty())
}
