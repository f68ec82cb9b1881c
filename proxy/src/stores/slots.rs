//! Which server of a cluster has which keys (Redis Cluster specification): slots, what servers say of them, and where they lead.

use redis::Value;

use super::fault::StoreFault;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Most servers of a cluster that are written to.
pub(super) const SERVERS_MAX: usize = 64;
/// Most ranges of slots that are told.
const RANGES_MAX: usize = 1_024;

/// The slot of a key: of what stands between its first braces, where something does.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let inside = key.get(open + 1..)?;
        let close = inside.iter().position(|byte| *byte == b'}')?;
        inside.get(..close).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum: u16, byte| {
        let sum = sum ^ (u16::from(*byte) << 8);
        (0..8).fold(sum, |sum, _| if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 })
    })
}

/// HOST:PORT, an IPv6 address in brackets.
pub(super) fn address(host: &str, port: u16) -> Box<str> {
    let host = host.to_ascii_lowercase();
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}").into() } else { format!("{host}:{port}").into() }
}

/// Which server has which slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// First and last slot, and whose they are; by the first.
    ranges: Vec<(u16, u16, Box<str>)>,
}

impl SlotMap {
    /// Reads the answer to CLUSTER SLOTS of a server that was reached under `asked`.
    ///
    /// # Errors
    /// It is none, or nobody has any slot.
    pub(super) fn read(answer: &Value, asked: &str) -> Result<Self, StoreFault> {
        let unreadable = || StoreFault::unreadable("it does not say who has which slots");
        let Value::Array(rows) = answer else { return Err(unreadable()) };
        if rows.len() > RANGES_MAX {
            return Err(StoreFault::unreadable("its slots lie in more than 1024 ranges"));
        }
        let mut map = Self::default();
        for row in rows {
            let Value::Array(row) = row else { return Err(unreadable()) };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = row.as_slice() else { return Err(unreadable()) };
            let [host, Value::Int(port), ..] = master.as_slice() else { return Err(unreadable()) };
            let number = |number: i64| u16::try_from(number).ok();
            let (Some(first), Some(last), Some(port)) = (number(*first), number(*last), number(*port)) else { return Err(unreadable()) };
            if first > last || last >= SLOTS {
                return Err(unreadable());
            }
            let host = match host {
                Value::BulkString(host) => std::str::from_utf8(host).map_err(|_| unreadable())?,
                Value::Nil => "",
                _ => return Err(unreadable()),
            };
            // One that does not know what it is called has been called something.
            let known = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
            map.ranges.push((first, last, address(if matches!(host, "" | "?") { known } else { host }, port)));
        }
        map.ranges.sort_unstable();
        match map.servers().len() {
            0 => Err(StoreFault::unknown("no server of the cluster has any slot: give it slots")),
            1..=SERVERS_MAX => Ok(map),
            _ => Err(StoreFault::unreadable("more than 64 servers of the cluster are written to")),
        }
    }

    /// Whose a slot is.
    pub(super) fn of(&self, slot: u16) -> Option<&str> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= slot);
        let (_, last, address) = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= *last).then_some(&**address)
    }

    /// Everybody who has slots.
    pub(super) fn servers(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.ranges.iter().map(|(.., address)| &**address).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Where a server sends a question on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// Who is to be asked.
    pub(super) address: Box<str>,
    /// This once: the slot is on its way there.
    pub(super) once: bool,
}

/// Reads a server's word that another one is to be asked. `asked`: by what it was called itself.
pub(super) fn elsewhere(answer: &Value, asked: &str) -> Option<Elsewhere> {
    let Value::ServerError(error) = answer else { return None };
    let once = match error.code() {
        "MOVED" => false,
        "ASK" => true,
        _ => return None,
    };
    let (host, port) = error.details()?.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    let known = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    Some(Elsewhere { address: address(if matches!(host, "" | "?") { known } else { host }, port.parse().ok()?), once })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_slot_that_servers_give_it() {
        // Aim: the specification's own example, and keys whose slots `CLUSTER KEYSLOT` tells; braces count where something is between them.
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for (key, wanted) in [("", 0), ("foo", 12_182), ("{foo}bar", 12_182), ("a{foo}{bar}", 12_182), ("hello", 866)] {
            assert_eq!(slot(key.as_bytes()), wanted, "{key}");
        }
        assert_eq!(slot(b"{}foo"), crc16(b"{}foo") % SLOTS);
        assert_eq!(slot(b"{foo"), crc16(b"{foo") % SLOTS);
    }

    fn row(first: i64, last: i64, host: &str, port: i64) -> Value {
        let server = Value::Array(vec![Value::BulkString(host.as_bytes().to_vec()), Value::Int(port), Value::BulkString(b"id".to_vec())]);
        Value::Array(vec![Value::Int(first), Value::Int(last), server.clone(), server])
    }

    #[test]
    fn slots_are_read_or_refused() {
        // Aim: each slot has its server, some have none; who does not know its own name is called as it was; what is no map is refused.
        let map = SlotMap::read(&Value::Array(vec![row(8_192, 16_383, "B.example", 2), row(0, 99, "", 1), row(100, 200, "::1", 3)]), "a:9");
        let map = map.unwrap();
        for (slot, wanted) in
            [(0, Some("a:1")), (99, Some("a:1")), (100, Some("[::1]:3")), (201, None), (8_191, None), (16_383, Some("b.example:2"))]
        {
            assert_eq!(map.of(slot), wanted, "{slot}");
        }
        assert_eq!(map.servers(), ["[::1]:3", "a:1", "b.example:2"]);
        for bad in [Value::Nil, Value::Array(vec![]), Value::Array(vec![row(5, 4, "a", 1)]), Value::Array(vec![row(0, 16_384, "a", 1)])] {
            assert!(SlotMap::read(&bad, "a:1").is_err(), "{bad:?}");
        }
        let many = (0..65).map(|number| row(number, number, "a", number + 1)).collect();
        assert!(SlotMap::read(&Value::Array(many), "a:1").unwrap_err().to_string().contains("more than 64"));
    }

    #[test]
    fn a_server_sends_on() {
        // Aim: MOVED for good, ASK this once, without a host to where it was asked; other errors send nowhere.
        let error = |text: &str| match redis::parse_redis_value(format!("*1\r\n-{text}\r\n").as_bytes()).unwrap() {
            Value::Array(mut all) => all.remove(0),
            other => panic!("{other:?}"),
        };
        let on = |address: &str, once| Some(Elsewhere { address: address.into(), once });
        assert_eq!(elsewhere(&error("MOVED 3999 127.0.0.1:6381"), "a:1"), on("127.0.0.1:6381", false));
        assert_eq!(elsewhere(&error("ASK 3999 :6381"), "a:1"), on("a:6381", true));
        assert_eq!(elsewhere(&error("MOVED 1 2001:db8::1:7"), "a:1"), on("[2001:db8::1]:7", false));
        for other in ["MOVED 1", "MOVED 1 a", "ERR no such thing", "CLUSTERDOWN The cluster is down"] {
            assert_eq!(elsewhere(&error(other), "a:1"), None, "{other}");
        }
    }
}
