//! Rollouts: a new configuration reaches the agents step by step, and rolls back automatically when one of them fails.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use towpath_core::port::fleet::{Agent, Rollout};
use uuid::Uuid;

/// Hundredths of a percent.
const ALL: u32 = 10_000;

/// Agents that get the configuration in a step, besides those of the steps before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// This share of the agents, in hundredths of a percent; always the same ones.
    Share(u32),
    /// Those with this label.
    Label(String, String),
}

impl Step {
    /// `10%`, `0.5%` or `label:env=canary`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(label) = text.strip_prefix("label:") {
            let (name, value) = label
                .split_once('=')
                .ok_or_else(|| format!("`{text}` has no `=`; expected e.g. `label:env=canary`"))?;
            return Ok(Self::Label(name.to_owned(), value.to_owned()));
        }
        let share = text
            .strip_suffix('%')
            .and_then(|number| number.trim().parse::<f64>().ok())
            .filter(|share| (0.01..=100.0).contains(share))
            .ok_or_else(|| {
                format!("invalid step `{text}`; expected e.g. `10%` or `label:env=canary`")
            })?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0.01 to 100 was checked"
        )]
        Ok(Self::Share((share * 100.0).round() as u32))
    }

    fn holds(&self, agent: &Agent) -> bool {
        match self {
            Self::Share(share) => place(agent.id) < *share,
            Self::Label(name, value) => {
                let labels: BTreeMap<String, String> =
                    serde_json::from_str(&agent.info.labels).unwrap_or_default();
                labels.get(name) == Some(value)
            }
        }
    }
}

/// Where an agent stands among all, from 0.
fn place(agent: Uuid) -> u32 {
    let hash = digest(&SHA256, agent.as_bytes());
    let start = hash
        .as_ref()
        .first_chunk::<4>()
        .copied()
        .unwrap_or_default();
    u32::from_be_bytes(start) % ALL
}

/// The steps of a rollout, the last of which is all agents.
pub(super) fn steps(rollout: &Rollout) -> Vec<Step> {
    let texts: Vec<String> = serde_json::from_str(&rollout.plan.steps).unwrap_or_default();
    let mut steps: Vec<Step> = texts
        .iter()
        .filter_map(|text| Step::parse(text).ok())
        .collect();
    if steps.last() != Some(&Step::Share(ALL)) {
        steps.push(Step::Share(ALL));
    }
    steps
}

/// Agents that get the configuration by now.
pub(super) fn holders(rollout: &Rollout, agents: &[Agent]) -> HashSet<Uuid> {
    let steps = steps(rollout);
    let begun = &steps[..steps.len().min(rollout.step as usize + 1)];
    let held = agents
        .iter()
        .filter(|agent| begun.iter().any(|step| step.holds(agent)));
    held.map(|agent| agent.id).collect()
}

/// The next step of a running rollout.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing yet.
    Wait,
    /// The next step.
    Advance,
    /// All agents have it.
    Finish,
    /// It does harm.
    Stop(String),
}

