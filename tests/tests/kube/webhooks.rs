//! Admission webhooks, called by the API server's own client: over TLS, by the name of their Service, at the address of a ready endpoint.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tests::kube::{Rig, ask};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::{namespace, pod};

/// A webhook that names what it is called for in a label, and refuses what is called `bad`.
async fn answer(request: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let mutates = request.uri().path() == "/mutate";
    let review: Value = serde_json::from_slice(&request.into_body().collect().await?.to_bytes()).unwrap();
    let asked = &review["request"];
    let mut response =
        json!({"uid": asked["uid"], "allowed": asked["object"]["metadata"]["name"] != "bad", "status": {"message": "bad is no name"}});
    if mutates {
        let patch = json!([{"op": "add", "path": "/metadata/labels/seen", "value": asked["operation"]}]).to_string();
        response = json!({"uid": asked["uid"], "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch)});
    }
    let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).to_string();
    Ok(http::Response::builder().header("content-type", "application/json").body(body.into()).unwrap())
}

/// Serves it on loopback until the test ends; gives its port and its certificate, PEM.
async fn serve(name: &str) -> (u16, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
    let key_bytes = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key_bytes).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust the certificate leaves here.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    (port, certificate.pem())
}

/// Creates a configuration for the pods of one namespace, as `kind` webhook at a path of the Service.
async fn configure(client: &kube::Client, kind: &str, namespace: &str, service: &str, path: &str, pem: &str) {
    let webhook = json!({
        "name": format!("{service}.{namespace}.example"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"name": service, "namespace": namespace, "path": path}, "caBundle": STANDARD.encode(pem)},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
    });
    let resource = format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations");
    let name = format!("{namespace}-{service}");
    ask(client, "POST", &resource, json!({"metadata": {"name": name}, "webhooks": [webhook]})).await.unwrap();
}

async fn service(client: &kube::Client, namespace: &str, name: &str, port: u16) {
    let core = format!("/api/v1/namespaces/{namespace}/services");
    ask(client, "POST", &core, json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "https", "port": 443}]}})).await.unwrap();
    let slice = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}], "ports": [{"name": "https", "port": port}],
    });
    ask(client, "POST", &format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), slice).await.unwrap();
}

/// Aim: a mutating webhook's patch is in the stored object, a validating one's denial comes with its words, both through a Service.
#[tokio::test]
async fn webhooks_patch_and_deny() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "hooked").await;
    let (port, pem) = serve("hook.hooked.svc").await;
    service(&client, "hooked", "hook", port).await;
    configure(&client, "mutating", "hooked", "hook", "/mutate", &pem).await;
    configure(&client, "validating", "hooked", "hook", "/validate", &pem).await;
    // The server learns of both by its own watch.
    let path = "/api/v1/namespaces/hooked/pods";
    let refused = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Err(refusal) = ask(&client, "POST", &format!("{path}?dryRun=All"), pod("bad")).await {
                return refusal;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let refusal = refused.await.unwrap();
    assert_eq!(refusal.message, "admission webhook \"hook.hooked.example\" denied the request: bad is no name");
    let stored = ask(&client, "POST", path, pod("good")).await.unwrap();
    assert_eq!(stored["metadata"]["labels"], json!({"app": "good", "seen": "CREATE"}));
    assert_eq!(stored["spec"]["serviceAccountName"], "default", "the account was given before the webhook was asked");
}

/// Aim: a webhook that cannot be reached, or that another name's certificate stands for, stops what it guards, and says why.
#[tokio::test]
async fn webhooks_that_fail_stop_what_they_guard() {
    let rig = Rig::shared().await.unwrap();
    let client = rig.client().await.unwrap();
    namespace(&client, "unhooked").await;
    let (port, pem) = serve("other.unhooked.svc").await;
    service(&client, "unhooked", "hook", port).await;
    configure(&client, "validating", "unhooked", "hook", "/validate", &pem).await;
    let path = "/api/v1/namespaces/unhooked/pods?dryRun=All";
    let refused = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Err(refusal) = ask(&client, "POST", path, pod("good")).await {
                return refusal;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let refusal = refused.await.unwrap();
    assert!(
        refusal.code == 500 && refusal.message.contains("certificate is valid for other.unhooked.svc, not hook.unhooked.svc"),
        "{refusal:?}"
    );
}
