//! Queue definitions: properties and arguments, as declared here and as the broker's refusals describe existing queues.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// The definition of a queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QueueDefinition {
    pub(super) durable: bool,
    auto_delete: bool,
    arguments: FieldTable,
    /// False when the user may not inspect the queue.
    known: bool,
}

impl QueueDefinition {
    /// A durable queue without arguments, as most programs declare one.
    pub(super) fn plain() -> Self {
        Self {
            durable: true,
            auto_delete: false,
            arguments: FieldTable::default(),
            known: true,
        }
    }

    /// A quorum queue, or a classic one that a policy may replicate.
    ///
    /// Without a delivery limit of its own: RabbitMQ 3 takes -1 for less than one return, and 4 for none.
    pub(super) fn replicated(quorum: bool) -> Self {
        let kind = if quorum { "quorum" } else { "classic" };
        Self::plain().with("x-queue-type", AMQPValue::LongString(kind.into()))
    }

    /// The same with a dead-letter target: for messages that the broker drops or, with a TTL, that expire.
    pub(super) fn dead_lettering_to(self, queue: &str) -> Self {
        let is_quorum = self.is_quorum();
        let definition = self
            .with("x-dead-letter-exchange", AMQPValue::LongString("".into()))
            .with(
                "x-dead-letter-routing-key",
                AMQPValue::LongString(queue.into()),
            );
        if is_quorum {
            // The broker keeps a message until the target queue has confirmed it.
            definition
                .with(STRATEGY, AMQPValue::LongString("at-least-once".into()))
                .with("x-overflow", AMQPValue::LongString("reject-publish".into()))
        } else {
            definition
        }
    }

    pub(super) fn with(mut self, name: &str, value: AMQPValue) -> Self {
        self.arguments.insert(name.into(), value);
        self
    }

    /// Of an existing queue that the user may not inspect.
    pub(super) fn unknown() -> Self {
        Self {
            known: false,
            ..Self::plain()
        }
    }

    pub(super) fn options(&self) -> QueueDeclareOptions {
        QueueDeclareOptions {
            durable: self.durable,
            auto_delete: self.auto_delete,
            ..QueueDeclareOptions::default()
        }
    }

    pub(super) fn arguments(&self) -> FieldTable {
        self.arguments.clone()
    }

    pub(super) fn is_quorum(&self) -> bool {
        self.text("x-queue-type") == Some("quorum")
    }

    /// Whether it is a quorum queue from which the broker drops nothing.
    pub(super) fn is_kept_from_loss(&self) -> bool {
        self.is_quorum() && self.text(STRATEGY) == Some("at-least-once")
    }

    /// Number of requeues after which a message is published again, to stay below the broker's delivery limit; `None` where
    /// the broker does not count.
    pub(super) fn renew_after(&self) -> Option<u32> {
        /// Half of the limit that RabbitMQ 4 sets.
        const EARLY: u32 = 10;
        self.is_quorum().then(|| {
            if self.text("x-dead-letter-exchange").is_some() {
                EARLY
            } else {
                1
            }
        })
    }

    /// Adopts the difference that the broker reports. Returns whether there was one.
    pub(super) fn learn(&mut self, refusal: &str) -> bool {
        if let Some(name) = quoted_after(refusal, "invalid arg ") {
            return self.remove(name);
        }
        let Some(name) = quoted_after(refusal, "inequivalent arg ") else {
            return false;
        };
        let Some((_, current)) = refusal.rsplit_once("but current is ") else {
            return false;
        };
        let value = quoted_after(current, "the value ").or_else(|| quoted_after(current, ""));
        match (name, value) {
            ("durable", Some(value)) => self.durable = value == "true",
            ("auto_delete", Some(value)) => self.auto_delete = value == "true",
            (_, None) => return self.remove(name),
            (_, Some(value)) => {
                let is_text = current.contains("longstr")
                    || matches!(self.argument(name), Some(AMQPValue::LongString(_)));
                let value = match value.parse() {
                    Ok(number) if !is_text => AMQPValue::LongLongInt(number),
                    _ => AMQPValue::LongString(value.into()),
                };
                if self.argument(name) == Some(&value) {
                    return false;
                }
                self.arguments.insert(name.into(), value);
            }
        }
        true
    }

