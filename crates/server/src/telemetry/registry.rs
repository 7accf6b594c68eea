//! The registry: counters kept as things happen, and queue numbers looked up at scrape time.

#![expect(
    clippy::disallowed_methods,
    reason = "ages of events are counted from the database's wall-clock times"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderMap;
use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use towpath_core::backend::Backend;
use towpath_core::port::outbox::Backlog;
use towpath_core::port::queue::Stats;
use towpath_core::port::stream;

use crate::http::accept;
use towpath::pump::Condition;

use super::disk_usage::{self, Disks};
use super::lines::LineMetrics;
use super::metric::Metric;
use super::process;
use super::shown::{OTHER_QUEUES, Shown};

/// The content types of the two formats. Source: Prometheus, "Exposition formats".
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN: &str = "application/openmetrics-text";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: String,
    method: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// Label of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Queue {
    pub(super) queue: String,
}

/// Labels of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    pub(super) queue: String,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusing {
    backend: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    listener: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationState {
    role: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OrderState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AgentState {
    pub(super) state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ProblemLabels {
    pub(super) problem: &'static str,
    pub(super) subject: String,
}

/// Labels of a consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Group {
    stream: String,
    group: String,
}

/// Connections of one listener that were not served.
#[derive(Debug, Clone)]
pub struct RefusedConnections {
    /// Over the limit of connections.
    pub over_limit: Counter,
    /// Over the limit of connections of one client.
    pub over_client_limit: Counter,
    /// Not accepted, for lack of descriptors and the like.
    pub failed: Counter,
    /// Idle connections that were closed for new ones.
    pub gave_way: Counter,
}

/// Timeout of a backend's health check, after which a scrape continues without it.
const DEADLINE: Duration = Duration::from_secs(2);

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// 1 ms to 33 s, doubling twice a step: enough to tell a cached answer from a sync from a time-out.
fn durations() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
    ])
}

/// A cheap handle to every metric of the process.
#[derive(Clone)]
pub struct Metrics(pub(super) Arc<Inner>);

