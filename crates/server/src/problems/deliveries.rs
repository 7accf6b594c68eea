//! The deliveries of the last minute, and the queues whose trouble a failing role explains.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::evaluate::{found, measured};
use super::{Finding, Rule};
use crate::telemetry::{Checked, CheckedRole, Deliveries, Source};

/// Shares are those of the deliveries of this window, of at least this number of them.
const WINDOW: Duration = Duration::from_secs(60);
const ENOUGH: u64 = 20;

/// Shares from which deliveries fail and messages die, in percent.
const FAILING: u64 = 20;
const DYING: u64 = 5;

/// Deliveries by queue at moments of the last window, oldest first.
#[derive(Default)]
pub(super) struct Window(VecDeque<(Instant, BTreeMap<String, Deliveries>)>);

impl Window {
    /// Adds the counts of a moment, and returns the counts of the window.
    pub(super) fn add(
        &mut self,
        at: Instant,
        counts: &BTreeMap<String, Deliveries>,
    ) -> BTreeMap<String, Deliveries> {
        let is_old = |(moment, _): &(Instant, _)| at.duration_since(*moment) >= WINDOW;
        while self.0.len() > 1 && self.0.get(1).is_some_and(is_old) {
            self.0.pop_front();
        }
        let before = self.0.front().map(|(_, before)| before);
        let recent = counts.iter().map(|(queue, now)| {
            let before = before.and_then(|before| before.get(queue)).copied();
            (queue.clone(), now.since(before.unwrap_or_default()))
        });
        let recent = recent.collect();
        self.0.push_back((at, counts.clone()));
        recent
    }
}

/// The problem of a role whose sink or destination accepts nothing: the queues, the share of failed attempts, the
/// error.
pub(super) fn sink_failing(
    name: &str,
    role: &CheckedRole,
    recent: &BTreeMap<String, Deliveries>,
) -> Option<Finding> {
    let mut faults = role.faults.iter();
    let (_, error) = faults.find(|(source, _)| is_of_sink(source))?;
    let counts = |queue: &&String| recent.get(*queue).copied().unwrap_or_default();
    let fails = |queue: &&String| counts(queue).not_done() > 0;
    let mut queues: Vec<&String> = role.queues.iter().filter(fails).collect();
    if queues.is_empty() {
        queues = role.queues.iter().collect();
    }
    let sum = queues
        .iter()
        .map(counts)
        .fold(Deliveries::default(), Deliveries::and);
    let cause = match &*queues
        .iter()
        .map(|queue| format!("`{queue}`"))
        .collect::<Vec<_>>()
    {
        [] => error.clone(),
        [one] => format!("queue {one}: {error}"),
        several => format!("queues {}: {error}", several.join(", ")),
    };
    let (all, within) = (sum.all(), WINDOW.as_secs());
    Some(match (sum.not_done() * 100).checked_div(all) {
        None => found(Rule::SinkFailing, name, cause),
        Some(percent) => {
            let figure = format!("{percent} % of {all} attempts within {within} s failed");
            measured(Rule::SinkFailing, name, figure, cause)
        }
    })
}

pub(super) const fn is_of_sink(source: &Source) -> bool {
    matches!(source, Source::Sink(_) | Source::Destination(_))
}

/// Queues and streams that wait because the role that delivers from them cannot work, which is a problem already.
pub(super) fn explained(checked: &Checked) -> BTreeSet<&str> {
    let fails = |(name, role): &(&String, &CheckedRole)| {
        !role.faults.is_empty() || !checked.blocked_by(name).is_empty()
    };
    let failing = checked.roles.iter().filter(fails);
    let queues = failing.flat_map(|(_, role)| &role.queues);
    queues.map(String::as_str).collect()
}

/// Shares of the deliveries of the last window.
pub(super) fn shares(queue: &str, recent: Deliveries, is_explained: bool, list: &mut Vec<Finding>) {
    let all = recent.all();
    if all < ENOUGH {
        return;
    }
    let percent = |count: u64| count * 100 / all;
    let within = format!("of {all} deliveries within {} s", WINDOW.as_secs());
    let failed = percent(recent.not_done());
    if failed >= FAILING && !is_explained {
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

#[cfg(test)]
mod tests {
    use towpath_core::QueueName;
    use towpath_core::port::queue;

    use super::super::Limits;
    use super::super::evaluate::tests::quiet;
    use super::super::evaluate::{History, evaluate};
    use super::*;
    use crate::telemetry::Health;

    const LIMITS: Limits = Limits { disk_reserve: 0 };

    fn counts(unavailable: u64) -> Deliveries {
        Deliveries {
            done: 3,
            unavailable,
            ..Deliveries::default()
        }
    }

    fn old(name: &str) -> queue::Stats {
        queue::Stats {
            queue: QueueName::new(name).unwrap(),
            ready: 500,
            delayed: 0,
            leased: 0,
            dead: 0,
            enqueued: 500,
            acked: 0,
            retried: 0,
            dropped: 0,
            duplicates: 0,
            oldest_age: Some(Duration::from_secs(600)),
            oldest_ready_age: Some(Duration::from_secs(600)),
            oldest_leased_age: None,
            oldest_delayed_age: None,
            consumers: 1,
            paused: false,
        }
    }

    #[tokio::test]
    async fn a_failing_sink_names_queue_share_and_error_and_explains_its_backlog() {
        let health = Health::new();
        health.serving();
        health.works_on("ingest.worker", "messages");
        health.works_on("ingest.worker", "more");
        let fault = Some("destination `http://x/` is unavailable: HTTP 503".to_owned());
        let source = Source::Destination("http://x/".to_owned());
        health.report("ingest.worker", source.clone(), fault);
        let mut observed = quiet().await;
        observed.checked = health.check().await;
        observed.queues = vec![old("messages"), old("another")];
        let vitals = &mut observed.vitals.deliveries;
        vitals.insert("messages".to_owned(), counts(27));
        vitals.insert("more".to_owned(), counts(0));
        let found = evaluate(&observed, &mut History::default(), LIMITS);
        let [sink, backlog] = &*found else {
            panic!("{found:?}");
        };
        assert_eq!(
            (sink.rule, &*sink.subject),
            (Rule::SinkFailing, "ingest.worker")
        );
        let figure = "90 % of 30 attempts within 60 s failed";
        assert_eq!(sink.figure.as_deref(), Some(figure));
        let cause = "queue `messages`: destination `http://x/` is unavailable: HTTP 503";
        assert_eq!(sink.cause, cause);
        // Nothing explains why this one waits.
        assert_eq!(
            (backlog.rule, &*backlog.subject),
            (Rule::BacklogOld, "another")
        );
        // A share without a failing sink is a problem of its own.
        health.report("ingest.worker", source, None);
        observed.checked = health.check().await;
        observed.queues.clear();
        let found = evaluate(&observed, &mut History::default(), LIMITS);
        let [share] = &*found else {
            panic!("{found:?}");
        };
        assert_eq!(
            (share.rule, &*share.subject),
            (Rule::DeliveriesFailing, "messages")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_forgets_older_counts() {
        let mut window = Window::default();
        let at = Instant::now();
        let mut add = |seconds, unavailable| {
            let counts = BTreeMap::from([("jobs".to_owned(), counts(unavailable))]);
            let recent = window.add(at + Duration::from_secs(seconds), &counts);
            recent["jobs"].unavailable
        };
        assert_eq!(add(0, 5), 5);
        assert_eq!(add(30, 7), 2);
        assert_eq!(add(60, 8), 3);
        assert_eq!(add(89, 9), 4);
        assert_eq!(add(90, 10), 3);
    }
}
