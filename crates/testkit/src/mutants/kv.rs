//! Mutants of the key and value port.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::Result;
use towpath_core::port::Kv;
use towpath_core::port::kv::{Committed, Op};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
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

pub(super) fn mutate(inner: Arc<dyn Kv>, mutation: Mutation) -> Arc<dyn Kv> {
    Arc::new(Mutated { inner, mutation })
}

struct Mutated {
    inner: Arc<dyn Kv>,
    mutation: Mutation,
}

#[async_trait]
impl Kv for Mutated {
    async fn commit(&self, ops: Vec<Op>) -> Result<Committed> {
        let mut ops: Vec<Op> = ops.into_iter().map(|op| self.spoil(op)).collect();
        match self.mutation {
            Mutation::NoDelete => ops.retain(|op| !matches!(op, Op::Delete { .. })),
            Mutation::NoExpire => ops.retain(|op| !matches!(op, Op::Expire { .. })),
            Mutation::LastOnly => _ = ops.drain(..ops.len().saturating_sub(1)),
            Mutation::AddDropsTtl => {
                let added = ops.iter().filter(|op| matches!(op, Op::Add { .. }));
                let added: Vec<String> = added.map(|op| op.key().to_owned()).collect();
                ops.extend(added.into_iter().map(|key| Op::Expire { key, ttl: None }));
            }
            Mutation::HidesRefusals => {
                self.inner.commit(ops).await?;
                return Ok(Committed::Applied(Vec::new()));
            }
            _ => {}
        }
        if self.mutation != Mutation::OneByOne {
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
        if self.mutation == Mutation::UnsortedFields {
            fields.reverse();
        }
        Ok(fields)
    }

    async fn ttl(&self, key: &str) -> Result<Option<Option<Duration>>> {
        self.inner.ttl(key).await
    }

    async fn keys(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<String>> {
        let after = after.filter(|_| self.mutation != Mutation::FirstPageOnly);
        self.inner.keys(prefix, after, max).await
    }
}

impl Mutated {
    fn spoil(&self, op: Op) -> Op {
        match (op, self.mutation) {
            (Op::Add { key, delta, .. }, Mutation::NoBounds) => Op::Add {
                key,
                delta,
                min: i64::MIN,
                max: i64::MAX,
            },
            (
                Op::CompareAndSwap {
                    key, value, ttl, ..
                },
                Mutation::NoCompare,
            ) => Op::Put { key, value, ttl },
            (Op::PutIfAbsent { key, value, ttl }, Mutation::PutsAnyway) => {
                Op::Put { key, value, ttl }
            }
            (Op::PutIfAbsent { key, value, .. }, Mutation::NoTtl) => Op::PutIfAbsent {
                key,
                value,
                ttl: None,
            },
            (Op::Put { key, value, .. }, Mutation::NoTtl) => Op::Put {
                key,
                value,
                ttl: None,
            },
            (op, _) => op,
        }
    }
}
