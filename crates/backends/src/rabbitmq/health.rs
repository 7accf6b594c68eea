//! What `doctor` and `/readyz` say about a RabbitMQ.

use towpath_core::Result;
use towpath_core::backend::Health;

use super::store::Store;

impl Store {
    /// Asks over both connections; says what the broker thinks of us.
    pub(super) async fn health(&self) -> Result<Health> {
        self.check_open()?;
        let mut health = Health::default();
        let blocked = self.publisher.link.blocked();
        // A connection that is blocked answers nothing, and is well.
        let publishing = blocked.is_none().then_some(&self.publisher.link);
        for link in publishing.into_iter().chain([&self.link]) {
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
        if let Some(why) = blocked {
            health.warnings.push(format!(
                "the broker takes no messages just now: {why}; free memory or disk on its node"
            ));
        }
        Ok(health)
    }
}
