//! What this proxy runs and what it would do, in the JSON of kinds.md; for the control plane's questions and for the admin port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use engine::Moment;
use engine::client::ClientFound;
use engine::decide::{RequestHead, Version, chain};
use engine::explain::{self, Asked, dump, limits};
use engine::model::{ClientRules, Snapshot};
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, request};
use proto::mesh::ExplainCommand;
use proto::names::Mode;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::http::{Hop, Outsider, Raw, clean_request, inspect, judge_request, mark_outside};
use crate::observe::Telemetry;
use crate::snapshots::Snapshots;

/// What [`dump()`] can show.
pub const DUMP_KINDS: [&str; 5] = ["listeners", "routes", "clusters", "endpoints", "policies"];

/// What runs, of one of [`DUMP_KINDS`].
///
/// # Errors
/// Another kind.
pub fn dump(snapshot: &Snapshot, kind: &str, Time { now, wall_secs }: Time) -> Result<Value, String> {
    match kind {
        "listeners" => json(&dump::listeners(snapshot)),
        "routes" => json(&dump::routes(snapshot)),
        "clusters" => json(&dump::clusters(snapshot)),
        "endpoints" => json(&dump::endpoints(snapshot, Some(now))),
        "policies" => json(&dump::policies(snapshot)),
        "challenges" => json(&snapshot.challenges.names()),
        "limits" => json(&limits::limits(snapshot, engine::limit::Now { moment: now, wall_secs: wall_secs.into() })),
        other => Err(format!("`{other}` is not kept by a proxy; ask for {}", DUMP_KINDS.join(", "))),
    }
}

fn json(rows: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(rows).map_err(|error| error.to_string())
}

/// When something is asked, by both clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Time {
    /// The mesh's own.
    pub now: Moment,
    /// The wall's, in seconds since 1970.
    pub wall_secs: u32,
}

impl Time {
    /// By the clock of this proxy.
    pub fn of(telemetry: &Telemetry) -> Self {
        let unix = telemetry.times().0.unix();
        Self { now: telemetry.moment(), wall_secs: u32::try_from(unix.as_secs()).unwrap_or(u32::MAX) }
    }
}

/// What holds for clients of an edge's port that ask for a host.
fn rules(snapshot: &Snapshot, port: u16, host: Option<&str>) -> Arc<ClientRules> {
    let Some(edge) = snapshot.edges.get(&port) else { return Arc::default() };
    let chain = chain(snapshot, port, host);
    Arc::clone(chain.map_or_else(|| edge.clients.only(), |chain| edge.clients.on(&chain.name)))
}

/// What a request would meet. On the caller's side names and listeners not used before are fetched first, as a request would.
///
/// # Errors
/// The question cannot be understood, or names something this proxy does not know.
pub async fn explain(snapshots: &Snapshots, mode: Mode, ask: &ExplainCommand, at: Time) -> Result<Value, String> {
    let method = Method::from_bytes(ask.method.as_bytes()).map_err(|_| format!("`{}` is no method", ask.method))?;
    let url: Uri = ask.url.parse().map_err(|error| format!("`{}` is no URL: {error}", ask.url))?;
    let mut headers = HeaderMap::new();
    for header in &ask.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| format!("`{}` is no header name", header.name))?;
        let value = HeaderValue::from_str(&header.value).map_err(|_| format!("the value of header `{name}` cannot be sent"))?;
        headers.append(name, value);
    }
    let (version, mut parts) = as_sent(method, &url, headers)?;
    let (fields, tls) = (parts.headers.len(), url.scheme_str() == Some("https"));
    let address = Some(ask.source_address.as_str()).filter(|text| !text.is_empty()).map(str::parse).transpose();
    let address: Option<IpAddr> = address.map_err(|_| format!("`{}` is no IP address", ask.source_address))?;
    if ask.inbound {
        let port = u16::try_from(ask.port).map_err(|_| format!("{} is no port", ask.port))?;
        let peer = (!ask.peer_identity.is_empty()).then_some(ask.peer_identity.as_str());
        let hop = if peer.is_some() { Hop::Inner } else { Hop::First };
        let origin = explain::Origin { identity: peer, workload: &ask.peer_workload, address };
        return json(&explain::inbound(&snapshots.load(), port, origin, &Asked { tls, ..asked(version, &mut parts, (hop, fields), at) }));
    }
    if mode == Mode::Edge {
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
        let snapshot = snapshots.load();
        let rules = rules(&snapshot, port, url.host());
        // Where nobody says who has connected, nothing is believed of what they say of whom they ask for.
        let peer = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let found = address.map_or_else(|| ClientFound::peer(peer), |address| rules.address.find(address, &parts.headers));
        let judged = judge_request(&mut parts, Raw::plainly(Hop::First, fields));
        let more = judged.as_ref().is_ok_and(|there| there.forwarded);
        let fault = judged.err().or_else(|| inspect(&mut parts, fields, &rules).err());
        let outsider = Outsider { peer, peer_value: None, found: &found, https: tls, certificate: None };
        mark_outside(&mut parts, &outsider, more);
        let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
        let consumer = Some(ask.consumer.as_str()).filter(|consumer| !consumer.is_empty());
        let origin = explain::EdgeOrigin { peer: address, address: address.map(|_| found.address), consumer };
        let asked = Asked { head, version, tls, fault, now: at.now, wall_secs: at.wall_secs };
        return json(&explain::edge(&snapshot, port, origin, &asked));
    }
    let destination = match explain::destination(&snapshots.load(), &url) {
        Ok(destination) => destination,
        Err(_) => {
            fetch_name(snapshots, &url).await;
            match explain::destination(&snapshots.load(), &url) {
                Ok(destination) => destination,
                Err(unknown) => answered(snapshots, &url).ok_or_else(|| {
                    format!("{unknown}, and no DNS answer has passed it; if it is outside the mesh, call it once, or write its address and -H host:NAME")
                })?,
            }
        }
    };
    snapshots.outbound(destination).await;
    let names = snapshots.learned().names(destination.ip(), Instant::now());
    let asked = Asked { tls, ..asked(version, &mut parts, (Hop::First, fields), at) };
    json(&explain::outbound_named(&snapshots.load(), (destination, &names), &asked))
}

