//! Who is at the other end of a connection, and whether what it claims is true.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use proto::identity::{APPLICATION_UNIT, Identity, POD_ATTRIBUTE};
use proto::mesh::Hello;
use proto::names::{Mode, NODE_CLIENT, NODE_REPLICA, NODE_WORKLOAD, NodeId};
use proto::xds::core::Node;
use rustls_pki_types::CertificateDer;
use tonic::{Extensions, Status};
use x509_parser::oid_registry;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::translate::Subject;

/// Through which door a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Port 15012.
    Tls,
    /// The loopback port without TLS: believed for routing only.
    Plaintext,
    /// The Unix socket, whose mode lets in its owner only.
    Local,
}

/// The other end of one connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its door.
    pub door: Entrance,
    /// Where it comes from; `None` on the Unix socket.
    pub address: Option<SocketAddr>,
    /// What it proved by TLS.
    pub proven: Option<Arc<Proven>>,
}

/// A verified client certificate of ours.
#[derive(Debug)]
pub struct Proven {
    /// The leaf.
    pub leaf: CertificateDer<'static>,
    /// Its only URI name.
    pub identity: Identity,
    /// Its common name.
    pub workload: String,
    /// It is for the application beside a proxy, and in its hands.
    pub for_application: bool,
    /// Unique id of the pod that it was issued to; empty: it was none, or nobody knew.
    pub pod_uid: String,
    /// Its serial number, as [`proto::identity::serial`] spells it.
    pub serial: String,
    /// It had ended when it was shown: good for a renewal only.
    pub expired: bool,
    /// It was below a root that is believed no more: good for a renewal only.
    pub retired: bool,
    /// SHA-256 of the root that issued when it was shown, if it was below that one.
    pub below: Option<[u8; 32]>,
}

impl Proven {
    /// Reads identity and workload out of a leaf whose chain TLS has verified, at that moment (seconds since 1970), and that ended there:
    /// see [`Self::retired`] and [`Self::below`]. `None`: not a workload's leaf.
    pub fn read(leaf: CertificateDer<'static>, now_secs: i64, (retired, below): (bool, Option<[u8; 32]>)) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(&leaf).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten()?;
        let uris: Vec<_> = names.value.general_names.iter().collect();
        let [GeneralName::URI(uri)] = uris.as_slice() else { return None };
        let identity = uri.parse().ok()?;
        let workload = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let for_application = parsed.subject().iter_organizational_unit().any(|unit| unit.as_str().ok() == Some(APPLICATION_UNIT));
        let pod = oid_registry::Oid::from(&POD_ATTRIBUTE).ok()?;
        let pod_uid = parsed.subject().iter_by_oid(&pod).next().and_then(|uid| uid.as_str().ok()).unwrap_or_default().to_owned();
        let serial = proto::identity::serial(&format!("{:x}", parsed.serial)).to_owned();
        let expired = parsed.validity().not_after.timestamp() < now_secs;
        Some(Self { identity, workload, for_application, pod_uid, serial, expired, retired, below, leaf })
    }
}

/// The caller of a request.
///
/// # Errors
/// `INTERNAL` when the request came through no door of ours.
pub fn peer_of(extensions: &Extensions) -> Result<Peer, Status> {
    extensions.get::<Peer>().cloned().ok_or_else(|| Status::internal("a connection without a peer"))
}

/// Which generator serves a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// Our own proxy.
    Meshwright,
    /// Stock Envoy, and every kind we do not know.
    Envoy,
    /// gRPC without a proxy.
    Grpc,
}

impl Dialect {
    /// As `get proxies` prints it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Meshwright => "Meshwright",
            Self::Envoy => "Envoy",
            Self::Grpc => "Grpc",
        }
    }
}

/// A client's claims, checked against what it proved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Which generator.
    pub client: Dialect,
    /// Sidecar or edge; stock clients count as sidecars.
    pub mode: Mode,
    /// Namespace.
    pub namespace: String,
    /// Workload or Gateway.
    pub workload: String,
    /// Instance; for stock clients, their node id.
    pub instance: String,
    /// Which of several proxies of a Gateway it is, which are one instance; empty: it is the only one, or no Gateway's.
    pub replica: String,
}

/// The key of a sidecar in the book and in every list: `NAMESPACE/INSTANCE`.
pub fn sidecar_key(namespace: &str, instance: &str) -> String {
    format!("{namespace}/{instance}")
}

/// That of a Gateway's proxy: `edge/NAMESPACE/NAME`. A Gateway and an instance may share a name.
pub fn edge_key(namespace: &str, name: &str) -> String {
    format!("{EDGE}{namespace}/{name}")
}

