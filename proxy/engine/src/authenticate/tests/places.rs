//! Where tokens are found, what becomes of them, and what is remembered.

use proto::mesh::ClaimHeader;

use super::*;

fn everywhere() -> RawRule {
    let from_headers = [bearer(), vec![TokenHeader { name: "x-token".into(), prefix: String::new() }]].concat();
    RawRule { from_headers, from_query: vec!["token".into()], from_cookies: vec!["sid".into()], ..rule() }
}

/// Headers by name.
type Fields<'a> = &'a [(&'a str, &'a str)];
/// Target and headers of a request, and what is left of both.
type Row<'a> = (&'a str, Fields<'a>, &'a str, Fields<'a>);

/// Aim: a token is found at every place that a rule names and at no other, however an application would read that place; it is taken out
/// there, and nothing else is.
#[test]
fn tokens_are_found_and_taken_out() {
    let own = rules(vec![everywhere()]);
    let token = token(json!({}));
    let t = token.as_str();
    let encoded = token.replace('.', "%2e");
    let rows: [Row<'_>; 9] = [
        ("/a?b=1", &[("authorization", "Bearer <T>")], "/a?b=1", &[]),
        ("/", &[("authorization", "bEARER \t <T> "), ("x-a", "1")], "/", &[("x-a", "1")]),
        ("/", &[("x-token", "<T>")], "/", &[]),
        ("/a?token=<T>", &[], "/a", &[]),
        ("/a?b=1&token=<T>&c=%20", &[("cookie", "a=1")], "/a?b=1&c=%20", &[("cookie", "a=1")]),
        ("/a?t%6fken=<E>", &[], "/a", &[]),
        ("/", &[("cookie", "a=1; sid=<T>; b=2")], "/", &[("cookie", "a=1; b=2")]),
        ("/", &[("cookie", "sid=\"<T>\""), ("cookie", "b=2")], "/", &[("cookie", "b=2")]),
        (
            "/?token=<T>",
            &[("authorization", "Bearer <T>"), ("authorization", "Basic b"), ("cookie", "sid=<T>")],
            "/",
            &[("authorization", "Basic b")],
        ),
    ];
    for (target, headers, left, kept) in rows {
        let full = |text: &str| text.replace("<T>", t).replace("<E>", &encoded);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, full(value))).collect();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut parts = request(&full(target), &headers);
        let verdict = judge_at(&own, &parts, &mut Remembered::new(1), NOW);
        assert!(matches!(verdict, TokenVerdict::Accepted(_)), "{target} {headers:?}: {verdict:?}");
        own.carry_out(&verdict, &mut parts);
        let remaining: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!((parts.uri.to_string().as_str(), remaining.as_slice()), (left, kept), "{target}");
    }
    for (target, name, value) in [
        ("/", "authorization", format!("Basic {t}")),
        ("/", "authorization", "Bearer ".to_owned()),
        ("/", "authorization", "Bear".to_owned()),
        ("/?token=", "cookie", format!("other={t}; sid=")),
        ("/?tokens=x", "x-other", token.clone()),
    ] {
        assert!(judge(&own, &request(target, &[(name, &value)])).unwrap().is_none(), "{target} {name}");
    }
    let forwarded = rules(vec![RawRule { forward_token: true, ..everywhere() }]);
    let mut parts = request(&format!("/?token={t}"), &[("authorization", &format!("Bearer {t}"))]);
    let verdict = judge_at(&forwarded, &parts, &mut Remembered::new(1), NOW);
    forwarded.carry_out(&verdict, &mut parts);
    assert!(parts.uri.query().is_some() && parts.headers.contains_key("authorization"));
}

