//! The one gate: who a caller is, and whether what it says of itself is true. ADS, Reports and Certificates ask here, and what follows
//! does too. The leaf decides: its identity (namespace and account) and the peer's own word (its common name, the workload). A node
//! may name an instance, and only one of that workload's.

use std::net::IpAddr;
use std::sync::Arc;

use proto::identity::{Applicant, Identity};
use proto::names::{self, Mode, NodeId};
use rustls_pki_types::CertificateDer;
use tonic::metadata::MetadataValue;
use tonic::{Extensions, Status};

use crate::clock::Clock;
use crate::publish::board::Board;
use crate::publish::peer::{Claim, Dialect, Entrance, Peer, Proven, peer_of};
use crate::translate::{self, Audience};
use crate::world::{Kind, ObjectKey, Spec, World};

/// Whether a caller may have more than the certificate call: any door but TLS, or a certificate that has not ended and whose root is
/// believed.
///
/// # Errors
/// `UNAUTHENTICATED`.
pub fn presented(peer: &Peer) -> Result<(), Status> {
    match &peer.proven {
        Some(proven) if proven.expired => Err(Status::unauthenticated("the client certificate has expired; renew it first")),
        Some(proven) if proven.retired => {
            Err(Status::unauthenticated("the client certificate is below a root that is retired; renew it first"))
        }
        None if peer.door == Entrance::Tls => Err(no_certificate()),
        _ => Ok(()),
    }
}

/// Lets a node in as what it claims to be. The audience is that of one of our own proxies; stock clients have none yet.
///
/// # Errors
/// `UNAUTHENTICATED` without a certificate where one is needed; `PERMISSION_DENIED` where the certificate is another's or is revoked, or
/// the instance another workload's; `FAILED_PRECONDITION` where nothing of that name is declared or meshed.
pub fn admit(node: &Claim, peer: &Peer, world: &World, clock: &Clock) -> Result<Option<Audience>, Status> {
    match (&peer.proven, peer.door) {
        (Some(proven), _) => {
            of_this_mesh(&proven.identity, world)?;
            unrevoked(&proven.identity, &proven.serial, world, clock)?;
            bears_out(node, proven)?;
        }
        // Believed for routing only (contract, section 4), or let in by the socket's mode.
        (None, Entrance::Plaintext | Entrance::Local) => {}
        (None, Entrance::Tls) => return Err(no_certificate()),
    }
    let audience = declared(node, peer.proven.as_ref().map(|proven| &proven.identity), world)?;
    if let Some(proven) = &peer.proven {
        of_the_pod_of_now(node, proven, world)?;
    }
    Ok(audience)
}

/// A chain that holds is not enough: where the root is a company's, other meshes are below it, too, with names like ours.
fn of_this_mesh(identity: &Identity, world: &World) -> Result<(), Status> {
    let ours = &world.index().mesh.trust_domain;
    if identity.trust_domain() == ours {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the certificate is {identity}, this mesh is of trust domain {ours}; join with a token of this mesh"
    )))
}

/// Revoked is revoked, at every call: renewals, configuration and reports.
fn unrevoked(identity: &Identity, serial: &str, world: &World, clock: &Clock) -> Result<(), Status> {
    let revoked = &world.index().revoked;
    let Some(sentence) = revoked.find(identity, serial, clock.unix().as_secs()) else { return Ok(()) };
    let by_identity = revoked.identities.get(identity) == Some(sentence);
    let what = if by_identity { identity.to_string() } else { format!("the certificate {serial} of {identity}") };
    let mut status = Status::permission_denied(format!("{what} is revoked by {}", sentence.object));
    let by = if by_identity { "identity" } else { "serial" };
    status.metadata_mut().insert(names::REVOKED, MetadataValue::from_static(by));
    Err(status)
}

/// Without a client certificate only the certificate call answers.
fn no_certificate() -> Status {
    Status::unauthenticated(
        "a client certificate of this mesh is needed here; get one by join token (`meshwright token create --workload NS/NAME`)",
    )
}

