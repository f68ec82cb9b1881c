//! The floor: forwarders that do what a sidecar pair cannot do without, and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;

/// Which half of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// Beside the caller: plaintext in, mTLS out.
    Client,
    /// Beside the callee: mTLS in, plaintext out.
    Server,
}

/// What goes between the two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// HTTP/1.1 over mTLS, connections kept in a pool.
    H1,
    /// HTTP/2 over mTLS, one connection.
    H2,
    /// Bytes, without TLS.
    Splice,
    /// Bytes over mTLS, one connection for each that comes in.
    Tls,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Http {
    /// HTTP/1.1.
    H1,
    /// HTTP/2, in the clear with prior knowledge.
    H2,
}

/// Arguments of `benches floor`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which half of the pair this is.
    #[arg(long, value_enum)]
    pub side: Side,
    /// What goes between the two halves.
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// Where to listen.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where to forward to.
    #[arg(long)]
    pub to: SocketAddr,
    /// Certificate chain, PEM, leaf first. Modes h1, h2 and tls.
    #[arg(long)]
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long)]
    pub key: Option<PathBuf>,
    /// Roots the peer's certificate must lead to, PEM.
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Name that the server's certificate must have, sent as SNI.
    #[arg(long, default_value = "server.bench")]
    pub name: String,
    /// Client side: what the caller speaks; by default the first bytes of each connection tell.
    #[arg(long, value_enum)]
    pub downstream: Option<Http>,
    /// Server side: what the callee speaks.
    #[arg(long, value_enum, default_value_t = Http::H1)]
    pub upstream: Http,
    /// Offer the hybrid key exchange X25519MLKEM768 first, as our own proxies do, instead of X25519.
    #[arg(long)]
    pub post_quantum: bool,
}

/// Forwards until it is ended.
///
/// # Errors
/// The certificates cannot be used, or the address not be listened on.
pub fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("{} is not there yet", args.listen)
}
