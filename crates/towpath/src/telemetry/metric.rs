//! Every metric's name, in one place.

/// A metric. Names have base units; label values come from configuration or the program, never from requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests answered.
    HttpRequests,
    /// How long requests took.
    HttpRequestDuration,
    /// Connections that were not served.
    RefusedConnections,
    /// Deliveries handed to a sink.
    Deliveries,
    /// How long a sink took for a batch.
    ProcessDuration,
    /// From enqueue to done.
    EndToEnd,
    /// Batches a sink could not take at all, and deliveries that met an unavailable destination.
    SinkFailures,
    /// Destinations that are paused or limited.
    Destinations,
    /// Messages that can be leased.
    QueueReady,
    /// Messages in hand.
    QueueInFlight,
    /// Messages held back.
    QueueScheduled,
    /// Dead letters.
    QueueDead,
    /// Age of the oldest waiting message.
    QueueOldestAge,
    /// Age of the oldest message that is ready.
    QueueOldestReadyAge,
    /// Age of the longest lease.
    QueueOldestLeasedAge,
    /// Age of the oldest message that is delayed.
    QueueOldestDelayedAge,
    /// Queues without series of their own.
    QueuesSummed,
    /// Messages ever taken.
    Enqueued,
    /// Messages ever acked.
    Completed,
    /// Deliveries that ended in a retry.
    Retried,
    /// Messages dropped.
    Dropped,
    /// Repeats recognised.
    Duplicates,
    /// Decisions of limits.
    LimitDecisions,
    /// Orders by what became of them.
    Orders,
    /// Lines that the reader sent.
    LinesRead,
    /// Lines that the writer wrote.
    LinesWritten,
    /// Their bytes.
    LineBytesRead,
    /// Their bytes.
    LineBytesWritten,
    /// What kept the reader from reading on.
    LineReadFailures,
    /// Bytes read of an input.
    InputRead,
    /// Size of an input.
    InputSize,
    /// Events that the relay has not sent.
    OutboxNew,
    /// Events that the relay has given up.
    OutboxFailed,
    /// Age of the oldest event that was not sent.
    OutboxOldestAge,
    /// Agents of the fleet by how they are.
    FleetAgents,
    /// The newest configuration.
    FleetVersion,
    /// Entries that a group has not finished.
    StreamLag,
    /// Entries in consumers' hands.
    StreamPending,
    /// Age of the oldest unfinished entry.
    StreamOldestAge,
    /// Whether a backend works.
    BackendUp,
    /// Whether a backend refuses intake.
    BackendRefusing,
    /// A problem.
    Problem,
    /// For how long a disk has not answered.
    DiskStalled,
    /// Room left on a disk.
    DiskFree,
    /// Size of a disk.
    DiskSize,
    /// What runs.
    BuildInfo,
    /// Processor time used.
    ProcessCpu,
    /// Memory in use.
    ProcessMemory,
    /// Open file descriptors.
    ProcessOpenFds,
    /// Most file descriptors.
    ProcessMaxFds,
    /// When the process started.
    ProcessStart,
}

impl Metric {
    /// Every metric, in the order of the documentation.
    pub const ALL: [Self; 51] = [
        Self::HttpRequests,
        Self::HttpRequestDuration,
        Self::RefusedConnections,
        Self::Deliveries,
        Self::ProcessDuration,
        Self::EndToEnd,
        Self::SinkFailures,
        Self::Destinations,
        Self::QueueReady,
        Self::QueueInFlight,
        Self::QueueScheduled,
        Self::QueueDead,
        Self::QueueOldestAge,
        Self::QueueOldestReadyAge,
        Self::QueueOldestLeasedAge,
        Self::QueueOldestDelayedAge,
        Self::QueuesSummed,
        Self::Enqueued,
        Self::Completed,
        Self::Retried,
        Self::Dropped,
        Self::Duplicates,
        Self::LimitDecisions,
        Self::Orders,
        Self::LinesRead,
        Self::LinesWritten,
        Self::LineBytesRead,
        Self::LineBytesWritten,
        Self::LineReadFailures,
        Self::InputRead,
        Self::InputSize,
        Self::OutboxNew,
        Self::OutboxFailed,
        Self::OutboxOldestAge,
        Self::FleetAgents,
        Self::FleetVersion,
        Self::StreamLag,
        Self::StreamPending,
        Self::StreamOldestAge,
        Self::BackendUp,
        Self::BackendRefusing,
        Self::Problem,
        Self::DiskStalled,
        Self::DiskFree,
        Self::DiskSize,
        Self::BuildInfo,
        Self::ProcessCpu,
        Self::ProcessMemory,
        Self::ProcessOpenFds,
        Self::ProcessMaxFds,
        Self::ProcessStart,
    ];

