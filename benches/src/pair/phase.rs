//! What is measured: a phase, and the load that makes it. Pure.

use std::fmt;
use std::str::FromStr;

use crate::pair::spec::Target;

/// Kept connections of an open-loop phase.
const CONNECTIONS: u32 = 50;
/// Kept connections of the saturated phase.
const CONNECTIONS_SATURATED: u32 = 64;
/// Streams at a time over the one HTTP/2 connection.
const STREAMS: u32 = 100;
/// New connections under way at most.
const CONCURRENT: u32 = 200;
/// New connections under way when saturated.
const CONCURRENT_SATURATED: u32 = 32;
/// Body of HTTP/2 and gRPC exchanges, bytes each way.
const BODY_BYTES: u32 = 1024;

/// Kind of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// HTTP/1.1 GET of 1 KiB over kept connections, open loop.
    Rate,
    /// HTTP/2, one connection, POST of 1 KiB answered by 1 KiB, open loop.
    H2Rate,
    /// gRPC unary calls, as `H2Rate`.
    Grpc,
    /// HTTP/1.1, closed loop.
    Sat,
    /// HTTP/2, closed loop.
    H2Sat,
    /// Downloads one after the other over one connection.
    Bulk,
    /// New HTTP connections per second, one request each.
    Conn,
    /// New HTTP connections, closed loop.
    ConnSat,
    /// Echo over kept opaque TCP connections, open loop.
    Tcp,
    /// New opaque TCP connections per second, one echo each.
    TcpConn,
    /// Idle HTTP connections held: memory each.
    Idle,
    /// Idle opaque TCP connections held: memory each.
    TcpIdle,
    /// Memory of proxies that have just started.
    Mem,
    /// Memory of a proxy per route of a service it uses.
    Routes,
    /// Memory of a proxy per service it does not use.
    Services,
}

/// One line per kind: its word, the number behind it if it has one (and what stands for it when left out), what it says.
const KINDS: [(Kind, &str, Option<u32>, &str); 15] = [
    (Kind::Mem, "mem", None, "memory, fresh"),
    (Kind::Idle, "idle", Some(1000), "memory per idle HTTP connection"),
    (Kind::TcpIdle, "tcpidle", Some(1000), "memory per idle opaque TCP connection"),
    (Kind::Routes, "routes", Some(1000), "memory per route in use"),
    (Kind::Services, "services", Some(1000), "memory per service not used"),
    (Kind::Rate, "rate", Some(4000), "HTTP/1.1 requests/s, open loop"),
    (Kind::H2Rate, "h2rate", Some(4000), "HTTP/2 requests/s, open loop"),
    (Kind::Grpc, "grpc", Some(4000), "gRPC calls/s, open loop"),
    (Kind::Sat, "sat", None, "HTTP/1.1 saturated"),
    (Kind::H2Sat, "h2sat", None, "HTTP/2 saturated"),
    (Kind::Bulk, "bulk", None, "downloads"),
    (Kind::Conn, "conn", Some(500), "new HTTP connections/s"),
    (Kind::ConnSat, "connsat", None, "new HTTP connections saturated"),
    (Kind::Tcp, "tcp", Some(4000), "echoes/s over kept TCP connections"),
    (Kind::TcpConn, "tcpconn", Some(500), "new opaque TCP connections/s"),
];

/// A phase: its kind, and its rate or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Phase {
    /// What is done.
    pub(super) kind: Kind,
    /// Per second, or how many; none where the kind has no number.
    pub(super) number: Option<u32>,
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, number) = text.split_once(':').map_or((text, None), |(word, number)| (word, Some(number)));
        let known = || KINDS.map(|(_, word, default, _)| if default.is_some() { format!("{word}:N") } else { word.to_owned() }).join(", ");
        let Some((kind, _, default, _)) = KINDS.iter().find(|(_, known, _, _)| *known == word) else {
            return Err(format!("no phase `{text}`; there are {}", known()));
        };
        let number = match (number, default) {
            (None, default) => *default,
            (Some(_), None) => return Err(format!("phase `{word}` has no number")),
            (Some(number), Some(_)) => match number.parse() {
                Ok(number) if number > 0 => Some(number),
                _ => return Err(format!("`{number}` in phase `{text}` is not a whole number above 0")),
            },
        };
        Ok(Self { kind: *kind, number })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.row().1;
        match self.number {
            Some(number) => write!(f, "{word}:{number}"),
            None => f.write_str(word),
        }
    }
}

