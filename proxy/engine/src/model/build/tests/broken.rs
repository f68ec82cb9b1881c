//! Bytes that no control plane of ours would send.

use http::{HeaderMap, Method};
use proptest::prelude::*;
use prost_types::Any;
use proto::xds::core::HealthStatus;
use proto::xds::{CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET};

use crate::decide::{RequestHead, Version};
use crate::explain::{self, Asked, dump};
use crate::fixture::{self, assignment, endpoint, host, prefix, rule, table};
use crate::model::Snapshot;

/// Good resources to start from, by type and name.
fn good() -> Vec<(&'static str, &'static str, Any)> {
    let wanted = proto::xds::route::RouteMatch { headers: vec![fixture::header("x", "1")], ..fixture::path_regex("/a+") };
    let rules = vec![rule("a/b/c/0", wanted, &[("c", 1)]), rule("a/b/c/1", prefix("/a"), &[("c", 3), ("bad_backend", 1)])];
    vec![
        (LISTENER, "inbound", proto::xds::pack(&fixture::inbound(fixture::permissive(None)))),
        (LISTENER, "out/10.0.0.1:80", proto::xds::pack(&fixture::out_auto("10.0.0.1:80", "t", "c"))),
        (ROUTE, "t", proto::xds::pack(&table("t", vec![host(&["a", "*.b", "*"], rules)]))),
        (CLUSTER, "c", proto::xds::pack(&fixture::cluster("c"))),
        (ENDPOINT, "c", proto::xds::pack(&assignment("c", vec![endpoint("10.0.0.1:80", "w", HealthStatus::Healthy)]))),
        ("type.googleapis.com/meshwright.v1.ProxyConfig", "proxy", proto::xds::pack(&proto::mesh::ProxyConfig::default())),
        ("type.googleapis.com/meshwright.v1.DnsRecord", "dns/c", proto::xds::pack(&proto::mesh::DnsRecord::default())),
        ("type.googleapis.com/meshwright.v1.Trust", "trust", proto::xds::pack(&fixture::trust())),
        ("type.googleapis.com/meshwright.v1.Authentication", "inbound", proto::xds::pack(&fixture::authentication())),
        (SECRET, "ROOTCA", proto::xds::pack(&proto::xds::tls::Secret { name: "ROOTCA".into(), r#type: None })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    /// Aim: a resource with flipped, cut or random bytes is refused or accepted; the snapshot with it still explains and dumps.
    #[test]
    fn broken_bytes_are_refused_or_carried_never_a_panic(
        which in 0..9_usize,
        flips in prop::collection::vec(any::<(u16, u8)>(), 0..6),
        cut in any::<u16>(),
        random in prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 0..64)),
    ) {
        let mut parts = fixture::shop();
        let resources = good();
        for (index, (kind, name, any)) in resources.into_iter().enumerate() {
            let mut any = any;
            if index == which {
                any.value = random.clone().unwrap_or(any.value);
                for (at, bits) in &flips {
                    let length = any.value.len().max(1);
                    if let Some(byte) = any.value.get_mut(usize::from(*at) % length) {
                        *byte ^= bits;
                    }
                }
                if cut.is_multiple_of(7) {
                    any.value.truncate(usize::from(cut) / 7);
                }
            }
            let put = parts.put(kind, name, "1", &any);
            prop_assert!(put.is_ok() || index == which || kind == SECRET, "{put:?}");
            if let Err(rejected) = put {
                prop_assert!(rejected.to_string().contains(name));
            }
        }
        let snapshot = parts.assemble(1, &Snapshot::default());
        let headers = HeaderMap::new();
        let head = RequestHead { method: &Method::GET, path: "/a", query: Some("x"), host: "a", headers: &headers };
        let asked = Asked { head, version: Version::Http1, tls: false, fault: None, now: crate::Moment::default(), wall_secs: 0 };
        for destination in snapshot.outbound.keys() {
            explain::outbound(&snapshot, *destination, &asked);
        }
        explain::inbound(&snapshot, 80, explain::Origin::default(), &asked);
        prop_assert!(!dump::listeners(&snapshot).is_empty());
        dump::endpoints(&snapshot, None);
        dump::routes(&snapshot);
        dump::clusters(&snapshot);
    }
}
