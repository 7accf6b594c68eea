//! A database of the reference system: its server, relay and backfill continue beside ours, and `down` restores
//! its tables. The statements are those of the contract.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::Client;
use towpath_core::ErrorKind;
use towpath_core::database::Database;
use towpath_core::port::outbox::{Filter, Status};
use towpath_core::port::users::Created;
use uuid::Uuid;

use super::postgres::{sql, stranger};
use super::users::create;
use super::{World, cases};

cases![
    unsent_events_and_users_of_the_reference_are_adopted,
    the_reference_server_continues_beside_ours,
    relays_of_both_kinds_send_each_event_once,
    events_being_sent_at_the_change_are_left_to_their_relay,
    the_reference_joins_a_database_of_ours,
    reference_backfill_reads_events_sent_before_and_since,
    down_restores_the_original_tables,
    down_and_up_again_loses_no_event,
    addresses_that_differ_in_case_are_named,
];

/// Tables of the reference's `migrate up` makes.
const TABLES: &str = "CREATE TABLE users (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email varchar(255) NOT NULL UNIQUE,
        name varchar(255) NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX idx_users_email ON users (email);
    CREATE INDEX idx_users_created_at ON users (created_at);
    CREATE TABLE outbox_events (
        id uuid PRIMARY KEY, aggregate_type varchar(255) NOT NULL, aggregate_id varchar(255) NOT NULL,
        event_type varchar(255) NOT NULL, event_data jsonb NOT NULL, status varchar(50) NOT NULL DEFAULT 'NEW'
            CHECK (status IN ('NEW', 'PROCESSING', 'SENT', 'FAILED')),
        topic varchar(255) NOT NULL, partition_key varchar(255), created_at timestamptz NOT NULL DEFAULT now(),
        processed_at timestamptz, retry_count int DEFAULT 0, max_retries int DEFAULT 3, error_message text);
    CREATE INDEX idx_outbox_events_new ON outbox_events (status, created_at) WHERE status = 'NEW'";

/// A schema as its users see it.
const SCHEMA: &str = "SELECT coalesce(string_agg(line, E'\\n' ORDER BY line), '') FROM (
        SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) AS line
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal) AS lines";

/// The reference server.
struct Server(Client);

impl Server {
    async fn new(world: &World) -> Self {
        Self(stranger(&world.url).await)
    }

    /// `POST /api/users`: the user and its event in one transaction.
    async fn create(&mut self, email: &str) -> Result<(Uuid, Uuid), tokio_postgres::Error> {
        let (user, event) = (Uuid::now_v7(), Uuid::now_v7());
        let transaction = self.0.transaction().await?;
        let insert = "INSERT INTO users (id, email, name, created_at, updated_at) VALUES ($1, $2, $3, now(), now())";
        transaction
            .execute(insert, &[&user, &email, &"Name"])
            .await?;
        Self::event(&transaction, user, event, "user.created").await?;
        transaction.commit().await?;
        Ok((user, event))
    }

    /// `PUT /api/users/{id}`.
    async fn update(&mut self, user: Uuid, name: &str) -> Uuid {
        let event = Uuid::now_v7();
        let transaction = self.0.transaction().await.expect("begun");
        let update = "UPDATE users SET name = $2, updated_at = now() WHERE id = $1";
        transaction
            .execute(update, &[&user, &name])
            .await
            .expect("updated");
        let written = Self::event(&transaction, user, event, "user.updated").await;
        written.expect("written");
        transaction.commit().await.expect("committed");
        event
    }

    async fn event(
        transaction: &tokio_postgres::Transaction<'_>,
        user: Uuid,
        event: Uuid,
        kind: &str,
    ) -> Result<(), tokio_postgres::Error> {
        let insert = "INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, status,
            topic, partition_key, created_at, retry_count, max_retries)
            VALUES ($1, 'user', $2, $3, '{\"user_id\": \"x\"}', 'NEW', 'user-events', $2, clock_timestamp(), 0, 3)";
        let user = user.to_string();
        transaction
            .execute(insert, &[&event, &user, &kind])
            .await
            .map(drop)
    }
}

/// Published events, and how often each was sent.
type Sent = Arc<Mutex<BTreeMap<Uuid, u32>>>;

