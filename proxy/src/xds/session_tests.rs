use proto::xds::core::{Address, SocketAddress, address, socket_address};
use proto::xds::discovery::Resource;
use proto::xds::{cluster, endpoint, listener};

use super::*;

const CLUSTERS: &str = xds::CLUSTER;

fn session() -> Session {
    Session::new(xds::core::Node { id: "sidecar/shop/frontend".into(), ..Default::default() })
}

fn resource(name: &str, any: prost_types::Any) -> Resource {
    Resource { name: name.into(), version: epoch::version(&any.value), resource: Some(any), ..Default::default() }
}

fn eds(name: &str) -> Resource {
    let content = cluster::Cluster {
        name: name.into(),
        lb_policy: cluster::cluster::LbPolicy::LeastRequest as i32,
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(xds::core::ConfigSource {
                config_source_specifier: Some(xds::core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    resource(name, xds::pack(&content))
}

fn dns(host: &str, ip: &str) -> Resource {
    resource(&names::dns(host), xds::pack(&DnsRecord { addresses: vec![ip.into()], ttl_secs: 30, ..Default::default() }))
}

fn response(url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: url.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// An `Epoch` over what a server would believe to have sent.
fn announce(number: u64, nonce: &str, sent: &[(&str, &Resource)]) -> DeltaDiscoveryResponse {
    let digest = epoch::digest(sent.iter().map(|(url, resource)| (*url, resource.name.as_str(), resource.version.as_str())));
    response(&Epoch::type_url(), nonce, vec![resource(names::EPOCH, xds::pack(&Epoch { number, digest: digest.into() }))], &[])
}

/// The effects as short words, for comparison.
fn words(effects: &[Effect]) -> Vec<String> {
    let word = |effect: &Effect| match effect {
        Effect::Send(request) if !request.resource_names_subscribe.is_empty() => {
            format!("subscribe {}", request.resource_names_subscribe.join(" "))
        }
        Effect::Send(request) => {
            let verb = request.error_detail.as_ref().map_or("ack".to_owned(), |status| format!("nack [{}]", status.message));
            format!("{verb} {} {}", request.type_url.rsplit('.').next().unwrap(), request.response_nonce)
        }
        Effect::Publish(snapshot) => format!("publish {}", snapshot.epoch),
        Effect::Consumers => "consumers".to_owned(),
        Effect::TrustBundle(bundle) => format!("bundle {}", bundle.len()),
        Effect::Answered(Want::Name(host), exists) => format!("{host} {exists}"),
        Effect::Answered(Want::Outbound(address), exists) => format!("{address} {exists}"),
        Effect::Refused(refused) => format!("refused {}", refused.len()),
        Effect::StartOver => "start over".to_owned(),
    };
    effects.iter().map(word).collect()
}

/// Aim: a new stream asks for everything once, clusters and listeners first, the node only in the first request.
#[test]
fn a_stream_opens_with_everything() {
    let wants = [Want::Outbound("10.96.0.1:80".parse().unwrap()), Want::Name("catalog".into())];
    let requests = session().open(&wants);
    let types: Vec<_> = requests.iter().map(|request| request.type_url.rsplit('.').next().unwrap()).collect();
    let expected = "Cluster Listener ProxyConfig Egress Trust Authentication Authorization Consumers Secret ClusterLoadAssignment \
                    RouteConfiguration DnsRecord Epoch";
    assert_eq!(types.join(" "), expected);
    assert_eq!(requests[0].node.as_ref().unwrap().id, "sidecar/shop/frontend");
    assert!(requests[1..].iter().all(|request| request.node.is_none()));
    assert_eq!(requests[0].resource_names_subscribe, ["*"]);
    assert_eq!(requests[1].resource_names_subscribe, ["*", "out/10.96.0.1:80"]);
    assert_eq!(requests[11].resource_names_subscribe, ["*", "dns/catalog"]);
}

/// Aim: resources are acknowledged as they come, but go live only with an epoch whose digest fits, in either order of arrival.
#[test]
fn an_epoch_waits_until_it_fits() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    let (a, name) = (eds("shop/a:80"), dns("a", "10.96.0.1"));
    let dns_url = DnsRecord::type_url();
    assert_eq!(words(&session.on(response(CLUSTERS, "1", vec![a.clone()], &[]), now)), ["ack Cluster 1"]);
    assert_eq!(session.live().clusters.len(), 0);
    let sent = [(CLUSTERS, &a), (dns_url.as_str(), &name)];
    assert!(words(&session.on(announce(7, "2", &sent), now)).is_empty());
    assert_eq!(session.due(), Some(now + FIT_WAIT));
    let effects = session.on(response(&dns_url, "3", vec![name.clone()], &[]), now);
    assert_eq!(words(&effects), ["a true", "ack DnsRecord 3", "publish 7", "ack Epoch 2"]);
    assert_eq!((session.live().clusters.len(), session.live().names.len(), session.due()), (1, 1, None));
}

/// Aim: a bad resource is refused alone; the rest goes live; the epoch is refused by its name; a good one clears it.
#[test]
fn a_refused_resource_is_named_with_the_epoch() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    let bad = resource("shop/b:80", prost_types::Any { type_url: CLUSTERS.into(), value: vec![0xff] });
    let good = eds("shop/a:80");
    let effects = words(&session.on(response(CLUSTERS, "1", vec![bad.clone(), good.clone()], &[]), now));
    assert!(effects[0].starts_with("nack [Cluster shop/b:80: ") && effects[1] == "refused 1", "{effects:?}");
    let effects = words(&session.on(announce(1, "2", &[(CLUSTERS, &bad), (CLUSTERS, &good)]), now));
    assert!(effects[0] == "publish 1" && effects[1].starts_with("nack [Cluster shop/b:80: "), "{effects:?}");
    assert_eq!(session.live().clusters.len(), 1);
    let worse = resource("shop/c:80", prost_types::Any { type_url: CLUSTERS.into(), value: vec![0xff] });
    let effects = session.on(response(CLUSTERS, "2b", vec![bad.clone(), worse.clone()], &[]), now);
    let Some(Effect::Send(nack)) = effects.first() else { panic!("{effects:?}") };
    let read = refusal::read(&nack.error_detail.as_ref().unwrap().message);
    assert_eq!(read.iter().map(|refusal| refusal.resource.as_str()).collect::<Vec<_>>(), ["Cluster shop/b:80", "Cluster shop/c:80"]);
    session.on(response(CLUSTERS, "2c", Vec::new(), &["shop/c:80"]), now);
    let fixed = eds("shop/b:80");
    session.on(response(CLUSTERS, "3", vec![fixed.clone()], &[]), now);
    let effects = words(&session.on(announce(2, "4", &[(CLUSTERS, &fixed), (CLUSTERS, &good)]), now));
    assert_eq!(effects, ["publish 2", "ack Epoch 4"]);
}

/// Aim: after a lost stream the next one says what is held, and removals while it was away are carried out.
#[test]
fn a_reconnect_says_what_is_held() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    let (a, b) = (eds("shop/a:80"), eds("shop/b:80"));
    session.on(response(CLUSTERS, "1", vec![a.clone(), b.clone()], &[]), now);
    session.on(announce(1, "2", &[(CLUSTERS, &a), (CLUSTERS, &b)]), now);
    let requests = session.open(&[]);
    let held = &requests[0].initial_resource_versions;
    assert_eq!(
        held.iter().map(|(name, version)| (name.as_str(), version)).collect::<Vec<_>>(),
        [("shop/a:80", &a.version), ("shop/b:80", &b.version)]
    );
    assert_eq!(session.live().clusters.len(), 2, "what is live stays live");
    session.on(response(CLUSTERS, "1", vec![], &["shop/b:80", "never/held:1"]), now);
    assert_eq!(words(&session.on(announce(2, "2", &[(CLUSTERS, &a)]), now)), ["publish 2", "ack Epoch 2"]);
    assert_eq!(session.live().clusters.len(), 1);
}

/// Aim: an epoch that never fits makes everything be asked for anew, with what is live serving on until then.
#[test]
fn what_never_fits_starts_over() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    let (a, lost) = (eds("shop/a:80"), eds("shop/lost:80"));
    session.on(response(CLUSTERS, "1", vec![a.clone()], &[]), now);
    session.on(announce(1, "2", &[(CLUSTERS, &a)]), now);
    session.on(announce(2, "3", &[(CLUSTERS, &a), (CLUSTERS, &lost)]), now);
    assert!(session.tick(now + FIT_WAIT / 2).is_empty());
    assert_eq!(words(&session.tick(now + FIT_WAIT)), ["start over"]);
    assert!(session.open(&[]).iter().all(|request| request.initial_resource_versions.is_empty()));
    assert_eq!(session.live().clusters.len(), 1);
    session.on(response(CLUSTERS, "1", vec![lost.clone()], &[]), now);
    assert_eq!(words(&session.on(announce(3, "2", &[(CLUSTERS, &lost)]), now)), ["publish 3", "ack Epoch 2"]);
    assert_eq!(session.live().clusters.keys().collect::<Vec<_>>(), ["shop/lost:80"], "what the new stream did not confirm is gone");
}

/// Aim: endpoints travel at once, outside of epochs.
#[test]
fn endpoints_do_not_wait() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    let a = eds("shop/a:80");
    session.on(response(CLUSTERS, "1", vec![a.clone()], &[]), now);
    session.on(announce(1, "2", &[(CLUSTERS, &a)]), now);
    let ready = || session.live().clusters["shop/a:80"].endpoints.load().ready.len();
    assert_eq!(ready(), 0);
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "10.77.0.9".into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        })),
    };
    let lb = endpoint::LbEndpoint {
        health_status: 1,
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    };
    let assignment = endpoint::ClusterLoadAssignment {
        cluster_name: "shop/a:80".into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![lb], ..Default::default() }],
        ..Default::default()
    };
    let assignment = resource("shop/a:80", xds::pack(&assignment));
    assert_eq!(words(&session.on(response(xds::ENDPOINT, "3", vec![assignment], &[]), now)), ["ack ClusterLoadAssignment 3"]);
    let ready = session.live().clusters["shop/a:80"].endpoints.load().ready.len();
    assert_eq!(ready, 1);
}

