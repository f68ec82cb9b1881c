//! What a service is shown, what its answers mean, and what becomes of a request where there is none.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use prost::Message as _;
use proto::mesh;
use proto::xds::auth::check_response::HttpResponse;
use proto::xds::auth::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use proto::xds::core::{HeaderValue as RawValue, HeaderValueOption, QueryParameter};
use proto::xds::rpc;
use proto::xds::types::HttpStatus;

use super::*;
use crate::Moment;
use crate::authenticate::Remembered;
use crate::callout::CalloutAnswer;
use crate::consumers::{AuthMethod, Book, ClientCertificate, Consumer, Identified, Verified};
use crate::filter::guard::{Counted, Found, Watch};
use crate::filter::tests::exchange;

fn grpc() -> mesh::ExternalAuth {
    mesh::ExternalAuth {
        policy: "shop/authz".into(),
        cluster: "shop/authz:9000".into(),
        protocol: Some(Protocol::Grpc(mesh::ExternalGrpc { authority: "authz.shop:9000".into(), request_headers: Vec::new() })),
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..mesh::ExternalAuth::default()
    }
}

fn plain(check: mesh::ExternalHttp) -> mesh::ExternalAuth {
    mesh::ExternalAuth { protocol: Some(Protocol::Http(check)), ..grpc() }
}

/// A guard, and what a request knows on its way.
struct Scene {
    guard: ExternalGuard,
    found: Found,
    counted: Counted,
    request: http::request::Parts,
    now: Moment,
}

impl Scene {
    fn new(raw: &mesh::ExternalAuth, request: Request<()>) -> Self {
        let external = Arc::new(External::compile(raw, &Callouts::default()).unwrap());
        let guard = ExternalGuard { external, place: 0 };
        Self { guard, found: Found::default(), counted: Counted::default(), request: request.into_parts().0, now: Moment::default() }
    }

    fn of(raw: &mesh::ExternalAuth) -> Self {
        Self::new(raw, request(&[]))
    }

    /// What becomes of the request, once that is answered.
    fn told(&mut self, told: Option<CalloutTold>) -> Passed {
        let (mut tokens, mut verified, book) = (Remembered::new(1), Verified::new([7; 32]), Book::default());
        let certificate = ClientCertificate::new([1; 32], "CN=acme", ["spiffe://partner/acme".into()], []);
        if let Some(told) = told {
            self.found.tell_callout(told);
        }
        let mut exchange = exchange(&mut self.request);
        exchange.now = self.now;
        exchange.watch = Some(Watch {
            book: &book,
            tokens: &mut tokens,
            peer: exchange.address,
            port: 40_000,
            certificate: Some(&certificate),
            verified: &mut verified,
            wall_secs: 1_800_000_000,
            found: &mut self.found,
            counted: &mut self.counted,
        });
        self.guard.on_request(&mut exchange)
    }