/// Aim: with two different tokens nobody can say who asks, wherever they stand: 400, as RFC 6750 has it.
#[test]
fn different_tokens_are_refused() {
    let own = rules(vec![everywhere()]);
    let (one, other) = (token(json!({})), token(json!({"sub": "eve"})));
    for (target, headers) in [
        (format!("/?token={other}"), vec![("authorization", format!("Bearer {one}"))]),
        (format!("/?token={one}&token={other}"), vec![]),
        ("/".to_owned(), vec![("authorization", format!("Bearer {one}")), ("authorization", format!("Bearer {other}"))]),
        ("/".to_owned(), vec![("cookie", format!("sid={one}")), ("cookie", format!("sid={other}"))]),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(judge(&own, &request(&target, &headers)).unwrap_err(), TokenFault::Several);
    }
    let reply = TokenFault::Several.reply();
    assert_eq!((reply.status.as_u16(), reply.reason), (400, Some(crate::failure::Reason::BadRequest)));
}

/// Aim: each issuer's token is judged by its own rules, only where those look; of several rules for one issuer one that accepts is enough.
#[test]
fn rules_are_chosen_by_issuer_and_place() {
    let partner = RawRule {
        policy: "shop/partner".into(),
        issuer: "https://partner.example".into(),
        from_headers: vec![TokenHeader { name: "x-partner".into(), prefix: String::new() }],
        ..rule()
    };
    let wider = RawRule { policy: "shop/wider".into(), audiences: vec!["bank".into()], ..rule() };
    let own = rules(vec![rule(), partner, wider]);
    let of = |issuer: &str| token(json!({"iss": issuer}));
    let accepted = judge(&own, &request("/", &[("x-partner", &of("https://partner.example"))])).unwrap().unwrap();
    assert_eq!((own.policy(&accepted), &*accepted.claims.issuer), ("shop/partner", "https://partner.example"));
    assert_eq!(judge(&own, &with_bearer(&of("https://partner.example"))).unwrap_err(), TokenFault::Issuer);
    assert_eq!(judge(&own, &request("/", &[("x-partner", &of(ISSUER))])).unwrap_err(), TokenFault::Issuer);
    let for_bank = judge(&own, &with_bearer(&token(json!({"aud": "bank"})))).unwrap().unwrap();
    assert_eq!(own.policy(&for_bank), "shop/wider");
}

