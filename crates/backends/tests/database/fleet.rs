//! Configurations and agents.

use jiff::Timestamp;
use towpath_core::database::Database;
use towpath_core::port::fleet::{AgentInfo, NewConfig, Outcome, Plan, Progress, Published, Report};
use uuid::Uuid;

use super::{World, cases};

cases![
    versions_count_up_and_are_kept,
    publishing_with_a_stale_expected_version_is_refused,
    publishers_at_once_get_versions_of_their_own,
    a_rollout_leaves_others_where_they_are,
    a_lost_version_is_adopted_unless_a_newer_one_exists,
    an_agent_keeps_its_id_wherever_it_registers_again,
    a_known_agent_moves_unless_the_place_is_taken,
    reports_of_agents_are_kept,
    changes_are_recorded_in_the_audit_log,
];

fn new(data: &str) -> NewConfig {
    NewConfig {
        data: data.to_owned(),
        poll_seconds: 30,
        schema: None,
        author: "me".to_owned(),
        rolls_back_to: None,
        rollout: None,
    }
}

async fn publish(database: &Database, config: NewConfig) -> Published {
    match database
        .fleet
        .publish(config, None)
        .await
        .expect("published")
    {
        Outcome::Done(published) => published,
        other => panic!("{other:?}"),
    }
}

fn info(hostname: &str) -> AgentInfo {
    AgentInfo {
        hostname: hostname.to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        port: 8081,
        labels: r#"{"env":"test"}"#.to_owned(),
    }
}

