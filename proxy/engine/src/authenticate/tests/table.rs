//! Which tokens hold.

use proptest::prelude::*;

use super::*;

/// Aim: every algorithm that is taken verifies, with the key found by its identifier, without one, and by the only key of its kind.
#[test]
fn every_algorithm_verifies() {
    let own = rules(vec![rule()]);
    for (algorithm, id) in [
        ("ES256", "es256"),
        ("ES384", "es384"),
        ("EdDSA", "ed"),
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa"),
        ("PS256", "rsa"),
        ("PS384", "rsa"),
        ("PS512", "rsa"),
    ] {
        for header in [json!({"alg": algorithm, "kid": id}), json!({"alg": algorithm})] {
            let token = signed(&header.to_string(), &claims(json!({})).to_string(), algorithm);
            let accepted = judge(&own, &with_bearer(&token)).unwrap().unwrap();
            assert_eq!((&*accepted.claims.issuer, accepted.claims.content["sub"].as_str()), (ISSUER, Some("ada")), "{header}");
        }
    }
}

/// Aim: what must not be believed is not, and the fault says why: the table of JWT's known attacks and mistakes (RFC 8725).
#[test]
fn what_must_not_be_believed_is_not() {
    use TokenFault::{Algorithm, Audience, Critical, Expired, Issuer, Malformed, Signature, TooEarly, TooLong, UnknownKey};
    let own = rules(vec![rule()]);
    let good = claims(json!({})).to_string();
    let header = |header: Value| signed(&header.to_string(), &good, "ES256");
    let said = |claims: &str| signed(r#"{"alg":"ES256","kid":"es256"}"#, claims, "ES256");
    let valid = token(json!({}));
    let (message, signature) = valid.rsplit_once('.').unwrap();
    let (head, body) = message.split_once('.').unwrap();
    // The public key as the secret of an HMAC, which a naive verifier would take.
    let confused = {
        let message = format!("{}.{}", b64(r#"{"alg":"HS256","kid":"es256"}"#), b64(&good));
        let secret = signers().public("P-256", "").to_string();
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        format!("{message}.{}", b64(aws_lc_rs::hmac::sign(&key, message.as_bytes()).as_ref()))
    };
    let rows = [
        ("another body", format!("{head}.{}.{signature}", b64(claims(json!({"sub": "eve"})).to_string())), Signature),
        ("another header", format!("{}.{body}.{signature}", b64(r#"{"alg":"ES256","kid":"es256"}"#)), Signature),
        ("half a signature", format!("{message}.{}", &signature[..40]), Signature),
        ("no signature", format!("{message}."), Signature),
        ("two parts", message.to_owned(), Malformed),
        ("five parts, as of JWE", format!("{valid}.a.b"), Malformed),
        ("padding", format!("{head}=.{body}.{signature}"), Malformed),
        ("no base64url", format!("{head}.{body}+/.{signature}"), Malformed),
        ("words", "open sesame".to_owned(), Malformed),
        ("alg none", format!("{}.{body}.", b64(r#"{"alg":"none"}"#)), Algorithm),
        ("alg None", header(json!({"alg": "nOnE"})), Algorithm),
        ("alg by a shared secret", confused, Algorithm),
        ("alg of the wrong case", header(json!({"alg": "es256"})), Algorithm),
        ("alg ES512", header(json!({"alg": "ES512"})), Algorithm),
        ("no alg", header(json!({"kid": "es256"})), Malformed),
        ("crit", header(json!({"alg": "ES256", "crit": ["b64"], "b64": false})), Critical),
        ("crit that is null", header(json!({"alg": "ES256", "kid": "es256", "crit": null})), Critical),
        ("a key that nobody knows", header(json!({"alg": "ES256", "kid": "other"})), UnknownKey),
        ("a key of another kind", header(json!({"alg": "ES256", "kid": "rsa"})), UnknownKey),
        ("a key of another curve", header(json!({"alg": "ES256", "kid": "es384"})), UnknownKey),
        ("another algorithm's signature", header(json!({"alg": "EdDSA", "kid": "ed"})), Signature),
        ("alg twice", signed(r#"{"alg":"none","alg":"ES256","kid":"es256"}"#, &good, "ES256"), Malformed),
        ("a claim twice", said(&good.replacen('{', r#"{"sub":"eve","#, 1)), Malformed),
        (
            "a claim twice within another",
            said(&good.replacen('{', r#"{"realm_access":{"roles":["user"],"roles":["admin"]},"#, 1)),
            Malformed,
        ),
        ("a claim twice within a list", said(&good.replacen('{', r#"{"a":[1,{"b":{"c":1,"c":2}}],"#, 1)), Malformed),
        ("claims that are a list", said("[1]"), Malformed),
        ("claims that are no JSON", said("{"), Malformed),
        ("claims after claims", said(&format!("{good}{{}}")), Malformed),
        ("deep claims", said(&format!(r#"{{"iss":"{ISSUER}","a":{}1{}}}"#, "[".repeat(200), "]".repeat(200))), Malformed),
        ("bytes that are no text", said(&good).replacen("eyJ", "_-_", 1), Malformed),
        ("expired", token(json!({"exp": NOW - 31})), Expired),
        ("expired just now", token(json!({"exp": NOW - 30})), Expired),
        ("expired before 1970", token(json!({"exp": -5})), Expired),
        ("not yet", token(json!({"nbf": NOW + 31})), TooEarly),
        ("issued tomorrow", token(json!({"iat": NOW + 86_400})), TooEarly),
        ("an end in words", token(json!({"exp": "tomorrow"})), Malformed),
        ("a begin in words", token(json!({"nbf": true})), Malformed),
        ("no audience", token(json!({"aud": null})), Audience),
        ("another audience", token(json!({"aud": "bank"})), Audience),
        ("other audiences", token(json!({"aud": ["bank", 7, "storefront"]})), Audience),
        ("an audience that is an object", token(json!({"aud": {"store": 1}})), Audience),
        ("no issuer", token(json!({"iss": null})), Issuer),
        ("another issuer", token(json!({"iss": "https://id.example/"})), Issuer),
        ("issuers", token(json!({"iss": [ISSUER]})), Issuer),
        ("too much", token(json!({"text": "a".repeat(TOKEN_BYTES_MAX)})), TooLong),
    ];
    for (what, token, fault) in rows {
        assert_eq!(judge(&own, &with_bearer(&token)).map(|accepted| accepted.is_some()), Err(fault), "{what}: {token}");
    }
}

/// Aim: bytes beyond ASCII come through a header, and are no token.
#[test]
fn bytes_are_no_token() {
    let mut request = request("/", &[]);
    request.headers.insert("authorization", HeaderValue::from_bytes(b"Bearer \xc3\xa4.\xff.b").unwrap());
    assert_eq!(judge(&rules(vec![rule()]), &request).unwrap_err(), TokenFault::Malformed);
}

/// Aim: what is unusual and right is believed: clocks that differ, lists of audiences, fractions, no end, keys and places in the header
/// (which are not asked), unknown claims of any shape.
#[test]
fn what_is_right_is_believed() {
    let own = rules(vec![rule()]);
    let odd_header =
        json!({"alg": "ES256", "kid": "es256", "jwk": signers().public("Ed25519", "x"), "jku": "https://evil.example/", "x5u": 1});
    for token in [
        token(json!({"exp": NOW - 29})),
        token(json!({"nbf": NOW + 30, "iat": NOW + 30})),
        token(json!({"exp": null, "iat": null})),
        token(json!({"exp": NOW as f64 + 0.5})),
        token(json!({"exp": 1e300})),
        token(json!({"aud": ["bank", "store"]})),
        token(json!({"sub": "Ä\u{1F600}", "deep": {"a": [{"b": null}, {"b": [-1, 1.5, true, "b"]}], "b": {}}})),
        signed(&odd_header.to_string(), &claims(json!({})).to_string(), "ES256"),
    ] {
        assert!(judge(&own, &with_bearer(&token)).unwrap().is_some(), "{token}");
    }
    let any_audience = rules(vec![RawRule { audiences: Vec::new(), ..rule() }]);
    assert!(judge(&any_audience, &with_bearer(&token(json!({"aud": null})))).unwrap().is_some());
}

/// Aim: of a set only what may verify signatures is used; the rest is told, and a set without anything is refused.
#[test]
fn sets_are_read_key_by_key() {
    let with = |kind: &str, name: &str, value: Value| {
        let mut key = signers().public(kind, "k");
        key[name] = value;
        key
    };
    let short = json!({"kty": "RSA", "kid": "k", "n": b64([0xff; 128]), "e": "AQAB"});
    for (key, word) in [
        (with("P-256", "use", json!("enc")), "not for signatures"),
        (with("P-256", "key_ops", json!(["encrypt"])), "not for verifying"),
        (with("P-256", "alg", json!("ES384")), "`ES384`"),
        (with("RSA", "alg", json!("RSA-OAEP")), "`RSA-OAEP`"),
        (with("P-256", "d", json!("AA")), "private part"),
        (with("P-256", "crv", json!("P-521")), "`P-521`"),
        (with("P-256", "crv", json!("P-384")), "48 bytes"),
        (with("P-256", "x", json!("AA")), "32 bytes"),
        (with("P-256", "y", json!("?")), "base64url"),
        (with("P-256", "x", Value::Null), "no `x`"),
        (with("RSA", "e", json!("AA")), "exponent"),
        (short, "1024 bits"),
        (json!({"kty": "oct", "k": "AAAA", "kid": "k"}), "shared secret"),
        (json!({"kty": "LWE"}), "`LWE`"),
        (json!(7), "key number 1"),
    ] {
        let set = |keys: Value| KeySet::read(json!({"keys": keys}).to_string().as_bytes());
        let why = set(json!([key])).unwrap_err();
        assert!(why.contains(word), "{key}: {why}");
        let beside = set(json!([key, signers().public("Ed25519", "good")])).unwrap();
        assert_eq!((beside.len(), beside.skipped().len()), (1, 1));
        assert!(beside.skipped()[0].contains(word));
    }
    let many = json!({"keys": vec![signers().public("Ed25519", "k"); KEYS_MAX + 2]}).to_string();
    let many = KeySet::read(many.as_bytes()).unwrap();
    assert_eq!((many.len(), many.skipped().len()), (KEYS_MAX, 2));
    for bad in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[]}"#] {
        assert!(KeySet::read(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(KeySet::read(&vec![b' '; KEY_SET_BYTES_MAX + 1]).unwrap_err().contains("bytes"));
    // For one algorithm alone, which another of its family is not.
    let only = KeySet::read(json!({"keys": [with("RSA", "alg", json!("PS256"))]}).to_string().as_bytes()).unwrap();
    assert_eq!(only.fitting(jsonwebtoken::Algorithm::RS256, None).count(), 0);
    assert_eq!(only.fitting(jsonwebtoken::Algorithm::PS256, None).count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// Aim: nothing that is shown as a token makes the reader panic, and what is not signed is never believed.
    #[test]
    fn nothing_unsigned_is_believed(
        text in prop_oneof!["[ -~]{0,80}", "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,90}"],
        flip in any::<(usize, u8)>(),
        cut in any::<usize>(),
    ) {
        let own = rules(vec![RawRule { jwks: json!({"keys": [signers().public("P-256", "es256")]}).to_string(), ..rule() }]);
        let refused = |token: &[u8]| {
            let mut parts = request("/", &[]);
            let Ok(value) = HeaderValue::from_bytes(&[b"Bearer ", token].concat()) else { return true };
            parts.headers.insert("authorization", value);
            !matches!(judge(&own, &parts), Ok(Some(_)))
        };
        prop_assert!(refused(text.as_bytes()));
        let good = token(json!({})).into_bytes();
        let mut broken = good.clone();
        let place = flip.0 % broken.len();
        broken[place] ^= flip.1;
        // The last letter of a part has bits that mean nothing, which the decoder refuses.
        prop_assert!(broken == good || refused(&broken));
        prop_assert!(refused(&good[..cut % good.len()]));
    }

    /// Aim: no key set makes the reader panic.
    #[test]
    fn no_key_set_breaks_the_reader(text in ".{0,200}", flip in any::<(usize, u8)>()) {
        let _ = KeySet::read(text.as_bytes());
        let mut set = signers().jwks().to_string().into_bytes();
        let place = flip.0 % set.len();
        set[place] ^= flip.1;
        let _ = KeySet::read(&set);
    }
}
