//! The backends of a process: one for each URL.

use std::sync::Arc;

use towpath_core::backend::Backend;
use towpath_core::{Clock, Result};

use crate::config::Secret;

/// The open backends of a process, one per URL.
pub(super) struct BackendPool {
    clock: Arc<dyn Clock>,
    backends: Vec<(Secret, Backend)>,
}

impl BackendPool {
    pub(super) const fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            backends: Vec::new(),
        }
    }

    /// The backend of this URL.
    pub(super) async fn open(&mut self, url: &Secret) -> Result<Backend> {
        if let Some((_, backend)) = self.backends.iter().find(|(known, _)| known == url) {
            return Ok(backend.clone());
        }
        let backend = towpath_backends::open(url.expose(), Arc::clone(&self.clock)).await?;
        self.backends.push((url.clone(), backend.clone()));
        Ok(backend)
    }

    /// All of them, in the order of their opening.
    pub(super) fn backends(self) -> Vec<Backend> {
        self.backends
            .into_iter()
            .map(|(_, backend)| backend)
            .collect()
    }
}
