//! `towpath dlq`: dead letters.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, value_parser};
use serde::Serialize;
use towpath_core::{MessageId, units};

use super::canary;
use super::client::{Client, Listed, queue_path};
use super::queue::{KEPT_KEYS, confirm, short, show_count};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{AttemptView, Count, DeadLetterSelection, DeadLetterView, QueueStats};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// List the oldest dead letters of one or all queues
    #[command(
        alias = "list",
        after_help = "Examples:\n  towpath dlq ls\n  towpath dlq ls messages --reason \"HTTP 422\"\n  towpath dlq ls messages --max 100 --output json"
    )]
    Ls {
        /// The queue [default: every queue]
        queue: Option<String>,
        /// Maximum number of dead letters per queue (1–1000)
        #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
        /// Start after this message id
        #[arg(long, requires = "queue")]
        after: Option<String>,
        /// Only dead letters whose reason contains this text; numbers and ids match any
        #[arg(long)]
        reason: Option<String>,
    },
    /// Count dead letters by reason
    #[command(
        after_help = "Numbers and ids in reasons are replaced by placeholders.\n\nExamples:\n  towpath dlq groups\n  towpath dlq groups messages --output json"
    )]
    Groups {
        /// The queue [default: every queue]
        queue: Option<String>,
    },
    /// Show a dead letter with its history
    #[command(after_help = "`towpath dlq ls QUEUE` shows the ids.")]
    Show {
        /// The queue
        queue: String,
        /// The message id
        id: String,
    },
    /// Return dead letters to the end of their queue
    #[command(
        alias = "requeue",
        after_help = "`requeue` is the name of this command in version 0.1, and still works.\n\nExamples:\n  towpath dlq redrive messages --all\n  towpath dlq redrive messages --reason \"HTTP 503\" --max 10\n  towpath dlq redrive messages --reason \"HTTP 503\" --canary 5 --rate 50\n  towpath dlq redrive messages --reason \"HTTP 503\" --dry-run"
    )]
    Redrive {
        #[command(flatten)]
        chosen: Chosen,
        /// Messages a second, 1 to 100000 [default: all at once]
        #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
        rate: Option<u32>,
        /// Redrive this many first, the oldest, and the others only if each of them is delivered
        #[arg(long, conflicts_with = "dry_run", value_parser = value_parser!(u16).range(1..=100))]
        canary: Option<u16>,
        /// Seconds to wait for the outcome of the canary messages
        #[arg(
            long,
            value_name = "SECONDS",
            default_value_t = 60,
            requires = "canary"
        )]
        canary_wait: u64,
    },
    /// Delete dead letters permanently
    #[command(after_help = KEPT_KEYS.to_owned() + "\n\nExamples:\n  towpath dlq drop messages --all --yes\n  towpath dlq drop messages --reason \"HTTP 422\" --yes")]
    Drop {
        #[command(flatten)]
        chosen: Chosen,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// The queue
    queue: String,
    /// Message ids, or `--all`, or `--reason`
    #[arg(conflicts_with_all = ["all", "reason"])]
    ids: Vec<String>,
    /// Select all dead letters
    #[arg(long, conflicts_with = "reason")]
    all: bool,
    /// Only dead letters whose reason contains this text; numbers and ids match any
    #[arg(long)]
    reason: Option<String>,
    /// Select at most this many, oldest first
    #[arg(long, value_parser = value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Count without changes
    #[arg(long)]
    dry_run: bool,
}

/// Dead letters of one queue with the same reason.
#[derive(Debug, Serialize)]
struct Group {
    queue: String,
    reason: String,
    count: u64,
    oldest: String,
    newest: String,
    example: String,
}

/// Most letters that one request asks for or changes.
const PAGE: u16 = 1_000;