async fn versions_count_up_and_are_kept(world: World) {
    let database = world.database().await;
    assert_eq!(database.fleet.newest().await.expect("asked"), None);
    let first = publish(&database, new(r#"{"a":"1"}"#)).await;
    let schema = Some(r#"{"type":"object"}"#.to_owned());
    let second = publish(
        &database,
        NewConfig {
            schema: schema.clone(),
            ..new("{}")
        },
    )
    .await;
    assert_eq!((first.version, second.version), (1, 2));
    assert_eq!(
        (&second.schema, second.poll_seconds, &*second.author),
        (&schema, 30, "me")
    );
    let fleet = &database.fleet;
    assert_eq!(fleet.newest().await.expect("asked").as_ref(), Some(&second));
    assert_eq!(
        fleet.version(1).await.expect("asked").as_ref(),
        Some(&first)
    );
    assert_eq!(fleet.version(3).await.expect("asked"), None);
    assert_eq!(
        fleet.history(None, 10).await.expect("listed"),
        [second.clone(), first.clone()]
    );
    assert_eq!(fleet.history(Some(2), 10).await.expect("listed"), [first]);
    assert_eq!(fleet.history(None, 1).await.expect("listed"), [second]);
    let (one, other) = (fleet.epoch().await.expect("known"), world.open().await);
    assert_eq!(other.fleet.epoch().await.expect("known"), one);
    assert!(one.name.len() >= 12 && one.secret.len() >= 64);
}

async fn publishing_with_a_stale_expected_version_is_refused(world: World) {
    let database = world.database().await;
    let fleet = &database.fleet;
    let expecting = async |version| {
        fleet
            .publish(new("{}"), Some(version))
            .await
            .expect("answered")
    };
    assert_eq!(expecting(1).await, Outcome::Version(0));
    assert!(matches!(expecting(0).await, Outcome::Done(one) if one.version == 1));
    assert_eq!(expecting(0).await, Outcome::Version(1));
    assert!(matches!(expecting(1).await, Outcome::Done(one) if one.version == 2));
    assert_eq!(fleet.history(None, 10).await.expect("listed").len(), 2);
    assert_eq!(fleet.audit_entries(10).await.expect("listed").len(), 2);
}

async fn publishers_at_once_get_versions_of_their_own(world: World) {
    let database = world.database().await;
    let mut publishers = tokio::task::JoinSet::new();
    for number in 0..20 {
        let database = database.clone();
        publishers.spawn(async move {
            let data = format!(r#"{{"n":"{number}"}}"#);
            let published = publish(&database, new(&data)).await;
            assert_eq!(published.data, data, "its own");
            published.version
        });
    }
    let mut versions = publishers.join_all().await;
    versions.sort_unstable();
    assert_eq!(versions, (1..=20).collect::<Vec<_>>());
}

async fn a_rollout_leaves_others_where_they_are(world: World) {
    let database = world.database().await;
    let fleet = &database.fleet;
    let plan = || {
        Some(Plan {
            steps: r#"["10%"]"#.to_owned(),
            bake_seconds: 5,
        })
    };
    publish(&database, new("{}")).await;
    assert_eq!(fleet.rollout().await.expect("asked"), None);
    publish(
        &database,
        NewConfig {
            rollout: plan(),
            ..new("{}")
        },
    )
    .await;
    let running = fleet.rollout().await.expect("asked").expect("there");
    assert_eq!((running.version, running.stable, running.step), (2, 1, 0));
    assert_eq!(
        (running.progress, Some(running.plan)),
        (Progress::Running, plan())
    );
    assert!(
        fleet
            .advance(2, 0, Progress::Running, None)
            .await
            .expect("moved")
    );
    assert!(
        !fleet
            .advance(2, 0, Progress::Running, None)
            .await
            .expect("answered"),
        "once"
    );
    // A new rollout before the end covers the remaining agents.
    publish(
        &database,
        NewConfig {
            rollout: plan(),
            ..new("{}")
        },
    )
    .await;
    let next = fleet.rollout().await.expect("asked").expect("there");
    assert_eq!((next.version, next.stable), (3, 1));
    assert!(
        !fleet
            .advance(2, 1, Progress::Done, None)
            .await
            .expect("answered"),
        "it is over"
    );
    let reason = Some("it failed".to_owned());
    assert!(
        fleet
            .advance(3, 0, Progress::Stopped, reason.clone())
            .await
            .expect("moved")
    );
    let stopped = fleet.rollout().await.expect("asked").expect("there");
    assert_eq!(
        (stopped.progress, stopped.reason),
        (Progress::Stopped, reason)
    );
    publish(
        &database,
        NewConfig {
            rolls_back_to: Some(1),
            ..new("{}")
        },
    )
    .await;
    assert_eq!(
        fleet
            .newest()
            .await
            .expect("asked")
            .expect("there")
            .rolls_back_to,
        Some(1)
    );
}

async fn a_lost_version_is_adopted_unless_a_newer_one_exists(world: World) {
    let database = world.database().await;
    let fleet = &database.fleet;
    let first = publish(&database, new("{}")).await;
    let lost = Published {
        version: 5,
        id: Uuid::now_v7(),
        data: r#"{"x":"y"}"#.to_owned(),
        ..first
    };
    assert!(fleet.restore(lost.clone()).await.expect("answered"));
    assert!(!fleet.restore(lost.clone()).await.expect("answered"));
    assert_eq!(fleet.newest().await.expect("asked"), Some(lost));
    assert_eq!(publish(&database, new("{}")).await.version, 6);
}

async fn an_agent_keeps_its_id_wherever_it_registers_again(world: World) {
    let database = world.database().await;
    let fleet = &database.fleet;
    let register = async |host: &str, key: &str| {
        fleet
            .register(info(host), key.to_owned(), None)
            .await
            .expect("registered")
    };
    let (one, other) = (register("a", "k1").await, register("b", "k2").await);
    assert_ne!(one.id, other.id);
    assert_eq!(register("a", "k3").await.id, one.id);
    assert_eq!(fleet.agent_of("k3").await.expect("asked"), Some(one.id));
    assert_eq!(
        fleet.agent_of("k1").await.expect("asked"),
        None,
        "the old key"
    );
    let mut at_once = tokio::task::JoinSet::new();
    for number in 0..10 {
        let fleet = fleet.clone();
        at_once.spawn(async move { fleet.register(info("c"), format!("c{number}"), None).await });
    }
    let ids: Vec<Uuid> = at_once
        .join_all()
        .await
        .into_iter()
        .map(|agent| agent.expect("registered").id)
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    let all = fleet.agents(None, 10).await.expect("listed");
    assert_eq!(all.len(), 3);
    assert_eq!(
        fleet.agents(Some(all[0].id), 10).await.expect("listed"),
        all[1..]
    );
    assert!(fleet.remove(one.id).await.expect("removed"));
    assert!(!fleet.remove(one.id).await.expect("answered"));
    assert_eq!(fleet.expire(Timestamp::now()).await.expect("expired"), 2);
    assert_eq!(fleet.agents(None, 10).await.expect("listed"), []);
}

async fn a_known_agent_moves_unless_the_place_is_taken(world: World) {
    let database = world.database().await;
    let fleet = &database.fleet;
    let register = async |host: &str, key: &str, known: Option<Uuid>| {
        let registered = fleet.register(info(host), key.to_owned(), known).await;
        registered.expect("registered")
    };
    let one = register("a", "k1", None).await;
    let moved = register("b", "k2", Some(one.id)).await;
    assert_eq!((moved.id, &moved.info), (one.id, &info("b")));
    let other = register("c", "k3", None).await;
    let taken = register("c", "k4", Some(one.id)).await;
    assert_eq!(taken.id, other.id, "the place has an agent already");
    let unknown = register("d", "k5", Some(Uuid::now_v7())).await;
    assert!(![one.id, other.id].contains(&unknown.id));
    assert_eq!(fleet.agents(None, 10).await.expect("listed").len(), 3);
}

async fn reports_of_agents_are_kept(world: World) {
    let database = world.database().await;
    let fleet = &database.fleet;
    let agent = fleet
        .register(info("a"), "k".to_owned(), None)
        .await
        .expect("registered");
    assert_eq!((agent.info, agent.report), (info("a"), Report::default()));
    let report = async |report: Report| fleet.report(agent.id, report).await.expect("answered");
    assert!(
        report(Report {
            applied: Some(3),
            ..Report::default()
        })
        .await
    );
    let failed = Report {
        failed: Some(4),
        error: Some("no".to_owned()),
        ..Report::default()
    };
    assert!(report(failed.clone()).await);
    let later = Timestamp::now() + std::time::Duration::from_secs(60);
    fleet
        .seen(vec![(agent.id, later), (Uuid::now_v7(), later)])
        .await
        .expect("noted");
    let listed = fleet.agents(None, 10).await.expect("listed").remove(0);
    assert_eq!(
        listed.report,
        Report {
            applied: Some(3),
            ..failed
        }
    );
    assert!(listed.seen_at.duration_since(later).abs().as_millis() < 2);
    assert!(
        !fleet
            .report(Uuid::now_v7(), Report::default())
            .await
            .expect("answered")
    );
}

async fn changes_are_recorded_in_the_audit_log(world: World) {
    let database = world.database().await;
    publish(&database, new("{}")).await;
    publish(
        &database,
        NewConfig {
            rolls_back_to: Some(1),
            ..new("{}")
        },
    )
    .await;
    let audit_entries = database.fleet.audit_entries(10).await.expect("listed");
    let listed: Vec<(&str, &str)> = audit_entries
        .iter()
        .map(|entry| (&*entry.action, &*entry.detail))
        .collect();
    assert_eq!(
        listed,
        [("rollback", "version 2"), ("publish", "version 1")]
    );
    database
        .fleet
        .record(towpath_core::port::fleet::AuditEntry {
            detail: "x".to_owned(),
            ..audit_entries[0].clone()
        })
        .await
        .expect("recorded");
    assert_eq!(
        database.fleet.audit_entries(1).await.expect("listed")[0].detail,
        "x"
    );
}