fn bears_out(node: &Claim, proven: &Proven) -> Result<(), Status> {
    if node.ours() && proven.for_application {
        return Err(Status::permission_denied(
            "the certificate is an application's, which is no proxy; the proxy beside it has one of its own",
        ));
    }
    let same = proven.identity.namespace() == node.namespace && (!node.ours() || proven.workload == node.workload);
    if same {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the node claims to be {} of {}/{}, its certificate is {} for workload {}",
        node.instance, node.namespace, node.workload, proven.identity, proven.workload
    )))
}

/// What the objects say of one of our own proxies, held against its claim and its identity.
fn declared(node: &Claim, identity: Option<&Identity>, world: &World) -> Result<Option<Audience>, Status> {
    if !node.ours() {
        return Ok(None);
    }
    let id = NodeId { mode: node.mode, namespace: node.namespace.clone(), instance: node.instance.clone() };
    let audience = translate::audience(world, &id).ok_or_else(|| {
        Status::failed_precondition(format!(
            "nothing declared is {id}; add its Workload or Gateway, or label its namespace (in Kubernetes: before its pod is made), and connect again"
        ))
    })?;
    if audience.workload != node.workload {
        return Err(Status::permission_denied(format!(
            "{id} is an instance of {}/{}, the certificate is for workload {}",
            node.namespace, audience.workload, node.workload
        )));
    }
    match identity {
        Some(identity) if identity.service_account() != audience.service_account => Err(Status::permission_denied(format!(
            "{id} runs as service account {}, the certificate is {identity}; join again with a fresh token",
            audience.service_account
        ))),
        _ => Ok(Some(audience)),
    }
}

/// A pod that is made anew under its name is another one, and the former one's certificate no more than a copy that somebody kept. One that
/// names no pod, or comes from outside of a cluster, is judged by what it says otherwise.
fn of_the_pod_of_now(node: &Claim, proven: &Proven, world: &World) -> Result<(), Status> {
    let instance = if node.mode == Mode::Edge { &node.replica } else { &node.instance };
    if !node.ours() || proven.pod_uid.is_empty() || instance.is_empty() || !world.settings().in_cluster {
        return Ok(());
    }
    if pod_uid(world, &node.namespace, instance).as_deref() == Some(proven.pod_uid.as_str()) {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the certificate {} is of an earlier pod of the name {}/{instance}; join again with the token of the pod's service account",
        proven.serial, node.namespace
    )))
}

/// Unique id of the pod of that name, if there is one.
fn pod_uid(world: &World, namespace: &str, name: &str) -> Option<String> {
    match &world.get(&ObjectKey::new(Kind::Pod, namespace, name))?.spec {
        Spec::Pod(pod) => Some(pod.uid.clone()),
        _ => None,
    }
}

/// The gate as the authority's own service asks it.
#[derive(Clone)]
pub struct Gate(Arc<Board>);

