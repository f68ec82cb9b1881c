//! What a proxy is told by its control plane.

use std::cell::RefCell;
use std::net::SocketAddr;

use engine::authorize::{Call, Own};
use engine::decide::RequestHead;
use engine::explain::dump;
use engine::model::build::Parts;
use engine::model::{Action, Session as Kept, Snapshot};
use http::Request;
use prost::{Message, Name};
use prost_types::Any;
use proto::identity::Identity;
use proto::mesh::Trust;
use proto::names;
use proto::xds::core::Node;
use proto::xds::discovery::{DeltaDiscoveryResponse, Resource};
use proxy::xds::Session;
use tokio::time::Instant;

use super::samples;
use crate::cases::unit::Translated;

/// Resources staged together before a fresh start.
const STAGED_MAX: usize = 200;

/// Resources as a control plane makes them of manifests.
fn made() -> Vec<(String, String, Any)> {
    let manifests: String = samples::manifests().iter().map(|text| format!("{}\n---\n", String::from_utf8_lossy(text))).collect();
    let translated = Translated::of(&manifests);
    let root = samples::certificates().pop().expect("a certificate");
    let issuing_root = certs_ca::roots::digest_of(&root).to_vec().into();
    let trust = Trust { roots: vec![root.into()], issuing_root, ..translated.trust() };
    let trust = (Trust::type_url(), names::TRUST.to_owned(), proto::xds::pack(&trust));
    translated.resources().into_iter().chain([trust]).collect()
}

/// Every kind of session that the rules among them keep.
pub(super) fn sessions_made() -> Vec<Kept> {
    let mut parts = Parts::default();
    for (url, name, any) in made() {
        let put = parts.put(&url, &name, "1", &any);
        assert!(put.is_ok(), "{put:?}");
    }
    let snapshot = parts.assemble(1, &Snapshot::default());
    let rules = snapshot.routes.values().flat_map(|table| &table.hosts).flat_map(|host| &host.rules);
    let kept = rules.filter_map(|rule| match &rule.action {
        Action::Forward(forward) => forward.policy.session.clone(),
        Action::Reply(_) => None,
    });
    kept.collect()
}

/// Their types.
#[cfg(test)]
pub(super) fn kinds_made() -> std::collections::BTreeSet<String> {
    made().into_iter().map(|(url, _, _)| url).collect()
}

/// Type and name before the content, each with its length.
pub(super) fn resources_sent() -> Vec<Vec<u8>> {
    let sized = |text: &str| [&[u8::try_from(text.len()).unwrap_or(u8::MAX)][..], text.as_bytes()].concat();
    let made = made();
    assert!(made.len() > 5, "{} resources", made.len());
    made.iter().map(|(url, name, any)| [sized(url), sized(name), any.value.clone()].concat()).collect()
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

thread_local! {
    static PARTS: RefCell<(Parts, usize)> = RefCell::default();
}

/// A resource is taken whole or refused by name, and what is taken can be assembled, beside all that was taken before.
pub(super) fn resources(bytes: &[u8]) {
    let Some((url, rest)) = split(bytes) else { return };
    let Some((name, value)) = split(rest) else { return };
    let (url, name) = (String::from_utf8_lossy(url), String::from_utf8_lossy(name));
    PARTS.with_borrow_mut(|(parts, count)| {
        *count += 1;
        if *count > STAGED_MAX {
            (*parts, *count) = (Parts::default(), 0);
        }
        let any = Any { type_url: url.clone().into_owned(), value: value.to_vec() };
        match parts.put(&url, &name, &count.to_string(), &any) {
            Ok(()) => {
                let snapshot = parts.assemble(1, &Snapshot::default());
                asked(&snapshot);
                let _ = (dump::listeners(&snapshot), dump::routes(&snapshot), dump::clusters(&snapshot), dump::endpoints(&snapshot, None));
            }
            Err(rejected) => assert!(!rejected.to_string().is_empty()),
        }
    });
}

/// Whatever says who may call can be asked, of a request and of opaque bytes.
fn asked(snapshot: &Snapshot) {
    let Some(authorization) = &snapshot.authorization else { return };
    let peer: Identity = "spiffe://cluster.local/ns/shop/sa/checkout".parse().expect("an identity");
    let request = Request::get("http://catalog.shop/users/7/x?q=v").header("x-a", "b").header("x-tenant", "a").body(()).expect("a request");
    let head = RequestHead::new(request.method(), request.uri(), request.headers());
    let own = Own { trust_domain: "cluster.local", namespace: "shop", workload: "catalog" };
    let source = SocketAddr::from(([10, 1, 0, 2], 40_000));
    for head in [Some(&head), None] {
        let call = Call { peer: Some(&peer), workload: "checkout", source, port: 8080, head, claims: None, auth: None, edge: None, own };
        let judgement = authorization.judge(&call);
        assert_eq!(judgement.allows(), judgement.refusal().is_none());
    }
}

/// Responses of an ADS stream.
pub(super) fn responses_sent() -> Vec<Vec<u8>> {
    let response = |(url, name, any): &(String, String, Any)| DeltaDiscoveryResponse {
        type_url: url.clone(),
        nonce: "1".to_owned(),
        resources: vec![Resource { name: name.clone(), version: "1".to_owned(), resource: Some(any.clone()), ..Resource::default() }],
        removed_resources: vec!["out/10.96.0.9:80".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    let mut all: Vec<DeltaDiscoveryResponse> = made().iter().map(response).collect();
    let epoch = proto::mesh::Epoch { number: 3, digest: vec![1; 32].into() };
    all.push(response(&(proto::xds::pack(&epoch).type_url.clone(), names::EPOCH.to_owned(), proto::xds::pack(&epoch))));
    all.iter().map(Message::encode_to_vec).collect()
}

/// Whatever decodes is answered by an ACK, a NACK that names what is wrong, or not at all.
pub(super) fn responses(bytes: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { return };
    let mut session = Session::new(Node::default());
    let now = Instant::now();
    session.open(&[]);
    session.on(response.clone(), now);
    session.on(response, now);
    if let Some(due) = session.due() {
        session.tick(due);
    }
    let _ = session.live();
}
