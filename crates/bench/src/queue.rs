//! The queue port of a backend: enqueue, lease, ack.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use towpath_core::port::queue::MAX_BATCH;
use towpath_core::{Error, Result};

use super::line::Line;
use super::load::{DRAIN_BATCH, Load, Outcome, panicked};
use super::measure::Measurement;
use super::payload::{Payloads, check};
use crate::args::QueueArgs;
use crate::{Row, disk};
use towpath_server::wiring;

/// The pause of an idle producer: long enough for everything to come to rest.
const IDLE: Duration = Duration::from_millis(3);

/// Runs every measurement asked for and gives its rows.
///
/// # Errors
/// Those of the backend; a loss or a duplicate is in the rows.
pub(crate) async fn run(args: &QueueArgs) -> Result<Vec<Row>> {
    let folder = super::temporary(&args.folder)?;
    let mut rows = Vec::new();
    if args.backend.is_none() {
        // An idle store is compared with an idle disk.
        for pause in [Duration::ZERO, IDLE] {
            let (probe, limit) = (folder.path().to_owned(), args.bound.limit());
            let row = tokio::task::spawn_blocking(move || disk::measure(pause, &probe, &limit));
            rows.push(row.await.map_err(panicked)?.map_err(|error| {
                Error::unavailable("the disk cannot be measured").with_source(error)
            })?);
        }
    }
    let payloads = Arc::new(Payloads::new(args.size));
    for (number, url) in targets(args, folder.path()).into_iter().enumerate() {
        for (callers, batch) in shapes(args) {
            let url = url.replace("{run}", &format!("{number}-{callers}-{batch}"));
            let backend = wiring::open(&url).await?;
            let durability = super::durability(&backend).await?;
            let load = Load {
                line: Arc::new(Line::open(&backend, &format!("bench-{callers}-{batch}")).await?),
                payloads: Arc::clone(&payloads),
                callers,
                batch,
            };
            measure(&load, &durability, args, &mut rows).await?;
            backend.lifecycle.close().await?;
        }
    }
    Ok(rows)
}

/// The URLs to measure; `{run}` becomes a folder of its own for every shape.
fn targets(args: &QueueArgs, folder: &Path) -> Vec<String> {
    let own = |durability| {
        format!(
            "embedded:{}/{{run}}?durability={durability}",
            folder.display()
        )
    };
    match &args.backend {
        Some(url) => vec![url.clone()],
        None => ["fsync", "os", "none"].into_iter().map(own).collect(),
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
    load: &Load,
    durability: &str,
    args: &QueueArgs,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let Load { callers, batch, .. } = *load;
    let measurement = Measurement::start("enqueue", durability, callers, batch);
    let Outcome {
        sent, latencies, ..
    } = load.publish(&args.bound.limit(), Duration::ZERO).await?;
    let messages = sent.iter().map(|some| some.end - some.start).sum();
    rows.push(measurement.finish(messages, latencies, None));

    let measurement = Measurement::start("lease + ack", durability, 1, DRAIN_BATCH);
    let Outcome {
        seen,
        latencies,
        ended,
        ..
    } = load.drain().await?;
    let mut row = measurement.finish(seen.len() as u64, latencies, ended);
    (row.lost, row.duplicated) = check(&sent, seen);
    rows.push(row);

    if batch == 1 {
        rows.push(hand_over("end to end", load, durability, Duration::ZERO, args).await?);
    }
    if (callers, batch) == (1, 1) {
        rows.push(hand_over("end to end, idle", load, durability, IDLE, args).await?);
    }
    Ok(())
}

async fn hand_over(
    what: &'static str,
    load: &Load,
    durability: &str,
    pause: Duration,
    args: &QueueArgs,
) -> Result<Row> {
    let measurement = Measurement::start(what, durability, load.callers, 1);
    let outcome = load.hand_over(&args.bound.limit(), pause).await?;
    let messages = outcome.messages();
    let mut row = measurement.finish(messages, outcome.latencies, outcome.ended);
    (row.lost, row.duplicated) = check(&outcome.sent, outcome.seen);
    Ok(row)
}
