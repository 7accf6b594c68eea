//! The rules, applied to an observation and to the ones before it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use towpath_core::port::queue;

use super::observe::Observation;
use super::{Finding, Limits, Rule};
use crate::telemetry::{CheckedRole, Deliveries, DiskUsage, Phase, Source, Vitals};

/// Ready messages are leased within milliseconds; five minutes mean that consumers are missing or too few.
const OLD: Duration = Duration::from_secs(300);

/// The relay sends events within a second.
const OUTBOX_OLD: Duration = Duration::from_secs(60);

/// Shares of deliveries are those of this window, and need at least `ENOUGH` deliveries.
const WINDOW: Duration = Duration::from_secs(60);
const ENOUGH: u64 = 20;

/// Shares from which deliveries fail and messages die, in percent.
const FAILING: u64 = 20;
const DYING: u64 = 5;

/// Free space under which a disk is low: three times the store's reserve, or a share of the disk when that is smaller.
const RESERVES: u64 = 3;
const LOW_SHARE: u64 = 20;
const LOW_BYTES: u64 = 10 << 30;

/// The share of open files from which they are low, in percent.
const FILES: u64 = 80;

/// A clock before this is wrong: the program did not exist (2026-01-01).
const YEAR_2026: Duration = Duration::from_secs(1_767_225_600);

/// A step of the wall clock against the monotonic one that no synchronisation makes.
const STEP: Duration = Duration::from_secs(5);

/// Time for which a step is reported.
const STEP_SHOWN: Duration = Duration::from_secs(600);

/// State of earlier observations.
#[derive(Default)]
pub(super) struct History {
    /// Deliveries by queue at moments of the last window, oldest first.
    deliveries: VecDeque<(Instant, BTreeMap<String, Deliveries>)>,
    /// The two clocks at the last observation.
    clocks: Option<(Instant, SystemTime)>,
    /// The last step back of the wall clock: when it was seen, and how far.
    stepped: Option<(Instant, Duration)>,
}

/// Every problem of this observation, the worst rules first.
pub(super) fn evaluate(
    observed: &Observation,
    history: &mut History,
    limits: Limits,
) -> Vec<Finding> {
    let mut found = Vec::new();
    parts(observed, &mut found);
    let refuses = |reason| {
        let mut backends = observed.checked.backends.iter();
        backends.any(|backend| backend.refuses == Some(reason))
    };
    // A store that rejects writes for it is reported already.
    if !refuses("disk") {
        disks(&observed.vitals, limits, &mut found);
    }
    queues(observed, history, &mut found);
    streams(observed, &mut found);
    outbox(&observed.vitals, &mut found);
    agents(&observed.vitals, &mut found);
    clock(observed, history, &mut found);
    files(&observed.vitals, &mut found);
    for (listener, cause) in &observed.checked.exposed {
        found.push(self::found(Rule::ListenerOpen, listener, cause));
    }
    found.sort_by_key(|one| one.rule);
    found
}

fn found(rule: Rule, subject: impl Into<String>, cause: impl Into<String>) -> Finding {
    Finding {
        rule,
        subject: subject.into(),
        figure: None,
        cause: cause.into(),
    }
}

fn measured(
    rule: Rule,
    subject: impl Into<String>,
    figure: String,
    cause: impl Into<String>,
) -> Finding {
    Finding {
        figure: Some(figure),
        ..found(rule, subject, cause)
    }
}

/// Backends, databases and roles.
fn parts(observed: &Observation, list: &mut Vec<Finding>) {
    let checked = &observed.checked;
    if checked.phase == Phase::Starting {
        return;
    }
    for backend in &checked.backends {
        // Without parameters, which are settings.
        let subject = backend.url.split('?').next().unwrap_or_default();
        match &backend.answer {
            Err(cause) => list.push(found(Rule::BackendUnreachable, subject, cause)),
            Ok(warnings) => {
                for (number, warning) in warnings.iter().enumerate() {
                    let subject = match number {
                        0 => subject.to_owned(),
                        more => format!("{subject} ({})", more + 1),
                    };
                    list.push(found(Rule::Warning, subject, warning));
                }
            }
        }
        if let Some(reason) = backend.refuses {
            let cause = format!("{reason} is low: new messages are rejected");
            list.push(found(Rule::StoreRefusing, subject, cause));
        }
    }
    for (check, problem) in &checked.checks {
        if let Some(cause) = problem {
            list.push(found(Rule::DatabaseUnreachable, check, cause));
        }
    }
    for (name, role) in &checked.roles {
        // A check reports for itself.
        if !checked.checks.contains_key(name) && name != STALLS {
            faults(name, role, checked.blocked_by(name).is_empty(), list);
        }
        for note in role.notes.iter().take(1) {
            let more = role.notes.len() - 1;
            let cause = match more {
                0 => note.clone(),
                more => format!("{note}; and {more} more"),
            };
            list.push(found(Rule::Warning, name, cause));
        }
    }
    if let Some(cause) = checked
        .roles
        .get(STALLS)
        .and_then(|role| role.faults.values().next())
    {
        list.push(found(Rule::DiskStalled, STALLS, cause));
    }
}