impl serde::Serialize for Phase {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a phase's figures are per.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A request, call or echo.
    Request,
    /// A new connection.
    Connection,
    /// 10⁹ bytes.
    Gigabyte,
    /// Nothing: memory.
    Memory,
}

impl Phase {
    fn row(&self) -> &'static (Kind, &'static str, Option<u32>, &'static str) {
        KINDS.iter().find(|(kind, ..)| *kind == self.kind).unwrap_or(&KINDS[0])
    }

    /// What it is, in words.
    pub(super) fn about(&self) -> &'static str {
        self.row().3
    }

    /// What its figures are per.
    pub(super) fn unit(&self) -> Unit {
        match self.kind {
            Kind::Mem | Kind::Idle | Kind::TcpIdle | Kind::Routes | Kind::Services => Unit::Memory,
            Kind::Bulk => Unit::Gigabyte,
            Kind::Conn | Kind::ConnSat | Kind::TcpConn => Unit::Connection,
            _ => Unit::Request,
        }
    }

    /// Whether it needs proxies that did nothing before: what an allocator kept from earlier load hides what connections take.
    pub(super) fn wants_fresh(&self) -> bool {
        self.unit() == Unit::Memory
    }

    /// Whether direct traffic, without a proxy, has a figure here.
    pub(super) fn has_direct(&self) -> bool {
        self.unit() != Unit::Memory
    }

    /// Where its load goes at a topology: none where the topology does not speak the protocol, or where there is no load.
    pub(super) fn destination<'a>(&self, target: &'a Target) -> Option<&'a str> {
        match self.kind {
            Kind::Mem | Kind::Routes | Kind::Services => None,
            Kind::H2Rate | Kind::H2Sat => target.h2.as_deref(),
            Kind::Grpc => target.grpc.as_deref().or(target.h2.as_deref()),
            Kind::Tcp | Kind::TcpConn | Kind::TcpIdle => target.tcp.as_deref(),
            _ => target.h1.as_deref(),
        }
    }

    /// Arguments of `benches load` for the phase; `to` is a base like `http://10.0.0.1:80`.
    pub(super) fn load(&self, to: &str, warm_secs: f64, secs: f64) -> Vec<String> {
        let (protocol, path, mode) = match self.kind {
            Kind::Rate => ("h1", "/1k", "rate"),
            Kind::H2Rate => ("h2", "/1k", "rate"),
            Kind::Grpc => ("grpc", "/bench.Echo/Unary", "rate"),
            Kind::Sat => ("h1", "/1k", "closed"),
            Kind::H2Sat => ("h2", "/1k", "closed"),
            Kind::Bulk => ("h1", "/bulk", "bulk"),
            Kind::Conn | Kind::ConnSat => ("h1", "/1k", "connections"),
            Kind::Tcp => ("tcp", "", "rate"),
            Kind::TcpConn => ("tcp", "", "connections"),
            Kind::TcpIdle => ("tcp", "", "hold"),
            Kind::Idle | Kind::Mem | Kind::Routes | Kind::Services => ("h1", "/1k", "hold"),
        };
        // Bytes have no URL.
        let to = if protocol == "tcp" { to.trim_start_matches("http://") } else { to };
        let mut args: Vec<String> = ["--protocol", protocol, "--to", &format!("{to}{path}"), "--mode", mode].map(str::to_owned).into();
        let mut option = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        match (self.kind, self.number) {
            (Kind::Idle | Kind::TcpIdle, Some(number)) => option("connections", number.to_string()),
            (_, Some(rate)) => option("rate", rate.to_string()),
            _ => {}
        }
        match self.kind {
            Kind::Rate | Kind::Tcp => option("connections", CONNECTIONS.to_string()),
            Kind::Sat => option("connections", CONNECTIONS_SATURATED.to_string()),
            Kind::H2Rate | Kind::H2Sat | Kind::Grpc => {
                option("connections", "1".to_owned());
                option("streams", STREAMS.to_string());
            }
            Kind::Bulk => option("connections", "1".to_owned()),
            Kind::Conn | Kind::TcpConn => option("concurrent", CONCURRENT.to_string()),
            Kind::ConnSat => option("concurrent", CONCURRENT_SATURATED.to_string()),
            Kind::Idle | Kind::TcpIdle | Kind::Mem | Kind::Routes | Kind::Services => {}
        }
        if matches!(self.kind, Kind::H2Rate | Kind::H2Sat | Kind::Grpc) {
            option("body-bytes", BODY_BYTES.to_string());
        }
        option("warm-secs", warm_secs.to_string());
        option("secs", secs.to_string());
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: phases read and print the same way, numbers have defaults, and what is wrong is named.
    #[test]
    fn phases_are_read() {
        for (text, printed) in
            [("rate:1000", "rate:1000"), ("rate", "rate:4000"), ("sat", "sat"), ("tcpconn:7", "tcpconn:7"), ("idle", "idle:1000")]
        {
            assert_eq!(text.parse::<Phase>().unwrap().to_string(), printed);
        }
        for (text, word) in
            [("rat:1", "no phase `rat:1`; there are mem, idle:N"), ("sat:3", "no number"), ("rate:x", "`x`"), ("rate:0", "above 0")]
        {
            assert!(text.parse::<Phase>().unwrap_err().contains(word), "{text}");
        }
    }

    /// Aim: each phase asks the load generator for the work it names.
    #[test]
    fn phases_become_load() {
        for (text, expected) in [
            ("rate:4000", "--protocol h1 --to http://a:1/1k --mode rate --rate 4000 --connections 50 --warm-secs 0.5 --secs 2"),
            ("sat", "--protocol h1 --to http://a:1/1k --mode closed --connections 64 --warm-secs 0.5 --secs 2"),
            (
                "grpc:9",
                "--protocol grpc --to http://a:1/bench.Echo/Unary --mode rate --rate 9 --connections 1 --streams 100 --body-bytes 1024 --warm-secs 0.5 --secs 2",
            ),
            ("bulk", "--protocol h1 --to http://a:1/bulk --mode bulk --connections 1 --warm-secs 0.5 --secs 2"),
            ("tcpconn:5", "--protocol tcp --to a:1 --mode connections --rate 5 --concurrent 200 --warm-secs 0.5 --secs 2"),
            ("connsat", "--protocol h1 --to http://a:1/1k --mode connections --concurrent 32 --warm-secs 0.5 --secs 2"),
            ("idle:10", "--protocol h1 --to http://a:1/1k --mode hold --connections 10 --warm-secs 0.5 --secs 2"),
        ] {
            assert_eq!(text.parse::<Phase>().unwrap().load("http://a:1", 0.5, 2.0).join(" "), expected);
        }
    }

    /// Aim: gRPC falls back to the HTTP/2 target, and a protocol without target leaves the topology out.
    #[test]
    fn destinations_follow_the_protocol() {
        let target = Target { h1: Some("1".into()), h2: Some("2".into()), grpc: None, tcp: None };
        let of = |text: &str| text.parse::<Phase>().unwrap().destination(&target).map(str::to_owned);
        assert_eq!(
            [of("sat"), of("grpc"), of("h2sat"), of("tcp"), of("mem")],
            [Some("1".into()), Some("2".into()), Some("2".into()), None, None]
        );
    }
}
