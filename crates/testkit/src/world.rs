//! A fresh backend for one case, and the helpers of the cases.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::backend::{Backend, Capability, Descriptor};
use towpath_core::port::queue::{Disposition, LeaseRequest, Settings, Settlement, Stats};
use towpath_core::port::{Queue, Stream};
use towpath_core::{ConsumerId, Delivery, ErrorKind, MessageId, NewMessage, QueueName, retry};

/// A future that opens a backend.
pub(crate) type Opening = Pin<Box<dyn Future<Output = towpath_core::Result<Backend>> + Send>>;

/// A future that destroys everything declared.
pub type Losing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One row: a backend under test.
pub struct Subject {
    /// Prefix of its trials.
    pub name: &'static str,
    /// Its descriptor.
    pub descriptor: &'static Descriptor,
    /// Why its cases cannot run here, for instance "no server at 127.0.0.1:6379"; asked once.
    pub missing: fn() -> Option<String>,
    /// Opens it at this path; a fresh path is a fresh backend.
    ///
    /// A backend in a server uses the path as its namespace. It is opened again
    /// at the same path, after it was closed and by another process after a kill.
    pub open: fn(PathBuf) -> Opening,
    /// Destroys on the server, behind the backend's back and while its connection holds, everything that was declared
    /// at this path: queues with their messages, exchanges, bindings, topics. `None` without a server.
    pub lose: Option<fn(PathBuf) -> Losing>,
}

/// The fixture of a case.
pub struct World {
    folder: Arc<tempfile::TempDir>,
    subject: &'static Subject,
    wrap: fn(Backend) -> Backend,
    backend: Option<Backend>,
}

/// A short lease, long enough for a busy machine.
pub(crate) const LEASE: Duration = Duration::from_millis(300);

impl World {
    /// A fresh world of this subject.
    pub fn of(subject: &'static Subject) -> Self {
        Self::wrapped(subject, |backend| backend)
    }

    /// The same, with a port replaced whenever it is opened.
    pub(crate) fn wrapped(subject: &'static Subject, wrap: fn(Backend) -> Backend) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder can be made"));
        Self {
            folder,
            subject,
            wrap,
            backend: None,
        }
    }

    /// Whether the row offers this.
    pub(crate) fn offers(&self, capability: Capability) -> bool {
        self.subject.descriptor.offers(capability)
    }

    /// The backend, opened when it is not.
    pub(crate) async fn backend(&mut self) -> Backend {
        if self.backend.is_none() {
            let opened = (self.subject.open)(self.folder.path().to_owned()).await;
            let opened = opened.unwrap_or_else(|error| panic!("opening: {error:?}"));
            self.backend = Some((self.wrap)(opened));
        }
        self.backend.clone().expect("opened above")
    }

    /// The queue port.
    pub async fn queue(&mut self) -> Arc<dyn Queue> {
        let backend = self.backend().await;
        backend
            .require_queue("the suite")
            .expect("the row offers queues")
    }

    /// The stream port.
    pub(crate) async fn stream(&mut self) -> Arc<dyn Stream> {
        self.backend().await.stream.expect("the row offers streams")
    }

    /// Destroys on the server everything declared, while the backend is open.
    pub(crate) async fn lose(&self) {
        let lose = self
            .subject
            .lose
            .expect("cases that lose are for rows that can");
        lose(self.folder.path().to_owned()).await;
    }

    /// Closes and reopens it: everything acknowledged must be there.
    pub async fn reopen(&mut self) -> Arc<dyn Queue> {
        self.close().await;
        self.queue().await
    }

    /// Closes it; the next port that is asked for opens it again.
    pub(crate) async fn close(&mut self) {
        if let Some(backend) = self.backend.take() {
            backend
                .lifecycle
                .close()
                .await
                .unwrap_or_else(|error| panic!("closing: {error:?}"));
        }
    }
}

/// The queue that most cases use.
pub(crate) fn jobs() -> QueueName {
    name("jobs")
}

pub(crate) fn name(name: &str) -> QueueName {
    QueueName::new(name).expect("a valid name")
}

