//! Mutants of the source offsets port.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::port::SourceOffsets;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome};
use towpath_core::{Error, MessageId, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    TellsNone,
    MovesFromAnywhere,
    OneSource,
    OwnSources,
    WantsEntries,
    ListsAll,
    ForgetsAnyway,
}

pub(super) fn mutate(inner: Arc<dyn SourceOffsets>, mutation: Mutation) -> Arc<dyn SourceOffsets> {
    Arc::new(Mutated {
        inner,
        mutation,
        own: MessageId::new().to_string(),
    })
}

struct Mutated {
    inner: Arc<dyn SourceOffsets>,
    mutation: Mutation,
    /// No other opening has it.
    own: String,
}

#[async_trait]
impl SourceOffsets for Mutated {
    async fn position(&self, source: &str) -> Result<Option<Bytes>> {
        let position = self.inner.position(&self.source(source)).await?;
        Ok(position.filter(|_| self.mutation != Mutation::TellsNone))
    }

    async fn append_at(&self, mut step: AppendAt) -> Result<AppendOutcome> {
        if self.mutation == Mutation::WantsEntries && step.entries.is_empty() {
            return Err(Error::invalid("the append has no entries"));
        }
        step.source = self.source(&step.source);
        let mut stepped = self.inner.append_at(step.clone()).await?;
        while let AppendOutcome::OffsetConflict(position) = &stepped
            && self.mutation == Mutation::MovesFromAnywhere
        {
            step.from.clone_from(position);
            stepped = self.inner.append_at(step.clone()).await?;
        }
        Ok(stepped)
    }

    async fn sources(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        let prefix = if self.mutation == Mutation::ListsAll {
            ""
        } else {
            prefix
        };
        self.inner.sources(prefix).await
    }

    async fn forget(&self, source: &str, last: Bytes) -> Result<bool> {
        let source = self.source(source);
        let last = match self.mutation {
            Mutation::ForgetsAnyway => self.inner.position(&source).await?.unwrap_or(last),
            _ => last,
        };
        self.inner.forget(&source, last).await
    }

    fn batch_entries(&self) -> usize {
        self.inner.batch_entries()
    }
}

impl Mutated {
    fn source(&self, source: &str) -> String {
        match self.mutation {
            Mutation::OneSource => "source".to_owned(),
            Mutation::OwnSources => format!("{source}.{}", self.own),
            _ => source.to_owned(),
        }
    }
}
