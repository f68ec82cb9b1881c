//! Requests of which a rate-limit service is asked: let on, refused, and what becomes of them while it is away.

use std::sync::Mutex as Lock;

use engine::filter::guard::{Descriptor, ServiceAnswer};
use http::{HeaderName, HeaderValue};
use proto::mesh::{
    DescriptorEntry, EdgeKey, EdgeLimits, EdgePolicy, LimitDescriptor, LimitStore, RateLimitService, RoutePolicy, WithoutStore,
    descriptor_entry::Value, edge_key, limit_store,
};

use super::governed::{GET, OK, ONE, answered, play};
use super::resources::{Told, told};
use super::*;

fn entry(key: &str, value: Value) -> DescriptorEntry {
    DescriptorEntry { key: key.into(), value: Some(value) }
}

fn part(kind: edge_key::Kind) -> Value {
    Value::Part(EdgeKey { kind: Some(kind) })
}

fn asking(without: WithoutStore) -> (World, engine::model::build::Parts) {
    let descriptors = vec![
        LimitDescriptor { entries: vec![entry("plan", Value::Literal("gold".into())), entry("path", part(edge_key::Kind::Path(true)))] },
        LimitDescriptor { entries: vec![entry("user", part(edge_key::Kind::Header("x-user".into())))] },
    ];
    let service = RateLimitService {
        address: "limits.shop:8081".into(),
        domain: "edge".into(),
        descriptors,
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 20_000_000 }),
    };
    let limits = EdgeLimits {
        policy: "shop/limits".into(),
        memory: "shop/limits".into(),
        store: Some(LimitStore { kind: Some(limit_store::Kind::Service(service)) }),
        without_store: without.into(),
        ..EdgeLimits::default()
    };
    let policy = RoutePolicy { edge: Some(EdgePolicy { limits: vec![limits], ..EdgePolicy::default() }), ..RoutePolicy::default() };
    told(&Told { policy, ..Told::to(vec![ONE]) })
}

/// Answers for a service with this; what it was asked.
fn service(world: &World, answer: &ServiceAnswer) -> Arc<Lock<Vec<Vec<Descriptor>>>> {
    let snapshots = &world.client_means.snapshots;
    let (mut questions, asked) = (snapshots.limit_questions().take_remote().unwrap(), Arc::<Lock<Vec<Vec<Descriptor>>>>::default());
    snapshots.load().limits.stores()[0].live.is_here();
    let (answer, heard) = (answer.clone(), Arc::clone(&asked));
    tokio::task::spawn_local(async move {
        while let Some(posed) = questions.recv().await {
            let ask = posed.ask.service.unwrap();
            heard.lock().unwrap().push(ask.descriptors.to_vec());
            ask.answered(answer.clone());
            let _ = posed.told.map(|told| told.send(()));
        }
    });
    asked
}

fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

#[test]
fn a_service_is_asked_once_of_each_request() {
    // Aim: it is told what the request has, without descriptors that lack a part; its headers reach client and backend once each.
    run(|| async {
        let (mut world, _parts) = asking(WithoutStore::Deny);
        let answer =
            ServiceAnswer { response: vec![header("x-left", "7")], request: vec![header("x-plan", "gold")], ..ServiceAnswer::default() };
        let asked = service(&world, &answer);
        let mut client = world.dial(SERVICE);
        write(&mut client, GET).await;
        let (_, seen, _application) = play(&mut world, 0, OK).await;
        let told = answered(&mut client, "200").await;
        assert_eq!(
            (told.matches("x-left: 7\r\n").count(), seen.to_lowercase().matches("x-plan: gold\r\n").count()),
            (1, 1),
            "{told}{seen}"
        );
        let wanted: Vec<Descriptor> = vec![vec![("plan".into(), "gold".into()), ("path".into(), "/".into())]];
        assert_eq!(*asked.lock().unwrap(), [wanted]);
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_limit_total{limit=\"shop/limits/rls\",verdict=\"allowed\"} 1\n"), "{metrics}");
    });
}

#[test]
fn a_long_value_is_no_way_around_a_service() {
    // Aim: of a path that is longer than a text of a descriptor may be, its beginning is asked about.
    run(|| async {
        let (mut world, _parts) = asking(WithoutStore::Deny);
        let asked = service(&world, &ServiceAnswer::default());
        let mut client = world.dial(SERVICE);
        let long = format!("/{}", "a".repeat(3000));
        write(&mut client, &format!("GET {long} HTTP/1.1\r\nhost: catalog\r\n\r\n")).await;
        let _application = play(&mut world, 0, OK).await;
        answered(&mut client, "200").await;
        let asked = asked.lock().unwrap();
        assert_eq!(asked[0][0][1].1, long[..2048]);
    });
}

#[test]
fn one_too_many_is_refused_in_the_services_words() {
    // Aim: 429 with its headers and the time of the limit that is full; the application hears nothing.
    run(|| async {
        let (mut world, _parts) = asking(WithoutStore::Allow);
        let answer = ServiceAnswer {
            over: true,
            retry: Duration::from_millis(2500),
            response: vec![header("x-ratelimit-remaining", "0")],
            ..ServiceAnswer::default()
        };
        let asked = service(&world, &answer);
        let mut client = world.dial(SERVICE);
        write(&mut client, "GET /a HTTP/1.1\r\nhost: a\r\nx-user: ada\r\n\r\n").await;
        let told = answered(&mut client, "429").await;
        for wanted in ["retry-after: 3\r\n", "x-ratelimit-remaining: 0\r\n", "x-meshwright-reason: rate_limited\r\n"] {
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
        assert_eq!(asked.lock().unwrap()[0].len(), 2);
        assert!(world.applications.try_recv().is_err(), "the application was asked");
    });
}

#[test]
fn while_a_service_is_away_its_object_says_what_holds() {
    // Aim: never met, and met and silent: Deny is 503 policy_unavailable, Allow lets on; a silent one costs what the object says and no more.
    for (without, status) in [(WithoutStore::Deny, "503"), (WithoutStore::Allow, "200")] {
        for silent in [false, true] {
            run(|| async move {
                let (mut world, _parts) = asking(without);
                let snapshots = world.client_means.snapshots.clone();
                let _hanging = snapshots.limit_questions().take_remote();
                if silent {
                    snapshots.load().limits.stores()[0].live.is_here();
                }
                let began = tokio::time::Instant::now();
                let mut client = world.dial(SERVICE);
                write(&mut client, GET).await;
                let _application = if status == "200" { Some(play(&mut world, 0, OK).await) } else { None };
                let told = answered(&mut client, status).await;
                assert_eq!(told.contains("policy_unavailable"), status == "503", "{told}");
                assert_eq!(began.elapsed(), if silent { Duration::from_millis(20) } else { Duration::ZERO });
            });
        }
    }
}
