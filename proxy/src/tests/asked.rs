//! Services and authorization servers that are asked before a request goes on, over whole connections: what a request becomes with each answer,
//! and with each way not to answer.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use engine::callout::CalloutOutcome;
use engine::filter::Stage;
use engine::filter::guard::Guard;
use engine::model::{Action, Forward};
use prost::Message as _;
use proto::mesh;
use proto::xds::auth::check_response::HttpResponse;
use proto::xds::auth::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use proto::xds::core::{HeaderValue, HeaderValueOption};
use proto::xds::rpc;

use super::callers::Gate;
use super::*;

/// Where the service is.
const AUTHZ: &str = "10.77.0.9:9000";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn grpc() -> mesh::ExternalAuth {
    mesh::ExternalAuth {
        policy: "shop/authz".into(),
        cluster: "bad_backend".into(),
        protocol: Some(mesh::external_auth::Protocol::Grpc(mesh::ExternalGrpc {
            authority: "authz.shop:9000".into(),
            ..mesh::ExternalGrpc::default()
        })),
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..mesh::ExternalAuth::default()
    }
}

fn http() -> mesh::ExternalAuth {
    let check = mesh::ExternalHttp { path: "/auth".into(), response_headers: vec!["x-user".into()], ..mesh::ExternalHttp::default() };
    mesh::ExternalAuth { protocol: Some(mesh::external_auth::Protocol::Http(check)), ..grpc() }
}

/// A world whose edge asks that.
fn asking(external: mesh::ExternalAuth) -> World {
    let world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.2:8088"], ..Setup::default() });
    asking_of(&world, mesh::EdgePolicy { external: vec![external], ..mesh::EdgePolicy::default() });
    world
}

/// The same, of all that an edge may say.
fn asking_of(world: &World, edge: mesh::EdgePolicy) {
    let mut gate = Gate::new(edge);
    let service = Setup { endpoints: vec![AUTHZ], meshed: false, ..Setup::default() };
    gate.asked = vec![cluster("shop/authz:9000", ClusterKind::Endpoints, &service)];
    gate.set(world);
}

/// The next connection that the edge makes, and whether it is to the service.
async fn reached(world: &mut World) -> (Socket, bool) {
    let (destination, socket) = world.applications.recv().await.expect("a connection");
    (socket, destination.to_string() == AUTHZ)
}

/// The connection to the service.
async fn service(world: &mut World) -> Socket {
    let (socket, asks) = reached(world).await;
    assert!(asks, "the service is asked first");
    socket
}

/// The request as the backend sees it, which answers it.
async fn backend(world: &mut World) -> String {
    let (mut socket, asks) = reached(world).await;
    assert!(!asks, "the service is asked once");
    let request = head(&mut socket).await;
    let length = request.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|length| length.parse().ok()).unwrap_or(0);
    let body = exactly(&mut socket, length).await;
    write(&mut socket, OK).await;
    request + &body
}

/// Answers calls of `Check` on a connection, one with each response; tells what each said.
fn checks(socket: Socket, responses: Vec<CheckResponse>) -> mpsc::UnboundedReceiver<CheckRequest> {
    let (asked, told) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let mut responses = VecDeque::from(responses);
        while let Some(Ok((request, respond))) = connection.accept().await {
            let response = responses.pop_front().expect("it is asked as often as it answers");
            tokio::task::spawn_local(check(request, respond, response, asked.clone()));
        }
    });
    told
}

async fn check(
    request: ::http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    response: CheckResponse,
    asked: mpsc::UnboundedSender<CheckRequest>,
) {
    assert_eq!(request.uri().path(), "/envoy.service.auth.v3.Authorization/Check");
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    asked.send(CheckRequest::decode(&bytes[5..]).unwrap()).unwrap();
    let head = ::http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut sending = respond.send_response(head, false).unwrap();
    sending.send_data(framed(&response.encode_to_vec()), false).unwrap();
    sending.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect()).unwrap();
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

