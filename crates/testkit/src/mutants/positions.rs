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

    fn step_entries(&self) -> usize {
        self.inner.step_entries()
    }
}

impl Wrong {
    fn source(&self, source: &str) -> String {
        match self.way {
            Way::OneSource => "source".to_owned(),
            Way::OwnSources => format!("{source}.{}", self.own),
            Way::TellsNone | Way::MovesFromAnywhere | Way::WantsEntries => source.to_owned(),
        }
    }
}
