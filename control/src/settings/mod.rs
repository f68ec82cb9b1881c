//! Flags of `meshwright control`, and what they resolve to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use ipnet::IpNet;

use crate::serve::tls::CertificateNames;
use crate::world::telemetry::{Otlp, OtlpProtocol};
use crate::world::{Origin, Ranges, WorldSettings};

/// The control plane's Unix socket within the data folder.
const SOCKET: &str = "control.sock";

/// Arguments of `meshwright control`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  meshwright control --config manifests --data-dir /var/lib/meshwright\n  meshwright control --config manifests --listen 10.0.0.5:15012 --name control.example.com\n  meshwright control --kubernetes --kubeconfig ~/.kube/config"
)]
pub struct ControlArgs {
    /// Folder of manifests, watched; beside --kubernetes its objects lie over the cluster's
    #[arg(long, value_name = "DIR", env = "MESHWRIGHT_CONFIG", required_unless_present = "kubernetes")]
    pub config: Option<PathBuf>,
    /// Watch the objects of a Kubernetes cluster: as the pod that this runs in, or as --kubeconfig says
    #[arg(long)]
    pub kubernetes: bool,
    /// How to reach the cluster from outside [env: KUBECONFIG]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Where the certificate authority, epochs and applied objects are kept (mode 0700)
    #[arg(long, value_name = "DIR", default_value = "/var/lib/meshwright", env = "MESHWRIGHT_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Address of xDS and the certificate authority, over TLS
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Also serve xDS without TLS to clients on this machine, routing only
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:15010", value_parser = loopback)]
    pub plaintext_xds: Option<SocketAddr>,
    /// Unix socket of the commands and the node agent [default: control.sock in the state directory, where every command looks for it]
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// Address of the control plane's own metrics
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:15014")]
    pub metrics_listen: SocketAddr,
    /// Ranges of virtual Service addresses, one per family; with --kubernetes the cluster's own, so that calls to a Service that is not known
    /// yet wait for it
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<IpNet>,
    /// Ranges of instance addresses, one per family; with --kubernetes the cluster's own
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub instance_cidr: Vec<IpNet>,
    /// The node agent's own address, where it relays loopback OTLP endpoints
    #[arg(long, value_name = "ADDR")]
    pub bridge_address: Option<IpAddr>,
    /// More names of the control plane's certificate: DNS names or addresses
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Write the trust bundle here too, for `meshwright proxy --control-ca`
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// An authority of the user's own
    #[command(flatten)]
    pub external: ExternalArgs,
    /// Where proxies, and the control plane itself, send spans unless a Telemetry object says so
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// How spans travel there: `grpc` or `http/protobuf`
    #[arg(long, value_name = "PROTOCOL", default_value = "grpc", env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_parser = otlp_protocol)]
    pub otlp_protocol: OtlpProtocol,
    /// Log filter, such as `info` or `control=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "MESHWRIGHT_LOG")]
    pub log_level: String,
}

/// A certificate authority of the user's own, in place of the one that the control plane makes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "A certificate authority of your own")]
pub struct ExternalArgs {
    /// PEM of an intermediate authority that signs workloads' certificates, then those above it, without the root
    #[arg(long, value_name = "FILE", requires_all = ["ca_key", "ca_root"])]
    pub ca_cert: Option<PathBuf>,
    /// PEM of its private key; mode 0600
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// PEM of the root that it ends in; more roots are believed too
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_root: Option<PathBuf>,
}

impl ExternalArgs {
    /// Certificate, key and roots, where they are given.
    pub fn files(&self) -> Option<(PathBuf, PathBuf, PathBuf)> {
        Some((self.ca_cert.clone()?, self.ca_key.clone()?, self.ca_root.clone()?))
    }
}

