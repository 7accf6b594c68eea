//! The rules on observations that are made for them.

use towpath_core::QueueName;

use super::*;
use crate::telemetry::Health;

const LIMITS: Limits = Limits {
    disk_reserve: 64 << 20,
};

static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

/// A process without parts.
pub(in crate::problems) async fn quiet() -> Observation {
    let health = Health::new();
    health.serving();
    let at = Instant::now();
    Observation {
        at,
        // As the clock of the runtime goes.
        wall: UNIX_EPOCH + YEAR_2026 * 2 + at.duration_since(*BEGAN.get_or_init(|| at)),
        checked: health.check().await,
        queues: Vec::new(),
        streams: Vec::new(),
        vitals: Vitals::default(),
    }
}

fn stats(oldest_ready: Option<u64>) -> queue::Stats {
    queue::Stats {
        queue: QueueName::new("jobs").unwrap(),
        ready: 3,
        delayed: 1,
        leased: 0,
        dead: 0,
        enqueued: 4,
        acked: 0,
        retried: 0,
        dropped: 0,
        duplicates: 0,
        oldest_age: Some(Duration::from_secs(86_400)),
        oldest_ready_age: oldest_ready.map(Duration::from_secs),
        oldest_leased_age: Some(Duration::from_secs(86_400)),
        oldest_delayed_age: Some(Duration::from_secs(86_400)),
        consumers: 0,
        paused: false,
    }
}

fn names(observed: &Observation, history: &mut History) -> Vec<&'static str> {
    let found = evaluate(observed, history, LIMITS);
    found.iter().map(|one| one.rule.name()).collect()
}

#[tokio::test]
async fn only_messages_that_are_ready_grow_old() {
    let mut observed = quiet().await;
    let history = &mut History::default();
    assert_eq!(names(&observed, history), [""; 0]);
    observed.queues = vec![stats(None), stats(Some(299))];
    assert_eq!(names(&observed, history), [""; 0]);
    observed.queues = vec![stats(Some(300))];
    assert_eq!(names(&observed, history), ["backlog_old"]);
    observed.queues[0].paused = true;
    assert_eq!(names(&observed, history), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn shares_are_those_of_the_last_minute() {
    let history = &mut History::default();
    let mut done = 0;
    let mut look = async |failed, dead| {
        done += 10;
        tokio::time::advance(Duration::from_secs(5)).await;
        let mut observed = quiet().await;
        let counts = Deliveries {
            done,
            failed,
            dead,
            unavailable: 0,
        };
        observed.vitals.deliveries.insert("jobs".to_owned(), counts);
        names(&observed, history)
    };
    assert_eq!(look(0, 0).await, [""; 0]);
    // 4 of 14 are many, but of too few.
    assert_eq!(look(4, 0).await, [""; 0]);
    assert_eq!(look(20, 0).await, ["deliveries_failing"]);
    assert_eq!(look(20, 4).await, ["deliveries_failing", "messages_dying"]);
    for _ in 0..11 {
        look(20, 4).await;
    }
    assert_eq!(look(20, 4).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_is_reported_for_a_while() {
    let mut observed = quiet().await;
    let history = &mut History::default();
    assert_eq!(names(&observed, history), [""; 0]);
    observed.wall -= Duration::from_secs(3_600);
    let found = evaluate(&observed, history, LIMITS);
    assert_eq!(found[0].figure.as_deref(), Some("3600 s"));
    observed.at += STEP_SHOWN;
    observed.wall += STEP_SHOWN;
    assert_eq!(names(&observed, history), [""; 0]);
    observed.wall = UNIX_EPOCH;
    assert_eq!(names(&observed, history)[0], "clock_implausible");
}

#[tokio::test]
async fn a_disk_is_low_by_size_or_by_share() {
    let mut observed = quiet().await;
    let history = &mut History::default();
    let mut look = |free: u64, size: u64| {
        let folder = "/data".into();
        observed.vitals.rooms = vec![DiskUsage { folder, free, size }];
        names(&observed, history)
    };
    let (mib, gib) = (1 << 20, 1 << 30);
    assert_eq!(look(192 * mib, 500 * mib), [""; 0]);
    assert_eq!(look(191 * mib, 500 * mib), ["disk_low"]);
    assert_eq!(look(4 * gib, 100 * gib), ["disk_low"]);
    // A large disk with room for long.
    assert_eq!(look(40 * gib, 1_000 * gib), [""; 0]);
}

#[tokio::test]
async fn consequences_of_a_failed_part_are_not_separate_problems() {
    let health = Health::new();
    health.serving();
    health.watch_check("database", || {
        Box::pin(async { Err(towpath_core::Error::unavailable("no answer")) })
    });
    health.needs("accounts.api", "database", crate::telemetry::Need::Answers);
    health.set("accounts.api", Some("the last call failed".to_owned()));
    health.set("lines.reader", Some("permission denied".to_owned()));
    let mut observed = quiet().await;
    observed.checked = health.check().await;
    let found = evaluate(&observed, &mut History::default(), LIMITS);
    let subjects: Vec<_> = found
        .iter()
        .map(|one| (one.rule.name(), one.subject.as_str()))
        .collect();
    assert_eq!(
        subjects,
        [
            ("database_unreachable", "database"),
            ("role_failing", "lines.reader")
        ]
    );
}

#[tokio::test]
async fn agents_that_disagree_are_one_problem_with_their_number() {
    let mut observed = quiet().await;
    let history = &mut History::default();
    observed.vitals.agents_behind = 2;
    observed.vitals.agents_shared = 1;
    let found = evaluate(&observed, history, LIMITS);
    let [one] = &*found else {
        panic!("{found:?}");
    };
    assert_eq!((one.rule, &*one.subject), (Rule::AgentsDisagree, "fleet"));
    assert_eq!(one.figure.as_deref(), Some("3 agents"));
    observed.vitals.agents_behind = 0;
    observed.vitals.agents_shared = 0;
    assert_eq!(names(&observed, history), [""; 0]);
}

#[tokio::test]
async fn a_server_that_is_full_is_not_unreachable() {
    let health = Health::new();
    health.serving();
    let mut observed = quiet().await;
    observed.checked = health.check().await;
    let mut look = |refuses| {
        observed.checked.backends = vec![crate::telemetry::CheckedBackend {
            name: "redis",
            url: "redis://127.0.0.1:6379/0?timeout=1s".to_owned(),
            answer: Err("the memory of redis is full".to_owned()),
            refuses,
        }];
        let found = evaluate(&observed, &mut History::default(), LIMITS);
        assert_eq!(found.len(), 1, "{found:?}");
        let one = &found[0];
        assert_eq!(one.subject, "redis://127.0.0.1:6379/0");
        (one.rule, one.cause.clone())
    };
    let full = "the memory of redis is full".to_owned();
    assert_eq!(look(None), (Rule::BackendUnreachable, full.clone()));
    assert_eq!(look(Some("memory")), (Rule::StoreRefusing, full));
}
