//! Queues of `[queues.NAME]`, and the queues of roles: the admin API changes neither.

use std::sync::Arc;

use towpath_core::backend::Backend;
use towpath_core::{ErrorKind, QueueName, Result};
use tracing::warn;

use super::process::Process;
use crate::config::Config;
use crate::queue_settings::DeclaredQueues;
use towpath::supervisor::{OnFailure, Stage};

/// The queues whose settings the configuration says.
///
/// # Errors
/// `Invalid` when the name of the ingest queue is not valid, which the configuration excludes.
pub(super) fn declared(config: &Config) -> Result<DeclaredQueues> {
    let mut declared = DeclaredQueues::default();
    declared.add(QueueName::new(&config.queue)?, "ingest");
    for name in config.queues.keys() {
        declared.add(name.clone(), format!("queues.{name}"));
    }
    Ok(declared)
}

/// Declares the queues on the first backend that has queues, as soon as it is available.
///
/// # Errors
/// Those of the backend, other than `Unavailable`.
pub(super) async fn declare(process: &mut Process<'_>, backends: &[Backend]) -> Result<()> {
    let Some(queue) = backends.iter().find_map(|backend| backend.queue.clone()) else {
        return Ok(());
    };
    for (name, settings) in &process.config.queues {
        match queue.declare(name, settings).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                warn!(error = error.chain(), queue = %name, "queue not declared; retrying");
                let (queue, name, settings) = (Arc::clone(&queue), name.clone(), settings.clone());
                process.supervisor.start(
                    format!("declare-{name}"),
                    Stage::Maintain,
                    OnFailure::Restart,
                    move |_| {
                        let (queue, name, settings) =
                            (Arc::clone(&queue), name.clone(), settings.clone());
                        async move { queue.declare(&name, &settings).await }
                    },
                );
            }
            declared => declared?,
        }
    }
    Ok(())
}