/// The request as a client sends it to the URL's address: in origin form, with the URL's host where no other is asked for (RFC 9112,
/// section 3.2). gRPC speaks HTTP/2, everybody else is taken for HTTP/1.1.
fn as_sent(method: Method, url: &Uri, mut headers: HeaderMap) -> Result<(Version, request::Parts), String> {
    if let (Some(authority), false) = (url.authority(), headers.contains_key(HOST)) {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| format!("`{host}` is no host"))?);
    }
    let target = match url.authority() {
        Some(authority) if method == Method::CONNECT => Uri::from(authority.clone()),
        _ => url.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")).into(),
    };
    let mut parts = Request::new(()).into_parts().0;
    (parts.method, parts.uri, parts.headers) = (method, target, headers);
    let version = if url.scheme_str() == Some("grpc") { Version::Http2 } else { Version::Http1 };
    parts.version = if version == Version::Http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
    Ok((version, parts))
}

/// The question about a request that was sent, and came to this hop with so many `fields`.
pub fn asked(version: Version, parts: &mut request::Parts, (hop, fields): (Hop, usize), at: Time) -> Asked<'_> {
    let judged = judge_request(parts, Raw::plainly(hop, fields));
    let fault = judged.err();
    if let Ok(of_hop) = judged {
        clean_request(parts, of_hop);
    }
    let head = RequestHead::new(&parts.method, &parts.uri, &parts.headers);
    Asked { head, version, tls: false, fault, now: at.now, wall_secs: at.wall_secs }
}

/// Where a name outside the mesh leads, by what DNS answered to the application.
fn answered(snapshots: &Snapshots, url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?.trim_end_matches('.').to_ascii_lowercase();
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let address = snapshots.learned().addresses(&host, Instant::now()).into_iter().next()?;
    Some(SocketAddr::new(address, port))
}

/// Fetches the name as written, then in the proxy's own namespace.
async fn fetch_name(snapshots: &Snapshots, url: &Uri) {
    let host = url.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let Some(settings) = snapshots.load().settings.clone() else { return };
    snapshots.name(&host, false).await;
    if !snapshots.load().names.contains_key(&host) {
        snapshots.name(&format!("{host}.{}", settings.namespace), false).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::mesh::Header;

    use super::*;
    use crate::snapshots::testing::settings;

    fn ask(url: &str) -> ExplainCommand {
        ExplainCommand { method: "GET".into(), url: url.into(), ..ExplainCommand::default() }
    }

    /// Aim: every kind is shown, another one is refused by name.
    #[test]
    fn what_runs_is_shown() {
        for kind in DUMP_KINDS {
            assert!(dump(&Snapshot::default(), kind, Time::default()).unwrap().is_array(), "{kind}");
        }
        assert!(dump(&Snapshot::default(), "secrets", Time::default()).unwrap_err().contains("listeners"));
    }

    /// Aim: questions that cannot be asked are refused with what is wrong; the rest is answered by the engine.
    #[tokio::test(start_paused = true)]
    async fn questions_are_checked() {
        let snapshots = Snapshots::default();
        snapshots.publish(Arc::new(Snapshot { settings: Some(Arc::new(settings())), ..Snapshot::default() }));
        let sidecar = Mode::Sidecar;
        let bad_header = ExplainCommand { headers: vec![Header { name: "a b".into(), value: String::new() }], ..ask("http://a/") };
        let bad_method = ExplainCommand { method: "G T".into(), ..ask("http://a/") };
        for (question, word) in
            [(ask("http://["), "URL"), (bad_header, "header"), (bad_method, "method"), (ask("http://nobody/"), "nobody")]
        {
            let error = explain(&snapshots, sidecar, &question, Time::default()).await.unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let outside = explain(&snapshots, sidecar, &ask("http://192.0.2.1/"), Time::default()).await.unwrap();
        assert_eq!(outside["epoch"], 0);
        assert_eq!(explain(&snapshots, Mode::Edge, &ask("http://shop.example/"), Time::default()).await.unwrap()["decision"], "Reply");
        let inbound = ExplainCommand { inbound: true, port: 80, ..ask("http://catalog/") };
        assert_eq!(explain(&snapshots, sidecar, &inbound, Time::default()).await.unwrap()["decision"], "Reply");
    }

    proptest::proptest! {
        /// Aim: no question of the control plane makes it panic.
        #[test]
        fn any_question_is_survived(
            (method, name, value) in ("\\PC{0,12}", "\\PC{0,12}", "\\PC{0,12}"),
            url in "\\PC{0,40}|(http|grpc)://[\\[\\]a-z0-9.:%]{0,30}/\\PC{0,10}",
            (port, inbound) in proptest::prelude::any::<(u32, bool)>(),
        ) {
            let snapshots = Snapshots::default();
            snapshots.publish(Arc::new(Snapshot { settings: Some(Arc::new(settings())), ..Snapshot::default() }));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let question = ExplainCommand { method, url, headers: vec![Header { name, value }], port, inbound, ..ExplainCommand::default() };
            for mode in [Mode::Sidecar, Mode::Edge] {
                let _ = runtime.block_on(explain(&snapshots, mode, &question, Time::default()));
            }
        }
    }
}
