//! Every metric's name, in one place.

/// A metric. Names have base units; label values come from configuration or the program, never from requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Requests answered.
    HttpRequests,
    /// Duration of requests.
    HttpRequestDuration,
    /// Connections that were not served.
    RefusedConnections,
    /// Idle connections that were closed for new ones.
    EvictedConnections,
    /// Deliveries handed to a sink.
    Deliveries,
    /// Duration of a batch in a sink.
    ProcessDuration,
    /// From enqueue to done.
    EndToEnd,
    /// Batches that a sink failed to deliver, and deliveries to an unavailable destination.
    SinkFailures,
    /// Destinations that are paused or limited.
    Destinations,
    /// Ready messages.
    QueueReady,
    /// Leased messages.
    QueueLeased,
    /// Delayed messages.
    QueueDelayed,
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
    /// Whether a queue is paused.
    QueuePaused,
    /// Queues that share one series.
    QueuesSummed,
    /// Enqueued messages.
    Enqueued,
    /// Acked messages.
    Acked,
    /// Deliveries that ended in a retry.
    Retried,
    /// Dropped messages.
    Dropped,
    /// Duplicates.
    Duplicates,
    /// Rate limit decisions.
    LimitDecisions,
    /// Orders by state.
    Orders,
    /// Lines that the reader sent.
    LinesRead,
    /// Lines that the writer wrote.
    LinesWritten,
    /// Their bytes.
    LineBytesRead,
    /// Their bytes.
    LineBytesWritten,
    /// Failed attempts of the reader.
    LineReadFailures,
    /// Bytes read of an input.
    InputRead,
    /// Size of an input.
    InputSize,
    /// Events that the relay has not sent.
    OutboxNew,
    /// Failed events.
    OutboxFailed,
    /// Age of the oldest event that was not sent.
    OutboxOldestAge,
    /// Agents by state.
    FleetAgents,
    /// The newest configuration.
    FleetVersion,
    /// Entries that a group has not finished.
    StreamLag,
    /// Pending entries.
    StreamPending,
    /// Age of the oldest unfinished entry.
    StreamOldestAge,
    /// Whether a backend works.
    BackendUp,
    /// Whether a backend rejects writes.
    BackendRefusing,
    /// A problem.
    Problem,
    /// Restarts of tasks.
    TaskRestarts,
    /// Duration of a disk stall.
    DiskStalled,
    /// Free space of a disk.
    DiskFree,
    /// Size of a disk.
    DiskSize,
    /// Version of the binary.
    BuildInfo,
    /// Processor time used.
    ProcessCpu,
    /// Memory in use.
    ProcessMemory,
    /// Open file descriptors.
    ProcessOpenFds,
    /// Limit of file descriptors.
    ProcessMaxFds,
    /// When the process started.
    ProcessStart,
}

