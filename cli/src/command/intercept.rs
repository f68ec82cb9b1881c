//! `meshwright intercept`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use proxy::intercept::{self, EXEMPT_UID, Families, Plan};

/// Arguments of `meshwright intercept`.
#[derive(Debug, Args)]
#[command(after_help = "Example: meshwright intercept install --exclude-outbound-ports 22,5432\n  \
    Redirects this network namespace to a sidecar that runs as uid 1337.")]
pub(crate) struct InterceptArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
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
    #[arg(long, value_enum, default_value_t = Family::Both)]
    family: Family,
    /// Leaves DNS questions alone.
    #[arg(long)]
    keep_dns: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Family {
    Both,
    Ipv4,
    Ipv6,
}

impl Rules {
    fn plan(self) -> Plan {
        Plan {
            exempt_uid: self.exempt_uid.or(self.exempt_mark.is_none().then_some(EXEMPT_UID)),
            exempt_mark: self.exempt_mark,
            exclude_outbound_ports: self.exclude_outbound_ports.into_iter().collect(),
            exclude_inbound_ports: self.exclude_inbound_ports.into_iter().collect(),
            exclude_outbound_cidrs: self.exclude_outbound_cidrs,
            families: match self.family {
                Family::Both => Families::Both,
                Family::Ipv4 => Families::Ipv4,
                Family::Ipv6 => Families::Ipv6,
            },
            keep_dns: self.keep_dns,
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

pub(crate) fn run(args: InterceptArgs) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Install(rules) => intercept::install(&rules.plan())?,
        Action::Remove => intercept::remove()?,
        Action::Verify(rules) => {
            let missing = intercept::verify(&rules.plan())?;
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
