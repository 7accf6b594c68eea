//! PostgreSQL's promises beyond the ports: exact limits, housekeeping, a dropped schema, poolers, isolation levels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use tokio::task::JoinSet;
use towpath_core::backend::Backend;
use towpath_core::limiter::{Amount, Policy};
use towpath_core::port::kv::{Committed, Op};
use towpath_core::port::rate_limit::Take;
use towpath_core::port::{Kv, RateLimit};
use towpath_core::{ErrorKind, SystemClock};
use towpath_testkit::servers::postgres::{Pooler, Server, pooler_missing, shared};
use towpath_testkit::{Own, trial_where_able};

/// Declares the trials by function name.
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), || Box::pin($name()))),*]
    };
}

pub(crate) fn promises() -> Vec<Own> {
    promises![
        decides_as_the_core_does_for_any_numbers,
        a_limit_outlives_the_part_that_holds_its_state,
        a_reset_limit_stays_full_when_an_older_part_remains,
        a_part_is_not_truncated_below_a_state_written_meanwhile,
        takes_under_a_held_snapshot_leave_no_dead_rows,
        an_expired_hash_leaves_no_rows,
        an_expired_hash_gives_its_fields_to_no_successor,
        a_dropped_schema_is_created_again,
        processes_that_open_at_once_migrate_once,
        changed_migrations_are_refused,
        isolation_levels_that_read_old_states_are_refused,
        a_user_without_rights_uses_existing_tables_only,
        texts_that_cannot_be_stored_are_invalid,
        long_commits_and_takes_are_atomic,
        calls_after_closing_are_unavailable,
        health_names_settings_that_lose_changes,
    ]
}

/// The promises that need a pooler too.
pub(crate) fn pooled_trials() -> Vec<Trial> {
    let name = "postgres::own::keys_and_limits_work_through_a_pooler";
    vec![trial_where_able(
        name,
        "pgbouncer",
        pooler_missing(),
        || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            let case = async {
                let case = keys_and_limits_work_through_a_pooler();
                tokio::time::timeout(Duration::from_secs(120), case).await
            };
            runtime
                .block_on(case)
                .map_err(|_| Failed::from("not finished within 120 s"))
        },
    )]
}

/// Drops everything in the database of this URL.
pub(crate) fn lose(url: &str) {
    sql(url, "DROP SCHEMA towpath CASCADE");
}

fn sql(url: &str, statement: &str) -> String {
    let database = url.rsplit('/').next().expect("a database");
    shared().query(database, statement)
}

/// The URL of an empty database on the shared server.
fn fresh_url() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    shared().create(&format!("own{number}"))
}

async fn open(url: &str) -> Backend {
    try_open(url)
        .await
        .unwrap_or_else(|error| panic!("opening {url}: {error:?}"))
}

async fn try_open(url: &str) -> towpath_core::Result<Backend> {
    towpath_backends::open(url, Arc::new(SystemClock::new())).await
}

async fn fresh() -> (Backend, String) {
    let url = fresh_url();
    (open(&url).await, url)
}

fn kv_of(backend: &Backend) -> Arc<dyn Kv> {
    backend.require_kv("the test").expect("keys")
}

fn limits_of(backend: &Backend) -> Arc<dyn RateLimit> {
    backend.require_rate_limit("the test").expect("limits")
}

/// Refills so slowly that a test never sees it.
fn bucket(capacity: u64) -> Policy {
    Policy::TokenBucket {
        capacity: Amount::whole(capacity),
        refill: Amount::whole(1),
        period: Duration::from_secs(86_400),
    }
}

fn take(key: &str, tokens: u64) -> Take {
    Take {
        key: key.to_owned(),
        policy: bucket(100),
        amount: Amount::whole(tokens),
    }
}

async fn left(limits: &Arc<dyn RateLimit>, key: &str) -> u64 {
    let decision = limits.peek(key, bucket(100)).await.expect("peek");
    decision.remaining.as_micros() / 1_000_000
}

/// The part that is truncated next.
const OLDEST: &str = "((towpath.limit_part() + 1) & 3)";

