//! Users.

use jiff::Timestamp;
use towpath_core::database::Database;
use towpath_core::port::outbox::NewEvent;
use towpath_core::port::users::{Change, Changed, Created, RequestKey, User};
use uuid::Uuid;

use super::{World, cases};

cases![
    created_users_are_found_and_listed_in_order,
    no_two_users_have_one_address,
    a_repeated_request_creates_nothing,
    requests_of_one_key_at_once_create_one_user,
    a_change_counts_the_version_and_minds_it,
    changes_at_once_lose_none,
    a_deleted_user_is_gone,
    a_refused_change_leaves_no_event,
];

pub(super) fn user(name: &str) -> User {
    let now = now();
    User {
        id: Uuid::now_v7(),
        email: format!("{name}@example.org"),
        name: name.to_owned(),
        created_at: now,
        updated_at: now,
        version: 1,
    }
}

/// Now, as precise as a database keeps it.
fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("in range")
}

pub(super) fn event(id: Uuid, kind: &str) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7(),
        aggregate_type: "user".to_owned(),
        aggregate_id: id.to_string(),
        event_type: kind.to_owned(),
        topic: "user-events".to_owned(),
        key: Some(id.to_string()),
        data: r#"{"ü":"\u0000 is not sent"}"#.to_owned(),
        created_at: now(),
        traceparent: None,
    }
}

pub(super) async fn create(database: &Database, name: &str) -> User {
    let user = user(name);
    let event = event(user.id, "user.created");
    let created = database.users.create(user.clone(), event, None).await;
    assert_eq!(created.expect("created"), Created::New);
    user
}

fn change(user: &User, name: &str, version: Option<u64>) -> Change {
    Change {
        id: user.id,
        email: user.email.clone(),
        name: name.to_owned(),
        updated_at: now(),
        version,
    }
}

async fn events(database: &Database) -> Vec<String> {
    let events = database.outbox.after(0, 100).await.expect("read");
    events
        .into_iter()
        .map(|event| event.event.event_type)
        .collect()
}

async fn created_users_are_found_and_listed_in_order(world: World) {
    let database = world.database().await;
    let mut all = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        all.push(create(&database, name).await);
    }
    all.sort_by_key(|user| user.id);
    for user in &all {
        assert_eq!(
            database.users.find(user.id).await.expect("found").as_ref(),
            Some(user)
        );
    }
    assert_eq!(
        database
            .users
            .find(Uuid::now_v7())
            .await
            .expect("looked for"),
        None
    );
    let first = database.users.list(None, 2).await.expect("listed");
    assert_eq!(first, all[..2]);
    let rest = database
        .users
        .list(Some(first[1].id), 10)
        .await
        .expect("listed");
    assert_eq!(rest, all[2..]);
    // Another process sees the same.
    assert_eq!(
        world
            .open()
            .await
            .users
            .list(None, 10)
            .await
            .expect("listed"),
        all
    );
}

async fn no_two_users_have_one_address(world: World) {
    let database = world.database().await;
    let ann = create(&database, "ann").await;
    let bob = create(&database, "bob").await;
    let again = User {
        id: Uuid::now_v7(),
        ..ann.clone()
    };
    let refused = database
        .users
        .create(again.clone(), event(again.id, "user.created"), None)
        .await;
    assert_eq!(refused.expect("answered"), Created::EmailTaken);
    let taken = Change {
        email: ann.email.clone(),
        ..change(&bob, "bob", None)
    };
    let refused = database
        .users
        .update(taken, event(bob.id, "user.updated"))
        .await;
    assert_eq!(refused.expect("answered"), Changed::EmailTaken);
    assert_eq!(database.users.find(bob.id).await.expect("found"), Some(bob));
}

async fn a_repeated_request_creates_nothing(world: World) {
    let database = world.database().await;
    let key = |digest: &str| {
        Some(RequestKey {
            key: "one".to_owned(),
            digest: digest.to_owned(),
        })
    };
    let ann = user("ann");
    let new = event(ann.id, "user.created");
    let first = database
        .users
        .create(ann.clone(), new.clone(), key("x"))
        .await;
    assert_eq!(first.expect("created"), Created::New);
    let again = User {
        id: Uuid::now_v7(),
        ..ann.clone()
    };
    let repeated = database
        .users
        .create(again.clone(), new.clone(), key("x"))
        .await;
    assert_eq!(repeated.expect("answered"), Created::Before(ann.clone()));
    let other = database.users.create(user("bob"), new, key("y")).await;
    assert_eq!(other.expect("answered"), Created::KeyTaken);
    assert_eq!(events(&database).await.len(), 1);
    // A key that is forgotten may name another request.
    assert_eq!(
        database
            .users
            .forget_requests(Timestamp::MAX, 10)
            .await
            .expect("forgotten"),
        1
    );
    let bob = user("bob");
    let new = event(bob.id, "user.created");
    assert_eq!(
        database
            .users
            .create(bob, new, key("y"))
            .await
            .expect("created"),
        Created::New
    );
}

