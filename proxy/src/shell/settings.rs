//! Flags and environment of the proxy, turned once into [`Bootstrap`]: what is read here cannot be wrong later.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{Args, ValueEnum};
use engine::model::OtlpProtocol;
use proto::names::{Mode, NodeId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::dns::{RESOLV_CONF, nameservers};
use crate::identity::{Subject, TokenFile};
use crate::shell::probes::{AppProbes, Probe};
use crate::status::logs;
use crate::tls::dial::ControlAddress;
use crate::xds::NodeIdentity;

/// The uid (and gid) a proxy runs as, and by which redirection knows its traffic.
pub const PROXY_UID: u32 = 1337;
/// Workers at most.
const WORKERS_MAX: usize = 64;
/// Explicit listeners at most.
const MAPS_MAX: usize = 256;
/// Where an injected sidecar serves its application.
const SPIFFE_SOCKET: &str = "/run/meshwright/spiffe.sock";
/// Longest path that the kernel takes for a socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest drain.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

/// What kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProxyMode {
    /// Beside one workload instance.
    Sidecar,
    /// North-south gateway.
    Edge,
}

/// How the proxy's own connections escape redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// By the uid it drops to.
    Uid(u32),
    /// By a mark on its sockets.
    Mark(u32),
    /// Nothing is redirected here.
    None,
}

/// Decimal, or hexadecimal with `0x`.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| "give a number, decimal or 0x…".to_owned())
}

/// Bits for others to connect to a socket; what makes no sense on one is refused.
fn mode(text: &str) -> Result<u32, String> {
    let parsed = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o666 == 0 && mode & 0o600 == 0o600);
    parsed.ok_or_else(|| "give the rights to read and write in octal, 600 to 666".to_owned())
}

/// Where the application gets its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeSocket {
    /// The socket file.
    pub path: PathBuf,
    /// Its rights.
    pub mode: u32,
    /// Whether the proxy was told to have it; otherwise it does without where it cannot.
    pub wanted: bool,
}

/// An explicit outbound listener: what connects to `address` goes to a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Where it listens.
    pub address: SocketAddr,
    /// DNS name of the Service: `SERVICE.NS`.
    pub host: String,
    /// The Service's port.
    pub port: u16,
}

impl FromStr for Map {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "give ADDR:PORT=SERVICE.NS:PORT, e.g. 127.0.0.1:8081=catalog.shop:80".to_owned();
        let (address, service) = text.split_once('=').ok_or_else(form)?;
        let address = address.parse().map_err(|_| form())?;
        let (host, port) = service.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?;
        let labels: Vec<&str> = host.split('.').collect();
        let fine = |label: &&str| !label.is_empty() && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if labels.len() < 2 || !labels.iter().all(fine) {
            return Err(form());
        }
        Ok(Self { address, host: host.to_owned(), port })
    }
}

