//! `meshwright up`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::duration;
use crate::netns::ranges::Ranges;
use crate::output::TextOrJson;
use crate::up::{self, UpSettings};

/// Where plaintext xDS listens unless told otherwise.
const PLAINTEXT_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15010);

/// Arguments of `meshwright up`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright up examples/shop\n  \
    Runs until Ctrl-C, which removes everything within 10 s; certificate authority, epochs and applied objects stay in the state directory.")]
pub(crate) struct UpArgs {
    /// Folder of manifests [default: the shop that this program carries].
    dir: Option<PathBuf>,
    /// Starts over: forgets certificate authority, epochs and applied objects.
    #[arg(long)]
    fresh: bool,
    /// Uses a user namespace instead of root's rights; chosen by itself when not root.
    #[arg(long)]
    rootless: bool,
    /// Ends by itself after this time, counted from the start.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    exit_after: Option<Duration>,
    /// Parts that die stay dead.
    #[arg(long)]
    no_restart: bool,
    /// Serves xDS without TLS on this loopback address of the host.
    #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:15010", value_parser = loopback)]
    plaintext_xds: Option<SocketAddr>,
    /// Lets workloads reach addresses outside the mesh (TCP, and DNS by the host's resolvers); otherwise no route leaves it.
    #[arg(long)]
    nat: bool,
    /// `json`: one line per event.
    #[arg(short, long, value_enum, default_value_t)]
    output: TextOrJson,
    /// Ranges of instances' addresses, one per family [default: 10.77.0.0/16,fd00:6d77:77::/64]
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    instance_cidr: Vec<IpNet>,
    /// Ranges of Services' virtual addresses, one per family [default: 10.96.0.0/12,fd00:6d77::/108]
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("`{text}` is not a loopback address; write for example {PLAINTEXT_DEFAULT}");
    let address: SocketAddr = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(PLAINTEXT_DEFAULT.ip(), port),
        Err(_) => text.parse().map_err(|_| wrong())?,
    };
    if address.ip().is_loopback() { Ok(address) } else { Err(wrong()) }
}

pub(crate) fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    up::run(UpSettings {
        folder: args.dir,
        fresh: args.fresh,
        rootless: args.rootless,
        exit_after: args.exit_after,
        no_restart: args.no_restart,
        plaintext_xds: args.plaintext_xds,
        nat: args.nat,
        json: args.output == TextOrJson::Json,
        ranges: Ranges::default().moved(&args.instance_cidr, &args.service_cidr)?,
    })
}
