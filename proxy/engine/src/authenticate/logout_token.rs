//! Logout tokens (OpenID Connect Back-Channel Logout 1.0, section 2.6): a provider's word that somebody's sessions have ended.

use std::time::Duration;

use serde_json::Value;

use super::keys::KeySet;
use super::token::{Token, plain_type};

/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(30);
/// Oldest that is heard, in seconds: one that somebody has kept means nothing.
const AGE_SECS_MAX: u64 = 300;
/// What such a token says has happened.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// Longest name of a session or a user.
const NAME_BYTES_MAX: usize = 1_024;

/// What ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutSaid {
    /// A session of the provider's.
    pub session: Option<String>,
    /// Somebody.
    pub subject: Option<String>,
    /// When that was said, Unix time by the provider's clock.
    pub issued_secs: u64,
}

/// Why it is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutFault {
    /// It is none, or of others; why.
    NotMeant(&'static str),
    /// No key at hand is the one that it names: newer ones may be.
    NewKey,
}

/// What a token ends, if a key of the issuer's has signed it for that client.
///
/// # Errors
/// It is not to be heard.
pub fn logout_token(token: &str, keys: &KeySet, (issuer, client): (&str, &str), now_secs: u64) -> Result<LogoutSaid, LogoutFault> {
    let not = |why| Err(LogoutFault::NotMeant(why));
    let token = Token::read(token.as_bytes()).map_err(|fault| LogoutFault::NotMeant(fault.text()))?;
    if token.issuer() != Some(issuer) {
        return not("it is of another issuer");
    }
    if token.is_for(&[client.to_owned()]).is_err() {
        return not("it is for another client");
    }
    let kind = token.kind().map(plain_type).unwrap_or_default();
    if !["", "JWT", "logout+jwt"].iter().any(|known| known.eq_ignore_ascii_case(kind)) {
        return not("it is a token of another type");
    }
    let Some(issued) = token.claims.get("iat").and_then(Value::as_f64).filter(|issued| *issued >= 0.0) else {
        return not("it does not say when it was issued");
    };
    let issued_secs = issued as u64;
    if token.holds(now_secs, SKEW).is_err() || now_secs > issued_secs.saturating_add(AGE_SECS_MAX + SKEW.as_secs()) {
        return not("it is too old, or does not hold yet");
    }
    let said = |claim: &str| token.claims.get(claim).and_then(Value::as_str);
    if said("jti").is_none_or(str::is_empty) {
        return not("it has no name of its own: jti");
    }
    // Else it could be taken for an ID token, or the other way round.
    if token.claims.contains_key("nonce") {
        return not("it has a nonce, as an ID token has");
    }
    if !token.claims.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object) {
        return not("it does not say that somebody has logged out: events");
    }
    let name = |claim: &str| match token.claims.get(claim) {
        None => Ok(None),
        Some(Value::String(name)) if !name.is_empty() && name.len() <= NAME_BYTES_MAX => Ok(Some(name.clone())),
        Some(_) => Err(LogoutFault::NotMeant("its sid or sub is no name")),
    };
    let (session, subject) = (name("sid")?, name("sub")?);
    if session.is_none() && subject.is_none() {
        return not("it says of nobody that sessions end: sid, sub");
    }
    match token.verify(keys) {
        Ok(()) => Ok(LogoutSaid { session, subject, issued_secs }),
        Err(_) if !token.is_known_to(keys) => Err(LogoutFault::NewKey),
        Err(fault) => Err(LogoutFault::NotMeant(fault.text())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{ISSUER, NOW, b64, claims, signed, signers};
    use super::*;

    #[test]
    fn a_provider_ends_sessions_by_its_own_word_alone() {
        // Aim: Back-Channel Logout 1.0, section 2.6: each thing that such a token has to say, or may not; signed by whom, for whom, how lately.
        let keys = KeySet::read(signers().jwks().to_string().as_bytes()).unwrap();
        let judge = |header: &str, changes: Value| {
            let mut said = json!({"jti": "a", "iat": NOW, "exp": NOW + 120, "sid": "s", "events": {EVENT: {}}});
            said.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let token = signed(header, &claims(said).to_string(), "ES256");
            logout_token(&token, &keys, (ISSUER, "store"), NOW)
        };
        let plain = r#"{"alg":"ES256","kid":"es256"}"#;
        let said = judge(plain, json!({})).unwrap();
        assert_eq!((said.session.as_deref(), said.subject.as_deref(), said.issued_secs), (Some("s"), Some("ada"), NOW));
        let nameless = judge(r#"{"alg":"ES256","kid":"es256","typ":"logout+jwt"}"#, json!({"sub": null})).unwrap();
        assert_eq!((nameless.session.as_deref(), nameless.subject), (Some("s"), None));
        for (changes, told) in [
            (json!({"iss": "https://other.example"}), "another issuer"),
            (json!({"aud": "other"}), "another client"),
            (json!({"iat": "now"}), "when it was issued"),
            (json!({"iat": NOW - 331, "exp": NOW + 9}), "too old"),
            (json!({"iat": NOW + 60}), "does not hold yet"),
            (json!({"exp": NOW - 60}), "too old"),
            (json!({"jti": ""}), "jti"),
            (json!({"nonce": "n"}), "nonce"),
            (json!({"events": {}}), "events"),
            (json!({"events": [EVENT]}), "events"),
            (json!({"events": {EVENT: "yes"}}), "events"),
            (json!({"sid": 7}), "no name"),
            (json!({"sid": "x".repeat(NAME_BYTES_MAX + 1)}), "no name"),
        ] {
            let Err(LogoutFault::NotMeant(why)) = judge(plain, changes.clone()) else { panic!("{changes}") };
            assert!(why.contains(told), "{changes}: {why}");
        }
        let Err(LogoutFault::NotMeant(why)) = judge(r#"{"alg":"ES256","kid":"es256","typ":"at+jwt"}"#, json!({})) else { panic!() };
        assert!(why.contains("another type"), "{why}");
        assert_eq!(judge(r#"{"alg":"ES256","kid":"newer"}"#, json!({})), Err(LogoutFault::NewKey));
        let bare = format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64(r#"{"iss":"x"}"#));
        assert!(matches!(logout_token(&bare, &keys, (ISSUER, "store"), NOW), Err(LogoutFault::NotMeant(_))));
    }
}
