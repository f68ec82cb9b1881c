//! The arguments, made sense of once.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use http::Uri;
use http::uri::PathAndQuery;

use super::args::{Args, Mode, Protocol};

/// Most connections of one run.
pub(super) const CONNECTIONS_MAX: usize = 100_000;
/// Most streams at once on one connection.
pub(super) const STREAMS_MAX: usize = 10_000;
/// Highest rate, requests per second.
pub(super) const RATE_MAX: u64 = 10_000_000;
/// Biggest request body.
pub(super) const BODY_BYTES_MAX: usize = 64 << 20;
/// Most runtimes.
pub(super) const THREADS_MAX: usize = 64;

/// Bytes of a raw TCP request where the arguments name no size.
const TCP_BYTES: usize = 64;
/// The path of the backend's gRPC method.
const GRPC_PATH: &str = "/bench.Echo/Unary";

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address to dial.
    pub address: SocketAddr,
    /// Host header, or `:authority`.
    pub host: String,
    /// Path and query.
    pub path: String,
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is spoken.
    pub protocol: Protocol,
    /// How requests follow one another.
    pub mode: Mode,
    /// Where to.
    pub target: Target,
    /// Requests per second of an open loop; `None`: closed loop.
    pub rate: Option<u64>,
    /// Connections kept; with `fresh`, at once.
    pub connections: usize,
    /// Requests at once on each.
    pub streams: usize,
    /// Each request has a connection of its own.
    pub fresh: bool,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Load before counting.
    pub warm: Duration,
    /// Counting.
    pub counted: Duration,
    /// For one request.
    pub timeout: Duration,
    /// Runtimes.
    pub threads: usize,
}

impl Plan {
    /// Makes sense of `args`.
    ///
    /// # Errors
    /// They contradict one another or go beyond a limit.
    pub fn of(args: &Args) -> anyhow::Result<Self> {
        let fresh = args.mode == Mode::Connections;
        let streamed = matches!(args.protocol, Protocol::H2 | Protocol::Grpc);
        let connections = match (args.mode, args.connections) {
            (Mode::Connections, _) => args.concurrent,
            (Mode::Bulk, _) => 1,
            (_, Some(given)) => given,
            (Mode::Hold, None) => bail!("mode hold needs --connections, the number to keep open"),
            (_, None) if streamed => 1,
            (Mode::Closed, None) => CONNECTIONS_CLOSED,
            (_, None) => CONNECTIONS_OPEN,
        };
        let streams = if streamed && matches!(args.mode, Mode::Rate | Mode::Closed) { args.streams } else { 1 };
        let rate = match (args.mode, args.rate) {
            (Mode::Rate, None) => bail!("mode rate needs --rate, the requests per second"),
            (Mode::Hold, None) => Some(connections as u64),
            (Mode::Closed | Mode::Bulk, Some(_)) => bail!("mode {} is a closed loop and takes no --rate", args.mode.name()),
            (_, given) => given,
        };
        ensure!(rate.is_none_or(|rate| (1..=RATE_MAX).contains(&rate)), "--rate is 1 to {RATE_MAX}");
        ensure!((1..=CONNECTIONS_MAX).contains(&connections), "connections are 1 to {CONNECTIONS_MAX}");
        ensure!((1..=STREAMS_MAX).contains(&streams), "--streams is 1 to {STREAMS_MAX}");
        ensure!(args.body_bytes <= BODY_BYTES_MAX, "--body-bytes is at most {BODY_BYTES_MAX}");
        ensure!((1..=THREADS_MAX).contains(&args.threads), "--threads is 1 to {THREADS_MAX}");
        ensure!(args.threads <= connections, "{} threads cannot share {connections} connections", args.threads);
        let secs = |name: &str, secs: f64| Duration::try_from_secs_f64(secs).with_context(|| format!("{name} {secs}"));
        let counted = secs("--secs", args.secs)?;
        let timeout = secs("--timeout-secs", args.timeout_secs)?;
        ensure!(!counted.is_zero() && !timeout.is_zero(), "--secs and --timeout-secs are more than 0");
        let body_bytes = if args.protocol == Protocol::Tcp && args.body_bytes == 0 { TCP_BYTES } else { args.body_bytes };
        Ok(Self {
            protocol: args.protocol,
            mode: args.mode,
            target: target(args)?,
            rate,
            connections,
            streams,
            fresh,
            body_bytes,
            warm: secs("--warm-secs", args.warm_secs)?,
            counted,
            timeout,
            threads: args.threads,
        })
    }
}

