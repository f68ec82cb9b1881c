use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::client::conn::http2;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::callers;
use crate::serving::{Issued, Issuer, ServingCell, keep};

fn review(kind: &str, object: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": kind},
            "namespace": "shop",
            "operation": "CREATE",
            "object": object,
        },
    })
    .to_string()
}

fn pod() -> Value {
    json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "app"}]}})
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header(CONTENT_TYPE, "application/json; charset=utf-8").body(Full::new(body.into())).unwrap()
}

async fn told(page: Page) -> (u16, String) {
    let status = page.status().as_u16();
    (status, String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// Aim: what is no question is answered with the status that says why, and counted.
#[tokio::test(start_paused = true)]
async fn bad_input_is_answered() {
    let webhook = Webhook::new(SidecarSettings::default());
    let plain = Request::post("/inject").body(Full::new(Bytes::new())).unwrap();
    let get = |path: &str| Request::get(path).body(Full::<Bytes>::default()).unwrap();
    for (request, status, word) in [
        (post("/inject", "{"), 400, "no AdmissionReview"),
        (post("/inject", "{}"), 400, "admission.k8s.io/v1"),
        (post("/validate", "[]"), 400, "no AdmissionReview"),
        (post("/inject", vec![b' '; BODY_BYTES_MAX + 1]), 413, "3145728 bytes"),
        (post("/validate", review("Pod", &pod())), 404, "control plane"),
        (post("/other", ""), 404, "POST /inject"),
        (plain, 415, "application/json"),
        (get("/inject"), 405, "POST"),
        (post("/metrics", ""), 405, "GET"),
        (get("/healthz/live"), 200, "ok"),
        (get("/healthz/ready"), 200, "ok"),
    ] {
        let shown = format!("{} {}", request.method(), request.uri());
        let (found, body) = told(webhook.respond(request, &Caller::default()).await).await;
        assert!(found == status && body.contains(word), "{shown}: {found} {body}");
    }
    let (_, metrics) = told(webhook.respond(get("/metrics"), &Caller::default()).await).await;
    for line in [
        r#"meshwright_webhook_reviews_total{webhook="inject",verdict="malformed"} 2"#,
        r#"meshwright_webhook_reviews_total{webhook="inject",verdict="too_large"} 1"#,
        r#"meshwright_webhook_reviews_total{webhook="validate",verdict="unserved"} 1"#,
        "meshwright_webhook_review_duration_seconds_count 5",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

/// Aim: namespaces' labels count where the caller knows them, and injection goes on where he does not.
#[tokio::test(start_paused = true)]
async fn labels_are_the_callers() {
    for (label, verdict) in [
        (None, "injected"),
        (Some(None), "namespace_not_meshed"),
        (Some(Some("enabled".to_owned())), "injected"),
        (Some(Some("disabled".to_owned())), "namespace_not_meshed"),
    ] {
        let known = label.clone();
        let labels: Labels = Arc::new(move |_| Box::pin(std::future::ready(known.clone())));
        let webhook = Webhook::new(SidecarSettings::default()).with_labels(labels);
        let (status, body) = told(webhook.respond(post("/inject", review("Pod", &pod())), &Caller::default()).await).await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, answer["response"]["auditAnnotations"]["verdict"].as_str()), (200, Some(verdict)), "{label:?}");
    }
}

/// Aim: what the analysis says is in the denial, and its warnings beside it.
#[tokio::test(start_paused = true)]
async fn the_analysis_denies() {
    let analyzer: Analyzer = Arc::new(|asked| {
        let wrong = asked.object["spec"]["wrong"] == true;
        let errors = wrong.then(|| format!("{} shop/a: spec.wrong: no; leave it out", asked.kind.kind)).into_iter().collect();
        Box::pin(std::future::ready(Analysis { errors, warnings: vec!["no endpoint yet".to_owned()] }))
    });
    let webhook = Webhook::new(SidecarSettings::default()).with_analyzer(analyzer);
    for (wrong, allowed) in [(true, false), (false, true)] {
        let body = review("TrafficPolicy", &json!({"metadata": {"name": "a"}, "spec": {"wrong": wrong}}));
        let (_, body) = told(webhook.respond(post("/validate", body), &Caller::default()).await).await;
        let response = serde_json::from_str::<Value>(&body).unwrap()["response"].take();
        assert_eq!((&response["allowed"], &response["warnings"]), (&json!(allowed), &json!(["no endpoint yet"])));
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert_eq!(message.contains("TrafficPolicy shop/a: spec.wrong: no; leave it out"), wrong);
    }
}

/// Aim: objects that take long to judge keep no pod waiting, not even where the same API server asks; beyond their bound further ones pass at
/// once, with a warning; and none takes longer than an API server waits.
#[tokio::test(start_paused = true)]
async fn questions_wait_within_the_bound() {
    let analyzer: Analyzer = Arc::new(|_| Box::pin(std::future::pending()));
    let webhook = Arc::new(Webhook::new(SidecarSettings::default()).with_analyzer(analyzer));
    let callers = [Arc::new(Caller::default()), Arc::new(Caller::default())];
    let ask = |caller: &Arc<Caller>, path: &'static str, body: String| {
        let (webhook, caller) = (Arc::clone(&webhook), Arc::clone(caller));
        tokio::spawn(async move { told(webhook.respond(post(path, body), &caller).await).await })
    };
    let policy = || review("TrafficPolicy", &json!({}));
    let begun = Instant::now();
    let stuck: Vec<_> = (0..ANALYSES_MAX).map(|number| ask(&callers[number % 2], "/validate", policy())).collect();
    while webhook.analyses.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    for caller in &callers {
        let (status, body) = ask(caller, "/validate", policy()).await.unwrap();
        assert!(status == 200 && body.contains("not_analyzed") && body.contains("too many objects"), "{body}");
        assert_eq!(ask(caller, "/inject", review("Pod", &pod())).await.unwrap().0, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for one in stuck {
        assert_eq!(one.await.unwrap().0, 503);
    }
    assert!(begun.elapsed() <= ANSWER_WAIT * 2);
}

/// Aim: what one caller does not send to its end, or sends in great numbers, keeps only that caller waiting.
#[tokio::test(start_paused = true)]
async fn a_caller_waits_behind_its_own_questions() {
    let webhook = Arc::new(Webhook::new(SidecarSettings::default()));
    let (slow, other) = (Arc::new(Caller::default()), Caller::default());
    let endless = || Request::post("/inject").header(CONTENT_TYPE, JSON).body(Endless).unwrap();
    let begun = Instant::now();
    let stuck = (0..REVIEWS_MAX).map(|_| {
        let (webhook, slow) = (Arc::clone(&webhook), Arc::clone(&slow));
        tokio::spawn(async move { webhook.respond(endless(), &slow).await.status().as_u16() })
    });
    let stuck: Vec<_> = stuck.collect();
    tokio::task::yield_now().await;
    assert_eq!(webhook.respond(post("/inject", review("Pod", &pod())), &other).await.status(), 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let mut statuses = Vec::new();
    for one in stuck {
        statuses.push(one.await.unwrap());
    }
    assert!(statuses.contains(&408) && statuses.iter().all(|status| [408, 503].contains(status)), "{statuses:?}");
    assert_eq!(begun.elapsed().as_secs(), ANSWER_WAIT.as_secs());
}

/// A body that never comes to its end.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}

/// Aim: the longest questions there can be leave the threads that serve the mesh free while they are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_questions_stop_no_thread_of_the_mesh() {
    let webhook = Arc::new(Webhook::new(SidecarSettings::default()));
    let long = |name: &str, count: usize| {
        let env: Vec<_> = (0..count).map(|number| json!({"name": number.to_string()})).collect();
        review("Pod", &json!({"spec": {"containers": [{"name": name, "env": env}]}}))
    };
    let (taken, refused) = (long("app", 20_000), long("meshwright-proxy", 150_000));
    let answered = [taken.clone(), taken, refused.clone(), refused].map(|body| {
        let webhook = Arc::clone(&webhook);
        tokio::spawn(async move { told(webhook.respond(post("/inject", body), &Caller::default()).await).await })
    });
    let stop = CancellationToken::new();
    let ticking = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut longest = Duration::ZERO;
            while !stop.is_cancelled() {
                let began = Instant::now();
                tokio::time::sleep(Duration::from_millis(5)).await;
                longest = longest.max(began.elapsed());
            }
            longest
        }
    });
    for (one, words) in answered.into_iter().zip(["injected", "injected", "more than 512", "more than 512"]) {
        let (status, body) = one.await.unwrap();
        assert!(status == 200 && body.contains(words), "{status} {}", body.chars().take(500).collect::<String>());
    }
    stop.cancel();
    let longest = ticking.await.unwrap();
    assert!(longest < Duration::from_millis(500), "{longest:?}");
}