    fn asks(&mut self) -> CheckAsk {
        match self.told(None) {
            Passed::Asks(question) => match *question {
                Question::Check(ask) => ask,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// Status of the answer, if it is one.
    fn status(&mut self, told: CalloutTold) -> Option<u16> {
        match self.told(Some(told)) {
            Passed::On => None,
            Passed::Answered(reply) => Some(reply.status.as_u16()),
            Passed::Asks(question) => panic!("{question:?}"),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.request.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post("/items?a=1&b=2").header("host", "shop.example").header("content-length", "5");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

fn answer(response: &CheckResponse) -> CalloutTold {
    raw(framed(&response.encode_to_vec()), Some("0"))
}

fn raw(body: Bytes, status: Option<&str>) -> CalloutTold {
    let mut trailers = HeaderMap::new();
    status.into_iter().for_each(|status| drop(trailers.insert("grpc-status", status.parse().unwrap())));
    CalloutTold::Answer(CalloutAnswer { body, trailers, ..CalloutAnswer::default() })
}

fn option(key: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    let header = Some(RawValue { key: key.into(), value: value.into() });
    HeaderValueOption { header, append, append_action: action, keep_empty_value: false }
}

fn ok(ok: OkHttpResponse) -> CheckResponse {
    CheckResponse { status: Some(rpc::Status::default()), http_response: Some(HttpResponse::OkResponse(ok)), dynamic_metadata: None }
}

fn denied(denied: DeniedHttpResponse) -> CheckResponse {
    let status = Some(rpc::Status { code: 7, ..rpc::Status::default() });
    CheckResponse { status, http_response: Some(HttpResponse::DeniedResponse(denied)), dynamic_metadata: None }
}

#[test]
fn a_service_is_shown_the_request_and_who_calls() {
    // Aim: what Envoy shows is shown, with consumer, claims and certificate beside it; the body only as far as was asked for.
    let mut scene = Scene::new(
        &mesh::ExternalAuth { body_bytes_max: 3, ..grpc() },
        request(&[("x-a", "1"), ("x-a", "2"), ("x-request-id", "r1"), ("transfer-encoding", "chunked")]),
    );
    let mut consumer = Consumer::default();
    (consumer.path, consumer.groups) = ("partners/acme".into(), vec!["gold".into()]);
    scene.found.identify(Identified {
        method: AuthMethod::ApiKey,
        consumer: Some(Arc::new(consumer)),
        credential: None,
        user: None,
        file: None,
        claims: None,
        until_secs: None,
    });
    let ask = scene.asks();
    assert_eq!((ask.body(), ask.is_grpc(), ask.timeout().as_secs()), (Some(BodyWanted { bytes_max: 3, partial: false }), true, 1));
    let sent = ask.request(Bytes::from_static(b"abc"), true).unwrap();
    assert_eq!(sent.uri(), "http://authz.shop:9000/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(
        (&sent.headers()["content-type"], &sent.headers()["te"]),
        (&"application/grpc".parse().unwrap(), &"trailers".parse().unwrap())
    );
    let attributes = CheckRequest::decode(&sent.body()[5..]).unwrap().attributes.unwrap();
    let http = attributes.request.unwrap().http.unwrap();
    assert_eq!(
        (http.method.as_str(), http.path.as_str(), http.host.as_str(), http.id.as_str()),
        ("POST", "/items?a=1&b=2", "shop.example", "r1")
    );
    assert_eq!((http.scheme.as_str(), http.protocol.as_str(), http.body.as_str(), http.size), ("http", "HTTP/1.1", "abc", 5));
    let header = |name: &str| http.headers.get(name).map(String::as_str);
    assert_eq!((header("x-a"), header(":path"), header("x-envoy-auth-partial-body")), (Some("1,2"), Some("/items?a=1&b=2"), Some("true")));
    assert_eq!(header("host"), None, "Envoy shows it as `:authority` alone");
    assert_eq!(header("transfer-encoding"), None, "nothing of the hop");
    let bare = Scene::new(&mesh::ExternalAuth { body_bytes_max: 3, ..grpc() }, request(&[])).asks();
    let bare = CheckRequest::decode(&bare.request(Bytes::new(), false).unwrap().body()[5..]).unwrap();
    let headers = bare.attributes.unwrap().request.unwrap().http.unwrap().headers;
    assert!(!headers.contains_key("x-envoy-auth-partial-body"), "there is no body: {headers:?}");
    let context = |name: &str| attributes.context_extensions.get(name).map(String::as_str);
    assert_eq!(
        (context("consumer"), context("consumer_groups"), context("auth_method")),
        (Some("partners/acme"), Some("gold"), Some("ApiKey"))
    );
    assert_eq!(context("certificate_uris"), Some("spiffe://partner/acme"));
    assert_eq!(attributes.source.unwrap().principal, "spiffe://partner/acme");

    let some = mesh::ExternalGrpc { authority: "a".into(), request_headers: vec!["x-a".into()] };
    let ask =
        Scene::new(&mesh::ExternalAuth { protocol: Some(Protocol::Grpc(some)), ..grpc() }, request(&[("x-a", "1"), ("x-b", "2")])).asks();
    let sent = ask.request(Bytes::new(), false).unwrap();
    let http = CheckRequest::decode(&sent.body()[5..]).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
    assert!(http.headers.contains_key("x-a") && !http.headers.contains_key("x-b") && http.headers.contains_key(":method"));
}

#[test]
fn answers_over_grpc_mean_what_envoy_takes_them_for() {
    // Aim: set, append and remove on headers and query; what belongs to the mesh or the connection stays; a denial is the client's answer.
    let mut scene = Scene::new(&grpc(), request(&[("x-old", "1"), ("x-gone", "1"), ("x-more", "1"), ("x-meshwright-unchecked", "me")]));
    scene.asks();
    assert_eq!(scene.header("x-meshwright-unchecked"), None, "a caller says nothing there");
    let changes = OkHttpResponse {
        headers: vec![
            option("x-old", "2", None, 0),
            option("x-more", "2", Some(true), 0),
            option("x-new", "3", None, 1),
            option("x-absent", "4", None, 3),
            option("host", "evil.example", None, 0),
            option("x-meshwright-consumer", "shop/boss", None, 0),
            option("x-bad", "a\nb", None, 0),
        ],
        headers_to_remove: vec!["x-gone".into(), "host".into()],
        response_headers_to_add: vec![option("x-seen", "yes", None, 0)],
        query_parameters_to_set: vec![QueryParameter { key: "a".into(), value: "2 3".into() }],
        query_parameters_to_remove: vec!["b".into()],
    };
    assert_eq!(scene.status(answer(&ok(changes))), None);
    let values = |name: &str| scene.request.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((values("x-old"), values("x-more"), values("x-new")), (vec!["2"], vec!["1", "2"], vec!["3"]));
    for absent in ["x-gone", "x-absent", "x-meshwright-consumer", "x-bad"] {
        assert!(values(absent).is_empty(), "{absent}");
    }
    assert_eq!((values("host"), scene.request.uri.to_string()), (vec!["shop.example"], "/items?a=2%203".to_owned()));
    let mut headers = HeaderMap::new();
    scene.counted.tell(&mut headers);
    assert_eq!(headers.get("x-seen").map(|value| value.as_bytes()), Some(&b"yes"[..]));

    let reply = |response: &CheckResponse| {
        let mut scene = Scene::of(&grpc());
        scene.asks();
        match scene.told(Some(answer(response))) {
            Passed::Answered(reply) => (*reply, scene.found.denied()),
            other => panic!("{other:?}"),
        }
    };
    let told = DeniedHttpResponse {
        status: Some(HttpStatus { code: 302 }),
        headers: vec![option("location", "/login", None, 0), option("set-cookie", "a=1", None, 0), option("set-cookie", "b=2", None, 0)],
        body: "go".into(),
    };
    let (login, why) = reply(&denied(told));
    assert_eq!((login.status.as_u16(), login.reason, &*login.body, login.headers.len()), (302, None, &b"go"[..], 3));
    assert_eq!(why, Some(Denied::External));
    let (plain, _) = reply(&denied(DeniedHttpResponse::default()));
    assert_eq!((plain.status.as_u16(), plain.reason), (403, Some(Reason::Denied)));
    let bare = CheckResponse { status: Some(rpc::Status { code: 16, ..rpc::Status::default() }), ..CheckResponse::default() };
    assert_eq!(reply(&bare).0.status.as_u16(), 403);
    let (odd, _) = reply(&denied(DeniedHttpResponse { status: Some(HttpStatus { code: 99 }), ..DeniedHttpResponse::default() }));
    assert_eq!(odd.status.as_u16(), 403);
}

#[test]
fn what_is_no_answer_goes_by_on_error() {
    // Aim: every way not to answer, with Deny, Allow and on trial; the mark is the mesh's own, and each is counted.
    let cut = framed(b"").slice(..3);
    let long = {
        let mut frame = framed(b"ab").to_vec();
        frame[4] = 9;
        Bytes::from(frame)
    };
    let packed = {
        let mut frame = framed(b"").to_vec();
        frame[0] = 1;
        Bytes::from(frame)
    };
    let failed = CheckResponse {
        http_response: Some(HttpResponse::ErrorResponse(DeniedHttpResponse::default())),
        ..denied(DeniedHttpResponse::default())
    };
    let status = |status: StatusCode| CalloutTold::Answer(CalloutAnswer { status, ..CalloutAnswer::default() });
    for (told, outcome) in [
        (CalloutTold::Away(CalloutAway::Unreached), CalloutOutcome::Unreached),
        (CalloutTold::Away(CalloutAway::Silent), CalloutOutcome::Silent),
        (CalloutTold::Away(CalloutAway::Full), CalloutOutcome::Full),
        (status(StatusCode::SERVICE_UNAVAILABLE), CalloutOutcome::Unreached),
        (raw(framed(b""), Some("14")), CalloutOutcome::Unreached),
        (answer(&failed), CalloutOutcome::Unreached),
        (raw(framed(b""), None), CalloutOutcome::Garbled),
        (raw(cut, Some("0")), CalloutOutcome::Garbled),
        (raw(long, Some("0")), CalloutOutcome::Garbled),
        (raw(packed, Some("0")), CalloutOutcome::Garbled),
        (raw(framed(b"\xff\xff\xff"), Some("0")), CalloutOutcome::Garbled),
    ] {
        let mut scene = Scene::of(&grpc());
        scene.asks();
        assert_eq!((scene.status(told.clone()), scene.found.denied()), (Some(503), Some(Denied::Away)), "{told:?}");
        assert_eq!(scene.guard.external.live().counted(outcome), 1, "{told:?}");
        let mut scene = Scene::of(&mesh::ExternalAuth { allow_without: true, ..grpc() });
        scene.asks();
        assert_eq!((scene.status(told.clone()), scene.header("x-meshwright-unchecked")), (None, Some("ExternalAuth")), "{told:?}");
        assert_eq!(scene.guard.external.live().counted(CalloutOutcome::Unchecked), 1);
        let mut scene = Scene::of(&mesh::ExternalAuth { dry_run: true, ..grpc() });
        scene.asks();
        assert_eq!((scene.status(told), scene.header("x-meshwright-unchecked")), (None, None));
    }
    let mut scene = Scene::of(&grpc());
    scene.asks();
    assert_eq!(scene.status(CalloutTold::TooLong), Some(413));
    let mut trial = Scene::of(&mesh::ExternalAuth { dry_run: true, ..grpc() });
    trial.asks();
    assert_eq!(trial.status(answer(&denied(DeniedHttpResponse::default()))), None);
    assert_eq!(trial.guard.external.live().counted(CalloutOutcome::WouldDeny), 1);
}

#[test]
fn by_http_named_headers_go_and_come() {
    // Aim: method, prefixed path, named headers and no hop's; 200 sets what is named and nothing else, other statuses are the client's.
    let check = mesh::ExternalHttp {
        path: "/auth/".into(),
        request_headers: vec!["cookie".into(), "connection".into()],
        response_headers: vec!["x-user".into(), "authorization".into()],
        all_response_headers: false,
    };
    let asked = [("cookie", "a=1"), ("authorization", "Basic eA=="), ("x-other", "1"), ("x-user", "me"), ("connection", "close")];
    let mut scene = Scene::new(&plain(check.clone()), request(&asked));
    let sent = scene.asks().request(Bytes::new(), false).unwrap();
    assert_eq!((sent.method().as_str(), sent.uri().to_string().as_str()), ("POST", "/auth/items?a=1&b=2"));
    let names: Vec<&str> = sent.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    for name in ["host", "cookie", "authorization", "content-length"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert_eq!((&sent.headers()["host"], &sent.headers()["content-length"]), (&"shop.example".parse().unwrap(), &"0".parse().unwrap()));
    let http = |status: u16, headers: &[(&'static str, &'static str)]| {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        CalloutTold::Answer(CalloutAnswer { status, headers, body: Bytes::from_static(b"body"), trailers: HeaderMap::new() })
    };
    assert_eq!(scene.status(http(200, &[("x-user", "ada"), ("x-other", "2"), ("content-type", "text/plain")])), None);
    assert_eq!((scene.header("x-user"), scene.header("x-other"), scene.header("content-type")), (Some("ada"), Some("1"), None));
    assert_eq!(scene.header("authorization"), Some("Basic eA=="), "a caller's own stays until the service says otherwise");

    let mut unsaid = Scene::new(&plain(check.clone()), request(&asked));
    unsaid.asks();
    assert_eq!((unsaid.status(http(200, &[])), unsaid.header("x-user")), (None, None), "what the service does not say nobody says");
    let mut scene = Scene::of(&plain(check.clone()));
    scene.asks();
    let told = [("location", "/login"), ("set-cookie", "s=1"), ("x-user", "nobody"), ("x-secret", "1"), ("transfer-encoding", "chunked")];
    let Passed::Answered(reply) = scene.told(Some(http(302, &told))) else { panic!("it is an answer") };
    let names: Vec<&str> = reply.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((reply.status.as_u16(), reply.headers.len(), &*reply.body), (302, 3, &b"body"[..]), "{names:?}");
    for (told, status) in
        [(http(204, &[]), 204), (http(401, &[]), 401), (http(500, &[]), 500), (http(503, &[("x-meshwright-reason", "no_endpoints")]), 503)]
    {
        let mut scene = Scene::of(&plain(check.clone()));
        scene.asks();
        assert_eq!(scene.status(told), Some(status));
    }
    let all = mesh::ExternalHttp { all_response_headers: true, ..mesh::ExternalHttp::default() };
    let mut scene = Scene::of(&plain(all));
    scene.asks();
    scene.status(http(200, &[("x-user", "ada"), ("host", "evil"), ("content-length", "4"), ("x-meshwright-reason-not", "1")]));
    assert_eq!(
        (scene.header("x-user"), scene.header("host"), scene.header("content-length")),
        (Some("ada"), Some("shop.example"), Some("5"))
    );
}

#[test]
fn a_verdict_counts_for_its_key_and_its_time() {
    // Aim: one question per key until its time is over, none is remembered without a key, and no more than there is room for.
    let key = vec![mesh::EdgeKey { kind: Some(mesh::edge_key::Kind::Header("authorization".into())) }];
    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let raw = mesh::ExternalAuth { cache: Some(mesh::CheckCache { ttl, key, entries: 2 }), ..grpc() };
    let mut scene = Scene::new(&raw, request(&[("authorization", "a")]));
    scene.asks();
    assert_eq!(scene.status(answer(&denied(DeniedHttpResponse::default()))), Some(403));
    assert!(matches!(scene.told(None), Passed::Answered(_)));
    assert_eq!(scene.guard.external.live().counted(CalloutOutcome::Remembered), 1);
    scene.now = Moment::after_start(Duration::from_secs(5));
    scene.asks();
    scene.status(answer(&ok(OkHttpResponse::default())));
    for other in ["b", "c", "d"] {
        scene.request.headers.insert("authorization", other.parse().unwrap());
        scene.asks();
        scene.status(answer(&ok(OkHttpResponse::default())));
    }
    scene.request.headers.insert("authorization", "a".parse().unwrap());
    scene.asks();
    scene.request.headers.remove("authorization");
    for _ in 0..2 {
        scene.asks();
        scene.status(answer(&ok(OkHttpResponse::default())));
    }
}

#[test]
fn it_is_asked_where_its_condition_holds_or_comes_to_nothing() {
    // Aim: `when` spares requests that it does not hold for; one that cannot be evaluated spares nobody.
    for (when, asks) in [("request.method == 'GET'", false), ("request.method == 'POST'", true), ("auth.claims.level == '3'", true)] {
        let mut scene = Scene::of(&mesh::ExternalAuth { when: when.into(), ..grpc() });
        assert_eq!(matches!(scene.told(None), Passed::Asks(_)), asks, "{when}");
    }
}

#[test]
fn nobody_fills_a_services_headers_by_not_being_asked_about() {
    // Aim: a request that is spared says nothing in the headers that the service fills; its own ones stay, and on trial all do.
    let check = || mesh::ExternalHttp { response_headers: vec!["x-user".into(), "authorization".into()], ..mesh::ExternalHttp::default() };
    let spared = mesh::ExternalAuth { when: "request.method == 'GET'".into(), ..plain(check()) };
    let sent = || request(&[("x-user", "root"), ("authorization", "mine"), ("x-other", "1")]);
    let mut scene = Scene::new(&spared, sent());
    assert!(matches!(scene.told(None), Passed::On));
    assert_eq!((scene.header("x-user"), scene.header("authorization"), scene.header("x-other")), (None, Some("mine"), Some("1")));
    let mut trial = Scene::new(&mesh::ExternalAuth { dry_run: true, ..spared }, sent());
    assert!(matches!(trial.told(None), Passed::On));
    assert_eq!(trial.header("x-user"), Some("root"));
}

#[test]
fn what_cannot_be_carried_out_is_refused_by_name() {
    // Aim: the wire's bounds.
    for (raw, field) in [
        (mesh::ExternalAuth { protocol: None, ..grpc() }, "protocol"),
        (mesh::ExternalAuth { timeout: None, ..grpc() }, "timeout"),
        (mesh::ExternalAuth { timeout: Some(prost_types::Duration { seconds: 61, nanos: 0 }), ..grpc() }, "timeout"),
        (mesh::ExternalAuth { body_bytes_max: BODY_BYTES_MAX + 1, ..grpc() }, "body_bytes_max"),
        (mesh::ExternalAuth { protocol: Some(Protocol::Grpc(mesh::ExternalGrpc::default())), ..grpc() }, "grpc.authority"),
        (mesh::ExternalAuth { when: "1".into(), ..grpc() }, "when"),
        (mesh::ExternalAuth { cache: Some(mesh::CheckCache::default()), ..grpc() }, "cache.ttl"),
        (plain(mesh::ExternalHttp { path: "a".into(), ..mesh::ExternalHttp::default() }), "http.path"),
        (plain(mesh::ExternalHttp { response_headers: vec!["host".into()], ..mesh::ExternalHttp::default() }), "http.response_headers[0]"),
        (plain(mesh::ExternalHttp { request_headers: vec!["a b".into()], ..mesh::ExternalHttp::default() }), "http.request_headers[0]"),
    ] {
        let told = External::compile(&raw, &Callouts::default()).unwrap_err().text();
        assert!(told.contains(field), "{field}: {told}");
    }
}
