//! The exchanges and queues of the app. Every role declares those that it publishes to, so that no message is dropped
//! because its queue does not exist.

use std::sync::Arc;

use towpath_core::port::queue::Settings;
use towpath_core::port::routes::Binding;
use towpath_core::port::{Queue, Routes};
use towpath_core::{ExchangeName, QueueName, Result, ResultExt};

/// Orders on their way to the processor.
pub const ORDERS: &str = "orders.queue";
/// Events on their way to the notifier.
pub const NOTIFICATIONS: &str = "notifier.queue";
/// Events on their way to the notifier that no notifier of the reference system must take for a sale.
pub const REJECTIONS: &str = "notifier.rejected";
/// Where the gateway publishes, without a routing key.
pub(super) const INTAKE: &str = "orders.direct";
/// The processor's routing keys, by event.
pub(super) const EVENTS: &str = "orders.topic";
/// Stock was taken.
pub(super) const CREATED: &str = "order.created";
/// An order was rejected.
pub(super) const REJECTED: &str = "order.rejected";

/// Declarations, by broker.
#[derive(Clone)]
pub struct Topology {
    queue: Arc<dyn Queue>,
    routes: Arc<dyn Routes>,
    settings: Settings,
    bindings: Arc<[Binding; 2]>,
    /// Made by the notifier alone: without one nothing would read them.
    rejections: Arc<Binding>,
}

impl Topology {
    /// The names of the contract, with these settings for both queues.
    ///
    /// # Errors
    /// None in practice: the names are valid.
    pub fn new(queue: Arc<dyn Queue>, routes: Arc<dyn Routes>, settings: Settings) -> Result<Self> {
        let binding = |exchange: &str, pattern: &str, queue: &str| -> Result<Binding> {
            Ok(Binding {
                exchange: ExchangeName::new(exchange)?,
                pattern: pattern.to_owned(),
                queue: QueueName::new(queue)?,
            })
        };
        let bindings = [
            binding(INTAKE, "", ORDERS)?,
            binding(EVENTS, CREATED, NOTIFICATIONS)?,
        ];
        let rejections = Arc::new(binding(EVENTS, REJECTED, REJECTIONS)?);
        Ok(Self {
            queue,
            routes,
            settings,
            bindings: Arc::new(bindings),
            rejections,
        })
    }

    /// Makes sure that queues and bindings exist. Idempotent.
    ///
    /// # Errors
    /// Those of the broker.
    pub async fn declare(&self) -> Result<()> {
        for binding in self.bindings.iter() {
            self.declare_one(binding).await?;
        }
        Ok(())
    }

    /// Makes sure that rejected orders reach a notifier. Idempotent.
    ///
    /// # Errors
    /// Those of the broker.
    pub async fn declare_rejections(&self) -> Result<()> {
        self.declare_one(&self.rejections).await
    }

    async fn declare_one(&self, binding: &Binding) -> Result<()> {
        self.queue
            .declare(&binding.queue, &self.settings)
            .await
            .context(|| format!("declare `{}`", binding.queue))?;
        self.routes
            .bind(binding)
            .await
            .context(|| format!("bind `{}` to `{}`", binding.queue, binding.exchange))
    }
}