impl Metric {
    /// Every metric, in the order of the documentation.
    pub const ALL: [Self; 54] = [
        Self::HttpRequests,
        Self::HttpRequestDuration,
        Self::RefusedConnections,
        Self::EvictedConnections,
        Self::Deliveries,
        Self::ProcessDuration,
        Self::EndToEnd,
        Self::SinkFailures,
        Self::Destinations,
        Self::QueueReady,
        Self::QueueLeased,
        Self::QueueDelayed,
        Self::QueueDead,
        Self::QueueOldestAge,
        Self::QueueOldestReadyAge,
        Self::QueueOldestLeasedAge,
        Self::QueueOldestDelayedAge,
        Self::QueuePaused,
        Self::QueuesSummed,
        Self::Enqueued,
        Self::Acked,
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
        Self::TaskRestarts,
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
                "HTTP requests",
            ),
            Self::HttpRequestDuration => (
                "towpath_http_request_duration_seconds",
                "histogram",
                "route",
                "Request duration, from the head of the request to the response",
            ),
            Self::RefusedConnections => (
                "towpath_http_connections_refused_total",
                "counter",
                "listener, reason",
                "Connections closed without a request: `limit` or `client_limit` reached, or `failed` to accept (for example no free file descriptor)",
            ),
            Self::EvictedConnections => (
                "towpath_http_connections_evicted_total",
                "counter",
                "listener",
                "Idle connections closed for new ones, because all of `server.max_connections` were open",
            ),
            Self::Deliveries => (
                "towpath_deliveries_total",
                "counter",
                "queue, outcome",
                "Deliveries to a sink by outcome: done, retry, reject, lost, unavailable (released without a charge)",
            ),
            Self::ProcessDuration => (
                "towpath_message_process_duration_seconds",
                "histogram",
                "queue",
                "Duration of a batch in the sink, or of a message in the handler",
            ),
            Self::EndToEnd => (
                "towpath_message_end_to_end_seconds",
                "histogram",
                "queue",
                "Time from enqueue to acknowledgement",
            ),
            Self::SinkFailures => (
                "towpath_sink_failures_total",
                "counter",
                "queue",
                "Batches that the sink failed to deliver, and deliveries to an unavailable destination",
            ),
            Self::Destinations => (
                "towpath_destinations",
                "gauge",
                "role, state",
                "Destinations that are `paused` (unavailable) or `limited` (rejecting further requests); of a database (role `database` or `fleet.database`) 1 while calls are refused until a trial succeeds",
            ),
            Self::QueueReady => (
                "towpath_queue_ready_messages",
                "gauge",
                "queue",
                "Ready messages",
            ),
            Self::QueueLeased => (
                "towpath_queue_leased_messages",
                "gauge",
                "queue",
                "Leased messages",
            ),
            Self::QueueDelayed => (
                "towpath_queue_delayed_messages",
                "gauge",
                "queue",
                "Delayed messages",
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
                "Age of the oldest ready, delayed or leased message; 0 without one",
            ),
            Self::QueueOldestReadyAge => (
                "towpath_queue_oldest_ready_age_seconds",
                "gauge",
                "queue",
                "Longest time that a message has been ready, without delays, backoff and leases; 0 without a ready message",
            ),
            Self::QueueOldestLeasedAge => (
                "towpath_queue_oldest_leased_age_seconds",
                "gauge",
                "queue",
                "Age of the oldest lease; a renewal does not reset it; 0 when no message is leased, no series where the backend does not know",
            ),
            Self::QueueOldestDelayedAge => (
                "towpath_queue_oldest_delayed_age_seconds",
                "gauge",
                "queue",
                "Age of the oldest delayed message since its enqueue; 0 when none is delayed, no series where the backend does not know",
            ),
            Self::QueuePaused => (
                "towpath_queue_paused",
                "gauge",
                "queue",
                "1 while an operator has paused delivery; the log of the process that paused it names the key",
            ),
            Self::QueuesSummed => (
                "towpath_queues_summed",
                "gauge",
                "",
                "Queues beyond the first 500, which share the series `queue=\"other queues\"`: sums, and the highest age",
            ),
            Self::Enqueued => (
                "towpath_messages_enqueued_total",
                "counter",
                "queue",
                "Enqueued messages",
            ),
            Self::Acked => (
                "towpath_messages_acked_total",
                "counter",
                "queue",
                "Acked messages",
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
                "Expired and purged messages, and deleted dead letters",
            ),
            Self::Duplicates => (
                "towpath_messages_duplicate_total",
                "counter",
                "queue",
                "Duplicates dropped by their dedup id",
            ),
            Self::LimitDecisions => (
                "towpath_limit_decisions_total",
                "counter",
                "limit, outcome",
                "Rate limit decisions by limit name or route: allowed, denied, or undecided (store unavailable)",
            ),
            Self::Orders => (
                "towpath_orders",
                "gauge",
                "state",
                "Accepted, processed, rejected and notified orders in total; exported by `orders.dashboard`",
            ),
            Self::LinesRead => (
                "lines_read_total",
                "counter",
                "",
                "Lines that `lines.reader` sent, or moved to the dead letters as too long",
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
                "Bytes of the lines in `lines_read_total`, newlines included",
            ),
            Self::LineBytesWritten => (
                "towpath_lines_written_bytes_total",
                "counter",
                "",
                "Bytes of the lines in `lines_written_total`, newlines included",
            ),
            Self::LineReadFailures => (
                "towpath_lines_read_failures_total",
                "counter",
                "cause",
                "Failed and retried attempts of `lines.reader`, by cause: input (cannot be read), backend (rejects lines)",
            ),
            Self::InputRead => (
                "towpath_lines_input_read_bytes",
                "gauge",
                "input",
                "Position of the reader in an input file",
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
                "Outbox events that `accounts.relay` has not sent yet",
            ),
            Self::OutboxFailed => (
                "towpath_outbox_failed_events",
                "gauge",
                "",
                "Failed outbox events; alert above 0",
            ),
            Self::OutboxOldestAge => (
                "towpath_outbox_oldest_age_seconds",
                "gauge",
                "",
                "Age of the oldest unsent outbox event",
            ),
            Self::FleetAgents => (
                "towpath_fleet_agents",
                "gauge",
                "state",
                "Agents by state: active, stale (no request for three intervals), failed (to apply a configuration), behind (applied another version than it was sent, for three intervals), shared (identity used by another process too); exported by `fleet.controller`",
            ),
            Self::FleetVersion => (
                "towpath_fleet_version",
                "gauge",
                "",
                "Newest configuration version; exported by `fleet.controller`",
            ),
            Self::StreamLag => (
                "towpath_stream_lag_messages",
                "gauge",
                "stream, group",
                "Lag: entries that the group has not finished; scale its consumers by it",
            ),
            Self::StreamPending => (
                "towpath_stream_pending_messages",
                "gauge",
                "stream, group",
                "Pending entries: delivered to consumers of the group and not finished",
            ),
            Self::StreamOldestAge => (
                "towpath_stream_oldest_message_age_seconds",
                "gauge",
                "stream, group",
                "Age of the group's oldest unfinished entry; 0 without one",
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
            Self::TaskRestarts => (
                "towpath_task_restarts_total",
                "counter",
                "task",
                "Restarts of a task of the process after a failure; the log has the error",
            ),
            Self::BackendRefusing => (
                "towpath_backend_refusing",
                "gauge",
                "backend, reason",
                "1 while the backend rejects writes because disk or memory is low",
            ),
            Self::DiskStalled => (
                "towpath_disk_stalled_seconds",
                "gauge",
                "disk",
                "Time since a disk of a store, database or output last responded, once above `server.disk_timeout`; 0 otherwise",
            ),
            Self::DiskFree => (
                "towpath_disk_free_bytes",
                "gauge",
                "folder",
                "Free space of the disk that holds the folder",
            ),
            Self::DiskSize => (
                "towpath_disk_size_bytes",
                "gauge",
                "folder",
                "Size of the disk that holds the folder",
            ),
            Self::BuildInfo => ("towpath_build_info", "gauge", "version", "Always 1"),
            Self::ProcessCpu => (
                "process_cpu_seconds_total",
                "counter",
                "",
                "CPU time, user and system",
            ),
            Self::ProcessMemory => (
                "process_resident_memory_bytes",
                "gauge",
                "",
                "Resident memory",
            ),
            Self::ProcessOpenFds => ("process_open_fds", "gauge", "", "Open file descriptors"),
            Self::ProcessMaxFds => (
                "process_max_fds",
                "gauge",
                "",
                "Limit of open file descriptors",
            ),
            Self::ProcessStart => (
                "process_start_time_seconds",
                "gauge",
                "",
                "Start time of the process since the Unix epoch",
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
