//! Wrong positions: right in all but one way.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::port::SourceOffsets;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome};
use towpath_core::{Error, MessageId, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    TellsNone,
    MovesFromAnywhere,
    OneSource,
    OwnSources,
    WantsEntries,
    ListsAll,
    ForgetsAnyway,
}

pub(super) fn wrong(inner: Arc<dyn SourceOffsets>, way: Way) -> Arc<dyn SourceOffsets> {
    Arc::new(Wrong {
        inner,
        way,
        own: MessageId::new().to_string(),
    })
}

struct Wrong {
    inner: Arc<dyn SourceOffsets>,
    way: Way,
    /// No other opening has it.
    own: String,
}

#[async_trait]
impl SourceOffsets for Wrong {
    async fn position(&self, source: &str) -> Result<Option<Bytes>> {
        let position = self.inner.position(&self.source(source)).await?;
        Ok(position.filter(|_| self.way != Way::TellsNone))
    }

    async fn append_at(&self, mut step: AppendAt) -> Result<AppendOutcome> {
        if self.way == Way::WantsEntries && step.entries.is_empty() {
            return Err(Error::invalid("there are no entries"));
        }
        step.source = self.source(&step.source);
        let mut stepped = self.inner.append_at(step.clone()).await?;
        while let AppendOutcome::OffsetConflict(position) = &stepped
            && self.way == Way::MovesFromAnywhere
        {
            step.from.clone_from(position);
            stepped = self.inner.append_at(step.clone()).await?;
        }
        Ok(stepped)
    }

    async fn sources(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        let prefix = if self.way == Way::ListsAll {
            ""
        } else {
            prefix
        };
        self.inner.sources(prefix).await
    }

    async fn forget(&self, source: &str, last: Bytes) -> Result<bool> {
        let source = self.source(source);
        let last = match self.way {
            Way::ForgetsAnyway => self.inner.position(&source).await?.unwrap_or(last),
            _ => last,
        };
        self.inner.forget(&source, last).await
    }

    fn batch_entries(&self) -> usize {
        self.inner.batch_entries()
    }
}

impl Wrong {
    fn source(&self, source: &str) -> String {
        match self.way {
            Way::OneSource => "source".to_owned(),
            Way::OwnSources => format!("{source}.{}", self.own),
            _ => source.to_owned(),
        }
    }
}