impl ControlArgs {
    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.api_socket.clone().unwrap_or_else(|| self.data_dir.join(SOCKET))
    }

    /// What translation is told at the start.
    ///
    /// # Errors
    /// The folder is missing; or two ranges are of one family, which is a [`clap::Error`].
    pub fn world(&self) -> anyhow::Result<WorldSettings> {
        let folder = match &self.config {
            Some(config) => folder(config)?,
            None => PathBuf::new(),
        };
        let folder_read = self.config.as_ref().map(|_| Origin::Folder);
        let origins = self.kubernetes.then_some(Origin::Cluster).into_iter().chain(folder_read).collect();
        let mut ranges = Ranges::default();
        pick("--service-cidr", &self.service_cidr, &mut ranges.services)?;
        pick("--instance-cidr", &self.instance_cidr, &mut ranges.instances)?;
        let protocol = self.otlp_protocol;
        let given = self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty());
        let (bridge, otlp) = (self.bridge_address, given.map(|endpoint| Otlp { endpoint, protocol }));
        let cluster_ranges = self.service_cidr.iter().chain(&self.instance_cidr).map(IpNet::trunc).collect();
        let in_cluster = self.kubernetes;
        Ok(WorldSettings { origins, in_cluster, cluster_ranges, ranges, bridge, otlp, folder, ..WorldSettings::default() })
    }

    /// Names on our certificate: every address we may be reached at, and what was asked for.
    pub fn names(&self) -> CertificateNames {
        let mut names = CertificateNames {
            dns: vec![
                "localhost".to_owned(),
                "control.meshwright-system.svc".to_owned(),
                "control.meshwright-system.svc.cluster.local".to_owned(),
            ],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)],
        };
        let more = [self.bridge_address, Some(self.listen.ip()).filter(|ip| !ip.is_unspecified())];
        names.addresses.extend(more.into_iter().flatten());
        for name in &self.names {
            match name.parse() {
                Ok(address) => names.addresses.push(address),
                Err(_) => names.dns.push(name.clone()),
            }
        }
        names.addresses.sort();
        names.addresses.dedup();
        names
    }
}

fn folder(config: &Path) -> anyhow::Result<PathBuf> {
    let folder = config.canonicalize().with_context(|| format!("cannot read the folder of manifests {}", config.display()))?;
    if !folder.is_dir() {
        bail!("--config {}: not a folder", config.display());
    }
    Ok(folder)
}

/// As OpenTelemetry's specification spells it; empty: the default.
fn otlp_protocol(text: &str) -> Result<OtlpProtocol, String> {
    match text {
        "grpc" | "" => Ok(OtlpProtocol::Grpc),
        "http/protobuf" => Ok(OtlpProtocol::Http),
        _ => Err(format!("`{text}` is not spoken; give `grpc` or `http/protobuf`")),
    }
}

/// Plaintext leaves no machine.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("`{text}` is not ADDR:PORT; write for example 127.0.0.1:15010"))?;
    if !address.ip().is_loopback() {
        return Err(format!("only a loopback address may serve xDS without TLS; use 127.0.0.1:{} or [::1]:{0}", address.port()));
    }
    Ok(address)
}

