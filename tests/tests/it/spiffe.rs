//! The SPIFFE Workload API of a sidecar, over the real socket, in virtual time: control plane and authority are the binary's own.

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use proto::generated::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::generated::{JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest};
use proxy::io::{Draw, LocalDoor};
use tests::mesh::Mesh;
use tests::sidecar::{Sidecar, Spec};
use tests::wire::Medium;
use tokio::net::UnixStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};

const CONTROL: IpAddr = ip(1);
const CATALOG: Spec = Spec { namespace: "shop", workload: "catalog", service_account: "catalog", ip: ip(2) };
const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

const fn ip(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, last))
}

/// Leaves live for an hour.
const MANIFESTS: &str = "
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec: {certificates: {leafLife: 1h}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: catalog, namespace: shop}
spec: {serviceAccount: catalog, addresses: [10.9.0.2]}
";

const PARTNER_ID: &str = "spiffe://partner.example";

/// Another mesh.
const PARTNER: &str = "
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec: {trustDomain: partner.example}
";

/// Ours, federated with it.
const FEDERATED: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: partner-roots, namespace: meshwright-system}
data:
  ca.pem: |
    ROOTS
---
apiVersion: meshwright.dev/v1alpha1
kind: Mesh
metadata: {name: default, namespace: meshwright-system}
spec:
  certificates: {leafLife: 1h}
  federation: [{trustDomain: partner.example, bundle: {configMapRef: {name: partner-roots, key: ca.pem}}}]
";

/// One sidecar with its API on a socket.
struct Scene {
    mesh: Mesh,
    sidecar: Sidecar,
    plane: AbortHandle,
    folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
    _stop: tokio_util::sync::DropGuard,
}

fn run<F: Future<Output = anyhow::Result<()>>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(100 * 3600), test()).await };
    tokio::task::LocalSet::new().block_on(&runtime, bounded).expect("the test hangs").expect("the test fails");
}

impl Scene {
    async fn open() -> anyhow::Result<Self> {
        let mesh = Mesh::new(Medium::Memory, CONTROL, MANIFESTS, 7)?;
        let plane = Self::start_plane(&mesh, Duration::ZERO);
        let sidecar = mesh.sidecar(CATALOG, mesh.clock(Duration::ZERO)).await?;
        let folder = tempfile::tempdir()?;
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let door = LocalDoor::open(&folder.path().join("s"), 0o600)?;
        sidecar.workload_api.clone().start(&mut tasks, door, &Draw::seeded(1), &stop)?;
        Ok(Self { mesh, sidecar, plane, folder, _tasks: tasks, _stop: stop.drop_guard() })
    }

    fn start_plane(mesh: &Mesh, elapsed: Duration) -> AbortHandle {
        let clock = mesh.clock(elapsed);
        let (plane, network) = (mesh.plane.clone(), mesh.wire.exempt(CONTROL));
        tokio::task::spawn_local(async move { plane.run(network, clock).await.expect("the control plane runs") }).abort_handle()
    }

    async fn client(&self) -> anyhow::Result<SpiffeWorkloadApiClient<Channel>> {
        connect(&self.folder.path().join("s")).await
    }
}

async fn connect(path: &Path) -> anyhow::Result<SpiffeWorkloadApiClient<Channel>> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(SpiffeWorkloadApiClient::new(Endpoint::from_static("http://spiffe").connect_with_connector(connector).await?))
}

/// A call as libraries make it.
fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