async fn publish(sent: &Sent, id: Uuid) {
    *sent.lock().await.entry(id).or_default() += 1;
}

/// The reference relay.
struct Relay(Client);

impl Relay {
    async fn new(world: &World) -> Self {
        Self(stranger(&world.url).await)
    }

    /// The events that a poll finds.
    async fn new_events(&self) -> Vec<Uuid> {
        let select = "SELECT id, aggregate_type, aggregate_id, event_type, event_data, status, topic, partition_key,
            created_at, processed_at, retry_count, max_retries, error_message
            FROM outbox_events WHERE status = 'NEW' ORDER BY created_at ASC LIMIT 100";
        let rows = self.0.query(select, &[]).await.expect("polled");
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn claim(&self, id: Uuid) -> bool {
        let claim = "UPDATE outbox_events SET status = 'PROCESSING', processed_at = now()
            WHERE id = $1 AND status = 'NEW'";
        self.0.execute(claim, &[&id]).await.expect("claimed") == 1
    }

    async fn mark_sent(&self, id: Uuid) {
        let update = "UPDATE outbox_events SET status = 'SENT', processed_at = now() WHERE id = $1";
        self.0.execute(update, &[&id]).await.expect("marked");
    }

    async fn mark_failed(&self, id: Uuid) {
        let update = "UPDATE outbox_events SET status = 'FAILED', retry_count = retry_count + 1, error_message = $2
            WHERE id = $1";
        self.0
            .execute(update, &[&id, &"refused"])
            .await
            .expect("marked");
    }

    /// One poll.
    async fn poll(&self, sent: &Sent) {
        for id in self.new_events().await {
            if self.claim(id).await {
                publish(sent, id).await;
                self.mark_sent(id).await;
            }
        }
    }

    async fn status(&self, id: Uuid) -> (String, i32, i32, Option<String>) {
        let select = "SELECT status, retry_count, max_retries, error_message FROM outbox_events WHERE id = $1";
        let row = self.0.query_one(select, &[&id]).await.expect("found");
        (row.get(0), row.get(1), row.get(2), row.get(3))
    }
}

/// One turn of our relay, if it gets the lease.
async fn turn(database: &Database, holder: Uuid, sent: &Sent) -> bool {
    let outbox = &database.outbox;
    if !outbox.lease(holder, 10).await.expect("asked") {
        return false;
    }
    let position = outbox.position().await.expect("known");
    let events = outbox.after(position, 50).await.expect("read");
    for event in &events {
        publish(sent, event.event.id).await;
    }
    if let Some(last) = events.last() {
        outbox.sent(last.seq).await.expect("noted");
    }
    outbox.release(holder).await.expect("released");
    !events.is_empty()
}

async fn unsent_events_and_users_of_the_reference_are_adopted(world: World) {
    let client = stranger(&world.url).await;
    sql(&client, TABLES).await;
    sql(
        &client,
        "INSERT INTO users (email, name) VALUES ('Ann@Example.org', 'Ann'), ('no address', 'Bob');
        INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, status, topic)
        SELECT gen_random_uuid(), 'user', state, 'user.created', '{}', state, 'user-events'
        FROM unnest(ARRAY['NEW', 'PROCESSING', 'SENT', 'FAILED']) AS state",
    )
    .await;
    let database = world.database().await;
    let mut users = database.users.list(None, 10).await.expect("listed");
    users.sort_by(|one, two| one.name.cmp(&two.name));
    assert_eq!((&*users[0].email, users[0].version), ("ann@example.org", 1));
    assert_eq!(users[1].email, "no address");
    let events = database.outbox.after(0, 10).await.expect("read");
    let mut kept: Vec<_> = events
        .into_iter()
        .map(|event| event.event.aggregate_id)
        .collect();
    kept.sort();
    assert_eq!(kept, ["FAILED", "NEW", "PROCESSING"], "unsent events");
    let listed = database.outbox.list(&Filter::default(), 10).await;
    assert_eq!(listed.expect("listed").len(), 3);
}

