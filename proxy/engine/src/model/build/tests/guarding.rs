//! Everything that the wire may say of who calls, and of what they may.

use proto::mesh;

use super::limits::limits;
use crate::fixture;

pub(super) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Everything that an edge may say of a rule, but that it cannot.
pub(super) fn edge() -> mesh::EdgePolicy {
    use mesh::credential_place::Kind;
    let headers = vec![
        mesh::FilledHeader { name: "x-plan".into(), value: Some(mesh::filled_header::Value::Literal("gold".into())) },
        mesh::FilledHeader { name: "x-consumer".into(), value: Some(mesh::filled_header::Value::Cel("consumer.name".into())) },
    ];
    let consumers = Some(mesh::ConsumerChoice {
        namespaces: vec!["partners".into()],
        names: vec!["other/acme".into()],
        labels: [("plan".to_owned(), "gold".to_owned())].into(),
    });
    let place = |kind| mesh::CredentialPlace { kind: Some(kind) };
    mesh::EdgePolicy {
        unavailable: String::new(),
        api_keys: Some(mesh::ApiKeys {
            policy: "shop/keys".into(),
            optional: true,
            from: vec![
                place(Kind::Header(mesh::CredentialHeader { name: "authorization".into(), prefix: "Bearer ".into() })),
                place(Kind::Query("key".into())),
                place(Kind::Cookie("key".into())),
            ],
            consumers: consumers.clone(),
            scopes: vec!["read".into()],
            keep: true,
            headers: headers.clone(),
        }),
        basic: Some(mesh::BasicAuth {
            policy: "shop/basic".into(),
            optional: true,
            consumers: consumers.clone(),
            users: "shop/users/htpasswd".into(),
            realm: "partners".into(),
            remembered: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            failures: Some(mesh::FailureLimit { per_minute: 10, client_address: true, ipv6_prefix: 56, username: true }),
            scopes: vec!["read".into()],
            keep: true,
            headers,
        }),
        tokens: Some(mesh::EdgeTokens {
            policy: "shop/tokens".into(),
            optional: true,
            rules: fixture::authentication().rules,
            introspection: Some(mesh::Introspection {
                policy: "shop/tokens".into(),
                url: "https://id.example/introspect".into(),
                client_id: "gw".into(),
                secret: "shop/gw/secret".into(),
                remembered: seconds(30),
                timeout: seconds(1),
                allow_without: true,
                from: vec![place(Kind::Cookie("token".into()))],
                keep: true,
                barred: String::new(),
                consumers: consumers.clone(),
            }),
            consumers,
        }),
        authorization: Some(authorization()),
        limits: vec![limits(true), limits(false)],
        external: external(),
        certificates: Some(mesh::ConsumerChoice { namespaces: vec!["shop".into()], ..mesh::ConsumerChoice::default() }),
    }
}

/// Everything that may be asked of a service, in both ways.
fn external() -> Vec<mesh::ExternalAuth> {
    use mesh::external_auth::Protocol;
    let key = vec![mesh::EdgeKey { kind: Some(mesh::edge_key::Kind::Header("authorization".into())) }];
    let grpc = mesh::ExternalAuth {
        policy: "shop/authz".into(),
        cluster: "shop/a:80".into(),
        protocol: Some(Protocol::Grpc(mesh::ExternalGrpc { authority: "authz.shop:9000".into(), request_headers: vec!["cookie".into()] })),
        body_bytes_max: 1024,
        body_partial: true,
        timeout: seconds(1),
        when: "request.method == 'POST'".into(),
        dry_run: true,
        cache: Some(mesh::CheckCache { ttl: seconds(5), key, entries: 100 }),
        allow_without: true,
    };
    let check = mesh::ExternalHttp {
        path: "/auth".into(),
        request_headers: vec!["cookie".into()],
        response_headers: vec!["x-user".into()],
        all_response_headers: true,
    };
    let http =
        mesh::ExternalAuth { policy: "HTTPRoute/shop/a/0".into(), protocol: Some(Protocol::Http(check)), cache: None, ..grpc.clone() };
    vec![grpc, http]
}

/// Everything that a policy may say.
pub(super) fn authorization() -> mesh::Authorization {
    let token = mesh::TokenSource {
        issuer: "https://id.example".into(),
        claims: [("groups".to_owned(), mesh::ClaimValues { values: vec!["staff".into()] })].into(),
    };
    let source = mesh::CallSource {
        principals: vec!["*/sa/frontend".into()],
        namespaces: vec!["shop".into()],
        ip_blocks: vec!["10.0.0.0/8".into()],
        token: Some(token),
        consumers: vec!["partners/*".into()],
        consumer_groups: vec!["gold".into()],
        scopes: vec!["read".into()],
        auth_methods: vec!["ApiKey".into()],
        ip_lists: vec!["shop/offices".into()],
        peer_ip_blocks: vec!["10.0.0.0/8".into()],
    };
    let path = |kind| mesh::PathPattern { kind: Some(kind) };
    let target = mesh::CallTarget {
        ports: vec![8080],
        hosts: vec!["*.shop".into()],
        methods: vec!["GET".into()],
        paths: vec![path(mesh::path_pattern::Kind::Prefix("/v1".into())), path(mesh::path_pattern::Kind::Exact("/v2".into()))],
        headers: vec![fixture::header("x-tenant", "a")],
    };
    let rule = mesh::AuthorizationRule {
        name: "frontends".into(),
        from: vec![source.clone()],
        to: vec![target.clone()],
        not_from: vec![source],
        not_to: vec![target],
        when: "source.namespace != 'test'".into(),
    };
    let policy = |name: &str, action: mesh::authorization_policy::Action| mesh::AuthorizationPolicy {
        name: format!("shop/{name}"),
        action: action.into(),
        dry_run: false,
        rules: vec![rule.clone()],
    };
    let policies = vec![policy("a", mesh::authorization_policy::Action::Allow), policy("d", mesh::authorization_policy::Action::Deny)];
    mesh::Authorization { policies, dry_run: false }
}
