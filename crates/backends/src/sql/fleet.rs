//! Configurations and agents, on any of the databases.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use towpath_core::port::Fleet;
use towpath_core::port::fleet::{
    Agent, AgentInfo, AuditEntry, Epoch, NewConfig, Outcome, Plan, Progress, Published, Report,
    Rollout,
};
use towpath_core::{Error, Result};
use uuid::Uuid;

use super::statement::{Row, Session, Statement, Value, statement};

/// Publishers and registrations take turns: the first statement of theirs holds the row until the end.
const TURN: &str = "UPDATE fleet_epoch SET turns = turns + 1";

const NEWEST: &str = "SELECT version, id, data, poll_interval_seconds, json_schema, author, rolls_back_to, created_at
    FROM configs ORDER BY version DESC LIMIT 1";

const VERSION: &str = "SELECT version, id, data, poll_interval_seconds, json_schema, author, rolls_back_to, created_at
    FROM configs WHERE version = CAST($1 AS bigint)";

const HISTORY: &str = "SELECT version, id, data, poll_interval_seconds, json_schema, author, rolls_back_to, created_at
    FROM configs WHERE version < CAST($1 AS bigint) ORDER BY version DESC LIMIT $2";

/// The version is the one behind the newest, if that is the expected one.
const PUBLISH: &str = "INSERT INTO configs
    (version, id, data, poll_interval_seconds, json_schema, author, rolls_back_to, created_at)
    SELECT coalesce(max(version), 0) + 1, CAST($1 AS text), CAST($2 AS text), CAST($3 AS integer), CAST($4 AS text),
    CAST($5 AS text), CAST($6 AS integer), $7 FROM configs
    HAVING CAST($8 AS bigint) IS NULL OR coalesce(max(version), 0) = CAST($8 AS bigint)
    RETURNING version";

/// Agents without the new version keep the one of the previous rollout.
const ROLL_OUT: &str =
    "INSERT INTO fleet_rollouts (version, stable, steps, bake_seconds, step, step_at, progress)
    SELECT c.version, coalesce(
        (SELECT stable FROM fleet_rollouts WHERE progress = 'running'),
        (SELECT max(version) FROM configs WHERE version < c.version), 0),
    CAST($2 AS text), CAST($3 AS integer), 0, $4, 'running' FROM configs c WHERE c.id = $1";

const SUPERSEDE: &str =
    "UPDATE fleet_rollouts SET progress = 'stopped', reason = 'a newer version was published'
    WHERE progress = 'running' AND version < (SELECT max(version) FROM configs)";

const RECORD_PUBLISHED: &str = "INSERT INTO fleet_deeds (at, actor, action, detail)
    SELECT $1, CAST($2 AS text), CAST($3 AS text), 'version ' || c.version FROM configs c WHERE c.id = $4";

const RESTORE: &str = "INSERT INTO configs
    (version, id, data, poll_interval_seconds, json_schema, author, rolls_back_to, created_at)
    SELECT CAST($1 AS integer), CAST($2 AS text), CAST($3 AS text), CAST($4 AS integer), CAST($5 AS text),
    CAST($6 AS text), CAST($7 AS integer), $8
    WHERE NOT EXISTS (SELECT 1 FROM configs WHERE version >= $1) RETURNING version";

const ROLLOUT: &str = "SELECT version, stable, steps, bake_seconds, step, step_at, progress, reason
    FROM fleet_rollouts ORDER BY version DESC LIMIT 1";

const ADVANCE: &str =
    "UPDATE fleet_rollouts SET step = step + 1, step_at = $1, progress = $2, reason = $3
    WHERE version = $4 AND step = $5 AND progress = 'running' RETURNING version";

/// Places belong to one agent each.
const MOVE: &str = "UPDATE agents SET hostname = $2, ip_address = $3, port = $4 WHERE id = $1
    AND NOT EXISTS (SELECT 1 FROM agents WHERE hostname = $2 AND ip_address = $3 AND port = $4)";

