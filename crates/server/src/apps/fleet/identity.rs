//! Detects two processes that share the identity of one agent, and names them.
//!
//! Each process of an agent sends an id that it creates when it starts. A restarted agent sends a new id, and the old
//! one is not seen again. An old id that is seen after a new one shows that both processes are running.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// The header in which an agent's process names itself.
pub(super) const INSTANCE: &str = "x-agent-instance";

/// Most processes that are remembered of one agent.
const REMEMBERED: usize = 16;

/// A process that speaks as an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Speaker {
    pub(super) instance: String,
    /// Where its connection comes from.
    pub(super) address: Option<IpAddr>,
    pub(super) last_seen: Timestamp,
}

impl std::fmt::Display for Speaker {
    /// The address, and an id that distinguishes processes at one address.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = self.instance.len().saturating_sub(8);
        let short = self.instance.get(end..).unwrap_or(&self.instance);
        match self.address {
            Some(address) => write!(formatter, "{address} ({short})"),
            None => write!(formatter, "({short})"),
        }
    }
}

/// Instances that sent requests as one agent, the latest last.
#[derive(Default)]
struct Spoken {
    speakers: Vec<Speaker>,
    /// When a process was last seen again after another one.
    shared_at: Option<Timestamp>,
    is_reported: bool,
}

/// The processes that were seen under each agent.
#[derive(Default)]
pub(super) struct Identities(Mutex<HashMap<Uuid, Spoken>>);

impl Identities {
    /// A process spoke as an agent. Agents of the reference system do not name their processes.
    pub(super) fn seen(
        &self,
        agent: Uuid,
        headers: &HeaderMap,
        address: Option<IpAddr>,
        now: Timestamp,
    ) {
        let instance = headers.get(INSTANCE).and_then(|name| name.to_str().ok());
        let Some(instance) = instance.filter(|name| (1..=64).contains(&name.len())) else {
            return;
        };
        let mut all = self.lock();
        let spoken = all.entry(agent).or_default();
        let known = |speaker: &Speaker| speaker.instance == instance;
        if let Some(at) = spoken.speakers.iter().position(known) {
            if at + 1 < spoken.speakers.len() {
                spoken.shared_at = Some(now);
            }
            spoken.speakers.remove(at);
        } else if spoken.speakers.len() == REMEMBERED {
            spoken.speakers.remove(0);
        }
        spoken.speakers.push(Speaker {
            instance: instance.to_owned(),
            address,
            last_seen: now,
        });
    }

    /// The processes that share the agent's identity, seen in the last `within` seconds; empty unless they do.
    pub(super) fn sharing(&self, agent: Uuid, now: Timestamp, within: i64) -> Vec<Speaker> {
        match self.lock().get(&agent) {
            Some(spoken) => spoken.sharing(now, within),
            None => Vec::new(),
        }
    }

    /// Agents that are shared and were not reported yet. Forgets agents that were not seen for a day.
    pub(super) fn news(&self, now: Timestamp, within: i64) -> Vec<(Uuid, Vec<Speaker>)> {
        let mut news = Vec::new();
        let mut all = self.lock();
        all.retain(|_, spoken| spoken.is_heard(now, 24 * 60 * 60));
        for (agent, spoken) in all.iter_mut() {
            let sharing = spoken.sharing(now, within);
            if !sharing.is_empty() && !spoken.is_reported {
                news.push((*agent, sharing.clone()));
            }
            spoken.is_reported = !sharing.is_empty();
        }
        news
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Spoken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spoken {
    fn sharing(&self, now: Timestamp, within: i64) -> Vec<Speaker> {
        let is_recent = |at: Timestamp| now.duration_since(at).as_secs() <= within;
        if !self.shared_at.is_some_and(is_recent) {
            return Vec::new();
        }
        let recent = self.speakers.iter();
        let recent = recent.filter(|speaker| is_recent(speaker.last_seen));
        recent.cloned().collect()
    }

    fn is_heard(&self, now: Timestamp, within: i64) -> bool {
        let last = self.speakers.last();
        last.is_some_and(|last| now.duration_since(last.last_seen).as_secs() <= within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(instance: &str) -> HeaderMap {
        HeaderMap::from_iter([(INSTANCE.parse().unwrap(), instance.parse().unwrap())])
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_restarted_agent_is_not_two() {
        let (identities, agent) = (Identities::default(), Uuid::now_v7());
        for (at, instance) in [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "c")] {
            identities.seen(agent, &named(instance), None, second(at));
        }
        assert_eq!(identities.sharing(agent, second(5), 90), []);
        assert_eq!(identities.news(second(5), 90), []);
    }

    #[test]
    fn two_processes_that_take_turns_share_an_identity_until_one_falls_silent() {
        let (identities, agent) = (Identities::default(), Uuid::now_v7());
        for (at, instance) in [(0, "a"), (1, "b"), (2, "a")] {
            identities.seen(agent, &named(instance), None, second(at));
        }
        let sharing = identities.sharing(agent, second(3), 90);
        let names: Vec<&str> = sharing.iter().map(|one| one.instance.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(identities.news(second(3), 90).len(), 1);
        assert_eq!(identities.news(second(4), 90), [], "reported once");
        for at in 4..200 {
            identities.seen(agent, &named("a"), None, second(at));
        }
        assert_eq!(identities.sharing(agent, second(200), 90), []);
        assert_eq!(identities.news(second(200), 90), []);
        assert!(identities.lock()[&agent].speakers.len() <= REMEMBERED);
        identities.news(second(200 + 25 * 3_600), 90);
        assert!(identities.lock().is_empty(), "forgotten after a day");
    }
}
