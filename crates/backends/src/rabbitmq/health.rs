//! Health of a RabbitMQ for `doctor` and `/readyz`.

use std::sync::atomic::Ordering;

use towpath_core::backend::Health;
use towpath_core::{Error, Result, ResultExt};

use super::connection::OpenConnection;
use super::store::{QueueHandle, Store, lock};

impl Store {
    /// Checks both connections and each queue.
    pub(super) async fn health(&self) -> Result<Health> {
        self.check_open()?;
        let mut health = Health::default();
        let blocked = self.publisher.broker.blocked();
        // A blocked connection does not answer, and is healthy.
        let publishing = blocked.is_none().then_some(&self.publisher.broker);
        for broker in publishing.into_iter().chain([&*self.broker]) {
            let open = broker.open().await?;
            let channel = broker.channel(&open).await?;
            broker
                .call(&open, channel.close(200, "asked".into()))
                .await?;
            health
                .facts
                .push(("server".to_owned(), format!("rabbitmq at {}", open.node)));
        }
        health.facts.dedup();
        let durability = "confirmed by the broker, which syncs quorum queues first";
        health
            .facts
            .push(("durability".to_owned(), durability.to_owned()));
        let open = self.broker.open().await?;
        let mut asks_majority = false;
        for handle in self.handles() {
            for stranded in self.other_brokers.of(&handle.name) {
                let (queue, messages, place) = (&handle.name, stranded.messages, stranded.place);
                health.warnings.push(format!(
                    "queue `{queue}` has {messages} messages and no consumer on `{place}`, a broker of the list outside the cluster of `{}`; move them with `towpath queue collect {queue}`",
                    open.node
                ));
            }
            self.look_at(&open, &handle, &mut health).await?;
            let definition = lock(&handle.definition);
            asks_majority |= definition
                .as_ref()
                .is_some_and(super::definition::QueueDefinition::is_quorum);
        }
        if asks_majority && blocked.is_none() {
            self.quorum.check().await?;
        }
        Ok(health)
    }

    /// The alarms for which the broker blocks publishers: it says `low on memory`, `low on disk`, or both.
    pub(super) fn refusals(&self) -> Vec<(&'static str, bool)> {
        let blocked = self.publisher.broker.blocked();
        let is_disk = blocked.as_ref().is_some_and(|why| why.contains("disk"));
        let is_memory = blocked.as_ref().is_some_and(|why| why.contains("memory"));
        // Another reason of a later version counts as memory.
        let is_memory = is_memory || blocked.is_some() && !is_disk;
        vec![("disk", is_disk), ("memory", is_memory)]
    }

    /// Checks a queue: its existence and its definition.
    async fn look_at(
        &self,
        open: &OpenConnection,
        handle: &QueueHandle,
        health: &mut Health,
    ) -> Result<()> {
        let found = self.find(open, &handle.wire).await;
        let found = found.context(|| format!("queue `{}`", handle.name))?;
        if found.is_none() {
            return if handle.is_declared.load(Ordering::Acquire) {
                Err(Error::unavailable(format!(
                    "queue `{}` is missing; it is declared again within seconds",
                    handle.name
                )))
            } else {
                Ok(())
            };
        }
        let definition = lock(&handle.definition).clone();
        let definition = match definition {
            Some(definition) => definition,
            None => {
                let declared = self
                    .declare(open, &handle.wire, self.definition(handle))
                    .await?;
                lock(&handle.definition).insert(declared.definition).clone()
            }
        };
        let replicates = self.replicates(handle);
        health
            .warnings
            .extend(definition.warnings(handle.name.as_str(), replicates));
        Ok(())
    }
}
