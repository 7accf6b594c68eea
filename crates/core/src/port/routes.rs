//! Routes: a message published with a routing key is copied into every bound queue at once.

use async_trait::async_trait;

use crate::{ExchangeName, NewMessage, QueueName, Result};

/// A rule: messages of `exchange` whose routing key matches `pattern` go into `queue`.
///
/// A pattern is words joined by dots; `*` stands for one word, `#` for any
/// number of words, none included. Source: AMQP 0-9-1, topic exchanges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Binding {
    /// Where messages are published.
    pub exchange: ExchangeName,
    /// Which routing keys match.
    pub pattern: String,
    /// Where a copy goes.
    pub queue: QueueName,
}

/// A message with its routing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The routing key that patterns are matched against.
    pub routing_key: String,
    /// The message.
    pub message: NewMessage,
}

/// Routing into queues.
#[async_trait]
pub trait Routes: Send + Sync {
    /// Adds a binding and makes its queue; durable, idempotent.
    ///
    /// # Errors
    /// `Invalid` for a pattern over 255 bytes.
    async fn bind(&self, binding: &Binding) -> Result<()>;

    /// Removes a binding; durable, idempotent. The queue stays.
    async fn unbind(&self, binding: &Binding) -> Result<()>;

    /// Every binding of the exchange.
    async fn bindings(&self, exchange: &ExchangeName) -> Result<Vec<Binding>>;

    /// Copies each message into every matching queue, once per queue, all in
    /// one step; durable when it returns. One outcome per message: the number of queues.
    ///
    /// # Errors
    /// Per message: `NotFound` when no binding matched (nothing stored), and those of `Queue::enqueue`.
    async fn publish(
        &self,
        exchange: &ExchangeName,
        publications: Vec<Publication>,
    ) -> Result<Vec<Result<usize>>>;
}

/// Whether a routing key matches a pattern.
pub fn matches(pattern: &str, routing_key: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = routing_key.split('.').collect();
    // reachable[i]: the pattern so far can consume exactly the first `i` words.
    let mut reachable = vec![false; key.len() + 1];
    reachable[0] = true;
    for word in pattern {
        let mut next = vec![false; key.len() + 1];
        if word == "#" {
            let mut open = false;
            for (after, before) in next.iter_mut().zip(&reachable) {
                open |= before;
                *after = open;
            }
        } else {
            for (index, key_word) in key.iter().enumerate() {
                next[index + 1] = reachable[index] && (word == "*" || word == *key_word);
            }
        }
        reachable = next;
    }
    reachable[key.len()]
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_by_amqp_rules() {
        for (pattern, key, expected) in [
            ("order.created", "order.created", true),
            ("order.created", "order.rejected", false),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.created.eu", false),
            ("order.#", "order", true),
            ("order.#", "order.created.eu", true),
            ("#", "anything.at.all", true),
            ("#.eu", "order.created.eu", true),
            ("#.eu", "order.created.us", false),
            ("*.#.eu", "order.eu", true),
            ("*.#.eu", "eu", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} against {key}");
        }
    }
}
