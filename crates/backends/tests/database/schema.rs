//! The tables.

use towpath_core::ErrorKind;

use super::users::create;
use super::{World, cases};

cases![
    migrations_go_up_and_down,
    processes_that_migrate_at_once_take_turns,
    what_is_not_there_is_said_to_be_unavailable,
];

async fn migrations_go_up_and_down(world: World) {
    let database = world.open().await;
    let applied = || async {
        let all = database.schema.status().await.expect("known");
        all.iter()
            .filter(|state| state.applied_at.is_some())
            .count()
    };
    let all = database.schema.status().await.expect("known").len();
    assert!(all >= 2);
    assert_eq!(applied().await, 0);
    assert_eq!(database.schema.down().await.expect("nothing to do"), None);
    for number in 1..=all {
        let migration = database
            .schema
            .up()
            .await
            .expect("applied")
            .expect("one more");
        assert_eq!(migration.version as usize, number);
        assert_eq!(applied().await, number);
    }
    assert_eq!(database.schema.up().await.expect("nothing to do"), None);
    create(&database, "ann").await;
    for number in (1..=all).rev() {
        let migration = database
            .schema
            .down()
            .await
            .expect("undone")
            .expect("one more");
        assert_eq!(migration.version as usize, number);
    }
    assert_eq!(applied().await, 0);
    while database.schema.up().await.expect("applied").is_some() {}
    assert_eq!(
        database.users.list(None, 10).await.expect("listed"),
        [],
        "what they held is lost"
    );
}

async fn processes_that_migrate_at_once_take_turns(world: World) {
    let mut processes = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let database = world.open().await;
        processes.spawn(async move {
            let mut count = 0;
            while database.schema.up().await.expect("applied").is_some() {
                count += 1;
            }
            count
        });
    }
    let counts: Vec<usize> = processes.join_all().await;
    let all = world
        .open()
        .await
        .schema
        .status()
        .await
        .expect("known")
        .len();
    assert_eq!(counts.iter().sum::<usize>(), all, "each once");
}

async fn what_is_not_there_is_said_to_be_unavailable(world: World) {
    let database = world.open().await;
    let error = database.outbox.position().await.expect_err("no tables");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