/// Aim: claims fill their headers and nothing else does: what the caller says there goes, with a token or without one; a claim that cannot be a
/// header, or would say more as one than was signed, fills none.
#[test]
fn claims_fill_headers_and_callers_do_not() {
    let fill = |claim: &str, header: &str| ClaimHeader { claim: claim.into(), header: header.into() };
    let claims_to_headers = vec![
        fill("sub", "x-user"),
        fill("groups", "x-groups"),
        fill("realm.roles", "x-roles"),
        fill("line", "x-line"),
        fill("name", "x-name"),
        fill("realm", "x-object"),
        fill("big", "x-big"),
    ];
    let own = rules(vec![RawRule { claims_to_headers, ..rule() }]);
    let token = token(json!({
        "groups": ["staff", "a,admin", 7], "realm": {"roles": ["x"]}, "line": "a\r\nx-admin: 1", "name": "Love, Ada", "big": "b".repeat(5000),
    }));
    let mut parts = with_bearer(&token);
    for header in ["x-user", "x-groups", "x-roles", "x-line", "x-name", "x-object", "x-big"] {
        parts.headers.append(header, HeaderValue::from_static("root"));
        parts.headers.append(header, HeaderValue::from_static("again"));
    }
    let mut without = parts.clone();
    without.headers.remove("authorization");
    without.headers.append("x_user", HeaderValue::from_static("root"));
    without.headers.append("x_other", HeaderValue::from_static("1"));
    let verdict = judge_at(&own, &parts, &mut Remembered::new(1), NOW);
    own.carry_out(&verdict, &mut parts);
    let mut said: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    said.sort_unstable();
    assert_eq!(said, [("x-groups", "staff,7"), ("x-name", "Love, Ada"), ("x-roles", "x"), ("x-user", "ada")]);
    own.carry_out(&TokenVerdict::Without, &mut without);
    assert_eq!(without.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x_other"]);
}

/// Aim: applications that read headers as variables take `_` and `-` for one: whichever of them a claim fills, a caller says nothing in the other.
#[test]
fn a_filled_header_has_no_twin() {
    for (filled, twins) in
        [("x-user", &["x_user", "X-User"][..]), ("x_user", &["x-user", "x_user"]), ("x-user_id", &["x-user-id", "x_user_id", "x_user-id"])]
    {
        let claims_to_headers = vec![ClaimHeader { claim: "sub".into(), header: filled.into() }];
        let own = rules(vec![RawRule { claims_to_headers, ..rule() }]);
        for shown in [true, false] {
            let mut parts = if shown { with_bearer(&token(json!({}))) } else { request("/", &[]) };
            for twin in twins {
                parts.headers.append(HeaderName::from_bytes(twin.as_bytes()).unwrap(), HeaderValue::from_static("root"));
            }
            parts.headers.append("x-other", HeaderValue::from_static("1"));
            let verdict = judge_at(&own, &parts, &mut Remembered::new(1), NOW);
            own.carry_out(&verdict, &mut parts);
            let mut left: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            left.sort_unstable();
            let claimed = shown.then_some((filled, "ada"));
            let mut wanted: Vec<_> = [("x-other", "1")].into_iter().chain(claimed).collect();
            wanted.sort_unstable();
            assert_eq!(left, wanted, "{filled}");
        }
    }
}

/// Aim: a token is verified once; it is asked again when its time is over, its keys have changed or the rules have, and where its rule does not
/// look it counts for nothing. What is remembered stays within its bound.
#[test]
fn tokens_are_remembered_while_they_hold() {
    let mut remembered = Remembered::new(7);
    let own = rules(vec![rule()]);
    let parts = with_bearer(&token(json!({})));
    let accepted = |verdict| if let TokenVerdict::Accepted(accepted) = verdict { Some(accepted) } else { None };
    let first = accepted(judge_at(&own, &parts, &mut remembered, NOW)).unwrap();
    let again = accepted(judge_at(&own, &parts, &mut remembered, NOW + 629)).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert!(
        matches!(judge_at(&own, &parts, &mut remembered, NOW + 630), TokenVerdict::Refused(TokenFault::Expired)),
        "not a second longer"
    );
    let parts = with_bearer(&token(json!({"exp": NOW as f64 + 600.5})));
    let first = accepted(judge_at(&own, &parts, &mut remembered, NOW)).unwrap();
    assert!(Arc::ptr_eq(&first, &accepted(judge_at(&own, &parts, &mut remembered, NOW + 630)).unwrap()));
    assert!(matches!(judge_at(&own, &parts, &mut remembered, NOW + 631), TokenVerdict::Refused(TokenFault::Expired)));
    let others = rules(vec![RawRule { jwks: json!({"keys": [signers().public("Ed25519", "es256")]}).to_string(), ..rule() }]);
    assert!(matches!(judge_at(&others, &parts, &mut remembered, NOW), TokenVerdict::Refused(TokenFault::UnknownKey)));
    for number in 0..3000 {
        let parts = with_bearer(&token(json!({"jti": number, "text": "x".repeat(6000)})));
        assert!(accepted(judge_at(&own, &parts, &mut remembered, NOW)).is_some());
        assert!(remembered.bytes() <= REMEMBERED_BYTES_MAX);
        if number > 800 {
            break;
        }
    }
}

fn fetched() -> RawRule {
    RawRule { jwks: String::new(), jwks_uri: "https://id.example/keys".into(), ..rule() }
}

/// Aim: without keys nobody is let in and nobody is called a liar (503); with them tokens hold, other keys are asked for now and then, and keys
/// that are gone end what was remembered by them. Equal content is no change. The cell outlives the rules of one epoch.
#[test]
fn fetched_keys_come_and_go() {
    let mut parts = build::Parts::default();
    put(&mut parts, vec![fetched()]).unwrap();
    let own = parts.assemble(1, &Snapshot::default()).authentication.unwrap();
    let cell = Arc::clone(own.cells().next().unwrap());
    let (mut remembered, request) = (Remembered::new(1), with_bearer(&token(json!({}))));
    let mut at = |own: &Authentication, now| match judge_at(own, &request, &mut remembered, now) {
        TokenVerdict::Refused(fault) => Some(fault),
        _ => None,
    };
    assert_eq!(at(&own, NOW), Some(TokenFault::KeysPending));
    let reply = TokenFault::KeysPending.reply();
    assert_eq!((reply.status.as_u16(), reply.reason), (503, Some(crate::failure::Reason::PolicyUnavailable)));
    let others = json!({"keys": [signers().public("RSA", "old")]}).to_string();
    cell.asked(NOW);
    cell.publish(others.as_bytes()).unwrap();
    assert_eq!((at(&own, NOW + 9), cell.is_missed()), (Some(TokenFault::UnknownKey), false));
    assert_eq!((at(&own, NOW + 10), cell.is_missed()), (Some(TokenFault::KeysPending), true));
    let jwks = signers().jwks().to_string();
    cell.asked(NOW + 4000);
    assert_eq!((at(&own, NOW + 10), cell.is_missed()), (Some(TokenFault::KeysPending), true), "a clock that was set back");
    cell.asked(NOW + 10);
    let keys = cell.publish(jwks.as_bytes()).unwrap();
    assert!(Arc::ptr_eq(&keys, &cell.publish(jwks.as_bytes()).unwrap()) && !cell.is_missed());
    assert_eq!(at(&own, NOW + 11), None);
    assert!(cell.publish(b"<html>").is_err());
    assert_eq!(at(&own, NOW + 11), None);
    // A new epoch with another rule beside it has the same cell.
    put(&mut parts, vec![fetched(), RawRule { issuer: "b".into(), ..rule() }]).unwrap();
    let next = parts.assemble(2, &Snapshot::default()).authentication.unwrap();
    assert!(Arc::ptr_eq(next.cells().next().unwrap(), &cell));
    cell.publish(others.as_bytes()).unwrap();
    assert_eq!(at(&own, NOW + 12), Some(TokenFault::UnknownKey));
    cell.expire();
    assert_eq!(at(&own, NOW + 12), Some(TokenFault::KeysPending));
}

/// Rules whose keys are fetched, the cell, and a judge of one token.
fn judged_by_fetched() -> (Arc<Authentication>, Arc<KeyCell>) {
    let own = rules(vec![fetched()]);
    let cell = Arc::clone(own.cells().next().unwrap());
    (own, cell)
}

/// Aim: what an issuer takes away is gone, also where it takes away all that can be used: only what is no key set leaves the keys at hand.
#[test]
fn an_issuer_may_take_all_its_keys_away() {
    let (own, cell) = judged_by_fetched();
    let (mut remembered, request) = (Remembered::new(1), with_bearer(&token(json!({}))));
    let unusable = json!({"keys": [{"kty": "EC", "crv": "P-521", "kid": "es512"}]}).to_string();
    for gone in [r#"{"keys":[]}"#, &unusable] {
        cell.publish(signers().jwks().to_string().as_bytes()).unwrap();
        assert!(matches!(judge_at(&own, &request, &mut remembered, NOW), TokenVerdict::Accepted(_)));
        assert!(cell.publish(b"{}").is_err());
        assert!(matches!(judge_at(&own, &request, &mut remembered, NOW), TokenVerdict::Accepted(_)));
        assert!(cell.publish(gone.as_bytes()).unwrap().is_empty());
        assert!(matches!(judge_at(&own, &request, &mut remembered, NOW), TokenVerdict::Refused(_)), "{gone}");
    }
}

/// Aim: while newer keys are on their way, or could not be had, nobody is called a liar for a key that they may hold; only just after they came.
#[test]
fn while_keys_are_on_their_way_tokens_are_told_to_wait() {
    let (own, cell) = judged_by_fetched();
    let (mut remembered, request) = (Remembered::new(1), with_bearer(&token(json!({}))));
    let mut at = |now| match judge_at(&own, &request, &mut remembered, now) {
        TokenVerdict::Refused(fault) => fault,
        other => panic!("{other:?}"),
    };
    let others = json!({"keys": [signers().public("RSA", "old")]}).to_string();
    cell.asked(NOW);
    cell.publish(others.as_bytes()).unwrap();
    assert_eq!((at(NOW + 1), cell.is_missed()), (TokenFault::UnknownKey, false));
    cell.asked(NOW + 20);
    assert_eq!((at(NOW + 21), cell.is_missed()), (TokenFault::KeysPending, false), "under way");
    assert!(cell.publish(b"<html>").is_err());
    assert_eq!((at(NOW + 22), cell.is_missed()), (TokenFault::KeysPending, false), "failed");
    assert_eq!((at(NOW + 30), cell.is_missed()), (TokenFault::KeysPending, true));
    cell.asked(NOW + 30);
    cell.publish(others.as_bytes()).unwrap();
    assert_eq!(at(NOW + 31), TokenFault::UnknownKey, "the same keys are an answer, too");
}

/// Aim: a rotation is followed also where keys have no identifier or tokens name none; a token whose own key is at hand and has not signed it
/// has nothing fetched.
#[test]
fn a_rotation_without_identifiers_is_followed() {
    let of = |kid: Option<&str>| {
        let mut header = json!({"alg": "ES256"});
        header["kid"] = kid.into();
        with_bearer(&signed(&header.to_string(), &claims(json!({})).to_string(), "ES256"))
    };
    let old = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = old.public_key().as_ref()[1..].split_at(32);
    for (id, kid, wanted) in [
        (None, Some("new"), TokenFault::KeysPending),
        (None, None, TokenFault::KeysPending),
        (Some("old"), None, TokenFault::KeysPending),
        (Some("old"), Some("old"), TokenFault::Signature),
    ] {
        let (own, cell) = judged_by_fetched();
        let mut key = json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)});
        key["kid"] = id.into();
        cell.asked(NOW);
        cell.publish(json!({"keys": [key]}).to_string().as_bytes()).unwrap();
        for (now, wanted) in [(NOW + 9, TokenFault::Signature), (NOW + 10, wanted)] {
            let verdict = judge_at(&own, &of(kid), &mut Remembered::new(1), now);
            assert!(matches!(verdict, TokenVerdict::Refused(fault) if fault == wanted), "{id:?} {kid:?}: {verdict:?}");
        }
        assert_eq!(cell.is_missed(), wanted == TokenFault::KeysPending);
    }
}

