//! `towpath queue`.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, value_parser};
use http::Method;
use towpath_core::{QueueName, units};

use super::client::{Client, queue_path};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{Count, MessageView, QueueStats};
use crate::wiring::open;

/// What to do with queues.
#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// List queues with their statistics
    #[command(
        alias = "list",
        after_help = "Examples:\n  towpath queue ls\n  towpath queue ls --output json"
    )]
    Ls,
    /// Show the statistics of a queue
    #[command(after_help = "Examples:\n  towpath queue show messages")]
    Show(QueueArgs),
    /// Show the oldest messages without changing them
    #[command(after_help = "Examples:\n  towpath queue peek messages --max 3")]
    Peek {
        #[command(flatten)]
        named: QueueArgs,
        /// Maximum messages, 1 to 1000
        #[arg(long, default_value_t = 10, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
    },
    /// Pause delivery; messages are still accepted
    #[command(after_help = "Examples:\n  towpath queue pause messages")]
    Pause(QueueArgs),
    /// Resume delivery
    #[command(after_help = "Examples:\n  towpath queue resume messages")]
    Resume(QueueArgs),
    /// Delete ready and delayed messages; keeps leased messages and dead letters
    #[command(after_help = KEPT_KEYS.to_owned() + "\n\nExamples:\n  towpath queue purge messages --yes")]
    Purge {
        #[command(flatten)]
        named: QueueArgs,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
    /// Release the messages of dead consumers without starting a worker
    #[command(
        after_help = "Opens `backends.ingest` itself, for a time after the last worker was killed: on Redis its leased messages are in no list that other programs read. Consumers that are alive keep theirs.\n\nExamples:\n  towpath queue recover messages"
    )]
    Recover {
        #[command(flatten)]
        named: QueueArgs,
        /// Maximum wait in seconds; a dead consumer is detected after `consumer_timeout` (10 s)
        #[arg(long, default_value_t = 15)]
        wait: u64,
    },
    /// Move messages of a queue from other brokers of the URL to the one in use
    #[command(
        after_help = "For brokers that are not one cluster: after a fail-over and back, messages stay on the broker that no consumer is connected to. `queue ls` counts them.\n\nExamples:\n  towpath queue collect orders.queue"
    )]
    Collect(QueueArgs),
    /// Delete a queue without consumers, with its counters and idempotency keys
    #[command(
        alias = "delete",
        after_help = "Examples:\n  towpath queue rm old-jobs --force --yes"
    )]
    Rm {
        #[command(flatten)]
        named: QueueArgs,
        /// Delete its messages and dead letters too
        #[arg(long)]
        force: bool,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// The warning of commands that drop messages.
pub(super) const KEPT_KEYS: &str = "A dropped message keeps its idempotency key: a repeat of its request is answered as done, and stores nothing, until the window (`ingest.idempotency_window`, 24 h) is over.";

/// A queue by name.
#[derive(Debug, Args)]
pub(super) struct QueueArgs {
    /// The queue
    queue: String,
}

/// Interval of requests while dead consumers are waited for.
const LOOK: Duration = Duration::from_millis(200);

async fn recover(global: &Global, named: &QueueArgs, wait: u64) -> Result<Exit, Failure> {
    let loaded = global.load()?;
    let url = loaded.config.ingest_backend.expose();
    refuse_missing(url)?;
    towpath::net::certificate::install_provider();
    let backend = open(url).await?;
    let outcome = async {
        let queue = backend.require_queue("queue recover")?;
        let name = QueueName::new(&named.queue)?;
        let before = queue.stats(&name).await?.leased;
        // From now on the backend looks after this queue.
        queue.peek(&name, 1).await?;
        let until = Instant::now() + Duration::from_secs(wait);
        let mut left = before;
        while left > 0 && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            left = queue.stats(&name).await?.leased;
        }
        Ok::<_, towpath_core::Error>((before.saturating_sub(left), left))
    }
    .await;
    backend.lifecycle.close().await?;
    let (count, left) = outcome?;
    show_count(global, &Count { count }, "released")?;
    if left > 0 {
        output::note(format!("{left} are held by consumers that are alive"));
    }
    Ok(Exit::Ok)
}

