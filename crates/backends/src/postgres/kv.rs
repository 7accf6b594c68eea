//! The key and value port: each commit is one call of a function in the database, by the database's clock.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_postgres::types::Type;
use towpath_core::port::kv::{Committed, Kv, MAX_KEY_BYTES, Op};
use towpath_core::{Error, Result, ResultExt};

use super::store::{Parameter, Store};

const COMMIT: &str = "SELECT failed, reason, present, results
    FROM towpath.kv_commit($1, $2, $3, $4, $5, $6, $7, $8, $9)";

#[async_trait]
impl Kv for Store {
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        if ops.is_empty() {
            return Ok(Committed::Applied(Vec::new()));
        }
        let columns = Columns::of(&ops)?;
        let values: [Parameter<'_>; 9] = [
            (&columns.kinds, Type::TEXT_ARRAY),
            (&columns.keys, Type::TEXT_ARRAY),
            (&columns.args, Type::BYTEA_ARRAY),
            (&columns.expected, Type::BYTEA_ARRAY),
            (&columns.fields, Type::TEXT_ARRAY),
            (&columns.deltas, Type::INT8_ARRAY),
            (&columns.mins, Type::INT8_ARRAY),
            (&columns.maxs, Type::INT8_ARRAY),
            (&columns.ttls, Type::INT8_ARRAY),
        ];
        let rows = self.ask(COMMIT, &values).await;
        let rows = rows.context(|| "commit keys")?;
        let row = rows
            .first()
            .ok_or_else(|| Error::corrupt("PostgreSQL did not answer a commit of keys"))?;
        let Some(failed) = row.get::<_, Option<i32>>(0) else {
            let results: Vec<Option<Vec<u8>>> = row.get(3);
            let results = results.into_iter().map(|value| value.map(Bytes::from));
            return Ok(Committed::Applied(results.collect()));
        };
        let index = usize::try_from(failed)
            .map_err(|error| Error::corrupt("an index is out of range").with_source(error))?;
        if let Some(reason) = row.get::<_, Option<&str>>(1) {
            let key = ops.get(index).map(Op::key).unwrap_or_default();
            return Err(Error::invalid(format!("key `{key}` {reason}")));
        }
        let current = row.get::<_, Option<Vec<u8>>>(2).map(Bytes::from);
        Ok(Committed::Refused { index, current })
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        if !can_exist(key) {
            return Ok(None);
        }
        let select = "SELECT value FROM towpath.kv
            WHERE key = $1 AND (expires_at IS NULL OR expires_at > clock_timestamp())";
        let rows = self.ask(select, &[(&key, Type::TEXT)]).await;
        let rows = rows.context(|| format!("read key `{key}`"))?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        match row.get::<_, Option<Vec<u8>>>(0) {
            Some(value) => Ok(Some(value.into())),
            None => Err(Error::invalid(format!(
                "key `{key}` holds fields, not a value"
            ))),
        }
    }

    async fn fields(&self, key: &str) -> Result<Vec<(String, Bytes)>> {
        if !can_exist(key) {
            return Ok(Vec::new());
        }
        // One statement: value and fields are of one moment.
        let select = "SELECT kv.value IS NOT NULL, f.field, f.value
            FROM towpath.kv LEFT JOIN towpath.kv_field AS f ON f.key = kv.key AND kv.value IS NULL
            WHERE kv.key = $1 AND (kv.expires_at IS NULL OR kv.expires_at > clock_timestamp())
            ORDER BY f.field";
        let rows = self.ask(select, &[(&key, Type::TEXT)]).await;
        let rows = rows.context(|| format!("read the fields of key `{key}`"))?;
        if rows.first().is_some_and(|row| row.get(0)) {
            return Err(Error::invalid(format!(
                "key `{key}` holds a value, not fields"
            )));
        }
        let fields = rows.iter().filter_map(|row| {
            let value: Vec<u8> = row.get::<_, Option<_>>(2)?;
            Some((row.get(1), value.into()))
        });
        Ok(fields.collect())
    }

    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>> {
        if !can_exist(key) {
            return Ok(None);
        }
        let select =
            "SELECT ceil(extract(epoch FROM expires_at - clock_timestamp()) * 1000)::bigint
            FROM towpath.kv WHERE key = $1 AND (expires_at IS NULL OR expires_at > clock_timestamp())";
        let rows = self.ask(select, &[(&key, Type::TEXT)]).await;
        let rows = rows.context(|| format!("read the ttl of key `{key}`"))?;
        Ok(rows.first().map(|row| {
            let left: Option<i64> = row.get(0);
            left.map(|left| Duration::from_millis(left.try_into().unwrap_or(0)))
        }))
    }

    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
        if prefix.contains('\0') {
            return Ok(Vec::new());
        }
        // No key holds the character that PostgreSQL cannot store, so those behind it are those behind the text before.
        let after = after.map(|after| after.split('\0').next().unwrap_or_default());
        let select = "SELECT key FROM towpath.kv
            WHERE key >= $1 AND ($2::text IS NULL OR key < $2) AND ($3::text IS NULL OR key > $3)
            AND (expires_at IS NULL OR expires_at > clock_timestamp())
            ORDER BY key LIMIT $4";
        let (end, max) = (prefix_end(prefix), i64::try_from(max).unwrap_or(i64::MAX));
        let values: [Parameter<'_>; 4] = [
            (&prefix, Type::TEXT),
            (&end, Type::TEXT),
            (&after, Type::TEXT),
            (&max, Type::INT8),
        ];
        let rows = self.ask(select, &values).await.context(|| "list keys")?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

