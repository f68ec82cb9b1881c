//! Reading a question and writing its answer: pure.

use std::net::IpAddr;
use std::ops::Range;

use engine::dns::{TTL_SECS, Zone};
use engine::model::DnsAnswer;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;

use super::Transport;

/// What a client without EDNS takes by UDP (RFC 1035, section 2.3.4).
const UDP_BYTES_DEFAULT: u16 = 512;
/// What we offer and send at most by UDP: never fragmented (DNS flag day 2020).
const UDP_BYTES_OFFERED: u16 = 1232;
/// How long a denial may be kept (RFC 2308, section 5): as short as an answer, for names come and go.
const DENIAL_SECS: u32 = TTL_SECS;
/// Refresh, retry, expiry: for secondary servers, which there are none of.
const SECONDARY_SECS: (i32, i32, i32) = (7200, 1800, 86_400);
/// Longest chain of aliases that is followed in an answer.
const ALIASES_MAX: usize = 16;
/// Addresses of one answer that are taken note of.
const ADDRESSES_MAX: usize = 256;
/// Owner as a pointer, type, class, time to live, length of the content.
const RECORD_BYTES: usize = 12;
/// Where a message has its flags, the bit of them that says that something was left out, and where it counts its answers (RFC 1035,
/// section 4.1.1).
const FLAGS: usize = 2;
const TRUNCATED: u8 = 0x02;
const ANSWERS: Range<usize> = 6..8;
/// A pointer to what stands behind the head: the question's name.
const QUESTION_NAME: [u8; 2] = [0xc0, 12];

/// One question, parsed.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<EdnsAsked>,
    host: String,
}

#[derive(Clone, Copy, Debug)]
struct EdnsAsked {
    bytes: u16,
    version: u8,
}

/// What to say.
#[derive(Debug)]
pub(super) enum Reply<'a> {
    /// These records, as far as the question asks for them; none left means the name exists without such a record.
    Found(&'a DnsAnswer),
    /// There is no such name, nor any below it (RFC 8020).
    Denied,
    /// A code alone.
    Code(ResponseCode),
}

/// Reads a question. What cannot be one is the error: the bytes to answer with, or `None` to stay silent.
pub(super) fn read(bytes: &[u8]) -> Result<Question, Option<Vec<u8>>> {
    let Ok(message) = Message::from_vec(bytes) else {
        // The first two bytes are the id; a response (QR bit) is never answered.
        let is_response = bytes.get(2).is_none_or(|flags| flags & 0x80 != 0);
        let (Some(&[high, low]), false) = (bytes.first_chunk::<2>(), is_response) else { return Err(None) };
        return Err(code(u16::from_be_bytes([high, low]), OpCode::Query, ResponseCode::FormErr));
    };
    let metadata = message.metadata;
    if metadata.message_type != MessageType::Query {
        return Err(None);
    }
    if metadata.op_code != OpCode::Query {
        return Err(code(metadata.id, metadata.op_code, ResponseCode::NotImp));
    }
    // Nobody agrees on what several questions in one message would mean (RFC 9619).
    let [query] = message.queries.as_slice() else {
        return Err(code(metadata.id, metadata.op_code, ResponseCode::FormErr));
    };
    let host = plain(query.name());
    let edns = message.edns.as_ref().map(|edns| EdnsAsked { bytes: edns.max_payload(), version: edns.version() });
    Ok(Question { metadata, query: query.clone(), edns, host })
}

fn code(id: u16, op_code: OpCode, code: ResponseCode) -> Option<Vec<u8>> {
    Message::error_msg(id, op_code, code).to_vec().ok()
}