pub(crate) fn consumer(name: &str) -> ConsumerId {
    ConsumerId::new(name).expect("a valid name")
}

pub(crate) fn text(payload: &str) -> NewMessage {
    NewMessage::new(payload.to_owned())
}

/// Settings with `attempts` attempts, retried at once.
pub(crate) fn attempts(attempts: u32) -> Settings {
    Settings {
        retry: retry::Policy {
            attempts,
            ..retry::Policy::default()
        },
        ..Settings::default()
    }
}

/// Enqueues texts, each of which must be accepted.
pub(crate) async fn enqueue(queue: &Arc<dyn Queue>, payloads: &[&str]) -> Vec<MessageId> {
    enqueue_all(
        queue,
        payloads.iter().map(|payload| text(payload)).collect(),
    )
    .await
}

pub(crate) async fn enqueue_all(
    queue: &Arc<dyn Queue>,
    messages: Vec<NewMessage>,
) -> Vec<MessageId> {
    let outcomes = queue.enqueue(&jobs(), messages).await.expect("enqueue");
    outcomes
        .into_iter()
        .map(|outcome| outcome.expect("taken").id())
        .collect()
}

pub(crate) async fn lease_as(
    queue: &Arc<dyn Queue>,
    who: &str,
    max: usize,
    lease: Duration,
    wait: Duration,
) -> Vec<Delivery> {
    let request = LeaseRequest {
        queue: jobs(),
        consumer: consumer(who),
        max,
        in_flight: max,
        lease,
        wait,
    };
    queue.lease(request).await.expect("lease")
}

/// Leases for long enough to finish the case, and waits a little for the first.
pub(crate) async fn lease(queue: &Arc<dyn Queue>, max: usize) -> Vec<Delivery> {
    let (lease, wait) = (Duration::from_secs(30), Duration::from_secs(2));
    let mut deliveries = lease_as(queue, "one", max, lease, wait).await;
    if !deliveries.is_empty() && deliveries.len() < max {
        // A call that waits may return once the first is there.
        deliveries.extend(lease_now(queue, max - deliveries.len()).await);
    }
    deliveries
}

/// Leases everything that is ready now.
pub(crate) async fn lease_now(queue: &Arc<dyn Queue>, max: usize) -> Vec<Delivery> {
    lease_as(queue, "one", max, Duration::from_secs(30), Duration::ZERO).await
}

pub(crate) async fn settle(
    queue: &Arc<dyn Queue>,
    delivery: &Delivery,
    disposition: Disposition,
) -> towpath_core::Result<()> {
    let settlement = Settlement {
        receipt: delivery.receipt.clone(),
        disposition,
    };
    queue
        .settle(vec![settlement])
        .await
        .expect("settle")
        .pop()
        .expect("one outcome")
}

pub(crate) async fn ack(queue: &Arc<dyn Queue>, deliveries: &[Delivery]) {
    for delivery in deliveries {
        settle(queue, delivery, Disposition::Ack)
            .await
            .expect("ack");
    }
}

pub(crate) fn retry_now() -> Disposition {
    Disposition::Retry {
        after: Duration::ZERO,
        error: "no".to_owned(),
    }
}

pub(crate) fn payloads(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|one| String::from_utf8_lossy(&one.message.payload).into_owned())
        .collect()
}

pub(crate) async fn stats(queue: &Arc<dyn Queue>) -> Stats {
    queue.stats(&jobs()).await.expect("stats")
}

/// Holds at every quiet point.
pub(crate) async fn assert_balanced(queue: &Arc<dyn Queue>) {
    let stats = stats(queue).await;
    let there =
        stats.ready + stats.delayed + stats.leased + stats.dead + stats.acked + stats.dropped;
    assert_eq!(stats.enqueued, there, "{stats:?}");
}

pub(crate) fn assert_kind<T: std::fmt::Debug>(result: towpath_core::Result<T>, kind: ErrorKind) {
    match result {
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
        Ok(value) => panic!("expected {kind:?}, got {value:?}"),
    }
}

/// Waits for a condition with a deadline.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited 10 s for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
