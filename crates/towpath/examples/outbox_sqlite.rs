//! An event written in the transaction of its change, and relayed: `cargo run --example outbox_sqlite --features sqlite`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;
use towpath::outbox::{self, NewEvent, Relay, Target};
use towpath::supervisor::Supervisor;
use towpath::{Engine, Job, JobError, Worker};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shop.db");
    let database = outbox::open(&format!("sqlite:{}", file.display())).await?;
    let mut connection = Connection::open(&file)?;
    connection.execute(
        "CREATE TABLE invoices (id INTEGER PRIMARY KEY, state TEXT)",
        [],
    )?;
    for (id, is_kept) in [(1, true), (2, false), (3, true)] {
        let transaction = connection.transaction()?;
        transaction.execute("INSERT INTO invoices VALUES (?1, 'paid')", [id])?;
        outbox::sqlite::write_event(
            &transaction,
            &NewEvent::new("invoices", id, "paid", format!("{{\"id\":{id}}}")),
        )?;
        match is_kept {
            true => transaction.commit()?,
            // Without the change there is no event.
            false => transaction.rollback()?,
        }
    }

    let engine = Engine::open(&format!(
        "embedded:{}",
        folder.path().join("data").display()
    ))
    .await?;
    let mut supervisor = Supervisor::new(Duration::from_secs(30));
    Relay::new(
        database.outbox.clone(),
        Target::of(engine.backend(), "relay")?,
    )
    .start(&mut supervisor);
    let (handled, mut all) = mpsc::channel(10);
    let group = engine.stream("invoices")?.group("mailer").await?;
    let worker = Worker::builder(&group).handler(move |job: Job| {
        let handled = handled.clone();
        async move {
            handled.send(job.text()?.to_owned()).await?;
            Ok::<(), JobError>(())
        }
    })?;
    worker.start(&mut supervisor);
    let two = async move {
        for _ in 0..2 {
            println!("{}", all.recv().await.unwrap_or_default());
        }
        "done".to_owned()
    };
    supervisor.run(two, std::future::pending(), || ()).await;
    engine.close().await?;
    Ok(())
}