const REGISTER: &str = "INSERT INTO agents (id, hostname, ip_address, port, status, created_at, updated_at, seen_at)
    SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS integer), 'active', $5, $5, $5
    WHERE NOT EXISTS (SELECT 1 FROM agents WHERE hostname = $2 AND ip_address = $3 AND port = $4)";

const REGISTERED: &str =
    "UPDATE agents SET key_digest = $1, labels = $2, updated_at = $3, seen_at = $3
    WHERE id = (SELECT min(id) FROM agents WHERE hostname = $4 AND ip_address = $5 AND port = $6)
    RETURNING id, hostname, ip_address, port, labels, created_at, seen_at, applied, failed, error";

const AGENTS: &str =
    "SELECT id, hostname, ip_address, port, labels, created_at, seen_at, applied, failed, error
    FROM agents WHERE id > $1 ORDER BY id LIMIT $2";

/// The fleet of a database that statements can be given to.
pub(crate) struct Fleets<S>(pub(crate) Arc<S>);

impl<S: Session> Fleets<S> {
    async fn change(&self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        let done = self.0.transact(vec![Statement { sql, values }]).await?;
        Ok(done.into_iter().next().unwrap_or_default())
    }

    async fn one(&self, sql: &'static str, values: Vec<Value>) -> Result<Option<Row>> {
        let rows = self.0.read(Statement { sql, values }).await?;
        Ok(rows.into_iter().next())
    }
}

#[async_trait]
impl<S: Session> Fleet for Fleets<S> {
    async fn epoch(&self) -> Result<Epoch> {
        let row = self
            .one("SELECT name, secret FROM fleet_epoch", Vec::new())
            .await?;
        let mut row = row.unwrap_or_default().into_iter();
        Ok(Epoch {
            name: next(&mut row)?.text()?,
            secret: next(&mut row)?.text()?,
        })
    }

    async fn publish(&self, config: NewConfig, expected: Option<u64>) -> Result<Outcome> {
        let (id, now) = (Uuid::now_v7(), Timestamp::now());
        let action = match config.rolls_back_to {
            None => "publish",
            Some(_) => "rollback",
        };
        let insert = [
            id.into(),
            config.data.into(),
            config.poll_seconds.into(),
            config.schema.into(),
            config.author.clone().into(),
            config.rolls_back_to.into(),
            now.into(),
            expected.into(),
        ];
        let mut all = vec![statement(TURN, []), statement(PUBLISH, insert)];
        if let Some(plan) = config.rollout {
            let values = [
                id.into(),
                plan.steps.into(),
                plan.bake_seconds.into(),
                now.into(),
            ];
            all.push(statement(ROLL_OUT, values));
        }
        all.push(statement(SUPERSEDE, []));
        let entry = [now.into(), config.author.into(), action.into(), id.into()];
        all.push(statement(RECORD_PUBLISHED, entry));
        let done = self.0.transact(all).await?;
        let newest = self.newest().await?;
        match (done.get(1).and_then(|rows| rows.first()), newest) {
            (Some(_), Some(newest)) if newest.id == id => Ok(Outcome::Done(newest)),
            // Another one came right behind it.
            (Some(row), _) => {
                let version = row.first().unwrap_or(&Value::Null).count()?;
                let published = self.version(version).await?;
                published
                    .map(Outcome::Done)
                    .ok_or_else(|| Error::corrupt("a version is gone"))
            }
            (None, newest) => Ok(Outcome::Version(newest.map_or(0, |newest| newest.version))),
        }
    }

