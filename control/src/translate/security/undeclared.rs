//! Ports whose protocol nobody declared, where tokens are judged.

use proto::words::Protocol;

use crate::translate::mtls::applies;
use crate::translate::protocol::of_server;
use crate::world::security::authentication::RequestAuthentication;
use crate::world::{Index, Instance, Object};

/// What is wrong and what would be right, where a RequestAuthentication selects a workload with such a port.
pub(super) fn finding(index: &Index, object: &Object, spec: &RequestAuthentication) -> Option<(String, String)> {
    if !spec.attachment.targets.is_empty() {
        return None;
    }
    let chosen = |instance: &&Instance| instance.meshed && applies(object, &spec.selector, &instance.namespace, instance.labels());
    let open = |instance: &Instance| {
        let mut ports = instance.workload().map_or(&[][..], |workload| &workload.ports).iter().map(|port| port.port);
        ports.find(|port| of_server(index, instance, *port) == Protocol::Auto)
    };
    let (instance, port) = index.instances.values().filter(chosen).find_map(|instance| Some((instance, open(instance)?)))?;
    let message = format!(
        "nobody declared what port {port} of workload {}/{} speaks: bytes pass there without a token, and headers of claims can be believed at ports declared HTTP only",
        instance.namespace, instance.workload
    );
    Some((message, "declare it: appProtocol: http, or tcp where it is no HTTP".to_owned()))
}
