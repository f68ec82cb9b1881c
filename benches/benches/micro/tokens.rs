//! Tokens: what the first sight of one costs, and every further one.

use std::hint::black_box;

use criterion::Criterion;
use engine::authenticate::{Remembered, TokenVerdict};
use engine::decide::RequestHead;
use engine::model::Snapshot;
use engine::model::build::Parts;
use http::Request;
use prost::Name;
use proto::mesh::{Authentication, ClaimHeader, TokenHeader, TokenRule};

/// Public half of a key that nobody has any more.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"bench","x":"hwJCQ_O__uuFcIs9bTETs-FQYoaLEsm_LUBbLD_gWbM","y":"CKIBB8_1R6ny99dCtrvfCH1GTfDKS_SW5sgFf6XzC74"}]}"#;
/// As identity providers issue them: a name, mail, groups, roles; good until 2100.
const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImJlbmNoIiwidHlwIjoiSldUIn0.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJhdWQiOlsic3RvcmUiXSwic3Vi\
    IjoiOGYxYzJlMGEtNWE1Yi00ZDBiLTlkNWMtMWYyZTNkNGM1YjZhIiwiZXhwIjo0MTAyNDQ0ODAwLCJpYXQiOjE3ODAyNzIwMDAsImF1dGhfdGltZSI6MTc4\
    MDI3MTk5MCwianRpIjoiYzFmNmIwZGUtN2E0ZS00ZjNkLThhMWQtMGQxYzJiM2E0ZjVlIiwidHlwIjoiQmVhcmVyIiwiYXpwIjoic2hvcCIsInNjb3BlIjoi\
    b3BlbmlkIHByb2ZpbGUgZW1haWwiLCJlbWFpbCI6ImFkYUBleGFtcGxlLmNvbSIsImVtYWlsX3ZlcmlmaWVkIjp0cnVlLCJuYW1lIjoiQWRhIExvdmUiLCJw\
    cmVmZXJyZWRfdXNlcm5hbWUiOiJhZGEiLCJncm91cHMiOlsic3RhZmYiLCJhZG1pbnMiXSwicmVhbG1fYWNjZXNzIjp7InJvbGVzIjpbIm9mZmxpbmVfYWNj\
    ZXNzIiwidW1hX2F1dGhvcml6YXRpb24iLCJidXllciJdfX0.DISBO5s9lDyN39-h5yrgs6kFTpP8uUqOWixu2MM9-dggPVAzAF84N6E0VFKJ5dC8Qu3UiQIJ\
    wWiH2YpyOAlwhg";
/// 1 June 2026.
const NOW_SECS: u64 = 1_780_272_000;

/// An ES256 token behind `authorization`, two claims into headers, the token taken out.
pub(crate) fn tokens(criterion: &mut Criterion) {
    let fill = |claim: &str, header: &str| ClaimHeader { claim: claim.to_owned(), header: header.to_owned() };
    let rule = TokenRule {
        policy: "shop/tokens".to_owned(),
        issuer: "https://id.example".to_owned(),
        audiences: vec!["store".to_owned()],
        jwks: JWKS.to_owned(),
        from_headers: vec![TokenHeader { name: "authorization".to_owned(), prefix: "Bearer ".to_owned() }],
        claims_to_headers: vec![fill("sub", "x-user"), fill("groups", "x-groups")],
        ..TokenRule::default()
    };
    let mut parts = Parts::default();
    let any = proto::xds::pack(&Authentication { rules: vec![rule], withheld: None });
    parts.put(&Authentication::type_url(), "inbound", "1", &any).unwrap();
    let rules = parts.assemble(1, &Snapshot::default()).authentication.unwrap();
    let request = Request::get("/products/7").header("host", "store").header("x-user", "root");
    let request = request.header("authorization", format!("Bearer {TOKEN}")).body(()).unwrap().into_parts().0;
    let bare = Request::get("/products/7").header("host", "store").body(()).unwrap().into_parts().0;

    criterion.bench_function("token: ES256, first sight", |bench| {
        bench.iter(|| {
            let head = RequestHead::nameless(&request.method, &request.uri, &request.headers);
            matches!(rules.judge(black_box(&head), &mut Remembered::new(1), NOW_SECS), TokenVerdict::Accepted(_))
        });
    });
    let mut remembered = Remembered::new(1);
    let known = rules.judge(&RequestHead::nameless(&request.method, &request.uri, &request.headers), &mut remembered, NOW_SECS);
    assert!(matches!(known, TokenVerdict::Accepted(_)));
    criterion.bench_function("token: seen before", |bench| {
        bench.iter(|| {
            let head = RequestHead::nameless(&request.method, &request.uri, &request.headers);
            matches!(rules.judge(black_box(&head), &mut remembered, NOW_SECS), TokenVerdict::Accepted(_))
        });
    });
    criterion.bench_function("token: seen before, and carried out", |bench| {
        let again = || request.clone();
        bench.iter_batched_ref(
            again,
            |request| {
                let head = RequestHead::nameless(&request.method, &request.uri, &request.headers);
                let verdict = rules.judge(&head, &mut remembered, NOW_SECS);
                rules.carry_out(&verdict, request);
            },
            criterion::BatchSize::SmallInput,
        );
    });
    criterion.bench_function("token: none shown", |bench| {
        bench.iter(|| {
            let head = RequestHead::nameless(&bare.method, &bare.uri, &bare.headers);
            matches!(rules.judge(black_box(&head), &mut remembered, NOW_SECS), TokenVerdict::Without)
        });
    });
}