/// Arguments of `meshwright proxy`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example: meshwright proxy --control 10.77.0.1:15012 --control-ca ca.pem --token-file token --workload shop/catalog\n  SIGTERM drains and ends; a second one ends at once."
)]
pub struct ProxyArgs {
    /// What kind of proxy this is
    #[arg(long, value_enum, env = "MESHWRIGHT_MODE", default_value = "sidecar")]
    pub mode: ProxyMode,
    /// Control plane
    #[arg(long, env = "MESHWRIGHT_CONTROL", value_name = "HOST:PORT")]
    pub control: ControlAddress,
    /// Roots that the control plane's certificate must end in, PEM
    #[arg(long, env = "MESHWRIGHT_CONTROL_CA", value_name = "FILE")]
    pub control_ca: PathBuf,
    /// File with a one-time join token, read again at each attempt
    #[arg(long, env = "MESHWRIGHT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Workload (or, at the edge, Gateway) that this proxy serves
    #[arg(long, env = "MESHWRIGHT_WORKLOAD", value_name = "NS/NAME")]
    pub workload: String,
    /// Instance of the workload, or the pod of an edge proxy; default: the workload's name
    #[arg(long, env = "MESHWRIGHT_INSTANCE", value_name = "NAME")]
    pub instance: Option<String>,
    /// Service account to ask a certificate for; the authority has the last word
    #[arg(long, env = "MESHWRIGHT_SERVICE_ACCOUNT", value_name = "NAME", default_value = "default")]
    pub service_account: String,
    /// Explicit outbound listener, for programs that cannot be redirected (repeatable)
    #[arg(long, env = "MESHWRIGHT_MAP", value_name = "ADDR:PORT=SERVICE.NS:PORT", value_delimiter = ',')]
    pub map: Vec<Map>,
    /// Uid to run as, by which our own traffic is exempt from redirection; 0: stay as we are; default: 1337 as root
    #[arg(long, env = "MESHWRIGHT_EXEMPT_UID", value_name = "UID", value_parser = number)]
    pub exempt_uid: Option<u32>,
    /// Mark on our own sockets, by which they are exempt where uids are not ours to choose (rootless)
    #[arg(long, env = "MESHWRIGHT_EXEMPT_MARK", value_name = "MARK", value_parser = number)]
    pub exempt_mark: Option<u32>,
    /// Unix socket on which the application gets its identity (SPIFFE Workload API); default: /run/meshwright/spiffe.sock where that
    /// folder is
    #[arg(long, env = "MESHWRIGHT_SPIFFE_SOCKET", value_name = "PATH")]
    pub spiffe_socket: Option<PathBuf>,
    /// Who may use it, as the socket's mode: 600 is whoever starts the proxy, 666 everybody who can see the socket
    #[arg(long, env = "MESHWRIGHT_SPIFFE_SOCKET_MODE", value_name = "OCTAL", value_parser = mode, default_value = "600")]
    pub spiffe_socket_mode: u32,
    /// Worker threads; default: 1 as a sidecar, one per core at the edge
    #[arg(long, env = "MESHWRIGHT_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// Unix socket over which the edge's listening sockets arrive (SCM_RIGHTS, one per message `PORT\n` or `PORT/udp\n`;
    /// with `/gone` behind it and one of them: those of the port go)
    #[arg(long, env = "MESHWRIGHT_SOCKETS_FD", value_name = "FD")]
    pub sockets_fd: Option<RawFd>,
    /// Resolver for names that are not the mesh's (repeatable); default: those of /etc/resolv.conf
    #[arg(long, env = "MESHWRIGHT_DNS_UPSTREAM", value_name = "IP:PORT", value_delimiter = ',')]
    pub dns_upstream: Vec<SocketAddr>,
    /// The application's probes, as its kubelet had them, for /app-health/… of the health port: a JSON list, ports as numbers
    #[arg(long, env = "MESHWRIGHT_APP_PROBES", value_name = "JSON", default_value = "[]", hide_default_value = true)]
    pub app_probes: AppProbes,
    /// Longest drain after SIGTERM, seconds
    #[arg(long, env = "MESHWRIGHT_DRAIN_SECS", value_name = "SECS", default_value_t = 30)]
    pub drain_secs: u64,
    /// End when no other process has been in this PID namespace for so long, after there were some: beside a Job, in a pod whose containers
    /// share their processes
    #[arg(long, env = "MESHWRIGHT_END_WITH_APPLICATION_SECS", value_name = "SECS")]
    pub end_with_application_secs: Option<u64>,
    /// Log filter: a level or directives
    #[arg(long, env = "MESHWRIGHT_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// OTLP endpoint for spans; wins over the mesh's configuration
    #[arg(long, env = "MESHWRIGHT_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// How spans travel there, and to OTEL_EXPORTER_OTLP_ENDPOINT: `grpc` or `http/protobuf`
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_name = "PROTOCOL", default_value = "grpc", value_parser = otlp_protocol)]
    pub otlp_protocol: OtlpProtocol,
    /// Redirect target of outbound connections; 0: none
    #[arg(long, env = "MESHWRIGHT_OUTBOUND_PORT", value_name = "PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// Redirect target of inbound connections; 0: none
    #[arg(long, env = "MESHWRIGHT_INBOUND_PORT", value_name = "PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// DNS on loopback; 0: none
    #[arg(long, env = "MESHWRIGHT_DNS_PORT", value_name = "PORT", default_value_t = 15053)]
    pub dns_port: u16,
    /// Admin interface on loopback; 0: none
    #[arg(long, env = "MESHWRIGHT_ADMIN_PORT", value_name = "PORT", default_value_t = 15000)]
    pub admin_port: u16,
    /// Metrics; 0: none
    #[arg(long, env = "MESHWRIGHT_METRICS_PORT", value_name = "PORT", default_value_t = proto::ports::METRICS)]
    pub metrics_port: u16,
    /// Health probes; 0: none
    #[arg(long, env = "MESHWRIGHT_HEALTH_PORT", value_name = "PORT", default_value_t = proto::ports::HEALTH)]
    pub health_port: u16,
}

