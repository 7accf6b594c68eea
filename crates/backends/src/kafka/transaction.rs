//! Transactions: records of several topics, and positions of a group, all at once or not at all.

use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use towpath_core::Result;

use super::client_context::Heard;
use super::config::Config;
use super::produce::{self, Record};
use super::{error, store::blocking};

/// The producer of one transactional id: starting it ends what an earlier one of that id left open, and shuts it out.
pub(super) struct Transactions {
    producer: FutureProducer<Heard>,
    /// How long a transaction may be open before the broker ends it.
    limit: Duration,
}

/// Positions of a group, with what is noted at them.
pub(super) struct Positions {
    pub(super) list: TopicPartitionList,
    pub(super) group: ConsumerGroupMetadata,
}

/// Why a transaction did not end well.
pub(super) enum Failed {
    /// Nothing of it is there.
    Aborted(KafkaError),
    /// Nothing of it is there, and never will be: these records are larger than their topics take, or were sent along
    /// with one that is.
    TooLarge(KafkaError, Vec<usize>),
    /// It may be there. The next producer of the id knows.
    Unknown(KafkaError),
}

impl Failed {
    pub(super) fn told(self) -> KafkaError {
        match self {
            Self::Aborted(told) | Self::TooLarge(told, _) | Self::Unknown(told) => told,
        }
    }
}

/// A list of positions as the client takes it.
pub(super) fn list(
    topic: &str,
    positions: &[(i32, i64, String)],
) -> std::result::Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, at, note) in positions {
        let mut element = list.add_partition(topic, *partition);
        element.set_offset(Place::Offset(*at))?;
        element.set_metadata(note);
    }
    Ok(list)
}

impl Transactions {
    pub(super) async fn start(config: &Config, id: String, limit: Duration) -> Result<Self> {
        let open = limit.as_millis().to_string();
        let producer: FutureProducer<Heard> = produce::client(config)
            .set("transactional.id", &id)
            .set("transaction.timeout.ms", &open)
            .set("message.timeout.ms", &open)
            .create_with_context(Heard::default())
            .map_err(|told| error::of_call("start the producer", told))?;
        let (timeout, starting) = (config.timeout, producer.clone());
        blocking(move || {
            let started = starting.init_transactions(timeout);
            started.map_err(|told| error::of_call(&format!("take over `{id}`"), told))
        })
        .await?;
        Ok(Self { producer, limit })
    }

    /// One transaction. Returns the partition and offset of each record.
    pub(super) async fn run(
        &self,
        records: Vec<Record<'_>>,
        positions: Option<Positions>,
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
                Err(told) => {
                    if error::is_too_large(&told) {
                        too_large.push(at);
                    }
                    failure = failure.or(Some(told));
                }
            }
        }
        let (producer, limit) = (self.producer.clone(), self.limit);
        let ended = blocking(move || Ok(end(&producer, failure, positions, limit))).await;
        match ended {
            Ok(Err(Failed::Aborted(told))) if !too_large.is_empty() => {
                Err(Failed::TooLarge(told, too_large))
            }
            Ok(outcome) => outcome.map(|()| places),
            Err(_) => Err(Failed::Unknown(KafkaError::Canceled)),
        }
    }
}

fn end(
    producer: &FutureProducer<Heard>,
    failure: Option<KafkaError>,
    positions: Option<Positions>,
    limit: Duration,
) -> std::result::Result<(), Failed> {
    let abort = |told: KafkaError| match producer.abort_transaction(limit) {
        Ok(()) => Failed::Aborted(told),
        Err(_) => Failed::Unknown(told),
    };
    if let Some(told) = failure {
        return Err(abort(told));
    }
    if let Some(Positions { list, group }) = positions
        && let Err(told) = producer.send_offsets_to_transaction(&list, &group, limit)
    {
        return Err(abort(told));
    }
    let until = Instant::now() + limit;
    loop {
        match producer.commit_transaction(limit) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(told)) if told.txn_requires_abort() => {
                return Err(abort(KafkaError::Transaction(told)));
            }
            Err(KafkaError::Transaction(told)) if told.is_retriable() && Instant::now() < until => {
            }
            Err(told) => return Err(Failed::Unknown(told)),
        }
    }
}
