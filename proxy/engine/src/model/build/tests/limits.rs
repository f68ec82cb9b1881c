//! What limits of an edge may say, for the walk over all fields.

use proto::mesh;

/// Everything that a RateLimit may say.
pub(super) fn limits(before_auth: bool) -> mesh::EdgeLimits {
    use mesh::edge_key::Kind;
    use mesh::edge_limit::Numbers;
    let key = |kind| mesh::EdgeKey { kind: Some(kind) };
    let all = vec![
        key(Kind::Consumer(true)),
        key(Kind::ClientAddress(mesh::ClientAddressKey { ipv6_prefix: 64 })),
        key(Kind::Header("x-tenant".into())),
        key(Kind::Claim("sub".into())),
        key(Kind::Path(true)),
        key(Kind::Method(true)),
        key(Kind::Cel("consumer.team".into())),
    ];
    let rate = mesh::LimitRate { requests: 600, per: Some(prost_types::Duration { seconds: 60, nanos: 0 }), burst: 100 };
    let week =
        mesh::LimitQuota { requests: 1000, per: mesh::CalendarPeriod::Week.into(), time_zone: "Europe/Berlin".into(), week_start: 1 };
    let limit = |name: &str, numbers| mesh::EdgeLimit {
        name: name.into(),
        numbers: Some(numbers),
        key: all.clone(),
        missing: mesh::KeyMissing::Skipped.into(),
        when: "request.method == 'POST'".into(),
        cost: 2,
        cost_cel: String::new(),
        shared: true,
        dry_run: true,
        cost_header: "x-cost".into(),
    };
    let made = mesh::EdgeLimit { cost: 0, cost_cel: "size(request.path)".into(), ..limit("week", Numbers::Quota(week)) };
    let memory = if before_auth { "shop/early" } else { "shop/late" };
    let redis = mesh::RedisStore {
        addresses: vec!["redis.shop:6379".into()],
        mode: mesh::RedisMode::Sentinel.into(),
        master: "shop".into(),
        tls: true,
        username: "edge".into(),
        password: "shop/redis/password".into(),
        key_prefix: "edge:".into(),
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
        ahead_percent: 2,
    };
    let leases = mesh::limit_store::Kind::Leases(mesh::LeaseStore { ahead_percent: 1 });
    let kind = Some(if before_auth { leases } else { mesh::limit_store::Kind::Redis(redis) });
    mesh::EdgeLimits {
        policy: memory.into(),
        memory: memory.into(),
        before_auth,
        limits: vec![limit("minute", Numbers::Rate(rate)), made],
        concurrency: vec![mesh::ConcurrencyLimit { requests: 5, key: all.clone(), queue: 3 }],
        store: Some(mesh::LimitStore { kind }),
        without_store: mesh::WithoutStore::Deny.into(),
        draft_headers: true,
        legacy_headers: true,
        bandwidth: vec![mesh::BandwidthLimit { response_bytes_per_second: 1000, key: all }],
    }
}

/// Everything that it may say of a rate-limit service.
pub(super) fn served() -> mesh::EdgeLimits {
    use mesh::descriptor_entry::Value;
    let part = mesh::EdgeKey { kind: Some(mesh::edge_key::Kind::Header("x-user".into())) };
    let entries = [("plan", Value::Literal("gold".into())), ("user", Value::Part(part))];
    let entries = entries.map(|(key, value)| mesh::DescriptorEntry { key: key.into(), value: Some(value) });
    let service = mesh::RateLimitService {
        address: "limits.shop:8081".into(),
        cluster: "bad_backend".into(),
        domain: "edge".into(),
        descriptors: vec![mesh::LimitDescriptor { entries: entries.to_vec() }],
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
    };
    mesh::EdgeLimits {
        policy: "shop/served".into(),
        memory: "shop/served".into(),
        store: Some(mesh::LimitStore { kind: Some(mesh::limit_store::Kind::Service(service)) }),
        without_store: mesh::WithoutStore::Deny.into(),
        ..mesh::EdgeLimits::default()
    }
}
