//! What hosts outside the mesh are shown of an edge's.

use super::*;
use crate::translate::external_backend;

/// A route of a namespace to the XBackend `api` of shop.
fn leads(name: &str, namespace: &str, gateway: &str) -> String {
    let to = "{group: gateway.networking.x-k8s.io, kind: XBackend, name: api, namespace: shop}";
    let spec = format!("spec: {{parentRefs: [{{name: {gateway}}}], rules: [{{backendRefs: [{to}]}}]}}");
    document(GATEWAY_API, "HTTPRoute", name, namespace, &spec)
}

fn backend(tls: &str) -> String {
    let spec =
        format!("spec: {{type: ExternalHostname, port: {{port: 443}}, externalHostname: {{hostname: api.example}}, tls: {{{tls}}}}}");
    document("gateway.networking.x-k8s.io/v1alpha1", "XBackend", "api", "shop", &spec)
}

fn listening(name: &str, namespace: &str, more: &str) -> String {
    let spec = format!("spec: {{gatewayClassName: meshwright, {more}listeners: [{{name: web, port: 8080, protocol: HTTP}}]}}");
    document(GATEWAY_API, "Gateway", name, namespace, &spec)
}

/// What the cluster of the XBackend shows; `None`: there is no TLS.
fn shows(mesh: &Mesh, gateway: &str) -> Option<Vec<String>> {
    let view = mesh.view(gateway);
    let cluster = view.resources.values().filter_map(|item| unpack::<Cluster>(&item.any).ok()).find(|one| one.name.contains("api"))?;
    let context: UpstreamTlsContext = socket(cluster.transport_socket_matches.last()?.transport_socket.as_ref())?;
    let sds = context.common_tls_context?.tls_certificate_sds_secret_configs;
    Some(sds.into_iter().map(|config| config.name).collect())
}

fn secrets(mesh: &Mesh, gateway: &str) -> Vec<String> {
    shown(&mesh.view(gateway)).into_iter().filter(|line| line.starts_with("secret")).collect()
}

#[test]
fn a_host_outside_is_shown_what_it_asks_for() {
    // Aim: a certificate of the backend's own goes before the Gateway's, and only to edges whose routes may lead there; a change of the Secret
    // wakes these alone; without the Secret, or without leave to refer to it, status says so, and without leave nobody is met.
    let mutual = "mode: ClientAndServer, clientCertificateRef: {name: own}";
    let text = [
        listening("edge", "shop", "tls: {backend: {clientCertificateRef: {name: gate}}}, "),
        listening("idle", "shop", ""),
        // A Gateway and a route of a stranger, who has no leave to lead there.
        listening("thief", "other", ""),
        leads("r", "shop", "edge"),
        leads("stolen", "other", "thief"),
        backend("mode: ServerOnly"),
        secret("gate", "shop", "gate.example"),
    ];
    let mut mesh = Mesh::of(&text.concat());
    assert_eq!(shows(&mesh, "edge"), Some(vec!["tls/shop/gate".to_owned()]));
    let edge = Subject::secrets(&("shop".to_owned(), "edge".to_owned()));
    let itself = Subject::service(&external_backend::known_as(("shop", "api")));
    mesh.put("main", Some(&text.concat().replace("mode: ServerOnly", mutual)));
    assert_eq!(shows(&mesh, "edge"), Some(vec!["tls/shop/own".to_owned()]));
    let status = || ObjectKey::new(Kind::XBackend, "shop", "api");
    let told = |mesh: &Mesh| {
        let conditions = statuses(&mesh.world)[&status()].parents[0].conditions.clone();
        conditions.iter().map(|one| format!("{}={}/{}", one.kind, one.status, one.reason)).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(told(&mesh), "Accepted=True/Accepted; ResolvedRefs=False/InvalidClientCertificateRef");
    assert_eq!(mesh.put("own", Some(&secret("own", "shop", "me.example"))), Affected::Some([edge, itself].into()));
    assert_eq!(told(&mesh), "Accepted=True/Accepted; ResolvedRefs=True/ResolvedRefs");
    assert_eq!(secrets(&mesh, "edge"), ["secret tls/shop/gate: certificate", "secret tls/shop/own: certificate"]);
    assert!(secrets(&mesh, "idle").is_empty() && secrets(&mesh, "thief").is_empty());

    mesh.put("main", Some(&text.concat().replace("mode: ServerOnly", &mutual.replace("own}", "own, namespace: vault}"))));
    mesh.put("vault", Some(&secret("own", "vault", "me.example")));
    assert_eq!(told(&mesh), "Accepted=True/Accepted; ResolvedRefs=False/RefNotPermitted");
    assert_eq!((shows(&mesh, "edge"), secrets(&mesh, "edge")), (None, vec!["secret tls/shop/gate: certificate".to_owned()]));
    let grant =
        "spec: {from: [{group: gateway.networking.x-k8s.io, kind: XBackend, namespace: shop}], to: [{group: '', kind: Secret, name: own}]}";
    mesh.put("grant", Some(&document(GATEWAY_API, "ReferenceGrant", "g", "vault", grant)));
    assert_eq!(told(&mesh), "Accepted=True/Accepted; ResolvedRefs=True/ResolvedRefs");
    assert_eq!(shows(&mesh, "edge"), Some(vec!["tls/vault/own".to_owned()]));
    assert!(secrets(&mesh, "edge").contains(&"secret tls/vault/own: certificate".to_owned()));
}
