//! Clusters with dead nodes: queues that continue, and errors of those that do not.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use towpath_core::ErrorKind;
use towpath_core::port::queue::Settings;
use towpath_testkit::servers::rabbitmq::Server;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        a_cluster_of_three_continues_without_one_and_names_a_lost_majority,
        a_classic_queue_whose_node_restarts_is_consumed_again,
    ]
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("joined")
}

async fn send(queue: &Arc<dyn Queue>) -> towpath_core::Result<()> {
    let mut outcomes = queue
        .enqueue(&messages(), vec![NewMessage::new("x")])
        .await?;
    outcomes.remove(0).map(drop)
}

/// Receives and acks `count` messages.
async fn take(queue: &Arc<dyn Queue>, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut came = 0;
    while came < count {
        assert!(Instant::now() < deadline, "{came} of {count} came");
        let Ok(held) = try_lease(queue, "one", Duration::from_millis(500)).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        for one in held {
            settle(queue, &one, Disposition::Ack).await;
            came += 1;
        }
    }
}

async fn a_cluster_of_three_continues_without_one_and_names_a_lost_majority() {
    let [mut first, mut second, third] = blocking(Server::start_cluster).await;
    let url = format!("{},{},{}", first.url(), second.url(), third.url());
    let backend = open(&url).await;
    let queue = queue_of(&backend);
    queue
        .declare(&messages(), &Settings::default())
        .await
        .expect("declared");
    send(&queue).await.expect("taken by three");
    // The other nodes have the same queue, so nothing is stranded there and nothing is moved.
    assert_eq!(queue.collect(&messages()).await.expect("asked"), 0);
    assert!(queue.stranded(&messages()).await.expect("known").is_empty());
    take(&queue, 1).await;
    first = blocking(move || {
        first.kill();
        first
    })
    .await;
    until("two of three to take messages", || async {
        send(&queue).await.is_ok()
    })
    .await;
    take(&queue, 1).await;
    until("two of three to be well", || async {
        backend.lifecycle.health().await.is_ok()
    })
    .await;
    second = blocking(move || {
        second.kill();
        second
    })
    .await;
    until("the reason", || async {
        let refused = send(&queue).await.expect_err("one of three takes nothing");
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert_eq!(refused.retry_after(), None, "{}", refused.chain());
        refused.chain().contains("majority")
    })
    .await;
    let unwell = backend.lifecycle.health().await.expect_err("not well");
    assert!(unwell.chain().contains("majority"), "{}", unwell.chain());
    let (first, second) = blocking(move || {
        first.restart();
        second.restart();
        (first, second)
    })
    .await;
    until("messages to be taken again", || async {
        send(&queue).await.is_ok()
    })
    .await;
    until("it to be well again", || async {
        backend.lifecycle.health().await.is_ok()
    })
    .await;
    take(&queue, 1).await;
    drop((first, second, third));
}

async fn a_classic_queue_whose_node_restarts_is_consumed_again() {
    let [first, mut second] = blocking(Server::start_cluster).await;
    // It lives on the node where it is declared.
    let (connection, channel) = bare(&second.url()).await;
    let options = QueueDeclareOptions::durable();
    let declared = channel.queue_declare("messages".into(), options, FieldTable::default());
    declared.await.expect("declared");
    drop(connection);
    let backend = open(&first.url()).await;
    let queue = queue_of(&backend);
    queue
        .declare(&messages(), &Settings::default())
        .await
        .expect("adopted");
    send(&queue).await.expect("taken");
    take(&queue, 1).await;
    // A consumer stands while the node goes.
    drop(try_lease(&queue, "one", Duration::from_millis(100)).await);
    let second = blocking(move || {
        second.kill();
        second
    })
    .await;
    until("a refusal", || async { send(&queue).await.is_err() }).await;
    let second = blocking(move || {
        let mut second = second;
        second.restart();
        second
    })
    .await;
    until("messages to be taken again", || async {
        send(&queue).await.is_ok()
    })
    .await;
    take(&queue, 1).await;
    drop((first, second));
}
