//! What `doctor` and `/readyz` say about a RabbitMQ.

use std::sync::atomic::Ordering;

use towpath_core::backend::Health;
use towpath_core::{Error, Result, ResultExt};

use super::connection::Open;
use super::store::{Known, Store, lock};

impl Store {
    /// Asks over both connections and after each queue; says what the broker thinks of us.
    pub(super) async fn health(&self) -> Result<Health> {
        self.check_open()?;
        let mut health = Health::default();
        let blocked = self.publisher.link.blocked();
        // A connection that is blocked answers nothing, and is well.
        let publishing = blocked.is_none().then_some(&self.publisher.link);
        for link in publishing.into_iter().chain([&*self.link]) {
            let open = link.open().await?;
            let channel = link.channel(&open).await?;
            link.call(&open, channel.close(200, "asked".into())).await?;
            health
                .facts
                .push(("server".to_owned(), format!("rabbitmq at {}", open.node)));
        }
        health.facts.dedup();
        let durability = "confirmed by the broker, which syncs quorum queues first";
        health
            .facts
            .push(("durability".to_owned(), durability.to_owned()));
        if let Some(why) = &blocked {
            health.warnings.push(format!(
                "the broker takes no messages just now: {why}; free memory or disk on its node"
            ));
        }
        let open = self.link.open().await?;
        let mut asks_majority = false;
        for known in self.all_known() {
            for stranded in self.elsewhere.of(&known.name) {
                let (queue, messages, place) = (&known.name, stranded.messages, stranded.place);
                health.warnings.push(format!(
                    "queue `{queue}` has {messages} messages and no consumer on `{place}`, a broker of the list that is not one cluster with `{}`: `towpath queue collect {queue}` moves them",
                    open.node
                ));
            }
            self.look_at(&open, &known, &mut health).await?;
            let shape = lock(&known.shape);
            asks_majority |= shape
                .as_ref()
                .is_some_and(super::definition::Shape::is_quorum);
        }
        if asks_majority && blocked.is_none() {
            self.majority.check().await?;
        }
        Ok(health)
    }

    /// One queue: whether it is there, and what the broker may do to its messages.
    async fn look_at(&self, open: &Open, known: &Known, health: &mut Health) -> Result<()> {
        let found = self.find(open, &known.wire).await;
        let found = found.context(|| format!("queue `{}`", known.name))?;
        if found.is_none() {
            return if known.is_declared.load(Ordering::Acquire) {
                Err(Error::unavailable(format!(
                    "queue `{}` is missing; it is declared again within seconds",
                    known.name
                )))
            } else {
                Ok(())
            };
        }
        let shape = lock(&known.shape).clone();
        let shape = match shape {
            Some(shape) => shape,
            None => {
                let declared = self.declare(open, &known.wire, self.shape(known)).await?;
                lock(&known.shape).insert(declared.shape).clone()
            }
        };
        let replicates = self.replicates(known);
        health
            .warnings
            .extend(shape.warnings(known.name.as_str(), replicates));
        Ok(())
    }
}