/// The part of health that reports disks that do not respond.
const STALLS: &str = "disks";

/// The faults of a role. A consequence of a failed dependency is the dependency's problem.
fn faults(name: &str, role: &CheckedRole, has_its_needs: bool, list: &mut Vec<Finding>) {
    let of_sinks = |source: &Source| matches!(source, Source::Sink(_) | Source::Destination(_));
    let (sinks, own): (Vec<_>, Vec<_>) =
        role.faults.iter().partition(|(source, _)| of_sinks(source));
    if let Some((_, cause)) = own.first().filter(|_| has_its_needs) {
        list.push(found(Rule::RoleFailing, name, *cause));
    }
    if let Some((_, cause)) = sinks.first() {
        list.push(found(Rule::SinkFailing, name, *cause));
    }
}

fn disks(vitals: &Vitals, limits: Limits, list: &mut Vec<Finding>) {
    for room in &vitals.rooms {
        let DiskUsage { folder, free, size } = room;
        let share = free.saturating_mul(100) / (*size).max(1);
        let is_small = *free < limits.disk_reserve.saturating_mul(RESERVES);
        if is_small || share * LOW_SHARE < 100 && *free < LOW_BYTES {
            let figure = format!("{} free", bytes(*free));
            let cause = format!(
                "{share} % of {} are free; the store rejects writes below {}",
                bytes(*size),
                bytes(limits.disk_reserve)
            );
            let subject = folder.display().to_string();
            list.push(measured(Rule::DiskLow, subject, figure, cause));
        }
    }
}

fn queues(observed: &Observation, history: &mut History, list: &mut Vec<Finding>) {
    for stats in &observed.queues {
        let queue = stats.queue.as_str();
        if stats.dead > 0 {
            let cause = "messages used up their attempts or were rejected";
            let figure = format!("{} dead letters", stats.dead);
            list.push(measured(Rule::DeadLetters, queue, figure, cause));
        }
        backlog(stats, list);
    }
    let now = observed.at;
    let deliveries = &observed.vitals.deliveries;
    while history.deliveries.len() > 1
        && history
            .deliveries
            .get(1)
            .is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
    {
        history.deliveries.pop_front();
    }
    let before = history.deliveries.front().map(|(_, before)| before);
    for (queue, now) in deliveries {
        let before = before.and_then(|before| before.get(queue)).copied();
        let recent = now.since(before.unwrap_or_default());
        shares(queue, recent, list);
    }
    history.deliveries.push_back((now, deliveries.clone()));
}

fn backlog(stats: &queue::Stats, list: &mut Vec<Finding>) {
    let Some(age) = stats.oldest_ready_age.filter(|age| *age >= OLD) else {
        return;
    };
    // An operator stopped it on purpose.
    if stats.paused {
        return;
    }
    let cause = match stats.consumers {
        0 => format!("{} messages are ready and no consumer leases", stats.ready),
        some => format!("{} messages are ready for {some} consumers", stats.ready),
    };
    let figure = format!("oldest ready for {} s", age.as_secs());
    list.push(measured(
        Rule::BacklogOld,
        stats.queue.as_str(),
        figure,
        cause,
    ));
}

/// Shares of the deliveries of the last window.
fn shares(queue: &str, recent: Deliveries, list: &mut Vec<Finding>) {
    let all = recent.done + recent.failed + recent.dead;
    if all < ENOUGH {
        return;
    }
    let percent = |count: u64| count * 100 / all;
    let within = format!("of {all} deliveries within {} s", WINDOW.as_secs());
    let failed = percent(recent.failed + recent.dead);
    if failed >= FAILING {
        let cause = format!("{failed} % {within} failed");
        let figure = format!("{failed} %");
        list.push(measured(Rule::DeliveriesFailing, queue, figure, cause));
    }
    let dead = percent(recent.dead);
    if dead >= DYING {
        let cause = format!("{dead} % {within} became dead letters");
        let figure = format!("{dead} %");
        list.push(measured(Rule::MessagesDying, queue, figure, cause));
    }
}

