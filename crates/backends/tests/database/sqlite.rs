//! SQLite's own promises.

use towpath_core::port::outbox::NewEvent;

use super::users::event;
use super::{World, cases};

cases![a_log_that_grew_is_cut_back];

async fn a_log_that_grew_is_cut_back(world: World) {
    let database = world.database().await;
    let large = |_| NewEvent {
        data: "x".repeat(1 << 20),
        ..event(uuid::Uuid::now_v7(), "user.created")
    };
    let path = world.url.strip_prefix("sqlite:").expect("a file");
    let log = || {
        let log = std::fs::metadata(format!("{path}-wal")).expect("there");
        log.len() >> 20
    };
    let all = (0..32).map(large).collect();
    database.outbox.write(all).await.expect("written");
    assert!(log() >= 32, "{} MiB", log());
    // The log begins again with the next change.
    for _ in 0..2 {
        let one = vec![event(uuid::Uuid::now_v7(), "user.created")];
        database.outbox.write(one).await.expect("written");
    }
    assert!(log() <= 8, "{} MiB", log());
}