/// The ops, one array for each argument of the function.
#[derive(Default)]
struct Columns<'a> {
    kinds: Vec<&'static str>,
    keys: Vec<&'a str>,
    args: Vec<Option<&'a [u8]>>,
    expected: Vec<Option<&'a [u8]>>,
    fields: Vec<Option<&'a str>>,
    deltas: Vec<Option<i64>>,
    mins: Vec<Option<i64>>,
    maxs: Vec<Option<i64>>,
    ttls: Vec<Option<i64>>,
}

impl<'a> Columns<'a> {
    fn of(ops: &'a [Op]) -> Result<Self> {
        let mut columns = Self::default();
        for op in ops {
            check_text("a key", op.key(), 1)?;
            if op.key().len() > MAX_KEY_BYTES {
                return Err(Error::invalid(format!(
                    "a key must have 1 to {MAX_KEY_BYTES} bytes"
                )));
            }
            let (mut arg, mut expected, mut field, mut bounds, mut ttl) =
                (None, None, None, None, None);
            columns.kinds.push(match op {
                Op::Put {
                    value, ttl: one, ..
                } => {
                    (arg, ttl) = (Some(value), *one);
                    "put"
                }
                Op::PutIfAbsent {
                    value, ttl: one, ..
                } => {
                    (arg, ttl) = (Some(value), *one);
                    "absent"
                }
                Op::CompareAndSwap {
                    expected: known,
                    value,
                    ttl: one,
                    ..
                } => {
                    (arg, expected, ttl) = (Some(value), known.as_ref(), *one);
                    "swap"
                }
                Op::Add {
                    delta, min, max, ..
                } => {
                    bounds = Some((*delta, *min, *max));
                    "add"
                }
                Op::Delete { .. } => "delete",
                Op::SetField {
                    field: name, value, ..
                } => {
                    check_text("a field", name, 0)?;
                    (arg, field) = (Some(value), Some(name.as_str()));
                    "field"
                }
                Op::Expire { ttl: one, .. } => {
                    ttl = *one;
                    "expire"
                }
            });
            columns.keys.push(op.key());
            columns.args.push(arg.map(AsRef::as_ref));
            columns.expected.push(expected.map(AsRef::as_ref));
            columns.fields.push(field);
            columns.deltas.push(bounds.map(|bounds| bounds.0));
            columns.mins.push(bounds.map(|bounds| bounds.1));
            columns.maxs.push(bounds.map(|bounds| bounds.2));
            columns.ttls.push(ttl.map(millis));
        }
        Ok(columns)
    }
}

/// At least a millisecond, and at most about two thousand years, which a time of PostgreSQL can hold.
fn millis(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).map_or(1 << 46, |ttl| ttl.clamp(1, 1 << 46))
}

/// Refuses texts that PostgreSQL cannot store, and those that are too short.
fn check_text(what: &str, text: &str, least: usize) -> Result<()> {
    if text.len() < least {
        return Err(Error::invalid(format!(
            "{what} must have 1 to {MAX_KEY_BYTES} bytes"
        )));
    }
    if text.contains('\0') {
        return Err(Error::invalid(format!(
            "{what} must not contain the character U+0000, which PostgreSQL cannot store"
        )));
    }
    Ok(())
}

/// Whether a key may be in the table.
fn can_exist(key: &str) -> bool {
    !key.contains('\0')
}

/// The first text behind all that begin with the prefix; `None` when they are the last ones.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // Surrogates are not characters.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            _ => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn a_prefix_ends_before_the_next_text() {
        for (prefix, end) in [
            ("stock:", Some("stock;")),
            ("\u{d7ff}", Some("\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
            ("", None),
        ] {
            assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
