//! `meshwright echo`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;

use crate::duration;
use crate::echo::{self, Answerer, CallRule, EchoSettings, Habit};
use crate::output;

/// Port of plain HTTP where no port of any kind is given.
const HTTP_PORT_DEFAULT: u16 = 8080;

/// Arguments of `meshwright echo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshwright echo --http 8080
  meshwright echo --http 8080 --call http://catalog.shop --call /buy=grpc://checkout.shop:9090
  meshwright echo --http 8080 --delay 300ms --fail 30%
  meshwright echo --tcp 7000 --tcp-greeting '220 store ready\\r\\n'
A request may wish for its answer: ?status=503&delay=200ms&fail=10%&bytes=1024. /healthz always answers 200.")]
pub(crate) struct EchoArgs {
    /// Serve HTTP/1.1, HTTP/2, gRPC and WebSocket on this port; 8080 where no port is given at all
    #[arg(long, value_name = "PORT")]
    http: Vec<u16>,
    /// Serve gRPC (`meshwright.echo.v1.Echo`) on this port; the same service as --http
    #[arg(long, value_name = "PORT")]
    grpc: Vec<u16>,
    /// Send every byte back on this port
    #[arg(long, value_name = "PORT")]
    tcp: Vec<u16>,
    /// What TCP clients hear before they have said anything; \r, \n, \t, \0 and \\ are understood
    #[arg(long, value_name = "TEXT", requires = "tcp", value_parser = echo::unescape)]
    tcp_greeting: Option<Bytes>,
    /// Call on before answering, and embed the answers: http://, http2://, grpc:// or tcp://; with PATH= only for paths below it
    #[arg(long, value_name = "[PATH=]URL", value_delimiter = ',', value_parser = echo::rule)]
    call: Vec<CallRule>,
    /// Wait so long before each HTTP answer, unless the request wishes for another delay
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration::parse)]
    delay: Duration,
    /// Answer this share of HTTP requests 503, unless the request wishes for another share or status
    #[arg(long, value_name = "PERCENT", value_parser = echo::percent)]
    fail: Option<f64>,
    /// Listen on this address only; default: every address of both families
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<IpAddr>,
    /// The workload's name in answers
    #[arg(long, env = "MESHWRIGHT_WORKLOAD", default_value = "echo")]
    name: String,
    /// The namespace in answers
    #[arg(long, env = "MESHWRIGHT_NAMESPACE", default_value = "default")]
    namespace: String,
    /// The instance in answers; default: the workload's name
    #[arg(long, env = "MESHWRIGHT_INSTANCE")]
    instance: Option<String>,
    // Not `version`: every command has that flag already.
    /// The version in answers
    #[arg(long = "as-version", env = "MESHWRIGHT_VERSION", value_name = "VERSION", default_value = "")]
    as_version: String,
}

pub(crate) fn run(args: EchoArgs) -> anyhow::Result<ExitCode> {
    let mut http = args.http;
    http.extend(args.grpc);
    if http.is_empty() && args.tcp.is_empty() {
        http.push(HTTP_PORT_DEFAULT);
    }
    let mut taken = BTreeSet::new();
    if let Some(port) = http.iter().chain(&args.tcp).find(|port| **port != 0 && !taken.insert(**port)) {
        return Err(output::usage(format!("port {port} is given twice; --http and --grpc are one service, give its port once")));
    }
    // A sidecar's environment names the workload with its namespace.
    let name = args.name.rsplit('/').next().unwrap_or_default().to_owned();
    let instance = args.instance.unwrap_or_else(|| name.clone());
    let settings = EchoSettings {
        who: Answerer { workload: name, namespace: args.namespace, instance, version: args.as_version },
        http,
        tcp: args.tcp,
        greeting: args.tcp_greeting.unwrap_or_default(),
        rules: args.call,
        habit: Habit { delay: args.delay, fail: args.fail },
        listen: args.listen,
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?
        .block_on(echo::serve(settings))?;
    Ok(ExitCode::SUCCESS)
}
