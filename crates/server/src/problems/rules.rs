//! The rules: conditions of problems, their severity, and the next steps.

use serde::Serialize;
use utoipa::ToSchema;

/// Severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// At once.
    Page,
    /// On a working day.
    Ticket,
}

/// A kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A backend does not answer.
    BackendUnreachable,
    /// A database does not answer, or accepts no changes.
    DatabaseUnreachable,
    /// A backend rejects writes because the disk or the memory is low.
    StoreRefusing,
    /// The disk of a store, database or output does not respond.
    DiskStalled,
    /// Little space is left on a disk.
    DiskLow,
    /// A role cannot lease, publish or do its work.
    RoleFailing,
    /// A sink or destination accepts nothing.
    SinkFailing,
    /// Many deliveries fail.
    DeliveriesFailing,
    /// Many messages become dead letters.
    MessagesDying,
    /// A queue has dead letters.
    DeadLetters,
    /// Messages that are ready wait for a consumer.
    BacklogOld,
    /// A consumer group is behind.
    StreamBehind,
    /// Events wait for the relay.
    OutboxBehind,
    /// Events that the relay stopped trying to send.
    OutboxFailed,
    /// Agents that do not report.
    AgentsStale,
    /// Agents that could not apply the configuration.
    AgentsFailed,
    /// Agents with another configuration than the controller sent, or with the identity of another agent.
    AgentsDisagree,
    /// The last rollout stopped and was rolled back.
    RolloutStopped,
    /// The system clock is wrong or was set back.
    ClockImplausible,
    /// The process is close to its limit of open files.
    FilesLow,
    /// Clients of other machines use a listener without a key.
    ListenerOpen,
    /// A backend or role works, with a warning.
    Warning,
}

/// A row of the table of rules.
struct Row {
    rule: Rule,
    name: &'static str,
    alert: &'static str,
    severity: Severity,
    /// Duration until the alert fires, as Prometheus writes it.
    hold: &'static str,
    /// The condition, as the reference page says it.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the reference page is made by a test")
    )]
    when: &'static str,
    next_step: &'static str,
}

const fn row(
    rule: Rule,
    name: &'static str,
    alert: &'static str,
    severity: Severity,
    hold: &'static str,
    when: &'static str,
    next_step: &'static str,
) -> Row {
    Row {
        rule,
        name,
        alert,
        severity,
        hold,
        when,
        next_step,
    }
}

use Severity::{Page, Ticket};