/// Aim: wishes become one request per type; an absent name is told; an unsubscribed one goes when the server says so or leaves it out.
#[test]
fn wishes_become_subscriptions() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    let want = |name: &str| Want::Name(name.into());
    let change =
        WantedChange { subscribe: vec![want("a"), want("b"), Want::Outbound("10.96.0.1:80".parse().unwrap())], unsubscribe: vec![] };
    let requests = session.want(change.clone());
    assert_eq!(requests.len(), 2);
    assert!(session.want(change).is_empty(), "already subscribed");
    let url = DnsRecord::type_url();
    let a = dns("a", "10.96.0.1");
    let effects = words(&session.on(response(&url, "1", vec![a.clone()], &["dns/b"]), now));
    assert_eq!(effects, ["a true", "b false", "ack DnsRecord 1"]);
    session.on(announce(1, "2", &[(&url, &a)]), now);
    let requests = session.want(WantedChange { subscribe: vec![], unsubscribe: vec![want("a")] });
    assert_eq!(requests[0].resource_names_unsubscribe, ["dns/a"]);
    assert_eq!(words(&session.on(announce(2, "3", &[(&url, &a)]), now)), ["publish 2", "ack Epoch 3"], "announced before it heard");
    assert_eq!(words(&session.on(announce(2, "4", &[]), now)), ["publish 2", "ack Epoch 4"], "left out without a word");
    assert!(session.live().names.is_empty());
}