    async fn restore(&self, config: Published) -> Result<bool> {
        let now = Timestamp::now();
        let entry = [
            now.into(),
            config.author.clone().into(),
            "restore".into(),
            config.id.into(),
        ];
        let insert = [
            config.version.into(),
            config.id.into(),
            config.data.into(),
            config.poll_seconds.into(),
            config.schema.into(),
            config.author.into(),
            config.rolls_back_to.into(),
            config.created_at.into(),
        ];
        let all = vec![
            statement(TURN, []),
            statement(RESTORE, insert),
            statement(SUPERSEDE, []),
            statement(RECORD_PUBLISHED, entry),
        ];
        let done = self.0.transact(all).await?;
        Ok(done.get(1).is_some_and(|rows| !rows.is_empty()))
    }

    async fn newest(&self) -> Result<Option<Published>> {
        self.one(NEWEST, Vec::new()).await?.map(config).transpose()
    }

    async fn version(&self, version: u64) -> Result<Option<Published>> {
        self.one(VERSION, vec![version.into()])
            .await?
            .map(config)
            .transpose()
    }

    async fn history(&self, before: Option<u64>, max: usize) -> Result<Vec<Published>> {
        let values = [before.unwrap_or(u64::MAX).into(), max.into()];
        let rows = self.0.read(statement(HISTORY, values)).await?;
        rows.into_iter().map(config).collect()
    }

    async fn rollout(&self) -> Result<Option<Rollout>> {
        self.one(ROLLOUT, Vec::new())
            .await?
            .map(rollout)
            .transpose()
    }

    async fn advance(
        &self,
        version: u64,
        step: u32,
        to: Progress,
        reason: Option<String>,
    ) -> Result<bool> {
        let values = vec![
            Timestamp::now().into(),
            to.as_str().into(),
            reason.into(),
            version.into(),
            step.into(),
        ];
        Ok(!self.change(ADVANCE, values).await?.is_empty())
    }

    async fn register(&self, info: AgentInfo, key: String, known: Option<Uuid>) -> Result<Agent> {
        let now = Value::from(Timestamp::now());
        let port = Value::from(u32::from(info.port));
        let (host, address) = (Value::from(info.hostname), Value::from(info.ip_address));
        let new = [
            Uuid::now_v7().into(),
            host.clone(),
            address.clone(),
            port.clone(),
            now.clone(),
        ];
        let mut all = vec![statement(TURN, [])];
        if let Some(known) = known {
            let moved = [known.into(), host.clone(), address.clone(), port.clone()];
            all.push(statement(MOVE, moved));
        }
        all.push(statement(REGISTER, new));
        let registered = [key.into(), info.labels.into(), now, host, address, port];
        all.push(statement(REGISTERED, registered));
        let mut done = self.0.transact(all).await?;
        let row = done.pop().unwrap_or_default().pop().unwrap_or_default();
        agent(row)
    }

    async fn agent_of(&self, key: &str) -> Result<Option<Uuid>> {
        let row = self
            .one(
                "SELECT id FROM agents WHERE key_digest = $1",
                vec![key.into()],
            )
            .await?;
        row.map(|row| next(&mut row.into_iter())?.id()).transpose()
    }

    async fn seen(&self, agents: Vec<(Uuid, Timestamp)>) -> Result<()> {
        let all = agents.into_iter().map(|(id, at)| {
            statement(
                "UPDATE agents SET seen_at = $1 WHERE id = $2",
                [at.into(), id.into()],
            )
        });
        self.0.transact(all.collect()).await.map(drop)
    }

    async fn report(&self, agent: Uuid, report: Report) -> Result<bool> {
        let update = "UPDATE agents SET applied = coalesce(CAST($1 AS integer), applied), failed = $2, error = $3, seen_at = $4
            WHERE id = $5 RETURNING id";
        let values = vec![
            report.applied.into(),
            report.failed.into(),
            report.error.into(),
            Timestamp::now().into(),
            agent.into(),
        ];
        Ok(!self.change(update, values).await?.is_empty())
    }

    async fn agents(&self, after: Option<Uuid>, max: usize) -> Result<Vec<Agent>> {
        let after = after.map_or_else(String::new, |id| id.to_string());
        let rows = self
            .0
            .read(statement(AGENTS, [after.into(), max.into()]))
            .await?;
        rows.into_iter().map(agent).collect()
    }