const ROWS: [Row; 22] = [
    row(
        Rule::BackendUnreachable,
        "backend_unreachable",
        "TowpathBackendDown",
        Page,
        "1m",
        "its health check fails or takes longer than 2 s",
        "check that the server runs, that this machine reaches it and that it accepts writes; Towpath reconnects automatically",
    ),
    row(
        Rule::DatabaseUnreachable,
        "database_unreachable",
        "TowpathDatabaseDown",
        Page,
        "1m",
        "its check (a change can be made) fails or takes longer than 2 s",
        "check that the database runs, accepts writes and has free connections; Towpath reconnects automatically",
    ),
    row(
        Rule::StoreRefusing,
        "store_refusing",
        "TowpathStoreRefusing",
        Page,
        "0m",
        "free disk space is below `embedded.disk_reserve`, memory above `embedded.memory`, a Redis is full, or a RabbitMQ blocks publishers",
        "free disk space or memory of the store or server, or raise its limit (`maxmemory` of a Redis); writes are then accepted again automatically",
    ),
    row(
        Rule::DiskStalled,
        "disk_stalled",
        "TowpathDiskStalled",
        Page,
        "0m",
        "a write has not returned for `server.disk_timeout`",
        "check the disk and its file system (`dmesg`); a request that was refused meanwhile may have been stored",
    ),
    row(
        Rule::DiskLow,
        "disk_low",
        "TowpathDiskLow",
        Page,
        "5m",
        "less than 3 × `embedded.disk_reserve` is free, or less than 5 % and 10 GiB",
        "free space on this disk, or move the data folder or the output to a larger one",
    ),
    row(
        Rule::RoleFailing,
        "role_failing",
        "TowpathRoleFailing",
        Page,
        "1m",
        "its last lease, call or attempt failed although the parts that it needs work",
        "fix the named cause; the role retries automatically",
    ),
    row(
        Rule::SinkFailing,
        "sink_failing",
        "TowpathSinkFails",
        Page,
        "2m",
        "a destination is paused, or the sink accepts no batch; names the queue, the share of failed attempts and the error",
        "check the receiver; messages wait without a charge and are delivered when it returns",
    ),
    row(
        Rule::DeliveriesFailing,
        "deliveries_failing",
        "TowpathDeliveriesFailing",
        Ticket,
        "5m",
        "20 % or more of at least 20 deliveries within 60 s failed although the sink accepts others",
        "look at the reasons with `towpath dlq ls QUEUE` and at the log of the receiver",
    ),
    row(
        Rule::MessagesDying,
        "messages_dying",
        "TowpathMessagesDying",
        Page,
        "0m",
        "5 % or more of at least 20 deliveries within 60 s became dead letters",
        "`towpath queue pause QUEUE` stops deliveries while you fix the cause; `towpath dlq ls QUEUE` shows the reasons",
    ),
    row(
        Rule::DeadLetters,
        "dead_letters",
        "TowpathDeadLetters",
        Ticket,
        "0m",
        "there is one",
        "`towpath dlq ls QUEUE` shows the reasons; then `towpath dlq redrive` or `towpath dlq drop`",
    ),
    row(
        Rule::BacklogOld,
        "backlog_old",
        "TowpathBacklogOld",
        Page,
        "1m",
        "a message has been ready for 300 s in a queue that is not paused and whose consumers work",
        "check that consumers run and keep up (`towpath queue ls`); add consumers or raise `ingest.worker.max_in_flight`",
    ),
    row(
        Rule::StreamBehind,
        "stream_behind",
        "TowpathStreamOld",
        Page,
        "1m",
        "the group's oldest unfinished entry is 300 s old although its consumers work",
        "check that the group's consumers run and keep up (`towpath stream groups STREAM`)",
    ),
    row(
        Rule::OutboxBehind,
        "outbox_behind",
        "TowpathRelayBehind",
        Page,
        "1m",
        "the oldest event that was not sent is 60 s old although the relay works",
        "check that `accounts.relay` runs and that its broker answers (`towpath outbox stats`)",
    ),
    row(
        Rule::OutboxFailed,
        "outbox_failed",
        "TowpathOutboxFailed",
        Ticket,
        "0m",
        "there is one",
        "`towpath outbox ls --status failed` shows the reasons; `towpath outbox retry` sends them again",
    ),
    row(
        Rule::AgentsStale,
        "agents_stale",
        "TowpathAgentsStale",
        Ticket,
        "5m",
        "an agent has not reported for three intervals",
        "`towpath fleet agents` names them; check that they run and reach the controller",
    ),
    row(
        Rule::AgentsFailed,
        "agents_failed",
        "TowpathAgentsFail",
        Ticket,
        "1m",
        "an agent reports that its worker did not accept the configuration",
        "`towpath fleet agents` shows the reasons; publish a configuration that the workers accept",
    ),
    row(
        Rule::AgentsDisagree,
        "agents_disagree",
        "TowpathAgentsDisagree",
        Ticket,
        "5m",
        "an agent that reports has had another version than the controller sent for three intervals, or several processes use one identity",
        "`towpath fleet agents` shows version and identity of each; restart the agent, or set `fleet.agent.hostname` where an identity is shared",
    ),
    row(
        Rule::RolloutStopped,
        "rollout_stopped",
        "TowpathRolloutStopped",
        Ticket,
        "0m",
        "an agent failed during a rollout, or an operator stopped it, and no configuration was published since",
        "`towpath fleet audit` shows the reason; publish a corrected configuration, or confirm the restored one with `towpath fleet config rollback VERSION`",
    ),
    row(
        Rule::ClockImplausible,
        "clock_implausible",
        "TowpathClockWrong",
        Ticket,
        "1m",
        "the clock is before 2026, or was set back by 5 s or more within the last 10 minutes",
        "set the clock (NTP); delays, leases and idempotency windows follow it",
    ),
    row(
        Rule::FilesLow,
        "files_low",
        "TowpathFilesLow",
        Ticket,
        "5m",
        "80 % of the files that the process may open are open",
        "raise the limit of open files (`ulimit -n`, `LimitNOFILE`), or lower `server.max_connections`",
    ),
    row(
        Rule::ListenerOpen,
        "listener_open",
        "TowpathListenerOpen",
        Ticket,
        "5m",
        "a listener beyond the loopback address has routes that need no key",
        "set `server.auth = \"on\"` and give clients keys (`towpath key new`), or listen on a loopback address",
    ),
    row(
        Rule::Warning,
        "warning",
        "TowpathWarning",
        Ticket,
        "5m",
        "its health check succeeds with a warning",
        "see the cause; the runbook explains the warnings of each backend",
    ),
];