pub(super) async fn run(global: &Global, command: DlqCommand) -> Result<Exit, Failure> {
    let client = Client::new(global)?;
    match command {
        DlqCommand::Ls {
            queue,
            max,
            after,
            reason,
        } => return ls(global, &client, queue, max, after, reason).await,
        DlqCommand::Groups { queue } => return groups(global, &client, queue).await,
        DlqCommand::Show { queue, id } => {
            let mut pages = Pages::of(&client, &queue);
            let letter = loop {
                let page = pages.next().await?;
                if page.is_empty() {
                    let text = format!("`{queue}` has no dead letter `{id}`");
                    return Err(Failure::failed(text));
                }
                if let Some(letter) = page.into_iter().find(|letter| letter.id == id) {
                    break letter;
                }
            };
            match global.format {
                Format::Json => output::json(&letter)?,
                Format::Table => show_letter(&letter)?,
            }
        }
        DlqCommand::Redrive {
            chosen,
            rate,
            canary,
            canary_wait,
        } => {
            let plan = RedrivePlan {
                rate,
                canary: canary.map_or(0, usize::from),
                canary_wait: Duration::from_secs(canary_wait),
            };
            let count = change(&client, &chosen, "redrive", plan).await?;
            show_count(global, &count, done(&chosen, "redriven"))?;
        }
        DlqCommand::Drop { chosen, yes } => {
            let queue = &chosen.queue;
            let question = format!("{KEPT_KEYS}\nDelete dead letters of `{queue}` for good?");
            confirm(yes || chosen.dry_run, &question)?;
            let count = change(&client, &chosen, "drop", RedrivePlan::default()).await?;
            show_count(global, &count, done(&chosen, "deleted"))?;
        }
    }
    Ok(Exit::Ok)
}

