//! The key and value port.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::Value;
use towpath_core::port::kv::{Committed, Kv, MAX_KEY_BYTES, Op};
use towpath_core::{Error, Result, ResultExt};

use super::batcher::{KvStep, run_batched};
use super::store::{Store, millis};
use super::{error, reply};

/// Keys scanned in one step of a listing.
const SCAN: usize = 1_000;

#[async_trait]
impl Kv for Store {
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        if ops.is_empty() {
            return Ok(Committed::Applied(Vec::new()));
        }
        let step = KvStep {
            keys: self.keys_of(&ops)?,
            ops: ops
                .iter()
                .map(|op| self.args_of(op))
                .collect::<Result<_>>()?,
        };
        // Keys of several callers lie on several nodes of a cluster.
        let answer = if self.servers.is_cluster() {
            step.run_alone(&self.servers).await
        } else {
            let answer = run_batched(&self.servers, &self.kv_scope, step).await;
            answer.and_then(|own| own)
        };
        committed(&ops, answer.context(|| "commit keys")?)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self.ask("GET", key).await? {
            Value::Nil => Ok(None),
            value => Ok(Some(reply::bytes(value)?.into())),
        }
    }

    async fn fields(&self, key: &str) -> Result<Vec<(String, Bytes)>> {
        let mut parts = reply::list(self.ask("HGETALL", key).await?)?.into_iter();
        let mut fields = Vec::with_capacity(parts.len() / 2);
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            fields.push((reply::text(name)?, Bytes::from(reply::bytes(value)?)));
        }
        fields.sort();
        Ok(fields)
    }

    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>> {
        match self.ask("PTTL", key).await? {
            Value::Int(-2) => Ok(None),
            Value::Int(-1) => Ok(Some(None)),
            left => Ok(Some(Some(Duration::from_millis(reply::number(left)?)))),
        }
    }

    /// Scans every key of the database: for operators, not for requests.
    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
        self.servers.check_open()?;
        let pattern = format!("{}*", escape(&self.keys.value("").map(|all| all + prefix)?));
        let mut found = BTreeSet::new();
        for node in self.servers.nodes().await? {
            for kind in ["string", "hash"] {
                let mut cursor = "0".to_owned();
                loop {
                    let mut scan = redis::cmd("SCAN");
                    scan.arg(&cursor)
                        .arg("MATCH")
                        .arg(&pattern)
                        .arg("COUNT")
                        .arg(SCAN)
                        .arg("TYPE")
                        .arg(kind);
                    let [next, keys] = reply::tuple(node.query(&scan).await?)?;
                    for key in reply::list(keys)? {
                        // A key that is not UTF-8 is not ours.
                        let Ok(key) = reply::text(key) else { continue };
                        if let Some(key) = self.keys.shown(&key)
                            && after.is_none_or(|after| key > after)
                        {
                            found.insert(key.to_owned());
                            if found.len() > max {
                                found.pop_last();
                            }
                        }
                    }
                    cursor = reply::text(next)?;
                    if cursor == "0" {
                        break;
                    }
                }
            }
        }
        Ok(found.into_iter().collect())
    }
}

impl Store {
    async fn ask(&self, command: &str, key: &str) -> Result<Value> {
        let name = self.keys.value(key)?;
        let mut cmd = redis::cmd(command);
        cmd.arg(&name);
        let (node, answer) = self.servers.attempt(name.as_bytes(), &cmd).await?;
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.code() == Some("WRONGTYPE") {
            let mut kind = redis::cmd("TYPE");
            kind.arg(&name);
            let kind = self.servers.query(name.as_bytes(), &kind).await?;
            let mismatch = match reply::text(kind)?.as_str() {
                "hash" => "holds fields, not a value",
                "string" => "holds a value, not fields",
                // A type that this port never writes.
                _ => "",
            };
            if !mismatch.is_empty() {
                return Err(Error::invalid(format!("key `{key}` {mismatch}")));
            }
        }
        Err(error::of_command(&node.name(), &cmd, error)).context(|| format!("read key `{key}`"))
    }

    /// The keys of the ops, each once.
    pub(super) fn keys_of(&self, ops: &[Op]) -> Result<BTreeSet<String>> {
        ops.iter()
            .map(|op| {
                if op.key().is_empty() || op.key().len() > MAX_KEY_BYTES {
                    return Err(Error::invalid(format!(
                        "a key must have 1 to {MAX_KEY_BYTES} bytes"
                    )));
                }
                self.keys.value(op.key())
            })
            .collect()
    }

    /// The six arguments of an op, as `kv_lib.lua` reads them.
    pub(super) fn args_of(&self, op: &Op) -> Result<[Vec<u8>; 6]> {
        // Redis has no TTL of zero; a million days count as no expiry.
        let ttl = |ttl: &Option<Duration>| {
            ttl.map(|ttl| millis(ttl).clamp(1, 1 << 46).to_string())
                .unwrap_or_default()
        };
        let none = || Vec::new();
        let (kind, a, b, c, until): (&str, Vec<u8>, Vec<u8>, Vec<u8>, String) = match op {
            Op::Put {
                value, ttl: until, ..
            } => ("put", value.to_vec(), none(), none(), ttl(until)),
            Op::PutIfAbsent {
                value, ttl: until, ..
            } => ("absent", value.to_vec(), none(), none(), ttl(until)),
            Op::CompareAndSwap {
                expected,
                value,
                ttl: until,
                ..
            } => {
                let there = if expected.is_some() {
                    b"1".to_vec()
                } else {
                    b"0".to_vec()
                };
                let expected = expected
                    .as_ref()
                    .map(|value| value.to_vec())
                    .unwrap_or_default();
                ("swap", value.to_vec(), there, expected, ttl(until))
            }
            Op::Add {
                delta, min, max, ..
            } => (
                "add",
                delta.to_string().into(),
                min.to_string().into(),
                max.to_string().into(),
                String::new(),
            ),
            Op::Delete { .. } => ("delete", none(), none(), none(), String::new()),
            Op::SetField { field, value, .. } => (
                "field",
                field.clone().into(),
                value.to_vec(),
                none(),
                String::new(),
            ),
            Op::Expire { ttl: until, .. } => ("expire", none(), none(), none(), ttl(until)),
        };
        let key = self.keys.value(op.key())?;
        Ok([kind.into(), key.into(), a, b, c, until.into()])
    }
}

/// Parses the answer of the script.
pub(super) fn committed(ops: &[Op], answer: Value) -> Result<Committed> {
    let value = |value: Value| match value {
        Value::Nil => Ok(None),
        value => reply::bytes(value).map(|bytes| Some(Bytes::from(bytes))),
    };
    let mut parts = reply::list(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or_default();
    match reply::text(next())?.as_str() {
        "applied" => Ok(Committed::Applied(
            reply::list(next())?
                .into_iter()
                .map(value)
                .collect::<Result<_>>()?,
        )),
        "refused" => Ok(Committed::Refused {
            index: index_of(next())?,
            current: value(next())?,
        }),
        "invalid" => {
            let index = index_of(next())?;
            let key = ops.get(index).map(Op::key).unwrap_or_default();
            Err(Error::invalid(format!(
                "key `{key}` {}",
                reply::text(next())?
            )))
        }
        other => Err(Error::corrupt(format!("a script answered `{other}`"))),
    }
}

fn index_of(value: Value) -> Result<usize> {
    usize::try_from(reply::number(value)?)
        .map_err(|error| Error::corrupt("an index is out of range").with_source(error))
}

/// A pattern that matches only this text.
fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}