/// Aim: what is wrong with a rule is refused by name; where nothing good was there before, nothing is let in, else the last good rules stay.
#[test]
fn bad_rules_are_refused_and_close_the_door() {
    let fill = |header: &str| vec![ClaimHeader { claim: "sub".into(), header: header.into() }];
    let rows = [
        (RawRule { issuer: String::new(), ..rule() }, "rules[0].issuer"),
        (RawRule { issuer: "a".repeat(3000), ..rule() }, "rules[0].issuer"),
        (RawRule { jwks: "{}".into(), ..rule() }, "rules[0].jwks"),
        (RawRule { jwks: String::new(), ..rule() }, "rules[0].jwks"),
        (RawRule { jwks_uri: "https://a/".into(), ..rule() }, "rules[0].jwks"),
        (RawRule { jwks_uri: "ftp://a/".into(), ..fetched() }, "rules[0].jwks_uri"),
        (RawRule { jwks_uri: "https://user:pw@a/".into(), ..fetched() }, "rules[0].jwks_uri"),
        (RawRule { from_headers: Vec::new(), ..rule() }, "rules[0].from_headers"),
        (RawRule { from_headers: vec![TokenHeader { name: "a b".into(), prefix: String::new() }], ..rule() }, "rules[0].from_headers.name"),
        (RawRule { from_query: vec![String::new()], ..rule() }, "rules[0].from_query"),
        (RawRule { audiences: vec!["a".into(); 65], ..rule() }, "rules[0].audiences"),
        (RawRule { claims_to_headers: fill("content-length"), ..rule() }, "rules[0].claims_to_headers.header"),
        (RawRule { claims_to_headers: fill("X-Forwarded-Client-Cert"), ..rule() }, "rules[0].claims_to_headers.header"),
        (RawRule { clock_skew: Some(prost_types::Duration { seconds: 601, nanos: 0 }), ..rule() }, "rules[0].clock_skew"),
    ];
    for (bad, field) in rows {
        let mut parts = build::Parts::default();
        let refused = put(&mut parts, vec![bad.clone()]).unwrap_err();
        assert_eq!(refused.field, field, "{refused}");
        let closed = parts.assemble(1, &Snapshot::default()).authentication.unwrap();
        assert_eq!(judge(&closed, &request("/", &[])).unwrap_err(), TokenFault::Unconfigured);
        put(&mut parts, vec![rule()]).unwrap();
        put(&mut parts, vec![bad]).unwrap_err();
        let kept = parts.assemble(2, &Snapshot::default()).authentication.unwrap();
        assert!(judge(&kept, &with_bearer(&token(json!({})))).unwrap().is_some());
    }
    let mut parts = build::Parts::default();
    assert_eq!(put(&mut parts, Vec::new()).unwrap_err().field, "rules");
    assert_eq!(put(&mut parts, vec![rule(); 65]).unwrap_err().field, "rules");
}