pub(super) struct Inner {
    requests: Family<Request, Counter>,
    request_duration: Histograms<Route>,
    refused: Family<Refusal, Counter>,
    evicted: Family<Listener, Counter>,
    pub(super) deliveries: Family<Outcome, Counter>,
    pub(super) process_duration: Histograms<Queue>,
    pub(super) end_to_end: Histograms<Queue>,
    pub(super) sink_failures: Family<Queue, Counter>,
    destinations: Family<DestinationState, Gauge>,
    limit_decisions: Family<Limit, Counter>,
    orders: Family<OrderState, Gauge>,
    lines: LineMetrics,
    pub(super) outbox_new: Gauge,
    pub(super) outbox_failed: Gauge,
    pub(super) outbox_oldest_age: Gauge,
    pub(super) fleet_agents: Family<AgentState, Gauge>,
    fleet_version: Gauge,
    stalled: Family<Disk, Gauge>,
    restarts: Family<Task, Counter>,
    pub(super) disks: Disks,
    pub(super) shown: Shown,
    pub(super) problems: Family<ProblemLabels, Gauge>,
    registry: Registry,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Task {
    task: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Disk {
    disk: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty registry with every metric that is kept as things happen.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let inner = Inner {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(durations),
            refused: Family::default(),
            evicted: Family::default(),
            deliveries: Family::default(),
            process_duration: Family::new_with_constructor(durations),
            end_to_end: Family::new_with_constructor(durations),
            sink_failures: Family::default(),
            destinations: Family::default(),
            limit_decisions: Family::default(),
            orders: Family::default(),
            lines: LineMetrics::default(),
            outbox_new: Gauge::default(),
            outbox_failed: Gauge::default(),
            outbox_oldest_age: Gauge::default(),
            fleet_agents: Family::default(),
            fleet_version: Gauge::default(),
            stalled: Family::default(),
            restarts: Family::default(),
            disks: Disks::default(),
            shown: Shown::default(),
            problems: Family::default(),
            registry: Registry::default(),
        };
        let build = Family::<Build, Gauge>::default();
        build
            .get_or_create(&Build {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        add(&mut registry, Metric::HttpRequests, inner.requests.clone());
        add(
            &mut registry,
            Metric::HttpRequestDuration,
            inner.request_duration.clone(),
        );
        add(
            &mut registry,
            Metric::RefusedConnections,
            inner.refused.clone(),
        );
        add(
            &mut registry,
            Metric::EvictedConnections,
            inner.evicted.clone(),
        );
        add(&mut registry, Metric::Deliveries, inner.deliveries.clone());
        add(
            &mut registry,
            Metric::ProcessDuration,
            inner.process_duration.clone(),
        );
        add(&mut registry, Metric::EndToEnd, inner.end_to_end.clone());
        add(
            &mut registry,
            Metric::SinkFailures,
            inner.sink_failures.clone(),
        );
        add(
            &mut registry,
            Metric::Destinations,
            inner.destinations.clone(),
        );
        add(
            &mut registry,
            Metric::LimitDecisions,
            inner.limit_decisions.clone(),
        );
        add(&mut registry, Metric::Orders, inner.orders.clone());
        add(&mut registry, Metric::DiskStalled, inner.stalled.clone());
        add(&mut registry, Metric::TaskRestarts, inner.restarts.clone());
        add(&mut registry, Metric::Problem, inner.problems.clone());
        inner.lines.register(&mut registry);
        for (metric, gauge) in [
            (Metric::OutboxNew, &inner.outbox_new),
            (Metric::OutboxFailed, &inner.outbox_failed),
            (Metric::OutboxOldestAge, &inner.outbox_oldest_age),
            (Metric::FleetVersion, &inner.fleet_version),
        ] {
            add(&mut registry, metric, gauge.clone());
        }
        add(
            &mut registry,
            Metric::FleetAgents,
            inner.fleet_agents.clone(),
        );
        add(&mut registry, Metric::BuildInfo, build);
        Self(Arc::new(Inner { registry, ..inner }))
    }

    /// Counts an answered request.
    pub fn http_request(&self, route: &str, method: &str, status: u16, elapsed: Duration) {
        let labels = Request {
            route: route.to_owned(),
            method: known_method(method).to_owned(),
            status,
        };
        self.0.requests.get_or_create(&labels).inc();
        self.0
            .request_duration
            .get_or_create(&Route {
                route: route.to_owned(),
            })
            .observe(elapsed.as_secs_f64());
    }

    /// Counts a decision of the limit with this name.
    pub fn limit_decision(&self, limit: &str, outcome: &'static str) {
        let limit = limit.to_owned();
        let labels = Limit { limit, outcome };
        self.0.limit_decisions.get_or_create(&labels).inc();
    }

    /// Orders that were ever in each state.
    pub fn orders<const N: usize>(&self, counts: [(&'static str, u64); N]) {
        for (state, count) in counts {
            set(&self.0.orders, &OrderState { state }, count);
        }
    }

    /// Metrics of the lines app.
    pub fn lines(&self) -> LineMetrics {
        self.0.lines.clone()
    }

    /// From now on each scrape says how much room is on the disk of this folder.
    pub fn watch_disk(&self, folder: &Path) {
        self.0.disks.watch(folder);
    }

    /// Counts restarts of a task; 0 makes its series.
    pub fn task_restarts(&self, task: &str, count: u64) {
        let task = task.to_owned();
        self.0.restarts.get_or_create(&Task { task }).inc_by(count);
    }

    /// Time since this disk last answered; zero while it does.
    pub fn disk_stalled(&self, disk: &str, lasts: Duration) {
        let disk = disk.to_owned();
        set(&self.0.stalled, &Disk { disk }, lasts.as_secs());
    }

    /// The relay's backlog.
    pub fn outbox(&self, backlog: &Backlog) {
        let age = backlog.oldest.map_or(0, |oldest| {
            Timestamp::now().duration_since(oldest).as_secs().max(0)
        });
        let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.outbox_new.set(signed(backlog.new));
        self.0.outbox_failed.set(signed(backlog.failed));
        self.0.outbox_oldest_age.set(age);
    }

    /// Number of agents in each state, and the newest configuration.
    pub fn fleet<const N: usize>(&self, agents: [(&'static str, usize); N], version: u64) {
        for (state, count) in agents {
            set(&self.0.fleet_agents, &AgentState { state }, count as u64);
        }
        self.0
            .fleet_version
            .set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// The counters of refused connections of the listener with this name.
    pub fn refused_connections(&self, listener: &str) -> RefusedConnections {
        let counter = |reason| {
            let listener = listener.to_owned();
            let labels = Refusal { listener, reason };
            self.0.refused.get_or_create(&labels).clone()
        };
        RefusedConnections {
            over_limit: counter("limit"),
            over_client_limit: counter("client_limit"),
            failed: counter("failed"),
            gave_way: self
                .0
                .evicted
                .get_or_create(&Listener {
                    listener: listener.to_owned(),
                })
                .clone(),
        }
    }

    pub(super) fn delivery_counter(&self, queue: &str, outcome: &'static str) -> Counter {
        self.0.shown.show(queue);
        self.0
            .deliveries
            .get_or_create(&Outcome {
                queue: queue.to_owned(),
                outcome,
            })
            .clone()
    }

    pub(super) fn process_duration(&self, queue: &str) -> Histogram {
        self.0
            .process_duration
            .get_or_create(&Queue {
                queue: queue.to_owned(),
            })
            .clone()
    }

    pub(super) fn end_to_end(&self, queue: &str) -> Histogram {
        self.0
            .end_to_end
            .get_or_create(&Queue {
                queue: queue.to_owned(),
            })
            .clone()
    }

    /// Counts the destinations of a role by their condition; open ones are not counted.
    pub fn destination(&self, role: &'static str, from: Condition, to: Condition) {
        let gauge = |state| {
            let labels = DestinationState { role, state };
            self.0.destinations.get_or_create(&labels).clone()
        };
        for (state, condition) in [
            ("limited", Condition::Limited),
            ("paused", Condition::Paused),
        ] {
            gauge(state).inc_by(i64::from(to == condition) - i64::from(from == condition));
        }
    }

    pub(super) fn sink_failures(&self, queue: &str) -> Counter {
        self.0
            .sink_failures
            .get_or_create(&Queue {
                queue: queue.to_owned(),
            })
            .clone()
    }

    /// Everything, in the format that a client with these headers prefers. Returns the content type and the text.
    ///
    /// A backend that does not answer within 2 s counts as down, and its queues are left out; disks likewise.
    pub async fn render(
        &self,
        headers: &HeaderMap,
        backends: &[Backend],
    ) -> (&'static str, String) {
        let answers = join_all(backends.iter().map(|backend| async {
            let answer = tokio::time::timeout(DEADLINE, ask(backend)).await;
            (backend.descriptor.name, answer.unwrap_or_default())
        }));
        let look = tokio::time::timeout(DEADLINE, self.0.disks.look());
        let (found, rooms) = tokio::join!(answers, look);
        let rooms = rooms.unwrap_or_default();
        let mut scraped = Registry::default();
        let up = Family::<BackendLabel, Gauge>::default();
        add(&mut scraped, Metric::BackendUp, up.clone());
        let families = QueueFamilies::register(&mut scraped);
        let groups = GroupFamilies::register(&mut scraped);
        process::register(&mut scraped);
        disk_usage::register(&mut scraped, &rooms);
        let refusing = Family::<Refusing, Gauge>::default();
        add(&mut scraped, Metric::BackendRefusing, refusing.clone());
        for backend in backends {
            for (reason, refuses) in backend.lifecycle.refusals() {
                let backend = backend.descriptor.name;
                set(&refusing, &Refusing { backend, reason }, u64::from(refuses));
            }
        }
        let summed = Gauge::<i64>::default();
        add(&mut scraped, Metric::QueuesSummed, summed.clone());
        let all = found.iter().map(|(_, (_, queues, _))| queues.as_slice());
        let (own, rest) = self.0.shown.split(all.flatten());
        own.into_iter().for_each(|stats| families.set(stats));
        if let Some((count, sum)) = rest {
            families.set_as(OTHER_QUEUES.to_owned(), &sum);
            summed.set(count);
        }
        for (name, (works, _, streams)) in found {
            up.get_or_create(&BackendLabel {
                backend: name.to_owned(),
            })
            .set(i64::from(works));
            streams.iter().for_each(|stats| groups.set(stats));
        }
        let mut body = String::new();
        let encoded = text::encode_registry(&mut body, &self.0.registry)
            .and_then(|()| text::encode_registry(&mut body, &scraped))
            .and_then(|()| text::encode_eof(&mut body));
        if let Err(error) = encoded {
            tracing::warn!(%error, "metrics not encoded");
        }
        let weight = |kind| accept::weight(headers, kind);
        if accept::names(headers, OPEN) && weight(OPEN) >= weight("text/plain") {
            return (OPEN_METRICS, body);
        }
        (TEXT, as_text_format(&body))
    }
}

/// Whether a backend works, its queues and its streams.
async fn ask(backend: &Backend) -> (bool, Vec<Stats>, Vec<stream::Stats>) {
    let up = backend.lifecycle.health().await.is_ok();
    let (queues, streams) = listing(backend).await;
    (up, queues, streams)
}

/// The queues and streams of a backend; none where it does not list them.
pub async fn listing(backend: &Backend) -> (Vec<Stats>, Vec<stream::Stats>) {
    let queues = match &backend.queue {
        Some(queue) => queue.list().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let streams = match &backend.stream {
        Some(stream) => stream.list().await.unwrap_or_default(),
        None => Vec::new(),
    };
    (queues, streams)
}

pub(super) fn add(
    registry: &mut Registry,
    metric: Metric,
    family: impl prometheus_client::registry::Metric,
) {
    registry.register(metric.registered_name(), metric.help(), family);
}

/// Sets the gauge with these labels.
pub(super) fn set<L>(family: &Family<L, Gauge>, labels: &L, value: u64)
where
    L: Clone + std::hash::Hash + Eq,
{
    let gauge = family.get_or_create(labels);
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// OpenMetrics says the same as the older text format, but for the name of a counter's family and the end mark.
fn as_text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let counters: Vec<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("TYPE" | "HELP")), Some(name), Some(rest))
                if counters.contains(&name) =>
            {
                text.push_str(&format!("# {what} {name}_total {rest}\n"));
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// An age in seconds; `None` when the backend does not know that of the messages that there are.
fn age(oldest: Option<Duration>, messages: u64) -> Option<u64> {
    match oldest {
        Some(age) => Some(age.as_secs()),
        None => (messages == 0).then_some(0),
    }
}

/// Which number of a queue a metric shows; `None` when it is not known.
type Number = fn(&Stats) -> Option<u64>;

struct QueueFamilies {
    gauges: Vec<(Family<Queue, Gauge>, Number)>,
    counters: Vec<(Family<Queue, Counter>, Number)>,
}

impl QueueFamilies {
    fn register(registry: &mut Registry) -> Self {
        let gauges: [(Metric, Number); 9] = [
            (Metric::QueueReady, |stats| Some(stats.ready)),
            (Metric::QueueLeased, |stats| Some(stats.leased)),
            (Metric::QueueDelayed, |stats| Some(stats.delayed)),
            (Metric::QueueDead, |stats| Some(stats.dead)),
            (Metric::QueueOldestAge, |stats| {
                Some(stats.oldest_age.unwrap_or_default().as_secs())
            }),
            (Metric::QueueOldestReadyAge, |stats| {
                Some(stats.oldest_ready_age.unwrap_or_default().as_secs())
            }),
            (Metric::QueueOldestLeasedAge, |stats| {
                age(stats.oldest_leased_age, stats.leased)
            }),
            (Metric::QueueOldestDelayedAge, |stats| {
                age(stats.oldest_delayed_age, stats.delayed)
            }),
            (Metric::QueuePaused, |stats| Some(u64::from(stats.paused))),
        ];
        let counters: [(Metric, Number); 5] = [
            (Metric::Enqueued, |stats| Some(stats.enqueued)),
            (Metric::Acked, |stats| Some(stats.acked)),
            (Metric::Retried, |stats| Some(stats.retried)),
            (Metric::Dropped, |stats| Some(stats.dropped)),
            (Metric::Duplicates, |stats| Some(stats.duplicates)),
        ];
        Self {
            gauges: gauges
                .into_iter()
                .map(|(metric, value)| {
                    let family = Family::default();
                    registry.register(metric.registered_name(), metric.help(), family.clone());
                    (family, value)
                })
                .collect(),
            counters: counters
                .into_iter()
                .map(|(metric, value)| {
                    let family = Family::default();
                    registry.register(metric.registered_name(), metric.help(), family.clone());
                    (family, value)
                })
                .collect(),
        }
    }

    fn set(&self, stats: &Stats) {
        self.set_as(stats.queue.to_string(), stats);
    }

    fn set_as(&self, queue: String, stats: &Stats) {
        let labels = Queue { queue };
        for (family, value) in &self.gauges {
            if let Some(value) = value(stats) {
                set(family, &labels, value);
            }
        }
        for (family, value) in &self.counters {
            if let Some(value) = value(stats) {
                family.get_or_create(&labels).inc_by(value);
            }
        }
    }
}

/// The numbers of consumer groups.
struct GroupFamilies {
    lag: Family<Group, Gauge>,
    pending: Family<Group, Gauge>,
    oldest_age: Family<Group, Gauge>,
}

impl GroupFamilies {
    fn register(registry: &mut Registry) -> Self {
        let families = Self {
            lag: Family::default(),
            pending: Family::default(),
            oldest_age: Family::default(),
        };
        add(registry, Metric::StreamLag, families.lag.clone());
        add(registry, Metric::StreamPending, families.pending.clone());
        add(
            registry,
            Metric::StreamOldestAge,
            families.oldest_age.clone(),
        );
        families
    }

    fn set(&self, stats: &stream::Stats) {
        for group in &stats.groups {
            let labels = Group {
                stream: stats.stream.to_string(),
                group: group.group.to_string(),
            };
            let age = group.oldest_age.unwrap_or_default().as_secs();
            for (family, value) in [
                (&self.lag, group.lag),
                (&self.pending, group.pending),
                (&self.oldest_age, age),
            ] {
                set(family, &labels, value);
            }
        }
    }
}

/// Clients can send any word as a method; only the standard ones become labels.
fn known_method(method: &str) -> &str {
    match method {
        "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" => method,
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_formats_say_the_same_in_their_own_words() {
        let metrics = Metrics::new();
        metrics.http_request("/enqueue", "BREW", 200, Duration::from_millis(3));
        let (kind, text) = metrics.render(&HeaderMap::new(), &[]).await;
        assert_eq!(kind, TEXT);
        assert!(
            text.contains("# TYPE towpath_http_requests_total counter\n"),
            "{text}"
        );
        assert!(
            text.contains(
                r#"towpath_http_requests_total{route="/enqueue",method="other",status="200"} 1"#
            ),
            "{text}"
        );
        assert!(!text.contains("# EOF"));
        let accepting = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            HeaderMap::from_iter([(http::header::ACCEPT, value)])
        };
        let (kind, open) = metrics
            .render(
                &accepting("application/openmetrics-text; version=1.0.0"),
                &[],
            )
            .await;
        assert_eq!(kind, OPEN_METRICS);
        for accept in [
            "application/openmetrics-text;q=0, */*",
            "text/plain, application/openmetrics-text;q=0.5",
            "*/*",
        ] {
            let (kind, _) = metrics.render(&accepting(accept), &[]).await;
            assert_eq!(kind, TEXT, "{accept}");
        }
        assert!(
            open.contains("# TYPE towpath_http_requests counter\n") && open.ends_with("# EOF\n"),
            "{open}"
        );
    }
}