/// An authority with one root, and certificates of an hour's life.
struct Root {
    issuer: CertifiedIssuer<'static, KeyPair>,
    others: String,
    now: Arc<AtomicU64>,
}

impl Root {
    fn new(others: &str, now: &Arc<AtomicU64>) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, others: others.to_owned(), now: Arc::clone(now) }
    }
}

impl Issuer for Root {
    fn issue(&self) -> Result<Issued, String> {
        let (key, now) = (KeyPair::generate().unwrap(), Duration::from_secs(self.now.load(Ordering::SeqCst)));
        let (not_before, not_after) = (now, now + Duration::from_secs(3600));
        let mut params = CertificateParams::new(vec!["meshwright-control.meshwright-system.svc".to_owned()]).unwrap();
        params.not_before = (UNIX_EPOCH + not_before).into();
        params.not_after = (UNIX_EPOCH + not_after).into();
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        Ok(Issued { chain: vec![certificate.der().clone()], key: PrivateKeyDer::from(key), not_before, not_after })
    }

    fn roots(&self) -> Result<String, String> {
        Ok(format!("{}{}", self.issuer.pem(), self.others))
    }

    fn has_news(&self) -> bool {
        false
    }
}

/// A clock that stands where it is put, for the API server's side.
#[derive(Debug)]
struct Stands(Arc<AtomicU64>);