async fn requests_of_one_key_at_once_create_one_user(world: World) {
    let database = world.database().await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let users = database.users.clone();
        requests.spawn(async move {
            let ann = user("ann");
            let key = RequestKey {
                key: "one".to_owned(),
                digest: "x".to_owned(),
            };
            let new = event(ann.id, "user.created");
            (
                ann.id,
                users.create(ann, new, Some(key)).await.expect("answered"),
            )
        });
    }
    let outcomes = requests.join_all().await;
    let made: Vec<Uuid> = outcomes
        .iter()
        .filter(|one| one.1 == Created::New)
        .map(|one| one.0)
        .collect();
    assert_eq!(made.len(), 1);
    let known = outcomes
        .iter()
        .filter(|one| matches!(&one.1, Created::Before(user) if user.id == made[0]));
    assert_eq!(known.count(), 15);
    assert_eq!(events(&database).await.len(), 1);
}

async fn a_change_counts_the_version_and_minds_it(world: World) {
    let database = world.database().await;
    let ann = create(&database, "ann").await;
    let update = |name: &'static str, version| {
        let (change, event) = (change(&ann, name, version), event(ann.id, "user.updated"));
        let users = database.users.clone();
        async move { users.update(change, event).await.expect("answered") }
    };
    let Changed::Done(anne) = update("Anne", Some(1)).await else {
        panic!("not done")
    };
    assert_eq!(
        (anne.version, &*anne.name, anne.created_at),
        (2, "Anne", ann.created_at)
    );
    assert_eq!(update("Anna", Some(1)).await, Changed::Version(2));
    let Changed::Done(anna) = update("Anna", None).await else {
        panic!("not done")
    };
    assert_eq!(anna.version, 3);
    assert_eq!(
        database.users.find(ann.id).await.expect("found"),
        Some(anna)
    );
    let missing = user("missing");
    let absent = database
        .users
        .update(
            change(&missing, "x", None),
            event(missing.id, "user.updated"),
        )
        .await;
    assert_eq!(absent.expect("answered"), Changed::Absent);
}

async fn changes_at_once_lose_none(world: World) {
    let database = world.database().await;
    let ann = create(&database, "ann").await;
    let mut changes = tokio::task::JoinSet::new();
    // More than there are connections.
    for number in 0..40 {
        let users = database.users.clone();
        let (change, event) = (
            change(&ann, &number.to_string(), None),
            event(ann.id, "user.updated"),
        );
        changes.spawn(async move { users.update(change, event).await.expect("answered") });
    }
    for outcome in changes.join_all().await {
        assert!(matches!(outcome, Changed::Done(_)), "{outcome:?}");
    }
    let now = database
        .users
        .find(ann.id)
        .await
        .expect("found")
        .expect("there");
    assert_eq!(now.version, 41);
    assert_eq!(events(&database).await.len(), 41);
}

async fn a_deleted_user_is_gone(world: World) {
    let database = world.database().await;
    let ann = create(&database, "ann").await;
    let delete = |version| {
        let users = database.users.clone();
        async move {
            users
                .delete(ann.id, version, event(ann.id, "user.deleted"))
                .await
                .expect("answered")
        }
    };
    assert_eq!(delete(Some(7)).await, Changed::Version(1));
    assert_eq!(delete(Some(1)).await, Changed::Done(ann.clone()));
    assert_eq!(delete(None).await, Changed::Absent);
    assert_eq!(events(&database).await, ["user.created", "user.deleted"]);
    create(&database, "ann").await;
}

async fn a_refused_change_leaves_no_event(world: World) {
    let database = world.database().await;
    let ann = create(&database, "ann").await;
    let bob = create(&database, "bob").await;
    let new = || event(ann.id, "user.refused");
    let again = User {
        id: Uuid::now_v7(),
        ..ann.clone()
    };
    database
        .users
        .create(again.clone(), new(), None)
        .await
        .expect("answered");
    let key = RequestKey {
        key: "k".to_owned(),
        digest: "d".to_owned(),
    };
    database
        .users
        .create(again, new(), Some(key.clone()))
        .await
        .expect("answered");
    let taken = Change {
        email: bob.email,
        ..change(&ann, "x", None)
    };
    database.users.update(taken, new()).await.expect("answered");
    database
        .users
        .update(change(&ann, "x", Some(9)), new())
        .await
        .expect("answered");
    database
        .users
        .delete(ann.id, Some(9), new())
        .await
        .expect("answered");
    assert_eq!(events(&database).await, ["user.created"; 2]);
    // A key whose request was refused is free.
    let carl = user("carl");
    let created = database
        .users
        .create(carl.clone(), event(carl.id, "user.created"), Some(key))
        .await;
    assert_eq!(created.expect("answered"), Created::New);
}
