//! The floor: forwarders that do what a sidecar pair cannot do without, and nothing else.
//!
//! Requests (modes `h1`, `h2`) pass hyper on both sides and a pool of connections between; bytes (`splice`, `tls`) pass as they come.
//! No routing, no metrics, no policy, no retry: what a proxy costs above this is its own.

mod bytes;
mod convert;
mod requests;
mod tls;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::sockets;
use tls::{Dial, Files};
use upstream::Upstream;

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
    /// Protocol that TLS agrees on (ALPN); by default none is offered.
    #[arg(long)]
    pub alpn: Option<String>,
    /// Client side: no session is resumed, every handshake is a full one.
    #[arg(long)]
    pub full_handshakes: bool,
    /// Server side: callers need no certificate, as at an edge.
    #[arg(long)]
    pub anonymous: bool,
}

/// Forwards until it is ended.
///
/// # Errors
/// The certificates cannot be used, or the address not be listened on.
pub fn run(args: Args) -> anyhow::Result<()> {
    sockets::raise_open_files();
    let floor = Floor::new(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for the floor")?;
    runtime.block_on(async {
        floor.serve(sockets::listen(args.listen)?).await;
        Ok(())
    })
}

/// One forwarder, ready to serve.
pub struct Floor {
    way: Way,
}

/// What it does with a connection.
#[derive(Clone)]
enum Way {
    /// Requests from plaintext to mTLS.
    Out { downstream: Option<Http>, to: Arc<Upstream> },
    /// Requests from mTLS to plaintext.
    In { acceptor: TlsAcceptor, between: Http, to: Arc<Upstream> },
    /// Bytes as they are.
    Splice { to: SocketAddr },
    /// Bytes from plaintext to mTLS.
    Seal { to: SocketAddr, dial: Dial },
    /// Bytes from mTLS to plaintext.
    Open { to: SocketAddr, acceptor: TlsAcceptor },
}

impl Floor {
    /// As `args` say; nothing is opened yet.
    ///
    /// # Errors
    /// Certificates, key or roots cannot be used.
    pub fn new(args: &Args) -> anyhow::Result<Self> {
        let to = args.to;
        let between = match args.mode {
            Mode::Splice => return Ok(Self { way: Way::Splice { to } }),
            Mode::H1 => Some(Http::H1),
            Mode::H2 => Some(Http::H2),
            Mode::Tls => None,
        };
        let files = Files::of(args)?;
        let way = match (args.side, between) {
            (Side::Client, None) => Way::Seal { to, dial: files.dial(args)? },
            (Side::Server, None) => Way::Open { to, acceptor: files.acceptor(args)? },
            (Side::Client, Some(between)) => {
                Way::Out { downstream: args.downstream, to: Arc::new(Upstream::new(to, between, Some(files.dial(args)?))) }
            }
            (Side::Server, Some(between)) => {
                Way::In { acceptor: files.acceptor(args)?, between, to: Arc::new(Upstream::new(to, args.upstream, None)) }
            }
        };
        Ok(Self { way })
    }

    /// Forwards what comes to `listener`, for ever. Dropping the future stops accepting.
    pub async fn serve(self, listener: TcpListener) {
        loop {
            let stream = sockets::accept(&listener).await;
            let way = self.way.clone();
            tokio::spawn(async move {
                if let Err(error) = way.carry(stream).await {
                    eprintln!("{error}");
                }
            });
        }
    }
}

impl Way {
    async fn carry(self, stream: TcpStream) -> io::Result<()> {
        match self {
            Self::Out { downstream, to } => {
                let http = match downstream {
                    Some(http) => http,
                    None => first_words(&stream).await?,
                };
                requests::serve(http, stream, to).await;
                Ok(())
            }
            Self::In { acceptor, between, to } => {
                requests::serve(between, acceptor.accept(stream).await?, to).await;
                Ok(())
            }
            Self::Splice { to } => bytes::splice(stream, sockets::connect(to).await?).await,
            Self::Seal { to, dial } => bytes::copy(stream, dial.open(sockets::connect(to).await?).await?).await,
            Self::Open { to, acceptor } => bytes::copy(acceptor.accept(stream).await?, sockets::connect(to).await?).await,
        }
    }
}

/// Which HTTP a client speaks: HTTP/2 begins with a fixed preface (RFC 9113, section 3.4), whose first bytes are no method of HTTP/1.1.
async fn first_words(stream: &TcpStream) -> io::Result<Http> {
    const PREFACE: &[u8] = b"PRI ";
    let mut words = [0; PREFACE.len()];
    let count = stream.peek(&mut words).await?;
    Ok(if count > 0 && words[..count] == PREFACE[..count] { Http::H2 } else { Http::H1 })
}
