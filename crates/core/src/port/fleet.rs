//! Fleet: the configuration of many agents, its versions, and the version of each agent.

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use crate::Result;

/// Identity of a line of versions: created with the tables, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Its name.
    pub name: String,
    /// Key that signs published configurations, so that one restored from an agent is known to be from here.
    pub secret: String,
}

/// A configuration that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Each one more than the last; never given twice.
    pub version: u64,
    /// Never used again.
    pub id: Uuid,
    /// A JSON object.
    pub data: String,
    /// Poll interval of agents, in seconds.
    pub poll_seconds: u32,
    /// The JSON Schema that the data follows, if there is one.
    pub schema: Option<String>,
    /// The publisher.
    pub author: String,
    /// The version whose data it takes up again, if it is a rollback.
    pub rolls_back_to: Option<u64>,
    /// When.
    pub created_at: Timestamp,
}

/// A configuration before it has a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewConfig {
    /// A JSON object.
    pub data: String,
    /// Poll interval of agents, in seconds.
    pub poll_seconds: u32,
    /// The JSON Schema that the data follows, if there is one.
    pub schema: Option<String>,
    /// The publisher.
    pub author: String,
    /// The version whose data it takes up again, if it is a rollback.
    pub rolls_back_to: Option<u64>,
    /// Rollout plan; without one all agents get it at once.
    pub rollout: Option<Plan>,
}

/// Rollout plan of a configuration, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// A JSON list of steps.
    pub steps: String,
    /// Minimum duration of a step, in seconds.
    pub bake_seconds: u32,
}

/// State of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Some agents have it, more will.
    Running,
    /// Every agent gets it.
    Done,
    /// An agent failed, or an operator stopped it; the version before is published again.
    Stopped,
}

impl Progress {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Running, Self::Done, Self::Stopped];

    /// As stores and answers have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
        }
    }
}

/// A rollout: the last one, as there is one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// The version being rolled out.
    pub version: u64,
    /// The version of the other agents.
    pub stable: u64,
    /// How.
    pub plan: Plan,
    /// The step that it is in, from 0.
    pub step: u32,
    /// Since when.
    pub step_at: Timestamp,
    /// Its state.
    pub progress: Progress,
    /// Why it was stopped.
    pub reason: Option<String>,
}

/// Outcome of publishing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is published.
    Done(Published),
    /// The newest version is another one than expected: this, 0 when there is none.
    Version(u64),
}

/// Location of an agent, as it reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its machine.
    pub hostname: String,
    /// Its address.
    pub ip_address: String,
    /// Its port.
    pub port: u16,
    /// A JSON object of labels.
    pub labels: String,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The same for the same host, address and port, however often it registers.
    pub id: Uuid,
    /// Its location.
    pub info: AgentInfo,
    /// When it registered first.
    pub created_at: Timestamp,
    /// When it was last seen.
    pub seen_at: Timestamp,
    /// Its last report.
    pub report: Report,
}

/// Report of an agent about its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The version that all its workers have.
    pub applied: Option<u64>,
    /// The version that it could not apply, when that was the last thing it tried.
    pub failed: Option<u64>,
    /// Why not.
    pub error: Option<String>,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What: `publish`, `rollback`, `stop`, `restore`, `remove`.
    pub action: String,
    /// Details.
    pub detail: String,
}

/// Configurations and agents of a database.
#[async_trait]
pub trait Fleet: Send + Sync {
    /// Its line of versions.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer; so for every method.
    async fn epoch(&self) -> Result<Epoch>;

    /// Publishes a configuration as the version behind the newest, with its rollout and its audit entry, in one
    /// transaction. `expected` is the version that must be the newest, 0 for none.
    async fn publish(&self, config: NewConfig, expected: Option<u64>) -> Result<Outcome>;

    /// Restores a configuration that this database lost, unless a newer one exists. Returns whether it was restored.
    async fn restore(&self, config: Published) -> Result<bool>;

    /// The newest configuration.
    async fn newest(&self) -> Result<Option<Published>>;

    /// The configuration of a version.
    async fn version(&self, version: u64) -> Result<Option<Published>>;

    /// Configurations before a version, the newest first, at most `max`.
    async fn history(&self, before: Option<u64>, max: usize) -> Result<Vec<Published>>;

    /// The last rollout.
    async fn rollout(&self) -> Result<Option<Rollout>>;

    /// Moves a running rollout of `version` from a step to the next one or to its end. Returns whether it was in that step.
    async fn advance(
        &self,
        version: u64,
        step: u32,
        to: Progress,
        reason: Option<String>,
    ) -> Result<bool>;

    /// Registers an agent, with the digest of its new key. A `known` agent moves to the new location, unless another agent
    /// has it.
    async fn register(&self, info: AgentInfo, key: String, known: Option<Uuid>) -> Result<Agent>;

    /// The agent that has a key of this digest.
    async fn agent_of(&self, key: &str) -> Result<Option<Uuid>>;

    /// Records when agents were last seen.
    async fn seen(&self, agents: Vec<(Uuid, Timestamp)>) -> Result<()>;

    /// Records the report of an agent. Returns whether the agent exists.
    async fn report(&self, agent: Uuid, report: Report) -> Result<bool>;

    /// Agents in the order of their ids behind `after`, at most `max`.
    async fn agents(&self, after: Option<Uuid>, max: usize) -> Result<Vec<Agent>>;

    /// Removes an agent. Returns whether it existed.
    async fn remove(&self, agent: Uuid) -> Result<bool>;

    /// Removes agents last seen before `time`. Returns their number.
    async fn expire(&self, time: Timestamp) -> Result<u64>;

    /// The audit log, newest first, at most `max` entries.
    async fn audit_entries(&self, max: usize) -> Result<Vec<AuditEntry>>;

    /// Adds an entry to the audit log.
    async fn record(&self, entry: AuditEntry) -> Result<()>;
}