async fn decides_as_the_core_does_for_any_numbers() {
    let seed = rand::random();
    let (steps, expected) = crate::redis::limits::random_steps(seed);
    let decisions = towpath_backends::postgres::decide_at_for_testing(&fresh_url(), &steps)
        .await
        .expect("decide");
    for (at, (found, expected)) in decisions.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "seed {seed}, step {at}: {:?}", steps[at]);
    }
    assert_eq!(decisions.len(), expected.len());
}

/// Runs the housekeeping of limits; whether the oldest part was truncated.
fn rotate(url: &str) -> String {
    sql(
        url,
        "SELECT towpath.limit_clear(oldest, last_n) FROM towpath.limit_carry('', 500)",
    )
}

async fn a_limit_outlives_the_part_that_holds_its_state() {
    let (backend, url) = fresh().await;
    let limits = limits_of(&backend);
    for key in ["a", "b"] {
        limits.take(vec![take(key, 30)]).await.expect("take");
    }
    sql(
        &url,
        &format!("UPDATE towpath.limit_cell SET part = {OLDEST}"),
    );
    limits.take(vec![take("a", 10)]).await.expect("take");
    assert_eq!(rotate(&url), "t");
    let rows = format!("SELECT count(*) FROM towpath.limit_cell WHERE part = {OLDEST}");
    assert_eq!(sql(&url, &rows), "0");
    assert_eq!(
        (left(&limits, "a").await, left(&limits, "b").await),
        (60, 70)
    );
    assert_eq!(
        sql(&url, "SELECT count(*) FROM towpath.limit_cell"),
        "2",
        "one state a key"
    );
}

async fn a_reset_limit_stays_full_when_an_older_part_remains() {
    let (backend, url) = fresh().await;
    let limits = limits_of(&backend);
    limits.take(vec![take("a", 30)]).await.expect("take");
    limits.reset("a").await.expect("reset");
    sql(
        &url,
        &format!("UPDATE towpath.limit_cell SET part = {OLDEST} WHERE algorithm IS NULL"),
    );
    assert_eq!(rotate(&url), "t");
    assert_eq!(left(&limits, "a").await, 100);
}

async fn a_part_is_not_truncated_below_a_state_written_meanwhile() {
    let (backend, url) = fresh().await;
    let limits = limits_of(&backend);
    let moved = format!("UPDATE towpath.limit_cell SET part = {OLDEST}");
    limits.take(vec![take("a", 30)]).await.expect("take");
    sql(&url, &moved);
    let carried = "SELECT last_n FROM towpath.limit_carry('', 500)";
    let last = sql(&url, carried);
    limits.take(vec![take("a", 30)]).await.expect("take");
    sql(&url, &moved);
    let clear = format!("SELECT towpath.limit_clear({OLDEST}::smallint, {last})");
    assert_eq!(sql(&url, &clear), "f");
    assert_eq!(left(&limits, "a").await, 40);
}

