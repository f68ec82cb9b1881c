//! Envoy beside an edge, as the second client of the services that policies ask: both are asked the same by the same curl, and what each of them
//! asks of the services is compared field by field, in the published messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Address, address, socket_address};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;
use prost::Message;
use serde_json::json;
use tests::look::free_port;

use crate::edge::{Authority, NAME, gateway, http, https, route, run, shop};
use crate::mesh::{Mesh, client, eventually, python, root, text};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Most bytes of a body that services are shown.
const SHOWN_BYTES: usize = 1024;

/// Where both listen: each in a network of its own, so that the client's words are the same.
struct Ports {
    plain: u16,
    tls: u16,
}

/// The manager of one listener's connections, as Envoy's configuration has it.
fn manager() -> serde_json::Value {
    let service = json!({"transport_api_version": "V3"});
    let asked = json!({"envoy_grpc": {"cluster_name": "guards"}, "timeout": "2s"});
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.http.{name}");
    let authorization = json!({
        "@type": kind("ext_authz.v3.ExtAuthz"), "transport_api_version": "V3", "grpc_service": asked,
        "status_on_error": {"code": "ServiceUnavailable"}, "include_tls_session": true,
        "with_request_body": {"max_request_bytes": SHOWN_BYTES, "allow_partial_message": true},
    });
    let mut service = service;
    service["grpc_service"] = asked;
    let limits = json!({
        "@type": kind("ratelimit.v3.RateLimit"), "domain": "edge", "failure_mode_deny": true, "timeout": "2s", "rate_limit_service": service,
    });
    let actions = json!([
        {"actions": [
            {"generic_key": {"descriptor_key": "plan", "descriptor_value": "gold"}},
            {"request_headers": {"header_name": "x-user", "descriptor_key": "user"}},
        ]},
        {"actions": [{"remote_address": {}}]},
    ]);
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "edge", "use_remote_address": true,
            "http_filters": [
                {"name": "envoy.filters.http.ext_authz", "typed_config": authorization},
                {"name": "envoy.filters.http.ratelimit", "typed_config": limits},
                {"name": "envoy.filters.http.router", "typed_config": {"@type": kind("router.v3.Router")}},
            ],
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"], "rate_limits": actions,
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}],
            }]},
        },
    })
}

/// Envoy's configuration: the same that the edge has by its objects.
fn envoy(authority: &Authority, ports: &Ports) -> String {
    let read = |name: &str| json!({"inline_string": fs::read_to_string(authority.file(name)).unwrap()});
    let tls = json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{"certificate_chain": read("a.crt"), "private_key": read("a.key")}],
                "validation_context": {"trusted_ca": read("ca.crt")},
            },
        },
    });
    let at = |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let listener =
        |name: &str, port: u16, chain: serde_json::Value| json!({"name": name, "address": at("0.0.0.0", port), "filter_chains": [chain]});
    let cluster = |name: &str, port: u16| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at("127.0.0.1", port)}}]}]},
        })
    };
    let mut guards = cluster("guards", 9000);
    guards["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    let plain = json!({"filters": [manager()]});
    let secured = json!({"filters": [manager()], "transport_socket": tls});
    let all = json!({"static_resources": {
        "listeners": [listener("plain", ports.plain, plain), listener("tls", ports.tls, secured)],
        "clusters": [guards, cluster("backend", 9001)],
    }});
    all.to_string()
}

