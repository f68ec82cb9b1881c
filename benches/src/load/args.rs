//! What `benches load` is told.

use clap::ValueEnum;

/// What is spoken to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 in the clear, with prior knowledge.
    H2,
    /// A unary gRPC call that echoes, over `h2`.
    Grpc,
    /// 64 bytes there, 64 bytes back.
    Tcp,
}

impl Protocol {
    /// As in arguments and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// How requests follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Open loop on kept connections: each request is due at its time, whatever became of the others.
    Rate,
    /// Closed loop on kept connections: as many as the other side takes.
    Closed,
    /// Closed loop, one request at a time on one connection: for big bodies.
    Bulk,
    /// A new connection for every request; open loop with --rate, closed loop without.
    Connections,
    /// Many open connections, one request per second each: for memory.
    Hold,
}

impl Mode {
    /// As in arguments and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Closed => "closed",
            Self::Bulk => "bulk",
            Self::Connections => "connections",
            Self::Hold => "hold",
        }
    }
}

/// Arguments of `benches load`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to speak.
    #[arg(long, value_enum)]
    pub protocol: Protocol,
    /// Where to: http://IP:PORT/PATH, or IP:PORT for tcp.
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Name in the host header (:authority); the address of --to by default.
    #[arg(long)]
    pub host: Option<String>,
    /// How requests follow one another.
    #[arg(long, value_enum, default_value_t = Mode::Rate)]
    pub mode: Mode,
    /// Requests per second of an open loop, in all.
    #[arg(long, value_name = "PER_SEC")]
    pub rate: Option<u64>,
    /// Kept connections [default: h1 and tcp 50, closed 64; h2 and grpc 1].
    #[arg(long)]
    pub connections: Option<usize>,
    /// Requests at once on each HTTP/2 connection.
    #[arg(long, default_value_t = 100)]
    pub streams: usize,
    /// Connections at once in mode connections.
    #[arg(long, default_value_t = 32)]
    pub concurrent: usize,
    /// Send a body of this many bytes (HTTP: as POST); 0: none. A gRPC message always has one.
    #[arg(long, default_value_t = 0)]
    pub body_bytes: usize,
    /// Seconds of load before counting starts.
    #[arg(long, default_value_t = 1.0)]
    pub warm_secs: f64,
    /// Seconds that count.
    #[arg(long, default_value_t = 5.0)]
    pub secs: f64,
    /// A request without its whole answer after this many seconds has failed.
    #[arg(long, default_value_t = 10.0)]
    pub timeout_secs: f64,
    /// Runtimes, each with its share of the connections on a thread of its own.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}
