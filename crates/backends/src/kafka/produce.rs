//! Producing: idempotent, acknowledged by every replica in sync.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::sleep;
use towpath_core::{Result, Timestamp};

use super::client_context::ErrorLog;
use super::config::{Config, LARGEST};
use super::consumer::lock;
use super::error;
use super::store::Store;

/// The pause when a producer's own queue is full.
const FULL: Duration = Duration::from_millis(5);

/// Delivery timeout in timeouts: long enough for a broker to be replaced, without sending a record twice.
const DELIVERY: u32 = 6;

/// A record to produce.
pub(super) struct Record<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    /// `None` deletes the key's record from a compacted topic.
    pub(super) payload: Option<&'a [u8]>,
    pub(super) headers: OwnedHeaders,
    /// Its timestamp, the time of sending where there is none.
    pub(super) at: Option<Timestamp>,
}

/// Settings of all our producers.
pub(super) fn client(config: &Config) -> ClientConfig {
    let mut client = config.client();
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        // The default is snappy: every client reads it, those without liblz4 too.
        .set("compression.type", config.compression)
        .set("message.max.bytes", LARGEST);
    client
}

/// A producer without transactions.
pub(super) fn start(config: &Config) -> Result<FutureProducer<ErrorLog>> {
    let delivery = (config.timeout * DELIVERY).as_millis().to_string();
    client(config)
        .set("message.timeout.ms", delivery)
        .create_with_context(ErrorLog::default())
        .map_err(|error| error::of_call("start the producer", error))
}

impl Store {
    /// Produces `count` records in order; partition and offset of each once it is acknowledged. Those whose topic was
    /// deleted are produced again, after `declare` recreated it.
    pub(super) async fn produce<'a>(
        &self,
        count: usize,
        record: impl Fn(usize) -> Record<'a>,
        declare: impl Future<Output = Result<()>>,
    ) -> Result<Vec<Result<(i32, i64)>>> {
        let mut outcomes = self.try_produce((0..count).map(&record).collect()).await?;
        let lost: Vec<usize> = (0..count)
            .filter(|at| outcomes[*at].as_ref().is_err_and(error::is_unknown_topic))
            .collect();
        if !lost.is_empty() {
            declare.await?;
            let again = lost.iter().map(|at| record(*at)).collect();
            for (at, outcome) in lost.iter().zip(self.try_produce(again).await?) {
                outcomes[*at] = outcome;
            }
        }
        let of = |one: std::result::Result<_, KafkaError>| {
            one.map_err(|error| error::of_produce("produce", error))
        };
        Ok(outcomes.into_iter().map(of).collect())
    }

    async fn try_produce(
        &self,
        records: Vec<Record<'_>>,
    ) -> Result<Vec<std::result::Result<(i32, i64), KafkaError>>> {
        self.check_open()?;
        let producer = lock(&self.producer).clone();
        let topics: Vec<&str> = records.iter().map(|record| record.topic).collect();
        let known: BTreeMap<&str, _> = topics
            .iter()
            .map(|topic| (*topic, self.losses.ends(topic)))
            .collect();
        let produced = all(&producer, records).await;
        let mut is_broken = false;
        for (topic, produced) in topics.into_iter().zip(&produced) {
            let error = match produced {
                Ok((partition, at)) => {
                    let before = known[topic].get(partition).copied().unwrap_or_default();
                    if before.is_beyond(*at) {
                        // The buffered records say nothing about the new end.
                        self.joined.invalidate(topic, "the partition was truncated");
                        self.losses
                            .note_truncated(topic, *partition, *at, Some(before));
                    }
                    self.losses.reached(topic, *partition, at + 1);
                    continue;
                }
                Err(error) => error,
            };
            self.doubt(topic);
            // It lost its sequence number, and cannot continue.
            is_broken |= matches!(
                error::code(error),
                Some(Code::Fatal | Code::OutOfOrderSequenceNumber | Code::UnknownProducerId)
            );
        }
        if is_broken {
            *lock(&self.producer) = start(&self.config)?;
        }
        Ok(produced)
    }
}

/// Produces records in order; partition and offset of each once it is acknowledged.
pub(super) async fn all(
    producer: &FutureProducer<ErrorLog>,
    records: Vec<Record<'_>>,
) -> Vec<std::result::Result<(i32, i64), KafkaError>> {
    let mut underway = Vec::with_capacity(records.len());
    for record in records {
        underway.push(send(producer, record).await);
    }
    let mut outcomes = Vec::with_capacity(underway.len());
    for sent in underway {
        outcomes.push(match sent {
            Ok(delivery) => match delivery.await {
                Ok(Ok(at)) => Ok((at.partition, at.offset)),
                Ok(Err((error, _))) => Err(error),
                Err(_) => Err(KafkaError::Canceled),
            },
            Err(error) => Err(error),
        });
    }
    outcomes
}

/// Queues a record at a producer; waits while its queue is full.
async fn send(
    producer: &FutureProducer<ErrorLog>,
    record: Record<'_>,
) -> std::result::Result<DeliveryFuture, KafkaError> {
    let mut record = FutureRecord {
        topic: record.topic,
        partition: record.partition,
        payload: record.payload,
        key: record.key,
        timestamp: record.at.and_then(|at| i64::try_from(at.as_millis()).ok()),
        headers: Some(record.headers),
    };
    loop {
        match producer.send_result(record) {
            Ok(delivery) => return Ok(delivery),
            Err((error, back)) if error::code(&error) == Some(Code::QueueFull) => record = back,
            Err((error, _)) => return Err(error),
        }
        sleep(FULL).await;
    }
}