/// The ports a proxy opens; 0 means closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as the flags of the same names")]
pub struct Ports {
    pub outbound: u16,
    pub inbound: u16,
    pub dns: u16,
    pub admin: u16,
    pub metrics: u16,
    pub health: u16,
}

/// The proxy's settings, checked.
#[derive(Debug)]
pub struct Bootstrap {
    /// Who it says it is.
    pub node: NodeIdentity,
    /// Whom its certificate is for.
    pub subject: Subject,
    /// Control plane.
    pub control: ControlAddress,
    /// Roots of `--control-ca`.
    pub control_roots: Vec<CertificateDer<'static>>,
    /// Where a token may lie.
    pub token: Option<TokenFile>,
    /// Explicit listeners.
    pub maps: Vec<Map>,
    /// Exemption from redirection.
    pub exempt: Exempt,
    /// Where the application gets its identity.
    pub spiffe: Option<SpiffeSocket>,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Where listening sockets arrive.
    pub sockets_fd: Option<RawFd>,
    /// Resolvers to pass questions on to.
    pub dns_upstream: Vec<SocketAddr>,
    /// The application's probes.
    pub app_probes: Vec<Probe>,
    /// Longest drain.
    pub drain: Duration,
    /// End with the application, after so much quiet.
    pub end_with_application: Option<Duration>,
    /// Log filter.
    pub log_level: String,
    /// OTLP endpoint by flag.
    pub otlp_endpoint: Option<String>,
    /// OTLP endpoint by `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub otlp_fallback: Option<String>,
    /// How spans travel to either.
    pub otlp_protocol: OtlpProtocol,
    /// Ports.
    pub ports: Ports,
}

impl ProxyArgs {
    /// Checks everything and reads the files it names. Call it with the rights the process was started with.
    ///
    /// # Errors
    /// What is wrong, with the flag and what to give instead; a [`clap::Error`] where the command line itself is.
    pub fn bootstrap(self, is_root: bool) -> anyhow::Result<Bootstrap> {
        let (namespace, workload) = self
            .workload
            .split_once('/')
            .filter(|(namespace, name)| is_name(namespace) && is_name(name))
            .ok_or_else(|| wrong(format!("--workload: `{}` is not of the form NS/NAME, e.g. shop/catalog", self.workload)))?;
        let instance = self.instance.clone().unwrap_or_else(|| workload.to_owned());
        if !is_name(&instance) {
            return Err(wrong(format!("--instance: `{instance}` is no name; give letters, digits, `-` and `.`")));
        }
        let mode = match self.mode {
            ProxyMode::Sidecar => Mode::Sidecar,
            ProxyMode::Edge => Mode::Edge,
        };
        if self.map.len() > MAPS_MAX {
            return Err(wrong(format!("--map: {} explicit listeners, at most {MAPS_MAX} are opened", self.map.len())));
        }
        logs::parse(&self.log_level).map_err(|error| wrong(format!("--log-level: {error:#}")))?;
        let workers = self.worker_count()?;
        let drain = Duration::from_secs(self.drain_secs);
        if drain > DRAIN_MAX {
            return Err(wrong(format!("--drain-secs: {} is too long, give at most {}", self.drain_secs, DRAIN_MAX.as_secs())));
        }
        let dns_upstream = self.resolvers()?;
        let control_roots = read_roots(&self.control_ca)?;
        let edge = self.mode == ProxyMode::Edge;
        Ok(Bootstrap {
            node: node(mode, namespace, workload, &instance),
            subject: Subject {
                namespace: namespace.to_owned(),
                workload: workload.to_owned(),
                instance,
                service_account: self.service_account.clone(),
            },
            control_roots,
            token: self.token_file.as_deref().map(TokenFile::new),
            exempt: match (self.exempt_uid, self.exempt_mark) {
                (_, Some(mark)) => Exempt::Mark(mark),
                (Some(0), None) => Exempt::None,
                (Some(uid), None) => Exempt::Uid(uid),
                (None, None) if is_root => Exempt::Uid(PROXY_UID),
                (None, None) => Exempt::None,
            },
            spiffe: self.spiffe()?,
            workers,
            dns_upstream,
            drain,
            ports: Ports {
                outbound: if edge { 0 } else { self.outbound_port },
                inbound: if edge { 0 } else { self.inbound_port },
                dns: if edge { 0 } else { self.dns_port },
                admin: self.admin_port,
                metrics: self.metrics_port,
                health: self.health_port,
            },
            otlp_fallback: std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty()),
            app_probes: self.app_probes.0,
            end_with_application: self.end_with_application_secs.map(Duration::from_secs),
            control: self.control,
            maps: self.map,
            sockets_fd: self.sockets_fd,
            log_level: self.log_level,
            otlp_endpoint: self.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
            otlp_protocol: self.otlp_protocol,
        })
    }

    fn resolvers(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let servers = if self.dns_upstream.is_empty() {
            fs::read_to_string(RESOLV_CONF).map(|text| nameservers(&text)).unwrap_or_default()
        } else {
            self.dns_upstream.clone()
        };
        let own = |server: &&SocketAddr| self.dns_port != 0 && server.port() == self.dns_port && server.ip().is_loopback();
        if let Some(server) = servers.iter().find(own) {
            return Err(wrong(format!("--dns-upstream: {server} is this proxy's own resolver; give the one that was there before")));
        }
        Ok(servers)
    }

    fn spiffe(&self) -> anyhow::Result<Option<SpiffeSocket>> {
        let mode = self.spiffe_socket_mode;
        match &self.spiffe_socket {
            Some(_) if self.mode == ProxyMode::Edge => {
                Err(wrong("--spiffe-socket: an edge proxy has no application beside it; leave the flag out".to_owned()))
            }
            Some(path) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
                let length = path.as_os_str().len();
                Err(wrong(format!("--spiffe-socket: the path has {length} bytes, a socket's has at most {SOCKET_PATH_BYTES_MAX}")))
            }
            Some(path) => Ok(Some(SpiffeSocket { path: path.clone(), mode, wanted: true })),
            None => {
                let path = PathBuf::from(SPIFFE_SOCKET);
                let there = self.mode == ProxyMode::Sidecar && path.parent().is_some_and(Path::is_dir);
                Ok(there.then_some(SpiffeSocket { path, mode, wanted: false }))
            }
        }
    }

    fn worker_count(&self) -> anyhow::Result<usize> {
        let default = match self.mode {
            ProxyMode::Sidecar => 1,
            ProxyMode::Edge => std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX),
        };
        let workers = self.workers.unwrap_or(default);
        if workers == 0 || workers > WORKERS_MAX {
            return Err(wrong(format!("--workers: {workers} is out of range, give 1 to {WORKERS_MAX}")));
        }
        Ok(workers)
    }
}

