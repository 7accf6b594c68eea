//! The queue port of a backend: enqueue, lease, ack.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::{LeaseRequest, MAX_BATCH, Settlement, Verdict};
use towpath_core::{ConsumerId, Error, MessageId, NewMessage, QueueName, Result};

use super::measure::{Latencies, Measurement};
use super::{QueueArgs, Row, disk};
use crate::wiring;

/// Messages leased at once when draining.
const DRAIN_BATCH: usize = 100;

/// The pause of an idle producer: long enough for everything to come to rest.
const IDLE: Duration = Duration::from_millis(3);

/// Runs every measurement asked for and gives its rows.
///
/// # Errors
/// Those of the backend; a loss or a duplicate is in the rows.
pub(in crate::cli) async fn run(args: &QueueArgs) -> Result<Vec<Row>> {
    let folder = tempfile::Builder::new()
        .prefix("towpath-bench-")
        .tempdir_in(&args.folder)
        .map_err(|error| {
            Error::unavailable("the folder for the temporary store cannot be made")
                .with_source(error)
        })?;
    let mut rows = Vec::new();
    if args.backend.is_none() {
        let probe = folder.path().to_owned();
        let limit = args.limit();
        let row = tokio::task::spawn_blocking(move || disk::measure(&probe, &limit)).await;
        rows.push(row.map_err(panicked)?.map_err(|error| {
            Error::unavailable("the disk cannot be measured").with_source(error)
        })?);
    }
    for (number, (label, url)) in targets(args, folder.path()).into_iter().enumerate() {
        for (callers, batch) in shapes(args) {
            let url = url.replace("{run}", &format!("{number}-{callers}-{batch}"));
            let backend = wiring::open(&url).await?;
            measure(&backend, &label, callers, batch, args, &mut rows).await?;
            backend.lifecycle.close().await?;
        }
    }
    Ok(rows)
}

/// What to measure: label and URL; `{run}` becomes a folder of its own for every shape.
fn targets(args: &QueueArgs, folder: &Path) -> Vec<(String, String)> {
    match &args.backend {
        Some(url) => vec![("as configured".to_owned(), url.clone())],
        None => ["fsync", "os", "none"]
            .into_iter()
            .map(|durability| {
                (
                    durability.to_owned(),
                    format!(
                        "embedded:{}/{{run}}?durability={durability}",
                        folder.display()
                    ),
                )
            })
            .collect(),
    }
}

fn shapes(args: &QueueArgs) -> Vec<(usize, usize)> {
    let callers = args
        .callers
        .map_or_else(|| vec![1, 64, 1024], |one| vec![one]);
    let batches = args
        .batch
        .map_or_else(|| vec![1, 100], |one| vec![one.clamp(1, MAX_BATCH)]);
    let all = callers
        .iter()
        .flat_map(|callers| batches.iter().map(|batch| (*callers, *batch)));
    // A hundred thousand messages in flight measure memory, not the queue.
    let bounded = args.callers.is_some() || args.batch.is_some();
    all.filter(|(callers, batch)| bounded || callers * batch <= 64 * 100)
        .collect()
}

async fn measure(
    backend: &Backend,
    durability: &str,
    callers: usize,
    batch: usize,
    args: &QueueArgs,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let queue = backend.require_queue("bench queue")?;
    let name = QueueName::new(format!("bench-{callers}-{batch}"))?;
    queue.declare(&name, &Default::default()).await?;

    let measurement = Measurement::start("enqueue", durability, callers, batch);
    let (ids, latencies) = enqueue(&queue, &name, callers, batch, args).await?;
    rows.push(measurement.finish(ids.len() as u64, latencies));

    let measurement = Measurement::start("lease + ack", durability, 1, DRAIN_BATCH);
    let (seen, latencies) = drain(&queue, &name, ids.len()).await?;
    let row = measurement.finish(seen.len() as u64, latencies);
    rows.push(check(row, &ids, seen));

    if batch == 1 {
        rows.push(hand_over(&queue, &name, durability, callers, Duration::ZERO, args).await?);
    }
    if (callers, batch) == (1, 1) {
        rows.push(hand_over(&queue, &name, durability, callers, IDLE, args).await?);
    }
    Ok(())
}

/// Counts what is missing and what came twice; outside of what is measured.
fn check(mut row: Row, sent: &[MessageId], mut seen: Vec<MessageId>) -> Row {
    seen.sort_unstable();
    row.duplicated = seen.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
    let lost = sent.iter().filter(|id| seen.binary_search(id).is_err());
    row.lost = lost.count() as u64;
    row
}