fn allows() -> CheckResponse {
    let header =
        HeaderValueOption { header: Some(HeaderValue { key: "x-user".into(), value: "ada".into() }), ..HeaderValueOption::default() };
    let seen =
        HeaderValueOption { header: Some(HeaderValue { key: "x-seen".into(), value: "yes".into() }), ..HeaderValueOption::default() };
    let ok = OkHttpResponse { headers: vec![header], response_headers_to_add: vec![seen], ..OkHttpResponse::default() };
    CheckResponse { status: Some(rpc::Status::default()), http_response: Some(HttpResponse::OkResponse(ok)), dynamic_metadata: None }
}

fn denies() -> CheckResponse {
    let denied = DeniedHttpResponse { body: "not you".into(), ..DeniedHttpResponse::default() };
    let status = Some(rpc::Status { code: 7, ..rpc::Status::default() });
    CheckResponse { status, http_response: Some(HttpResponse::DeniedResponse(denied)), dynamic_metadata: None }
}

/// What became of the service that is asked, by number.
fn counted(world: &World, outcome: CalloutOutcome) -> u64 {
    let live = world.client.reader.load();
    let Some(Port::Http(table)) = live.edges.get(&80).map(|edge| &edge.port) else { panic!("it serves HTTP") };
    let Action::Forward(forward) = &table.hosts[0].rules[0].action else { panic!("it leads somewhere") };
    external(forward).live().counted(outcome)
}

fn external(forward: &Forward) -> Arc<engine::filter::guard::External> {
    let found = forward.policy.steps.gates.iter().find_map(|stage| match stage {
        Stage::Guard(Guard::External(guard)) => Some(Arc::clone(&guard.external)),
        _ => None,
    });
    found.expect("a service is asked")
}

const ASKED: &str = "POST /a?b=1 HTTP/1.1\r\nhost: shop.example\r\nx-user: me\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbody";

#[test]
fn a_service_lets_a_request_on_and_changes_it() {
    // Aim: over gRPC the question holds the request, and what the answer sets the backend sees, and the client; the body is shown as far as it is
    // to be, and goes on whole.
    run(|| async {
        for (bytes_max, partial, shown) in [(0, false, ""), (4, false, "body"), (10, false, "body"), (2, true, "bo")] {
            let mut world = asking(mesh::ExternalAuth { body_bytes_max: bytes_max, body_partial: partial, ..grpc() });
            let mut client = world.knock();
            write(&mut client, ASKED).await;
            let socket = service(&mut world).await;
            let mut asked = checks(socket, vec![allows()]);
            let request = backend(&mut world).await;
            assert!(request.contains("x-user: ada\r\n") && !request.contains("x-user: me") && request.ends_with("body"), "{request}");
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-seen: yes\r\n"), "{answer}");
            let asked = asked.recv().await.unwrap().attributes.unwrap();
            let http = asked.request.unwrap().http.unwrap();
            assert_eq!((http.path.as_str(), http.host.as_str(), http.body.as_str()), ("/a?b=1", "shop.example", shown));
            assert_eq!(
                http.headers.get("x-envoy-auth-partial-body").map(String::as_str),
                (bytes_max > 0).then_some(if partial { "true" } else { "false" })
            );
        }
    });
}

#[test]
fn a_service_refuses_and_a_body_may_be_too_long() {
    // Aim: the service's words are the answer; a body that it may not see whole is 413 before anybody is asked, where its length is told and where not.
    run(|| async {
        let mut world = asking(grpc());
        let mut client = world.knock();
        write(&mut client, ASKED).await;
        let socket = service(&mut world).await;
        let _asked = checks(socket, vec![denies()]);
        let answer = head(&mut client).await + &rest(&mut client).await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("x-meshwright-reason: denied\r\n") && answer.ends_with("not you"),
            "{answer}"
        );
        let chunked =
            "POST / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        for request in [ASKED, chunked] {
            let world = asking(mesh::ExternalAuth { body_bytes_max: 3, ..grpc() });
            let mut client = world.knock();
            write(&mut client, request).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("x-meshwright-reason: too_large\r\n"), "{answer}");
        }
    });
}

