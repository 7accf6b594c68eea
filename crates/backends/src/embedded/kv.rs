//! The key and value port.

use std::sync::MutexGuard;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::port::kv::{Committed, Kv, Op};
use towpath_core::{Error, Result, ResultExt};

use super::log::Class;
use super::record::Record;
use super::state::{Cold, Content, Plan, Slot, keys};
use super::store::{Inner, Store};
use super::tables::Tables;

#[async_trait]
impl Kv for Store {
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        let (committed, end) = {
            let (mut inner, cold) = self.lock_with(&ops)?;
            let plan = inner.state.kv.plan(&ops, &cold, self.clock.now())?;
            // Transactions that free space are accepted while the disk is low.
            let class = if plan.grows() {
                Class::Grow
            } else {
                Class::Settle
            };
            let (committed, mut records) = records_of(plan);
            let end = match records.len() {
                // A refusal may depend on changes that are not durable yet.
                0 => self.log.awaited_end(),
                1 => self.write(&mut inner, class, &records.remove(0))?,
                _ => self.write(&mut inner, class, &Record::All(records))?,
            };
            (committed, end)
        };
        self.log.committed(end).await.context(|| "commit keys")?;
        Ok(committed)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self.slot(key).await?.map(|slot| slot.content) {
            Some(Content::Value(value)) => Ok(Some(value)),
            Some(Content::Fields(_)) => Err(Error::invalid(format!(
                "key `{key}` holds fields, not a value"
            ))),
            Some(Content::Gone) | None => Ok(None),
        }
    }

    async fn fields(&self, key: &str) -> Result<Vec<(String, Bytes)>> {
        match self.slot(key).await?.map(|slot| slot.content) {
            Some(Content::Fields(fields)) => Ok(fields.to_map().into_iter().collect()),
            Some(Content::Value(_)) => Err(Error::invalid(format!(
                "key `{key}` holds a value, not fields"
            ))),
            Some(Content::Gone) | None => Ok(Vec::new()),
        }
    }

    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>> {
        let now = self.clock.now();
        Ok(self
            .slot(key)
            .await?
            .map(|slot| slot.until.map(|until| until.since(now))))
    }

    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
        let (memory, tables, end) = {
            let inner = self.lock();
            let kv = &inner.state.kv;
            (kv.snapshot(), kv.tables().clone(), self.log.awaited_end())
        };
        let found = keys(&memory, &tables, (prefix, after), max, self.clock.now())?;
        self.log.committed(end).await?;
        Ok(found)
    }
}

/// The records of a plan.
pub(super) fn records_of(plan: Plan) -> (Committed, Vec<Record<'static>>) {
    let mut records = Vec::new();
    if !plan.changes.is_empty() {
        let changes = plan.changes;
        records.push(Record::Kv { changes });
    }
    if !plan.fields.is_empty() {
        let changes = plan.fields;
        records.push(Record::KvFields { changes });
    }
    (plan.committed, records)
}

impl Store {
    /// The locked state, and the table lookups of those keys of the ops that are not in memory.
    pub(super) fn lock_with(&self, ops: &[Op]) -> Result<(MutexGuard<'_, Inner>, Cold)> {
        let keys: Vec<&str> = ops.iter().map(Op::key).collect();
        self.lock_for(&keys)
    }

    /// Tables are read without the lock, and again if keys or tables have moved meanwhile.
    fn lock_for(&self, keys: &[&str]) -> Result<(MutexGuard<'_, Inner>, Cold)> {
        let (mut known, mut looked, mut cold) = (Tables::default(), Vec::new(), Cold::new());
        loop {
            let inner = self.lock();
            let kv = &inner.state.kv;
            if kv.tables().is_empty() {
                return Ok((inner, Cold::new()));
            }
            if !kv.tables().are(&known) {
                known = kv.tables().clone();
                looked.clear();
                cold.clear();
            }
            let missing = keys.iter().copied().filter(|key| kv.is_cold(key));
            let missing: Vec<&str> = missing.filter(|key| !looked.contains(key)).collect();
            if missing.is_empty() {
                return Ok((inner, cold));
            }
            drop(inner);
            for key in missing {
                let found = known.find(key).context(|| format!("read key `{key}`"))?;
                cold.extend(found.map(|slot| (key.to_owned(), slot)));
                looked.push(key);
            }
        }
    }

    /// A key's slot, once everything that it may rest on is durable.
    async fn slot(&self, key: &str) -> Result<Option<Slot>> {
        let (slot, end) = {
            let (inner, cold) = self.lock_for(&[key])?;
            let slot = inner.state.kv.slot(key, &cold, self.clock.now()).cloned();
            (slot, self.log.awaited_end())
        };
        self.log.committed(end).await?;
        Ok(slot)
    }
}