/// Aim: where rules were left out nothing opens: a token at their places that no other rule accepts is refused, what a caller says in their
/// headers goes, a request without a token passes as before.
#[test]
fn what_was_left_out_stays_closed() {
    let withheld = proto::mesh::WithheldTokens {
        from_headers: vec![TokenHeader { name: "x-token".into(), prefix: String::new() }],
        from_query: vec!["t".into()],
        from_cookies: vec!["sid".into()],
        headers: vec!["x-tenant".into()],
    };
    let mut parts = build::Parts::default();
    put_raw(&mut parts, &Raw { rules: vec![rule()], withheld: Some(withheld) }).unwrap();
    let own = parts.assemble(1, &Snapshot::default()).authentication.unwrap();
    let (good, other) = (token(json!({})), token(json!({"iss": "https://other.example"})));
    assert!(judge(&own, &with_bearer(&good)).unwrap().is_some());
    for shown in [
        request("/", &[("x-token", &other)]),
        request(&format!("/?t={other}"), &[]),
        request("/", &[("cookie", &format!("sid={other}"))]),
        with_bearer(&other),
    ] {
        assert_eq!(judge(&own, &shown).unwrap_err(), TokenFault::Issuer, "{shown:?}");
    }
    let mut without = request("/", &[("x-tenant", "a"), ("x_tenant", "b")]);
    assert!(judge(&own, &without).unwrap().is_none());
    own.carry_out(&TokenVerdict::Without, &mut without);
    assert!(without.headers.is_empty(), "{:?}", without.headers);
    for bad in [vec!["host".to_owned()], vec!["x-a".to_owned(); build::WITHHELD_MAX + 1]] {
        let withheld = proto::mesh::WithheldTokens { headers: bad, ..proto::mesh::WithheldTokens::default() };
        let refused = put_raw(&mut build::Parts::default(), &Raw { rules: vec![rule()], withheld: Some(withheld) });
        assert_eq!(refused.unwrap_err().field, "withheld.headers");
    }
}
