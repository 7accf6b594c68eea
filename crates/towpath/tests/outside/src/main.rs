//! `outside send FOLDER TEXT`, `outside crash FOLDER` (aborts in the middle of its first job), `outside work FOLDER`.

use towpath::{Engine, Job, JobError, Worker};

#[tokio::main]
async fn main() -> towpath::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, folder, ..] = &arguments[..] else {
        eprintln!("usage: outside send|crash|work FOLDER [TEXT]");
        std::process::exit(2);
    };
    let engine = Engine::open(&format!("embedded:{folder}")).await?;
    let jobs = engine.queue("jobs").await?;
    if command == "send" {
        jobs.send(arguments[2].clone()).await?;
        return engine.close().await;
    }
    let is_crash = command == "crash";
    let (done, mut all) = tokio::sync::mpsc::channel(1);
    let worker = Worker::builder(&jobs).handler(move |job: Job| {
        let done = done.clone();
        async move {
            if is_crash {
                std::process::abort();
            }
            println!("{} at attempt {}", job.text()?, job.attempt());
            done.send(()).await?;
            Ok::<(), JobError>(())
        }
    })?;
    worker
        .run_until(async move {
            all.recv().await;
        })
        .await;
    engine.close().await
}