/// That of one of several proxies of a Gateway: `edge/NAMESPACE/NAME/REPLICA`; of the only one where `replica` is empty.
pub fn replica_key(namespace: &str, name: &str, replica: &str) -> String {
    let gateway = edge_key(namespace, name);
    if replica.is_empty() { gateway } else { format!("{gateway}/{replica}") }
}

/// The Gateway's own key, of one of several proxies by its own: that stands for whoever comes, while none is there.
pub fn gateway_of(replica_key: &str) -> Option<&str> {
    let (gateway, _) = replica_key.strip_prefix(EDGE)?.rsplit_once('/').filter(|(gateway, _)| gateway.contains('/'))?;
    replica_key.get(..EDGE.len() + gateway.len())
}

/// The keys of all proxies of a Gateway that are among these, by its own.
pub fn of_gateway<'a, T>(keys: &'a BTreeMap<String, T>, gateway_key: &'a str) -> impl Iterator<Item = (&'a String, &'a T)> {
    let alone = keys.get_key_value(gateway_key);
    // What comes between them in order are Gateways whose names begin with this one's.
    let first = format!("{gateway_key}/");
    let several = keys.range(first.clone()..).take_while(move |(key, _)| key.starts_with(&first));
    alone.into_iter().chain(several)
}

/// Namespace and instance, or Gateway, of a proxy by its key, and whether it is a Gateway's. `None`: not a key of a proxy of ours.
pub fn of_key(key: &str) -> Option<(&str, &str, Mode)> {
    // A sidecar of a namespace `edge` has one slash in its key.
    if let Some((namespace, name)) = key.strip_prefix(EDGE).and_then(|rest| rest.split_once('/')) {
        let name = name.split_once('/').map_or(name, |(name, _)| name);
        return Some((namespace, name, Mode::Edge));
    }
    let (namespace, instance) = key.split_once('/').filter(|(_, instance)| !instance.starts_with(UNPROVEN))?;
    Some((namespace, instance, Mode::Sidecar))
}

const EDGE: &str = "edge/";
/// Longest name of a replica: that of a pod (RFC 1123, section 2.1).
const REPLICA_BYTES_MAX: usize = 253;
/// Stands before the names that clients give themselves, and in no name of a proxy.
const UNPROVEN: char = '~';

impl Claim {
    /// The key of the book and of every list. Stock clients, who say who they are and prove a namespace at most, have keys of their own,
    /// `NAMESPACE/~ID`: what they do is never taken for a proxy's doing.
    pub fn key(&self) -> String {
        match (self.client, self.mode) {
            (Dialect::Meshwright, Mode::Sidecar) => sidecar_key(&self.namespace, &self.instance),
            (Dialect::Meshwright, Mode::Edge) => replica_key(&self.namespace, &self.instance, &self.replica),
            (Dialect::Envoy | Dialect::Grpc, _) => self.unproven_key(),
        }
    }

    /// The key of one that came through that door: who may say anything of itself there has no proxy's key, whatever it says.
    pub fn key_by(&self, door: Entrance) -> String {
        if door == Entrance::Plaintext { self.unproven_key() } else { self.key() }
    }

    fn unproven_key(&self) -> String {
        format!("{}/{UNPROVEN}{}", self.namespace, self.instance)
    }

    /// What decides whether the claim of one of our own proxies is true, and what its own side is.
    pub fn subject(&self) -> Subject {
        let name = (self.namespace.clone(), self.instance.clone());
        match self.mode {
            Mode::Sidecar => Subject::instance(&name),
            Mode::Edge => Subject::gateway(&name),
        }
    }

    /// Whether the book goes by its answers: one of our own proxies, through a door that let in nobody else in its name.
    pub fn counts_by(&self, door: Entrance) -> bool {
        self.ours() && door != Entrance::Plaintext
    }

    /// Whether it is one of our own proxies.
    pub fn ours(&self) -> bool {
        self.client == Dialect::Meshwright
    }

    /// As `get proxies` prints it.
    pub fn mode_text(&self) -> &'static str {
        match self.mode {
            Mode::Sidecar => "Sidecar",
            Mode::Edge => "Edge",
        }
    }
}

impl Claim {
    /// What the first request of an ADS stream says (contract, section 4: Node). Whether it is true is `serve::admit`'s to say.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` without a node, an id or, from our own proxies, a workload.
    pub fn of_node(node: Option<&Node>) -> Result<Self, Status> {
        let node = node
            .filter(|node| !node.id.is_empty())
            .ok_or_else(|| Status::invalid_argument("the first request must carry a node with an id"))?;
        read_claim(node)
    }

    /// What the first report of one of our own proxies says. Its workload is the peer's own word, where there is a leaf.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`.
    pub fn of_hello(hello: &Hello, peer: &Peer) -> Result<Self, Status> {
        let id: NodeId = hello.node_id.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let workload = peer.proven.as_ref().map_or(&hello.workload, |proven| &proven.workload).clone();
        let replica = read_replica(&hello.replica, id.mode)?;
        Ok(Self { client: Dialect::Meshwright, mode: id.mode, namespace: id.namespace, workload, instance: id.instance, replica })
    }
}

