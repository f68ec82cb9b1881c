//! `explain`: the caller's own proxy decides, then the server's own proxy does.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto::mesh::{ExplainCommand, ExplainRequest, command};
use proto::names::Mode;
use serde_json::Value;
use tonic::Status;

use super::PATIENCE;
use crate::publish::board::Board;
use crate::publish::edition::Edition;
use crate::publish::peer::{of_key, sidecar_key};
use crate::translate::arrives_untouched;
use crate::world::{Address, Instance};

pub(super) async fn run(board: &Arc<Board>, edition: &Edition, request: ExplainRequest) -> Result<Value, Status> {
    let (from, identity) = caller(board, edition, &request.from)?;
    let question = ExplainCommand {
        method: request.method.clone(),
        url: request.url.clone(),
        headers: request.headers.clone(),
        consumer: request.consumer,
        source_address: request.address,
        ..ExplainCommand::default()
    };
    let mut answer = ask(board, &from, question).await.map_err(Status::failed_precondition)?;
    answer["server"] = match server(board, edition, &answer) {
        Some((key, address, by_mesh_tls)) => {
            let (source_address, peer_workload) = origin(edition, &from, address.ip());
            let question = ExplainCommand {
                method: request.method,
                url: sent_on(&from, &answer, request.url),
                headers: request.headers,
                inbound: true,
                port: u32::from(address.port()),
                peer_identity: if by_mesh_tls { identity } else { String::new() },
                source_address,
                peer_workload,
                consumer: String::new(),
            };
            ask(board, &key, question).await.unwrap_or_else(|error| serde_json::json!({"error": error}))
        }
        None => Value::Null,
    };
    Ok(answer)
}

async fn ask(board: &Board, key: &str, question: ExplainCommand) -> Result<Value, String> {
    let json = board.ask(key, command::Kind::Explain(question), PATIENCE).await?;
    match serde_json::from_str(&json) {
        Ok(Value::Object(fields)) => Ok(Value::Object(fields)),
        _ => Err(format!("the proxy of {key} answered something else than an object")),
    }
}

/// Key and identity of the connected proxy that is meant: an instance, or the first connected one of a workload.
fn caller(board: &Board, edition: &Edition, from: &str) -> Result<(String, String), Status> {
    let Some((namespace, name)) = from.split_once('/') else {
        return Err(Status::invalid_argument(format!("`{from}` is not of the form NAMESPACE/WORKLOAD")));
    };
    let talks = board.correspondents();
    let fits = |claim: &crate::publish::peer::Claim| {
        claim.namespace == namespace && (claim.instance == name || claim.workload == name) && talks.contains(&claim.key())
    };
    if let Some(presence) = board.present().into_iter().find(|presence| presence.counts && fits(&presence.claim)) {
        return Ok((presence.key, presence.identity));
    }
    let key = (namespace.to_owned(), name.to_owned());
    let index = edition.world.index();
    let declared = index.workloads.contains_key(&key) || index.instances.contains_key(&key) || index.gateways.contains_key(&key);
    Err(if declared {
        Status::failed_precondition(format!("no proxy of {from} is connected; see `meshwright get proxies`"))
    } else {
        Status::not_found(format!("there is no workload {from}; see `meshwright get objects`"))
    })
}

/// The URL as the server's proxy meets it: where an edge has ended the client's TLS to choose a route by the request, what it sends on is
/// plain inside the mesh's own.
fn sent_on(key: &str, answer: &Value, url: String) -> String {
    let edge = of_key(key).is_some_and(|(_, _, mode)| mode == Mode::Edge);
    let by_request = matches!(answer["route"]["kind"].as_str(), Some("HTTPRoute" | "GRPCRoute"));
    match url.strip_prefix("https:") {
        Some(rest) if edge && by_request => format!("http:{rest}"),
        _ => url,
    }
}

/// Where the caller's calls to an address come from, and its workload; empty where it is no instance.
fn origin(edition: &Edition, key: &str, to: IpAddr) -> (String, String) {
    let instance = of_key(key).filter(|(_, _, mode)| *mode == Mode::Sidecar);
    let instance = instance.and_then(|(namespace, name, _)| edition.world.index().instances.get(&(namespace.to_owned(), name.to_owned())));
    let address = instance.and_then(|instance| instance.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4()));
    (address.map(IpAddr::to_string).unwrap_or_default(), instance.map(|instance| instance.workload.clone()).unwrap_or_default())
}

/// The instance that the likeliest endpoint belongs to, if it has a proxy that talks to us and the call comes by its inbound side; the
/// address that is called, and whether it is met by mesh TLS.
fn server(board: &Board, edition: &Edition, answer: &Value) -> Option<(String, SocketAddr, bool)> {
    let endpoints = answer["endpoints"].as_array()?;
    let chance = |endpoint: &Value| endpoint["chance"].as_f64().unwrap_or(0.0);
    let best = endpoints.iter().max_by(|a, b| chance(a).total_cmp(&chance(b)))?;
    let address: SocketAddr = best["address"].as_str()?.parse().ok()?;
    let Address::Instance((namespace, instance)) = edition.world.index().addresses.get(&address.ip())? else {
        return None;
    };
    let untouched = |instance: &Instance| arrives_untouched(instance, address.port());
    if edition.world.index().instances.get(&(namespace.clone(), instance.clone())).is_some_and(untouched) {
        return None;
    }
    let key = sidecar_key(namespace, instance);
    board.correspondents().contains(&key).then_some((key, address, best["identity"].is_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Aim: an edge sends HTTP on in plaintext, however it came; what it passes by name, and what a workload sends, stays TLS.
    #[test]
    fn an_edge_ends_tls() {
        for (key, kind, sent) in [
            ("edge/shop/edge", "HTTPRoute", "http://shop.example:8443/a"),
            ("edge/shop/edge/pod-1", "GRPCRoute", "http://shop.example:8443/a"),
            ("edge/shop/edge", "TLSRoute", "https://shop.example:8443/a"),
            ("shop/frontend", "HTTPRoute", "https://shop.example:8443/a"),
        ] {
            let answer = json!({"route": {"kind": kind}});
            assert_eq!(sent_on(key, &answer, "https://shop.example:8443/a".to_owned()), sent, "{key} {kind}");
        }
        let answer = json!({"route": {"kind": "HTTPRoute"}});
        assert_eq!(sent_on("edge/shop/edge", &answer, "http://shop.example/".to_owned()), "http://shop.example/");
    }
}
