//! PostgreSQL's own promises: the order when transactions overlap, relays of other processes, crashes.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use towpath_core::ErrorKind;
use towpath_core::database::Database;
use towpath_core::port::outbox::OpenTransaction;
use towpath_core::port::users::{Created, RequestKey};
use towpath_testkit::servers::postgres::{Pooler, Server};
use uuid::Uuid;

use super::users::create;
use super::{World, cases};

cases![
    a_late_commit_holds_back_later_events,
    events_before_those_of_an_open_transaction_are_relayed,
    a_rolled_back_transaction_delays_no_event,
    transactions_that_are_open_elsewhere_hold_nothing_up,
    a_commit_wakes_relays_of_other_processes,
    a_killed_server_keeps_acknowledged_events,
    a_wrong_database_is_named,
    tls_is_spoken_and_the_certificate_checked,
    an_open_transaction_that_events_wait_for_is_named,
    a_server_that_became_read_only_is_left_for_the_new_primary,
    reads_leave_a_server_that_became_read_only_too,
    a_server_that_is_not_there_is_named_and_waited_for,
];

/// Cases that need a pooler too.
pub(super) const POOLED: &[super::Case] = &[
    ("a_pooler_in_transaction_mode_changes_nothing", |world| {
        Box::pin(a_pooler_in_transaction_mode_changes_nothing(world))
    }),
    ("a_pooler_with_one_session_is_found_out", |world| {
        Box::pin(a_pooler_with_one_session_is_found_out(world))
    }),
];

/// A connection of another program.
pub(super) async fn stranger(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("connected");
    // Ends with the client.
    tokio::spawn(connection);
    client
}

/// Writes an event in the transaction that is open, as an application of its own does.
async fn write(client: &Client, about: &str) {
    let insert = "INSERT INTO outbox
        (id, aggregate_type, aggregate_id, event_type, topic, event_data, created_at)
        VALUES ($1, 'thing', $2, 'thing.made', 'things', '{}', now())";
    client
        .execute(insert, &[&Uuid::now_v7(), &about])
        .await
        .expect("written");
}

pub(super) async fn sql(client: &Client, statement: &str) {
    client.batch_execute(statement).await.expect(statement);
}

async fn about(database: &Database) -> Vec<String> {
    let events = database.outbox.after(0, 10).await.expect("read");
    events
        .into_iter()
        .map(|event| event.event.aggregate_id)
        .collect()
}