fn streams(observed: &Observation, list: &mut Vec<Finding>) {
    for stats in &observed.streams {
        for group in &stats.groups {
            let Some(age) = group.oldest_age.filter(|age| *age >= OLD) else {
                continue;
            };
            let subject = format!("{}/{}", stats.stream, group.group);
            let figure = format!("oldest unfinished for {} s", age.as_secs());
            let cause = format!("{} entries are not finished", group.lag);
            list.push(measured(Rule::StreamBehind, subject, figure, cause));
        }
    }
}

fn outbox(vitals: &Vitals, list: &mut Vec<Finding>) {
    if vitals.outbox_failed > 0 {
        let figure = format!("{} events", vitals.outbox_failed);
        let cause = "the broker rejected these events, or their attempts are used up";
        list.push(measured(Rule::OutboxFailed, "outbox", figure, cause));
    }
    if vitals.outbox_age >= OUTBOX_OLD {
        let figure = format!("oldest event {} s old", vitals.outbox_age.as_secs());
        let cause = format!("{} events are not sent", vitals.outbox_new);
        list.push(measured(Rule::OutboxBehind, "outbox", figure, cause));
    }
}

fn agents(vitals: &Vitals, list: &mut Vec<Finding>) {
    for (rule, count, cause) in [
        (
            Rule::AgentsStale,
            vitals.agents_stale,
            "no report for three intervals",
        ),
        (
            Rule::AgentsFailed,
            vitals.agents_failed,
            "the worker did not accept the configuration",
        ),
    ] {
        if count > 0 {
            let figure = format!("{count} agents");
            list.push(measured(rule, "fleet", figure, cause));
        }
    }
}

/// The wall clock against the monotonic one.
fn clock(observed: &Observation, history: &mut History, list: &mut Vec<Finding>) {
    let (at, wall) = (observed.at, observed.wall);
    if wall.duration_since(UNIX_EPOCH).unwrap_or_default() < YEAR_2026 {
        let cause = "the system clock is before 2026";
        list.push(found(Rule::ClockImplausible, "clock", cause));
    }
    if let Some((then, wall_then)) = history.clocks {
        let expected = wall_then + at.duration_since(then);
        let back = expected.duration_since(wall).unwrap_or_default();
        if back >= STEP {
            history.stepped = Some((at, back));
        }
    }
    history.clocks = Some((at, wall));
    let recent = history
        .stepped
        .filter(|(seen, _)| at.duration_since(*seen) < STEP_SHOWN);
    if let Some((_, back)) = recent {
        let cause = "the system clock was set back while the process ran";
        let figure = format!("{} s", back.as_secs());
        list.push(measured(Rule::ClockImplausible, "clock", figure, cause));
    }
}

fn files(vitals: &Vitals, list: &mut Vec<Finding>) {
    let (open, most) = vitals.files;
    if most > 0 && open.saturating_mul(100) >= most.saturating_mul(FILES) {
        let figure = format!("{open} of {most}");
        let cause = "open files are near their limit; at the limit connections are refused";
        list.push(measured(Rule::FilesLow, "process", figure, cause));
    }
}

