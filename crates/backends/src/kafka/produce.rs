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

use super::client_context::Heard;
use super::config::{Config, LARGEST};
use super::consumer::lock;
use super::error;
use super::store::Store;

/// The pause when a producer's own queue is full.
const FULL: Duration = Duration::from_millis(5);

/// How many timeouts a record may take: a broker that is being replaced is waited for, and none is sent twice.
const DELIVERY: u32 = 6;

/// A record to be.
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

/// What all our producers have in common.
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
pub(super) fn start(config: &Config) -> Result<FutureProducer<Heard>> {
    let delivery = (config.timeout * DELIVERY).as_millis().to_string();
    client(config)
        .set("message.timeout.ms", delivery)
        .create_with_context(Heard::default())
        .map_err(|told| error::of_call("start the producer", told))
}

impl Store {
    /// Produces `count` records in order; partition and offset of each once it is acknowledged. Those whose topic was
    /// deleted are produced once more, after `declare` made it again.
    pub(super) async fn produce<'a>(
        &self,
        count: usize,
        record: impl Fn(usize) -> Record<'a>,
        declare: impl Future<Output = Result<()>>,
    ) -> Result<Vec<Result<(i32, i64)>>> {
        let mut outcomes = self.try_produce((0..count).map(&record).collect()).await?;
        let lost: Vec<usize> = (0..count)
            .filter(|at| outcomes[*at].as_ref().is_err_and(error::is_topicless))
            .collect();
        if !lost.is_empty() {
            declare.await?;
            let again = lost.iter().map(|at| record(*at)).collect();
            for (at, outcome) in lost.iter().zip(self.try_produce(again).await?) {
                outcomes[*at] = outcome;
            }
        }
        let of = |one: std::result::Result<_, KafkaError>| {
            one.map_err(|told| error::of_produce("produce", told))
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
            let told = match produced {
                Ok((partition, at)) => {
                    let before = known[topic].get(partition).copied().unwrap_or_default();
                    if before.is_beyond(*at) {
                        // What they fetched and do not have any more says nothing about the end.
                        self.joined.lose(topic, "the partition was truncated");
                        self.losses
                            .note_truncated(topic, *partition, *at, Some(before));
                    }
                    self.losses.reached(topic, *partition, at + 1);
                    continue;
                }
                Err(told) => told,
            };
            self.doubt(topic);
            // It lost its place in the numbering of the records, and cannot go on.
            is_broken |= matches!(
                error::code(told),
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
    producer: &FutureProducer<Heard>,
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
                Ok(Err((told, _))) => Err(told),
                Err(_) => Err(KafkaError::Canceled),
            },
            Err(told) => Err(told),
        });
    }
    outcomes
}

/// Hands a record to a producer; waits while its queue is full.
async fn send(
    producer: &FutureProducer<Heard>,
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
            Err((told, back)) if error::code(&told) == Some(Code::QueueFull) => record = back,
            Err((told, _)) => return Err(told),
        }
        sleep(FULL).await;
    }
}
