//! Where credentials stand in requests, and how they are taken out again.

use std::borrow::Cow;

use http::request;
use proto::mesh::{CredentialHeader, CredentialPlace, credential_place::Kind};

use crate::authenticate::{PREFIX_BYTES_MAX, TokenPlace};
use crate::matching::RequestHead;
use crate::rejected::Wrong;

/// Most places of one object.
const PLACES_MAX: usize = 16;

/// What stands where a credential may.
pub(super) enum ShownCredential<'r> {
    /// Nothing, anywhere.
    Nothing,
    /// One, at the first place that has any.
    One(Cow<'r, [u8]>),
    /// Different ones at one place: nobody can say who asks.
    Several,
}

pub(super) fn compile(raw: &[CredentialPlace]) -> Result<Vec<TokenPlace>, Wrong> {
    if raw.is_empty() || raw.len() > PLACES_MAX {
        return Err(Wrong::new("from", format!("holds {} places, not 1 to {PLACES_MAX}", raw.len())));
    }
    let one = |(index, raw): (usize, &CredentialPlace)| place(raw).map_err(|wrong| wrong.within(format!("from[{index}]")));
    raw.iter().enumerate().map(one).collect()
}

fn place(raw: &CredentialPlace) -> Result<TokenPlace, Wrong> {
    match &raw.kind {
        None => Err(Wrong::new("kind", "is missing: header, query or cookie")),
        Some(Kind::Header(CredentialHeader { name, prefix })) => {
            if prefix.len() > PREFIX_BYTES_MAX {
                return Err(Wrong::new("header.prefix", format!("is longer than {PREFIX_BYTES_MAX} bytes")));
            }
            let name = name.parse().map_err(|_| Wrong::new("header.name", format!("`{}` is not a header name", name.escape_debug())))?;
            Ok(TokenPlace::Header(name, prefix.clone()))
        }
        Some(Kind::Query(name) | Kind::Cookie(name)) if name.is_empty() => Err(Wrong::new("kind", "has no name")),
        Some(Kind::Query(name)) => Ok(TokenPlace::Query(name.clone())),
        Some(Kind::Cookie(name)) => Ok(TokenPlace::Cookie(name.clone())),
    }
}

/// The credential that a request shows, of those that may be one. The same one twice at one place is one.
pub(super) fn shown<'r>(places: &[TokenPlace], request: &RequestHead<'r>, may_be: impl Fn(&[u8]) -> bool) -> ShownCredential<'r> {
    for place in places {
        let mut found = ShownCredential::Nothing;
        place.each(request, |credential| match &found {
            _ if !may_be(&credential) => {}
            ShownCredential::Nothing => found = ShownCredential::One(credential),
            ShownCredential::One(known) if *known != credential => found = ShownCredential::Several,
            ShownCredential::One(_) | ShownCredential::Several => {}
        });
        if !matches!(found, ShownCredential::Nothing) {
            return found;
        }
    }
    ShownCredential::Nothing
}

/// Takes a credential out wherever it stands.
pub(super) fn strip(places: &[TokenPlace], request: &mut request::Parts, is_it: impl Fn(&[u8]) -> bool) {
    places.iter().for_each(|place| place.strip(request, &is_it));
}