impl rustls::time_provider::TimeProvider for Stands {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::SeqCst))))
    }
}

/// Connects as an API server does: HTTP/2 over TLS, by the Service's name, believing a bundle.
async fn connect(socket: TcpStream, bundle: &str, clock: &Arc<AtomicU64>) -> Result<TlsStream<TcpStream>, String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(Stands(Arc::clone(clock))))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("meshwright-control.meshwright-system.svc").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(|error| error.to_string())
}

async fn call(address: SocketAddr, bundle: &str, clock: &Arc<AtomicU64>) -> Result<Value, String> {
    let stream = connect(TcpStream::connect(address).await.unwrap(), bundle, clock).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driving = tokio::spawn(connection);
    let answer = sender.send_request(post("https://meshwright-control.meshwright-system.svc/inject", review("Pod", &pod()))).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    driving.abort();
    Ok(serde_json::from_slice(&body).unwrap())
}

/// Aim: over real sockets: one address that begins a hundred questions and ends none, and opens connections without end to say nothing on them,
/// keeps no API server waiting; its connections beyond its share are closed, and those that never ask are, too.
#[tokio::test]
async fn one_address_keeps_no_other_waiting() {
    let clock = Arc::new(AtomicU64::new(1_800_000_000));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let wall = Arc::clone(&clock);
    let cell = Arc::new(ServingCell::new(Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(wall.load(Ordering::SeqCst)))));
    let (stop, webhook) = (CancellationToken::new(), Arc::new(Webhook::new(SidecarSettings::default())));
    let serving = tokio::spawn(serve(listener, cell.clone(), webhook, stop.clone()));
    let (roots, mut told) = watch::channel(String::new());
    let keeping = tokio::spawn(keep(cell, Arc::new(Root::new("", &clock)), roots, stop.clone()));
    told.wait_for(|roots| !roots.is_empty()).await.unwrap();
    let bundle = told.borrow().clone();
    let from_elsewhere = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        connect(socket.connect(address).await.unwrap(), &bundle, &clock).await
    };
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(from_elsewhere().await.unwrap())).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = || Request::post(format!("https://{address}/inject")).header(CONTENT_TYPE, JSON).body(Endless).unwrap();
    for _ in 0..STREAMS_MAX {
        tokio::spawn(sender.send_request(request()));
    }
    let mut silent = Vec::new();
    for _ in 0..callers::CONNECTIONS_OF_ORIGIN_MAX + 8 {
        silent.extend(from_elsewhere().await);
    }
    assert_eq!(silent.len(), callers::CONNECTIONS_OF_ORIGIN_MAX - 1);
    let begun = Instant::now();
    assert_eq!(call(address, &bundle, &clock).await.unwrap()["response"]["auditAnnotations"]["verdict"], "injected");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for mut one in silent {
        // What the server says first, and then the end.
        let ended = timeout(FIRST_WAIT * 2, tokio::io::AsyncReadExt::read_to_end(&mut one, &mut Vec::new())).await;
        assert!(ended.is_ok(), "the connection is still open");
    }
    driving.abort();
    stop.cancel();
    serving.await.unwrap().unwrap();
    keeping.await.unwrap();
}

