//! Tasks left in the queue of the reference system's worker (asynq), read without its client.
//!
//! A task is a hash `asynq:{default}:t:<id>`, whose field `msg` is a protocol buffer with the type and the payload; its
//! id is in one list or sorted set for its state. Source: asynq, `internal/base` and `internal/rdb`.

#![expect(
    clippy::disallowed_methods,
    reason = "records of the reference system have the machine's time"
)]

use std::sync::Arc;

use redis::Value;
use towpath_core::{Error, Result, ResultExt};

use super::config::Config;
use super::reply;
use super::store::Store;

/// The containers of ids, and whether each is a list.
const PLACES: [(&str, bool); 4] = [
    ("pending", true),
    ("active", true),
    ("scheduled", false),
    ("retry", false),
];

/// Worker processes of the queue, by the end of their heartbeat.
const SERVERS: &str = "asynq:servers";

/// A task that no worker has finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its id in the queue.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The task queue `default` of a Redis database.
pub struct TaskQueue(Arc<Store>);

impl TaskQueue {
    /// Opens the database that a Redis URL names.
    ///
    /// # Errors
    /// `Invalid` for another URL.
    pub fn open(url: &str) -> Result<Self> {
        Store::open(Config::parse(url)?).map(Self)
    }

    /// Number of live workers.
    ///
    /// # Errors
    /// `Unavailable` when the server did not answer.
    pub async fn workers(&self) -> Result<u64> {
        let mut ask = redis::cmd("ZCOUNT");
        ask.arg(SERVERS).arg(unix_seconds()).arg("+inf");
        let found = self.0.servers.query(SERVERS.as_bytes(), &ask).await;
        reply::number(found.context(|| "count the workers of asynq")?)
    }

    /// Tasks that are waiting, scheduled for retry, or left by a dead worker.
    ///
    /// # Errors
    /// `Unavailable` when the server did not answer; `Corrupt` for a task that cannot be read.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut all = Vec::new();
        for (place, is_list) in PLACES {
            let key = key(place);
            let mut ask = redis::cmd(if is_list { "LRANGE" } else { "ZRANGE" });
            ask.arg(&key).arg(0).arg(-1);
            let mut ids = reply::list(self.query(&key, &ask).await?)?;
            if is_list {
                // The oldest is on the right.
                ids.reverse();
            }
            for id in ids {
                let id = reply::text(id)?;
                let record = key_of(&id);
                let mut ask = redis::cmd("HGET");
                ask.arg(&record).arg("msg");
                if let Value::BulkString(message) = self.query(&record, &ask).await? {
                    let (kind, payload) = read(&message).ok_or_else(|| {
                        Error::corrupt(format!("task `{id}` of asynq cannot be read"))
                    })?;
                    all.push(Leftover { id, kind, payload });
                }
            }
        }
        Ok(all)
    }

    /// Removes a task, wherever it is.
    ///
    /// # Errors
    /// `Unavailable` when the server did not answer.
    pub async fn remove(&self, id: &str) -> Result<()> {
        for (place, is_list) in PLACES {
            let key = key(place);
            let mut remove = redis::cmd(if is_list { "LREM" } else { "ZREM" });
            remove.arg(&key);
            if is_list {
                remove.arg(0);
            }
            remove.arg(id);
            self.query(&key, &remove).await?;
        }
        let lease = key("lease");
        let mut remove = redis::cmd("ZREM");
        remove.arg(&lease).arg(id);
        self.query(&lease, &remove).await?;
        let record = key_of(id);
        let mut remove = redis::cmd("DEL");
        remove.arg(&record);
        self.query(&record, &remove).await.map(drop)
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// None in practice.
    pub async fn close(&self) -> Result<()> {
        self.0.close().await
    }

    async fn query(&self, key: &str, ask: &redis::Cmd) -> Result<Value> {
        let answer = self.0.servers.query(key.as_bytes(), ask).await;
        answer.context(|| format!("read `{key}`"))
    }
}

fn key(place: &str) -> String {
    format!("asynq:{{default}}:{place}")
}

fn key_of(id: &str) -> String {
    key(&format!("t:{id}"))
}

fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Type and payload of a message: fields 1 and 2, both bytes.
fn read(mut message: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut kind, mut payload) = (None, None);
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => drop(varint(&mut message)?),
            1 => message = message.get(8..)?,
            5 => message = message.get(4..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                match tag >> 3 {
                    1 => kind = Some(String::from_utf8(bytes.to_vec()).ok()?),
                    2 => payload = Some(bytes.to_vec()),
                    _ => {}
                }
                message = rest;
            }
            _ => return None,
        }
    }
    Some((kind?, payload.unwrap_or_default()))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for at in 0..10 {
        let byte = *bytes.get(at)?;
        number |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_whatever_else_it_has() {
        let message = b"\x0a\x03abc\x12\x02{}\x1a\x04id-1\x22\x07default\x28\x03\x40\x88\x0e";
        assert_eq!(read(message), Some(("abc".to_owned(), b"{}".to_vec())));
        for broken in [&b"\x0a\x09abc"[..], b"\x0a", b"\xff\xff", b"\x0b"] {
            assert_eq!(read(broken), None, "{broken:?}");
        }
    }
}