const fn done(chosen: &Chosen, word: &'static str) -> &'static str {
    match chosen.dry_run {
        true => "found; nothing was changed",
        false => word,
    }
}

/// The queues that were meant, with their dead letters counted, and the exit code of an incomplete list.
async fn queues(client: &Client, queue: Option<String>) -> Result<Listed<QueueStats>, Failure> {
    match queue {
        Some(queue) => {
            let stats = client.get(&queue_path(&queue, "")?).await?;
            let items = vec![stats];
            Ok(Listed {
                items,
                exit: Exit::Ok,
            })
        }
        None => {
            let mut all = client.list::<QueueStats>("/v1/queues").await?;
            all.items.retain(|stats| stats.dead > 0);
            Ok(all)
        }
    }
}

async fn ls(
    global: &Global,
    client: &Client,
    queue: Option<String>,
    max: u16,
    after: Option<String>,
    reason: Option<String>,
) -> Result<Exit, Failure> {
    let is_one = queue.is_some();
    let queues = queues(client, queue).await?;
    let reason = reason.as_deref().map(general);
    let mut rows = Vec::new();
    let mut json = Vec::new();
    let (mut shown, mut there) = (0, 0);
    for stats in &queues.items {
        let mut pages = Pages::of(client, &stats.queue);
        pages.after = after.clone();
        let found = pages.find(reason.as_deref(), max.into()).await?;
        shown += found.len();
        there += stats.dead;
        for letter in found {
            match global.format {
                Format::Json if is_one => json.push(serde_json::json!(letter)),
                Format::Json => {
                    let mut value = serde_json::json!(letter);
                    value["queue"] = stats.queue.as_str().into();
                    json.push(value);
                }
                Format::Table => rows.push(vec![
                    stats.queue.clone(),
                    letter.id,
                    letter.attempts.to_string(),
                    letter.died_at,
                    short(&letter.reason),
                    short(&letter.payload.payload),
                ]),
            }
        }
    }
    if global.format == Format::Json {
        output::json(&json)?;
        return Ok(queues.exit);
    }
    let mut headings = vec!["QUEUE", "ID", "ATTEMPTS", "DIED", "REASON", "PAYLOAD"];
    if is_one {
        headings.remove(0);
        rows.iter_mut().for_each(|row| drop(row.remove(0)));
    }
    output::list(&headings, rows, NO_LETTERS)?;
    output::of(shown as u64, there, "dead letter");
    Ok(queues.exit)
}

const NO_LETTERS: &str = "no dead letters";

async fn groups(global: &Global, client: &Client, queue: Option<String>) -> Result<Exit, Failure> {
    let queues = queues(client, queue).await?;
    let mut groups: Vec<Group> = Vec::new();
    for stats in &queues.items {
        let mut by_reason: BTreeMap<String, Group> = BTreeMap::new();
        let mut pages = Pages::of(client, &stats.queue);
        loop {
            let page = pages.next().await?;
            if page.is_empty() {
                break;
            }
            for letter in page {
                let reason = general(&letter.reason);
                let group = by_reason.entry(reason.clone()).or_insert_with(|| Group {
                    queue: stats.queue.clone(),
                    reason,
                    count: 0,
                    oldest: letter.died_at.clone(),
                    newest: String::new(),
                    example: letter.id.clone(),
                });
                group.count += 1;
                group.newest = letter.died_at.max(std::mem::take(&mut group.newest));
            }
        }
        groups.extend(by_reason.into_values());
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    match global.format {
        Format::Json => output::json(&groups)?,
        Format::Table => {
            let rows = groups.into_iter().map(|group| {
                vec![
                    group.queue,
                    units::count(group.count),
                    group.oldest,
                    group.newest,
                    short(&group.reason),
                ]
            });
            let headings = ["QUEUE", "COUNT", "OLDEST", "NEWEST", "REASON"];
            output::list(&headings, rows.collect(), NO_LETTERS)?;
        }
    }
    Ok(queues.exit)
}

/// Rate of changes.
#[derive(Debug, Default)]
struct RedrivePlan {
    /// DeadLetterSelection a second.
    rate: Option<u32>,
    /// Number of letters that are changed first, and decide on the others.
    canary: usize,
    canary_wait: Duration,
}

/// Does something to the chosen letters, in steps. How many there were.
async fn change(
    client: &Client,
    chosen: &Chosen,
    action: &str,
    plan: RedrivePlan,
) -> Result<Count, Failure> {
    let path = path(chosen, action)?;
    let rate = plan.rate;
    let is_plain = chosen.reason.is_none() && chosen.max.is_none() && rate.is_none();
    let is_plain = is_plain && plan.canary == 0;
    if is_plain && !chosen.dry_run {
        return client.post(&path, &selection(chosen)?).await;
    }
    let all = || usize::try_from(chosen.max.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let ids: Vec<String> = if chosen.all || chosen.reason.is_some() {
        let reason = chosen.reason.as_deref().map(general);
        let found = Pages::of(client, &chosen.queue);
        let found = found.find(reason.as_deref(), all()).await?;
        found.into_iter().map(|letter| letter.id).collect()
    } else {
        selection(chosen)?.ids.into_iter().take(all()).collect()
    };
    if chosen.dry_run {
        let count = ids.len() as u64;
        return Ok(Count { count });
    }
    let mut sum = Count { count: 0 };
    let (first, ids) = ids.split_at(plan.canary.min(ids.len()));
    if !first.is_empty() {
        let letters = DeadLetterSelection {
            all: false,
            ids: first.to_vec(),
        };
        let count: Count = client.post(&path, &letters).await?;
        sum.count += count.count;
        canary::watch(client, &chosen.queue, first, plan.canary_wait).await?;
    }
    let step = rate.map_or(PAGE.into(), |rate| {
        (rate as usize / 10).clamp(1, PAGE.into())
    });
    let pause = rate.map(|rate| Duration::from_secs_f64(step as f64 / f64::from(rate)));
    for ids in ids.chunks(step) {
        let began = Instant::now();
        let letters = DeadLetterSelection {
            all: false,
            ids: ids.to_vec(),
        };
        let count: Count = client.post(&path, &letters).await?;
        sum.count += count.count;
        if let Some(pause) = pause {
            tokio::time::sleep(pause.saturating_sub(began.elapsed())).await;
        }
    }
    Ok(sum)
}

/// The dead letters of a queue, page by page, oldest first.
pub(super) struct Pages<'a> {
    client: &'a Client,
    queue: &'a str,
    after: Option<String>,
}

impl<'a> Pages<'a> {
    pub(super) const fn of(client: &'a Client, queue: &'a str) -> Self {
        Self {
            client,
            queue,
            after: None,
        }
    }

    /// The next page; empty at the end.
    pub(super) async fn next(&mut self) -> Result<Vec<DeadLetterView>, Failure> {
        self.page(PAGE).await
    }

    async fn page(&mut self, max: u16) -> Result<Vec<DeadLetterView>, Failure> {
        let after = self.after.as_deref();
        let page = letters(self.client, self.queue, max, after).await?;
        if let Some(last) = page.last() {
            self.after = Some(last.id.clone());
        }
        Ok(page)
    }

    /// The oldest `max` letters, with this reason when there is one.
    async fn find(
        mut self,
        reason: Option<&str>,
        max: usize,
    ) -> Result<Vec<DeadLetterView>, Failure> {
        let mut found = Vec::new();
        while found.len() < max {
            let matches = match reason {
                Some(_) => PAGE,
                None => u16::try_from(max - found.len()).unwrap_or(PAGE).min(PAGE),
            };
            let page = self.page(matches).await?;
            if page.is_empty() {
                break;
            }
            let has_it = |letter: &DeadLetterView| {
                reason.is_none_or(|it| general(&letter.reason).contains(it))
            };
            found.extend(page.into_iter().filter(has_it));
        }
        found.truncate(max);
        Ok(found)
    }
}

/// A reason without the parts that differ between messages: ids are `ID`, numbers outside words `N`.
///
/// Short numbers stay: they are mostly statuses.
fn general(reason: &str) -> String {
    let is_part = |text: char| text.is_ascii_alphanumeric() || text == '-';
    let mut general = String::new();
    let mut rest = reason;
    while !rest.is_empty() {
        let end = rest.find(|text| !is_part(text)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
        let is_id = word.len() >= 16 && word.bytes().any(|byte| byte.is_ascii_digit());
        general.push_str(match () {
            () if word.is_empty() => "",
            () if is_number && word.len() > 3 => "N",
            () if is_id => "ID",
            () => word,
        });
        let next = after.chars().next().map_or(0, char::len_utf8);
        general.push_str(&after[..next]);
        rest = &after[next..];
    }
    general
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
        ("enqueued", &letter.enqueued_at),
        ("died", &letter.died_at),
        ("attempts", &letter.attempts.to_string()),
        ("reason", &letter.reason),
    ] {
        output::line(format!("{what:<10}{text}"))?;
    }
    let optional = [("key", &letter.key), ("trace", &letter.trace_id)];
    for (what, text) in optional {
        if let Some(text) = text {
            output::line(format!("{what:<10}{text}"))?;
        }
    }
    for (number, (name, value)) in letter.headers.iter().enumerate() {
        let what = if number == 0 { "headers" } else { "" };
        output::line(format!(
            "{what:<10}{}: {}",
            printable(name),
            printable(value)
        ))?;
    }
    if letter.records.is_empty() {
        for (number, earlier) in letter.history.iter().enumerate() {
            let what = if number == 0 { "before" } else { "" };
            output::line(format!("{what:<10}{earlier}"))?;
        }
    }
    for (number, record) in letter.records.iter().enumerate() {
        let what = if number == 0 { "records" } else { "" };
        let AttemptView {
            ended_at,
            took_ms,
            consumer,
            error,
            answer,
        } = record;
        output::line(format!(
            "{what:<10}{ended_at} {took_ms} ms {consumer}: {error}"
        ))?;
        for line in answer.iter().flat_map(|answer| answer.lines()) {
            output::line(format!("{:<12}| {}", "", printable(line)))?;
        }
    }
    output::line(format!("payload{encoding}{cut}:"))?;
    Ok(output::line(&letter.payload.payload)?)
}

/// Without control characters, which a terminal would obey.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
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

fn selection(chosen: &Chosen) -> Result<DeadLetterSelection, Failure> {
    if chosen.ids.is_empty() && !chosen.all {
        let text =
            "no dead letter is named; pass ids that `towpath dlq ls` shows, `--reason`, or `--all`";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(DeadLetterSelection {
        all: chosen.all,
        ids: chosen.ids.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::general;

    #[test]
    fn reasons_that_differ_in_ids_and_numbers_are_one() {
        for (reason, expected) in [
            (
                "answered 422 Unprocessable Entity: no customer 4711",
                "answered 422 Unprocessable Entity: no customer N",
            ),
            (
                "job 01a22e57-d895-737e-b453-a2c1468a415f failed after 12034 ms",
                "job ID failed after N ms",
            ),
            ("exit code 3", "exit code 3"),
            ("größe 12345€", "größe N€"),
            ("", ""),
        ] {
            assert_eq!(general(reason), expected);
            assert_eq!(general(expected), expected);
        }
    }
}
