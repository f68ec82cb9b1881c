//! Authorization of a request over policies of many rules, by what tells them apart.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion};
use engine::authorize::{Authorization, Call, Own};
use engine::claims::Claims;
use engine::decide::RequestHead;
use engine::model::Snapshot;
use engine::model::build::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri};
use prost::Name;
use proto::identity::Identity;
use proto::mesh::path_pattern::Kind;
use proto::mesh::{self, AuthorizationPolicy, AuthorizationRule, CallSource, CallTarget, PathPattern};

/// Rules of one workload: what many have, and what nobody should have.
const RULES: [usize; 2] = [100, 10_000];

/// A rule's own words, by its number.
type Write = fn(usize) -> AuthorizationRule;

/// The last rule is the one, and none is.
pub(crate) fn judgements(criterion: &mut Criterion) {
    let kinds: [(&str, Write); 5] =
        [("principal", principal), ("path", path), ("host", host), ("principal and path", both), ("principal, with CEL", condition)];
    for (kind, write) in kinds {
        let mut group = criterion.benchmark_group(format!("authorize: rules by {kind}"));
        for rules in RULES {
            // Of conditions there may be fewer.
            let rules = if kind.ends_with("CEL") { rules.min(2_000) } else { rules };
            let authorization = authorization((0..rules).map(write).collect());
            for (which, number) in [("last", rules - 1), ("none", rules)] {
                group.bench_with_input(BenchmarkId::new(which, rules), &number, |bench, number| {
                    asked(*number, |call| {
                        assert_eq!(authorization.judge(call).allows(), which == "last");
                        bench.iter(|| authorization.judge(black_box(call)).allows());
                    });
                });
            }
        }
        group.finish();
    }
    let raw = raw((0..10_000).map(both).collect());
    criterion.bench_function("authorize: build 10,000 rules", |bench| {
        bench.iter(|| staged(&raw).is_some());
    });
}

fn principal(n: usize) -> AuthorizationRule {
    let source = CallSource { principals: vec![identity(n)], ..CallSource::default() };
    AuthorizationRule { from: vec![source], ..AuthorizationRule::default() }
}

fn path(n: usize) -> AuthorizationRule {
    let prefix = PathPattern { kind: Some(Kind::Prefix(format!("/area/{n}"))) };
    AuthorizationRule { to: vec![CallTarget { paths: vec![prefix], ..CallTarget::default() }], ..AuthorizationRule::default() }
}

fn host(n: usize) -> AuthorizationRule {
    let target = CallTarget { hosts: vec![format!("shop-{n}.example.com")], ..CallTarget::default() };
    AuthorizationRule { to: vec![target], ..AuthorizationRule::default() }
}

/// Least privilege: who may ask for what.
fn both(n: usize) -> AuthorizationRule {
    AuthorizationRule { to: path(n).to, ..principal(n) }
}

fn condition(n: usize) -> AuthorizationRule {
    AuthorizationRule { when: "request.headers[\"x-tenant\"] == \"a\" && source.namespace != \"test\"".into(), ..principal(n) }
}

fn identity(n: usize) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/frontend-{n}")
}

fn raw(rules: Vec<AuthorizationRule>) -> mesh::Authorization {
    let policy = AuthorizationPolicy { name: "shop/store".into(), rules, ..AuthorizationPolicy::default() };
    mesh::Authorization { policies: vec![policy], dry_run: false }
}

fn staged(raw: &mesh::Authorization) -> Option<Arc<Authorization>> {
    let mut parts = Parts::default();
    parts.put(&mesh::Authorization::type_url(), proto::names::INBOUND, "1", &proto::xds::pack(raw)).unwrap();
    parts.assemble(1, &Snapshot::default()).authorization
}

fn authorization(rules: Vec<AuthorizationRule>) -> Arc<Authorization> {
    staged(&raw(rules)).unwrap()
}

/// The request that rule `number` is for.
fn asked(number: usize, look: impl FnOnce(&Call<'_>)) {
    let peer: Identity = identity(number).parse().unwrap();
    let uri: Uri = format!("/area/{number}/products?x=1").parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_str(&format!("shop-{number}.example.com:80")).unwrap());
    headers.insert("x-tenant", HeaderValue::from_static("a"));
    let head = RequestHead::new(&Method::GET, &uri, &headers);
    let source = SocketAddr::from(([10, 77, 0, 1], 40_000));
    let own = Own { trust_domain: "cluster.local", namespace: "shop", workload: "store" };
    let claims: Option<&Claims> = None;
    look(&Call { peer: Some(&peer), workload: "frontend", source, port: 8080, head: Some(&head), claims, auth: None, edge: None, own });
}
