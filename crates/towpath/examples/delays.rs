//! Messages for later, sent once, and in order per key: `cargo run --example delays`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use towpath::{Engine, Job, JobError, NewMessage, Worker};

#[tokio::main]
async fn main() -> towpath::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = Engine::open(&format!("embedded:{}", folder.path().display())).await?;
    let reminders = engine.queue("reminders").await?;
    let sent_at = Instant::now();
    reminders
        .send_in(Duration::from_millis(300), "later")
        .await?;
    // Sent twice with one dedup id, stored once.
    for _ in 0..2 {
        let once = NewMessage {
            dedup_id: Some("invoice-7".to_owned()),
            ..NewMessage::new("now")
        };
        reminders.send(once).await?;
    }
    // Messages of a key are handled in order, one at a time.
    for text in ["first of zoe", "second of zoe"] {
        let keyed = NewMessage {
            key: Some("zoe".to_owned()),
            ..NewMessage::new(text)
        };
        reminders.send(keyed).await?;
    }

    let (handled, mut all) = mpsc::channel(10);
    let worker = Worker::builder(&reminders).handler(move |job: Job| {
        let handled = handled.clone();
        async move {
            handled.send(job.text()?.to_owned()).await?;
            Ok::<(), JobError>(())
        }
    })?;
    let four = async move {
        for _ in 0..4 {
            let text = all.recv().await.unwrap_or_default();
            println!("{text}, after {:?}", sent_at.elapsed());
        }
    };
    worker.run_until(four).await;
    engine.close().await
}
