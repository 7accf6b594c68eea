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
        let ops: Vec<Op> = ops.into_iter().map(|op| self.spoil(op)).collect();
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
        self.inner.fields(key).await
    }

    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>> {
        self.inner.ttl(key).await
    }

    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
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
            (Op::Put { key, value, .. }, Way::NoTtl) => Op::Put {
                key,
                value,
                ttl: None,
            },
            (op, _) => op,
        }
    }
}