/// The edge's objects: one service for authorization and limits, by gRPC, outside the mesh.
fn manifests(authority: &Authority, ports: &Ports, folder: &Path) -> String {
    let command = json!([python(), client("guards.py"), folder, "9000", "9001", "6379"]);
    let believed = "  tls: {frontend: {default: {validation: {caCertificateRefs: [{group: \"\", kind: ConfigMap, name: clients}]}}}}";
    let objects = format!(
        "
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: clients, namespace: shop}}
data:
  ca.crt: |
{}
---
apiVersion: v1
kind: Service
metadata: {{name: guards, namespace: shop}}
spec: {{selector: {{app: guards}}, ports: [{{name: grpc, port: 9000, appProtocol: grpc}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {{name: guards, namespace: shop, labels: {{app: guards}}}}
spec: {{command: {command}, ports: [{{name: grpc, port: 9000, appProtocol: grpc}}]}}
---
apiVersion: meshwright.dev/v1alpha1
kind: ExternalAuth
metadata: {{name: guards, namespace: shop}}
spec:
  targetRefs: [{{kind: Gateway, name: edge}}]
  backendRef: {{name: guards, port: 9000}}
  timeout: 2s
  forwardBody: {{maxBytes: {SHOWN_BYTES}, partial: true}}
---
apiVersion: meshwright.dev/v1alpha1
kind: RateLimit
metadata: {{name: guards, namespace: shop}}
spec:
  targetRefs: [{{kind: Gateway, name: edge}}]
  onError: Deny
  store:
    rls:
      backendRef: {{name: guards, port: 9000}}
      domain: edge
      timeout: 1s
      descriptors:
        - entries: [{{key: plan, value: gold}}, {{key: user, from: {{header: x-user}}}}]
        - entries: [{{key: remote_address, from: {{clientAddress: {{}}}}}}]
",
        authority.indented("ca.crt")
    );
    [
        shop(&[("echo", "[meshwright, echo, --http=8080]", 8080)]),
        authority.secret("a", ""),
        objects,
        gateway("edge", &[http("http", ports.plain), https("https", ports.tls, "", "a")], believed),
        route("echo", &["edge"], "", "echo"),
    ]
    .concat()
}

type Fields = BTreeMap<String, String>;

/// Every field of a check, by its path; each is taken apart by name, so that none is forgotten. What differs from one request to the next is as good
/// as there.
fn fields(check: CheckRequest) -> Fields {
    let mut all = Fields::new();
    let CheckRequest { attributes } = check;
    let AttributeContext { source, destination, request, context_extensions, metadata_context, route_metadata_context, tls_session } =
        attributes.unwrap();
    for (side, peer) in [("source", source), ("destination", destination)] {
        let Peer { address, service, labels, principal, certificate } = peer.unwrap();
        let texts = [("service", service), ("principal", principal), ("certificate", certificate)];
        all.extend(texts.map(|(field, value)| (format!("{side}.{field}"), value)));
        all.extend(labels.into_iter().map(|(name, value)| (format!("{side}.labels.{name}"), value)));
        all.extend(socket(side, address.unwrap()));
    }
    let Request { time, http } = request.unwrap();
    assert!(time.is_some_and(|time| time.seconds > 1_700_000_000), "{time:?}");
    let HttpRequest { id, method, headers, header_map, path, host, scheme, query, fragment, size, protocol, body, raw_body } =
        http.unwrap();
    let texts = [("method", method), ("path", path), ("host", host), ("scheme", scheme), ("query", query), ("fragment", fragment)];
    all.extend(texts.map(|(field, value)| (format!("request.http.{field}"), value)));
    // A number of Envoy's own, or the id that the logs have.
    let id = if id.contains('-') { "the request's id" } else { "a number" };
    let header_map = format!("{:?}", header_map.unwrap_or_default().headers);
    let texts =
        [("id", id.to_owned()), ("size", size.to_string()), ("protocol", protocol), ("body", body), ("raw_body", format!("{raw_body:?}"))];
    all.extend(texts.map(|(field, value)| (format!("request.http.{field}"), value)));
    all.insert("request.http.header_map".to_owned(), header_map);
    all.extend(headers.into_iter().map(|(name, value)| {
        let value = if name == "x-request-id" { "an id".to_owned() } else { value };
        (format!("request.http.headers.{name}"), value)
    }));
    all.extend(context_extensions.into_iter().map(|(name, value)| (format!("context_extensions.{name}"), value)));
    for (field, metadata) in [("metadata_context", metadata_context), ("route_metadata_context", route_metadata_context)] {
        let metadata = metadata.unwrap_or_default();
        assert!(metadata.filter_metadata.is_empty() && metadata.typed_filter_metadata.is_empty(), "{metadata:?}");
        all.insert(field.to_owned(), String::new());
    }
    all.insert("tls_session.sni".to_owned(), tls_session.unwrap_or_default().sni);
    all.retain(|_, value| !value.is_empty());
    all
}

/// Address and port of a side; the port of a client is its kernel's choice.
fn socket(side: &str, address: Address) -> [(String, String); 2] {
    let Some(address::Address::SocketAddress(socket)) = address.address else { panic!("{address:?}") };
    let Some(socket_address::PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("{socket:?}") };
    assert!(port > 0);
    let port = if side == "source" { "its own".to_owned() } else { port.to_string() };
    [(format!("{side}.address.address"), socket.address), (format!("{side}.address.port"), port)]
}

/// What was asked since the last look: checks and questions about limits.
fn asked(folder: &Path) -> (Vec<CheckRequest>, Vec<RateLimitRequest>) {
    let file = folder.join("asked");
    let all = fs::read_to_string(&file).unwrap_or_default();
    fs::write(&file, "").unwrap();
    let bytes =
        |hex: &str| (0..hex.len()).step_by(2).map(|place| u8::from_str_radix(&hex[place..place + 2], 16).unwrap()).collect::<Vec<u8>>();
    let of = |method: &str| all.lines().filter_map(|line| line.strip_prefix(method)).map(|hex| bytes(hex.trim())).collect::<Vec<_>>();
    let checks = of(CHECK).iter().map(|bytes| CheckRequest::decode(bytes.as_slice()).unwrap()).collect();
    (checks, of(LIMIT).iter().map(|bytes| RateLimitRequest::decode(bytes.as_slice()).unwrap()).collect())
}

/// Fields by which the page says that the two differ.
fn page() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/edge-auth.md")).unwrap();
    let rows =
        text.lines().skip_while(|line| !line.starts_with("| Field of a check | Envoy ")).skip(2).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.split('`').nth(1)).map(str::to_owned).collect()
}

