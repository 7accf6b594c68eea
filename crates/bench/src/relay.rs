//! A relay alone.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use towpath_core::backend::Backend;
use towpath_core::port::Outbox;
use towpath_core::{Error, Result};

use towpath::relay::{Relay, Target};
use towpath::supervisor::Stop;

/// A relay at work.
pub(crate) struct BenchRelay {
    stop: CancellationToken,
    relaying: JoinHandle<Result<()>>,
}

impl BenchRelay {
    /// Most events that it reads at once.
    pub(crate) const BATCH: usize = 1_000;

    /// Starts one with the settings that `accounts.relay` has by default.
    ///
    /// # Errors
    /// `Unsupported` for a backend without streams and queues.
    pub(crate) fn start(outbox: Arc<dyn Outbox>, broker: &Backend) -> Result<Self> {
        let relay = Relay::new(outbox, Target::of(broker, "bench")?);
        let stop = CancellationToken::new();
        let stopping = Stop::when(stop.clone());
        // Ends with the measurement, awaited in `stop`.
        #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
        let relaying = tokio::spawn(async move { relay.run(&stopping).await });
        Ok(Self { stop, relaying })
    }

    /// Whether it gave up.
    pub(crate) fn is_over(&self) -> bool {
        self.relaying.is_finished()
    }

    /// Ends it.
    ///
    /// # Errors
    /// Those of the relay.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.relaying
            .await
            .map_err(|error| Error::unavailable("the relay panicked").with_source(error))?
    }
}
