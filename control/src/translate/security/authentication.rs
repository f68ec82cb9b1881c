//! RequestAuthentications of one workload, as its proxy carries them out. They add up.

use std::collections::BTreeMap;

use engine::authenticate::KeysUri;
use proto::mesh::{Authentication, ClaimHeader, TokenHeader, TokenRule};

use super::undeclared;
use crate::translate::dns;
use crate::translate::mtls::applies;
use crate::world::problem::Severity;
use crate::world::security::authentication::{JwtKeys, JwtRule, RequestAuthentication};
use crate::world::{Index, Object, Spec};

/// The content of a RequestAuthentication.
pub(in crate::translate) fn content(object: &Object) -> Option<&RequestAuthentication> {
    if let Spec::RequestAuthentication(spec) = &object.spec { Some(spec) } else { None }
}

/// What selects a workload, the oldest first; `None`: nothing does.
pub(in crate::translate) fn authentication(index: &Index, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Authentication> {
    let selected = index.request_authentications.iter().filter_map(|object| Some((object, content(object)?)));
    let selected = selected.filter(|(object, spec)| applies(object, &spec.selector, namespace, labels));
    let rules: Vec<TokenRule> = selected.flat_map(|(object, spec)| spec.rules.iter().map(|rule| raw(object, rule))).collect();
    (!rules.is_empty()).then_some(Authentication { rules })
}

fn raw(object: &Object, rule: &JwtRule) -> TokenRule {
    let JwtRule { issuer, audiences, keys, headers, query, cookies, forward, fills, skew, line: _ } = rule;
    let (jwks, jwks_uri) = match keys {
        JwtKeys::Given(set) => (set.clone(), String::new()),
        JwtKeys::Fetched(uri) => (String::new(), uri.uri().to_string()),
    };
    TokenRule {
        policy: object.key.path(),
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