impl Gate {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self(board)
    }

    /// Whether somebody may have a leaf: what it asks for must be declared, and without a token its own leaf must say the same. Returns
    /// that leaf, which may have ended; the authority judges tokens and ends.
    ///
    /// # Errors
    /// As [`admit`]; `UNAVAILABLE` until the objects have been read.
    pub fn leaf(&self, extensions: &Extensions, applicant: &Applicant<'_>) -> Result<Option<CertificateDer<'static>>, Status> {
        let Some(edition) = self.0.edition() else {
            return Err(Status::unavailable("the configuration has not been read yet; try again in a moment"));
        };
        let peer = peer_of(extensions)?;
        let judge = |mode| {
            // A Gateway's proxy is known by its Gateway, in whatever pod it runs.
            let instance = if mode == Mode::Edge { applicant.workload } else { applicant.instance };
            let node = Claim {
                client: Dialect::Meshwright,
                mode,
                namespace: applicant.identity.namespace().to_owned(),
                workload: applicant.workload.to_owned(),
                instance: instance.to_owned(),
                replica: Some(applicant.instance)
                    .filter(|replica| mode == Mode::Edge && *replica != instance)
                    .unwrap_or_default()
                    .to_owned(),
            };
            if !applicant.by_token {
                return admit(&node, &peer, &edition.world, &self.0.clock);
            }
            // A fresh certificate is no way around a revoked identity.
            unrevoked(applicant.identity, "", &edition.world, &self.0.clock)?;
            declared(&node, Some(applicant.identity), &edition.world)
        };
        let name = (applicant.identity.namespace().to_owned(), applicant.workload.to_owned());
        // A request does not say its mode; a Gateway and an instance may share a name.
        let gateway = edition.world.index().gateways.contains_key(&name);
        match judge(Mode::Sidecar) {
            Err(_) if gateway => judge(Mode::Edge)?,
            verdict => verdict?,
        };
        Ok(peer.proven.map(|proven| proven.leaf.clone()))
    }

    /// Unique id of the pod that is an instance now, empty: there is none; `None`: the mesh is not in a cluster.
    pub fn pod_uid(&self, applicant: &Applicant<'_>) -> Option<String> {
        let edition = self.0.edition().filter(|edition| edition.world.settings().in_cluster)?;
        Some(pod_uid(&edition.world, applicant.identity.namespace(), applicant.instance).unwrap_or_default())
    }

    /// The leaf of a caller whose certificate holds now.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without one, or when it has ended; `PERMISSION_DENIED` where it is of another mesh.
    pub fn holder(&self, extensions: &Extensions) -> Result<CertificateDer<'static>, Status> {
        let peer = peer_of(extensions)?;
        presented(&peer)?;
        let proven = peer.proven.ok_or_else(no_certificate)?;
        if let Some(edition) = self.0.edition() {
            of_this_mesh(&proven.identity, &edition.world)?;
        }
        Ok(proven.leaf.clone())
    }

    /// Where a caller is; `None` on the Unix socket.
    pub fn address(&self, extensions: &Extensions) -> Option<IpAddr> {
        peer_of(extensions).ok()?.address.map(|address| address.ip().to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::publish::trust::tests::one;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, WorldSettings};

    /// Two workloads of one account, one of another, and a Gateway.
    const MANIFESTS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: catalog, namespace: shop}
