//! Wrong positions: right in all but one way.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::port::Positions;
use towpath_core::port::positions::{Step, Stepped};
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

pub(super) fn wrong(inner: Arc<dyn Positions>, way: Way) -> Arc<dyn Positions> {
    Arc::new(Wrong {
        inner,
        way,
        own: MessageId::new().to_string(),
    })
}

struct Wrong {
    inner: Arc<dyn Positions>,
    way: Way,
    /// No other opening has it.
    own: String,
}

#[async_trait]
impl Positions for Wrong {
    async fn position(&self, source: &str) -> Result<Option<Bytes>> {
        let position = self.inner.position(&self.source(source)).await?;
        Ok(position.filter(|_| self.way != Way::TellsNone))
    }

    async fn step(&self, mut step: Step) -> Result<Stepped> {
        if self.way == Way::WantsEntries && step.entries.is_empty() {
            return Err(Error::invalid("there are no entries"));
        }
        step.source = self.source(&step.source);
        let mut stepped = self.inner.step(step.clone()).await?;
        while let Stepped::Elsewhere(position) = &stepped
            && self.way == Way::MovesFromAnywhere
        {
            step.from.clone_from(position);
            stepped = self.inner.step(step.clone()).await?;
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

    fn step_entries(&self) -> usize {
        self.inner.step_entries()
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
