//! Wrong keys and values: right in all but one way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::Result;
use towpath_core::port::Kv;
use towpath_core::port::kv::{Committed, Op};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    NoBounds,
    OneByOne,
    NoCompare,
    NoTtl,
    NoDelete,
    LastOnly,
    PutsAnyway,
    UnsortedFields,
    NoExpire,
    FirstPageOnly,
    HidesRefusals,
    AddDropsTtl,
}

pub(super) fn wrong(inner: Arc<dyn Kv>, way: Way) -> Arc<dyn Kv> {
    Arc::new(Wrong { inner, way })
}

struct Wrong {
    inner: Arc<dyn Kv>,
    way: Way,
}

#[async_trait]
impl Kv for Wrong {
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        let mut ops: Vec<Op> = ops.into_iter().map(|op| self.spoil(op)).collect();
        match self.way {
            Way::NoDelete => ops.retain(|op| !matches!(op, Op::Delete { .. })),
            Way::NoExpire => ops.retain(|op| !matches!(op, Op::Expire { .. })),
            Way::LastOnly => _ = ops.drain(..ops.len().saturating_sub(1)),
            Way::AddDropsTtl => {
                let added = ops.iter().filter(|op| matches!(op, Op::Add { .. }));
                let added: Vec<String> = added.map(|op| op.key().to_owned()).collect();
                ops.extend(added.into_iter().map(|key| Op::Expire { key, ttl: None }));
            }
            Way::HidesRefusals => {
                self.inner.commit(ops).await?;
                return Ok(Committed::Applied(Vec::new()));
            }
            _ => {}
        }
        if self.way != Way::OneByOne {
            return self.inner.commit(ops).await;
        }
        let mut values = Vec::new();
        for (index, op) in ops.into_iter().enumerate() {
            match self.inner.commit(vec![op]).await? {
                Committed::Applied(value) => values.extend(value),
                Committed::Refused { current, .. } => {
                    return Ok(Committed::Refused { index, current });
                }
            }
        }
        Ok(Committed::Applied(values))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.inner.get(key).await
    }

    async fn fields(&self, key: &str) -> Result<Vec<(String, Bytes)>> {
        let mut fields = self.inner.fields(key).await?;
        if self.way == Way::UnsortedFields {
            fields.reverse();
        }
        Ok(fields)
    }

    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>> {
        self.inner.ttl(key).await
    }

    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
        let after = after.filter(|_| self.way != Way::FirstPageOnly);
        self.inner.keys(prefix, after, max).await
    }
}

impl Wrong {
    fn spoil(&self, op: Op) -> Op {
        match (op, self.way) {
            (Op::Add { key, delta, .. }, Way::NoBounds) => Op::Add {
                key,
                delta,
                min: i64::MIN,
                max: i64::MAX,
            },
            (
                Op::CompareAndSwap {
                    key, value, ttl, ..
                },
                Way::NoCompare,
            ) => Op::Put { key, value, ttl },
            (Op::PutIfAbsent { key, value, ttl }, Way::PutsAnyway) => Op::Put { key, value, ttl },
            (Op::PutIfAbsent { key, value, .. }, Way::NoTtl) => Op::PutIfAbsent {
                key,
                value,
                ttl: None,
            },
            (Op::Put { key, value, .. }, Way::NoTtl) => Op::Put {
                key,
                value,
                ttl: None,
            },
            (op, _) => op,
        }
    }
}
