//! The controller: versions of the configuration, the version of each agent, and requests that wait for the next one.
//!
//! ```text
//! database -- each second, and after each change --> Snapshot --> all who wait, woken once
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "compared with the database's wall-clock times"
)]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::request::Parts;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use towpath_core::Result;
use towpath_core::port::Fleet;
use towpath_core::port::fleet::{
    Agent, AuditEntry, Epoch, NewConfig, Outcome, Progress, Published, Rollout,
};
use tracing::{info, warn};
use uuid::Uuid;

use super::auth::{Caller, Keys};
use super::config::{Config, POLL_SECONDS};
use super::envelope::Failure;
use super::identity::{Identities, Speaker};
use super::rollout::{self, Decision};
use crate::http::Peer;
use crate::telemetry::{Health, Metrics};
use towpath::supervisor::Stop;

/// The role's name in health, metrics and the account.
const ROLE: &str = "fleet.controller";

/// Interval of checks for changes by other controllers, and for the progress of its rollout.
const TICK: Duration = Duration::from_secs(1);

/// Interval of counting agents.
const MEASURE: Duration = Duration::from_secs(5);

/// Agents that are read at once.
const PAGE: usize = 1_000;

/// Caller of automatic operations in the audit.
const ITSELF: &str = "controller";

/// The configuration of all agents, until it changes.
#[derive(Clone, Default)]
pub(super) struct Snapshot {
    newest: Option<Arc<Config>>,
    /// The configuration of agents that the rollout has not reached.
    stable: Option<Arc<Config>>,
    /// Agents that the rollout has reached; all of them without one.
    holders: Option<Arc<HashSet<Uuid>>>,
    /// No request waits any more.
    pub(super) is_closing: bool,
}

impl Snapshot {
    /// The configuration of this agent; a client without an id gets the one that is rolled out to all agents.
    pub(super) fn config_of(&self, agent: Option<Uuid>) -> Option<Arc<Config>> {
        match &self.holders {
            None => self.newest.clone(),
            Some(holders) => match agent.is_some_and(|agent| holders.contains(&agent)) {
                true => self.newest.clone(),
                false => self.stable.clone(),
            },
        }
    }

    pub(super) fn newest(&self) -> Option<&Arc<Config>> {
        self.newest.as_ref()
    }

    /// Whether the agent applied another version than it was sent, longer ago than it needs to report.
    fn is_behind(&self, agent: &Agent, now: Timestamp) -> bool {
        let Some((sent, applied)) = self.config_of(Some(agent.id)).zip(agent.report.applied) else {
            return false;
        };
        let created_at = sent.created_at.as_ref().and_then(|text| text.parse().ok());
        let age = created_at.map_or(0, |at: Timestamp| now.duration_since(at).as_secs());
        let failed = agent.report.failed.is_some();
        applied != sent.version && !failed && age > self.stale().as_secs().cast_signed()
    }

    /// After which silence an agent counts as gone: three times the interval that it asks in.
    pub(super) fn stale(&self) -> Duration {
        let poll = self
            .newest
            .as_ref()
            .map_or(POLL_SECONDS, |config| config.poll_interval_seconds);
        Duration::from_secs(u64::from(poll.max(POLL_SECONDS)) * 3)
    }
}

/// A controller; cheap to clone.
#[derive(Clone)]
pub struct Controller(Arc<Inner>);

struct Inner {
    store: Arc<dyn Fleet>,
    epoch: Epoch,
    keys: Keys,
    current: watch::Sender<Snapshot>,
    seen: Mutex<HashMap<Uuid, Timestamp>>,
    identities: Identities,
    changed: Notify,
    /// Reads take turns, so that no request gets a stale state.
    looking: tokio::sync::Mutex<()>,
    /// Retention of an agent after its last request.
    ttl: Duration,
    health: Health,
    metrics: Metrics,
}