    async fn remove(&self, agent: Uuid) -> Result<bool> {
        let delete = "DELETE FROM agents WHERE id = $1 RETURNING id";
        Ok(!self.change(delete, vec![agent.into()]).await?.is_empty())
    }

    async fn expire(&self, time: Timestamp) -> Result<u64> {
        let delete = "DELETE FROM agents WHERE seen_at < $1 RETURNING id";
        Ok(self.change(delete, vec![time.into()]).await?.len() as u64)
    }

    async fn audit_entries(&self, max: usize) -> Result<Vec<AuditEntry>> {
        let select =
            "SELECT at, actor, action, detail FROM fleet_deeds ORDER BY number DESC LIMIT $1";
        let rows = self.0.read(statement(select, [max.into()])).await?;
        rows.into_iter().map(entry).collect()
    }

    async fn record(&self, entry: AuditEntry) -> Result<()> {
        let insert = "INSERT INTO fleet_deeds (at, actor, action, detail) VALUES ($1, $2, $3, $4)";
        let values = vec![
            entry.at.into(),
            entry.actor.into(),
            entry.action.into(),
            entry.detail.into(),
        ];
        self.change(insert, values).await.map(drop)
    }
}

fn next(row: &mut impl Iterator<Item = Value>) -> Result<Value> {
    row.next()
        .ok_or_else(|| Error::corrupt("the database gives fewer columns than were asked for"))
}

fn config(row: Row) -> Result<Published> {
    let mut row = row.into_iter();
    let mut column = || next(&mut row);
    Ok(Published {
        version: column()?.count()?,
        id: column()?.id()?,
        data: column()?.text()?,
        poll_seconds: u32::try_from(column()?.count()?).unwrap_or(u32::MAX),
        schema: column()?.optional().map(Value::text).transpose()?,
        author: column()?.text()?,
        rolls_back_to: column()?
            .optional()
            .map(|version| version.count())
            .transpose()?,
        created_at: column()?.time()?,
    })
}

fn rollout(row: Row) -> Result<Rollout> {
    let mut row = row.into_iter();
    let mut column = || next(&mut row);
    Ok(Rollout {
        version: column()?.count()?,
        stable: column()?.count()?,
        plan: Plan {
            steps: column()?.text()?,
            bake_seconds: u32::try_from(column()?.count()?).unwrap_or(u32::MAX),
        },
        step: u32::try_from(column()?.count()?).unwrap_or(u32::MAX),
        step_at: column()?.time()?,
        progress: {
            let name = column()?.text()?;
            let known = Progress::ALL.into_iter().find(|one| one.as_str() == name);
            known.ok_or_else(|| Error::corrupt(format!("a rollout is `{name}`")))?
        },
        reason: column()?.optional().map(Value::text).transpose()?,
    })
}

fn agent(row: Row) -> Result<Agent> {
    let mut row = row.into_iter();
    let mut column = || next(&mut row);
    Ok(Agent {
        id: column()?.id()?,
        info: AgentInfo {
            hostname: column()?.text()?,
            ip_address: column()?.text()?,
            port: u16::try_from(column()?.count()?).unwrap_or(u16::MAX),
            labels: column()?.text()?,
        },
        created_at: column()?.time()?,
        seen_at: column()?.time()?,
        report: Report {
            applied: column()?
                .optional()
                .map(|version| version.count())
                .transpose()?,
            failed: column()?
                .optional()
                .map(|version| version.count())
                .transpose()?,
            error: column()?.optional().map(Value::text).transpose()?,
        },
    })
}

fn entry(row: Row) -> Result<AuditEntry> {
    let mut row = row.into_iter();
    let mut column = || next(&mut row);
    Ok(AuditEntry {
        at: column()?.time()?,
        actor: column()?.text()?,
        action: column()?.text()?,
        detail: column()?.text()?,
    })
}