fn read_claim(node: &Node) -> Result<Claim, Status> {
    let metadata = |key: &str| text(node, key);
    let workload = metadata(NODE_WORKLOAD).and_then(|text| text.split_once('/')).map(|(a, b)| (a.to_owned(), b.to_owned()));
    let client = match metadata(NODE_CLIENT) {
        Some("proxy") => Dialect::Meshwright,
        Some("grpc") => Dialect::Grpc,
        Some(_) => Dialect::Envoy,
        None if node.user_agent_name.to_ascii_lowercase().starts_with("grpc") => Dialect::Grpc,
        None => Dialect::Envoy,
    };
    if client == Dialect::Meshwright {
        let id: NodeId = node.id.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let (namespace, name) =
            workload.ok_or_else(|| Status::invalid_argument(format!("node metadata lacks `{NODE_WORKLOAD}: NAMESPACE/NAME`")))?;
        if namespace != id.namespace {
            return Err(Status::invalid_argument(format!("node id `{id}` and workload `{namespace}/{name}` differ in their namespace")));
        }
        let replica = read_replica(metadata(NODE_REPLICA).unwrap_or_default(), id.mode)?;
        return Ok(Claim { client, mode: id.mode, namespace, workload: name, instance: id.instance, replica });
    }
    let id: String = node.id.chars().take(253).collect();
    let (namespace, name) = workload.or_else(|| istio_id(&node.id)).unwrap_or_else(|| ("default".to_owned(), id.clone()));
    Ok(Claim { client, mode: Mode::Sidecar, namespace, workload: name, instance: id, replica: String::new() })
}

/// Of what a replica may be called: it becomes a part of a key.
fn read_replica(text: &str, mode: Mode) -> Result<String, Status> {
    let fits = text.len() <= REPLICA_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    if !fits {
        return Err(Status::invalid_argument("a replica's name has letters, digits, `-` and `.`, 253 at most"));
    }
    if mode == Mode::Sidecar && !text.is_empty() {
        return Err(Status::invalid_argument("only proxies of Gateways have replicas; a sidecar is an instance of its own"));
    }
    Ok(text.to_owned())
}

/// `sidecar~IP~NAME.NAMESPACE~DOMAIN`.
fn istio_id(id: &str) -> Option<(String, String)> {
    let pod = id.split('~').nth(2)?;
    let (name, namespace) = pod.rsplit_once('.')?;
    Some((namespace.to_owned(), name.to_owned()))
}

fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, metadata: &[(&str, &str)], agent: &str) -> Node {
        let value = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
        let fields = metadata.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
        Node { id: id.into(), metadata: Some(prost_types::Struct { fields }), user_agent_name: agent.into(), ..Default::default() }
    }

    #[test]
    fn kinds_and_names_are_read_as_the_contract_says() {
        // Aim: metadata first, then user agent, then Istio's id, then `default`.
        for (node, client, name) in [
            (
                node("sidecar/shop/catalog-0", &[(NODE_CLIENT, "proxy"), (NODE_WORKLOAD, "shop/catalog")], ""),
                Dialect::Meshwright,
                "shop/catalog",
            ),
            (node("x", &[(NODE_CLIENT, "grpc"), (NODE_WORKLOAD, "shop/catalog")], "envoy"), Dialect::Grpc, "shop/catalog"),
            (node("x", &[], "gRPC C-core linux Python"), Dialect::Grpc, "default/x"),
            (node("sidecar~10.0.0.1~pod-1.shop~shop.svc", &[], "envoy"), Dialect::Envoy, "shop/pod-1"),
            (node("x", &[(NODE_CLIENT, "other")], ""), Dialect::Envoy, "default/x"),
        ] {
            let claim = Claim::of_node(Some(&node)).unwrap();
            assert_eq!((claim.client, format!("{}/{}", claim.namespace, claim.workload).as_str()), (client, name));
        }
    }

    #[test]
    fn every_kind_of_client_has_keys_of_its_own() {
        // Aim: a sidecar, a Gateway's proxy, a stock client and one that came by plaintext are told apart, whatever they call themselves; the
        // keys of proxies read back, also in a namespace called `edge`.
        let claim = |client, mode, namespace: &str, instance: &str| {
            let [namespace, workload, instance] = [namespace, "catalog", instance].map(str::to_owned);
            Claim { client, mode, namespace, workload, instance, replica: String::new() }
        };
        let replica = |namespace: &str, replica: &str| Claim {
            replica: replica.to_owned(),
            ..claim(Dialect::Meshwright, Mode::Edge, namespace, "public")
        };
        let (ours, stock) = (Dialect::Meshwright, Dialect::Envoy);
        let all = [
            (claim(ours, Mode::Sidecar, "shop", "public"), Entrance::Tls, "shop/public", Some(("shop", "public", Mode::Sidecar))),
            (claim(ours, Mode::Edge, "shop", "public"), Entrance::Tls, "edge/shop/public", Some(("shop", "public", Mode::Edge))),
            (replica("shop", "public-7d-x"), Entrance::Tls, "edge/shop/public/public-7d-x", Some(("shop", "public", Mode::Edge))),
            (replica("shop", "public-7d-x"), Entrance::Plaintext, "shop/~public", None),
            (claim(ours, Mode::Sidecar, "edge", "shop"), Entrance::Local, "edge/shop", Some(("edge", "shop", Mode::Sidecar))),
            (claim(ours, Mode::Sidecar, "shop", "public"), Entrance::Plaintext, "shop/~public", None),
            (claim(stock, Mode::Sidecar, "shop", "public"), Entrance::Tls, "shop/~public", None),
            (claim(stock, Mode::Sidecar, "edge", "public"), Entrance::Tls, "edge/~public", None),
        ];
        for (claim, door, key, read) in &all {
            assert_eq!((claim.key_by(*door).as_str(), of_key(key)), (*key, *read));
            assert_eq!(claim.counts_by(*door), read.is_some(), "{key}");
            let gateway = Some("edge/shop/public").filter(|_| *key == "edge/shop/public/public-7d-x");
            assert_eq!(gateway_of(key), gateway, "{key}");
        }
    }

    #[test]
    fn proxies_of_a_gateway_are_found_by_its_key() {
        // Aim: the only one, and each of several; none of a Gateway whose name begins alike.
        let keys = ["edge/shop/a", "edge/shop/a-b/x", "edge/shop/a/x", "edge/shop/a/y", "edge/shop/b", "shop/a"];
        let keys: BTreeMap<String, ()> = keys.map(|key| (key.to_owned(), ())).into();
        let found = |gateway| of_gateway(&keys, gateway).map(|(key, ())| key.as_str()).collect::<Vec<_>>();
        assert_eq!(found("edge/shop/a"), ["edge/shop/a", "edge/shop/a/x", "edge/shop/a/y"]);
        assert_eq!((found("edge/shop/a-b"), found("edge/shop/c")), (vec!["edge/shop/a-b/x"], vec![]));
    }

    #[test]
    fn a_uri_name_that_is_not_utf8_is_a_uri_name() {
        // Aim: facts.md, SPIFFE: x509-parser gives such a name without an error, and it counts: a leaf with it beside a good one proves
        // nothing.
        let leaf = |uris: &[&[u8]]| {
            let names: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, u8::try_from(uri.len()).unwrap()], *uri].concat()).collect();
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, "catalog");
            let content = [&[0x30, u8::try_from(names.len()).unwrap()][..], &names].concat();
            params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], content)];
            let key = rcgen::KeyPair::generate().unwrap();
            Proven::read(params.self_signed(&key).unwrap().der().clone(), 0, (false, None))
        };
        let good: &[u8] = b"spiffe://cluster.local/ns/shop/sa/catalog";
        assert!(leaf(&[good]).is_some());
        assert!(leaf(&[good, b"spiffe://\xff"]).is_none() && leaf(&[b"spiffe://\xff", good]).is_none() && leaf(&[b"\xff"]).is_none());
    }

    #[test]
    fn a_claim_without_form_is_refused() {
        // Aim: no node, no id, a strange id, no workload, two namespaces: each is told, none is guessed.
        let ours = |id: &str, workload: &str| node(id, &[(NODE_CLIENT, "proxy"), (NODE_WORKLOAD, workload)], "");
        let of_replica =
            |id: &str, replica: &str| node(id, &[(NODE_CLIENT, "proxy"), (NODE_WORKLOAD, "shop/catalog"), (NODE_REPLICA, replica)], "");
        assert!(Claim::of_node(Some(&ours("sidecar/shop/catalog-0", "shop/catalog"))).is_ok());
        assert_eq!(Claim::of_node(Some(&of_replica("edge/shop/catalog", "catalog-0"))).unwrap().key(), "edge/shop/catalog/catalog-0");
        for node in [
            Some(ours("sidecar/shop/catalog-0", "bank/catalog")),
            Some(ours("catalog", "shop/catalog")),
            Some(of_replica("sidecar/shop/catalog-0", "catalog-0")),
            Some(of_replica("edge/shop/catalog", "a/b")),
            Some(node("sidecar/shop/a", &[(NODE_CLIENT, "proxy")], "")),
            Some(node("", &[], "")),
            None,
        ] {
            assert_eq!(Claim::of_node(node.as_ref()).unwrap_err().code(), tonic::Code::InvalidArgument, "{node:?}");
        }
    }
}