/// A size for people: `64.0 MiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut rest = count as f64;
    while rest >= 1024.0 && unit < UNITS.len() - 1 {
        rest /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{rest:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::QueueName;

    use super::*;
    use crate::telemetry::Health;

    const LIMITS: Limits = Limits {
        disk_reserve: 64 << 20,
    };

    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

    /// A process without parts.
    async fn quiet() -> Observation {
        let health = Health::new();
        health.serving();
        let at = Instant::now();
        Observation {
            at,
            // As the clock of the runtime goes.
            wall: UNIX_EPOCH + YEAR_2026 * 2 + at.duration_since(*BEGAN.get_or_init(|| at)),
            checked: health.check().await,
            queues: Vec::new(),
            streams: Vec::new(),
            vitals: Vitals::default(),
        }
    }

    fn stats(oldest_ready: Option<u64>) -> queue::Stats {
        queue::Stats {
            queue: QueueName::new("jobs").unwrap(),
            ready: 3,
            delayed: 1,
            leased: 0,
            dead: 0,
            enqueued: 4,
            acked: 0,
            retried: 0,
            dropped: 0,
            duplicates: 0,
            oldest_age: Some(Duration::from_secs(86_400)),
            oldest_ready_age: oldest_ready.map(Duration::from_secs),
            oldest_leased_age: Some(Duration::from_secs(86_400)),
            oldest_delayed_age: Some(Duration::from_secs(86_400)),
            consumers: 0,
            paused: false,
        }
    }

    fn names(observed: &Observation, history: &mut History) -> Vec<&'static str> {
        let found = evaluate(observed, history, LIMITS);
        found.iter().map(|one| one.rule.name()).collect()
    }

    #[tokio::test]
    async fn only_messages_that_are_ready_grow_old() {
        let mut observed = quiet().await;
        let history = &mut History::default();
        assert_eq!(names(&observed, history), [""; 0]);
        observed.queues = vec![stats(None), stats(Some(299))];
        assert_eq!(names(&observed, history), [""; 0]);
        observed.queues = vec![stats(Some(300))];
        assert_eq!(names(&observed, history), ["backlog_old"]);
        observed.queues[0].paused = true;
        assert_eq!(names(&observed, history), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn shares_are_those_of_the_last_minute() {
        let history = &mut History::default();
        let mut done = 0;
        let mut look = async |failed, dead| {
            done += 10;
            tokio::time::advance(Duration::from_secs(5)).await;
            let mut observed = quiet().await;
            let counts = Deliveries { done, failed, dead };
            observed.vitals.deliveries.insert("jobs".to_owned(), counts);
            names(&observed, history)
        };
        assert_eq!(look(0, 0).await, [""; 0]);
        // 4 of 14 are many, but of too few.
        assert_eq!(look(4, 0).await, [""; 0]);
        assert_eq!(look(20, 0).await, ["deliveries_failing"]);
        assert_eq!(look(20, 4).await, ["deliveries_failing", "messages_dying"]);
        for _ in 0..11 {
            look(20, 4).await;
        }
        assert_eq!(look(20, 4).await, [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_is_reported_for_a_while() {
        let mut observed = quiet().await;
        let history = &mut History::default();
        assert_eq!(names(&observed, history), [""; 0]);
        observed.wall -= Duration::from_secs(3_600);
        let found = evaluate(&observed, history, LIMITS);
        assert_eq!(found[0].figure.as_deref(), Some("3600 s"));
        observed.at += STEP_SHOWN;
        observed.wall += STEP_SHOWN;
        assert_eq!(names(&observed, history), [""; 0]);
        observed.wall = UNIX_EPOCH;
        assert_eq!(names(&observed, history)[0], "clock_implausible");
    }

    #[tokio::test]
    async fn a_disk_is_low_by_size_or_by_share() {
        let mut observed = quiet().await;
        let history = &mut History::default();
        let mut look = |free: u64, size: u64| {
            let folder = "/data".into();
            observed.vitals.rooms = vec![DiskUsage { folder, free, size }];
            names(&observed, history)
        };
        let (mib, gib) = (1 << 20, 1 << 30);
        assert_eq!(look(192 * mib, 500 * mib), [""; 0]);
        assert_eq!(look(191 * mib, 500 * mib), ["disk_low"]);
        assert_eq!(look(4 * gib, 100 * gib), ["disk_low"]);
        // A large disk with room for long.
        assert_eq!(look(40 * gib, 1_000 * gib), [""; 0]);
    }

    #[tokio::test]
    async fn consequences_of_a_failed_part_are_not_separate_problems() {
        let health = Health::new();
        health.serving();
        health.watch_check("database", || {
            Box::pin(async { Err(towpath_core::Error::unavailable("no answer")) })
        });
        health.needs("accounts.api", "database", crate::telemetry::Need::Answers);
        health.set("accounts.api", Some("the last call failed".to_owned()));
        health.set("lines.reader", Some("permission denied".to_owned()));
        let mut observed = quiet().await;
        observed.checked = health.check().await;
        let found = evaluate(&observed, &mut History::default(), LIMITS);
        let subjects: Vec<_> = found
            .iter()
            .map(|one| (one.rule.name(), one.subject.as_str()))
            .collect();
        assert_eq!(
            subjects,
            [
                ("database_unreachable", "database"),
                ("role_failing", "lines.reader")
            ]
        );
    }
}