/// Aim: a name wanted again before its unsubscription was heard is asked for when that is confirmed, by a removal, by the resource or by
/// an epoch without it; and the removal does not say that there is no such thing.
#[test]
fn what_returns_before_it_has_left_is_asked_for_anew() {
    let url = DnsRecord::type_url();
    let change = |subscribe: bool| {
        let wants = vec![Want::Name("a".into())];
        if subscribe {
            WantedChange { subscribe: wants, ..Default::default() }
        } else {
            WantedChange { unsubscribe: wants, ..Default::default() }
        }
    };
    let a = dns("a", "10.96.0.1");
    for (how, expected) in [
        (response(&url, "3", vec![], &["dns/a"]), vec!["subscribe dns/a", "ack DnsRecord 3"]),
        (response(&url, "3", vec![a.clone()], &[]), vec!["subscribe dns/a", "a true", "ack DnsRecord 3"]),
        (announce(2, "3", &[]), vec!["subscribe dns/a", "publish 2", "ack Epoch 3"]),
    ] {
        let now = Instant::now();
        let mut session = session();
        session.open(&[Want::Name("a".into())]);
        session.on(response(&url, "1", vec![a.clone()], &[]), now);
        session.on(announce(1, "2", &[(&url, &a)]), now);
        assert_eq!(session.want(change(false))[0].resource_names_unsubscribe, ["dns/a"]);
        assert!(session.want(change(true)).is_empty(), "not before it has left");
        assert_eq!(words(&session.on(how, now)), expected);
        // From now on a removal is a denial again.
        assert_eq!(words(&session.on(response(&url, "9", vec![], &["dns/a"]), now)), ["a false", "ack DnsRecord 9"]);
    }
}

