//! The application at the end of the road: cheap, and the same for all that are compared.

use std::net::IpAddr;

/// Arguments of `benches backend`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub listen: IpAddr,
    /// Port for HTTP/1.1.
    #[arg(long, default_value_t = 8080)]
    pub h1_port: u16,
    /// Port for HTTP/2 in the clear, and gRPC.
    #[arg(long, default_value_t = 8081)]
    pub h2_port: u16,
    /// Port that echoes bytes.
    #[arg(long, default_value_t = 8082)]
    pub tcp_port: u16,
}

/// Serves until it is ended.
///
/// # Errors
/// A port cannot be listened on.
pub fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("{} is not there yet", args.listen)
}