    /// Name as the text format shows it, type, labels, help.
    pub const fn row(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::HttpRequests => (
                "towpath_http_requests_total",
                "counter",
                "route, method, status",
                "Requests answered",
            ),
            Self::HttpRequestDuration => (
                "towpath_http_request_duration_seconds",
                "histogram",
                "route",
                "How long requests took",
            ),
            Self::RefusedConnections => (
                "towpath_http_connections_refused_total",
                "counter",
                "listener, reason",
                "Connections closed unserved: limit, or failed for want of descriptors and the like",
            ),
            Self::Deliveries => (
                "towpath_deliveries_total",
                "counter",
                "queue, outcome",
                "Deliveries handed to a sink: done, retry, reject, lost",
            ),
            Self::ProcessDuration => (
                "towpath_message_process_duration_seconds",
                "histogram",
                "queue",
                "How long the sink took for a batch, or the handler for a message",
            ),
            Self::EndToEnd => (
                "towpath_message_end_to_end_seconds",
                "histogram",
                "queue",
                "From enqueue to done",
            ),
            Self::SinkFailures => (
                "towpath_sink_failures_total",
                "counter",
                "queue",
                "Batches the sink could not take at all, and deliveries that met an unavailable destination",
            ),
            Self::Destinations => (
                "towpath_destinations",
                "gauge",
                "role, state",
                "Destinations that are `paused` because they are unavailable, or `limited` because they refuse more; of a database (role `database` or `fleet.database`) 1 while calls are refused until a trial succeeds",
            ),
            Self::QueueReady => (
                "towpath_queue_ready_messages",
                "gauge",
                "queue",
                "Messages that can be leased now",
            ),
            Self::QueueInFlight => (
                "towpath_queue_in_flight_messages",
                "gauge",
                "queue",
                "Messages in consumers' hands",
            ),
            Self::QueueScheduled => (
                "towpath_queue_scheduled_messages",
                "gauge",
                "queue",
                "Messages held back until a moment",
            ),
            Self::QueueDead => (
                "towpath_queue_dead_messages",
                "gauge",
                "queue",
                "Dead letters",
            ),
            Self::QueueOldestAge => (
                "towpath_queue_oldest_message_age_seconds",
                "gauge",
                "queue",
                "Age of the oldest waiting message; 0 when none waits",
            ),
            Self::QueueOldestReadyAge => (
                "towpath_queue_oldest_ready_age_seconds",
                "gauge",
                "queue",
                "For how long the longest waiting message that can be leased has been ready; a delay, a retry's backoff and a lease do not count; 0 when none is ready",
            ),
            Self::QueueOldestLeasedAge => (
                "towpath_queue_oldest_leased_age_seconds",
                "gauge",
                "queue",
                "For how long the longest held of the leased messages has been leased; renewals do not begin it again; 0 when none is leased, no series where the backend does not know",
            ),
            Self::QueueOldestDelayedAge => (
                "towpath_queue_oldest_delayed_age_seconds",
                "gauge",
                "queue",
                "How long ago the oldest delayed message was enqueued; 0 when none is delayed, no series where the backend does not know",
            ),
            Self::QueuesSummed => (
                "towpath_queues_summed",
                "gauge",
                "",
                "Queues beyond the first 500, whose numbers are in the series `queue=\"other queues\"`: sums, and the oldest age of all",
            ),
            Self::Enqueued => (
                "towpath_messages_enqueued_total",
                "counter",
                "queue",
                "Messages taken",
            ),
            Self::Completed => (
                "towpath_messages_completed_total",
                "counter",
                "queue",
                "Messages acked",
            ),
            Self::Retried => (
                "towpath_messages_retried_total",
                "counter",
                "queue",
                "Deliveries that ended in a retry",
            ),
            Self::Dropped => (
                "towpath_messages_dropped_total",
                "counter",
                "queue",
                "Messages expired, purged, or dropped from the dead letters",
            ),
            Self::Duplicates => (
                "towpath_messages_duplicate_total",
                "counter",
                "queue",
                "Repeats recognised by their dedup id",
            ),
            Self::LimitDecisions => (
                "towpath_limit_decisions_total",
                "counter",
                "limit, outcome",
                "What limits decided, by name or route: allowed, denied, or undecided while their store is away",
            ),
            Self::Orders => (
                "towpath_orders",
                "gauge",
                "state",
                "Orders ever accepted, processed, rejected and notified, where `orders.dashboard` runs",
            ),
            Self::LinesRead => (
                "lines_read_total",
                "counter",
                "",
                "Lines that `lines.reader` sent or set aside as too long",
            ),
            Self::LinesWritten => (
                "lines_written_total",
                "counter",
                "",
                "Lines that `lines.writer` wrote and committed",
            ),
            Self::LineBytesRead => (
                "towpath_lines_read_bytes_total",
                "counter",
                "",
                "Bytes of the lines that `lines.reader` sent or set aside as too long, with a newline for each",
            ),
            Self::LineBytesWritten => (
                "towpath_lines_written_bytes_total",
                "counter",
                "",
                "Bytes of the lines that `lines.writer` wrote and committed, with a newline for each",
            ),
            Self::LineReadFailures => (
                "towpath_lines_read_failures_total",
                "counter",
                "cause",
                "Attempts of `lines.reader` that failed, and are made again: input (it cannot be read), backend (it takes no lines)",
            ),
            Self::InputRead => (
                "towpath_lines_input_read_bytes",
                "gauge",
                "input",
                "Bytes read of an input file",
            ),
            Self::InputSize => (
                "towpath_lines_input_size_bytes",
                "gauge",
                "input",
                "Size of an input file",
            ),
            Self::OutboxNew => (
                "towpath_outbox_new_events",
                "gauge",
                "",
                "Events that `accounts.relay` has not sent yet",
            ),
            Self::OutboxFailed => (
                "towpath_outbox_failed_events",
                "gauge",
                "",
                "Events that `accounts.relay` has given up: alert on more than none",
            ),
            Self::OutboxOldestAge => (
                "towpath_outbox_oldest_age_seconds",
                "gauge",
                "",
                "Age of the oldest event that was not sent yet",
            ),
            Self::FleetAgents => (
                "towpath_fleet_agents",
                "gauge",
                "state",
                "Agents that are active, stale (not heard of for three intervals), failed to apply a configuration, or share an identity with another process (shared), where `fleet.controller` runs",
            ),
            Self::FleetVersion => (
                "towpath_fleet_version",
                "gauge",
                "",
                "The newest version of the configuration, where `fleet.controller` runs",
            ),
            Self::StreamLag => (
                "towpath_stream_lag_messages",
                "gauge",
                "stream, group",
                "Entries that the group has not finished: what to scale its consumers on",
            ),
            Self::StreamPending => (
                "towpath_stream_pending_messages",
                "gauge",
                "stream, group",
                "Entries in the hands of the group's consumers",
            ),
            Self::StreamOldestAge => (
                "towpath_stream_oldest_message_age_seconds",
                "gauge",
                "stream, group",
                "Age of the group's oldest unfinished entry; 0 when there is none",
            ),
            Self::BackendUp => (
                "towpath_backend_up",
                "gauge",
                "backend",
                "1 when the backend answers, 0 when it does not",
            ),
            Self::Problem => (
                "towpath_problem",
                "gauge",
                "problem, subject",
                "1 while the process has this problem; `towpath status` shows cause and next step",
            ),
            Self::BackendRefusing => (
                "towpath_backend_refusing",
                "gauge",
                "backend, reason",
                "1 while the backend refuses what would make it grow, because the disk or the memory is low",
            ),
            Self::DiskStalled => (
                "towpath_disk_stalled_seconds",
                "gauge",
                "disk",
                "For how long the disk of a store, database or output has not answered, once that is longer than `server.disk_timeout`; 0 while it answers",
            ),
            Self::DiskFree => (
                "towpath_disk_free_bytes",
                "gauge",
                "folder",
                "Room left on a disk that is written to, by the first of the folders on it",
            ),
            Self::DiskSize => (
                "towpath_disk_size_bytes",
                "gauge",
                "folder",
                "Size of a disk that is written to",
            ),
            Self::BuildInfo => ("towpath_build_info", "gauge", "version", "Always 1"),
            Self::ProcessCpu => (
                "process_cpu_seconds_total",
                "counter",
                "",
                "Processor time used, user and system",
            ),
            Self::ProcessMemory => (
                "process_resident_memory_bytes",
                "gauge",
                "",
                "Memory in use",
            ),
            Self::ProcessOpenFds => ("process_open_fds", "gauge", "", "Open file descriptors"),
            Self::ProcessMaxFds => (
                "process_max_fds",
                "gauge",
                "",
                "Most file descriptors the process may open",
            ),
            Self::ProcessStart => (
                "process_start_time_seconds",
                "gauge",
                "",
                "When the process started, in seconds since 1970",
            ),
        }
    }

    /// Name without the ending that the encoder adds to counters.
    pub fn registered_name(self) -> &'static str {
        let (name, kind, ..) = self.row();
        if kind == "counter" {
            name.trim_end_matches("_total")
        } else {
            name
        }
    }

    /// The help text.
    pub const fn help(self) -> &'static str {
        self.row().3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_lists_every_metric() {
        let mut page = String::from(
            "# Metrics\n\n`GET /metrics` on the admin listener; text format by default, OpenMetrics by `Accept`.\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n",
        );
        for metric in Metric::ALL {
            let (name, kind, labels, help) = metric.row();
            page.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
        }
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/metrics.md"
        );
        if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            page,
            "run with TOWPATH_UPDATE_DOCS=1"
        );
    }
}
