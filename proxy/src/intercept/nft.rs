//! Tables to and from the kernel, over netlink. Blocking: the kernel answers within the call.

use std::fmt;
use std::io;

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_bindings::traits::NetlinkChained;
use netlink_socket2::{NetlinkSocket, ReplyError};

use super::expr::{attributes, contained, nested, number, text};
use super::table::{Chain, Family, PacketRule, Table};

/// NFNL_SUBSYS_NFTABLES in the high byte of the message type.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NETLINK_NETFILTER: u16 = 12;

/// A failure at the kernel's door. Whoever runs the command has to act; trying again helps only after that.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// No right to change this namespace.
    #[error(
        "nf_tables of this network namespace may not be changed: {0}. Run as root, or inside a user namespace that owns the network namespace (CAP_NET_ADMIN)"
    )]
    Rights(io::Error),
    /// The kernel cannot do it.
    #[error(
        "the kernel lacks a part of nf_tables: {0}. It needs nf_tables with `inet` tables, `redirect` and `nat` (CONFIG_NF_TABLES, NF_TABLES_INET, NFT_REDIR, NFT_NAT; `modprobe nf_tables nft_redir nft_nat`)"
    )]
    Kernel(String),
    /// Anything else, in the kernel's own words.
    #[error("nf_tables over netlink: {0}")]
    Other(String),
}

impl From<ReplyError> for InterceptError {
    fn from(error: ReplyError) -> Self {
        let said = error.to_string();
        match error.as_io_error().raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Rights(error.into()),
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT) => Self::Kernel(said),
            _ => Self::Other(said),
        }
    }
}

impl From<io::Error> for InterceptError {
    fn from(error: io::Error) -> Self {
        ReplyError::from(error).into()
    }
}

/// One thing that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No table of that name and family.
    Table(String),
    /// The chain is not there, or hangs elsewhere.
    Chain(&'static str),
    /// A rule is not there, or not at its place.
    Rule {
        /// Its chain.
        chain: &'static str,
        /// As `nft` would print it.
        rule: String,
    },
    /// Rules that the plan does not know stand in our chain.
    Extra {
        /// The chain.
        chain: &'static str,
        /// How many more than planned.
        rules: usize,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name) => write!(f, "table `{name}` is missing"),
            Self::Chain(chain) => write!(f, "chain `{chain}` is missing or hangs on another hook"),
            Self::Rule { chain, rule } => write!(f, "chain `{chain}`: the rule `{rule}` is missing or out of order"),
            Self::Extra { chain, rules } => write!(f, "chain `{chain}`: {rules} rules that are not ours"),
        }
    }
}

/// Puts the table in place of the one of the same name, of whatever family, in one transaction.
pub fn replace(table: &Table) -> Result<(), InterceptError> {
    let mut transaction = Transaction::begin();
    for family in Family::ALL {
        transaction.clear(family, &table.name);
    }
    transaction.table(table);
    transaction.commit()
}

/// Removes tables of that name, of whatever family.
pub fn remove(name: &str) -> Result<(), InterceptError> {
    let mut transaction = Transaction::begin();
    for family in Family::ALL {
        transaction.clear(family, name);
    }
    transaction.commit()
}

/// Reads the table back and compares it, rule by rule, in order.
pub fn compare(table: &Table) -> Result<Vec<Missing>, InterceptError> {
    let mut socket = NetlinkSocket::new();
    let chains = dump_chains(&mut socket, table)?;
    if chains.is_empty() {
        return Ok(vec![Missing::Table(table.name.clone())]);
    }
    let rules = dump_rules(&mut socket, table)?;
    let mut missing = Vec::new();
    for chain in &table.chains {
        let (kind, hook, priority) = chain.hook.place();
        let wanted = FoundChain { name: chain.name.to_owned(), kind: kind.to_owned(), hook, priority };
        if !chains.contains(&wanted) {
            missing.push(Missing::Chain(chain.name));
            continue;
        }
        let found: Vec<&[u8]> = rules.iter().filter(|rule| rule.chain == chain.name).map(|rule| rule.exprs.as_slice()).collect();
        missing.extend(differences(chain, &found));
    }
    Ok(missing)
}

