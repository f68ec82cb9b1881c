//! Everything that the wire may say of who calls, and of what they may.

use proto::mesh;

use super::asked::{external, introspection};
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
            introspection: Some(mesh::Introspection { consumers: consumers.clone(), ..introspection() }),
            consumers,
        }),
        authorization: Some(authorization()),
        limits: vec![limits(true), limits(false)],
        body_bytes_max: 1000,
        external: external(),
        certificates: Some(mesh::ConsumerChoice { namespaces: vec!["shop".into()], ..mesh::ConsumerChoice::default() }),
        login: Some(login()),
        login_paths: Vec::new(),
        strip_logins: true,
    }
}

/// Everything that a login may say.
pub(super) fn login() -> mesh::EdgeLogin {
    use mesh::edge_login::{Proof, SameSite, When};
    mesh::EdgeLogin {
        policy: "shop/people".into(),
        optional: true,
        issuer: "https://id.example".into(),
        client_id: "edge".into(),
        secret: "shop/oidc/secret".into(),
        proof: Proof::Post.into(),
        key_id: "k1".into(),
        scopes: vec!["openid".into()],
        redirect_path: "/oauth2/callback".into(),
        logout_path: "/oauth2/logout".into(),
        post_logout_redirect: "/bye".into(),
        when: When::Always.into(),
        cookie_domain: "shop.example".into(),
        same_site: SameSite::Strict.into(),
        idle: seconds(3_600),
        max: seconds(7_200),
        refresh_at_percent: 80,
        keys: "login-keys".into(),
        access_token_header: "x-token".into(),
        claims_to_headers: vec![mesh::ClaimHeader { claim: "email".into(), header: "x-email".into() }],
        endpoints: Some(mesh::LoginEndpoints {
            authorization: "https://id.example/auth".into(),
            token: "https://id.example/token".into(),
            jwks: "https://id.example/keys".into(),
            end_session: "https://id.example/end".into(),
        }),
        barred: String::new(),
        consumers: Some(mesh::ConsumerChoice { namespaces: vec!["shop".into()], ..mesh::ConsumerChoice::default() }),
        store: Some(mesh::RedisStore {
            addresses: vec!["sentinel:26379".into()],
            tls: true,
            username: "edge".into(),
            password: "shop/redis/password".into(),
            key_prefix: "edge:".into(),
            timeout: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
            ahead_percent: 0,
            mode: mesh::RedisMode::Sentinel.into(),
            master: "shop".into(),
        }),
        back_channel_path: "/oauth2/ended".into(),
    }
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
