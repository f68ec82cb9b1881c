//! Services that an edge's policies ask, with all that may be said of them.

use proto::mesh;

/// Everything that may be asked of a service, in both ways.
pub(super) fn external() -> Vec<mesh::ExternalAuth> {
    use mesh::external_auth::Protocol;
    let key = vec![mesh::EdgeKey { kind: Some(mesh::edge_key::Kind::Header("authorization".into())) }];
    let grpc = mesh::ExternalAuth {
        policy: "shop/authz".into(),
        cluster: "shop/a:80".into(),
        protocol: Some(Protocol::Grpc(mesh::ExternalGrpc { authority: "authz.shop:9000".into(), request_headers: vec!["cookie".into()] })),
        body_bytes_max: 1024,
        body_partial: true,
        timeout: secs(1),
        when: "request.method == 'POST'".into(),
        dry_run: true,
        cache: Some(mesh::CheckCache { ttl: secs(5), key, entries: 100 }),
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

/// An authorization server.
pub(super) fn introspection() -> mesh::Introspection {
    mesh::Introspection {
        policy: "shop/tokens".into(),
        url: "https://id.example/introspect".into(),
        client_id: "gw".into(),
        secret: "shop/gw/secret".into(),
        remembered: secs(30),
        timeout: secs(1),
        allow_without: true,
        from: vec![mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Cookie("token".into())) }],
        keep: true,
        barred: String::new(),
        consumers: None,
    }
}

fn secs(secs: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: secs, nanos: 0 })
}
