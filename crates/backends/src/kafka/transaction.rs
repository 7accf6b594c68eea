//! Transactions: records of several topics, and positions of a group, all at once or not at all.

use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use towpath_core::Result;

use super::client_context::ErrorLog;
use super::config::Config;
use super::produce::{self, Record};
use super::{error, store::blocking};

/// The producer of one transactional id: starting it aborts the open transaction of an earlier one, and fences it.
pub(super) struct Transactions {
    producer: FutureProducer<ErrorLog>,
    /// Timeout after which the broker ends an open transaction.
    limit: Duration,
}

/// Offsets of a group, with their metadata.
pub(super) struct GroupOffsets {
    pub(super) list: TopicPartitionList,
    pub(super) group: ConsumerGroupMetadata,
}

/// Why a transaction failed.
pub(super) enum Failed {
    /// Aborted: nothing was written.
    Aborted(KafkaError),
    /// Aborted, and a retry would fail too: these records exceed their topics' limit, or were batched
    /// with one that does.
    TooLarge(KafkaError, Vec<usize>),
    /// The outcome is unknown until the next producer of the id starts.
    Unknown(KafkaError),
}

impl Failed {
    pub(super) fn error(self) -> KafkaError {
        match self {
            Self::Aborted(error) | Self::TooLarge(error, _) | Self::Unknown(error) => error,
        }
    }
}

/// Positions as a list of the client.
pub(super) fn list(
    topic: &str,
    positions: &[(i32, i64, String)],
) -> std::result::Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, at, metadata) in positions {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Place::Offset(*at))?;
        element.set_metadata(metadata);
    }
    Ok(list)
}

impl Transactions {
    pub(super) async fn start(config: &Config, id: String, limit: Duration) -> Result<Self> {
        let open = limit.as_millis().to_string();
        let producer: FutureProducer<ErrorLog> = produce::client(config)
            .set("transactional.id", &id)
            .set("transaction.timeout.ms", &open)
            .set("message.timeout.ms", &open)
            .create_with_context(ErrorLog::default())
            .map_err(|error| error::of_call("start the producer", error))?;
        let (timeout, starting) = (config.timeout, producer.clone());
        blocking(move || {
            let started = starting.init_transactions(timeout);
            started.map_err(|error| {
                error::of_call(&format!("initialise transactions of `{id}`"), error)
            })
        })
        .await?;
        Ok(Self { producer, limit })
    }

    /// One transaction. Returns the partition and offset of each record.
    pub(super) async fn run(
        &self,
        records: Vec<Record<'_>>,
        positions: Option<GroupOffsets>,
    ) -> std::result::Result<Vec<(i32, i64)>, Failed> {
        self.producer.begin_transaction().map_err(Failed::Aborted)?;
        let mut places = Vec::with_capacity(records.len());
        let (mut failure, mut too_large) = (None, Vec::new());
        for (at, sent) in produce::all(&self.producer, records)
            .await
            .into_iter()
            .enumerate()
        {
            match sent {
                Ok(place) => places.push(place),
                Err(error) => {
                    if error::is_too_large(&error) {
                        too_large.push(at);
                    }
                    failure = failure.or(Some(error));
                }
            }
        }
        let (producer, limit) = (self.producer.clone(), self.limit);
        let ended = blocking(move || Ok(end(&producer, failure, positions, limit))).await;
        match ended {
            Ok(Err(Failed::Aborted(error))) if !too_large.is_empty() => {
                Err(Failed::TooLarge(error, too_large))
            }
            Ok(outcome) => outcome.map(|()| places),
            Err(_) => Err(Failed::Unknown(KafkaError::Canceled)),
        }
    }
}

fn end(
    producer: &FutureProducer<ErrorLog>,
    failure: Option<KafkaError>,
    positions: Option<GroupOffsets>,
    limit: Duration,
) -> std::result::Result<(), Failed> {
    let abort = |error: KafkaError| match producer.abort_transaction(limit) {
        Ok(()) => Failed::Aborted(error),
        Err(_) => Failed::Unknown(error),
    };
    if let Some(error) = failure {
        return Err(abort(error));
    }
    if let Some(GroupOffsets { list, group }) = positions
        && let Err(error) = producer.send_offsets_to_transaction(&list, &group, limit)
    {
        return Err(abort(error));
    }
    let until = Instant::now() + limit;
    loop {
        match producer.commit_transaction(limit) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                return Err(abort(KafkaError::Transaction(error)));
            }
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && Instant::now() < until => {}
            Err(error) => return Err(Failed::Unknown(error)),
        }
    }
}