/// Evaluates the reports of the reached agents. Those that were not seen for `stale` do not count.
pub(super) fn decide(
    rollout: &Rollout,
    agents: &[Agent],
    holders: &HashSet<Uuid>,
    now: Timestamp,
    stale: Duration,
) -> Decision {
    let held = || agents.iter().filter(|agent| holders.contains(&agent.id));
    if let Some(agent) = held().find(|agent| agent.report.failed == Some(rollout.version)) {
        let error = agent.report.error.as_deref().unwrap_or("no reason given");
        return Decision::Stop(format!(
            "agent {} ({}): {error}",
            agent.id, agent.info.hostname
        ));
    }
    let lasted = now.duration_since(rollout.step_at).as_secs();
    let is_fresh = |agent: &&Agent| {
        now.duration_since(agent.seen_at).as_secs() < stale.as_secs().cast_signed()
    };
    let has_it = |agent: &Agent| agent.report.applied >= Some(rollout.version);
    if lasted < i64::from(rollout.plan.bake_seconds) || !held().filter(is_fresh).all(has_it) {
        return Decision::Wait;
    }
    match rollout.step as usize + 1 < steps(rollout).len() {
        true => Decision::Advance,
        false => Decision::Finish,
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::port::fleet::{AgentInfo, Plan, Progress, Report};

    use super::*;

    fn rollout(step: u32, steps: &str) -> Rollout {
        Rollout {
            version: 2,
            stable: 1,
            plan: Plan {
                steps: steps.to_owned(),
                bake_seconds: 10,
            },
            step,
            step_at: Timestamp::UNIX_EPOCH,
            progress: Progress::Running,
            reason: None,
        }
    }

    fn agent(labels: &str, report: Report) -> Agent {
        Agent {
            id: Uuid::now_v7(),
            info: AgentInfo {
                hostname: "a".to_owned(),
                ip_address: "127.0.0.1".to_owned(),
                port: 1,
                labels: labels.to_owned(),
            },
            created_at: Timestamp::UNIX_EPOCH,
            seen_at: Timestamp::UNIX_EPOCH,
            report,
        }
    }

    #[test]
    fn steps_read_as_they_are_written() {
        assert_eq!(Step::parse("0.5%"), Ok(Step::Share(50)));
        assert_eq!(Step::parse("100%"), Ok(Step::Share(ALL)));
        assert_eq!(
            Step::parse("label:env=a=b"),
            Ok(Step::Label("env".to_owned(), "a=b".to_owned()))
        );
        for wrong in ["", "10", "0%", "101%", "x%", "label:env", "NaN%", "-1%"] {
            assert!(Step::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_step_keeps_those_of_the_steps_before() {
        let mut agents: Vec<Agent> = (0..1_000).map(|_| agent("{}", Report::default())).collect();
        agents[0].info.labels = r#"{"env":"canary"}"#.to_owned();
        let plan = r#"["label:env=canary","10%","50%"]"#;
        let at = |step| holders(&rollout(step, plan), &agents);
        assert_eq!(at(0), HashSet::from([agents[0].id]));
        assert!(at(0).is_subset(&at(1)) && at(1).is_subset(&at(2)));
        assert!((60..=140).contains(&at(1).len()), "{}", at(1).len());
        assert_eq!(at(3).len(), 1_000, "all agents in the end");
    }

    #[test]
    fn it_continues_when_all_have_it_and_stops_when_one_fails() {
        let second = |seconds| Timestamp::from_second(seconds).unwrap();
        let report = |applied, failed| Report {
            applied,
            failed,
            error: Some("no".to_owned()),
        };
        let say = |reports: &[Report], step, now| {
            let agents: Vec<Agent> = reports
                .iter()
                .map(|report| agent("{}", report.clone()))
                .collect();
            let rollout = rollout(step, r#"["100%"]"#);
            let all = holders(&rollout, &agents);
            decide(
                &rollout,
                &agents,
                &all,
                second(now),
                Duration::from_secs(60),
            )
        };
        let (has_it, has_not) = (report(Some(2), None), report(Some(1), Some(1)));
        assert_eq!(
            say(std::slice::from_ref(&has_it), 0, 5),
            Decision::Wait,
            "too early"
        );
        assert_eq!(
            say(&[has_it.clone(), has_not.clone()], 0, 20),
            Decision::Wait
        );
        assert_eq!(
            say(&[has_it.clone(), has_not], 0, 99),
            Decision::Finish,
            "it is gone"
        );
        assert_eq!(say(std::slice::from_ref(&has_it), 0, 20), Decision::Finish);
        let failed = say(&[has_it, report(Some(1), Some(2))], 0, 5);
        assert!(matches!(failed, Decision::Stop(reason) if reason.contains("no")));
    }
}
