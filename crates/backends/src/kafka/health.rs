//! What `doctor` and `/readyz` say about a Kafka.

use towpath_core::Result;
use towpath_core::backend::Health;

use super::store::Store;

impl Store {
    /// Asks the cluster for its topics.
    pub(super) async fn health(&self) -> Result<Health> {
        self.check_open()?;
        let topics = self.all_topics().await?.len();
        let mut health = Health::default();
        let facts = [
            ("server", format!("kafka at {}, {topics} topics", self.config.brokers)),
            (
                "durability",
                "acknowledged by every replica in sync (acks=all), of which the topic's `min.insync.replicas` asks for some".to_owned(),
            ),
        ];
        health
            .facts
            .extend(facts.map(|(name, fact)| (name.to_owned(), fact)));
        Ok(health)
    }
}
