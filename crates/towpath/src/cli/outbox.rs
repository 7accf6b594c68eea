//! `towpath outbox` and `towpath backfill`: events, what became of them, and sending them again.
//!
//! They ask a process that runs a role of the accounts app, as the other commands for operators do.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use towpath_core::port::outbox::Status;
use towpath_core::units;
use uuid::Uuid;

use super::client::Client;
use super::queue::{age, short, show_count};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{
    BackfillWanted, Backfilled, Count, EventView, OutboxStats, ReplayWanted, RetryWanted,
};
use crate::http::encoded;

/// Most rows of one look.
const PAGE: usize = 1_000;

/// The roles whose processes have the outbox.
const APPS: [&str; 2] = ["accounts.relay", "accounts.api"];

/// Where events are listed.
const EVENTS: &str = "/v1/outbox/events";

/// What to do with events.
#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Events in their order
    #[command(
        alias = "list",
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
    let client = Client::of(global, &APPS)?;
    match command {
        OutboxCommand::Ls {
            status,
            aggregate_type,
            aggregate_id,
            after,
            max,
        } => {
            let filters = [
                ("status", status.map(|one| one.as_str().to_owned())),
                ("aggregate_type", aggregate_type),
                ("aggregate_id", aggregate_id),
            ];
            let mut path = format!("{EVENTS}?after={after}&max={max}");
            for (name, value) in filters {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", encoded(&value)));
                }
            }
            let is_filtered = path.matches('&').count() > 1;
            let events: Vec<EventView> = client.get(&path).await?;
            let shown = events.len();
            list(global, events)?;
            // How many fit a filter is not counted.
            if global.format == Format::Table && shown == usize::from(max) && !is_filtered {
                let stats: OutboxStats = client.get("/v1/outbox").await?;
                let there = stats.new + stats.sent + stats.failed;
                output::of(shown as u64, there, "event");
            }
        }
        OutboxCommand::Stats => stats(global, &client.get("/v1/outbox").await?)?,
        OutboxCommand::Trace { id } => {
            let found = trace(&client, &id).await?;
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
        OutboxCommand::Retry { id, all } => {
            let id = id.map(|id| id.to_string());
            let wanted = RetryWanted { id, all };
            let count: Count = client.post("/v1/outbox/retry", &wanted).await?;
            show_count(global, &count, "made new again")?;
        }
        OutboxCommand::Replay { ids, topic } => {
            let ids = ids.iter().map(Uuid::to_string).collect();
            let wanted = ReplayWanted { ids, topic };
            let count: Count = client.post("/v1/outbox/replay", &wanted).await?;
            show_count(global, &count, "sent again")?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn backfill(global: &Global, args: BackfillArgs) -> Result<Exit, Failure> {
    let client = Client::of(global, &APPS)?;
    let mut wanted = BackfillWanted {
        start: args.start.map(|time| time.to_string()),
        end: args.end.map(|time| time.to_string()),
        aggregate_type: args.aggregate_type,
        topic: args.topic,
        dry_run: args.dry_run,
        max: args.batch_size,
        ..BackfillWanted::default()
    };
    let mut bar: Option<ProgressBar> = None;
    let mut count = 0;
    loop {
        let done: Backfilled = client.post("/v1/outbox/backfill", &wanted).await?;
        let Some(after) = done.after else { break };
        count += done.count;
        (wanted.after, wanted.until) = (after, Some(done.until));
        let bar = bar.get_or_insert_with(|| progress(done.until, global.quiet));
        bar.set_position(after);
        if !args.dry_run && args.rate > 0 {
            let time = done.count as f64 / f64::from(args.rate);
            tokio::time::sleep(Duration::from_secs_f64(time)).await;
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let done = match args.dry_run {
        true => "would be sent again",
        false => "sent again",
    };
    show_count(global, &Count { count }, done)?;
    Ok(Exit::Ok)
}

async fn trace(client: &Client, id: &str) -> Result<Vec<EventView>, Failure> {
    let path = |name: &str| format!("{EVENTS}?max={PAGE}&{name}={}", encoded(id));
    let mut found = Vec::new();
    if id.parse::<Uuid>().is_ok() {
        found = client.get(&path("id")).await?;
    }
    if found.is_empty() {
        found = client.get(&path("aggregate_id")).await?;
    }
    Ok(found)
}

fn stats(global: &Global, stats: &OutboxStats) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(stats)?);
    }
    let oldest = stats.oldest_age_seconds.map(i64::unsigned_abs);
    let age = age(oldest);
    let numbers = [stats.new, stats.sent, stats.failed].map(units::count);
    let row = numbers.into_iter().chain([age]).collect();
    output::table(&["NEW", "SENT", "FAILED", "OLDEST NEW"], [row])?;
    if let Some(position) = stats.position_ahead {
        output::line(format!(
            "the relay's position is {position}, and the outbox never gave out that place: its sequence was reset"
        ))?;
    }
    for one in &stats.waits_for {
        let age = one.age_seconds;
        let age = age.map(Duration::from_secs).map(units::age);
        let age = age.map_or_else(String::new, |age| format!(", open for {age}"));
        let (transaction, name) = (&one.transaction, &one.application_name);
        output::line(format!(
            "events may wait for {transaction}{age}, application `{name}`"
        ))?;
    }
    Ok(())
}

fn list(global: &Global, events: Vec<EventView>) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(&events)?);
    }
    let headings = ["SEQ", "STATUS", "ID", "TYPE", "ABOUT", "HAPPENED", "DATA"];
    let rows = events.into_iter().map(|one| {
        vec![
            one.seq.to_string(),
            one.status,
            one.id,
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
        ("id", event.id.clone()),
        ("status", event.status.clone()),
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
        ("flaw", event.flaw.clone().unwrap_or_else(|| "-".to_owned())),
        ("data", event.data.clone()),
    ];
    for (name, value) in rows {
        output::line(format!("{name:<9} {value}"))?;
    }
    Ok(output::line("")?)
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
