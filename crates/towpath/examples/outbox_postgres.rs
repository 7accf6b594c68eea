//! The same in PostgreSQL: `cargo run --example outbox_postgres --features postgres -- postgres://user@localhost/shop`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]
#![expect(clippy::disallowed_methods, reason = "the program's own task")]

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::NoTls;
use towpath::outbox::{self, NewEvent, Relay, Target};
use towpath::supervisor::Supervisor;
use towpath::{Engine, Job, JobError, Worker};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .ok_or("usage: outbox_postgres URL")?;
    let database = outbox::open(&url).await?;
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    // The connection of the client; ends with it.
    tokio::spawn(connection);
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS invoices (id INT PRIMARY KEY, state TEXT)")
        .await?;
    for (id, is_kept) in [(1, true), (2, false), (3, true)] {
        let transaction = client.transaction().await?;
        transaction
            .execute("INSERT INTO invoices VALUES ($1, 'paid')", &[&id])
            .await?;
        outbox::postgres::write_event(
            &transaction,
            &NewEvent::new("invoices", id, "paid", format!("{{\"id\":{id}}}")),
        )
        .await?;
        match is_kept {
            true => transaction.commit().await?,
            // Without the change there is no event.
            false => transaction.rollback().await?,
        }
    }

    let folder = tempfile::tempdir()?;
    let engine = Engine::open(&format!("embedded:{}", folder.path().display())).await?;
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