#[test]
fn a_service_on_trial_that_cannot_be_had_refuses_nobody() {
    // Aim: what an object refers to that cannot be used is 500 for all, unless its word counts for nothing.
    run(|| async {
        for (dry_run, status) in [(false, "500"), (true, "200")] {
            let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.2:8088"], ..Setup::default() });
            let external = vec![mesh::ExternalAuth { dry_run, ..grpc() }];
            let mut gate = Gate::new(mesh::EdgePolicy { external, ..mesh::EdgePolicy::default() });
            gate.broken = true;
            gate.set(&world);
            let mut client = world.knock();
            write(&mut client, ASKED).await;
            if dry_run {
                backend(&mut world).await;
            }
            let answer = head(&mut client).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
    });
}

#[test]
fn a_body_that_is_refused_in_any_case_is_shown_to_nobody() {
    // Aim: longer than the rule's own bound it is 413, by its declared length or by what has come, and the service hears nothing of it.
    run(|| async {
        let chunked =
            "POST / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        for (request, shown) in [(ASKED, 0), (ASKED, 10), (chunked, 10)] {
            let mut world = World::new(Setup { meshed: false, endpoints: vec!["10.77.0.2:8088"], ..Setup::default() });
            let external = vec![mesh::ExternalAuth { body_bytes_max: shown, ..grpc() }];
            asking_of(&world, mesh::EdgePolicy { external, body_bytes_max: 3, ..mesh::EdgePolicy::default() });
            let mut client = world.knock();
            write(&mut client, request).await;
            let answer = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("x-meshwright-reason: too_large\r\n"), "{answer}");
            assert!(world.applications.try_recv().is_err(), "somebody was asked");
        }
    });
}

