//! The TLS door: as whom the control plane answers there, and how it fares with those who prove nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::mesh::GetRequest;
use proto::mesh::control_client::ControlClient;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tonic::{Code, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Folders;
use super::desk::{Plane, Sidecar};
use control::serve::listen::STRANGERS_OF_ORIGIN_MAX;

fn mesh(trust_domain: &str) -> String {
    format!(
        "apiVersion: meshwright.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default, namespace: meshwright-system}}\n\
         spec: {{trustDomain: {trust_domain}}}\n"
    )
}

/// A handshake from that address of this machine, without a certificate.
pub(crate) async fn stranger(plane: &Plane, from: &str) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0))?;
    let name = ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    plane.client(None).connect(name, socket.connect(plane.listen).await?).await
}

/// The identity by which the control plane answers.
async fn answers_as(plane: &Plane) -> String {
    let stream = stranger(plane, "127.0.0.1").await.unwrap();
    let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    leaf.subject_alternative_name().unwrap().unwrap().value.general_names[0].to_string()
}

#[tokio::test]
async fn the_control_plane_is_of_the_trust_domain_that_it_serves() {
    // Aim: from the first handshake on it answers as its Mesh says, also after a restart, and follows a change; leaves of another trust
    // domain below the same root are nobody here.
    let folders = Folders::new();
    std::fs::write(folders.manifests.path().join("mesh.yaml"), mesh("example.org")).unwrap();
    for _ in 0..2 {
        let plane = folders.start().await;
        assert!(answers_as(&plane).await.contains("spiffe://example.org/ns/meshwright-system/sa/control"));
        for (trust_domain, wanted) in [("example.org", None), ("cluster.local", Some(Code::PermissionDenied))] {
            let identity = format!("spiffe://{trust_domain}/ns/shop/sa/catalog");
            let channel = plane.tls(Some((&identity, "catalog"))).await;
            let mut sidecar = Sidecar::open(channel, "shop", "catalog", "catalog").await.unwrap();
            assert_eq!(sidecar.next_epoch().await.err().map(|status| status.code()), wanted, "{trust_domain}");
        }
        plane.stop().await;
    }
    let plane = folders.start().await;
    std::fs::write(folders.manifests.path().join("mesh.yaml"), mesh("example.com")).unwrap();
    let followed = async {
        while !answers_as(&plane).await.contains("spiffe://example.com/") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), followed).await.unwrap();
    plane.stop().await;
}

/// What a stranger is told that calls without a token.
async fn asks(plane: &Plane, from: &str) -> Result<(), Status> {
    let stream = stranger(plane, from).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut stream = Some(hyper_util::rt::TokioIo::new(stream));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::other("once only"));
        async move { stream }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://control");
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(error.to_string()))?;
    ControlClient::new(channel).get(GetRequest::default()).await.map(drop)
}

#[tokio::test]
async fn no_stranger_keeps_another_out() {
    // Aim: one address that holds every connection it is given open, silent or in the middle of a handshake, is closed beyond its share;
    // a caller from elsewhere is answered.
    let folders = Folders::new();
    let plane = folders.start().await;
    let mut idle = Vec::new();
    for _ in 0..STRANGERS_OF_ORIGIN_MAX {
        idle.push(stranger(&plane, "127.0.0.2").await.unwrap());
    }
    let mut beyond = stranger(&plane, "127.0.0.2").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), async { while matches!(beyond.read(&mut [0; 64]).await, Ok(1..)) {} });
    ended.await.expect("it is closed");
    let mut silent = Vec::new();
    for _ in 0..300 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(plane.listen).await.unwrap());
    }
    assert_eq!(asks(&plane, "127.0.0.3").await.unwrap_err().code(), Code::Unauthenticated);
    idle.truncate(1);
    let again = async {
        while asks(&plane, "127.0.0.2").await.unwrap_err().code() != Code::Unauthenticated {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    drop(silent);
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
    plane.stop().await;
}