/// Aim: facts.md, SPIFFE: while there is no identity every call is PERMISSION_DENIED, so that libraries come again; without the mark it is
/// INVALID_ARGUMENT, and so is a token for nobody.
#[test]
fn before_there_is_an_identity_callers_come_again() {
    run(|| async {
        let scene = Scene::open().await?;
        // Nobody answers at the control plane's port from here on: the proxy gets no leaf.
        scene.plane.abort();
        let mut api = scene.client().await?;
        let unmarked = api.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
        assert_eq!(unmarked.code(), Code::InvalidArgument, "{unmarked}");
        assert_eq!(api.fetch_jwt_bundles(JwtBundlesRequest {}).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(api.validate_jwtsvid(ValidateJwtsvidRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(api.fetch_x509svid(call(X509svidRequest {})).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(api.fetch_x509_bundles(call(X509BundlesRequest {})).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(api.fetch_jwt_bundles(call(JwtBundlesRequest {})).await.unwrap_err().code(), Code::PermissionDenied);
        let nobody = api.fetch_jwtsvid(call(JwtsvidRequest::default())).await.unwrap_err();
        assert_eq!(nobody.code(), Code::InvalidArgument);
        let asked = JwtsvidRequest { audience: vec!["a".into()], ..Default::default() };
        assert_eq!(api.fetch_jwtsvid(call(asked)).await.unwrap_err().code(), Code::PermissionDenied);
        Ok(())
    });
}

/// Aim: the application has a certificate of its own with its own key, is pushed the next one before the first ends, on a stream that
/// stays open, also over an outage of the control plane; the log says who asked for whom.
#[test]
fn an_application_is_pushed_its_next_certificate() {
    run(|| async {
        let mut scene = Scene::open().await?;
        scene.sidecar.ready().await?;
        let mut api = scene.client().await?;
        let mut stream = api.fetch_x509svid(call(X509svidRequest {})).await?.into_inner();
        let first = stream.message().await?.context("a first answer")?;
        let svid = &first.svids[0];
        assert_eq!(svid.spiffe_id, IDENTITY);
        assert!(!svid.bundle.is_empty() && !svid.x509_svid_key.is_empty() && !svid.hint.is_empty());
        let own = scene.sidecar.credentials.current().context("a leaf")?;
        assert!(!svid.x509_svid.starts_with(own.chain()[0].as_ref()), "not the proxy's own leaf");
        let certs = scene.mesh.desk().get("certs").await?;
        let holders: Vec<_> = certs.as_array().unwrap().iter().map(|cert| cert["holder"].as_str().unwrap()).collect();
        assert_eq!(holders, ["Proxy", "Application"]);
        // Two thirds of an hour pass; the control plane is away for a while in the middle of it.
        let begun = tokio::time::Instant::now();
        scene.plane.abort();
        tokio::time::sleep(Duration::from_secs(20 * 60)).await;
        scene.plane = Scene::start_plane(&scene.mesh, scene.mesh.wall.elapsed().unwrap_or_default().max(begun.elapsed()));
        let next = stream.message().await?.context("the stream stays open")?;
        assert!(begun.elapsed() < Duration::from_secs(3600), "{:?}", begun.elapsed());
        assert_ne!(next.svids[0].x509_svid, svid.x509_svid);
        assert_ne!(next.svids[0].x509_svid_key, svid.x509_svid_key);
        let log = scene.mesh.desk().get("audit").await?;
        let told = |row: &serde_json::Value| format!("{} {}", row["holder"].as_str().unwrap(), row["attestation"].as_str().unwrap());
        let rows: Vec<_> = log.as_array().unwrap().iter().map(told).collect();
        assert_eq!(rows.last().unwrap(), "Proxy Token");
        assert!(rows.contains(&"Application Certificate".to_owned()), "{rows:?}");
        Ok(())
    });
}

/// Aim: tokens for the own identity only, kept for half of their life and then fresh, judged by the published keys; in an outage a kept
/// one serves to its end, and then the caller is told to come again.
#[test]
fn an_application_has_tokens() {
    run(|| async {
        let scene = Scene::open().await?;
        scene.sidecar.ready().await?;
        let mut api = scene.client().await?;
        let mut keys = api.fetch_jwt_bundles(call(JwtBundlesRequest {})).await?.into_inner();
        let told = keys.message().await?.context("a bundle")?;
        let jwks = String::from_utf8(told.bundles["spiffe://cluster.local"].to_vec())?;
        assert!(jwks.contains("jwt-svid") && jwks.contains("\"EC\""), "{jwks}");
        let asked = |id: &str| call(JwtsvidRequest { audience: vec!["b".into(), "a".into()], spiffe_id: id.into() });
        let first = api.fetch_jwtsvid(asked("")).await?.into_inner().svids.remove(0);
        assert_eq!(first.spiffe_id, IDENTITY);
        assert_eq!(api.fetch_jwtsvid(asked(IDENTITY)).await?.into_inner().svids[0].svid, first.svid, "kept");
        let other = "spiffe://cluster.local/ns/shop/sa/admin";
        assert_eq!(api.fetch_jwtsvid(asked(other)).await.unwrap_err().code(), Code::PermissionDenied);
        let judge = |svid: &str, audience: &str| call(ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() });
        let good = api.validate_jwtsvid(judge(&first.svid, "a")).await?.into_inner();
        assert_eq!(good.spiffe_id, IDENTITY);
        assert!(good.claims.unwrap().fields.contains_key("exp"));
        for (svid, audience) in [(first.svid.as_str(), "c"), ("nonsense", "a"), (&first.svid[..first.svid.len() - 4], "a")] {
            assert_eq!(api.validate_jwtsvid(judge(svid, audience)).await.unwrap_err().code(), Code::InvalidArgument);
        }
        tokio::time::sleep(Duration::from_secs(160)).await;
        let second = api.fetch_jwtsvid(asked("")).await?.into_inner().svids.remove(0);
        assert_ne!(second.svid, first.svid);
        scene.plane.abort();
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(api.fetch_jwtsvid(asked("")).await?.into_inner().svids[0].svid, second.svid, "to its end");
        tokio::time::sleep(Duration::from_secs(110)).await;
        assert_eq!(api.fetch_jwtsvid(asked("")).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(api.validate_jwtsvid(judge(&second.svid, "a")).await?.into_inner().spiffe_id, IDENTITY, "keys are kept, clocks differ");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(api.validate_jwtsvid(judge(&second.svid, "a")).await.unwrap_err().code(), Code::InvalidArgument);
        Ok(())
    });
}

/// Aim: an application is given the roots of the trust domains that the mesh is federated with, on a stream that is open, and they are
/// taken back with the federation.
#[test]
fn an_application_is_given_federated_roots() {
    run(|| async {
        let partner = Mesh::new(Medium::Memory, CONTROL, PARTNER, 8)?;
        let _partner_plane = Scene::start_plane(&partner, Duration::ZERO);
        let scene = Scene::open().await?;
        scene.sidecar.ready().await?;
        let mut api = scene.client().await?;
        let mut svids = api.fetch_x509svid(call(X509svidRequest {})).await?.into_inner();
        let mut bundles = api.fetch_x509_bundles(call(X509BundlesRequest {})).await?.into_inner();
        let first = svids.message().await?.context("a certificate")?;
        assert!(first.federated_bundles.is_empty(), "{:?}", first.federated_bundles.keys());
        assert_eq!(bundles.message().await?.context("a bundle")?.bundles.len(), 1);

        // Lines of a block of YAML, indented.
        let roots = partner.bundle()?.replace('\n', "\n    ");
        scene.mesh.desk().apply(&FEDERATED.replace("ROOTS", roots.trim_end())).await?;
        let told = svids.message().await?.context("the stream stays open")?;
        let given = told.federated_bundles.get(PARTNER_ID).context("the partner's roots")?;
        assert!(given.len() > 100 && told.federated_bundles.len() == 1, "{told:?}");
        let told = bundles.message().await?.context("the stream stays open")?;
        assert_eq!((told.bundles.len(), &told.bundles[PARTNER_ID]), (2, given));

        scene.mesh.desk().delete(&FEDERATED.replace("ROOTS", roots.trim_end())).await?;
        assert!(svids.message().await?.context("the stream stays open")?.federated_bundles.is_empty());
        assert_eq!(bundles.message().await?.context("the stream stays open")?.bundles.len(), 1);
        Ok(())
    });
}
