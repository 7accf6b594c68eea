//! A stream that two groups read, each entry once per group: `cargo run --example stream`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use tokio::sync::mpsc;
use towpath::supervisor::Supervisor;
use towpath::{Engine, Job, JobError, Worker};

#[tokio::main]
async fn main() -> towpath::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = Engine::open(&format!("embedded:{}", folder.path().display())).await?;
    let changes = engine.stream("changes")?;
    for row in 1..=3 {
        changes.append(format!("row {row}")).await?;
    }

    let (handled, mut all) = mpsc::channel(10);
    let mut supervisor = Supervisor::new(std::time::Duration::from_secs(30));
    for name in ["search", "billing"] {
        let group = changes.group(name).await?;
        let handled = handled.clone();
        let worker = Worker::builder(&group).handler(move |job: Job| {
            let handled = handled.clone();
            async move {
                handled.send(format!("{name}: {}", job.text()?)).await?;
                Ok::<(), JobError>(())
            }
        })?;
        worker.start(&mut supervisor);
    }
    let six = async move {
        for _ in 0..6 {
            println!("{}", all.recv().await.unwrap_or_default());
        }
        "done".to_owned()
    };
    let report = supervisor.run(six, std::future::pending(), || ()).await;
    println!("clean: {}", report.is_clean());
    engine.close().await
}
