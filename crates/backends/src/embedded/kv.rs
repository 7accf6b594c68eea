//! The key and value port.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::port::kv::{Committed, Kv, Op};
use towpath_core::{Error, Result, ResultExt};

use super::log::Class;
use super::record::Record;
use super::state::{Content, Plan, Slot};
use super::store::Store;

#[async_trait]
impl Kv for Store {
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        let (committed, end) = {
            let mut inner = self.lock();
            let plan = inner.state.kv.plan(&ops, self.clock.now())?;
            // What frees space is taken while the disk is low.
            let class = if plan.grows() {
                Class::Grow
            } else {
                Class::Settle
            };
            let (committed, mut records) = records_of(plan);
            let end = match records.len() {
                // A refusal rests on what may not be durable yet.
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
            None => Ok(None),
        }
    }

    async fn fields(&self, key: &str) -> Result<Vec<(String, Bytes)>> {
        match self.slot(key).await?.map(|slot| slot.content) {
            Some(Content::Fields(fields)) => Ok(fields.to_map().into_iter().collect()),
            Some(Content::Value(_)) => Err(Error::invalid(format!(
                "key `{key}` holds a value, not fields"
            ))),
            None => Ok(Vec::new()),
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
        let (keys, end) = {
            let inner = self.lock();
            (
                inner.state.kv.keys(prefix, after, max, self.clock.now()),
                self.log.awaited_end(),
            )
        };
        self.log.committed(end).await?;
        Ok(keys)
    }
}

/// What is written for a plan.
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
    /// A key's slot, once everything that it may rest on is durable.
    async fn slot(&self, key: &str) -> Result<Option<Slot>> {
        let (slot, end) = {
            let inner = self.lock();
            (
                inner.state.kv.slot(key, self.clock.now()).cloned(),
                self.log.awaited_end(),
            )
        };
        self.log.committed(end).await?;
        Ok(slot)
    }
}
