//! `towpath dlq`: dead letters.

use clap::{Args, Subcommand, value_parser};
use towpath_core::MessageId;

use super::client::{Client, queue_path};
use super::queue::{KEPT_KEYS, confirm, short, show_count};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{Count, DeadLetterView, Letters};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// The oldest dead letters of a queue
    #[command(
        after_help = "Examples:\n  towpath dlq ls messages\n  towpath dlq ls messages --max 100 --output json"
    )]
    Ls {
        /// The queue
        queue: String,
        /// Most letters, 1 to 1000
        #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
        /// Those behind this message id
        #[arg(long)]
        after: Option<String>,
    },
    /// One dead letter with its whole history
    #[command(after_help = "`towpath dlq ls QUEUE` shows the ids.")]
    Show {
        /// The queue
        queue: String,
        /// The message id
        id: String,
    },
    /// Put dead letters back to the end of their queue
    #[command(after_help = "Examples:\n  towpath dlq requeue messages --all")]
    Requeue(Chosen),
    /// Delete dead letters for good
    #[command(after_help = KEPT_KEYS.to_owned() + "\n\nExamples:\n  towpath dlq drop messages --all --yes")]
    Drop {
        #[command(flatten)]
        chosen: Chosen,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// The queue
    queue: String,
    /// Message ids, or `--all`
    #[arg(conflicts_with = "all")]
    ids: Vec<String>,
    /// Every one
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(global: &Global, command: DlqCommand) -> Result<Exit, Failure> {
    let client = Client::new(global)?;
    match command {
        DlqCommand::Ls { queue, max, after } => {
            let letters = letters(&client, &queue, max, after.as_deref()).await?;
            match global.format {
                Format::Json => output::json(&letters)?,
                Format::Table => output::table(
                    &["ID", "ATTEMPTS", "DIED", "REASON", "PAYLOAD"],
                    letters.into_iter().map(|one| {
                        vec![
                            one.id,
                            one.attempts.to_string(),
                            one.died_at,
                            short(&one.reason),
                            short(&one.payload.payload),
                        ]
                    }),
                )?,
            }
        }
        DlqCommand::Show { queue, id } => {
            let mut after = None;
            loop {
                let page = letters(&client, &queue, 1000, after.as_deref()).await?;
                if let Some(letter) = page.iter().find(|letter| letter.id == id) {
                    match global.format {
                        Format::Json => output::json(letter)?,
                        Format::Table => show_letter(letter)?,
                    }
                    break;
                }
                after = Some(
                    page.last()
                        .ok_or_else(|| {
                            Failure::failed(format!("`{queue}` has no dead letter `{id}`"))
                        })?
                        .id
                        .clone(),
                );
            }
        }
        DlqCommand::Requeue(chosen) => {
            let count: Count = client
                .post(&path(&chosen, "requeue")?, &selection(&chosen)?)
                .await?;
            show_count(global, &count, "put back")?;
        }
        DlqCommand::Drop { chosen, yes } => {
            let letters = selection(&chosen)?;
            confirm(
                yes,
                &format!(
                    "{KEPT_KEYS}\nDelete dead letters of `{}` for good?",
                    chosen.queue
                ),
            )?;
            let count: Count = client.post(&path(&chosen, "drop")?, &letters).await?;
            show_count(global, &count, "deleted")?;
        }
    }
    Ok(Exit::Ok)
}

fn show_letter(letter: &DeadLetterView) -> Result<(), Failure> {
    let encoding = match letter.payload.encoding.as_str() {
        "utf-8" => "",
        _ => " (base64)",
    };
    let cut = if letter.payload.truncated {
        " (cut)"
    } else {
        ""
    };
    for (what, text) in [
        ("id", &letter.id),
        ("died", &letter.died_at),
        ("attempts", &letter.attempts.to_string()),
        ("reason", &letter.reason),
    ] {
        output::line(format!("{what:<10}{text}"))?;
    }
    for (number, earlier) in letter.history.iter().enumerate() {
        let what = if number == 0 { "before" } else { "" };
        output::line(format!("{what:<10}{earlier}"))?;
    }
    output::line(format!("payload{encoding}{cut}:"))?;
    Ok(output::line(&letter.payload.payload)?)
}

async fn letters(
    client: &Client,
    queue: &str,
    max: u16,
    after: Option<&str>,
) -> Result<Vec<DeadLetterView>, Failure> {
    let after = match after {
        Some(id) => format!("&after={}", id.parse::<MessageId>()?),
        None => String::new(),
    };
    client
        .get(&queue_path(
            queue,
            &format!("/dead-letters?max={max}{after}"),
        )?)
        .await
}

fn path(chosen: &Chosen, action: &str) -> Result<String, Failure> {
    queue_path(&chosen.queue, &format!("/dead-letters/{action}"))
}

fn selection(chosen: &Chosen) -> Result<Letters, Failure> {
    if chosen.ids.is_empty() && !chosen.all {
        let text = "say which: the ids that `towpath dlq ls` shows, or `--all`";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(Letters {
        all: chosen.all,
        ids: chosen.ids.clone(),
    })
}