#[test]
fn a_client_that_waits_to_be_asked_is_asked_for_what_the_service_sees() {
    // Aim: with `Expect: 100-continue` the body that is shown is asked for, and the backend does not wait for it any more.
    run(|| async {
        let mut world = asking(mesh::ExternalAuth { body_bytes_max: 10, ..http() });
        let mut client = world.knock();
        write(&mut client, "POST / HTTP/1.1\r\nhost: shop.example\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 100"));
        write(&mut client, "body").await;
        let mut socket = service(&mut world).await;
        let asked = head(&mut socket).await + &exactly(&mut socket, 4).await;
        assert!(asked.starts_with("POST /auth/ ") && asked.ends_with("body"), "{asked}");
        write(&mut socket, OK).await;
        let request = backend(&mut world).await;
        assert!(request.ends_with("body") && !request.contains("expect"), "{request}");
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn by_http_a_page_is_sent_to_log_in() {
    // Aim: 200 lets on with the named header, 302 is the client's with its place and cookie; the connection to the service serves both.
    run(|| async {
        let mut world = asking(http());
        let mut client = world.knock();
        let asked = "GET /a HTTP/1.1\r\nhost: shop.example\r\nx-user: me\r\nauthorization: Basic eA==\r\n\r\n";
        write(&mut client, asked).await;
        let mut socket = service(&mut world).await;
        let question = head(&mut socket).await;
        assert!(question.starts_with("GET /auth/a HTTP/1.1\r\n") && question.contains("authorization: Basic eA==\r\n"), "{question}");
        assert!(question.contains("host: shop.example\r\n") && !question.contains("x-user"), "{question}");
        write(&mut socket, "HTTP/1.1 200 OK\r\nx-user: ada\r\nx-other: 1\r\ncontent-length: 0\r\n\r\n").await;
        let request = backend(&mut world).await;
        assert!(request.contains("x-user: ada\r\n") && !request.contains("x-user: me") && !request.contains("x-other"), "{request}");
        head(&mut client).await;
        write(&mut client, asked).await;
        head(&mut socket).await;
        write(&mut socket, "HTTP/1.1 302 Found\r\nlocation: /login\r\nset-cookie: s=1\r\nserver: x\r\ncontent-length: 0\r\n\r\n").await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 302") && answer.contains("location: /login\r\nset-cookie: s=1\r\n"), "{answer}");
        assert!(!answer.contains("server") && !answer.contains("x-meshwright-reason"), "{answer}");
    });
}

/// What a service does instead of answering.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Gone,
    Refuses,
    Hangs,
    Nonsense,
    BreaksOff,
    TooMuch,
}

#[test]
fn each_way_not_to_answer_goes_by_on_error() {
    // Aim: peer gone, refusing, hanging, answering nonsense, breaking off, answering without end: 503 under Deny, and on unchecked under Allow,
    // within the timeout; each is counted as what it is.
    run(|| async {
        let all = [
            (Instead::Gone, CalloutOutcome::Unreached),
            (Instead::Refuses, CalloutOutcome::Unreached),
            (Instead::Hangs, CalloutOutcome::Silent),
            (Instead::Nonsense, CalloutOutcome::Unreached),
            (Instead::BreaksOff, CalloutOutcome::Unreached),
            (Instead::TooMuch, CalloutOutcome::Garbled),
        ];
        for (instead, outcome) in all {
            for form in [grpc(), http()] {
                if matches!(instead, Instead::TooMuch | Instead::BreaksOff)
                    && matches!(form.protocol, Some(mesh::external_auth::Protocol::Grpc(_)))
                {
                    continue;
                }
                for allow_without in [false, true] {
                    let mut world = asking(mesh::ExternalAuth { allow_without, ..form.clone() });
                    let mut client = world.knock();
                    if matches!(instead, Instead::Refuses) {
                        world.client_wires.refused.lock().insert(AUTHZ.parse().unwrap());
                    }
                    let began = tokio::time::Instant::now();
                    write(&mut client, "GET / HTTP/1.1\r\nhost: shop.example\r\nx-meshwright-unchecked: me\r\nconnection: close\r\n\r\n")
                        .await;
                    let mut held = Vec::new();
                    match instead {
                        Instead::Refuses => {}
                        Instead::Gone => drop(service(&mut world).await),
                        Instead::Hangs => held.push(service(&mut world).await),
                        Instead::Nonsense => {
                            let mut socket = service(&mut world).await;
                            write(&mut socket, "SSH-2.0-nonsense and more of it, so that a frame's head is whole\r\n\r\n").await;
                            held.push(socket);
                        }
                        Instead::BreaksOff => {
                            let mut socket = service(&mut world).await;
                            head(&mut socket).await;
                            write(&mut socket, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx").await;
                        }
                        Instead::TooMuch => {
                            let mut socket = service(&mut world).await;
                            head(&mut socket).await;
                            write(&mut socket, &format!("HTTP/1.1 403 No\r\ncontent-length: 70000\r\n\r\n{}", "x".repeat(70_000))).await;
                            held.push(socket);
                        }
                    }
                    if allow_without {
                        let request = backend(&mut world).await;
                        assert!(request.contains("x-meshwright-unchecked: ExternalAuth\r\n") && !request.contains(": me"), "{request}");
                    }
                    let answer = head(&mut client).await;
                    let wanted = if allow_without { "HTTP/1.1 200" } else { "HTTP/1.1 503" };
                    assert!(answer.starts_with(wanted), "{instead:?}: {answer}");
                    assert_eq!(answer.contains("x-meshwright-reason: policy_unavailable"), !allow_without, "{instead:?}: {answer}");
                    assert!(began.elapsed() <= Duration::from_secs(2), "{instead:?}: {:?}", began.elapsed());
                    assert_eq!(counted(&world, outcome), 1, "{instead:?}");
                    assert_eq!(counted(&world, CalloutOutcome::Unchecked), u64::from(allow_without));
                }
            }
        }
    });
}

#[test]
fn a_kept_connection_that_died_is_no_reason_to_refuse() {
    // Aim: a service that restarted between two questions is asked anew.
    run(|| async {
        let mut world = asking(http());
        let mut client = world.knock();
        for _ in 0..2 {
            write(&mut client, "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n").await;
            let (mut socket, asks) = reached(&mut world).await;
            assert!(asks);
            head(&mut socket).await;
            write(&mut socket, "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 403"));
            rest_of(&mut client).await;
            drop(socket);
        }
    });
}

/// The body of a refusal.
async fn rest_of(client: &mut Socket) {
    let mut bytes = [0; 4096];
    let _ = client.read(&mut bytes).await;
}

fn opaque(allow_without: bool, url: &str) -> mesh::EdgePolicy {
    let header = mesh::CredentialHeader { name: "authorization".into(), prefix: "Bearer ".into() };
    let introspection = mesh::Introspection {
        policy: "shop/tokens".into(),
        url: url.into(),
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        remembered: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        from: vec![mesh::CredentialPlace { kind: Some(mesh::credential_place::Kind::Header(header)) }],
        allow_without,
        ..mesh::Introspection::default()
    };
    let tokens = mesh::EdgeTokens { policy: "shop/tokens".into(), introspection: Some(introspection), ..mesh::EdgeTokens::default() };
    mesh::EdgePolicy { tokens: Some(tokens), ..mesh::EdgePolicy::default() }
}

#[test]
fn an_authorization_server_is_asked_about_opaque_tokens() {
    // Aim: over a whole connection: the question is a form, an active token goes on without being seen by the backend, and is asked about once; a
    // server that refuses, hangs or says nonsense is 503 under Deny.
    run(|| async {
        let world = || World::new(Setup { meshed: false, endpoints: vec!["10.77.0.2:8088"], ..Setup::default() });
        let asked = "GET / HTTP/1.1\r\nhost: shop.example\r\nauthorization: Bearer opaque\r\n\r\n";
        let mut own = world();
        Gate::new(opaque(false, &format!("http://{AUTHZ}/introspect"))).set(&own);
        let mut client = own.knock();
        write(&mut client, asked).await;
        let mut server = service(&mut own).await;
        let question = head(&mut server).await + &exactly(&mut server, "token=opaque&token_type_hint=access_token".len()).await;
        assert!(question.starts_with("POST /introspect HTTP/1.1\r\n"), "{question}");
        assert!(question.ends_with("token=opaque&token_type_hint=access_token"), "{question}");
        let said = "{\"active\": true, \"sub\": \"ada\"}";
        write(&mut server, &format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{said}", said.len()))
            .await;
        let (mut application, asks) = reached(&mut own).await;
        assert!(!asks);
        for _ in 0..2 {
            assert!(!head(&mut application).await.contains("opaque"));
            write(&mut application, OK).await;
            assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
            write(&mut client, asked).await;
        }
        for nonsense in [
            None,
            Some("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"),
            Some("nonsense\r\n\r\n"),
            Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"),
        ] {
            for allow_without in [false, true] {
                let mut own = world();
                Gate::new(opaque(allow_without, &format!("http://{AUTHZ}/introspect"))).set(&own);
                let mut client = own.knock();
                write(&mut client, asked).await;
                let mut server = service(&mut own).await;
                head(&mut server).await;
                if let Some(nonsense) = nonsense {
                    write(&mut server, nonsense).await;
                }
                if allow_without {
                    assert!(backend(&mut own).await.contains("x-meshwright-unchecked: Introspection\r\n"));
                }
                let answer = head(&mut client).await;
                assert!(answer.starts_with(if allow_without { "HTTP/1.1 200" } else { "HTTP/1.1 503" }), "{nonsense:?}: {answer}");
            }
        }
    });
}
