//! What the control plane is told: manifests, requests and reports.

use control::publish::peer::Claim;
use control::publish::session::Session;
use control::source;
use prost::Message;
use proto::mesh::{Certificate, Command, Hello, Report, report};
use proto::xds::core::Node;
use proto::xds::discovery::DeltaDiscoveryRequest;

use crate::cases::unit::Translated;

/// Any text is read, with a line for what is wrong; what is read becomes resources and statuses.
pub(super) fn manifests(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let parsed = source::parse("fuzzed.yaml", &text);
    let said_why = |problem: &control::world::problem::Problem| !problem.to_string().is_empty();
    assert!(parsed.problems.iter().all(said_why));
    if !parsed.candidates.is_empty() {
        let _ = Translated::of(&text).statuses();
    }
}

/// Requests of an ADS stream.
pub(super) fn requests_sent() -> Vec<Vec<u8>> {
    let node = Node { id: "sidecar/shop/catalog-v1".to_owned(), ..Node::default() };
    let one = |type_url: &str, subscribe: &[&str], nonce: &str, detail: Option<&str>| DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: type_url.to_owned(),
        resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        error_detail: detail.map(|message| proto::generated::google::rpc::Status {
            code: 3,
            message: message.to_owned(),
            ..Default::default()
        }),
        initial_resource_versions: [("out/10.96.0.1:80".to_owned(), "1".to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    let hello = Hello { node_id: "sidecar/shop/catalog-v1".to_owned(), ..Hello::default() };
    vec![
        one(proto::xds::LISTENER, &["*"], "", None).encode_to_vec(),
        one(proto::xds::LISTENER, &["out/10.96.0.1:80"], "", None).encode_to_vec(),
        one(proto::xds::CLUSTER, &["*"], "1", Some("Cluster shop/catalog:80: name: is empty")).encode_to_vec(),
        Report { kind: Some(report::Kind::Hello(hello)) }.encode_to_vec(),
        Report { kind: Some(report::Kind::Certificate(Certificate::default())) }.encode_to_vec(),
    ]
}

/// Whatever decodes is answered or refused by a session, and a claim says who it is or why not.
pub(super) fn requests(bytes: &[u8]) {
    if let Ok(request) = DeltaDiscoveryRequest::decode(bytes) {
        let _ = Claim::of_node(request.node.as_ref());
        let mut session = Session::new();
        for _ in 0..3 {
            if session.request(request.clone()).is_err() {
                break;
            }
            let _ = session.wants();
            while session.next_response().is_some() {}
        }
    }
    let _ = Report::decode(bytes);
    let _ = Command::decode(bytes);
}
