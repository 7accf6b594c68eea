//! `towpath outbox` and `towpath backfill`: events, what became of them, and sending them again.
//!
//! They work on the database itself, and the relay sends what they write: its order and its guarantees hold for
//! events that are sent again too.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use towpath_core::port::Outbox;
use towpath_core::port::outbox::{Filter, Listed, NewEvent, Status};
use uuid::Uuid;

use super::migrate::open;
use super::queue::short;
use super::{Exit, Failure, Format, Global, output};

/// Most rows of one look.
const PAGE: usize = 1_000;

/// What to do with events.
#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Events in their order
    #[command(
        after_help = "Examples:\n  towpath outbox ls\n  towpath outbox ls --status FAILED --output json"
    )]
    Ls {
        /// Only these: NEW, PROCESSING, SENT or FAILED
        #[arg(long, value_parser = status)]
        status: Option<Status>,
        /// Only those about this kind of thing, as `user`
        #[arg(long)]
        aggregate_type: Option<String>,
        /// Only those about this one
        #[arg(long)]
        aggregate_id: Option<String>,
        /// Those behind this place
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Most events, 1 to 1000
        #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
    },
    /// How many events there are of each status, and how far behind the relay is
    #[command(after_help = "Examples:\n  towpath outbox stats")]
    Stats,
    /// Everything about one event, or about the events of one thing
    #[command(after_help = "`towpath outbox ls` shows the ids.")]
    Trace {
        /// The id of an event or of what it is about
        id: String,
    },
    /// Make failed events new again
    #[command(after_help = "Examples:\n  towpath outbox retry --all")]
    Retry {
        /// The event's id, or `--all`
        #[arg(conflicts_with = "all", required_unless_present = "all")]
        id: Option<Uuid>,
        /// Every one that failed
        #[arg(long)]
        all: bool,
    },
    /// Send events again that were sent before, with the same ids
    Replay {
        /// The events' ids
        #[arg(required = true)]
        ids: Vec<Uuid>,
        /// To this topic instead of their own
        #[arg(long)]
        topic: Option<String>,
    },
}

/// Options of `backfill`.
#[derive(Debug, Args)]
#[command(
    after_help = "Looks at every event that was sent by now; one that is sent again has the same id. Options may be written with one dash.\n\nExamples:\n  towpath backfill --dry-run\n  towpath backfill --start 2026-01-01T00:00:00Z --aggregate-type user --topic users-again"
)]
pub(super) struct BackfillArgs {
    /// Only what happened at this time or later, as 2026-01-31T12:00:00Z
    #[arg(long)]
    start: Option<Timestamp>,
    /// Only what happened before this time
    #[arg(long)]
    end: Option<Timestamp>,
    /// Only events about this kind of thing, as `user`
    #[arg(long)]
    aggregate_type: Option<String>,
    /// Count them, and send none
    #[arg(long)]
    dry_run: bool,
    /// Most events of one transaction, 1 to 1000
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=1000))]
    batch_size: u16,
    /// Most events in a second; 0 for as many as there can be
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// To this topic instead of their own
    #[arg(long)]
    topic: Option<String>,
}

/// An event for people and programs.
#[derive(Debug, Serialize)]
struct EventView {
    seq: u64,
    id: Uuid,
    status: &'static str,
    event_type: String,
    aggregate_type: String,
    aggregate_id: String,
    topic: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    created_at: String,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    data: String,
}

impl From<Listed> for EventView {
    fn from(listed: Listed) -> Self {
        let event = listed.event.event;
        Self {
            seq: listed.event.seq,
            id: event.id,
            status: listed.status.as_str(),
            event_type: event.event_type,
            aggregate_type: event.aggregate_type,
            aggregate_id: event.aggregate_id,
            topic: event.topic,
            key: event.key,
            created_at: event.created_at.to_string(),
            attempts: listed.attempts,
            error: listed.error,
            data: event.data,
        }
    }
}

/// The options of `backfill` with two dashes, as the others are: existing scripts write one.
pub(super) fn with_two_dashes(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_backfill = args.get(1).is_some_and(|command| command == "backfill");
    for argument in args.iter_mut().filter(|_| is_backfill) {
        let text = argument.to_string_lossy();
        if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") {
            *argument = format!("-{text}").into();
        }
    }
    args
}

fn status(text: &str) -> Result<Status, String> {
    Status::parse(text).ok_or_else(|| "NEW, PROCESSING, SENT or FAILED".to_owned())
}