spec: {serviceAccount: shared, replicas: 2, command: [x]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: cart, namespace: shop}
spec: {serviceAccount: shared, command: [x]}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: store, namespace: shop}
spec: {serviceAccount: store, command: [x]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 8080, protocol: HTTP}]}
";

    fn clock() -> Clock {
        Clock::new(|| std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000))
    }

    fn world() -> World {
        revoking("")
    }

    /// The same, and a Revocation of that content.
    fn revoking(spec: &str) -> World {
        let revocation = format!(
            "---\napiVersion: meshwright.dev/v1alpha1\nkind: Revocation\nmetadata: {{name: r, namespace: meshwright-system}}\nspec: {{{spec}}}\n"
        );
        let text = if spec.is_empty() { MANIFESTS.to_owned() } else { format!("{MANIFESTS}{revocation}") };
        let change = FileChange { file: "f".to_owned(), text: Some(Ok(text)) };
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![change], 0));
        world
    }

    fn peer(door: Entrance, leaf: Option<(&str, &str)>) -> Peer {
        peer_of_domain("cluster.local", door, leaf)
    }

    fn peer_of_domain(trust_domain: &str, door: Entrance, leaf: Option<(&str, &str)>) -> Peer {
        let proven = leaf.map(|(account, workload)| {
            let identity = Identity::new(trust_domain, "shop", account).unwrap();
            let (leaf, workload) = (CertificateDer::from(vec![]), workload.into());
            Arc::new(Proven {
                leaf,
                identity,
                workload,
                for_application: false,
                pod_uid: String::new(),
                serial: "7d".into(),
                expired: false,
                retired: false,
                below: None,
            })
        });
        Peer { door, address: None, proven }
    }

    fn node(mode: Mode, namespace: &str, workload: &str, instance: &str) -> Claim {
        let [namespace, workload, instance] = [namespace, workload, instance].map(str::to_owned);
        Claim { client: Dialect::Meshwright, mode, namespace, workload, instance, replica: String::new() }
    }

    #[test]
    fn only_the_truth_is_let_in() {
        // Aim: every part of a claim is held against leaf and objects; an account shared with others proves no workload.
        let world = world();
        let catalog = peer(Entrance::Tls, Some(("shared", "catalog")));
        let elsewhere = peer_of_domain("b.example", Entrance::Tls, Some(("shared", "catalog")));
        let sidecar = |workload, instance| node(Mode::Sidecar, "shop", workload, instance);
        for (node, peer, wanted) in [
            (sidecar("catalog", "catalog-0"), catalog.clone(), None),
            (sidecar("catalog", "catalog-1"), catalog.clone(), None),
            (sidecar("cart", "cart"), catalog.clone(), Some(Code::PermissionDenied)),
            (sidecar("catalog", "cart"), catalog.clone(), Some(Code::PermissionDenied)),
            (sidecar("cart", "catalog-0"), catalog.clone(), Some(Code::PermissionDenied)),
            (sidecar("catalog", "catalog-2"), catalog.clone(), Some(Code::FailedPrecondition)),
            (node(Mode::Sidecar, "bank", "catalog", "catalog-0"), catalog.clone(), Some(Code::PermissionDenied)),
            (node(Mode::Edge, "shop", "catalog", "catalog-0"), catalog.clone(), Some(Code::FailedPrecondition)),
            (sidecar("store", "store"), peer(Entrance::Tls, Some(("shared", "store"))), Some(Code::PermissionDenied)),
            (node(Mode::Edge, "shop", "public", "public"), peer(Entrance::Tls, Some(("public", "public"))), None),
            (sidecar("catalog", "catalog-0"), elsewhere.clone(), Some(Code::PermissionDenied)),
            (Claim { client: Dialect::Envoy, ..sidecar("catalog", "catalog-0") }, elsewhere, Some(Code::PermissionDenied)),
            (sidecar("catalog", "catalog-0"), peer(Entrance::Tls, None), Some(Code::Unauthenticated)),
            (sidecar("catalog", "catalog-0"), peer(Entrance::Plaintext, None), None),
            (sidecar("catalog", "cart"), peer(Entrance::Plaintext, None), Some(Code::PermissionDenied)),
            (Claim { client: Dialect::Envoy, ..node(Mode::Sidecar, "bank", "x", "x") }, catalog, Some(Code::PermissionDenied)),
        ] {
            let verdict = admit(&node, &peer, &world, &clock());
            assert_eq!(verdict.as_ref().err().map(Status::code), wanted, "{node:?} as {peer:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_pod_is_let_in_as_what_the_cluster_says() {
        // Aim: the sidecar of a pod is judged like any other: by the pod's name, its account and its owner; a pod without our sidecar, or one
        // that has ended, is nobody.
        let pod = |name: &str, containers: &str, status: &str| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, ownerReferences: [{{kind: StatefulSet, name: web, controller: true}}]}}\nspec: {{serviceAccountName: shared, {containers}}}\nstatus: {{{status}}}\n"
            )
        };
        let ours = "initContainers: [{name: meshwright-proxy}]";
        let text = [pod("web-0", ours, ""), pod("web-1", "containers: [{name: x}]", ""), pod("web-2", ours, "phase: Failed")].concat();
        let mut world = World::new(WorldSettings { in_cluster: true, ..WorldSettings::default() }, Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
        let sidecar = |workload, instance| node(Mode::Sidecar, "shop", workload, instance);
        for (node, leaf, wanted) in [
            (sidecar("web", "web-0"), ("shared", "web"), None),
            (sidecar("web", "web-0"), ("other", "web"), Some(Code::PermissionDenied)),
            (sidecar("api", "web-0"), ("shared", "api"), Some(Code::PermissionDenied)),
            (sidecar("web", "web-1"), ("shared", "web"), Some(Code::FailedPrecondition)),
            (sidecar("web", "web-2"), ("shared", "web"), Some(Code::FailedPrecondition)),
            (sidecar("web", "web-3"), ("shared", "web"), Some(Code::FailedPrecondition)),
        ] {
            let verdict = admit(&node, &peer(Entrance::Tls, Some(leaf)), &world, &clock());
            assert_eq!(verdict.as_ref().err().map(Status::code), wanted, "{node:?} as {leaf:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_leaf_opens_nothing_after_its_pod() {
        // Aim: a pod made anew under its name, or gone, leaves its certificate worth nothing; one that names no pod (of an older authority, or
        // by a join token) and a mesh without a cluster go by the rest; a Gateway's pod is known by the name that its proxy says.
        let text = "\
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, uid: u2, ownerReferences: [{kind: StatefulSet, name: web, controller: true}]}
spec: {serviceAccountName: shared, initContainers: [{name: meshwright-proxy}]}
---
apiVersion: v1
kind: Pod
metadata: {name: public-x, namespace: shop, uid: u4}
spec: {serviceAccountName: public, containers: [{name: meshwright-edge}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: public, namespace: shop}
spec: {gatewayClassName: meshwright, listeners: [{name: http, port: 8080, protocol: HTTP}]}
";
        let mut world = World::new(WorldSettings { in_cluster: true, ..WorldSettings::default() }, Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) }], 0));
        let edge = |replica: &str| Claim { replica: replica.to_owned(), ..node(Mode::Edge, "shop", "public", "public") };
        let sidecar = node(Mode::Sidecar, "shop", "web", "web-0");
        for (node, account, uid, opens) in [
            (&sidecar, "shared", "u2", true),
            (&sidecar, "shared", "u1", false),
            (&sidecar, "shared", "", true),
            (&edge("public-x"), "public", "u4", true),
            (&edge("public-x"), "public", "u3", false),
            (&edge("public-y"), "public", "u4", false),
            (&edge(""), "public", "u3", true),
        ] {
            let mut peer = peer(Entrance::Tls, Some((account, &node.workload)));
            let proven = peer.proven.take().and_then(Arc::into_inner).unwrap();
            peer.proven = Some(Arc::new(Proven { pod_uid: uid.to_owned(), ..proven }));
            let verdict = admit(node, &peer, &world, &clock());
            assert_eq!(verdict.is_ok(), opens, "{node:?} of {uid}: {verdict:?}");
            assert!(verdict.err().is_none_or(|status| status.code() == Code::PermissionDenied && status.message().contains("earlier pod")));
        }
    }

    #[test]
    fn an_application_is_no_proxy() {
        // Aim: by an application's certificate nobody is one of our proxies, and nothing is renewed; a stock client may show it.
        let world = world();
        let mut peer = peer(Entrance::Tls, Some(("shared", "catalog")));
        let proven = peer.proven.take().and_then(Arc::into_inner).unwrap();
        peer.proven = Some(Arc::new(Proven { for_application: true, ..proven }));
        let ours = node(Mode::Sidecar, "shop", "catalog", "catalog-0");
        let refused = admit(&ours, &peer, &world, &clock()).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("an application's"), "{refused}");
        assert!(admit(&Claim { client: Dialect::Grpc, ..ours }, &peer, &world, &clock()).is_ok());
    }

    #[test]
    fn who_is_revoked_gets_nothing() {
        // Aim: an identity or a certificate that is revoked opens no call; what revokes it is named, with a mark for the proxy; a fresh
        // token is no way around a revoked identity, and is one for a revoked certificate; `until` ends it by the clock alone.
        let identity = "identities: ['spiffe://cluster.local/ns/shop/sa/shared']";
        let catalog = peer(Entrance::Tls, Some(("shared", "catalog")));
        let shared = Identity::new("cluster.local", "shop", "shared").unwrap();
        for (spec, call, token) in [
            (identity, Some("identity"), Some(Code::PermissionDenied)),
            ("serials: ['007D']", Some("serial"), None),
            (&format!("{identity}, until: 1970-01-01T00:16:41Z"), Some("identity"), Some(Code::PermissionDenied)),
            (&format!("{identity}, until: 1970-01-01T00:16:40Z"), None, None),
            ("identities: ['spiffe://other/ns/shop/sa/shared'], serials: ['7e']", None, None),
        ] {
            let world = revoking(spec);
            let verdict = admit(&node(Mode::Sidecar, "shop", "catalog", "catalog-0"), &catalog, &world, &clock());
            let mark = verdict.as_ref().err().and_then(|status| status.metadata().get(names::REVOKED)?.to_str().ok());
            assert_eq!((verdict.is_err(), mark), (call.is_some(), call), "{spec}: {verdict:?}");
            assert!(verdict.err().is_none_or(|status| status.message().ends_with("is revoked by Revocation meshwright-system/r")));
            let (board, _events) = Board::new(clock());
            board.publish(crate::publish::edition::Edition { world, epoch: 1, serial: 1, roots: one() });
            let gate = Gate::new(board);
            for (by_token, wanted) in [(true, token), (false, call.map(|_| Code::PermissionDenied))] {
                let mut extensions = Extensions::default();
                extensions.insert(if by_token { peer(Entrance::Tls, None) } else { catalog.clone() });
                let applicant = Applicant { identity: &shared, workload: "catalog", instance: "catalog-0", by_token };
                assert_eq!(gate.leaf(&extensions, &applicant).err().map(|status| status.code()), wanted, "{spec}, by token: {by_token}");
            }
        }
    }

    #[test]
    fn a_pod_is_known_by_its_unique_id() {
        // Aim: in a cluster it is the pod's of now, and none where there is no such pod; elsewhere nobody knows of pods.
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: db-0, namespace: shop, uid: u2}\nspec: {containers: [{name: x}]}\n";
        let shared = Identity::new("cluster.local", "shop", "shared").unwrap();
        for (in_cluster, instance, wanted) in [(true, "db-0", Some("u2")), (true, "db-1", Some("")), (false, "db-0", None)] {
            let mut world = World::new(WorldSettings { in_cluster, ..WorldSettings::default() }, Allocations::default());
            world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text.to_owned())) }], 0));
            let (board, _events) = Board::new(clock());
            board.publish(crate::publish::edition::Edition { world, epoch: 1, serial: 1, roots: one() });
            let applicant = Applicant { identity: &shared, workload: "db", instance, by_token: false };
            assert_eq!(Gate::new(board).pod_uid(&applicant).as_deref(), wanted, "{instance}");
        }
    }

    #[test]
    fn leaves_are_for_what_is_declared() {
        // Aim: the certificate call lets in by the same rule: the own leaf for the own workload's instances, and a token only for what is
        // declared as it says, so that a slip in a flag does not use it up.
        let (board, _events) = Board::new(Clock::new(|| std::time::UNIX_EPOCH));
        let gate = Gate::new(board.clone());
        let shared = Identity::new("cluster.local", "shop", "shared").unwrap();
        let code = |leaf, (workload, instance), by_token| {
            let mut extensions = Extensions::default();
            extensions.insert(peer(Entrance::Tls, leaf));
            gate.leaf(&extensions, &Applicant { identity: &shared, workload, instance, by_token }).err().map(|status| status.code())
        };
        let catalog = Some(("shared", "catalog"));
        assert_eq!(code(catalog, ("catalog", "catalog-0"), false), Some(Code::Unavailable), "nothing has been read yet");
        board.publish(crate::publish::edition::Edition { world: world(), epoch: 1, serial: 1, roots: one() });
        for (leaf, asked, by_token, wanted) in [
            (catalog, ("catalog", "catalog-0"), false, None),
            (catalog, ("catalog", "cart"), false, Some(Code::PermissionDenied)),
            (catalog, ("cart", "cart"), false, Some(Code::PermissionDenied)),
            (catalog, ("catalog", "catalog-7"), false, Some(Code::FailedPrecondition)),
            (None, ("catalog", "catalog-0"), false, Some(Code::Unauthenticated)),
            (None, ("catalog", "catalog-0"), true, None),
            (None, ("catalog", "catalog-7"), true, Some(Code::FailedPrecondition)),
            (None, ("store", "store"), true, Some(Code::PermissionDenied)),
        ] {
            assert_eq!(code(leaf, asked, by_token), wanted, "{leaf:?} {asked:?} by token: {by_token}");
        }
        // A Gateway's proxy may run in a pod of whatever name; its account decides.
        for (account, workload, wanted) in [
            ("public", "public", None),
            ("shared", "public", Some(Code::PermissionDenied)),
            ("public", "other", Some(Code::FailedPrecondition)),
        ] {
            let identity = Identity::new("cluster.local", "shop", account).unwrap();
            let mut extensions = Extensions::default();
            extensions.insert(peer(Entrance::Tls, None));
            let applicant = Applicant { identity: &identity, workload, instance: "public-7d9f-x2k", by_token: true };
            assert_eq!(gate.leaf(&extensions, &applicant).err().map(|status| status.code()), wanted, "{account} for {workload}");
        }
        for (trust_domain, wanted) in [("cluster.local", None), ("b.example", Some(Code::PermissionDenied))] {
            let mut extensions = Extensions::default();
            extensions.insert(peer_of_domain(trust_domain, Entrance::Tls, catalog));
            assert_eq!(gate.holder(&extensions).err().map(|status| status.code()), wanted, "{trust_domain}");
        }
    }
}