/// Aim: epochs that follow one another do not put off the end of a wait that none of them fits.
#[test]
fn a_row_of_epochs_that_do_not_fit_starts_over_in_time() {
    let begin = Instant::now();
    let mut session = session();
    session.open(&[]);
    let lost = eds("shop/lost:80");
    for number in 1..=3_u32 {
        session.on(announce(number.into(), "1", &[(CLUSTERS, &lost)]), begin + FIT_WAIT / 4 * number);
    }
    assert!(session.tick(begin + FIT_WAIT).is_empty());
    assert_eq!(words(&session.tick(begin + FIT_WAIT / 4 + FIT_WAIT)), ["start over"]);
}

/// Aim: types we did not ask for and broken epochs are refused, heartbeats keep what is held, and nothing panics.
#[test]
fn odd_responses_do_no_harm() {
    let now = Instant::now();
    let mut session = session();
    session.open(&[]);
    assert!(words(&session.on(response("type.googleapis.com/x.Y", "1", vec![], &[]), now))[0].starts_with("nack"));
    let broken = resource(names::EPOCH, prost_types::Any { type_url: Epoch::type_url(), value: vec![0xff] });
    assert!(words(&session.on(response(&Epoch::type_url(), "2", vec![broken], &[]), now))[0].starts_with("nack [Epoch epoch: "));
    assert_eq!(words(&session.on(response(&Epoch::type_url(), "3", vec![], &[]), now)), ["ack Epoch 3"]);
    let a = eds("shop/a:80");
    session.on(response(CLUSTERS, "4", vec![a.clone()], &[]), now);
    let heartbeat = Resource { resource: None, ..a.clone() };
    assert_eq!(words(&session.on(response(CLUSTERS, "5", vec![heartbeat], &[]), now)), ["ack Cluster 5"]);
    assert_eq!(words(&session.on(announce(1, "6", &[(CLUSTERS, &a)]), now)), ["publish 1", "ack Epoch 6"]);
    let unused = listener::Listener::default();
    let nameless = words(&session.on(response(xds::LISTENER, "7", vec![resource("", xds::pack(&unused))], &[]), now));
    assert!(nameless[0].starts_with("nack"), "{nameless:?}");
}

proptest::proptest! {
    /// Aim: whatever a control plane sends, in whatever order, the session goes on; what does not fit is answered, not a panic.
    #[test]
    fn any_responses_are_survived(
        sent in proptest::collection::vec(
            (0_usize..10, "(out/|dns/|edge/|inbound|epoch|proxy|ROOTCA)?\\PC{0,12}", proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60), 0_u8..8),
            0..12,
        ),
    ) {
        let mut session = session();
        session.open(&[Want::Name("catalog".into())]);
        for (kind, name, body, how) in sent {
            let url = types().into_iter().chain([String::new(), "x/y.Z".to_owned()]).nth(kind).unwrap();
            let any = prost_types::Any { type_url: if how & 1 == 0 { url.clone() } else { name.clone() }, value: body };
            let whole = Resource { resource: (how & 2 == 0).then(|| any.clone()), ..resource(&name, any) };
            let removed: &[&str] = if how & 4 == 0 { &[] } else { &[&name] };
            session.on(response(&url, "n", vec![whole], removed), Instant::now());
            session.tick(Instant::now() + FIT_WAIT);
        }
    }
}