/// Aim: over real sockets: an API server that believes the bundle is answered, an expired certificate is what it says it is and is replaced
/// when the issuer is asked again, and a rotation of the root is believed by whoever has the bundle of the time.
#[tokio::test]
async fn certificates_rotate_under_an_api_server() {
    let clock = Arc::new(AtomicU64::new(1_800_000_000));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let wall = Arc::clone(&clock);
    let cell = Arc::new(ServingCell::new(Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(wall.load(Ordering::SeqCst)))));
    let (stop, webhook) = (CancellationToken::new(), Arc::new(Webhook::new(SidecarSettings::default())));
    let serving = tokio::spawn(serve(listener, cell.clone(), webhook, stop.clone()));
    // One stretch of keeping: the roots it tells are those that were in force.
    let keep_once = async |issuer: Root| {
        let (roots, mut told) = watch::channel(String::new());
        let over = CancellationToken::new();
        let keeping = tokio::spawn(keep(cell.clone(), Arc::new(issuer), roots, over.clone()));
        told.wait_for(|roots| !roots.is_empty()).await.unwrap();
        let bundle = told.borrow().clone();
        over.cancel();
        keeping.await.unwrap();
        bundle
    };
    assert!(call(address, &Root::new("", &clock).issuer.pem(), &clock).await.is_err(), "there is no certificate yet");

    let old = Root::new("", &clock);
    let old_pem = old.issuer.pem();
    let bundle = keep_once(old).await;
    let answer = call(address, &bundle, &clock).await.unwrap();
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(answer["response"]["auditAnnotations"]["verdict"], "injected");

    clock.fetch_add(7200, Ordering::SeqCst);
    let error = call(address, &bundle, &clock).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
    assert_eq!(cell.standing(), crate::serving::Standing::Expired);

    let new = Root::new(&old_pem, &clock);
    let both = keep_once(new).await;
    assert!(call(address, &both, &clock).await.is_ok());
    assert!(both.contains(&old_pem), "who is served by another replica's old certificate is believed, too");
    assert!(call(address, &bundle, &clock).await.is_err(), "the old bundle alone does not know the new root");
    stop.cancel();
    serving.await.unwrap().unwrap();
}

/// Aim: a client that says nothing holds its place for the handshake's time at most, and the webhook ends within its bound.
#[tokio::test(start_paused = true)]
async fn silent_clients_are_let_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cell = Arc::new(ServingCell::new(Arc::new(|| UNIX_EPOCH)));
    let (stop, webhook) = (CancellationToken::new(), Arc::new(Webhook::new(SidecarSettings::default())));
    let serving = tokio::spawn(serve(listener, cell, webhook.clone(), stop.clone()));
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut byte = [0];
    let ended = timeout(HANDSHAKE_WAIT * 2, tokio::io::AsyncReadExt::read(&mut silent, &mut byte)).await;
    assert!(ended.is_ok(), "the connection is still open");
    assert!(webhook.counts().text().contains("meshwright_webhook_handshakes_failed_total 1"));
    stop.cancel();
    serving.await.unwrap().unwrap();
}
