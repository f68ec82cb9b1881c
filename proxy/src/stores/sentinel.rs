//! Sentinels, which watch a server and its replicas and say which of them is written to.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::fault::{StoreFault, refused};
use super::server::Meeting;

/// How long sentinels are waited for; whoever has answered by then has a voice.
const ASKED_MAX: Duration = Duration::from_millis(500);
/// Between two questions whether the server is still the one that is written to.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest answer: a sentinel may watch many servers.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Which server is written to: the one that most of the sentinels name which answer.
///
/// # Errors
/// None does.
pub(super) async fn master(meeting: &Meeting, name: &str, draw: u64) -> Result<Box<str>, StoreFault> {
    let mut asking = JoinSet::new();
    for address in &meeting.place.addresses {
        let (meeting, name, address) = (meeting.clone(), name.to_owned(), address.clone());
        asking.spawn(async move {
            let asked = timeout(ASKED_MAX, ask(&meeting, &name, (&address, draw))).await;
            asked.unwrap_or(Err(StoreFault::Silent(ASKED_MAX))).map_err(|fault| format!("{address}: {fault}"))
        });
    }
    let (mut voices, mut why) = (BTreeMap::<Box<str>, usize>::new(), String::new());
    while let Some(done) = asking.join_next().await {
        match done {
            Ok(Ok(named)) => *voices.entry(named).or_default() += 1,
            Ok(Err(fault)) => why = fault,
            Err(_) => {}
        }
    }
    let chosen = voices.into_iter().max_by_key(|(_, count)| *count);
    chosen.map(|(address, _)| address).ok_or_else(|| StoreFault::unknown(&format!("no sentinel says which server is written to: {why}")))
}

/// Resolves when sentinels name another server than that. Dropping it gives up watching.
pub(super) async fn moved(meeting: &Meeting, name: &str, (address, draw): (&str, u64)) -> StoreFault {
    loop {
        sleep(AGAIN).await;
        // While no sentinel answers, the server does what it did.
        if let Ok(named) = master(meeting, name, draw).await
            && *named != *address
        {
            return StoreFault::Moved(named.into());
        }
    }
}

/// What one sentinel says.
async fn ask(meeting: &Meeting, name: &str, (address, draw): (&str, u64)) -> Result<Box<str>, StoreFault> {
    let mut link = meeting.link(address, draw).await?;
    let mut question = redis::cmd("SENTINEL");
    if name.is_empty() {
        question.arg("MASTERS");
    } else {
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    }
    let once = |command: &redis::Cmd| [command.clone()].into_iter();
    let mut answers = link.exchange_long(once(&question), ASKED_MAX, ANSWER_BYTES_MAX).await?;
    // Sentinels have passwords of their own, if any: one that wants none would refuse ours.
    if let Some(Value::ServerError(error)) = answers.first()
        && error.code() == "NOAUTH"
        && let Some(introduction) = meeting.introduction()?
    {
        let told = link.exchange(once(&introduction), ASKED_MAX).await?;
        if let Some(Value::ServerError(error)) = told.first() {
            return Err(refused(error));
        }
        answers = link.exchange_long(once(&question), ASKED_MAX, ANSWER_BYTES_MAX).await?;
    }
    match answers.first() {
        Some(Value::ServerError(error)) => Err(refused(error)),
        Some(Value::Nil) => Err(StoreFault::unknown(&format!("it knows no server named `{name}`"))),
        Some(Value::Array(parts)) if name.is_empty() => only(parts),
        Some(Value::Array(parts)) => match parts.as_slice() {
            [host, port] => at(host, port),
            _ => Err(unreadable()),
        },
        _ => Err(unreadable()),
    }
}

/// The only server that a sentinel watches.
fn only(masters: &[Value]) -> Result<Box<str>, StoreFault> {
    let [Value::Array(fields)] = masters else {
        return Err(StoreFault::unknown(&format!("it watches {} servers: name one with `master`", masters.len())));
    };
    let named = |wanted: &[u8]| {
        let mut pairs = fields.chunks_exact(2);
        pairs.find_map(|pair| if let [Value::BulkString(name), value] = pair { (name == wanted).then_some(value) } else { None })
    };
    match (named(b"ip"), named(b"port")) {
        (Some(host), Some(port)) => at(host, port),
        _ => Err(unreadable()),
    }
}

fn at(host: &Value, port: &Value) -> Result<Box<str>, StoreFault> {
    let (Value::BulkString(host), Value::BulkString(port)) = (host, port) else { return Err(unreadable()) };
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| unreadable());
    Ok(super::slots::address(&text(host)?, text(port)?.parse().map_err(|_| unreadable())?))
}

fn unreadable() -> StoreFault {
    StoreFault::unreadable("it does not answer as a sentinel does")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn the_only_server_needs_no_name() {
        // Aim: of one server the address, IPv6 in brackets; of none or several a word on what to write.
        let server = |host: &str| Value::Array(["name", "shop", "ip", host, "port", "6379", "flags", "master"].map(text).to_vec());
        assert_eq!(&*only(&[server("10.0.0.1")]).unwrap(), "10.0.0.1:6379");
        assert_eq!(&*only(&[server("2001:db8::1")]).unwrap(), "[2001:db8::1]:6379");
        for several in [vec![], vec![server("10.0.0.1"), server("10.0.0.2")]] {
            assert!(only(&several).unwrap_err().to_string().contains("name one with `master`"));
        }
        assert!(only(&[Value::Array(vec![text("ip"), text("a")])]).is_err());
    }
}
