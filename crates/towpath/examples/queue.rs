//! A queue and a worker in one program, on files in a folder: `cargo run --example queue`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use tokio::sync::mpsc;
use towpath::{Engine, Job, JobError, Worker};

#[tokio::main]
async fn main() -> towpath::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = Engine::open(&format!("embedded:{}", folder.path().display())).await?;
    let emails = engine.queue("emails").await?;
    for name in ["zoe", "ada", "lin"] {
        emails.send(format!("to: {name}@example.com")).await?;
    }

    let (sent, mut all) = mpsc::channel(3);
    let worker = Worker::builder(&emails).handler(move |job: Job| {
        let sent = sent.clone();
        async move {
            println!("sending {}", job.text()?);
            sent.send(()).await?;
            Ok::<(), JobError>(())
        }
    })?;
    // A service calls `worker.run()`, which ends with SIGTERM. This one ends after three messages.
    let three = async move {
        for _ in 0..3 {
            all.recv().await;
        }
    };
    let report = worker.run_until(three).await;
    println!("{} acked", report.tasks[0].counts["acked"]);
    engine.close().await
}
