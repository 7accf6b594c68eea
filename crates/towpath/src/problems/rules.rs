//! The rules: what counts as a problem, how urgent it is, and what to do about it.

use serde::Serialize;
use utoipa::ToSchema;

/// How soon a person has to look at a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// At once.
    Page,
    /// On a working day.
    Ticket,
}

/// What can be wrong.
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
    /// The system clock is wrong or was set back.
    ClockImplausible,
    /// The process is close to its limit of open files.
    FilesLow,
    /// A backend or role works, with a warning.
    Warning,
}

/// A row of the table of rules.
struct Row {
    rule: Rule,
    name: &'static str,
    alert: &'static str,
    severity: Severity,
    /// How long it has to last until the alert fires, as Prometheus writes it.
    hold: &'static str,
    next_step: &'static str,
}

const fn row(
    rule: Rule,
    name: &'static str,
    alert: &'static str,
    severity: Severity,
    hold: &'static str,
    next_step: &'static str,
) -> Row {
    Row {
        rule,
        name,
        alert,
        severity,
        hold,
        next_step,
    }
}

use Severity::{Page, Ticket};

const ROWS: [Row; 19] = [
    row(
        Rule::BackendUnreachable,
        "backend_unreachable",
        "TowpathBackendDown",
        Page,
        "1m",
        "check that the server runs and that this machine reaches it; Towpath reconnects by itself",
    ),
    row(
        Rule::DatabaseUnreachable,
        "database_unreachable",
        "TowpathDatabaseDown",
        Page,
        "1m",
        "check that the database runs, accepts writes and has free connections; Towpath reconnects by itself",
    ),
    row(
        Rule::StoreRefusing,
        "store_refusing",
        "TowpathStoreRefusing",
        Page,
        "0m",
        "free disk space or memory, or drain the queues; writes are accepted again by themselves",
    ),
    row(
        Rule::DiskStalled,
        "disk_stalled",
        "TowpathDiskStalled",
        Page,
        "0m",
        "check the disk and its file system (`dmesg`); a request that was refused meanwhile may have been stored",
    ),
    row(
        Rule::DiskLow,
        "disk_low",
        "TowpathDiskLow",
        Page,
        "5m",
        "free space on this disk, or move the data folder or the output to a larger one",
    ),
    row(
        Rule::RoleFailing,
        "role_failing",
        "TowpathRoleFailing",
        Page,
        "1m",
        "fix the named cause; the role retries by itself",
    ),
    row(
        Rule::SinkFailing,
        "sink_failing",
        "TowpathSinkFails",
        Page,
        "2m",
        "check the receiver; messages wait without a charge and are delivered when it returns",
    ),
    row(
        Rule::DeliveriesFailing,
        "deliveries_failing",
        "TowpathDeliveriesFailing",
        Ticket,
        "5m",
        "look at the reasons with `towpath dlq ls QUEUE` and at the log of the receiver",
    ),
    row(
        Rule::MessagesDying,
        "messages_dying",
        "TowpathMessagesDying",
        Page,
        "0m",
        "`towpath queue pause QUEUE` stops deliveries while you fix the cause; `towpath dlq ls QUEUE` shows the reasons",
    ),
    row(
        Rule::DeadLetters,
        "dead_letters",
        "TowpathDeadLetters",
        Ticket,
        "0m",
        "`towpath dlq ls QUEUE` shows the reasons; then `towpath dlq requeue` or `towpath dlq drop`",
    ),
    row(
        Rule::BacklogOld,
        "backlog_old",
        "TowpathBacklogOld",
        Page,
        "1m",
        "check that consumers run and keep up (`towpath queue ls`); add consumers or raise `ingest.worker.in_flight`",
    ),
    row(
        Rule::StreamBehind,
        "stream_behind",
        "TowpathStreamOld",
        Page,
        "1m",
        "check that the group's consumers run and keep up (`towpath stream groups STREAM`)",
    ),
    row(
        Rule::OutboxBehind,
        "outbox_behind",
        "TowpathRelayBehind",
        Page,
        "1m",
        "check that `accounts.relay` runs and that its broker answers (`towpath outbox stats`)",
    ),
    row(
        Rule::OutboxFailed,
        "outbox_failed",
        "TowpathOutboxFailed",
        Ticket,
        "0m",
        "`towpath outbox ls --status failed` shows the reasons; `towpath outbox retry` sends them again",
    ),
    row(
        Rule::AgentsStale,
        "agents_stale",
        "TowpathAgentsStale",
        Ticket,
        "5m",
        "`towpath fleet agents` names them; check that they run and reach the controller",
    ),
    row(
        Rule::AgentsFailed,
        "agents_failed",
        "TowpathAgentsFail",
        Ticket,
        "1m",
        "`towpath fleet agents` shows the reasons; publish a configuration that the workers accept",
    ),
    row(
        Rule::ClockImplausible,
        "clock_implausible",
        "TowpathClockWrong",
        Ticket,
        "1m",
        "set the clock (NTP); delays, leases and idempotency windows follow it",
    ),
    row(
        Rule::FilesLow,
        "files_low",
        "TowpathFilesLow",
        Ticket,
        "5m",
        "raise the limit of open files (`ulimit -n`, `LimitNOFILE`), or lower `server.max_connections`",
    ),
    row(
        Rule::Warning,
        "warning",
        "TowpathWarning",
        Ticket,
        "5m",
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

    /// How urgent it is.
    pub fn severity(self) -> Severity {
        self.row().severity
    }

    /// How long it has to last until the alert fires.
    pub fn hold(self) -> &'static str {
        self.row().hold
    }

    /// What to do.
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
    fn rows_stand_at_their_own_index_and_have_a_page_in_the_runbook() {
        let runbook = include_str!("../../../../docs/runbook.md");
        for (index, row) in ROWS.iter().enumerate() {
            assert_eq!(row.rule as usize, index, "{}", row.name);
            let heading = format!("\n## {}\n", row.alert);
            assert!(runbook.contains(&heading), "{}", row.alert);
        }
    }
}