/// What a chain lacks. Pure: `found` holds the expression lists as the kernel told them.
fn differences(chain: &Chain, found: &[&[u8]]) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut at = 0;
    for rule in &chain.rules {
        let ours = encode(rule);
        match found[at..].iter().position(|theirs| contained(&ours, theirs)) {
            Some(ahead) => at += ahead + 1,
            None => missing.push(Missing::Rule { chain: chain.name, rule: rule.text.clone() }),
        }
    }
    let extra = (found.len() + missing.len()).saturating_sub(chain.rules.len());
    if extra > 0 {
        missing.push(Missing::Extra { chain: chain.name, rules: extra });
    }
    missing
}

fn encode(rule: &PacketRule) -> Vec<u8> {
    let mut list = Vec::new();
    rule.exprs.iter().for_each(|expr| expr.encode(&mut list));
    list
}

#[derive(PartialEq, Eq)]
struct FoundChain {
    name: String,
    kind: String,
    hook: u32,
    priority: i32,
}

struct FoundRule {
    chain: String,
    exprs: Vec<u8>,
}

fn header(family: Family) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family as u8;
    header
}

fn dump_chains(socket: &mut NetlinkSocket, table: &Table) -> Result<Vec<FoundChain>, InterceptError> {
    let request = Request::new().op_getchain_dump(&header(table.family));
    let mut reply = socket.request(&request)?;
    let mut chains = Vec::new();
    while let Some(message) = reply.recv() {
        let (_, list) = message?;
        let list = list.get_buf();
        if string(list, 1) != table.name {
            continue;
        }
        let hook = value(list, 4).unwrap_or_default();
        chains.push(FoundChain { name: string(list, 3), kind: string(list, 7), hook: be(hook, 1), priority: be(hook, 2).cast_signed() });
    }
    Ok(chains)
}

fn dump_rules(socket: &mut NetlinkSocket, table: &Table) -> Result<Vec<FoundRule>, InterceptError> {
    let mut request = Request::new().op_getrule_dump(&header(table.family));
    request.encode().push_table_bytes(table.name.as_bytes());
    let mut reply = socket.request(&request)?;
    let mut rules = Vec::new();
    while let Some(message) = reply.recv() {
        let (_, list) = message?;
        let list = list.get_buf();
        if string(list, 1) == table.name {
            rules.push(FoundRule { chain: string(list, 2), exprs: value(list, 4).unwrap_or_default().to_vec() });
        }
    }
    Ok(rules)
}

