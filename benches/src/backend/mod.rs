//! The application at the end of the road: cheap, and the same for all that are compared.
//!
//! HTTP/1.1 and HTTP/2: `GET /1k` is 1 KiB, `GET /bulk` is 100 MiB, every `POST` is given back when it is whole. gRPC:
//! `/bench.Echo/Unary` gives the message back. Raw TCP gives every byte back.

mod echo;
mod http;

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};

use crate::sockets;

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
    sockets::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for the backend")?;
    runtime.block_on(async {
        let listen = |port: u16| sockets::listen(SocketAddr::new(args.listen, port));
        let (h1, h2, tcp) = (listen(args.h1_port)?, listen(args.h2_port)?, listen(args.tcp_port)?);
        serve(h1, h2, tcp).await;
        Ok(())
    })
}

/// Serves HTTP/1.1, HTTP/2 and raw bytes on three listeners, for ever; dropping the future stops accepting.
pub async fn serve(h1: TcpListener, h2: TcpListener, tcp: TcpListener) {
    tokio::join!(accept(h1, http::serve_h1), accept(h2, http::serve_h2), accept(tcp, echo::serve));
}

async fn accept<F>(listener: TcpListener, serve: fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let stream = sockets::accept(&listener).await;
        tokio::spawn(serve(stream));
    }
}
