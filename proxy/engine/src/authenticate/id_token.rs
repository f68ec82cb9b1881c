//! ID tokens (OpenID Connect Core 1.0, section 3.1.3.7): what a provider says of who has logged in, to one client.

use std::time::Duration;

use serde_json::{Map, Value};

use super::TokenFault;
use super::keys::KeySet;
use super::token::Token;

/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(30);

/// What an ID token has to say.
#[derive(Clone, Copy, Debug)]
pub struct IdTokenTerms<'t> {
    /// Who issues it.
    pub issuer: &'t str,
    /// Whom it is for.
    pub client: &'t str,
    /// What the login gave the provider along; `None`: it is no login's, and need not say.
    pub nonce: Option<&'t str>,
    /// Whom it is about, where that is known.
    pub subject: Option<&'t str>,
    /// Unix time.
    pub now_secs: u64,
}

/// Why an ID token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdTokenFault {
    /// As any token's.
    Token(TokenFault),
    /// No key at hand is the one that it names: newer ones may be.
    NewKey,
    /// It is another login's.
    Nonce,
    /// It is about another one, or about nobody.
    Subject,
    /// It never ends.
    Endless,
}

impl From<TokenFault> for IdTokenFault {
    fn from(fault: TokenFault) -> Self {
        Self::Token(fault)
    }
}

impl IdTokenFault {
    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Token(fault) => fault.text(),
            Self::NewKey => "the token's key is not known",
            Self::Nonce => "the token's nonce is not this login's",
            Self::Subject => "the token is about nobody, or about somebody else",
            Self::Endless => "the token does not say when it ends",
        }
    }
}

/// What an ID token says, if one of the keys has signed it and it is meant so.
///
/// # Errors
/// It is not to be believed.
pub fn id_token(token: &str, keys: &KeySet, terms: IdTokenTerms<'_>) -> Result<Map<String, Value>, IdTokenFault> {
    let token = Token::read(token.as_bytes())?;
    if token.issuer() != Some(terms.issuer) {
        return Err(TokenFault::Issuer.into());
    }
    token.is_for(&[terms.client.to_owned()])?;
    // Whoever asked for it is named where it is for several; a name that is there has to be ours.
    let several = token.claims.get("aud").and_then(Value::as_array).is_some_and(|audiences| audiences.len() > 1);
    match token.claims.get("azp") {
        None if !several => {}
        Some(Value::String(party)) if party == terms.client => {}
        _ => return Err(TokenFault::Audience.into()),
    }
    if !token.claims.contains_key("exp") {
        return Err(IdTokenFault::Endless);
    }
    token.holds(terms.now_secs, SKEW)?;
    let said = |claim: &str| token.claims.get(claim).and_then(Value::as_str);
    let nonce = said("nonce");
    if terms.nonce.is_some_and(|wanted| nonce != Some(wanted)) {
        return Err(IdTokenFault::Nonce);
    }
    let subject = said("sub").filter(|subject| !subject.is_empty()).ok_or(IdTokenFault::Subject)?;
    if terms.subject.is_some_and(|wanted| wanted != subject) {
        return Err(IdTokenFault::Subject);
    }
    match token.verify(keys) {
        Ok(()) => Ok(token.claims),
        Err(_) if !token.is_known_to(keys) => Err(IdTokenFault::NewKey),
        Err(fault) => Err(fault.into()),
    }
}

/// What an ID token says that was believed before, and kept under a seal since.
pub fn believed(token: &str) -> Option<Map<String, Value>> {
    Token::read(token.as_bytes()).ok().map(|token| token.claims)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{ISSUER, NOW, b64, claims, signed, signers, token};
    use super::*;

    fn keys() -> KeySet {
        KeySet::read(signers().jwks().to_string().as_bytes()).unwrap()
    }

    const TERMS: IdTokenTerms<'_> = IdTokenTerms { issuer: ISSUER, client: "store", nonce: Some("n"), subject: None, now_secs: NOW };

    #[test]
    fn an_id_token_is_for_this_login() {
        // Aim: OpenID Connect Core 1.0, section 3.1.3.7: each claim that is not as it has to be refuses the token, whoever signed it.
        let judge = |mut changes: Value, terms: IdTokenTerms<'_>| {
            changes.as_object_mut().unwrap().entry("nonce").or_insert_with(|| "n".into());
            id_token(&token(changes), &keys(), terms).map(|_| ())
        };
        let refused = |fault| Err(IdTokenFault::Token(fault));
        for (changes, wanted) in [
            (json!({}), Ok(())),
            (json!({"iss": "https://other.example"}), refused(TokenFault::Issuer)),
            (json!({"iss": format!("{ISSUER}/")}), refused(TokenFault::Issuer)),
            (json!({"aud": "other"}), refused(TokenFault::Audience)),
            (json!({"aud": null}), refused(TokenFault::Audience)),
            (json!({"aud": ["store"]}), Ok(())),
            (json!({"aud": ["store", "other"]}), refused(TokenFault::Audience)),
            (json!({"aud": ["store", "other"], "azp": "store"}), Ok(())),
            (json!({"azp": "other"}), refused(TokenFault::Audience)),
            (json!({"exp": NOW - 60}), refused(TokenFault::Expired)),
            (json!({"exp": null}), Err(IdTokenFault::Endless)),
            (json!({"nbf": NOW + 60}), refused(TokenFault::TooEarly)),
            (json!({"nonce": "other"}), Err(IdTokenFault::Nonce)),
            (json!({"nonce": null}), Err(IdTokenFault::Nonce)),
            (json!({"sub": ""}), Err(IdTokenFault::Subject)),
            (json!({"sub": null}), Err(IdTokenFault::Subject)),
        ] {
            assert_eq!(judge(changes.clone(), TERMS), wanted, "{changes}");
        }
        // A later one of the same session need not repeat what only a login has, and is about the same one.
        let later = IdTokenTerms { nonce: None, subject: Some("ada"), ..TERMS };
        assert_eq!(judge(json!({"nonce": null}), later), Ok(()));
        assert_eq!(judge(json!({"sub": "bob"}), later), Err(IdTokenFault::Subject));
    }

    #[test]
    fn nobody_but_the_provider_signs_it() {
        // Aim: no algorithm, a signature of nobody's, and a key that is not at hand (yet); what was believed is read again.
        let said = claims(json!({"nonce": "n"})).to_string();
        let named = |header: &str| signed(header, &said, "ES256");
        let good = named(r#"{"alg":"ES256","kid":"es256"}"#);
        assert_eq!(id_token(&good, &keys(), TERMS).unwrap(), believed(&good).unwrap());
        let (head, _) = good.rsplit_once('.').unwrap();
        let forged = format!("{head}.{}", b64([1; 64]));
        assert_eq!(id_token(&forged, &keys(), TERMS).unwrap_err(), TokenFault::Signature.into());
        assert_eq!(id_token(&named(r#"{"alg":"ES256","kid":"newer"}"#), &keys(), TERMS).unwrap_err(), IdTokenFault::NewKey);
        let bare = format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64(&said));
        assert_eq!(id_token(&bare, &keys(), TERMS).unwrap_err(), TokenFault::Algorithm.into());
    }
}
