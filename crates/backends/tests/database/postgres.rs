//! What PostgreSQL promises besides: the order when transactions overlap, relays of other processes, crashes.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use towpath_core::ErrorKind;
use towpath_core::database::Database;
use towpath_core::port::outbox::Filter;
use towpath_testkit::servers::postgres::Server;
use uuid::Uuid;

use super::users::create;
use super::{World, cases};

cases![
    what_commits_late_holds_back_what_has_a_higher_place,
    what_has_a_lower_place_goes_on_beside_an_open_transaction,
    what_is_rolled_back_holds_nothing_up,
    transactions_that_are_open_elsewhere_hold_nothing_up,
    a_commit_wakes_relays_of_other_processes,
    tables_that_are_there_are_taken_over,
    a_server_that_is_killed_keeps_what_was_acknowledged,
    a_wrong_database_is_named,
    tls_is_spoken_and_the_certificate_checked,
];

/// A connection of somebody else.
async fn stranger(url: &str) -> Client {
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

async fn sql(client: &Client, statement: &str) {
    client.batch_execute(statement).await.expect(statement);
}

async fn about(database: &Database) -> Vec<String> {
    let events = database.outbox.after(0, 10).await.expect("read");
    events
        .into_iter()
        .map(|event| event.event.aggregate_id)
        .collect()
}

async fn what_commits_late_holds_back_what_has_a_higher_place(world: World) {
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

async fn what_has_a_lower_place_goes_on_beside_an_open_transaction(world: World) {
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

async fn what_is_rolled_back_holds_nothing_up(world: World) {
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

async fn tables_that_are_there_are_taken_over(world: World) {
    let client = stranger(&world.url).await;
    sql(
        &client,
        "CREATE TABLE users (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email varchar(255) NOT NULL UNIQUE,
            name varchar(255) NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now());
        CREATE TABLE outbox_events (
            id uuid PRIMARY KEY, aggregate_type varchar(255) NOT NULL, aggregate_id varchar(255) NOT NULL,
            event_type varchar(255) NOT NULL, event_data jsonb NOT NULL, status varchar(50) NOT NULL DEFAULT 'NEW',
            topic varchar(255) NOT NULL, partition_key varchar(255), created_at timestamptz NOT NULL DEFAULT now(),
            processed_at timestamptz, retry_count int DEFAULT 0, max_retries int DEFAULT 3, error_message text);
        INSERT INTO users (email, name) VALUES ('Ann@Example.org', 'Ann');
        INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, status, topic)
        SELECT gen_random_uuid(), 'user', state, 'user.created', '{}', state, 'user-events'
        FROM unnest(ARRAY['NEW', 'PROCESSING', 'SENT', 'FAILED']) AS state",
    )
    .await;
    let database = world.database().await;
    let users = database.users.list(None, 10).await.expect("listed");
    assert_eq!((&*users[0].email, users[0].version), ("ann@example.org", 1));
    let mut kept = about(&database).await;
    kept.sort();
    assert_eq!(kept, ["FAILED", "NEW", "PROCESSING"], "what was not sent");
    assert_eq!(
        database
            .outbox
            .list(&Filter::default(), 10)
            .await
            .expect("listed")
            .len(),
        3
    );
}

async fn a_server_that_is_killed_keeps_what_was_acknowledged(_: World) {
    let mut server = Server::start();
    let database = towpath_backends::open_database(&server.create("case"))
        .await
        .expect("opened");
    while database.schema.up().await.expect("migrated").is_some() {}
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
    while database.schema.up().await.expect("migrated").is_some() {}
    let encrypted = "SELECT bool_or(ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'towpath'";
    assert_eq!(server.query("case", encrypted), "t");
    let Err(error) = towpath_backends::open_database(&format!("{url}?sslmode=require")).await
    else {
        panic!("a certificate of an unknown authority was taken");
    };
    assert!(error.chain().contains("certificate"), "{}", error.chain());
}