/// The roots that `--control-ca` names.
///
/// # Errors
/// The file cannot be read, or holds no certificate in PEM.
pub fn read_roots(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = file.display();
    let pem = fs::read(file).with_context(|| format!("--control-ca: {shown} cannot be read"))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.with_context(|| format!("--control-ca: {shown} is no PEM file of certificates"))?;
    if roots.is_empty() {
        bail!("--control-ca: {shown} holds no certificate; give the root that the control plane wrote, ca.pem");
    }
    Ok(roots)
}

/// Who a proxy says it is. A Gateway's runs what its Gateway says, in whatever pod; which pod that is makes it one of several.
fn node(mode: Mode, namespace: &str, workload: &str, instance: &str) -> NodeIdentity {
    let (served, replica) = match mode {
        Mode::Sidecar => (instance, ""),
        Mode::Edge => (workload, if instance == workload { "" } else { instance }),
    };
    let [namespace, served, workload, replica] = [namespace, served, workload, replica].map(str::to_owned);
    NodeIdentity { id: NodeId { mode, namespace, instance: served }, workload, replica }
}

/// An error of the command line (exit code 2), of the kind that clap makes by itself.
/// As OpenTelemetry's specification spells it; empty: the default.
fn otlp_protocol(text: &str) -> Result<OtlpProtocol, String> {
    match text {
        "grpc" | "" => Ok(OtlpProtocol::Grpc),
        "http/protobuf" => Ok(OtlpProtocol::Http),
        _ => Err(format!("`{text}` is not spoken; give `grpc` or `http/protobuf`")),
    }
}

fn wrong(text: String) -> anyhow::Error {
    clap::Error::raw(ErrorKind::ValueValidation, text + "\n").into()
}