async fn enqueue(
    queue: &Arc<dyn Queue>,
    name: &QueueName,
    callers: usize,
    batch: usize,
    args: &QueueArgs,
) -> Result<(Vec<MessageId>, Latencies)> {
    let limit = args.limit();
    let payload = Bytes::from(vec![b'x'; args.size]);
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (queue, name, payload) = (Arc::clone(queue), name.clone(), payload.clone());
        let limit = limit.clone();
        tasks.spawn(async move {
            let (mut ids, mut latencies) = (Vec::new(), Latencies::default());
            while limit.take(batch) {
                let messages: Vec<NewMessage> = (0..batch)
                    .map(|_| NewMessage::new(payload.clone()))
                    .collect();
                let call = Instant::now();
                for outcome in queue.enqueue(&name, messages).await? {
                    ids.push(outcome?.id());
                }
                latencies.record(call);
            }
            Ok::<_, Error>((ids, latencies))
        });
    }
    let (mut ids, mut latencies) = (Vec::new(), Latencies::default());
    while let Some(ended) = tasks.join_next().await {
        let (some, seen) = ended.map_err(panicked)??;
        ids.extend(some);
        latencies.merge(seen);
    }
    Ok((ids, latencies))
}

async fn drain(
    queue: &Arc<dyn Queue>,
    name: &QueueName,
    expected: usize,
) -> Result<(Vec<MessageId>, Latencies)> {
    let request = lease_request(name, DRAIN_BATCH)?;
    let (mut seen, mut latencies) = (Vec::with_capacity(expected), Latencies::default());
    loop {
        let call = Instant::now();
        let deliveries = queue.lease(request.clone()).await?;
        if deliveries.is_empty() {
            return Ok((seen, latencies));
        }
        let settlements = deliveries
            .into_iter()
            .map(|delivery| {
                seen.push(delivery.message.id);
                Settlement {
                    receipt: delivery.receipt,
                    verdict: Verdict::Ack,
                }
            })
            .collect();
        for outcome in queue.settle(settlements).await? {
            outcome?;
        }
        latencies.record(call);
    }
}

/// Enqueue, lease and ack side by side, with a pause between calls; the latency is from the call of enqueue to the delivery.
async fn hand_over(
    queue: &Arc<dyn Queue>,
    name: &QueueName,
    durability: &str,
    callers: usize,
    pause: Duration,
    args: &QueueArgs,
) -> Result<Row> {
    let what = match pause.is_zero() {
        true => "end to end",
        false => "end to end, idle",
    };
    let measurement = Measurement::start(what, durability, callers, 1);
    let began = Instant::now();
    let (limit, done) = (args.limit(), Arc::new(AtomicBool::new(false)));
    let mut producers = JoinSet::new();
    for _ in 0..callers {
        let (queue, name, size) = (Arc::clone(queue), name.clone(), args.size.max(8));
        let limit = limit.clone();
        producers.spawn(async move {
            let mut ids = Vec::new();
            while limit.take(1) {
                // The moment of the call travels in the payload.
                let mut payload = vec![b'x'; size];
                let moment = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                payload[..8].copy_from_slice(&moment.to_le_bytes());
                for outcome in queue.enqueue(&name, vec![NewMessage::new(payload)]).await? {
                    ids.push(outcome?.id());
                }
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            Ok::<_, Error>(ids)
        });
    }
    // Ends by itself, awaited below.
    let consumer = tokio::spawn(consume(
        Arc::clone(queue),
        lease_request(name, DRAIN_BATCH)?,
        began,
        Arc::clone(&done),
    ));
    let mut ids = Vec::new();
    while let Some(ended) = producers.join_next().await {
        ids.extend(ended.map_err(panicked)??);
    }
    done.store(true, Ordering::Release);
    let (seen, latencies) = consumer.await.map_err(panicked)??;
    let row = measurement.finish(ids.len() as u64, latencies);
    Ok(check(row, &ids, seen))
}

async fn consume(
    queue: Arc<dyn Queue>,
    request: LeaseRequest,
    began: Instant,
    done: Arc<AtomicBool>,
) -> Result<(Vec<MessageId>, Latencies)> {
    let (mut seen, mut latencies) = (Vec::new(), Latencies::default());
    loop {
        // Looked at before the lease: what was enqueued until then is found by it.
        let last = done.load(Ordering::Acquire);
        let deliveries = queue.lease(request.clone()).await?;
        if deliveries.is_empty() {
            if last {
                return Ok((seen, latencies));
            }
            continue;
        }
        let mut settlements = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            let moment = delivery
                .message
                .payload
                .first_chunk()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes));
            latencies.record(began + Duration::from_nanos(moment));
            seen.push(delivery.message.id);
            settlements.push(Settlement {
                receipt: delivery.receipt,
                verdict: Verdict::Ack,
            });
        }
        for outcome in queue.settle(settlements).await? {
            outcome?;
        }
    }
}

/// A measuring task that panicked.
pub(super) fn panicked(join: tokio::task::JoinError) -> Error {
    Error::unavailable("a measuring task panicked").with_source(join)
}

fn lease_request(name: &QueueName, max: usize) -> Result<LeaseRequest> {
    Ok(LeaseRequest {
        queue: name.clone(),
        consumer: ConsumerId::unique("bench")?,
        max,
        lease: Duration::from_secs(60),
        wait: Duration::from_millis(200),
    })
}