pub(super) async fn run(global: &Global, command: QueueCommand) -> Result<Exit, Failure> {
    if let QueueCommand::Recover { named, wait } = &command {
        return recover(global, named, *wait).await;
    }
    let client = Client::new(global)?;
    let path = |named: &QueueArgs, rest: &str| queue_path(&named.queue, rest);
    match command {
        QueueCommand::Ls => {
            let queues = client.list::<QueueStats>("/v1/queues").await?;
            show(global, &queues.items, &queues.items)?;
            return Ok(queues.exit);
        }
        QueueCommand::Show(named) => {
            let stats: QueueStats = client.get(&path(&named, "")?).await?;
            show(global, std::slice::from_ref(&stats), &stats)?;
        }
        QueueCommand::Peek { named, max } => {
            let messages: Vec<MessageView> = client
                .get(&path(&named, &format!("/messages?max={max}"))?)
                .await?;
            match global.format {
                Format::Json => output::json(&messages)?,
                Format::Table => {
                    let shown = messages.len() as u64;
                    let rows = messages.into_iter().map(|one| {
                        vec![
                            one.id,
                            one.place,
                            one.attempts.to_string(),
                            one.enqueued_at,
                            short(&one.payload.payload),
                        ]
                    });
                    output::list(
                        &["ID", "STATE", "ATTEMPTS", "ENQUEUED", "PAYLOAD"],
                        rows.collect(),
                        "no messages that wait or are leased",
                    )?;
                    if shown == u64::from(max) {
                        let stats: QueueStats = client.get(&path(&named, "")?).await?;
                        let there = stats.ready + stats.delayed + stats.leased;
                        output::of(shown, there, "waiting message");
                    }
                }
            }
        }
        QueueCommand::Pause(named) => {
            let stats: QueueStats = client.post(&path(&named, "/pause")?, &()).await?;
            show(global, std::slice::from_ref(&stats), &stats)?;
        }
        QueueCommand::Resume(named) => {
            let stats: QueueStats = client.post(&path(&named, "/resume")?, &()).await?;
            show(global, std::slice::from_ref(&stats), &stats)?;
        }
        // Needs no running process.
        QueueCommand::Recover { .. } => {}
        QueueCommand::Collect(named) => {
            let count: Count = client.post(&path(&named, "/collect")?, &()).await?;
            show_count(global, &count, "moved")?;
        }
        QueueCommand::Purge { named, yes } => {
            confirm(
                yes,
                &format!(
                    "{KEPT_KEYS}\nDrop every waiting message of `{}`?",
                    named.queue
                ),
            )?;
            let count: Count = client.post(&path(&named, "/purge")?, &()).await?;
            show_count(global, &count, "dropped")?;
        }
        QueueCommand::Rm { named, force, yes } => {
            let what = if force {
                " with its messages and dead letters"
            } else {
                ""
            };
            confirm(yes, &format!("Delete `{}`{what}?", named.queue))?;
            let path = path(&named, &format!("?force={force}"))?;
            let count: Count = client.call(Method::DELETE, &path, &[], Vec::new()).await?;
            show_count(global, &count, "dropped")?;
        }
    }
    Ok(Exit::Ok)
}

fn show(
    global: &Global,
    queues: &[QueueStats],
    value: &impl serde::Serialize,
) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(value)?);
    }
    let rows = queues.iter().map(|one| {
        let numbers = [
            one.ready,
            one.delayed,
            one.leased,
            one.dead,
            one.enqueued,
            one.acked,
            one.retried,
        ];
        let mut row = vec![if one.paused {
            format!("{} (paused)", one.queue)
        } else {
            one.queue.clone()
        }];
        row.extend(numbers.map(units::count));
        row.push(age(one.oldest_ready_age_seconds));
        row.push(one.consumers.to_string());
        row
    });
    let headings = [
        "QUEUE",
        "READY",
        "DELAYED",
        "LEASED",
        "DEAD",
        "ENQUEUED",
        "ACKED",
        "RETRIED",
        "OLDEST READY",
        "CONSUMERS",
    ];
    let none = "no queues yet; `towpath send QUEUE` creates one";
    output::list(&headings, rows.collect(), none)?;
    for one in queues.iter().filter(|one| one.stranded > 0) {
        let (queue, count) = (&one.queue, one.stranded);
        output::note(format!(
            "`{queue}`: {count} messages more wait on another broker of the list; `towpath queue collect {queue}` moves them"
        ));
    }
    Ok(())
}

/// An age in seconds for a table.
pub(super) fn age(seconds: Option<u64>) -> String {
    let age = seconds.map(Duration::from_secs);
    age.map_or_else(|| "-".to_owned(), units::age)
}

/// Number of changed messages.
pub(super) fn show_count(global: &Global, count: &Count, done: &str) -> Result<(), Failure> {
    match global.format {
        Format::Json => output::json(count)?,
        Format::Table if global.quiet => {}
        Format::Table => output::line(format!("{} {done}", units::count(count.count)))?,
    }
    Ok(())
}

/// A payload for a table: its beginning, on one line.
pub(super) fn short(payload: &str) -> String {
    let line = towpath::sink::escape(payload.as_bytes());
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.into_owned(),
    }
}

/// Refuses an embedded store that does not exist: a look makes none.
pub(super) fn refuse_missing(url: &str) -> Result<(), Failure> {
    let folder = url.strip_prefix("embedded:");
    let folder = folder.and_then(|rest| rest.split('?').next());
    match folder {
        Some(folder) if !Path::new(folder).exists() => {
            let text = format!("store `{folder}` not found; `towpath up` creates it");
            Err(Failure::failed(text))
        }
        _ => Ok(()),
    }
}

/// Asks on a terminal; elsewhere wants `--yes`.
pub(super) fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "this cannot be undone; pass `--yes` to skip the confirmation",
        ));
    }
    output::note(format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("y") {
        Ok(())
    } else {
        Err(Failure::failed("nothing was done"))
    }
}
