//! Requests of which a rate-limit service is asked, over whole connections: let on, refused, and what becomes of them while it is away.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use proto::mesh::{
    DescriptorEntry, EdgeKey, EdgeLimits, EdgePolicy, LimitDescriptor, LimitStore, RateLimitService, WithoutStore, descriptor_entry::Value,
    edge_key, limit_store,
};
use proto::xds::core::HeaderValue as RawHeader;
use proto::xds::ratelimit::rate_limit_response::{Code, DescriptorStatus};
use proto::xds::ratelimit::{RateLimitRequest, RateLimitResponse};

use super::callers::Gate;
use super::*;

/// Where the service is.
const RATES: &str = "10.77.0.9:8081";
const GET: &str = "GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn entry(key: &str, value: Value) -> DescriptorEntry {
    DescriptorEntry { key: key.into(), value: Some(value) }
}

fn part(kind: edge_key::Kind) -> Value {
    Value::Part(EdgeKey { kind: Some(kind) })
}

/// A world whose edge asks a service, which it finds by a cluster or, as is the case where a reference cannot be used, not.
fn asking(without: WithoutStore, found: bool) -> World {
    let descriptors = vec![
        LimitDescriptor { entries: vec![entry("plan", Value::Literal("gold".into())), entry("path", part(edge_key::Kind::Path(true)))] },
        LimitDescriptor { entries: vec![entry("user", part(edge_key::Kind::Header("x-user".into())))] },
    ];
    let service = RateLimitService {
        address: "limits.shop:8081".into(),
        cluster: "bad_backend".into(),
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
    let world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.2:8088"], ..Setup::default() });
    let mut gate = Gate::new(EdgePolicy { limits: vec![limits], ..EdgePolicy::default() });
    let service = Setup { endpoints: vec![RATES], meshed: false, ..Setup::default() };
    if found {
        gate.asked = vec![cluster("shop/limits:8081", ClusterKind::Endpoints, &service)];
    }
    gate.set(&world);
    world
}

/// The next connection that the edge makes; to the service, or else to the backend.
async fn reached(world: &mut World, service: bool) -> Socket {
    let (destination, socket) = world.applications.recv().await.expect("a connection");
    assert_eq!(destination.to_string() == RATES, service, "{destination}");
    socket
}

/// What the backend hears, which answers it.
async fn backend(world: &mut World) -> String {
    let mut socket = reached(world, false).await;
    let request = head(&mut socket).await;
    write(&mut socket, OK).await;
    request
}

/// Answers calls on a connection, one with each response, `None`: never; tells what each said.
fn rates(socket: Socket, responses: Vec<Option<RateLimitResponse>>) -> mpsc::UnboundedReceiver<RateLimitRequest> {
    let (asked, told) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let (mut responses, mut hanging) = (VecDeque::from(responses), Vec::new());
        while let Some(Ok((request, respond))) = connection.accept().await {
            match responses.pop_front().expect("it is asked as often as it answers") {
                Some(response) => _ = tokio::task::spawn_local(rate(request, respond, response, asked.clone())),
                None => hanging.push((request, respond)),
            }
        }
    });
    told
}

async fn rate(
    request: ::http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    response: RateLimitResponse,
    asked: mpsc::UnboundedSender<RateLimitRequest>,
) {
    assert_eq!(request.uri().path(), "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    assert_eq!(request.uri().authority().map(|authority| authority.as_str()), Some("limits.shop:8081"));
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    asked.send(RateLimitRequest::decode(&bytes[5..]).unwrap()).unwrap();
    let head = ::http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut sending = respond.send_response(head, false).unwrap();
    let message = response.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(&message);
    sending.send_data(frame.freeze(), false).unwrap();
    sending.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect()).unwrap();
}

fn says(code: Code) -> Option<RateLimitResponse> {
    Some(RateLimitResponse { overall_code: code.into(), ..RateLimitResponse::default() })
}

fn header(key: &str, value: &str) -> RawHeader {
    RawHeader { key: key.into(), value: value.into() }
}

async fn asked(world: &World, request: &str) -> Socket {
    let mut client = world.knock();
    write(&mut client, request).await;
    client
}

