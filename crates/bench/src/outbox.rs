//! The outbox: commits a second, the relay's rate on a backlog, and the time from a commit until its event can be read.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::JoinSet;
use towpath_core::port::outbox::NewEvent;
use towpath_core::port::queue::MAX_BATCH;
use towpath_core::port::stream::{ReadRequest, Start, Trim};
use towpath_core::port::{Outbox, Stream};
use towpath_core::{ConsumerId, Error, GroupName, MessageId, Result, StreamName};
use uuid::Uuid;

use super::limit::Limit;
use super::load::{Outcome, join};
use super::measure::{Latencies, Measurement};
use super::payload::{Payloads, check};
use crate::Row;
use crate::args::OutboxArgs;
use crate::relay::BenchRelay;
use towpath_server::wiring;

/// Interval of checks of a relay that catches up.
const LOOK: Duration = Duration::from_millis(20);

/// Between two events whose latency is measured: long enough for everything to come to rest.
const PAUSE: Duration = Duration::from_millis(10);

/// A committed event that cannot be read within this time counts as lost.
const LOST: Duration = Duration::from_secs(30);

/// Runs every measurement.
///
/// # Errors
/// Those of the database and the backend.
pub(crate) async fn run(args: &OutboxArgs) -> Result<Vec<Row>> {
    let folder = super::temporary(&args.folder)?;
    let own = format!("sqlite:{}/accounts.db", folder.path().display());
    let database = wiring::open_migrated(args.database.as_deref().unwrap_or(&own)).await?;
    let own = format!("embedded:{}/store", folder.path().display());
    let backend = wiring::open(args.backend.as_deref().unwrap_or(&own)).await?;
    let durability = super::durability(&backend).await?;
    let topic = format!("bench-{}", MessageId::new());
    let payloads = Arc::new(Payloads::new(args.size));
    let writer = Writer {
        outbox: database.outbox,
        payloads: Arc::clone(&payloads),
        topic: topic.as_str().into(),
    };
    let (mut rows, mut sent) = (Vec::new(), Vec::new());
    for callers in [1, 64] {
        let measurement = Measurement::start("commit", &database.url, callers, 1);
        let outcome = writer.load(callers, &args.bound.limit()).await?;
        rows.push(measurement.finish(outcome.messages(), outcome.latencies, None));
        sent.extend(outcome.sent);
    }

    let waiting = writer.outbox.backlog().await?.new;
    let measurement = Measurement::start("relay", &durability, 1, BenchRelay::BATCH);
    let relay = BenchRelay::start(Arc::clone(&writer.outbox), &backend)?;
    while writer.outbox.backlog().await?.new > 0 && !relay.is_over() {
        tokio::time::sleep(LOOK).await;
    }
    rows.push(measurement.finish(waiting, Latencies::default(), None));

    let stream = backend.require_stream("bench outbox")?;
    let mut reader = Reader {
        stream: Arc::clone(&stream),
        payloads,
        name: StreamName::new(&topic)?,
        group: GroupName::new("bench")?,
        consumer: ConsumerId::unique("bench")?,
        seen: Vec::new(),
    };
    stream
        .create_group(&reader.name, &reader.group, Start::Beginning)
        .await?;
    reader.until(sent.len()).await?;
    let measurement = Measurement::start("commit to reader", &durability, 1, 1);
    let (mut latencies, limit, first) = (Latencies::default(), args.bound.limit(), sent.len());
    while limit.take(1) && !relay.is_over() {
        sent.push(writer.write().await?);
        let committed = Instant::now();
        reader.until(sent.len()).await?;
        latencies.record(committed);
        tokio::time::sleep(PAUSE).await;
    }
    let timed = (sent.len() - first) as u64;
    let mut row = measurement.finish(timed, latencies, None);
    relay.stop().await?;
    (row.lost, row.duplicated) = check(&sent, reader.seen);
    rows.push(row);
    stream.trim(&reader.name, Trim::KeepLast(0)).await?;
    backend.lifecycle.close().await?;
    Ok(rows)
}

/// Writes events, each in a transaction of its own.
#[derive(Clone)]
struct Writer {
    outbox: Arc<dyn Outbox>,
    payloads: Arc<Payloads>,
    topic: Arc<str>,
}

impl Writer {
    /// One event, and its number as a range.
    async fn write(&self) -> Result<std::ops::Range<u64>> {
        let (numbers, mut payloads) = self.payloads.take(1);
        let text = payloads.pop().unwrap_or_default();
        let key = numbers.start.to_string();
        let event = NewEvent {
            id: Uuid::now_v7(),
            aggregate_type: "bench".to_owned(),
            aggregate_id: key.clone(),
            event_type: "bench.written".to_owned(),
            topic: self.topic.to_string(),
            key: Some(key),
            data: String::from_utf8_lossy(&text).into_owned(),
            created_at: Timestamp::now(),
            traceparent: None,
        };
        self.outbox.write(vec![event]).await?;
        Ok(numbers)
    }

    async fn load(&self, callers: usize, limit: &Limit) -> Result<Outcome> {
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (writer, limit) = (self.clone(), limit.clone());
            tasks.spawn(async move {
                let mut outcome = Outcome::default();
                while limit.take(1) {
                    let call = Instant::now();
                    outcome.sent.push(writer.write().await?);
                    outcome.latencies.record(call);
                }
                Ok(outcome)
            });
        }
        join(tasks).await
    }
}

/// Reads the topic.
struct Reader {
    stream: Arc<dyn Stream>,
    payloads: Arc<Payloads>,
    name: StreamName,
    group: GroupName,
    consumer: ConsumerId,
    seen: Vec<u64>,
}

impl Reader {
    /// Reads until it has seen `count` events.
    async fn until(&mut self, count: usize) -> Result<()> {
        let mut last = Instant::now();
        while self.seen.len() < count {
            let request = ReadRequest {
                stream: self.name.clone(),
                group: self.group.clone(),
                consumer: self.consumer.clone(),
                max: MAX_BATCH,
                wait: Duration::from_secs(1),
            };
            let entries = self.stream.read(request).await?;
            if !entries.is_empty() {
                last = Instant::now();
            } else if last.elapsed() > LOST {
                return Err(Error::unavailable(
                    "an event that was committed did not come",
                ));
            }
            let read = entries
                .iter()
                .filter_map(|entry| self.payloads.read(&entry.message.payload));
            self.seen.extend(read.map(|(number, _)| number));
            let finished: Vec<_> = entries.iter().map(|entry| entry.offset).collect();
            self.stream
                .commit(&self.name, &self.group, &finished)
                .await?;
        }
        Ok(())
    }
}
