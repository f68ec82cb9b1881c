//! `meshwright hook`: what a kubelet runs in a sidecar. A native one is told that its pod ends; one that is an ordinary container (Kubernetes
//! before 1.29) starts and ends with the application at once unless it is made to wait.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use proto::ports;

use crate::duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Longest wait for one answer of the sidecar.
const ANSWER: Duration = Duration::from_secs(1);
/// Shortest wait for the application's end: others hear of the pod's end meanwhile.
const LINGER_MIN: Duration = Duration::from_secs(5);
/// The sidecar's own ports below this one's hundred (contract, section 3).
const OWN_PORTS: std::ops::RangeInclusive<u16> = 15000..=15099;
/// `TCP_LISTEN`, as the kernel's tables write it.
const LISTEN: &str = "0A";

/// Arguments of `meshwright hook`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright hook started --timeout 120s")]
pub(crate) struct HookArgs {
    #[command(subcommand)]
    moment: Moment,
}

#[derive(Debug, Subcommand)]
enum Moment {
    /// Returns when the sidecar has its first epoch and certificate; the application starts then.
    #[command(after_help = "Example: meshwright hook started --timeout 120s")]
    Started(Bound),
    /// Returns when nothing in the pod listens any more but the sidecar, five seconds later at least; the sidecar ends then.
    #[command(after_help = "Example: meshwright hook ending --timeout 24s")]
    Ending(Bound),
    /// Tells the sidecar that the pod ends: it tells its callers, and goes on serving them.
    #[command(after_help = "Example: meshwright hook leaving")]
    Leaving,
}

#[derive(Debug, Args)]
struct Bound {
    /// Longest wait
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Duration,
}

pub(crate) fn run(args: HookArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    match args.moment {
        Moment::Started(Bound { timeout }) => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::HEALTH));
            while let Err(why) = asked(address, "GET /healthz/startup") {
                if begun.elapsed() >= timeout {
                    bail!(
                        "the sidecar has not started within {timeout:?}: {why}; its log says more (kubectl logs POD -c meshwright-proxy)"
                    );
                }
                std::thread::sleep(LOOK);
            }
        }
        Moment::Leaving => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::ADMIN));
            if let Err(why) = asked(address, "POST /parting") {
                bail!("the sidecar cannot be told that its pod ends: {why}");
            }
        }
        Moment::Ending(Bound { timeout }) => {
            let mut lingers = true;
            while lingers && begun.elapsed() < timeout {
                std::thread::sleep(LOOK.min(timeout));
                let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
                lingers = begun.elapsed() < LINGER_MIN || !listened_ports(&tables.concat()).is_empty();
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks one of the sidecar's pages, which says yes or why not.
fn asked(address: SocketAddr, page: &str) -> Result<(), String> {
    let asking = || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(format!("{page} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer: String = asking().map_err(|error: std::io::Error| error.to_string())?;
    match answer.split_once("\r\n\r\n") {
        Some((head, _)) if head.starts_with("HTTP/1.1 200") => Ok(()),
        Some((_, body)) => Err(body.trim().to_owned()),
        None => Err("it does not answer".to_owned()),
    }
}

/// Ports on which the application listens, by the kernel's tables.
fn listened_ports(tables: &str) -> BTreeSet<u16> {
    let listening = tables.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (state == LISTEN).then_some(port)
    });
    listening.filter(|port| !OWN_PORTS.contains(port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: what listens is what the application listens on; its open connections, and the sidecar's ports, do not count.
    #[test]
    fn the_application_is_what_listens() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n   \
            1: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 2 1\n   \
            2: 0100007F:1F91 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n";
        let six = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0 0\n";
        assert_eq!(listened_ports(&format!("{table}{six}")), [80, 8080].into());
        assert_eq!(listened_ports(""), [].into());
    }

    /// Aim: the sidecar's own word decides, and what is missing is passed on.
    #[test]
    fn a_page_is_asked() {
        for (answer, wanted) in [
            ("HTTP/1.1 200 OK\r\n\r\nok\n", Ok(())),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\nno certificate yet\n", Err("no certificate yet".to_owned())),
            ("", Err("it does not answer".to_owned())),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(asked(address, "GET /healthz/startup"), wanted);
            serving.join().unwrap();
        }
    }
}