/// A Kubernetes name, loosely: what may stand in an identity and in a node id.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 253 && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::tls::testing::Authority;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ProxyArgs,
    }

    fn parse(more: &[&str]) -> anyhow::Result<Bootstrap> {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, Authority::new("root").root_pem()).unwrap();
        let ca = ca.display().to_string();
        let mut line = vec!["proxy", "--control", "10.77.0.1:15012", "--workload", "shop/catalog"];
        if !more.contains(&"--control-ca") {
            line.extend(["--control-ca", &ca]);
        }
        line.extend(more);
        Line::try_parse_from(line)?.args.bootstrap(true)
    }

    /// Aim: the contract's defaults, for sidecar and edge.
    #[test]
    fn defaults_are_the_contract() {
        let sidecar = parse(&[]).unwrap();
        assert_eq!(sidecar.node.id.to_string(), "sidecar/shop/catalog");
        assert_eq!((sidecar.exempt, sidecar.workers, sidecar.drain.as_secs()), (Exempt::Uid(1337), 1, 30));
        let ports = Ports { outbound: 15001, inbound: 15006, dns: 15053, admin: 15000, metrics: 15020, health: 15021 };
        assert_eq!((sidecar.ports, sidecar.control_roots.len()), (ports, 1));
        let edge = parse(&["--mode", "edge", "--instance", "front-0", "--exempt-uid", "0", "--admin-port", "0"]).unwrap();
        assert_eq!((edge.node.id.to_string().as_str(), edge.subject.instance.as_str()), ("edge/shop/catalog", "front-0"));
        assert_eq!(edge.node.replica, "front-0", "one of several");
        assert_eq!((edge.ports.outbound, edge.ports.admin, edge.exempt), (0, 0, Exempt::None));
        assert!(edge.workers >= 1);
    }

    /// Aim: repeatable flags and their forms.
    #[test]
    fn maps_marks_and_resolvers_are_read() {
        let line = ["--map", "127.0.0.1:8081=catalog.shop:80", "--map", "[::1]:5432=store.shop:5432", "--exempt-mark", "0x539"];
        let bootstrap = parse(&[&line[..], &["--dns-upstream", "10.77.0.1:53", "--dns-upstream", "[fd00::1]:53"]].concat()).unwrap();
        assert_eq!(bootstrap.maps[0], Map { address: "127.0.0.1:8081".parse().unwrap(), host: "catalog.shop".into(), port: 80 });
        assert_eq!((bootstrap.maps.len(), bootstrap.exempt, bootstrap.dns_upstream.len()), (2, Exempt::Mark(1337), 2));
    }

    /// Aim: what is wrong is refused by the name of its flag and with what to give; as wrong usage, unless a file is the culprit.
    #[test]
    fn nonsense_is_refused_with_flag_and_remedy() {
        for (line, words) in [
            (&["--workload", "catalog"][..], ["--workload", "NS/NAME"]),
            (&["--control-ca", "/nowhere/ca.pem"], ["--control-ca", "cannot be read"]),
            (&["--control-ca", "/dev/null"], ["--control-ca", "ca.pem"]),
            (&["--map", "8081=catalog:80"], ["--map", "SERVICE.NS"]),
            (&["--exempt-mark", "x"], ["--exempt-mark", "0x"]),
            (&["--workers", "0"], ["--workers", "1 to 64"]),
            (&["--app-probes", "[{}]"], ["--app-probes", "exactly one"]),
            (&["--log-level", "proxy=loudly"], ["--log-level", "loudly"]),
            (&["--drain-secs", "99999"], ["--drain-secs", "3600"]),
            (&["--dns-upstream", "127.0.0.1:15053"], ["--dns-upstream", "before"]),
            (&["--instance", "a/b"], ["--instance", "a/b"]),
        ] {
            let error = parse_or_override(line);
            assert_eq!(error.is::<clap::Error>(), line[0] != "--control-ca", "{line:?}");
            let error = format!("{error:#}");
            for word in words {
                assert!(error.contains(word), "{line:?}: {error}");
            }
        }
    }

    fn parse_or_override(line: &[&str]) -> anyhow::Error {
        if line[0] == "--workload" {
            let folder = tempfile::tempdir().unwrap();
            let ca = folder.path().join("ca.pem");
            fs::write(&ca, Authority::new("root").root_pem()).unwrap();
            let all = ["proxy", "--control", "a:1", "--workload", line[1], "--control-ca", ca.to_str().unwrap()];
            return Line::try_parse_from(all).unwrap().args.bootstrap(false).unwrap_err();
        }
        parse(line).unwrap_err()
    }

    proptest::proptest! {
        /// Aim: no value of a flag makes its reader panic.
        #[test]
        fn any_value_is_survived(text in "\\PC{0,60}|[0-9a-f:.\\[\\]]{0,30}=[a-z.-]{0,30}:[0-9]{0,6}|0x[0-9a-f]{0,12}") {
            let _ = (text.parse::<Map>(), number(&text));
            if let Ok(target) = text.parse::<ControlAddress>() {
                proptest::prop_assert_eq!(target.to_string().parse::<ControlAddress>(), Ok(target));
            }
        }
    }
}
