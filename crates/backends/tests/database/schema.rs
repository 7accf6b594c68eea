//! The tables.

use towpath_core::ErrorKind;

use super::users::create;
use super::{World, cases};

cases![
    migrations_go_up_and_down,
    processes_that_migrate_at_once_take_turns,
    missing_tables_are_reported_as_unavailable,
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
    assert_eq!(
        database.schema.down(false).await.expect("nothing to do"),
        []
    );
    let made = database.schema.up().await.expect("applied");
    let versions: Vec<_> = made.iter().map(|one| one.version as usize).collect();
    assert_eq!(versions, (1..=all).collect::<Vec<_>>());
    assert_eq!(applied().await, all);
    assert_eq!(database.schema.up().await.expect("nothing to do"), []);
    create(&database, "ann").await;
    for number in (1..=all).rev() {
        let undone = database.schema.down(false).await.expect("undone");
        let versions: Vec<_> = undone.iter().map(|one| one.version as usize).collect();
        assert_eq!(versions, [number]);
        assert_eq!(applied().await, number - 1);
    }
    database.schema.up().await.expect("applied");
    assert_eq!(database.schema.down(true).await.expect("undone").len(), all);
    assert_eq!(applied().await, 0);
    database.schema.up().await.expect("applied");
    assert_eq!(
        database.users.list(None, 10).await.expect("listed"),
        [],
        "their rows are lost"
    );
}

async fn processes_that_migrate_at_once_take_turns(world: World) {
    let mut processes = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let database = world.open().await;
        processes.spawn(async move { database.schema.up().await.expect("applied").len() });
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

async fn missing_tables_are_reported_as_unavailable(world: World) {
    let database = world.open().await;
    let error = database.outbox.position().await.expect_err("no tables");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
