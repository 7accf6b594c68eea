//! Producing: idempotent, acknowledged by every replica in sync.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;

use super::config::{Config, LARGEST};
use super::error;

/// The pause when a producer's own queue is full.
const FULL: Duration = Duration::from_millis(5);

/// A record to be.
pub(super) struct Record<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a str>,
    /// `None` deletes the key's record from a compacted topic.
    pub(super) payload: Option<&'a [u8]>,
    pub(super) headers: OwnedHeaders,
}

/// What all our producers have in common.
pub(super) fn client(config: &Config) -> ClientConfig {
    let mut client = config.client();
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .set("message.max.bytes", LARGEST);
    client
}

/// Produces records in order; partition and offset of each once it is acknowledged.
pub(super) async fn all(
    producer: &FutureProducer,
    records: Vec<Record<'_>>,
) -> Vec<Result<(i32, i64), KafkaError>> {
    let mut underway = Vec::with_capacity(records.len());
    for record in records {
        underway.push(send(producer, record).await);
    }
    let mut outcomes = Vec::with_capacity(underway.len());
    for sent in underway {
        outcomes.push(match sent {
            Ok(delivery) => match delivery.await {
                Ok(Ok(at)) => Ok((at.partition, at.offset)),
                Ok(Err((told, _))) => Err(told),
                Err(_) => Err(KafkaError::Canceled),
            },
            Err(told) => Err(told),
        });
    }
    outcomes
}

/// Hands a record to a producer; waits while its queue is full.
async fn send(producer: &FutureProducer, record: Record<'_>) -> Result<DeliveryFuture, KafkaError> {
    let mut record = FutureRecord {
        topic: record.topic,
        partition: record.partition,
        payload: record.payload,
        key: record.key,
        timestamp: None,
        headers: Some(record.headers),
    };
    loop {
        match producer.send_result(record) {
            Ok(delivery) => return Ok(delivery),
            Err((told, back)) if error::code(&told) == Some(Code::QueueFull) => record = back,
            Err((told, _)) => return Err(told),
        }
        sleep(FULL).await;
    }
}