    /// Warnings for operators; `replicates` when queues are meant to be replicated.
    pub(super) fn warnings(&self, queue: &str, replicates: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.known {
            return warnings;
        }
        if !self.durable {
            warnings.push(format!(
                "queue `{queue}` is not durable: it and its messages are lost when its node stops; delete it, and a durable one is declared"
            ));
        } else if replicates && !self.is_quorum() {
            warnings.push(format!(
                "queue `{queue}` is a classic queue and not replicated: its messages are unavailable while its node is down; delete it when it is empty, and a quorum queue is declared"
            ));
        }
        let ends = [
            (
                "x-message-ttl",
                "drops messages after this number of milliseconds",
            ),
            (
                "x-expires",
                "deletes the queue when it was not used for this number of milliseconds",
            ),
        ];
        for (name, what) in ends {
            if let Some(value) = self.argument(name) {
                let reason = format!("queue `{queue}` has `{name}={}`", shown(value));
                if name == "x-expires" || self.text("x-dead-letter-exchange").is_none() {
                    warnings.push(format!("{reason}: the broker {what}"));
                }
            }
        }
        let drops = !self
            .text("x-overflow")
            .is_some_and(|overflow| overflow.starts_with("reject-publish"));
        for name in ["x-max-length", "x-max-length-bytes"] {
            if let Some(value) = self.argument(name)
                && drops
            {
                warnings.push(format!(
                    "queue `{queue}` has `{name}={}` and drops its oldest messages when it is full; set `x-overflow=reject-publish`",
                    shown(value)
                ));
            }
        }
        if let Some(AMQPValue::LongLongInt(limit)) = self.argument(DELIVERY_LIMIT)
            && *limit >= 0
            && self.text("x-dead-letter-exchange").is_some()
        {
            warnings.push(format!(
                "queue `{queue}` has `{DELIVERY_LIMIT}={limit}`: the broker moves a message to its own dead-letter exchange after that number of returns, regardless of `retry.attempts`"
            ));
        }
        warnings
    }

    fn argument(&self, name: &str) -> Option<&AMQPValue> {
        self.arguments.inner().get(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.argument(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        let before = self.arguments.inner().len();
        let rest = self.arguments.inner().iter();
        let rest = rest.filter(|(one, _)| one.as_str() != name);
        let rest = rest.map(|(name, value)| (name.clone(), value.clone()));
        self.arguments = rest
            .collect::<std::collections::BTreeMap<ShortString, AMQPValue>>()
            .into();
        self.arguments.inner().len() < before
    }
}

const DELIVERY_LIMIT: &str = "x-delivery-limit";
const STRATEGY: &str = "x-dead-letter-strategy";

/// The text in quotation marks right after `before`.
fn quoted_after<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    let rest = rest.strip_prefix('\'')?;
    rest.split_once('\'').map(|(value, _)| value)
}

fn shown(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_reveal_the_definition() {
        let mut definition = QueueDefinition::replicated(true).dead_lettering_to("q.dead");
        // As RabbitMQ 3.10 answers a declaration.
        for refusal in include_str!("../../tests/samples/rabbitmq-refusals.txt").lines() {
            assert!(definition.learn(refusal), "{refusal}");
        }
        assert!(!definition.durable && !definition.is_quorum());
        assert_eq!(definition.argument("x-overflow"), None);
        let warnings = definition.warnings("q", true).join("\n");
        assert!(warnings.contains("not durable"), "{warnings}");
        assert!(warnings.contains("x-message-ttl=60000"), "{warnings}");
        assert!(!definition.learn("NOT_ALLOWED - vhost is down"));
    }

    #[test]
    fn a_queue_made_here_has_nothing_to_warn_of() {
        let definition = QueueDefinition::replicated(true).dead_lettering_to("q.dead");
        assert_eq!(definition.warnings("q", true), [""; 0]);
        assert_eq!(definition.renew_after(), Some(10));
        assert_eq!(QueueDefinition::plain().renew_after(), None);
    }
}