impl Controller {
    /// A controller on a database whose tables are there.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer.
    pub async fn open(
        store: Arc<dyn Fleet>,
        keys: Keys,
        ttl: Duration,
        health: Health,
        metrics: Metrics,
    ) -> Result<Self> {
        let controller = Self(Arc::new(Inner {
            epoch: store.epoch().await?,
            store,
            keys,
            current: watch::Sender::default(),
            seen: Mutex::default(),
            identities: Identities::default(),
            changed: Notify::new(),
            looking: tokio::sync::Mutex::default(),
            ttl,
            health,
            metrics,
        }));
        controller.reload().await?;
        Ok(controller)
    }

    /// Follows the database and the rollout until asked to stop.
    ///
    /// # Errors
    /// None so far: while the database is unavailable the last known configuration is served.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let (mut expired_at, mut measured_at) = (Timestamp::UNIX_EPOCH, None);
        while !stop.is_requested() {
            let outcome = self.tick(&mut expired_at, &mut measured_at).await;
            self.0
                .health
                .set(ROLE, outcome.err().map(|error| error.chain()));
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.0.changed.notified() => {}
                () = stop.requested() => {}
            }
        }
        self.0
            .current
            .send_modify(|snapshot| snapshot.is_closing = true);
        self.tell_seen().await
    }

    async fn tick(
        &self,
        expired_at: &mut Timestamp,
        measured_at: &mut Option<Instant>,
    ) -> Result<()> {
        self.tell_seen().await?;
        let now = Timestamp::now();
        if now.duration_since(*expired_at).as_secs() >= 60 {
            let limit = now.checked_sub(self.0.ttl).unwrap_or(Timestamp::MIN);
            let expired = self.0.store.expire(limit).await?;
            if expired > 0 {
                info!(expired, "removed stale agents");
            }
            *expired_at = now;
        }
        self.reload().await?;
        if measured_at.is_none_or(|at| at.elapsed() >= MEASURE) {
            *measured_at = Some(Instant::now());
            self.measure().await?;
        }
        Ok(())
    }

    /// Counts the agents.
    async fn measure(&self) -> Result<()> {
        let (agents, snapshot) = (self.agents().await?, self.0.current.borrow().clone());
        let stale = snapshot.stale().as_secs().cast_signed();
        let now = Timestamp::now();
        let is_stale = |agent: &&Agent| now.duration_since(agent.seen_at).as_secs() > stale;
        let silent = agents.iter().filter(is_stale).count();
        let failed = agents
            .iter()
            .filter(|agent| agent.report.failed.is_some())
            .count();
        let is_behind = |agent: &&Agent| !is_stale(agent) && snapshot.is_behind(agent, now);
        let is_shared = |agent: &&Agent| !self.sharing(agent.id).is_empty();
        let states = [
            ("active", agents.len() - silent),
            ("stale", silent),
            ("failed", failed),
            ("behind", agents.iter().filter(is_behind).count()),
            ("shared", agents.iter().filter(is_shared).count()),
        ];
        for (id, speakers) in self.0.identities.news(now, stale) {
            let Some(agent) = agents.iter().find(|agent| agent.id == id) else {
                continue;
            };
            let from: Vec<String> = speakers.iter().map(Speaker::to_string).collect();
            warn!(
                agent = %id,
                hostname = agent.info.hostname,
                ip_address = agent.info.ip_address,
                port = agent.info.port,
                processes = from.join(", "),
                "agents share an identity; set `fleet.agent.hostname` on one of them"
            );
        }
        let version = snapshot.newest().map_or(0, |newest| newest.version);
        self.0.metrics.fleet(states, version);
        Ok(())
    }

    /// Agents with requests since the last write.
    async fn tell_seen(&self) -> Result<()> {
        let seen = std::mem::take(&mut *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner));
        match seen.is_empty() {
            true => Ok(()),
            false => self.0.store.seen(seen.into_iter().collect()).await,
        }
    }

    /// Reads the database, advances the rollout, and notifies waiting requests.
    async fn reload(&self) -> Result<()> {
        let _turn = self.0.looking.lock().await;
        let (mut newest, mut rollout) =
            (self.0.store.newest().await?, self.0.store.rollout().await?);
        let is_current = |newest: &Option<Published>, rollout: &Rollout| {
            newest
                .as_ref()
                .is_some_and(|newest| newest.version == rollout.version)
        };
        let mut holders = None;
        if let Some(current) = rollout.clone().filter(|one| is_current(&newest, one)) {
            if current.progress == Progress::Running {
                let agents = self.agents().await?;
                self.guide(&current, &agents).await?;
                rollout = self.0.store.rollout().await?;
                holders = rollout.as_ref().map(|now| match now.progress {
                    Progress::Running => rollout::holders(now, &agents),
                    Progress::Done | Progress::Stopped => HashSet::new(),
                });
            }
            match rollout.as_ref().map(|now| now.progress) {
                Some(Progress::Stopped) => {
                    holders = Some(HashSet::new());
                    self.go_back(&current).await?;
                    newest = self.0.store.newest().await?;
                }
                Some(Progress::Done) => holders = None,
                _ => {}
            }
        }
        self.0
            .health
            .set_stopped_rollout(stopped(rollout.as_ref(), newest.as_ref()));
        let rollout = rollout.filter(|one| is_current(&newest, one));
        let holders = holders.filter(|_| rollout.is_some()).map(Arc::new);
        let stable = match &rollout {
            Some(rollout) if holders.is_some() => self.0.store.version(rollout.stable).await?,
            _ => None,
        };
        let travels = |published: Option<Published>| {
            published
                .map(|one| Config::of(&one, &self.0.epoch).map(Arc::new))
                .transpose()
        };
        let (newest, stable) = (travels(newest)?, travels(stable)?);
        self.0.current.send_if_modified(|now| {
            let is_other = now.newest != newest || now.stable != stable || now.holders != holders;
            if is_other {
                (now.newest, now.stable, now.holders) = (newest, stable, holders);
            }
            is_other
        });
        Ok(())
    }

    /// The next step of a rollout, or its end, when it is time.
    async fn guide(&self, rollout: &Rollout, agents: &[Agent]) -> Result<()> {
        let holders = rollout::holders(rollout, agents);
        let stale = self.0.current.borrow().stale();
        let decision = rollout::decide(rollout, agents, &holders, Timestamp::now(), stale);
        let (version, step) = (rollout.version, rollout.step);
        let (progress, reason) = match decision {
            Decision::Wait => return Ok(()),
            Decision::Advance => (Progress::Running, None),
            Decision::Finish => (Progress::Done, None),
            Decision::Stop(reason) => (Progress::Stopped, Some(reason)),
        };
        // Another controller may have been first.
        if self
            .0
            .store
            .advance(version, step, progress, reason.clone())
            .await?
        {
            info!(
                version,
                step,
                progress = progress.as_str(),
                reason,
                "rollout continues"
            );
            if let Some(reason) = reason {
                self.record("stop", format!("version {version}: {reason}"))
                    .await?;
            }
        }
        Ok(())
    }

    /// Publishes the version before a stopped rollout again.
    async fn go_back(&self, rollout: &Rollout) -> Result<()> {
        let Some(stable) = self.0.store.version(rollout.stable).await? else {
            return Ok(());
        };
        let config = NewConfig {
            data: stable.data,
            poll_seconds: stable.poll_seconds,
            schema: stable.schema,
            author: ITSELF.to_owned(),
            rolls_back_to: Some(stable.version),
            rollout: None,
        };
        if let Outcome::Done(published) =
            self.0.store.publish(config, Some(rollout.version)).await?
        {
            let (from, to) = (rollout.version, stable.version);
            warn!(
                from,
                to,
                version = published.version,
                "rollout stopped; rolling back"
            );
        }
        Ok(())
    }

    async fn record(&self, action: &str, detail: String) -> Result<()> {
        let entry = AuditEntry {
            at: Timestamp::now(),
            actor: ITSELF.to_owned(),
            action: action.to_owned(),
            detail,
        };
        self.0.store.record(entry).await
    }

    /// Every agent.
    pub(super) async fn agents(&self) -> Result<Vec<Agent>> {
        let mut all: Vec<Agent> = Vec::new();
        loop {
            let after = all.last().map(|agent| agent.id);
            let page = self.0.store.agents(after, PAGE).await?;
            let is_last = page.len() < PAGE;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    pub(super) fn store(&self) -> &dyn Fleet {
        &*self.0.store
    }

    pub(super) fn epoch(&self) -> &Epoch {
        &self.0.epoch
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// The caller.
    pub(super) async fn caller(&self, head: &Parts) -> std::result::Result<Caller, Failure> {
        self.0.keys.caller(head, self.store()).await
    }

    /// The configuration of all agents, now and as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<Snapshot> {
        self.0.current.subscribe()
    }

    /// An agent sent a request.
    pub(super) fn saw(&self, agent: Uuid) {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(agent, Timestamp::now());
    }

    /// A process spoke as an agent.
    pub(super) fn spoke_as(&self, agent: Uuid, headers: &HeaderMap, peer: Option<Peer>) {
        let address = peer.map(|peer| peer.0.ip().to_canonical());
        let now = Timestamp::now();
        self.0.identities.seen(agent, headers, address, now);
    }

    /// The processes that share this agent's identity; none when it is one.
    pub(super) fn sharing(&self, agent: Uuid) -> Vec<Speaker> {
        let stale = self.0.current.borrow().stale().as_secs().cast_signed();
        self.0.identities.sharing(agent, Timestamp::now(), stale)
    }

    /// Something changed that others wait for: it is visible when this returns.
    pub(super) async fn refresh(&self) -> Result<()> {
        self.reload().await?;
        self.0.changed.notify_one();
        Ok(())
    }

    /// An agent sent a report that the rollout may wait for.
    pub(super) fn nudge(&self) {
        self.0.changed.notify_one();
    }
}

/// Why the last rollout stopped, while the configuration is the one that the controller restored.
fn stopped(rollout: Option<&Rollout>, newest: Option<&Published>) -> Option<String> {
    let (rollout, newest) = rollout.zip(newest)?;
    let is_restored = newest.author == ITSELF && newest.rolls_back_to == Some(rollout.stable);
    if rollout.progress != Progress::Stopped || !is_restored {
        return None;
    }
    let (version, stable) = (rollout.version, rollout.stable);
    let reason = rollout.reason.as_deref().unwrap_or("no reason given");
    Some(format!(
        "the rollout of version {version} stopped and version {stable} was restored: {reason}"
    ))
}

#[cfg(test)]
mod tests {
    use towpath_core::port::fleet::{AgentInfo, Report};

    use super::*;

    #[test]
    fn an_agent_is_behind_when_it_keeps_another_version_than_it_was_sent() {
        let sent: Timestamp = "2026-12-01T10:00:00Z".parse().unwrap();
        let config = serde_json::json!({
            "version": 2, "poll_interval_seconds": 60, "created_at": sent.to_string(),
        });
        let snapshot = Snapshot {
            newest: Some(Arc::new(serde_json::from_value(config).unwrap())),
            ..Snapshot::default()
        };
        let is_behind = |seconds: i64, report: Report| {
            let now = sent + jiff::SignedDuration::from_secs(seconds);
            let info = AgentInfo {
                hostname: "edge-1".to_owned(),
                ip_address: "192.0.2.1".to_owned(),
                port: 8081,
                labels: "{}".to_owned(),
            };
            let agent = Agent {
                id: Uuid::nil(),
                info,
                created_at: sent,
                seen_at: now,
                report,
            };
            snapshot.is_behind(&agent, now)
        };
        let applied = |version| Report {
            applied: Some(version),
            ..Report::default()
        };
        // Three intervals to ask, apply and report.
        assert!(!is_behind(180, applied(1)));
        assert!(is_behind(181, applied(1)));
        assert!(is_behind(181, applied(3)));
        assert!(!is_behind(181, applied(2)));
        // It has not applied any yet, or reports why not: problems of other rules.
        assert!(!is_behind(181, Report::default()));
        let refused = Report {
            failed: Some(2),
            ..applied(1)
        };
        assert!(!is_behind(181, refused));
    }
}