/// Ends with the test.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What curl is told to send, of which each case makes another request.
fn cases(authority: &Authority, ports: &Ports) -> Vec<(&'static str, Vec<String>)> {
    fs::write(authority.file("binary"), [0, 159, 146, 150]).unwrap();
    fs::write(authority.file("long"), "x".repeat(2 * SHOWN_BYTES)).unwrap();
    let own = |arguments: &[&str]| arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>();
    let plain = format!("http://127.0.0.1:{}/a/b?c=d&e=%2F", ports.plain);
    let tls = format!("https://{NAME}:{}/a", ports.tls);
    let connect = format!("{NAME}::127.0.0.1:");
    let (ca, certificate, key) = (authority.path("ca.crt"), authority.path("client.crt"), authority.path("client.key"));
    let proving = ["--cacert", &ca, "--cert", &certificate, "--key", &key, "--connect-to", &connect];
    let binary = format!("@{}", authority.path("binary"));
    let long = format!("@{}", authority.path("long"));
    vec![
        ("a plain one", own(&[&plain])),
        ("headers twice", own(&["-H", "x-a: 1", "-H", "x-a: 2", "-H", "cookie: a=b", "-H", "Authorization: Bearer t", &plain])),
        ("what comes from before", own(&["-H", "x-forwarded-for: 192.0.2.1", "-H", "x-forwarded-proto: https", &plain])),
        ("a body", own(&["-d", "hello", &plain])),
        ("a long body", own(&["--data-binary", &long, &plain])),
        ("a body that is no text", own(&["--data-binary", &binary, &plain])),
        ("chunks", own(&["-H", "Transfer-Encoding: chunked", "-d", "hello", &plain])),
        ("HTTP/2", own(&["--http2-prior-knowledge", &plain])),
        ("HTTP/2 with a body", own(&["--http2-prior-knowledge", "-d", "hello", &plain])),
        ("another method and host", own(&["-X", "DELETE", "-H", "Host: B.example", &plain])),
        ("a client with a certificate", own(&[&proving[..], &[tls.as_str()]].concat())),
        ("the same over HTTP/1.1", own(&[&proving[..], &["--http1.1", tls.as_str()]].concat())),
    ]
}

