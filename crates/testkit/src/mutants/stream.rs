//! Mutants of the stream port.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::port::Stream;
use towpath_core::port::stream::{Entry, Offset, ReadRequest, Start, Stats, Trim};
use towpath_core::{ConsumerId, GroupName, NewMessage, Result, StreamName};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    CommitsTheNewest,
    ClaimsEarly,
    TrimsTheUnread,
    NoDedup,
    FirstAttempt,
    ResetsGroups,
    ForgetsTheGone,
    SharesNothing,
    CountsWhatIsHeld,
}

pub(super) fn mutate(inner: Arc<dyn Stream>, mutation: Mutation) -> Arc<dyn Stream> {
    Arc::new(Mutated { inner, mutation })
}

struct Mutated {
    inner: Arc<dyn Stream>,
    mutation: Mutation,
}

#[async_trait]
impl Stream for Mutated {
    async fn append(
        &self,
        stream: &StreamName,
        mut entries: Vec<NewMessage>,
    ) -> Result<Vec<Result<Offset>>> {
        if self.mutation == Mutation::NoDedup {
            entries.iter_mut().for_each(|entry| entry.dedup_id = None);
        }
        self.inner.append(stream, entries).await
    }

    async fn create_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        start: Start,
    ) -> Result<()> {
        self.inner.create_group(stream, group, start).await?;
        match self.mutation {
            Mutation::ResetsGroups => self.inner.seek(stream, group, start).await,
            _ => Ok(()),
        }
    }

    async fn seek(&self, stream: &StreamName, group: &GroupName, to: Start) -> Result<()> {
        self.inner.seek(stream, group, to).await
    }

    async fn delete_group(&self, stream: &StreamName, group: &GroupName) -> Result<()> {
        self.inner.delete_group(stream, group).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Vec<Entry>> {
        let mut entries = self.inner.read(request.clone()).await?;
        if self.mutation == Mutation::SharesNothing && !entries.is_empty() {
            let before = Start::After(Offset {
                value: entries[0].offset.value - 1,
                ..entries[0].offset
            });
            self.inner
                .seek(&request.stream, &request.group, before)
                .await?;
        }
        if self.mutation == Mutation::FirstAttempt {
            entries.iter_mut().for_each(|entry| entry.attempt = 0);
        }
        Ok(entries)
    }

    async fn commit(
        &self,
        stream: &StreamName,
        group: &GroupName,
        finished: &[Offset],
    ) -> Result<()> {
        if self.mutation == Mutation::CommitsTheNewest
            && let Some(newest) = finished.iter().max()
        {
            return self.inner.seek(stream, group, Start::After(*newest)).await;
        }
        self.inner.commit(stream, group, finished).await
    }

    async fn claim(
        &self,
        stream: &StreamName,
        group: &GroupName,
        consumer: &ConsumerId,
        min_idle: Duration,
        max: usize,
    ) -> Result<Vec<Entry>> {
        let min_idle = match self.mutation {
            Mutation::ClaimsEarly => Duration::ZERO,
            _ => min_idle,
        };
        self.inner
            .claim(stream, group, consumer, min_idle, max)
            .await
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        match self.mutation {
            Mutation::ForgetsTheGone => Ok(2),
            _ => self.inner.disconnect(consumer).await,
        }
    }

    async fn range(
        &self,
        stream: &StreamName,
        after: Option<Offset>,
        max: usize,
    ) -> Result<Vec<Entry>> {
        self.inner.range(stream, after, max).await
    }

    async fn trim(&self, stream: &StreamName, trim: Trim) -> Result<u64> {
        let trim = match self.mutation {
            Mutation::TrimsTheUnread => Trim::KeepLast(0),
            _ => trim,
        };
        self.inner.trim(stream, trim).await
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        self.inner.list().await
    }

    async fn stats(&self, stream: &StreamName) -> Result<Stats> {
        let mut stats = self.inner.stats(stream).await?;
        if self.mutation == Mutation::CountsWhatIsHeld {
            for group in &mut stats.groups {
                group.lag -= group.pending;
            }
        }
        Ok(stats)
    }
}