pub(super) async fn run(global: &Global, command: OutboxCommand) -> Result<Exit, Failure> {
    let outbox = open(global).await?.outbox;
    match command {
        OutboxCommand::Ls {
            status,
            aggregate_type,
            aggregate_id,
            after,
            max,
        } => {
            let filter = Filter {
                status,
                aggregate_type,
                aggregate_id,
                after,
                ..Filter::default()
            };
            let events = outbox.list(&filter, usize::from(max)).await?;
            list(global, events.into_iter().map(EventView::from).collect())?;
        }
        OutboxCommand::Stats => stats(global, &*outbox).await?,
        OutboxCommand::Trace { id } => {
            let found = trace(&*outbox, &id).await?;
            if found.is_empty() {
                let text =
                    format!("no event is `{id}` or about it; `towpath outbox ls` shows some");
                return Err(Failure::failed(text));
            }
            match global.format {
                Format::Json => output::json(&found)?,
                Format::Table => found.iter().try_for_each(show)?,
            }
        }
        OutboxCommand::Retry { id, all: _ } => {
            let count = outbox.retry(id).await?;
            tell(global, count, "made new again")?;
        }
        OutboxCommand::Replay { ids, topic } => {
            let mut events = Vec::new();
            for id in ids {
                let filter = Filter {
                    id: Some(id),
                    status: Some(Status::Sent),
                    ..Filter::default()
                };
                let Some(found) = outbox.list(&filter, 1).await?.pop() else {
                    let text =
                        format!("no event `{id}` was sent and is still kept; nothing was done");
                    return Err(Failure::failed(text));
                };
                events.push(redirected(found.event.event, topic.as_ref()));
            }
            let count = events.len() as u64;
            outbox.write(events).await?;
            tell(global, count, "sent again")?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn backfill(global: &Global, args: BackfillArgs) -> Result<Exit, Failure> {
    let outbox = open(global).await?.outbox;
    // What is sent from here on is not looked at: neither new events nor those that this writes.
    let last = outbox.position().await?;
    let mut filter = Filter {
        status: Some(Status::Sent),
        aggregate_type: args.aggregate_type,
        from: args.start,
        to: args.end,
        ..Filter::default()
    };
    let bar = progress(last, global.quiet);
    let mut count = 0;
    loop {
        let mut found = outbox.list(&filter, usize::from(args.batch_size)).await?;
        found.retain(|one| one.event.seq <= last);
        let Some(end) = found.last() else { break };
        filter.after = end.event.seq;
        count += found.len() as u64;
        bar.set_position(filter.after);
        if args.dry_run {
            continue;
        }
        if args.rate > 0 {
            let time = found.len() as f64 / f64::from(args.rate);
            tokio::time::sleep(Duration::from_secs_f64(time)).await;
        }
        let events = found.into_iter().map(|one| one.event.event);
        let topic = args.topic.as_ref();
        outbox
            .write(events.map(|event| redirected(event, topic)).collect())
            .await?;
    }
    bar.finish_and_clear();
    let done = if args.dry_run {
        "would be sent again"
    } else {
        "sent again"
    };
    tell(global, count, done)?;
    Ok(Exit::Ok)
}

fn redirected(mut event: NewEvent, topic: Option<&String>) -> NewEvent {
    if let Some(topic) = topic {
        event.topic.clone_from(topic);
    }
    event
}

async fn trace(outbox: &dyn Outbox, id: &str) -> Result<Vec<EventView>, Failure> {
    let filter = Filter {
        id: id.parse().ok(),
        ..Filter::default()
    };
    let mut found = match filter.id {
        Some(_) => outbox.list(&filter, PAGE).await?,
        None => Vec::new(),
    };
    if found.is_empty() {
        let filter = Filter {
            aggregate_id: Some(id.to_owned()),
            ..Filter::default()
        };
        found = outbox.list(&filter, PAGE).await?;
    }
    Ok(found.into_iter().map(EventView::from).collect())
}

async fn stats(global: &Global, outbox: &dyn Outbox) -> Result<(), Failure> {
    let (backlog, kept) = (outbox.backlog().await?, outbox.kept().await?);
    let sent = kept.saturating_sub(backlog.new + backlog.failed);
    let age = backlog
        .oldest
        .map(|oldest| Timestamp::now().duration_since(oldest).as_secs().max(0));
    if global.format == Format::Json {
        return Ok(output::json(&serde_json::json!({
            "new": backlog.new, "sent": sent, "failed": backlog.failed, "oldest_age_seconds": age,
        }))?);
    }
    let age = age.map_or_else(|| "-".to_owned(), |age| format!("{age}s"));
    let numbers = [backlog.new, sent, backlog.failed].map(|number| number.to_string());
    let row = numbers.into_iter().chain([age]).collect();
    Ok(output::table(
        &["NEW", "SENT", "FAILED", "OLDEST NEW"],
        [row],
    )?)
}

fn list(global: &Global, events: Vec<EventView>) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(&events)?);
    }
    let headings = ["SEQ", "STATUS", "ID", "TYPE", "ABOUT", "HAPPENED", "DATA"];
    let rows = events.into_iter().map(|one| {
        vec![
            one.seq.to_string(),
            one.status.to_owned(),
            one.id.to_string(),
            one.event_type,
            one.aggregate_id,
            one.created_at,
            short(&one.data),
        ]
    });
    Ok(output::table(&headings, rows)?)
}

fn show(event: &EventView) -> Result<(), Failure> {
    let rows = [
        ("seq", event.seq.to_string()),
        ("id", event.id.to_string()),
        ("status", event.status.to_owned()),
        ("type", event.event_type.clone()),
        (
            "about",
            format!("{} {}", event.aggregate_type, event.aggregate_id),
        ),
        ("topic", event.topic.clone()),
        ("key", event.key.clone().unwrap_or_else(|| "-".to_owned())),
        ("happened", event.created_at.clone()),
        ("refused", format!("{} times", event.attempts)),
        (
            "reason",
            event.error.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("data", event.data.clone()),
    ];
    for (name, value) in rows {
        output::line(format!("{name:<9} {value}"))?;
    }
    Ok(output::line("")?)
}

fn tell(global: &Global, count: u64, done: &str) -> Result<(), Failure> {
    match global.format {
        Format::Json => output::json(&serde_json::json!({ "count": count }))?,
        Format::Table if global.quiet => {}
        Format::Table => output::line(format!("{count} {done}"))?,
    }
    Ok(())
}

fn progress(places: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(places);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent} %, {eta} left") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::with_two_dashes;

    #[test]
    fn options_of_backfill_may_have_one_dash() {
        let args = |words: &str| words.split(' ').map(Into::into).collect::<Vec<_>>();
        let one = with_two_dashes(args("towpath backfill -dry-run -batch-size=5 --topic -x"));
        assert_eq!(one[2], "--dry-run");
        assert_eq!(one[3], "--batch-size=5");
        let other = args("towpath queue ls -verbose");
        assert_eq!(with_two_dashes(other.clone()), other);
    }
}