fn pick(flag: &str, given: &[IpNet], ranges: &mut (ipnet::Ipv4Net, ipnet::Ipv6Net)) -> anyhow::Result<()> {
    let families = (given.iter().filter(|net| net.addr().is_ipv4()).count(), given.iter().filter(|net| net.addr().is_ipv6()).count());
    if families.0 > 1 || families.1 > 1 {
        let why = format!("{flag}: give one range per family, such as `{flag} 10.96.0.0/12,fd00:6d77::/108`\n");
        return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, why).into());
    }
    for net in given {
        match net {
            IpNet::V4(net) => ranges.0 = net.trunc(),
            IpNet::V6(net) => ranges.1 = net.trunc(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ControlArgs,
    }

    fn parse(flags: &[&str]) -> ControlArgs {
        try_parse(flags).unwrap()
    }

    fn try_parse(flags: &[&str]) -> Result<ControlArgs, clap::Error> {
        Ok(Cli::try_parse_from([&["control", "--config", "."], flags].concat())?.args)
    }

    #[test]
    fn plaintext_is_loopback_only() {
        // Aim: the flag alone means the contract's port; any other machine's address is refused.
        assert_eq!(parse(&[]).plaintext_xds, None);
        assert_eq!(parse(&["--plaintext-xds"]).plaintext_xds, Some("127.0.0.1:15010".parse().unwrap()));
        assert!(try_parse(&["--plaintext-xds=0.0.0.0:15010"]).unwrap_err().to_string().contains("loopback"));
    }

    #[test]
    fn objects_come_from_a_folder_a_cluster_or_both() {
        // Aim: one of the two must be named; what is named must have been read before anything is published, and in a cluster no range is
        // the mesh's own unless it is named.
        let origins = |flags: &[&str]| {
            let args = Cli::try_parse_from([&["control"], flags].concat()).map_err(|error| error.to_string())?.args;
            let world = args.world().map_err(|error| error.to_string())?;
            Ok::<_, String>((world.origins.into_iter().map(Origin::text).collect::<Vec<_>>().join(" "), world.in_cluster))
        };
        assert_eq!(origins(&["--config", "."]), Ok(("Folder".to_owned(), false)));
        assert_eq!(origins(&["--kubernetes"]), Ok(("Cluster".to_owned(), true)));
        assert_eq!(origins(&["--kubernetes", "--config", "."]), Ok(("Cluster Folder".to_owned(), true)));
        assert!(origins(&[]).unwrap_err().contains("--config"));
        let ranges = |flags: &[&str]| parse(flags).world().unwrap().mesh_ranges().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ranges(&["--kubernetes"]), Vec::<String>::new());
        assert_eq!(ranges(&["--kubernetes", "--service-cidr", "10.32.0.1/16"]), ["10.32.0.0/16"]);
        assert_eq!(ranges(&[]).len(), 4);
    }

    #[test]
    fn spans_travel_as_the_environment_says() {
        // Aim: both spellings are known, an empty variable says nothing, and what is not spoken is refused by name.
        let otlp = |flags: &[&str]| parse(flags).world().unwrap().otlp.map(|otlp| (otlp.endpoint, otlp.protocol));
        assert_eq!(otlp(&[]), None);
        let http = |endpoint: &str| Some((endpoint.to_owned(), OtlpProtocol::Http));
        assert_eq!(otlp(&["--otlp-endpoint", "http://c:4318", "--otlp-protocol", "http/protobuf"]), http("http://c:4318"));
        assert_eq!(otlp(&["--otlp-endpoint", "", "--otlp-protocol", ""]), None);
        assert!(try_parse(&["--otlp-protocol", "http/json"]).unwrap_err().to_string().contains("http/protobuf"));
    }

    #[test]
    fn ranges_move_one_family_or_both() {
        // Aim: a range given replaces that family's default; two of one family are refused.
        let world = parse(&["--service-cidr", "10.200.0.0/16", "--instance-cidr", "10.78.0.0/16,fd01::/64"]).world().unwrap();
        assert_eq!(world.ranges.services.0.to_string(), "10.200.0.0/16");
        assert_eq!(world.ranges.services.1, Ranges::default().services.1);
        assert_eq!(world.ranges.instances.1.to_string(), "fd01::/64");
        assert!(parse(&["--service-cidr", "10.0.0.0/16,10.1.0.0/16"]).world().is_err());
    }

    #[test]
    fn the_certificate_names_where_we_are() {
        // Aim: listening address, bridge and asked-for names are on it, once each.
        let names =
            parse(&["--listen", "10.77.0.1:15012", "--bridge-address", "10.77.0.1", "--name", "control.example.com", "--name", "::2"])
                .names();
        for address in ["10.77.0.1", "::2"] {
            assert_eq!(names.addresses.iter().filter(|known| known.to_string() == address).count(), 1, "{address}");
        }
        assert_eq!(names.dns.iter().filter(|name| *name == "control.example.com").count(), 1);
    }
}