impl Rule {
    /// Every rule.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.rule)
    }

    /// Its name in the API and in metrics.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Its alert, which is also its heading in the runbook.
    pub fn alert(self) -> &'static str {
        self.row().alert
    }

    /// Its severity.
    pub fn severity(self) -> Severity {
        self.row().severity
    }

    /// Whether health shows it as the fault or the warning of a part.
    pub const fn is_of_a_part(self) -> bool {
        matches!(
            self,
            Self::BackendUnreachable
                | Self::DatabaseUnreachable
                | Self::StoreRefusing
                | Self::DiskStalled
                | Self::RoleFailing
                | Self::SinkFailing
                | Self::Warning
        )
    }

    /// Duration until the alert fires.
    pub fn hold(self) -> &'static str {
        self.row().hold
    }

    /// The next step.
    pub fn next_step(self) -> &'static str {
        self.row().next_step
    }

    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }
}

impl Severity {
    /// As labels and the command line say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Ticket => "ticket",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_lists_every_rule() {
        let mut page = String::from(
            "# Problems\n\nEach process evaluates these rules every five seconds. `towpath status` prints the current problems of each process that it finds (exit code 5) or `no problems`; `/readyz?verbose` has a line for each that is not the fault of a part; `GET /v1/problems` of the admin listener gives subject, figure, cause and next step as JSON; the metric `towpath_problem{problem, subject}` is 1 for each. A fact is one problem: a role that only lacks an unreachable backend adds none, and neither does the backlog of a queue, stream or outbox whose role cannot work. The alert of the same line fires when the problem has lasted for the time given.\n\n| problem | when | severity | alert, after | next step |\n| --- | --- | --- | --- | --- |\n",
        );
        for row in &ROWS {
            let (name, when, severity) = (row.name, row.when, row.severity.as_str());
            let (alert, hold, next) = (row.alert, row.hold, row.next_step);
            let anchor = alert.to_lowercase();
            page.push_str(&format!(
                "| `{name}` | {when} | {severity} | [{alert}](../runbook.md#{anchor}), {hold} | {next} |\n"
            ));
        }
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/problems.md"
        );
        if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(there, page, "run with TOWPATH_UPDATE_DOCS=1");
    }

    #[test]
    fn rows_stand_at_their_own_index_and_have_a_page_in_the_runbook() {
        let runbook = include_str!("../../../../docs/runbook.md");
        for (index, row) in ROWS.iter().enumerate() {
            assert_eq!(row.rule as usize, index, "{}", row.name);
            let heading = format!("\n## {}\n", row.alert);
            assert!(runbook.contains(&heading), "{}", row.alert);
        }
    }
}