async fn the_reference_server_continues_beside_ours(world: World) {
    let client = stranger(&world.url).await;
    sql(&client, TABLES).await;
    let mut server = Server::new(&world).await;
    let (ann, first) = server.create("ann@example.org").await.expect("before");
    let database = world.database().await;
    let (bob, second) = server.create("Bob@Example.org").await.expect("beside ours");
    let third = server.update(ann, "Anna").await;
    let ids: Vec<Uuid> = database
        .outbox
        .after(0, 10)
        .await
        .expect("read")
        .into_iter()
        .map(|event| event.event.id)
        .collect();
    assert_eq!(ids, [first, second, third]);
    let found = database
        .users
        .find(ann)
        .await
        .expect("read")
        .expect("found");
    assert_eq!(
        (&*found.name, found.version),
        ("Anna", 2),
        "a change has a version"
    );
    let found = database
        .users
        .find(bob)
        .await
        .expect("read")
        .expect("found");
    assert_eq!(found.email, "bob@example.org");
    // An address is one user's, whichever server is asked, in whatever case.
    let same = super::users::user("bob");
    let event = super::users::event(same.id, "user.created");
    let created = database.users.create(same, event, None).await;
    assert_eq!(created.expect("asked"), Created::EmailTaken);
    let carl = create(&database, "carl").await;
    let error = server.create("CARL@example.org").await.expect_err("taken");
    assert!(
        error
            .as_db_error()
            .is_some_and(|error| error.constraint() == Some("users_email_key")),
        "{error}"
    );
    server.update(carl.id, "Carlo").await;
    // Values that its column refuses are refused.
    for wrong in [
        "INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, topic)
            VALUES (gen_random_uuid(), 'a', 'b', 'c', 'no json', 't')",
        "INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, topic, status)
            VALUES (gen_random_uuid(), 'a', 'b', 'c', '{}', 't', 'OTHER')",
    ] {
        client.batch_execute(wrong).await.expect_err(wrong);
    }
}

