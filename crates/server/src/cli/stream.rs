//! `towpath stream`.

use std::time::Duration;

use clap::{Args, Subcommand};
use towpath_core::{StreamName, units};

use super::client::Client;
use super::queue::{age, confirm, short, show_count};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{Count, EntryView, StreamView, TrimRequest};
use crate::http::{encoded, segment};

/// Interval of requests for a followed stream without new entries.
const LOOK: Duration = Duration::from_millis(250);

/// Entries asked for at once.
const PAGE: usize = 200;

/// What to do with streams.
#[derive(Debug, Subcommand)]
pub(super) enum StreamCommand {
    /// List streams with their statistics
    #[command(
        alias = "list",
        after_help = "Examples:\n  towpath stream ls\n  towpath stream ls --output json"
    )]
    Ls,
    /// Show the statistics of a stream
    #[command(after_help = "Examples:\n  towpath stream show line_stream")]
    Show(StreamArgs),
    /// List the consumer groups of a stream with lag and pending entries
    #[command(after_help = "Examples:\n  towpath stream groups line_stream")]
    Groups(StreamArgs),
    /// Print entries, oldest first, without changing them
    #[command(after_help = "Examples:\n  towpath stream tail line_stream --max 5")]
    Tail {
        #[command(flatten)]
        named: StreamArgs,
        /// Maximum number of entries [default: all]
        #[arg(long)]
        max: Option<usize>,
        /// Start after this offset
        #[arg(long)]
        after: Option<String>,
        /// Keep printing new entries until Ctrl-C
        #[arg(long, short)]
        follow: bool,
    },
    /// Delete old entries: all but the newest, or those that every group has finished
    #[command(
        after_help = "Examples:\n  towpath stream trim user-events --keep 1000000 --yes\n  towpath stream trim line_stream --finished --yes"
    )]
    Trim {
        #[command(flatten)]
        named: StreamArgs,
        /// Keep this many of the newest entries; delete older ones even when unread
        #[arg(
            long,
            required_unless_present = "finished",
            conflicts_with = "finished"
        )]
        keep: Option<u64>,
        /// Delete entries that every group has finished
        #[arg(long)]
        finished: bool,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// A stream by name.
#[derive(Debug, Args)]
pub(super) struct StreamArgs {
    /// The stream
    stream: String,
}

impl StreamArgs {
    fn path(&self, rest: &str) -> Result<String, Failure> {
        let name = StreamName::new(&self.stream)?;
        Ok(format!("/v1/streams/{}{rest}", segment(name.as_str())))
    }
}

pub(super) async fn run(global: &Global, command: StreamCommand) -> Result<Exit, Failure> {
    let client = Client::new(global)?;
    match command {
        StreamCommand::Ls => {
            let streams = client.list::<StreamView>("/v1/streams").await?;
            show(global, &streams.items, &streams.items)?;
            return Ok(streams.exit);
        }
        StreamCommand::Show(named) => {
            let stream: StreamView = client.get(&named.path("")?).await?;
            show(global, std::slice::from_ref(&stream), &stream)?;
        }
        StreamCommand::Groups(named) => {
            let stream: StreamView = client.get(&named.path("")?).await?;
            show_groups(global, &stream)?;
        }
        StreamCommand::Tail {
            named,
            max,
            after,
            follow,
        } => tail(global, &client, &named, max, after, follow).await?,
        StreamCommand::Trim {
            named,
            keep,
            finished,
            yes,
        } => {
            let what = match keep {
                Some(keep) => format!("all but the newest {keep} entries"),
                None => "the entries that every group has finished".to_owned(),
            };
            confirm(yes, &format!("Drop {what} of `{}`?", named.stream))?;
            let request = TrimRequest { keep, finished };
            let count: Count = client.post(&named.path("/trim")?, &request).await?;
            show_count(global, &count, "dropped")?;
        }
    }
    Ok(Exit::Ok)
}

fn show(
    global: &Global,
    streams: &[StreamView],
    value: &impl serde::Serialize,
) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(value)?);
    }
    let rows = streams.iter().map(|one| {
        let lag = one.groups.iter().map(|group| group.lag).max();
        vec![
            one.stream.clone(),
            units::count(one.entries),
            units::count(one.appended),
            one.groups.len().to_string(),
            lag.map_or_else(|| "-".to_owned(), units::count),
        ]
    });
    let headings = ["STREAM", "ENTRIES", "APPENDED", "GROUPS", "MAX LAG"];
    let none = "no streams yet; the roles `lines.reader` and `accounts.relay` append to streams";
    Ok(output::list(&headings, rows.collect(), none)?)
}

fn show_groups(global: &Global, stream: &StreamView) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(&stream.groups)?);
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = stream.groups.iter().map(|one| {
        vec![
            one.group.clone(),
            units::count(one.lag),
            units::count(one.pending),
            age(one.oldest_age_seconds),
            or_none(one.committed.clone()),
        ]
    });
    let headings = ["GROUP", "LAG", "PENDING", "OLDEST", "COMMITTED"];
    let none = format!("`{}` has no consumer groups", stream.stream);
    Ok(output::list(&headings, rows.collect(), &none)?)
}

async fn tail(
    global: &Global,
    client: &Client,
    named: &StreamArgs,
    max: Option<usize>,
    mut after: Option<String>,
    follow: bool,
) -> Result<(), Failure> {
    let mut left = max.unwrap_or(usize::MAX);
    let mut all = Vec::new();
    while left > 0 {
        let mut rest = format!("/entries?max={}", left.min(PAGE));
        if let Some(after) = &after {
            rest.push_str(&format!("&after={}", encoded(after)));
        }
        let entries: Vec<EntryView> = client.get(&named.path(&rest)?).await?;
        let Some(last) = entries.last() else {
            if !follow {
                break;
            }
            tokio::time::sleep(LOOK).await;
            continue;
        };
        after = Some(last.offset.clone());
        left -= entries.len();
        if global.format == Format::Json {
            if follow {
                // One value a line, as a reader of a pipe wants it.
                for entry in &entries {
                    output::line(serde_json::to_string(entry).unwrap_or_default())?;
                }
            } else {
                all.extend(entries);
            }
            continue;
        }
        for entry in entries {
            let payload = short(&entry.payload.payload);
            output::line(format!(
                "{}  {}  {payload}",
                entry.offset, entry.appended_at
            ))?;
        }
    }
    if global.format == Format::Json && !follow {
        output::json(&all)?;
    }
    Ok(())
}