/// Aim: services that were written for Envoy see of an edge what they see of Envoy, but for what the page names; of limits, exactly that. While they are
/// away in whatever way, both refuse.
#[test]
fn services_for_envoy_are_asked_as_envoy_asks() {
    let authority = Authority::new();
    authority.issue("a", &format!("DNS:{NAME}"), false);
    authority.issue("client", "URI:spiffe://partner/acme,DNS:acme.example", false);
    let folder = tempfile::tempdir().unwrap();
    for open in [folder.path(), authority.folder()] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o777)).unwrap();
    }
    fs::write(folder.path().join("way"), "allow").unwrap();
    let ports = Ports { plain: free_port(), tls: free_port() };
    let configuration = folder.path().join("envoy.json");
    fs::write(&configuration, envoy(&authority, &ports)).unwrap();
    let mesh = Mesh::start(&[("mesh.yaml", &manifests(&authority, &ports, folder.path()))]);
    let program = python().with_file_name("envoy");
    let flags = ["-c", configuration.to_str().unwrap(), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"];
    let own = mesh.exec("shop/guards", &[&[program.to_str().unwrap()], &flags[..]].concat()).stderr(Stdio::null()).spawn().unwrap();
    let _envoy = Beside(own);
    let through_envoy = |arguments: &[&str]| text(&mesh.exec("shop/guards", &[&["curl"], arguments].concat()).output().unwrap().stdout);
    let code = ["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", "x-user: ada"];
    let url = format!("http://127.0.0.1:{}/", ports.plain);
    eventually("both let requests through", Duration::from_secs(60), || {
        let own = run("curl", &[&code[..], &[url.as_str()]].concat());
        let other = through_envoy(&[&code[..], &[url.as_str()]].concat());
        (own == "200" && other == "200").then_some(())
    });
    let (mut differ, known) = (BTreeSet::new(), page());
    for (what, arguments) in cases(&authority, &ports) {
        let arguments: Vec<&str> = code.iter().copied().chain(arguments.iter().map(String::as_str)).collect();
        drop(asked(folder.path()));
        assert_eq!(through_envoy(&arguments), "200", "{what}");
        let (mut theirs, their_limits) = asked(folder.path());
        assert_eq!(run("curl", &arguments), "200", "{what}");
        let (mut ours, our_limits) = asked(folder.path());
        assert_eq!((theirs.len(), ours.len(), our_limits.len()), (1, 1, 1), "{what}");
        let (theirs, ours) = (fields(theirs.remove(0)), fields(ours.remove(0)));
        let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for name in names.into_iter().filter(|name| theirs.get(*name) != ours.get(*name)) {
            eprintln!("{what}: {name}: Envoy {:?}, we {:?}", theirs.get(name), ours.get(name));
            differ.insert(name.clone());
        }
        let descriptors =
            |asked: &[RateLimitRequest]| asked.iter().flat_map(|asked| asked.descriptors.clone()).map(entries).collect::<Vec<_>>();
        assert_eq!(descriptors(&our_limits), descriptors(&their_limits), "{what}");
        assert_eq!(
            our_limits.iter().map(|asked| (&asked.domain, asked.hits_addend)).collect::<Vec<_>>(),
            their_limits.iter().map(|asked| (&asked.domain, asked.hits_addend)).collect::<Vec<_>>(),
            "{what}"
        );
    }
    assert_eq!(differ, known, "docs/edge-auth.md names the fields that differ");

    for way in ["deny", "gone", "closes", "refuses", "hangs", "garbage"] {
        fs::write(folder.path().join("way"), way).unwrap();
        let wanted = if way == "deny" { "403" } else { "503" };
        let url = [url.as_str()];
        eventually(&format!("{way}: both answer {wanted}"), Duration::from_secs(20), || {
            let both = [run("curl", &[&code[..], &url].concat()), through_envoy(&[&code[..], &url].concat())];
            both.iter().all(|status| status == wanted).then_some(())
        });
    }
    mesh.leave();
}

fn entries(descriptor: RateLimitDescriptor) -> Vec<(String, String)> {
    let RateLimitDescriptor { entries, limit, hits_addend, is_negative_hits: _ } = descriptor;
    assert!(limit.is_none() && hits_addend.is_none());
    entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}
