//! Sessions at a store: one command about one key each, so that a cluster needs no more than to know whose the key is.

use bytes::Bytes;
use engine::login::{PutOnly, SEALED_BYTES_MAX, StoreCommand, StoreTold};
use redis::{Cmd, Value};

use super::fault::{StoreFault, refused};
use crate::snapshots::PosedCommand;

/// Longest answer: a sealed session as text, with what frames it.
pub(super) const ANSWER_BYTES_MAX: u64 = (SEALED_BYTES_MAX as u64 + 1_024) / 3 * 4 + 64;
/// Keeps the larger of two numbers.
const RAISE: &str = "if tonumber(ARGV[1]) >= (tonumber(redis.call('GET', KEYS[1])) or 0) then \
                     redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end return 1";

/// What its key is called at a server.
pub(super) fn key(posed: &PosedCommand, key_prefix: &str) -> String {
    format!("{key_prefix}{}", posed.command.key())
}

/// As a server takes it.
pub(super) fn command(posed: &PosedCommand, key_prefix: &str) -> Cmd {
    let key = key(posed, key_prefix);
    let named = |name: &str| {
        let mut command = redis::cmd(name);
        command.arg(&key);
        command
    };
    match &posed.command {
        StoreCommand::Get(_) => named("GET"),
        StoreCommand::Live(_, secs) => {
            let mut command = named("EXPIRE");
            command.arg(*secs);
            command
        }
        StoreCommand::Put { key: _, value, life_secs, only } => {
            let mut command = named("SET");
            command.arg(value).arg("EX").arg(*life_secs);
            match only {
                PutOnly::Always => {}
                PutOnly::New => _ = command.arg("NX"),
                PutOnly::Known => _ = command.arg("XX"),
            }
            command
        }
        StoreCommand::Raise(_, number, secs) => {
            let mut command = redis::cmd("EVAL");
            command.arg(RAISE).arg(1).arg(&key).arg(*number).arg(*secs);
            command
        }
        StoreCommand::Remove(_) => named("DEL"),
    }
}

/// Tells who asked what the server says.
///
/// # Errors
/// It is no answer to that; then nobody is told.
pub(super) fn told(posed: PosedCommand, value: &Value) -> Result<(), StoreFault> {
    let told = match value {
        Value::Nil | Value::Int(0) => StoreTold::Nothing,
        Value::Okay | Value::Int(_) => StoreTold::Done,
        Value::SimpleString(word) if word == "OK" => StoreTold::Done,
        Value::BulkString(bytes) => StoreTold::Text(Bytes::copy_from_slice(bytes)),
        Value::ServerError(error) => return Err(refused(error)),
        _ => return Err(StoreFault::unreadable("it does not answer as such a command is answered")),
    };
    // Who asked may have left.
    let _ = posed.told.send(told);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use engine::limit::{LimitMemories, RedisPlace, RemotePlace};
    use tokio::sync::oneshot;

    use super::*;

    fn posed(command: StoreCommand) -> (PosedCommand, oneshot::Receiver<StoreTold>) {
        let place = RedisPlace::new(("redis:6379", false), ("", ""), "p:", Duration::from_millis(50)).unwrap();
        let store = LimitMemories::default().store(RemotePlace::Redis(Arc::new(place)), "shop");
        let (told, answer) = oneshot::channel();
        (PosedCommand { store, command, told }, answer)
    }

    #[test]
    fn each_command_is_about_one_key() {
        // Aim: as the protocol writes each, behind the prefix of the place.
        let put = |only| StoreCommand::Put { key: "k".into(), value: "v".into(), life_secs: 60, only };
        for (asked, wanted) in [
            (StoreCommand::Get("k".into()), "GET p:k"),
            (StoreCommand::Live("k".into(), 60), "EXPIRE p:k 60"),
            (put(PutOnly::Always), "SET p:k v EX 60"),
            (put(PutOnly::New), "SET p:k v EX 60 NX"),
            (put(PutOnly::Known), "SET p:k v EX 60 XX"),
            (StoreCommand::Remove("k".into()), "DEL p:k"),
        ] {
            let (posed, _) = posed(asked);
            let packed = String::from_utf8(command(&posed, "p:").get_packed_command()).unwrap();
            let words: Vec<&str> = packed.split("\r\n").filter(|word| !word.is_empty() && !word.starts_with(['*', '$'])).collect();
            assert_eq!(words.join(" "), wanted);
        }
    }

    #[test]
    fn an_answer_is_told_or_is_none() {
        // Aim: nothing, done, and what is there; a refusal and what is no answer tell nobody, and are the store's fault.
        let bulk = Value::BulkString(b"v".to_vec());
        for (value, wanted) in [
            (Value::Nil, Some(StoreTold::Nothing)),
            (Value::Int(0), Some(StoreTold::Nothing)),
            (Value::Int(1), Some(StoreTold::Done)),
            (Value::Okay, Some(StoreTold::Done)),
            (bulk.clone(), Some(StoreTold::Text(Bytes::from_static(b"v")))),
            (Value::Array(vec![bulk]), None),
            (Value::SimpleString("QUEUED".into()), None),
        ] {
            let (posed, mut answer) = posed(StoreCommand::Get("k".into()));
            assert_eq!((told(posed, &value).is_ok(), answer.try_recv().ok()), (wanted.is_some(), wanted), "{value:?}");
        }
    }
}
