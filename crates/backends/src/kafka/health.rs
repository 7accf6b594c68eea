//! Health of a Kafka for `doctor` and `/readyz`.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use towpath_core::Result;
use towpath_core::backend::Health;
use tracing::debug;

use super::consumer::lock;
use super::error;
use super::store::Store;
use super::topics::Design;

/// Longest wait for the settings of topics: `/readyz` has 2 s for all of it.
const SETTINGS: Duration = Duration::from_secs(1);

/// A setting of a topic that endangers its messages: its name, the check, and the advice.
struct Danger {
    name: &'static str,
    is_bad: fn(&str, Design) -> bool,
    advice: &'static str,
}

const DANGERS: [Danger; 4] = [
    Danger {
        name: "min.insync.replicas",
        is_bad: |value, _| value == "1",
        advice: "acknowledged by one replica; set 2 or more, with three replicas",
    },
    Danger {
        name: "cleanup.policy",
        is_bad: |value, design| match design {
            Design::Compacted => value != "compact",
            Design::Stream(_) | Design::Queue(_) => value != "delete",
        },
        advice: "expected `compact` for dead letters and positions and `delete` elsewhere: messages would be dropped or refused",
    },
    Danger {
        name: "retention.ms",
        is_bad: |value, design| matches!(design, Design::Queue(_)) && value != "-1",
        advice: "messages of a queue are deleted after it, consumed or not; set -1",
    },
    Danger {
        name: "retention.bytes",
        is_bad: |value, design| matches!(design, Design::Queue(_)) && value != "-1",
        advice: "messages of a queue are deleted beyond it, consumed or not; set -1",
    },
];

impl Store {
    /// Checks the cluster's topics, and the settings of those that this process uses.
    pub(super) async fn health(&self) -> Result<Health> {
        self.check_open()?;
        let timeout = self.config.timeout;
        let all = self.ask(move |asker| {
            let metadata = asker.fetch_metadata(None, timeout);
            let metadata = metadata.map_err(|error| error::of_call("list topics", error))?;
            let fewest = metadata.topics().iter().map(|topic| {
                let replicas = topic.partitions().iter().map(|one| one.replicas().len());
                (topic.name().to_owned(), replicas.min().unwrap_or(0))
            });
            Ok((metadata.brokers().len(), fewest.collect::<BTreeMap<_, _>>()))
        });
        let (brokers, topics) = all.await?;
        let mut health = Health::default();
        let facts = [
            (
                "server",
                format!(
                    "kafka at {}, {} topics, {brokers} brokers",
                    self.config.brokers,
                    topics.len()
                ),
            ),
            (
                "durability",
                "acknowledged by every replica in sync (acks=all), at least the topic's `min.insync.replicas`".to_owned(),
            ),
        ];
        health.figures = vec![("topics", topics.len() as u64), ("brokers", brokers as u64)];
        health
            .facts
            .extend(facts.map(|(name, fact)| (name.to_owned(), fact)));
        let designs = lock(&self.designs).clone();
        let used = designs
            .into_iter()
            .filter(|(topic, _)| topics.contains_key(topic));
        let used: BTreeMap<String, Design> = used.collect();
        let alone = used.keys().filter(|topic| topics[*topic] == 1);
        let alone: Vec<&str> = alone.map(String::as_str).collect();
        if !alone.is_empty() {
            health.warnings.push(format!(
                "one replica: {}; acknowledged messages are lost with one broker's disk",
                alone.join(", ")
            ));
        }
        health.warnings.extend(self.dangers(&used, &alone).await);
        health.warnings.extend(self.losses.warnings());
        Ok(health)
    }

    /// Dangerous settings of these topics, one line for each danger.
    async fn dangers(&self, used: &BTreeMap<String, Design>, alone: &[&str]) -> Vec<String> {
        let topics: Vec<ResourceSpecifier<'_>> = used
            .keys()
            .map(|topic| ResourceSpecifier::Topic(topic))
            .collect();
        if topics.is_empty() {
            return Vec::new();
        }
        let options = AdminOptions::new().request_timeout(Some(SETTINGS));
        let described = match self.admin.describe_configs(&topics, &options).await {
            Ok(described) => described,
            // A user may be allowed to use topics and not to describe them.
            Err(error) => {
                debug!(%error, "topic settings unavailable");
                return Vec::new();
            }
        };
        let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((topic, design), settings) in used.iter().zip(described) {
            let Ok(settings) = settings else { continue };
            for danger in &DANGERS {
                let value = settings.get(danger.name).and_then(|one| one.value.clone());
                let Some(value) = value else { continue };
                // With one replica this setting cannot be higher.
                let is_reported =
                    danger.name == "min.insync.replicas" && alone.contains(&topic.as_str());
                if (danger.is_bad)(&value, *design) && !is_reported {
                    let name = danger.name;
                    let of = found.entry(danger.advice).or_default();
                    of.push(format!("`{topic}` has `{name}={value}`"));
                }
            }
        }
        found
            .into_iter()
            .map(|(advice, of)| format!("{}: {advice}", of.join(", ")))
            .collect()
    }
}