/// As the reference rig: 50 in an open loop, 64 in a closed one.
const CONNECTIONS_OPEN: usize = 50;
const CONNECTIONS_CLOSED: usize = 64;

fn target(args: &Args) -> anyhow::Result<Target> {
    let to = &args.to;
    let given = |address: SocketAddr| args.host.clone().unwrap_or_else(|| address.to_string());
    if args.protocol == Protocol::Tcp {
        let address = to.parse().with_context(|| format!("--to {to}: for tcp this is IP:PORT"))?;
        return Ok(Target { address, host: given(address), path: String::new() });
    }
    let uri: Uri = to.parse().with_context(|| format!("--to {to}: this is http://IP:PORT/PATH"))?;
    ensure!(uri.scheme_str() == Some("http"), "--to {to}: only http:// is spoken; TLS is the proxies' part");
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse().with_context(|| format!("--to {to}: the host is an IP address; a name goes into --host"))?;
    let address = SocketAddr::new(ip, uri.port_u16().unwrap_or(80));
    let path = match uri.path_and_query().map_or("/", PathAndQuery::as_str) {
        "/" if args.protocol == Protocol::Grpc => GRPC_PATH,
        path => path,
    };
    Ok(Target { address, host: given(address), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> anyhow::Result<Plan> {
        Plan::of(&Line::try_parse_from(format!("load {line}").split(' ')).unwrap().args)
    }

    #[test]
    fn each_protocol_and_mode_has_its_usual_shape() {
        // Aim: the defaults are those of the reference rig, and a closed loop has no rate.
        let shape = |line| plan(line).map(|plan| (plan.connections, plan.streams, plan.rate)).unwrap();
        assert_eq!(shape("--protocol h1 --to http://10.0.0.1:80/1k --rate 1000"), (50, 1, Some(1000)));
        assert_eq!(shape("--protocol h1 --to http://10.0.0.1/1k --mode closed"), (64, 1, None));
        assert_eq!(shape("--protocol grpc --to http://10.0.0.1:81 --rate 4000"), (1, 100, Some(4000)));
        assert_eq!(shape("--protocol h2 --to http://10.0.0.1:81/ --mode hold --connections 1000"), (1000, 1, Some(1000)));
        assert_eq!(shape("--protocol tcp --to 10.0.0.1:82 --mode connections"), (32, 1, None));
        assert_eq!(shape("--protocol h1 --to http://10.0.0.1/bulk --mode bulk"), (1, 1, None));
    }

    #[test]
    fn targets_are_addresses() {
        // Aim: what is dialled is an address; the name in the header is a separate matter.
        let target = |line| plan(line).unwrap().target;
        let grpc = target("--protocol grpc --to http://[::1]:81 --rate 1 --host echo.shop");
        assert_eq!((grpc.address.to_string().as_str(), grpc.host.as_str(), grpc.path.as_str()), ("[::1]:81", "echo.shop", GRPC_PATH));
        assert_eq!(target("--protocol h1 --to http://10.0.0.1/a?b=c --rate 1").path, "/a?b=c");
        for bad in ["h1 --to http://name/", "h1 --to https://10.0.0.1/", "tcp --to http://10.0.0.1/", "h1 --to nonsense"] {
            assert!(plan(&format!("--protocol {bad} --rate 1")).is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        // Aim: an argument that would have no effect, or none that can be carried out, is refused.
        for (line, word) in [
            ("--mode rate", "--rate"),
            ("--mode closed --rate 5", "--rate"),
            ("--mode hold", "--connections"),
            ("--rate 5 --threads 4 --connections 2", "share"),
            ("--rate 5 --secs 0", "--secs"),
            ("--rate 0", "--rate"),
        ] {
            let error = plan(&format!("--protocol h1 --to http://10.0.0.1/ {line}")).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
