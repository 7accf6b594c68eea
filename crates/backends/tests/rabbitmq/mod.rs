//! RabbitMQ's promises beyond the ports: classic queues of others, broken connections, a node that dies.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::{Channel, Connection, ConnectionProperties};
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};
use towpath_core::{ConsumerId, Delivery, NewMessage, QueueName, SystemClock};
use towpath_testkit::Own;

/// Declares the trials by function name.
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), || Box::pin($name()))),*]
    };
}

mod adopted;
mod batching;
mod cluster;
mod discards;
mod faults;
mod redeclare;

pub(crate) fn promises() -> Vec<Own> {
    [
        adopted::promises(),
        batching::promises(),
        cluster::promises(),
        redeclare::promises(),
        discards::promises(),
        faults::promises(),
    ]
    .concat()
}

/// Deletes every queue and exchange of the URL's prefix.
pub(crate) fn lose(url: &str) {
    let (_, prefix) = url
        .split_once("prefix=")
        .expect("the suite's URLs have one");
    let of_prefix = format!("string:prefix(element(4, Name), <<\"{prefix}\">>) =/= nomatch");
    let expression = format!(
        "[rabbit_amqqueue:delete(Q, false, false, <<\"test\">>) || Q <- rabbit_amqqueue:list(<<\"/\">>), \
         Name <- [amqqueue:get_name(Q)], {of_prefix}], \
         [rabbit_exchange:delete(Name, false, <<\"test\">>) || E <- rabbit_exchange:list(<<\"/\">>), \
         Name <- [element(2, E)], {of_prefix}]."
    );
    towpath_testkit::servers::rabbitmq::shared().control(&["eval", &expression]);
}

async fn open(url: &str) -> Backend {
    towpath_backends::open(url, Arc::new(SystemClock::new()))
        .await
        .unwrap_or_else(|error| panic!("opening {url}: {error:?}"))
}

fn queue_of(backend: &Backend) -> Arc<dyn Queue> {
    backend
        .require_queue("the test")
        .expect("rabbitmq has queues")
}

fn messages() -> QueueName {
    QueueName::new("messages").expect("a valid name")
}

/// A prefix that no other test has.
fn prefix() -> String {
    format!("{}:", towpath_core::MessageId::new())
}

/// A bare client.
async fn bare(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await;
    let connection = connection.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

async fn try_lease(
    queue: &Arc<dyn Queue>,
    who: &str,
    wait: Duration,
) -> towpath_core::Result<Vec<Delivery>> {
    let request = LeaseRequest {
        queue: messages(),
        consumer: ConsumerId::new(who).expect("a valid name"),
        max: 100,
        in_flight: 100,
        lease: Duration::from_secs(600),
        wait,
    };
    queue.lease(request).await
}

async fn lease(queue: &Arc<dyn Queue>) -> Vec<Delivery> {
    try_lease(queue, "one", Duration::from_secs(10))
        .await
        .expect("lease")
}

async fn settle(queue: &Arc<dyn Queue>, delivery: &Delivery, disposition: Disposition) {
    let receipt = delivery.receipt.clone();
    let outcomes = queue
        .settle(vec![Settlement {
            receipt,
            disposition,
        }])
        .await;
    for outcome in outcomes.expect("settle") {
        outcome.expect("settled");
    }
}

/// Waits for a condition with a deadline.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited 30 s for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
