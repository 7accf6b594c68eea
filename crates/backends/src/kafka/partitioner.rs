//! Which partition a key belongs to: producers of one topic must agree, or the entries of a key lose their order.
//!
//! Clients differ in their default. librdkafka's is CRC-32 (`consistent_random`), which topics made here use; the
//! producers of the reference system use FNV-1a (`fnv1a_random`), which a topic that another program made gets.

use rdkafka::admin::ResourceSpecifier;
use tracing::info;

use super::config::LARGEST;
use super::consumer::lock;
use super::store::Store;

/// Hash function of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partitioner {
    /// CRC-32, the client's own.
    Crc32,
    /// FNV-1a.
    Fnv1a,
}

impl Partitioner {
    /// The partition of a key; `None` leaves it to the client.
    pub(super) fn place(self, key: Option<&[u8]>, count: i32) -> Option<i32> {
        match (self, key) {
            (Self::Fnv1a, Some(key)) if count > 0 => Some(fnv1a(key) % count),
            _ => None,
        }
    }
}

/// The 32-bit hash as a signed number without its sign. Source: Sarama's `NewHashPartitioner` and librdkafka's
/// `rd_fnv1a`, which agree.
fn fnv1a(key: &[u8]) -> i32 {
    let hash = key.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    // The lowest number has no positive counterpart; the client's remainder of it is the same.
    hash.cast_signed().checked_abs().unwrap_or(0)
}

impl Store {
    /// The partitioner of a stream's topic, detected once.
    pub(super) async fn partitioner(&self, topic: &str, count: i32) -> Partitioner {
        if let Some(configured) = self.config.partitioner {
            return configured;
        }
        if count < 2 {
            return Partitioner::Crc32;
        }
        if let Some(known) = lock(&self.partitioners).get(topic) {
            return *known;
        }
        let resources = [ResourceSpecifier::Topic(topic)];
        let options = self.options();
        let described = self.admin.describe_configs(&resources, &options);
        let described = described.await.ok().and_then(|mut all| all.pop()?.ok());
        // A user without the permission to describe the topic gets the client's default, and the topic is checked again later.
        let Some(described) = described else {
            return Partitioner::Crc32;
        };
        let largest = described.get("max.message.bytes");
        let is_ours = largest.is_some_and(|entry| entry.value.as_deref() == Some(LARGEST));
        let found = match is_ours {
            true => Partitioner::Crc32,
            false => Partitioner::Fnv1a,
        };
        if !is_ours {
            info!(
                topic,
                "topic of another program; partitioning keys by FNV-1a"
            );
        }
        lock(&self.partitioners).insert(topic.to_owned(), found);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_the_reference_puts_them() {
        // Test vectors of the hash: 0x811c9dc5 of nothing, 0xe40c292c of `a`, 0xbf9cf968 of `foobar`.
        assert_eq!(fnv1a(b""), 0x7ee3_623b);
        assert_eq!(fnv1a(b"a"), 0x1bf3_d6d4);
        assert_eq!(fnv1a(b"foobar"), 0x4063_0698);
        assert_eq!(
            Partitioner::Fnv1a.place(Some(b"a"), 3),
            Some(0x1bf3_d6d4 % 3)
        );
        assert_eq!(Partitioner::Fnv1a.place(None, 3), None);
        assert_eq!(Partitioner::Crc32.place(Some(b"a"), 3), None);
    }
}