#[test]
fn a_service_is_asked_once_of_each_request() {
    // Aim: it is told what the request has, without descriptors that lack a part; its headers reach client and backend once each, the backend
    // without what the client says there; the connection to it is kept for the next.
    run(|| async {
        let mut world = asking(WithoutStore::Deny, true);
        let answer = RateLimitResponse {
            response_headers_to_add: vec![header("x-left", "7")],
            request_headers_to_add: vec![header("x-plan", "gold")],
            ..says(Code::Ok).unwrap()
        };
        let mut client = asked(&world, &GET.replace("host", "x-plan: platinum\r\nX-Plan: silver\r\nhost")).await;
        let mut heard = rates(reached(&mut world, true).await, vec![Some(answer), says(Code::Ok)]);
        let seen = backend(&mut world).await;
        let told = head(&mut client).await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        assert!(!seen.contains("platinum") && !seen.contains("silver"), "{seen}");
        assert_eq!((told.matches("x-left: 7\r\n").count(), seen.matches("x-plan: gold\r\n").count()), (1, 1), "{told}{seen}");
        let request = heard.recv().await.unwrap();
        let entries: Vec<(String, String)> =
            request.descriptors.iter().flat_map(|one| &one.entries).map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        assert_eq!(request.domain, "edge");
        assert_eq!(entries, [("plan".to_owned(), "gold".to_owned()), ("path".to_owned(), "/".to_owned())]);
        let mut client = asked(&world, GET).await;
        backend(&mut world).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
        let metrics = world.client_means.telemetry.render();
        assert!(metrics.contains("meshwright_limit_total{limit=\"shop/limits/rls\",verdict=\"allowed\"} 2\n"), "{metrics}");
    });
}

#[test]
fn a_long_value_is_no_way_around_a_service() {
    // Aim: of a path that is longer than a text of a descriptor may be, its beginning is asked about.
    run(|| async {
        let mut world = asking(WithoutStore::Deny, true);
        let mut client = world.knock();
        let long = format!("/{}", "a".repeat(3000));
        write(&mut client, &format!("GET {long} HTTP/1.1\r\nhost: shop.example\r\n\r\n")).await;
        let mut heard = rates(reached(&mut world, true).await, vec![says(Code::Ok)]);
        backend(&mut world).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
        let request = heard.recv().await.unwrap();
        let values: Vec<&str> = request.descriptors.iter().flat_map(|one| &one.entries).map(|entry| entry.value.as_str()).collect();
        assert_eq!(values, ["gold", &long[..2048]]);
    });
}

#[test]
fn one_too_many_is_refused_in_the_services_words() {
    // Aim: 429 with its headers and the time of the limit that is full; the application hears nothing.
    run(|| async {
        let mut world = asking(WithoutStore::Allow, true);
        let status = DescriptorStatus {
            code: Code::OverLimit.into(),
            duration_until_reset: Some(prost_types::Duration { seconds: 2, nanos: 500_000_000 }),
            ..DescriptorStatus::default()
        };
        let answer = RateLimitResponse {
            statuses: vec![status],
            response_headers_to_add: vec![header("x-ratelimit-remaining", "0")],
            ..says(Code::OverLimit).unwrap()
        };
        let mut client = asked(&world, &GET.replace("host", "x-user: ada\r\nhost")).await;
        let mut heard = rates(reached(&mut world, true).await, vec![Some(answer)]);
        let told = head(&mut client).await;
        assert!(told.starts_with("HTTP/1.1 429"), "{told}");
        for wanted in ["retry-after: 3\r\n", "x-ratelimit-remaining: 0\r\n", "x-meshwright-reason: rate_limited\r\n"] {
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
        assert_eq!(heard.recv().await.unwrap().descriptors.len(), 2);
        assert!(world.applications.try_recv().is_err(), "the application was asked");
    });
}

#[test]
fn while_a_service_is_away_its_object_says_what_holds() {
    // Aim: not to be found, silent, and speaking nonsense: Deny is 503 policy_unavailable, Allow lets on. A silent one costs what the object says,
    // three times; then nobody waits for it, and after a rest one request asks again.
    for (without, status) in [(WithoutStore::Deny, "503"), (WithoutStore::Allow, "200")] {
        for (found, answer, waits) in [(false, None, 0), (true, None, 3), (true, says(Code::Unknown), 1)] {
            run(move || async move {
                let mut world = asking(without, found);
                let mut heard = None;
                for request in 0..5 {
                    let began = tokio::time::Instant::now();
                    let mut client = asked(&world, GET).await;
                    if request == 0 && found {
                        let mut answers = vec![answer.clone(); waits];
                        answers.push(says(Code::Ok));
                        heard = Some(rates(reached(&mut world, true).await, answers));
                    }
                    if status == "200" {
                        backend(&mut world).await;
                    }
                    let told = head(&mut client).await;
                    assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{told}");
                    assert_eq!(told.contains("policy_unavailable"), status == "503", "{told}");
                    let waited = if found && answer.is_none() && request < waits { Duration::from_millis(20) } else { Duration::ZERO };
                    assert_eq!(began.elapsed(), waited, "{request}");
                }
                let metrics = world.client_means.telemetry.render();
                assert!(metrics.contains("meshwright_degraded{kind=\"RateLimit\",name=\"rls/limits.shop:8081\"} 1\n"), "{metrics}");
                if heard.is_some() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let mut client = asked(&world, GET).await;
                    backend(&mut world).await;
                    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
                    let metrics = world.client_means.telemetry.render();
                    assert!(metrics.contains("meshwright_degraded{kind=\"RateLimit\",name=\"rls/limits.shop:8081\"} 0\n"), "{metrics}");
                }
            });
        }
    }
}
