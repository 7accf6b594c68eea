//! Failures: tried again by a policy, dead letters, and their redrive: `cargo run --example retries`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use towpath::{Engine, Job, JobError, Queue, Settings, Worker, retry};

#[tokio::main]
async fn main() -> towpath::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = Engine::open(&format!("embedded:{}", folder.path().display())).await?;
    let settings = Settings {
        retry: retry::Policy {
            attempts: 3,
            first: Duration::from_millis(20),
            max: Duration::from_secs(1),
        },
        ..Settings::default()
    };
    let payments = engine.queue_with("payments", settings).await?;
    for amount in ["12", "zero", "3000"] {
        payments.send(amount).await?;
    }

    let is_repaired = Arc::new(AtomicBool::new(false));
    run(&payments, &is_repaired, |stats| {
        stats.dead == 2 && stats.acked == 1
    })
    .await?;
    for dead in payments.dead_letters(10).await? {
        let payload = String::from_utf8_lossy(&dead.message.payload).into_owned();
        println!("{payload}: attempt {}, {}", dead.attempts, dead.reason);
    }

    is_repaired.store(true, Ordering::SeqCst);
    println!("{} redriven", payments.redrive(10).await?);
    run(&payments, &is_repaired, |stats| stats.acked == 3).await?;
    println!("{} acked", payments.stats().await?.acked);
    engine.close().await
}

/// Handles payments until the counts of the queue are as expected.
async fn run(
    payments: &Queue,
    is_repaired: &Arc<AtomicBool>,
    is_over: impl Fn(towpath::Stats) -> bool,
) -> towpath::Result<()> {
    let is_repaired = Arc::clone(is_repaired);
    let worker = Worker::builder(payments).handler(move |job: Job| {
        let is_repaired = is_repaired.load(Ordering::SeqCst);
        async move { charge(&job, is_repaired) }
    })?;
    let over = async {
        while !payments.stats().await.is_ok_and(&is_over) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    worker.run_until(over).await;
    Ok(())
}

fn charge(job: &Job, is_repaired: bool) -> Result<(), JobError> {
    let text = job.text()?;
    if is_repaired {
        return Ok(());
    }
    let amount: u64 = text
        .parse()
        .map_err(|error| JobError::dead_letter(format!("`{text}` is not an amount: {error}")))?;
    match amount {
        0..=1_000 => Ok(()),
        // Tried three times.
        _ => Err(JobError::retry("the card was refused")),
    }
}
