//! `towpath outbox` and `towpath backfill`: events, their status, and sending them again.
//!
//! They ask a process that runs a role of the accounts app, as the other commands for operators do.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use towpath_core::port::outbox::Status;
use towpath_core::units;
use uuid::Uuid;

use super::client::Client;
use super::queue::{age, short, show_count};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{
    BackfillProgress, BackfillRequest, Count, EventView, OutboxStats, ReplayRequest, RetryRequest,
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
    /// List events in order
    #[command(
        alias = "list",
        after_help = "Examples:\n  towpath outbox ls\n  towpath outbox ls --status FAILED --output json"
    )]
    Ls {
        /// Status: NEW, PROCESSING, SENT or FAILED
        #[arg(long, value_parser = status)]
        status: Option<Status>,
        /// Aggregate type, like `user`
        #[arg(long)]
        aggregate_type: Option<String>,
        /// Aggregate id
        #[arg(long)]
        aggregate_id: Option<String>,
        /// Start after this position
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Maximum events, 1 to 1000
        #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
    },
    /// Show event counts by status and the lag of the relay
    #[command(after_help = "Examples:\n  towpath outbox stats")]
    Stats,
    /// Show an event, or the events of an aggregate
    #[command(after_help = "`towpath outbox ls` shows the ids.")]
    Trace {
        /// Event id or aggregate id
        id: String,
    },
    /// Retry failed events
    #[command(after_help = "Examples:\n  towpath outbox retry --all")]
    Retry {
        /// The event's id, or `--all`
        #[arg(conflicts_with = "all", required_unless_present = "all")]
        id: Option<Uuid>,
        /// Retry all failed events
        #[arg(long)]
        all: bool,
    },
    /// Replay sent events with the same ids
    Replay {
        /// The events' ids
        #[arg(required = true)]
        ids: Vec<Uuid>,
        /// Send to this topic instead of the events' own
        #[arg(long)]
        topic: Option<String>,
    },
}

/// Options of `backfill`.
#[derive(Debug, Args)]
#[command(
    after_help = "Replays events sent before the start of the command, with the same ids. Options may be written with one dash.\n\nExamples:\n  towpath backfill --dry-run\n  towpath backfill --start 2026-01-01T00:00:00Z --aggregate-type user --topic users-again"
)]
pub(super) struct BackfillArgs {
    /// Start of the time range, inclusive, like 2026-01-31T12:00:00Z
    #[arg(long)]
    start: Option<Timestamp>,
    /// End of the time range, exclusive
    #[arg(long)]
    end: Option<Timestamp>,
    /// Aggregate type, like `user`
    #[arg(long)]
    aggregate_type: Option<String>,
    /// Count without sending
    #[arg(
        long,
        action = ArgAction::Set,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    dry_run: bool,
    /// Accepted for scripts of the reference system; has no effect, there neither
    #[arg(long)]
    max_retries: Option<u32>,
    /// Maximum events per transaction, 1 to 1000
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=1000))]
    batch_size: u16,
    /// Maximum events per second; 0 for no limit
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Send to this topic instead of the events' own
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
            let request = RetryRequest { id, all };
            let count: Count = client.post("/v1/outbox/retry", &request).await?;
            show_count(global, &count, "made new again")?;
        }
        OutboxCommand::Replay { ids, topic } => {
            let ids = ids.iter().map(Uuid::to_string).collect();
            let request = ReplayRequest { ids, topic };
            let count: Count = client.post("/v1/outbox/replay", &request).await?;
            show_count(global, &count, "sent again")?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn backfill(global: &Global, args: BackfillArgs) -> Result<Exit, Failure> {
    let client = Client::of(global, &APPS)?;
    let mut request = BackfillRequest {
        start: args.start.map(|time| time.to_string()),
        end: args.end.map(|time| time.to_string()),
        aggregate_type: args.aggregate_type,
        topic: args.topic,
        dry_run: args.dry_run,
        max: args.batch_size,
        ..BackfillRequest::default()
    };
    let mut bar: Option<ProgressBar> = None;
    let mut count = 0;
    loop {
        let done: BackfillProgress = client.post("/v1/outbox/backfill", &request).await?;
        let Some(after) = done.after else { break };
        count += done.count;
        (request.after, request.until) = (after, Some(done.until));
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
    let headings = ["SEQ", "STATUS", "ID", "TYPE", "ABOUT", "CREATED", "DATA"];
    let rows = events.into_iter().map(|one| {
        vec![
            one.seq.to_string(),
            one.status,
            one.id,
            one.event_type,
            one.aggregate_id,
            output::time(&one.created_at),
            short(&one.data),
        ]
    });
    Ok(output::list(&headings, rows.collect(), "no events")?)
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
    use clap::{Args, Command, FromArgMatches};

    use super::{BackfillArgs, with_two_dashes};

    #[test]
    fn backfill_takes_the_flags_of_the_reference_system() {
        let dry_run = |words: &str| {
            let command = BackfillArgs::augment_args(Command::new("backfill"));
            let words = words.split(' ').map(Into::into).collect();
            let matches = command.try_get_matches_from(with_two_dashes(words).into_iter().skip(1));
            BackfillArgs::from_arg_matches(&matches.unwrap())
                .unwrap()
                .dry_run
        };
        assert!(dry_run(
            "towpath backfill -dry-run -max-retries 5 -batch-size 10"
        ));
        assert!(dry_run("towpath backfill -dry-run=true -max-retries=5"));
        assert!(!dry_run("towpath backfill -dry-run=false"));
        assert!(!dry_run("towpath backfill -topic t"));
    }

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