async fn a_late_commit_holds_back_later_events(world: World) {
    let database = world.database().await;
    let (early, late) = (stranger(&world.url).await, stranger(&world.url).await);
    sql(&late, "BEGIN").await;
    write(&late, "first").await;
    sql(&early, "BEGIN").await;
    write(&early, "second").await;
    sql(&early, "COMMIT").await;
    let reading = {
        let database = database.clone();
        tokio::spawn(async move { about(&database).await })
    };
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!reading.is_finished(), "the first may still be committed");
    assert_eq!(
        reading.await.expect("joined"),
        [""; 0],
        "after a second the lease has to be prolonged"
    );
    let reading = {
        let database = database.clone();
        tokio::spawn(async move { about(&database).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    sql(&late, "COMMIT").await;
    assert_eq!(reading.await.expect("joined"), ["first", "second"]);
}

async fn events_before_those_of_an_open_transaction_are_relayed(world: World) {
    let database = world.database().await;
    let (open, others) = (stranger(&world.url).await, stranger(&world.url).await);
    write(&others, "first").await;
    write(&others, "second").await;
    sql(&open, "BEGIN").await;
    write(&open, "third").await;
    write(&others, "fourth").await;
    assert_eq!(about(&database).await, ["first", "second"]);
    sql(&open, "COMMIT").await;
    assert_eq!(
        about(&database).await,
        ["first", "second", "third", "fourth"]
    );
}

async fn a_rolled_back_transaction_delays_no_event(world: World) {
    let database = world.database().await;
    let (one, two) = (stranger(&world.url).await, stranger(&world.url).await);
    sql(&one, "BEGIN").await;
    write(&one, "never").await;
    write(&two, "kept").await;
    let reading = {
        let database = database.clone();
        tokio::spawn(async move { about(&database).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    sql(&one, "ROLLBACK").await;
    assert_eq!(reading.await.expect("joined"), ["kept"]);
}

async fn transactions_that_are_open_elsewhere_hold_nothing_up(world: World) {
    let database = world.database().await;
    let (here, there) = (stranger(&world.url).await, World::bare("postgres"));
    let there = stranger(&there.url).await;
    for client in [&here, &there] {
        sql(
            client,
            "CREATE TABLE other (x int); BEGIN; INSERT INTO other VALUES (1)",
        )
        .await;
        // Has an id and a snapshot, as long transactions do.
        sql(client, "SELECT txid_current()").await;
    }
    let reads = stranger(&world.url).await;
    sql(
        &reads,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox",
    )
    .await;
    create(&database, "ann").await;
    let began = Instant::now();
    assert_eq!(database.outbox.after(0, 10).await.expect("read").len(), 1);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

async fn a_commit_wakes_relays_of_other_processes(world: World) {
    let (database, other) = (world.database().await, world.open().await);
    let waiting = tokio::spawn(async move { other.outbox.committed().await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    create(&database, "ann").await;
    tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .expect("woken")
        .expect("joined");
}

async fn a_killed_server_keeps_acknowledged_events(_: World) {
    let mut server = Server::start();
    let database = towpath_backends::open_database(&server.create("case"))
        .await
        .expect("opened");
    database.schema.up().await.expect("migrated");
    for round in 0..3 {
        let user = create(&database, &format!("round-{round}")).await;
        server.kill();
        // The server's processes end when they see that the first of them is gone.
        let error = loop {
            if let Err(error) = database.users.find(user.id).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        server.restart();
        let deadline = Instant::now() + Duration::from_secs(20);
        while database.users.find(user.id).await.is_err() {
            assert!(Instant::now() < deadline, "connected again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(
            database.users.find(user.id).await.expect("found"),
            Some(user)
        );
    }
    assert_eq!(database.outbox.after(0, 10).await.expect("read").len(), 3);
}

async fn a_wrong_database_is_named(world: World) {
    let url = format!("{}-absent", world.url);
    let Err(error) = towpath_backends::open_database(&url).await else {
        panic!("opened");
    };
    assert!(
        error.chain().contains("-absent\" does not exist"),
        "{}",
        error.chain()
    );
}

async fn tls_is_spoken_and_the_certificate_checked(_: World) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    towpath_testkit::certificates::make(folder.path());
    let server = Server::start_with_tls(folder.path());
    let url = server.create("case").replace("127.0.0.1", "localhost");
    let authority = folder.path().join("ca.pem");
    let trusting = format!(
        "{url}?sslmode=verify-full&sslrootcert={}",
        authority.display()
    );
    let database = towpath_backends::open_database(&trusting)
        .await
        .expect("trusted");
    database.schema.up().await.expect("migrated");
    let encrypted = "SELECT bool_or(ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'towpath'";
    assert_eq!(server.query("case", encrypted), "t");
    let Err(error) = towpath_backends::open_database(&format!("{url}?sslmode=require")).await
    else {
        panic!("a certificate of an unknown authority was taken");
    };
    assert!(error.chain().contains("certificate"), "{}", error.chain());
}

async fn an_open_transaction_that_events_wait_for_is_named(world: World) {
    let database = world.database().await;
    let (open, prepared) = (stranger(&world.url).await, stranger(&world.url).await);
    sql(&open, "SET application_name = 'import'; BEGIN").await;
    write(&open, "first").await;
    sql(&prepared, "BEGIN").await;
    write(&prepared, "second").await;
    sql(&prepared, "PREPARE TRANSACTION 'left behind'").await;
    let backlog = || async { database.outbox.backlog().await.expect("counted") };
    assert_eq!(backlog().await.waits_for, [], "younger than a second");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let row = open.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = row.expect("a row").get(0);
    let named = |id: String, application: &str| OpenTransaction {
        id,
        age_seconds: Some(2),
        application: application.to_owned(),
    };
    let mut found = backlog().await.waits_for;
    for one in &mut found {
        assert!(one.age_seconds.is_some_and(|age| (1..10).contains(&age)));
        one.age_seconds = Some(2);
    }
    found.sort_by(|one, two| one.id.cmp(&two.id));
    assert_eq!(
        found,
        [
            named(format!("pid {pid}"), "import"),
            named("prepared transaction left behind".to_owned(), ""),
        ]
    );
    sql(&open, "ROLLBACK").await;
    sql(&open, "ROLLBACK PREPARED 'left behind'").await;
    assert_eq!(backlog().await.waits_for, []);
}

/// A primary, its standby, and a database that is reached by the URL of both.
async fn two_servers() -> (Server, Server, Database) {
    let primary = Server::start();
    primary.create("case");
    let standby = primary.standby();
    let url = format!(
        "postgres://towpath@127.0.0.1:{},127.0.0.1:{}/case",
        primary.port(),
        standby.port()
    );
    let database = towpath_backends::open_database(&url).await.expect("opened");
    database.schema.up().await.expect("migrated");
    (primary, standby, database)
}

/// Makes the standby the primary, and leaves the old one running, read-only.
fn fail_over(primary: &Server, standby: &Server) {
    // The write must be visible first.
    let end = primary.query("postgres", "SELECT pg_current_wal_lsn()");
    let arrived = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    while standby.query("postgres", &arrived) != "t" {
        std::thread::sleep(Duration::from_millis(20));
    }
    primary.query(
        "postgres",
        "ALTER SYSTEM SET default_transaction_read_only = on",
    );
    primary.query("postgres", "SELECT pg_reload_conf()");
    standby.promote();
}

async fn a_server_that_became_read_only_is_left_for_the_new_primary(_: World) {
    let (primary, standby, database) = two_servers().await;
    // Many connections, all of which lead to the old one.
    let before = (0..16).map(|number| {
        let database = database.clone();
        async move { create(&database, &format!("before-{number}")).await }
    });
    futures_util::future::join_all(before).await;
    database.outbox.check().await.expect("accepts changes");
    fail_over(&primary, &standby);
    let began = Instant::now();
    let user = super::users::user("after");
    while let event = super::users::event(user.id, "user.created")
        && database
            .users
            .create(user.clone(), event, None)
            .await
            .is_err()
    {
        assert!(began.elapsed() < Duration::from_secs(5), "still refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for number in 0..20 {
        create(&database, &format!("after-{number}")).await;
    }
    assert_eq!(standby.query("case", "SELECT count(*) FROM users"), "37");
    let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'towpath' AND datname = 'case'";
    assert_eq!(primary.query("case", left), "0", "no connection stays");
}

async fn reads_leave_a_server_that_became_read_only_too(_: World) {
    let (primary, standby, database) = two_servers().await;
    create(&database, "ann").await;
    fail_over(&primary, &standby);
    standby.query("case", "DELETE FROM users");
    let began = Instant::now();
    while !database
        .users
        .list(None, 10)
        .await
        .is_ok_and(|all| all.is_empty())
    {
        assert!(began.elapsed() < Duration::from_secs(10), "still stale");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A single read-only server is reported.
    let url = primary.url("case");
    let alone = towpath_backends::open_database(&url).await.expect("opened");
    let error = alone.outbox.check().await.expect_err("read-only");
    let place = format!("127.0.0.1:{}", primary.port());
    let text = error.chain();
    assert!(
        text.contains("read-only") && text.contains(&place),
        "{text}"
    );
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

async fn a_server_that_is_not_there_is_named_and_waited_for(_: World) {
    let mut server = Server::start();
    let url = server.create("case");
    server.kill();
    let database = towpath_backends::open_database(&url).await.expect("later");
    let error = database.schema.up().await.expect_err("no server answers");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let place = format!("127.0.0.1:{}", server.port());
    assert!(error.chain().contains(&place), "{}", error.chain());
    assert_eq!(error.chain().matches("error connecting").count(), 1);
    server.restart();
    database.schema.up().await.expect("migrated");
    create(&database, "ann").await;
}

async fn a_pooler_in_transaction_mode_changes_nothing(_: World) {
    let server = Server::start();
    server.create("case");
    let pooler = Pooler::start(&server, 4);
    let url = pooler.url("case");
    let database = towpath_backends::open_database(&url).await.expect("opened");
    database.schema.up().await.expect("migrated");
    let other = towpath_backends::open_database(&url).await.expect("opened");
    let users = (0..65).map(|number| {
        let database = [&database, &other][number % 2].clone();
        async move { create(&database, &format!("user-{number}")).await }
    });
    let users = futures_util::future::join_all(users).await;
    let events = database.outbox.after(0, 100).await.expect("read");
    assert_eq!(events.len(), users.len());
    for user in users {
        let found = other.users.find(user.id).await.expect("found");
        assert_eq!(found, Some(user));
    }
    let key = RequestKey {
        key: "once".to_owned(),
        digest: "digest".to_owned(),
    };
    for expected in [true, false] {
        let user = super::users::user("again");
        let event = super::users::event(user.id, "user.created");
        let created = database.users.create(user, event, Some(key.clone())).await;
        let is_new = created.expect("created") == Created::New;
        assert_eq!(is_new, expected);
    }
    other.outbox.sent(events[9].seq).await.expect("noted");
    assert_eq!(
        database.outbox.position().await.expect("known"),
        events[9].seq
    );
    database.outbox.check().await.expect("accepts changes");
    let kept = "SELECT count(*) FROM pg_prepared_statements";
    assert_eq!(server.query("case", kept), "0");
}

async fn a_pooler_with_one_session_is_found_out(_: World) {
    let server = Server::start();
    server.create("case");
    let pooler = Pooler::start(&server, 1);
    let database = towpath_backends::open_database(&pooler.url("case")).await;
    let database = database.expect("opened");
    database.schema.up().await.expect("migrated");
    let users = (0..10).map(|number| {
        let database = database.clone();
        async move { create(&database, &format!("user-{number}")).await }
    });
    futures_util::future::join_all(users).await;
}
