//! Reading a question and writing its answer: pure.

use std::net::IpAddr;

use engine::model::DnsAnswer;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use super::Transport;

/// What a client without EDNS takes by UDP (RFC 1035, section 2.3.4).
const UDP_BYTES_DEFAULT: u16 = 512;
/// What we offer and send at most by UDP: never fragmented (DNS flag day 2020).
const UDP_BYTES_OFFERED: u16 = 1232;

/// One question, parsed.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Query,
    edns_bytes: Option<u16>,
    host: String,
}

/// What to say.
#[derive(Debug)]
pub(super) enum Reply<'a> {
    /// These addresses, as far as the question asks for them; none left means the name exists without such a record.
    Addresses(&'a DnsAnswer),
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
    let [query] = message.queries.as_slice() else {
        return Err(code(metadata.id, metadata.op_code, ResponseCode::FormErr));
    };
    let host = query.name().to_lowercase().to_ascii().trim_end_matches('.').to_owned();
    Ok(Question { metadata, query: query.clone(), edns_bytes: message.edns.as_ref().map(Edns::max_payload), host })
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

    /// The answer's bytes, truncated where the client could not take them.
    pub(super) fn reply(&self, reply: &Reply<'_>, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        match reply {
            Reply::Code(code) => message.metadata.response_code = *code,
            Reply::Addresses(answer) => {
                message.metadata.authoritative = true;
                message.insert_answers(self.records(answer));
            }
        }
        if self.edns_bytes.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_OFFERED);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().ok()?;
        let limit = self.edns_bytes.unwrap_or(UDP_BYTES_DEFAULT).clamp(UDP_BYTES_DEFAULT, UDP_BYTES_OFFERED);
        if transport == Transport::Tcp || bytes.len() <= usize::from(limit) {
            return Some(bytes);
        }
        message.truncate().to_vec().ok()
    }

    /// The addresses asked for, begun at a place that differs from question to question, so that clients that take the first spread.
    fn records(&self, answer: &DnsAnswer) -> Vec<Record> {
        let wanted = |ip: &IpAddr| match self.query.query_type() {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        };
        let mut addresses: Vec<IpAddr> = answer.addresses.iter().copied().filter(wanted).collect();
        if !addresses.is_empty() {
            let first = usize::from(self.metadata.id) % addresses.len();
            addresses.rotate_left(first);
        }
        let record = |ip| {
            let content = match ip {
                IpAddr::V4(ip) => RData::A(A(ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
            };
            Record::from_rdata(self.query.name().clone(), answer.ttl_secs, content)
        };
        addresses.into_iter().map(record).collect()
    }
}
