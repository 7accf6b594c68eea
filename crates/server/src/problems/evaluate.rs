//! The rules, applied to an observation and to the ones before it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use towpath_core::port::{queue, stream};
use towpath_core::units::{bytes, counted};

use super::deliveries::{Window, explained, is_of_sink, shares, sink_failing};
use super::observe::Observation;
use super::{Finding, Limits, Rule};
use crate::telemetry::{CheckedBackend, CheckedRole, Deliveries, DiskUsage, Phase, STALLS, Vitals};

/// Ready messages are leased within milliseconds; five minutes mean that consumers are missing or too few.
const OLD: Duration = Duration::from_secs(300);

/// The relay sends events within a second.
const OUTBOX_OLD: Duration = Duration::from_secs(60);

/// Free space under which a disk is low: three times the store's reserve, or a share of the disk when that is smaller.
const RESERVES: u64 = 3;
const LOW_SHARE: u64 = 20;
const LOW_BYTES: u64 = 10 << 30;

/// The figure of a store's health on a disk of this machine.
const FREE_DISK: &str = "free_disk_bytes";

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
    deliveries: Window,
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
    let recent = history
        .deliveries
        .add(observed.at, &observed.vitals.deliveries);
    parts(observed, &recent, limits, &mut found);
    // A store of this machine that rejects writes for it is reported already.
    let is_of_disk = |backend: &CheckedBackend| {
        let figures = backend.answer.iter().flat_map(|health| &health.figures);
        let is_here = figures.clone().any(|(name, _)| *name == FREE_DISK);
        backend.refuses == Some("disk") && is_here
    };
    if !observed.checked.backends.iter().any(is_of_disk) {
        disks(&observed.vitals, limits, &mut found);
    }
    // What follows from a role that cannot work is not another problem.
    let explained = explained(&observed.checked);
    queues(observed, &recent, &explained, &mut found);
    streams(observed, &explained, &mut found);
    outbox(observed, &mut found);
    fleet(observed, &mut found);
    clock(observed, history, &mut found);
    files(&observed.vitals, &mut found);
    for (listener, cause) in &observed.checked.exposed {
        found.push(self::found(Rule::ListenerOpen, listener, cause));
    }
    found.sort_by_key(|one| one.rule);
    found
}

pub(super) fn found(rule: Rule, subject: impl Into<String>, cause: impl Into<String>) -> Finding {
    Finding {
        rule,
        subject: subject.into(),
        figure: None,
        cause: cause.into(),
    }
}

pub(super) fn measured(
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
fn parts(
    observed: &Observation,
    recent: &BTreeMap<String, Deliveries>,
    limits: Limits,
    list: &mut Vec<Finding>,
) {
    let checked = &observed.checked;
    if checked.phase == Phase::Starting {
        return;
    }
    for backend in &checked.backends {
        // Without parameters, which are settings.
        let subject = backend.url.split('?').next().unwrap_or_default();
        match &backend.answer {
            Err(cause) => {
                let rule = match backend.refuses {
                    Some(_) => Rule::StoreRefusing,
                    None => Rule::BackendUnreachable,
                };
                list.push(found(rule, subject, cause));
                continue;
            }
            Ok(health) => {
                for (number, warning) in health.warnings.iter().enumerate() {
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
            let figure = refusal(backend, reason, limits);
            list.push(Finding {
                figure,
                ..found(Rule::StoreRefusing, subject, cause)
            });
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
            list.extend(sink_failing(name, role, recent));
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

/// Free space or used memory of a backend that rejects writes, where it measures them.
fn refusal(backend: &CheckedBackend, reason: &str, limits: Limits) -> Option<String> {
    let figures = backend.answer.as_ref().ok()?.figures.iter();
    let figure = |name| figures.clone().find(|(one, _)| *one == name);
    match reason {
        "disk" => {
            let (_, free) = figure(FREE_DISK)?;
            let reserve = bytes(limits.disk_reserve);
            Some(format!("{} free, {reserve} reserved", bytes(*free)))
        }
        _ => {
            let (_, used) = figure("used_memory_bytes")?;
            Some(format!("{} used", bytes(*used)))
        }
    }
}

/// The faults of a role itself. A consequence of a failed dependency is the dependency's problem.
fn faults(name: &str, role: &CheckedRole, has_its_needs: bool, list: &mut Vec<Finding>) {
    let mut own = role.faults.iter().filter(|(source, _)| !is_of_sink(source));
    if let Some((_, cause)) = own.next().filter(|_| has_its_needs) {
        list.push(found(Rule::RoleFailing, name, cause));
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

fn queues(
    observed: &Observation,
    recent: &BTreeMap<String, Deliveries>,
    explained: &BTreeSet<&str>,
    list: &mut Vec<Finding>,
) {
    for stats in &observed.queues {
        let queue = stats.queue.as_str();
        if stats.dead > 0 {
            let cause = "messages used up their attempts or were rejected";
            let figure = counted(stats.dead, "dead letter");
            list.push(measured(Rule::DeadLetters, queue, figure, cause));
        }
        if !explained.contains(queue) {
            backlog(stats, list);
        }
    }
    for (queue, recent) in recent {
        shares(queue, *recent, explained.contains(&**queue), list);
    }
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

fn streams(observed: &Observation, explained: &BTreeSet<&str>, list: &mut Vec<Finding>) {
    let is_explained = |stats: &&stream::Stats| explained.contains(stats.stream.as_str());
    for stats in observed.streams.iter().filter(|one| !is_explained(one)) {
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

/// The role that sends the events of the outbox.
const RELAY: &str = "accounts.relay";

fn outbox(observed: &Observation, list: &mut Vec<Finding>) {
    let vitals = &observed.vitals;
    if vitals.outbox_failed > 0 {
        let figure = counted(vitals.outbox_failed, "event");
        let cause = "the broker rejected these events, or their attempts are used up";
        list.push(measured(Rule::OutboxFailed, "outbox", figure, cause));
    }
    let checked = &observed.checked;
    let relay_fails = checked
        .roles
        .get(RELAY)
        .is_some_and(|relay| !relay.faults.is_empty() || !checked.blocked_by(RELAY).is_empty());
    if vitals.outbox_age >= OUTBOX_OLD && !relay_fails {
        let figure = format!("oldest event {} s old", vitals.outbox_age.as_secs());
        let cause = format!("{} events are not sent", vitals.outbox_new);
        list.push(measured(Rule::OutboxBehind, "outbox", figure, cause));
    }
}

fn fleet(observed: &Observation, list: &mut Vec<Finding>) {
    let vitals = &observed.vitals;
    if let Some(reason) = &observed.checked.stopped_rollout {
        list.push(found(Rule::RolloutStopped, "fleet", reason));
    }
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
        (
            Rule::AgentsDisagree,
            vitals.agents_behind + vitals.agents_shared,
            "applied another version than the controller sent, or share an identity",
        ),
    ] {
        if count > 0 {
            let figure = counted(count, "agent");
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

#[cfg(test)]
pub(super) mod tests;