async fn takes_under_a_held_snapshot_leave_no_dead_rows() {
    let (backend, url) = fresh().await;
    let limits = limits_of(&backend);
    limits.take(vec![take("hot", 1)]).await.expect("take");
    let (holder, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .expect("connected");
    // Ends with the client.
    tokio::spawn(connection);
    let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1";
    holder.batch_execute(hold).await.expect("held");
    for _ in 0..300 {
        limits.take(vec![take("hot", 0)]).await.expect("take");
    }
    let figures = "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0) FROM pg_stat_all_tables
        WHERE schemaname = 'towpath'";
    assert_eq!(sql(&url, figures), "0");
}

async fn an_expired_hash_leaves_no_rows() {
    let (backend, url) = fresh().await;
    let kv = kv_of(&backend);
    hash_for_a_moment(&kv).await;
    while sql(&url, "SELECT towpath.kv_expire(500)") == "0" {
        // The statement is the condition; the key expires after a millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let rows = "SELECT (SELECT count(*) FROM towpath.kv) + (SELECT count(*) FROM towpath.kv_field)";
    assert_eq!(sql(&url, rows), "0");
}

async fn hash_for_a_moment(kv: &Arc<dyn Kv>) {
    let (key, ttl) = ("hash".to_owned(), Some(Duration::from_millis(1)));
    let ops = vec![field("hash", "old"), Op::Expire { key, ttl }];
    kv.commit(ops).await.expect("commit");
}

fn field(key: &str, field: &str) -> Op {
    Op::SetField {
        key: key.to_owned(),
        field: field.to_owned(),
        value: "x".into(),
    }
}

async fn an_expired_hash_gives_its_fields_to_no_successor() {
    let (backend, _) = fresh().await;
    let kv = kv_of(&backend);
    hash_for_a_moment(&kv).await;
    while kv.ttl("hash").await.expect("ttl").is_some() {
        // The read is the condition; the key expires after a millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(kv.fields("hash").await.expect("fields"), []);
    kv.commit(vec![field("hash", "new")]).await.expect("commit");
    let fields = kv.fields("hash").await.expect("fields");
    assert_eq!(fields, [("new".to_owned(), "x".into())]);
    hash_for_a_moment(&kv).await;
    while kv.ttl("hash").await.expect("ttl").is_some() {
        // As above.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    kv.put("hash", "v".into(), None).await.expect("put");
    kv.delete("hash").await.expect("delete");
    kv.commit(vec![field("hash", "new")]).await.expect("commit");
    assert_eq!(kv.fields("hash").await.expect("fields").len(), 1);
}

async fn a_dropped_schema_is_created_again() {
    let (backend, url) = fresh().await;
    let (kv, limits) = (kv_of(&backend), limits_of(&backend));
    kv.put("a", "x".into(), None).await.expect("put");
    lose(&url);
    let error = kv.put("a", "y".into(), None).await.expect_err("no tables");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    kv.put("a", "z".into(), None).await.expect("put");
    limits.take(vec![take("a", 1)]).await.expect("take");
}

async fn processes_that_open_at_once_migrate_once() {
    let url = fresh_url();
    let mut processes = JoinSet::new();
    for _ in 0..4 {
        let url = url.clone();
        processes.spawn(async move {
            let backend = open(&url).await;
            kv_of(&backend).put("a", "x".into(), None).await
        });
    }
    for put in processes.join_all().await {
        put.expect("put");
    }
    assert_eq!(sql(&url, "SELECT count(*) FROM towpath.migrations"), "1");
}

async fn changed_migrations_are_refused() {
    let (backend, url) = fresh().await;
    backend.lifecycle.close().await.expect("closed");
    sql(&url, "UPDATE towpath.migrations SET sum = 'other'");
    let error = try_open(&url).await.expect_err("another migration");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let later = "UPDATE towpath.migrations SET version = 99";
    sql(&url, later);
    let error = try_open(&url).await.expect_err("a newer build's");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

async fn isolation_levels_that_read_old_states_are_refused() {
    let url = fresh_url();
    let database = url.rsplit('/').next().expect("a database");
    for level in ["repeatable read", "serializable"] {
        let set =
            format!("ALTER DATABASE {database} SET default_transaction_isolation = '{level}'");
        sql(&url, &set);
        let backend = open(&url).await;
        let error = limits_of(&backend).take(vec![take("a", 1)]).await;
        let error = error.expect_err(level).chain();
        assert!(error.contains("default_transaction_isolation"), "{error}");
    }
}

async fn a_user_without_rights_uses_existing_tables_only() {
    let (_, url) = fresh().await;
    let database = url.rsplit('/').next().expect("a database");
    let role = format!("plain_{database}");
    sql(
        &url,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA towpath TO {role};
            GRANT SELECT ON towpath.migrations TO {role};
            GRANT SELECT, INSERT, UPDATE, DELETE ON towpath.kv, towpath.kv_field TO {role}"
        ),
    );
    let plain = url.replace("towpath@", &format!("{role}@"));
    let backend = open(&plain).await;
    kv_of(&backend)
        .put("a", "x".into(), None)
        .await
        .expect("put");
    lose(&url);
    let error = try_open(&plain)
        .await
        .expect_err("no right to create")
        .chain();
    assert!(error.contains("schema `towpath`"), "{error}");
    assert!(error.contains("lacks a right"), "{error}");
}

async fn texts_that_cannot_be_stored_are_invalid() {
    let (backend, _) = fresh().await;
    let (kv, limits) = (kv_of(&backend), limits_of(&backend));
    let put = kv.put("a\0b", "x".into(), None).await;
    assert_eq!(put.expect_err("refused").kind(), ErrorKind::Invalid);
    let set = kv.commit(vec![field("a", "b\0c")]).await;
    assert_eq!(set.expect_err("refused").kind(), ErrorKind::Invalid);
    let taken = limits.take(vec![take("a\0b", 1)]).await;
    assert_eq!(taken.expect_err("refused").kind(), ErrorKind::Invalid);
    assert_eq!(kv.get("a\0b").await.expect("get"), None);
    assert_eq!(kv.ttl("a\0b").await.expect("ttl"), None);
    kv.put("a", "x".into(), None).await.expect("put");
    let listed = kv.keys("", Some("\0"), 10).await.expect("keys");
    assert_eq!(listed, ["a"]);
}

async fn long_commits_and_takes_are_atomic() {
    let (backend, url) = fresh().await;
    let (kv, limits) = (kv_of(&backend), limits_of(&backend));
    let adds = |count: usize| -> Vec<Op> {
        let all = (0..count).map(|number| Op::Add {
            key: format!("key-{number}"),
            delta: 1,
            min: 0,
            max: 1,
        });
        all.collect()
    };
    let done = kv.commit(adds(2_000)).await.expect("commit");
    assert!(matches!(done, Committed::Applied(values) if values.len() == 2_000));
    let mut again = adds(2_000);
    again.reverse();
    let refused = kv.commit(again).await.expect("commit");
    let current = Some("1".into());
    assert_eq!(refused, Committed::Refused { index: 0, current });
    let mut twice = adds(3_000);
    twice.rotate_left(2_000);
    let refused = kv.commit(twice).await.expect("commit");
    assert!(matches!(refused, Committed::Refused { index: 1_000, .. }));
    assert_eq!(sql(&url, "SELECT count(*) FROM towpath.kv"), "2000");
    let mut crossing = JoinSet::new();
    for number in 0..8 {
        let limits = Arc::clone(&limits);
        crossing.spawn(async move {
            let mut keys = ["one", "two", "three"];
            keys.rotate_left(number % 3);
            let takes = keys.map(|key| take(key, 1)).to_vec();
            for _ in 0..20 {
                limits.take(takes.clone()).await.expect("take");
            }
        });
    }
    crossing.join_all().await;
    assert_eq!(left(&limits, "two").await, 0);
}

async fn calls_after_closing_are_unavailable() {
    let (backend, _) = fresh().await;
    for _ in 0..2 {
        backend.lifecycle.close().await.expect("closed");
    }
    let kv = kv_of(&backend);
    let error = kv.get("a").await.expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = backend.lifecycle.health().await.expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

async fn health_names_settings_that_lose_changes() {
    let url = fresh_url();
    let database = url.rsplit('/').next().expect("a database");
    let health = open(&url).await.lifecycle.health().await.expect("healthy");
    assert_eq!(health.warnings, [""; 0]);
    let set = format!("ALTER DATABASE {database} SET synchronous_commit = off");
    sql(&url, &set);
    let health = open(&url).await.lifecycle.health().await.expect("healthy");
    assert!(
        health.warnings[0].contains("synchronous_commit"),
        "{health:?}"
    );
}

async fn keys_and_limits_work_through_a_pooler() {
    let server = Server::start();
    server.create("case");
    let pooler = Pooler::start(&server, 4);
    let backends = [
        open(&pooler.url("case")).await,
        open(&pooler.url("case")).await,
    ];
    let mut callers = JoinSet::new();
    for number in 0..120_usize {
        let backend = backends[number % 2].clone();
        callers.spawn(async move {
            let won = kv_of(&backend).put_if_absent("won", "x".into(), None).await;
            let taken = limits_of(&backend).take(vec![take("a", 1)]).await;
            (won.expect("put"), taken.expect("take")[0].allowed)
        });
    }
    let answers = callers.join_all().await;
    let won = answers.iter().filter(|answer| answer.0).count();
    let taken = answers.iter().filter(|answer| answer.1).count();
    assert_eq!((won, taken), (1, 100));
    let kept = "SELECT count(*) FROM pg_prepared_statements";
    assert_eq!(server.query("case", kept), "0");
    for backend in backends {
        backend.lifecycle.health().await.expect("healthy");
    }
}
