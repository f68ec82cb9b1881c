//! `meshwright intercept`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use proxy::dns::{RESOLV_CONF, nameservers};
use proxy::intercept::{self, EXEMPT_UID, Families, Interception};

/// Arguments of `meshwright intercept`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright intercept install --exclude-outbound-ports 22,5432\n  \
    Redirects this network namespace to a sidecar that runs as uid 1337.")]
pub(crate) struct InterceptArgs {
    #[command(subcommand)]
    action: InterceptAction,
}

#[derive(Debug, Subcommand)]
enum InterceptAction {
    /// Installs the rules, replacing earlier ones in one transaction.
    #[command(after_help = "Example: meshwright intercept install --exempt-mark 0x6d77")]
    Install(Rules),
    /// Says what is missing and exits with 1, or exits with 0. Takes the same flags as `install`.
    #[command(after_help = "Example: meshwright intercept verify")]
    Verify(Rules),
    /// Removes the rules.
    #[command(after_help = "Example: meshwright intercept remove")]
    Remove,
}

#[derive(Debug, Args)]
struct Rules {
    /// Traffic of this uid is left alone [default: 1337 unless --exempt-mark is given].
    #[arg(long, value_name = "UID")]
    exempt_uid: Option<u32>,
    /// Traffic of sockets with this mark (SO_MARK, decimal or 0x…) is left alone.
    #[arg(long, value_name = "MARK", value_parser = mark)]
    exempt_mark: Option<u32>,
    /// TCP ports that leave untouched.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    /// TCP ports that arrive untouched.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_inbound_ports: Vec<u16>,
    /// Destinations that leave untouched.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Which address families are redirected.
    #[arg(long, value_enum, default_value_t = AddressFamilies::Both)]
    family: AddressFamilies,
    /// Resolvers whose port 53 is answered by the sidecar [default: those of /etc/resolv.conf].
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    resolvers: Vec<IpAddr>,
    /// Leaves DNS questions alone.
    #[arg(long, conflicts_with = "resolvers")]
    keep_dns: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AddressFamilies {
    Both,
    Ipv4,
    Ipv6,
}

impl Rules {
    fn plan(self, resolv_conf: &str) -> Interception {
        let mut resolvers = self.resolvers;
        if resolvers.is_empty() && !self.keep_dns {
            resolvers.extend(nameservers(resolv_conf).iter().map(SocketAddr::ip));
        }
        if resolvers.is_empty() && !self.keep_dns {
            // resolv.conf(5): without a line the resolver on this machine is asked.
            resolvers.push(Ipv4Addr::LOCALHOST.into());
        }
        Interception {
            exempt_uid: self.exempt_uid.or(self.exempt_mark.is_none().then_some(EXEMPT_UID)),
            exempt_mark: self.exempt_mark,
            exclude_outbound_ports: self.exclude_outbound_ports.into_iter().collect(),
            exclude_inbound_ports: self.exclude_inbound_ports.into_iter().collect(),
            exclude_outbound_cidrs: self.exclude_outbound_cidrs,
            families: match self.family {
                AddressFamilies::Both => Families::Both,
                AddressFamilies::Ipv4 => Families::Ipv4,
                AddressFamilies::Ipv6 => Families::Ipv6,
            },
            resolvers,
        }
    }
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16));
    match parsed {
        Ok(mark) if mark != 0 => Ok(mark),
        _ => Err(format!("`{text}` is not a mark; write a number from 1 to 4294967295, for example 0x6d77")),
    }
}

fn resolv_conf() -> String {
    std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()
}

pub(crate) fn run(args: InterceptArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        InterceptAction::Install(rules) => intercept::install(&rules.plan(&resolv_conf()))?,
        InterceptAction::Remove => intercept::remove()?,
        InterceptAction::Verify(rules) => {
            let missing = intercept::verify(&rules.plan(&resolv_conf()))?;
            for one in &missing {
                println!("{one}");
            }
            if !missing.is_empty() {
                anyhow::bail!("the redirection is not as planned; `meshwright intercept install` with the same flags puts it right");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the resolvers that are redirected are the given ones, else those of the file, else the one that libc asks; or none.
    #[test]
    fn resolvers_are_those_that_programs_ask() {
        let rules = |resolvers: &[&str], keep_dns| Rules {
            exempt_uid: None,
            exempt_mark: None,
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            family: AddressFamilies::Both,
            resolvers: resolvers.iter().map(|text| text.parse().unwrap()).collect(),
            keep_dns,
        };
        let file = "nameserver 10.77.0.1\nnameserver fd00::1\n";
        for (given, keep, file, expected) in [
            (&["192.0.2.1"][..], false, file, &["192.0.2.1"][..]),
            (&[], false, file, &["10.77.0.1", "fd00::1"]),
            (&[], false, "", &["127.0.0.1"]),
            (&[], true, file, &[]),
        ] {
            let plan = rules(given, keep).plan(file);
            assert_eq!(plan.resolvers.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{given:?} {file:?}");
        }
    }
}