impl Question {
    /// Lower case, no trailing dot.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn id(&self) -> u16 {
        self.metadata.id
    }

    pub(super) fn is_internet(&self) -> bool {
        matches!(self.query.query_class(), DNSClass::IN | DNSClass::ANY)
    }

    /// Whether its EDNS is of a version that nobody knows (RFC 6891, section 6.1.3).
    pub(super) fn is_of_the_future(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    /// The answer's bytes. What the client could not take is left out, and said to be by the TC bit: it asks again by TCP. `zone` is
    /// where a denial is at home: its SOA says how long the denial may be kept.
    pub(super) fn reply(&self, reply: &Reply<'_>, zone: Zone, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_OFFERED);
            message.set_edns(edns);
        }
        match reply {
            Reply::Code(code) => message.metadata.response_code = *code,
            Reply::Denied => {
                message.metadata.authoritative = true;
                message.metadata.response_code = ResponseCode::NXDomain;
                message.add_authority(soa(zone)?);
            }
            Reply::Found(answer) => {
                message.metadata.authoritative = true;
                let mut contents = self.contents(answer);
                if self.query.query_type() == RecordType::SOA && self.host == zone.name() {
                    contents.push(soa(zone)?.data);
                }
                if !contents.is_empty() {
                    return with_answers(message, &contents, answer.ttl_secs, self.bytes_max(transport));
                }
                message.add_authority(soa(zone)?);
            }
        }
        message.to_vec().ok()
    }

    fn bytes_max(&self, transport: Transport) -> usize {
        let udp = || self.edns.map_or(UDP_BYTES_DEFAULT, |edns| edns.bytes).clamp(UDP_BYTES_DEFAULT, UDP_BYTES_OFFERED);
        usize::from(if transport == Transport::Tcp { u16::MAX } else { udp() })
    }

    /// What the records asked for say, begun at a place that differs from question to question, so that clients that take the first
    /// spread.
    fn contents(&self, answer: &DnsAnswer) -> Vec<RData> {
        let asked = self.query.query_type();
        let wants = |kind: RecordType| asked == kind || asked == RecordType::ANY;
        let mut contents = Vec::new();
        for address in &answer.addresses {
            match *address {
                IpAddr::V4(ip) if wants(RecordType::A) => contents.push(RData::A(A(ip))),
                IpAddr::V6(ip) if wants(RecordType::AAAA) => contents.push(RData::AAAA(AAAA(ip))),
                _ => {}
            }
        }
        if wants(RecordType::SRV) {
            // All are alike: chance decides (RFC 2782), and weights of 0 would leave it to the order alone.
            let share = u16::try_from(100 / answer.services.len().max(1)).unwrap_or(1).max(1);
            let service = |(port, target): &(u16, String)| Some(RData::SRV(SRV::new(0, share, *port, name(target)?)));
            contents.extend(answer.services.iter().filter_map(service));
        }
        if wants(RecordType::PTR) {
            contents.extend(answer.pointers.iter().filter_map(|pointer| Some(RData::PTR(PTR(name(pointer)?)))));
        }
        if !contents.is_empty() {
            let first = usize::from(self.metadata.id) % contents.len();
            contents.rotate_left(first);
        }
        contents
    }
}

/// The addresses that somebody else's answer gives a name, with the seconds that each may be kept: its own, and those at the end of its
/// aliases, however they are sorted. None of what is no answer.
pub(super) fn found(reply: &[u8], host: &str) -> Vec<(IpAddr, u32)> {
    let Ok(message) = Message::from_vec(reply) else { return Vec::new() };
    if message.metadata.message_type != MessageType::Response {
        return Vec::new();
    }
    let owner = |record: &Record| plain(&record.name);
    let (mut name, mut ttl_secs) = (host.to_owned(), u32::MAX);
    for _ in 0..ALIASES_MAX {
        let own = message.answers.iter().filter(|record| owner(record) == name);
        let mut alias = None;
        let mut addresses = Vec::new();
        for record in own {
            match &record.data {
                RData::A(A(ip)) => addresses.push((IpAddr::V4(*ip), record.ttl.min(ttl_secs))),
                RData::AAAA(AAAA(ip)) => addresses.push((IpAddr::V6(*ip), record.ttl.min(ttl_secs))),
                RData::CNAME(CNAME(next)) => alias = Some((plain(next), record.ttl)),
                _ => {}
            }
        }
        match alias {
            Some((next, ttl)) if addresses.is_empty() => (name, ttl_secs) = (next, ttl.min(ttl_secs)),
            _ => {
                addresses.truncate(ADDRESSES_MAX);
                return addresses;
            }
        }
    }
    Vec::new()
}

/// As names are compared.
fn plain(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

/// A message with as many answers as have room. The owner of each is a pointer to the question's name (RFC 1035, section 4.1.4), so it has
/// the letters that the client wrote, which some check (0x20). The library writes owners out from the hundredth or so on, and every
/// endpoint of a large Service would not fit.
fn with_answers(mut message: Message, contents: &[RData], ttl_secs: u32, bytes_max: usize) -> Option<Vec<u8>> {
    let mut bytes = message.to_vec().ok()?;
    message.edns = None;
    let edns = bytes.split_off(message.to_vec().ok()?.len());
    let mut count = 0_u16;
    for content in contents {
        let data = content.to_bytes().ok()?;
        if bytes.len() + RECORD_BYTES + data.len() + edns.len() > bytes_max {
            bytes[FLAGS] |= TRUNCATED;
            break;
        }
        bytes.extend(QUESTION_NAME);
        bytes.extend(u16::from(content.record_type()).to_be_bytes());
        bytes.extend(u16::from(DNSClass::IN).to_be_bytes());
        bytes.extend(ttl_secs.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        bytes.extend(data);
        count += 1;
    }
    bytes[ANSWERS].copy_from_slice(&count.to_be_bytes());
    bytes.extend(edns);
    Some(bytes)
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

fn soa(zone: Zone) -> Option<Record> {
    let (refresh, retry, expire) = SECONDARY_SECS;
    let below = |label: &str| name(&[label, zone.name()].join(".")).or_else(|| name(label));
    let soa = SOA::new(below("ns.dns")?, below("hostmaster")?, 1, refresh, retry, expire, DENIAL_SECS);
    let owner = if zone.name().is_empty() { Name::root() } else { name(zone.name())? };
    Some(Record::from_rdata(owner, DENIAL_SECS, RData::SOA(soa)))
}