fn value(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn string(list: &[u8], kind: u16) -> String {
    let bytes = value(list, kind).unwrap_or_default();
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn be(list: &[u8], kind: u16) -> u32 {
    value(list, kind).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// A transaction. Only its last message asks for an acknowledgement: a socket's buffer has room for some hundred answers, a table may
/// have thousands of rules. Errors come for every message all the same.
struct Transaction {
    payload: Vec<u8>,
    messages: u32,
    last: usize,
}

impl Transaction {
    fn begin() -> Self {
        let mut transaction = Self { payload: Vec::new(), messages: 0, last: 0 };
        transaction.message(BATCH_BEGIN, 0, 0, 10, |_| ());
        transaction
    }

    /// Makes sure that no such table is there: a deletion of what is not there fails, so it is made first.
    fn clear(&mut self, family: Family, name: &str) {
        let create = flags(libc::NLM_F_CREATE);
        self.message(NEW_TABLE, create, family as u8, 0, |out| text(out, 1, name));
        self.message(DELETE_TABLE, 0, family as u8, 0, |out| text(out, 1, name));
    }

    fn table(&mut self, table: &Table) {
        let (family, create) = (table.family as u8, flags(libc::NLM_F_CREATE));
        self.message(NEW_TABLE, create, family, 0, |out| text(out, 1, &table.name));
        for chain in &table.chains {
            let (kind, hook, priority) = chain.hook.place();
            self.message(NEW_CHAIN, create, family, 0, |out| {
                text(out, 1, &table.name);
                text(out, 3, chain.name);
                nested(out, 4, |out| {
                    number(out, 1, hook);
                    number(out, 2, priority.cast_unsigned());
                });
                text(out, 7, kind);
            });
            for rule in &chain.rules {
                self.message(NEW_RULE, create | flags(libc::NLM_F_APPEND), family, 0, |out| {
                    text(out, 1, &table.name);
                    text(out, 2, chain.name);
                    nested(out, 4, |out| rule.exprs.iter().for_each(|expr| expr.encode(out)));
                });
            }
        }
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.payload.len();
        let request = flags | u16::try_from(libc::NLM_F_REQUEST).unwrap_or(1);
        self.payload.extend_from_slice(&[0; 4]);
        self.payload.extend_from_slice(&kind.to_ne_bytes());
        self.payload.extend_from_slice(&request.to_ne_bytes());
        // Sequence numbers are the message's index, so that an error names its message.
        self.payload.extend_from_slice(&self.messages.to_ne_bytes());
        self.payload.extend_from_slice(&0_u32.to_ne_bytes());
        self.payload.extend_from_slice(&[family, 0]);
        self.payload.extend_from_slice(&resource.to_be_bytes());
        body(&mut self.payload);
        let len = u32::try_from(self.payload.len() - start).unwrap_or(u32::MAX);
        self.payload[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.last = start;
        self.messages += 1;
    }

    fn commit(mut self) -> Result<(), InterceptError> {
        let acknowledged = u16::from_ne_bytes([self.payload[self.last + 6], self.payload[self.last + 7]]) | flags(libc::NLM_F_ACK);
        self.payload[self.last + 6..self.last + 8].copy_from_slice(&acknowledged.to_ne_bytes());
        self.message(BATCH_END, 0, 0, 10, |_| ());
        NetlinkSocket::new().request_chained(&self)?.recv_all()?;
        Ok(())
    }
}

fn flags(flag: libc::c_int) -> u16 {
    u16::try_from(flag).unwrap_or_default()
}

impl NetlinkChained for Transaction {
    fn protonum(&self) -> u16 {
        NETLINK_NETFILTER
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn chain_len(&self) -> usize {
        self.messages as usize
    }

    fn get_index(&self, seq: u32) -> Option<usize> {
        (seq < self.messages).then_some(seq as usize)
    }

    fn name(&self, _: usize) -> &'static str {
        "nf_tables batch"
    }

    fn supports_ack(&self, index: usize) -> Option<bool> {
        // The one before the end of the transaction carries the flag.
        Some(index + 2 == self.messages as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Interception;
    use super::*;

    /// Aim: each kind of difference is told by name: lost, swapped and foreign rules.
    #[test]
    fn tells_what_is_missing() {
        let table = Interception { exempt_uid: Some(1337), ..Interception::default() }.table();
        let chain = &table.chains[0];
        let lists: Vec<Vec<u8>> = chain.rules.iter().map(encode).collect();
        let all: Vec<&[u8]> = lists.iter().map(Vec::as_slice).collect();
        assert_eq!(differences(chain, &all), []);

        let without_first = &all[1..];
        assert_eq!(differences(chain, without_first), [Missing::Rule { chain: "output", rule: "meta skuid 1337 return".to_owned() }]);

        let mut swapped = all.clone();
        let last = swapped.len() - 1;
        swapped.swap(0, last);
        assert!(!differences(chain, &swapped).is_empty());

        let mut foreign = all.clone();
        foreign.push(all[0]);
        assert_eq!(differences(chain, &foreign), [Missing::Extra { chain: "output", rules: 1 }]);
    }
}
