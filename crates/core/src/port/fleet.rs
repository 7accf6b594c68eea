//! Fleet: the configuration of many agents, its versions, and what each agent runs.

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use crate::Result;

/// What tells one line of versions from another: made with the tables, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Its name.
    pub name: String,
    /// Signs what was published, so that what an agent gives back is known to be from here.
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
    /// How often agents ask, in seconds.
    pub poll_seconds: u32,
    /// The JSON Schema that the data follows, if there is one.
    pub schema: Option<String>,
    /// Who published it.
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
    /// How often agents ask, in seconds.
    pub poll_seconds: u32,
    /// The JSON Schema that the data follows, if there is one.
    pub schema: Option<String>,
    /// Who publishes it.
    pub author: String,
    /// The version whose data it takes up again, if it is a rollback.
    pub rolls_back_to: Option<u64>,
    /// How it reaches the agents; all at once without.
    pub rollout: Option<Plan>,
}

/// How a configuration reaches the agents, step by step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// A JSON list of steps.
    pub steps: String,
    /// How long a step lasts at least, in seconds.
    pub bake_seconds: u32,
}

/// What became of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Some agents have it, more will.
    Running,
    /// Every agent gets it.
    Done,
    /// An agent failed, or somebody stopped it; the version before is published again.
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
    /// What is rolled out.
    pub version: u64,
    /// What the other agents have.
    pub stable: u64,
    /// How.
    pub plan: Plan,
    /// The step that it is in, from 0.
    pub step: u32,
    /// Since when.
    pub step_at: Timestamp,
    /// What became of it.
    pub progress: Progress,
    /// Why it was stopped.
    pub reason: Option<String>,
}

/// What became of a wish to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is published.
    Done(Published),
    /// The newest version is another one than expected: this, 0 when there is none.
    Version(u64),
}

/// Where an agent says that it is.
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
    /// The same for the same place, however often it registers.
    pub id: Uuid,
    /// Where it is.
    pub info: AgentInfo,
    /// When it registered first.
    pub created_at: Timestamp,
    /// When it was last heard of.
    pub seen_at: Timestamp,
    /// What it told last.
    pub report: Report,
}

/// What an agent tells of the configuration it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The version that all its workers have.
    pub applied: Option<u64>,
    /// The version that it could not apply, when that was the last thing it tried.
    pub failed: Option<u64>,
    /// Why not.
    pub error: Option<String>,
}

/// Something that somebody did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What: `publish`, `rollback`, `stop`, `restore`, `remove`.
    pub action: String,
    /// More about it.
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

    /// Publishes a configuration as the version behind the newest, with its rollout and the record of the deed, in one
    /// transaction. `expected` is the version that must be the newest, 0 for none.
    async fn publish(&self, config: NewConfig, expected: Option<u64>) -> Result<Outcome>;

    /// Takes back a configuration that this database lost, and says whether it did: it does when none is newer.
    async fn restore(&self, config: Published) -> Result<bool>;

    /// The newest configuration.
    async fn newest(&self) -> Result<Option<Published>>;

    /// The configuration of a version.
    async fn version(&self, version: u64) -> Result<Option<Published>>;

    /// Configurations before a version, the newest first, at most `max`.
    async fn history(&self, before: Option<u64>, max: usize) -> Result<Vec<Published>>;

    /// The last rollout.
    async fn rollout(&self) -> Result<Option<Rollout>>;

    /// Moves a running rollout of `version` from a step to the next one or to its end. Whether it was there.
    async fn advance(
        &self,
        version: u64,
        step: u32,
        to: Progress,
        reason: Option<String>,
    ) -> Result<bool>;

    /// Registers an agent at its place, with the digest of its new key. One that is `known` moves there, unless another
    /// agent is at that place.
    async fn register(&self, info: AgentInfo, key: String, known: Option<Uuid>) -> Result<Agent>;

    /// The agent that has a key of this digest.
    async fn agent_of(&self, key: &str) -> Result<Option<Uuid>>;

    /// Notes when agents were last heard of.
    async fn seen(&self, agents: Vec<(Uuid, Timestamp)>) -> Result<()>;

    /// Notes what an agent tells. Whether there is such an agent.
    async fn report(&self, agent: Uuid, report: Report) -> Result<bool>;

    /// Agents in the order of their ids behind `after`, at most `max`.
    async fn agents(&self, after: Option<Uuid>, max: usize) -> Result<Vec<Agent>>;

    /// Forgets an agent. Whether there was one.
    async fn remove(&self, agent: Uuid) -> Result<bool>;

    /// Forgets agents that were last heard of before `time`. Their number.
    async fn expire(&self, time: Timestamp) -> Result<u64>;

    /// What was done last, the newest first, at most `max`.
    async fn audit_entries(&self, max: usize) -> Result<Vec<AuditEntry>>;

    /// Records something that was done.
    async fn record(&self, entry: AuditEntry) -> Result<()>;
}