async fn relays_of_both_kinds_send_each_event_once(world: World) {
    sql(&stranger(&world.url).await, TABLES).await;
    let database = world.database().await;
    let sent = Sent::default();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..2 {
        let mut server = Server::new(&world).await;
        let database = database.clone();
        tasks.spawn(async move {
            for round in 0..60 {
                let name = format!("{number}-{round}");
                match round % 2 {
                    0 => drop(
                        server
                            .create(&format!("{name}@example.org"))
                            .await
                            .expect("created"),
                    ),
                    _ => drop(create(&database, &name).await),
                }
            }
        });
    }
    let mut relays = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (relay, published) = (Relay::new(&world).await, sent.clone());
        relays.spawn(async move {
            loop {
                relay.poll(&published).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let (database, sent) = (database.clone(), sent.clone());
        relays.spawn(async move {
            let holder = Uuid::now_v7();
            loop {
                turn(&database, holder, &sent).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    tasks.join_all().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while sent.lock().await.len() < 120 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} of 120",
            sent.lock().await.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    relays.shutdown().await;
    let sent = sent.lock().await;
    let twice = sent.values().filter(|count| **count > 1).count();
    assert_eq!((sent.len(), twice), (120, 0));
    let backlog = database.outbox.backlog().await.expect("counted");
    assert_eq!((backlog.new, backlog.failed), (0, 0));
}

async fn events_being_sent_at_the_change_are_left_to_their_relay(world: World) {
    sql(&stranger(&world.url).await, TABLES).await;
    let (mut server, relay) = (Server::new(&world).await, Relay::new(&world).await);
    let (sent, holder) = (Sent::default(), Uuid::now_v7());
    let (_, first) = server.create("ann@example.org").await.expect("created");
    assert!(relay.claim(first).await);
    let database = world.database().await;
    assert!(
        !turn(&database, holder, &sent).await,
        "the reference relay has one"
    );
    relay.mark_sent(first).await;
    assert!(!turn(&database, holder, &sent).await, "that one is sent");
    // Our relay sends an event that it failed, and one that it lost after 30 s.
    let (_, second) = server.create("bob@example.org").await.expect("created");
    assert!(relay.claim(second).await);
    relay.mark_failed(second).await;
    assert_eq!(
        relay.status(second).await,
        ("FAILED".to_owned(), 1, 3, Some("refused".to_owned()))
    );
    assert!(turn(&database, holder, &sent).await);
    assert_eq!(relay.status(second).await.0, "SENT");
    let (_, third) = server.create("carl@example.org").await.expect("created");
    assert!(relay.claim(third).await);
    assert!(!turn(&database, holder, &sent).await);
    sql(
        &server.0,
        "UPDATE outbox_relay SET held_until = now() - interval '1 second'",
    )
    .await;
    assert!(turn(&database, holder, &sent).await);
    assert!(!relay.claim(third).await, "sent by now");
    // While ours holds the lease, no other relay gets an event.
    let (_, fourth) = server.create("dan@example.org").await.expect("created");
    assert!(database.outbox.lease(holder, 10).await.expect("asked"));
    assert!(!relay.claim(fourth).await);
    database.outbox.release(holder).await.expect("released");
    assert!(relay.claim(fourth).await);
    // Its startup recovery resets old events to new.
    let stale = "UPDATE outbox_events SET status = 'NEW', processed_at = NULL
        WHERE status = 'PROCESSING' AND processed_at < now() + interval '1 second'";
    assert_eq!(relay.0.execute(stale, &[]).await.expect("recovered"), 1);
    relay.poll(&sent).await;
    assert_eq!(sent.lock().await.get(&fourth), Some(&1));
    assert!(!sent.lock().await.contains_key(&first));
}

async fn the_reference_joins_a_database_of_ours(world: World) {
    let database = world.database().await;
    create(&database, "ann").await;
    let (mut server, relay, sent) = (
        Server::new(&world).await,
        Relay::new(&world).await,
        Sent::default(),
    );
    server.create("bob@example.org").await.expect("created");
    relay.poll(&sent).await;
    assert_eq!(sent.lock().await.len(), 2);
    // Manually: sent again, and skipped.
    let id = *sent.lock().await.keys().next().expect("one");
    assert!(!turn(&database, Uuid::now_v7(), &sent).await);
    sql(
        &relay.0,
        &format!("UPDATE outbox_events SET status = 'NEW' WHERE id = '{id}'"),
    )
    .await;
    assert!(turn(&database, Uuid::now_v7(), &sent).await);
    assert_eq!(sent.lock().await[&id], 2);
    sql(
        &relay.0,
        &format!("UPDATE outbox_events SET status = 'NEW' WHERE id = '{id}'"),
    )
    .await;
    assert_eq!(
        relay.new_events().await,
        [id],
        "sent by ours, and new again"
    );
    sql(
        &relay.0,
        &format!("DELETE FROM outbox_events WHERE id = '{id}'"),
    )
    .await;
    assert_eq!(database.outbox.kept().await.expect("counted"), 1);
}

async fn reference_backfill_reads_events_sent_before_and_since(world: World) {
    sql(&stranger(&world.url).await, TABLES).await;
    let (mut server, relay, sent) = (
        Server::new(&world).await,
        Relay::new(&world).await,
        Sent::default(),
    );
    let (_, before) = server.create("ann@example.org").await.expect("created");
    relay.poll(&sent).await;
    let database = world.database().await;
    let (_, by_theirs) = server.create("bob@example.org").await.expect("created");
    relay.poll(&sent).await;
    let (_, by_ours) = server.create("carl@example.org").await.expect("created");
    assert!(turn(&database, Uuid::now_v7(), &sent).await);
    let select = "SELECT id, aggregate_type, aggregate_id, event_type, event_data, topic, partition_key, created_at,
        processed_at, retry_count, max_retries, error_message
        FROM outbox_events WHERE status = 'SENT' AND aggregate_type = 'user' ORDER BY created_at ASC LIMIT 100";
    let rows = relay.0.query(select, &[]).await.expect("read");
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, [before, by_theirs, by_ours]);
    assert_eq!(sent.lock().await.values().sum::<u32>(), 3);
    let purged = database.outbox.purge(jiff::Timestamp::MAX, 10).await;
    assert_eq!(purged.expect("purged"), 2, "sent events of both");
}

async fn down_restores_the_original_tables(world: World) {
    let client = stranger(&world.url).await;
    sql(&client, TABLES).await;
    let schema = async || -> String { client.query_one(SCHEMA, &[]).await.expect("read").get(0) };
    let found = schema().await;
    let (mut server, relay, sent) = (
        Server::new(&world).await,
        Relay::new(&world).await,
        Sent::default(),
    );
    let (ann, before) = server.create("Ann@Example.org").await.expect("created");
    relay.poll(&sent).await;
    let (_, waiting) = server.create("waiting@example.org").await.expect("created");
    let database = world.database().await;
    let (bob, _) = server.create("Bob@Example.org").await.expect("created");
    let carl = create(&database, "carl").await;
    assert!(turn(&database, Uuid::now_v7(), &sent).await, "sent by ours");
    let (_, theirs) = server.create("dan@example.org").await.expect("created");
    relay.poll(&sent).await;
    let (_, unsent) = server.create("eve@example.org").await.expect("created");
    assert_eq!(database.schema.down(true).await.expect("undone").len(), 6);
    assert_eq!(
        schema().await,
        found,
        "nothing of ours stays, nothing of theirs is missing"
    );
    for (id, status) in [
        (before, "SENT"),
        (waiting, "SENT"),
        (theirs, "SENT"),
        (unsent, "NEW"),
    ] {
        assert_eq!(relay.status(id).await.0, status);
    }
    let select = "SELECT email FROM users WHERE id = $1";
    for (id, email) in [
        (ann, "Ann@Example.org"),
        (bob, "Bob@Example.org"),
        (carl.id, "carl@example.org"),
    ] {
        let row = client.query_one(select, &[&id]).await.expect("kept");
        assert_eq!(row.get::<_, &str>(0), email);
    }
    // Everything works as before.
    server.create("fay@example.org").await.expect("created");
    relay.poll(&sent).await;
    let sent = sent.lock().await;
    assert_eq!((sent.len(), sent.values().max()), (7, Some(&1)));
}

async fn down_and_up_again_loses_no_event(world: World) {
    sql(&stranger(&world.url).await, TABLES).await;
    let (mut server, relay, sent) = (
        Server::new(&world).await,
        Relay::new(&world).await,
        Sent::default(),
    );
    for round in 0..3 {
        server
            .create(&format!("before-{round}@example.org"))
            .await
            .expect("created");
        relay.poll(&sent).await;
        server
            .create(&format!("waiting-{round}@example.org"))
            .await
            .expect("created");
        let database = world.database().await;
        create(&database, &format!("ours-{round}")).await;
        turn(&database, Uuid::now_v7(), &sent).await;
        create(&database, &format!("left-{round}")).await;
        let failed = Filter {
            status: Some(Status::Failed),
            ..Filter::default()
        };
        assert_eq!(database.outbox.list(&failed, 10).await.expect("listed"), []);
        // One step at a time is the same as all at once.
        match round {
            1 => {
                while !database
                    .schema
                    .down(false)
                    .await
                    .expect("undone")
                    .is_empty()
                {}
            }
            _ => drop(database.schema.down(true).await.expect("undone")),
        }
    }
    relay.poll(&sent).await;
    let sent = sent.lock().await;
    assert_eq!((sent.len(), sent.values().max()), (12, Some(&1)));
}

async fn addresses_that_differ_in_case_are_named(world: World) {
    let client = stranger(&world.url).await;
    sql(&client, TABLES).await;
    let insert = "INSERT INTO users (id, email, name) VALUES
        ('00000000-0000-4000-8000-000000000001', 'Ann@Example.org', 'Ann'),
        ('00000000-0000-4000-8000-000000000002', 'ann@example.org', 'Anna')";
    sql(&client, insert).await;
    let database = world.open().await;
    let error = database.schema.up().await.expect_err("two of one address");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let text = error.chain();
    for part in [
        "00000000-0000-4000-8000-000000000001 (Ann@Example.org)",
        "00000000-0000-4000-8000-000000000002 (ann@example.org)",
        "UPDATE users SET email",
    ] {
        assert!(text.contains(part), "{text}");
    }
    Server::new(&world)
        .await
        .create("bob@example.org")
        .await
        .expect("nothing was changed");
    sql(
        &client,
        "UPDATE users SET email = 'anna@example.org' WHERE name = 'Anna'",
    )
    .await;
    assert_eq!(database.schema.up().await.expect("migrated").len(), 6);
}
