//! The loop over the real queue, with sinks and handlers that fail, hang and panic.

mod ahead;
mod each;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::{LeaseRequest, Settings, Settlement, Stats};
use towpath_core::{ConsumerId, Error, NewMessage, QueueName, SystemClock};

use super::*;
use crate::consumer::QueueConsumer;
use crate::supervisor::{OnFailure, Report, Stage, Supervisor};

/// Deliveries by outcome.
#[derive(Default)]
struct Counted(Mutex<HashMap<&'static str, u64>>);

impl Counters for Counted {
    fn ended(&self, outcome: &'static str, deliveries: u64) {
        *self.0.lock().unwrap().entry(outcome).or_default() += deliveries;
    }
}

/// A sink that runs the closure.
struct Script<F>(F);

#[async_trait::async_trait]
impl<F, R> Sink for Script<F>
where
    F: Fn(Vec<Delivery>) -> R + Send + Sync,
    R: Future<Output = Result<Vec<Outcome>>> + Send,
{
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        (self.0)(batch.to_vec()).await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.payload.to_vec()).unwrap()
}

fn done(batch: &[Delivery]) -> Vec<Outcome> {
    vec![Outcome::Done; batch.len()]
}

/// A queue in memory, and the parts of pumps on it.
struct Rig {
    backend: Backend,
    queue: Arc<dyn Queue>,
    name: QueueName,
    counted: Arc<Counted>,
    lease: Duration,
    alone: Alone,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!(
            "embedded:{}?durability=none&reserve=0",
            folder.path().display()
        );
        let backend = towpath_backends::open(&url, Arc::new(SystemClock::new()))
            .await
            .unwrap();
        let (queue, name) = (
            backend.require_queue("test").unwrap(),
            QueueName::new("jobs").unwrap(),
        );
        let retry = retry::Policy {
            attempts: 3,
            first: Duration::from_millis(1),
            max: Duration::from_millis(1),
        };
        let settings = Settings {
            retry,
            ..Settings::default()
        };
        queue.declare(&name, &settings).await.unwrap();
        Self {
            backend,
            queue,
            name,
            counted: Arc::default(),
            lease: Duration::from_secs(30),
            alone: Alone::default(),
            _folder: folder,
        }
    }

    async fn send(&self, messages: impl IntoIterator<Item = NewMessage>) {
        let messages = messages.into_iter().collect();
        for outcome in self.queue.enqueue(&self.name, messages).await.unwrap() {
            outcome.unwrap();
        }
    }

    fn pump(&self, consumer: &str, sink: impl Sink + 'static) -> Pump {
        self.pump_of(
            consumer,
            Work::Batches(Arc::new(sink), BatchSize::fixed(100)),
        )
    }

    /// A pump that hands messages to a handler one by one.
    fn messages(&self, consumer: &str, handler: impl Handler + 'static, in_flight: usize) -> Pump {
        let handling = Handling {
            handler: Arc::new(handler),
            in_flight,
            alone: self.alone.clone(),
        };
        self.pump_of(consumer, Work::Messages(handling))
    }

    fn pump_of(&self, consumer: &str, work: Work) -> Pump {
        Pump {
            consumer: Arc::new(QueueConsumer::new(
                Arc::clone(&self.queue),
                self.name.clone(),
                ConsumerId::new(consumer).unwrap(),
                self.lease,
            )),
            work,
            sink_name: "script",
            retry: retry::Policy::forever(Duration::ZERO, Duration::ZERO),
            pause: Duration::ZERO,
            metrics: PumpMetrics::new(
                Arc::clone(&self.counted) as Arc<dyn Counters>,
                "jobs",
                Arc::new(SystemClock::new()),
            ),
            condition: Box::new(|_, _| {}),
        }
    }

    async fn stats(&self) -> Stats {
        self.queue.stats(&self.name).await.unwrap()
    }

    /// Runs the pumps until the queue's numbers are as expected, and returns their common counts.
    async fn run_until(
        &self,
        pumps: Vec<Pump>,
        what: impl Fn(&Stats) -> bool,
    ) -> HashMap<&'static str, u64> {
        let stop = Stop::when(CancellationToken::new());
        let watch = async {
            let deadline = Instant::now() + Duration::from_secs(30);
            while !what(&self.stats().await) {
                assert!(Instant::now() < deadline, "{:?}", self.stats().await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stop.token().cancel();
        };
        let running = futures_util::future::try_join_all(pumps.iter().map(|pump| pump.run(&stop)));
        let (_, ended) = tokio::join!(watch, running);
        ended.unwrap();
        stop.account.counts().into_iter().collect()
    }
}

fn set_batch(pump: &mut Pump, max: usize) {
    match &mut pump.work {
        Work::Batches(_, size) => *size = BatchSize::fixed(max),
        Work::Messages(handling) => handling.in_flight = max,
    }
}

fn messages(texts: &[&str]) -> Vec<NewMessage> {
    texts
        .iter()
        .map(|text| NewMessage::new((*text).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_sink_slower_than_the_lease_delivers_once() {
    let mut rig = Rig::new().await;
    rig.lease = Duration::from_millis(300);
    let deliveries = Arc::new(AtomicUsize::new(0));
    let slow = || {
        let deliveries = Arc::clone(&deliveries);
        rig.pump(
            if Arc::strong_count(&deliveries) == 2 {
                "one"
            } else {
                "other"
            },
            Script(move |batch: Vec<Delivery>| {
                deliveries.fetch_add(batch.len(), Ordering::SeqCst);
                async move {
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    Ok(done(&batch))
                }
            }),
        )
    };
    let pumps = vec![slow(), slow()];
    rig.send(messages(&["slow"])).await;
    let counts = rig.run_until(pumps, |stats| stats.acked == 1).await;
    assert_eq!(deliveries.load(Ordering::SeqCst), 1);
    assert_eq!(counts["acked"], 1);
    assert!(!counts.contains_key("lost leases"), "{counts:?}");
}

#[tokio::test]
async fn an_outcome_after_the_lease_was_lost_is_discarded() {
    let mut rig = Rig::new().await;
    rig.lease = Duration::from_millis(300);
    rig.send(messages(&["contested"])).await;
    let (queue, name) = (Arc::clone(&rig.queue), rig.name.clone());
    let taken = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&taken);
    let sink = Script(move |batch: Vec<Delivery>| {
        let (queue, queue_name, slot) = (Arc::clone(&queue), name.clone(), Arc::clone(&slot));
        async move {
            // Taken back and given to another, while this one works on.
            queue.disconnect(&ConsumerId::new("slow").unwrap()).await?;
            let request = LeaseRequest {
                queue: queue_name,
                consumer: ConsumerId::new("quick").unwrap(),
                max: 1,
                in_flight: 1,
                lease: Duration::from_secs(60),
                wait: Duration::from_secs(5),
            };
            let delivery = queue.lease(request).await?.remove(0);
            tokio::time::sleep(Duration::from_millis(400)).await;
            *slot.lock().unwrap() = Some(delivery);
            Ok(done(&batch))
        }
    });
    let pump = rig.pump("slow", sink);
    let stop = Stop::when(CancellationToken::new());
    let watch = async {
        while !stop.account.counts().contains_key("lost leases") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.token().cancel();
    };
    let (_, ended) = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(watch, pump.run(&stop))
    })
    .await
    .unwrap();
    ended.unwrap();
    assert_eq!((rig.stats().await.acked, rig.stats().await.leased), (0, 1));
    assert!(!stop.account.counts().contains_key("acked"));
    assert_eq!(rig.counted.0.lock().unwrap().get("lost"), Some(&1));
    // The one who holds it decides.
    let delivery = taken.lock().unwrap().take().unwrap();
    assert_eq!(delivery.attempt, 2);
    let disposition = Disposition::Ack;
    let settlement = Settlement {
        receipt: delivery.receipt,
        disposition,
    };
    rig.queue
        .settle(vec![settlement])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(rig.stats().await.acked, 1);
}

#[tokio::test]
async fn a_message_that_makes_the_sink_panic_dies_alone() {
    let rig = Rig::new().await;
    let written = Arc::new(Mutex::new(Vec::new()));
    let page = Arc::clone(&written);
    let sink = Script(move |batch: Vec<Delivery>| {
        let page = Arc::clone(&page);
        async move {
            assert!(
                !batch.iter().any(|delivery| text(delivery) == "poison"),
                "cannot bear it"
            );
            page.lock().unwrap().extend(batch.iter().map(text));
            Ok(done(&batch))
        }
    });
    rig.send(messages(&["one", "poison", "two", "three"])).await;
    let pump = rig.pump("one", sink);
    rig.run_until(vec![pump], |stats| stats.acked == 3 && stats.dead == 1)
        .await;
    assert_eq!(*written.lock().unwrap(), ["one", "two", "three"]);
    let dead = rig
        .queue
        .dead_letters(&rig.name, None, 10)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(dead.message.payload, "poison");
    assert_eq!(dead.reason, "the sink panicked: cannot bear it");
    assert_eq!(dead.attempts, 3);
    assert_eq!(rig.stats().await.retried, 2);
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_own_end() {
    let rig = Rig::new().await;
    let sink = Script(|batch: Vec<Delivery>| async move {
        let end = |delivery: &Delivery| match (text(delivery).as_str(), delivery.attempt) {
            ("bad", _) => Outcome::Reject {
                reason: "wrong".to_owned(),
            },
            ("later", 1) => Outcome::Retry {
                after: None,
                error: "not yet".to_owned(),
            },
            _ => Outcome::Done,
        };
        // The last one gets no outcome the first time.
        let said = if batch.len() == 5 { 4 } else { batch.len() };
        Ok(batch.iter().take(said).map(end).collect())
    });
    rig.send(messages(&["one", "bad", "two", "later", "silent"]))
        .await;
    let pump = rig.pump("one", sink);
    let counts = rig
        .run_until(vec![pump], |stats| stats.acked == 4 && stats.dead == 1)
        .await;
    assert_eq!((counts["dead letters"], counts["retried"]), (1, 2));
    let dead = rig.queue.dead_letters(&rig.name, None, 10).await.unwrap();
    assert_eq!((dead[0].reason.as_str(), dead[0].attempts), ("wrong", 1));
}

#[tokio::test]
async fn a_failing_sink_charges_no_message_and_is_reported_until_it_works() {
    let rig = Rig::new().await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&attempts);
    let sink = Script(move |batch: Vec<Delivery>| {
        let mut seen = seen.lock().unwrap();
        seen.push(batch[0].attempt);
        let broken = seen.len() < 6;
        async move {
            if broken {
                Err(Error::unavailable("the disk is full"))
            } else {
                Ok(done(&batch))
            }
        }
    });
    rig.send(messages(&["one"])).await;
    let said = Arc::new(Mutex::new(Vec::new()));
    let mut pump = rig.pump("one", sink);
    let condition = Arc::clone(&said);
    pump.condition = Box::new(move |_, problem| condition.lock().unwrap().push(problem));
    rig.run_until(vec![pump], |stats| stats.acked == 1).await;
    // More often than the queue has attempts.
    assert_eq!(*attempts.lock().unwrap(), [1; 6]);
    let said = said.lock().unwrap();
    assert_eq!(said.len(), 6);
    assert!(
        said[..5]
            .iter()
            .all(|problem| problem.as_deref() == Some("the disk is full"))
    );
    assert_eq!(said[5], None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_consumers_keep_the_order_of_a_key() {
    let rig = Rig::new().await;
    let (written, busy) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(Mutex::new(Vec::new())),
    );
    let pumps = ["one", "two", "three", "four"].map(|consumer| {
        let (written, busy) = (Arc::clone(&written), Arc::clone(&busy));
        let mut pump = rig.pump(
            consumer,
            Script(move |batch: Vec<Delivery>| {
                let (written, busy) = (Arc::clone(&written), Arc::clone(&busy));
                async move {
                    let keys: Vec<String> = batch
                        .iter()
                        .filter_map(|delivery| delivery.message.key.clone())
                        .collect();
                    for key in &keys {
                        let mut busy = busy.lock().unwrap();
                        assert!(!busy.contains(key), "{key} is in two hands");
                        busy.push(key.clone());
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    busy.lock().unwrap().retain(|key| !keys.contains(key));
                    // Every fifth fails the first time, and the messages behind it wait.
                    let end = |delivery: &Delivery| {
                        if delivery.attempt == 1 && text(delivery).ends_with('5') {
                            return failed("not yet".to_owned());
                        }
                        written.lock().unwrap().push(text(delivery));
                        Outcome::Done
                    };
                    Ok(batch.iter().map(end).collect())
                }
            }),
        );
        set_batch(&mut pump, 7);
        pump
    });
    let keyed = (0..200).map(|number| {
        let mut message = NewMessage::new(format!("k{}-{number:03}", number % 5));
        message.key = Some(format!("k{}", number % 5));
        message
    });
    rig.send(keyed).await;
    rig.run_until(pumps.into(), |stats| stats.acked == 200)
        .await;
    let written = written.lock().unwrap().clone();
    for key in 0..5 {
        let mine: Vec<&String> = written
            .iter()
            .filter(|text| text.starts_with(&format!("k{key}-")))
            .collect();
        assert_eq!(mine.len(), 40);
        assert!(mine.is_sorted(), "{mine:?}");
    }
    assert_eq!(rig.stats().await.dead, 0);
}

#[tokio::test]
async fn batches_grow_with_the_backlog_up_to_a_bound_of_bytes() {
    for (bytes, longest) in [(10, 1_600), (10_000, 419)] {
        let rig = Rig::new().await;
        for _ in 0..10 {
            rig.send((0..500).map(|_| NewMessage::new(vec![b'x'; bytes])))
                .await;
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lengths = Arc::clone(&seen);
        let sink = Script(move |batch: Vec<Delivery>| {
            lengths.lock().unwrap().push(batch.len());
            async move { Ok(done(&batch)) }
        });
        let size = BatchSize::growing(50, 1_600);
        let pump = rig.pump_of("one", Work::Batches(Arc::new(sink), size));
        rig.run_until(vec![pump], |stats| stats.acked == 5_000)
            .await;
        let seen = seen.lock().unwrap().clone();
        assert_eq!(seen[..4], [50, 100, 200, 400], "{seen:?}");
        assert_eq!(seen.iter().max(), Some(&longest), "{seen:?}");
        assert_eq!(seen.iter().sum::<usize>(), 5_000);
    }
}

#[tokio::test]
async fn a_batch_of_one_is_one_in_order() {
    let rig = Rig::new().await;
    let written = Arc::new(Mutex::new(Vec::new()));
    let page = Arc::clone(&written);
    let mut pump = rig.pump(
        "one",
        Script(move |batch: Vec<Delivery>| {
            page.lock()
                .unwrap()
                .push(batch.iter().map(text).collect::<Vec<_>>());
            async move { Ok(done(&batch)) }
        }),
    );
    set_batch(&mut pump, 1);
    rig.send(messages(&["one", "two", "three"])).await;
    rig.run_until(vec![pump], |stats| stats.acked == 3).await;
    assert_eq!(*written.lock().unwrap(), [["one"], ["two"], ["three"]]);
}

/// Stops the process while the sink is at work.
async fn stop_during(rig: &Rig, sink: impl Sink + 'static, pause: Duration) -> (Report, Stats) {
    rig.send(messages(&["one", "two"])).await;
    let mut pump = rig.pump("one", sink);
    pump.pause = pause;
    let pump = Arc::new(pump);
    let mut supervisor = Supervisor::new(Duration::from_secs(3));
    supervisor.start("pump", Stage::Deliver, OnFailure::Restart, move |stop| {
        let pump = Arc::clone(&pump);
        async move { pump.run(&stop).await }
    });
    let signal = async {
        while rig.stats().await.leased < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        "SIGTERM".to_owned()
    };
    let report = supervisor.run(signal, std::future::pending(), || {}).await;
    (report, rig.stats().await)
}

#[tokio::test]
async fn a_stop_releases_the_messages_of_a_hanging_sink_uncharged() {
    let rig = Rig::new().await;
    let sink = Script(|_: Vec<Delivery>| std::future::pending());
    let (report, stats) = stop_during(&rig, sink, Duration::ZERO).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(report.drained_in < Duration::from_secs(3), "{report:?}");
    assert_eq!(report.tasks[0].counts["released"], 2);
    assert_eq!((stats.ready, stats.leased), (2, 0));
    let waiting = rig.queue.peek(&rig.name, 10).await.unwrap();
    assert!(
        waiting.iter().all(|peeked| peeked.attempts == 0),
        "{waiting:?}"
    );
    rig.backend.lifecycle.close().await.unwrap();
}

#[tokio::test]
async fn a_stop_lets_a_slow_sink_finish() {
    let rig = Rig::new().await;
    let sink = Script(|batch: Vec<Delivery>| async move {
        tokio::time::sleep(Duration::from_millis(600)).await;
        Ok(done(&batch))
    });
    let (report, stats) = stop_during(&rig, sink, Duration::ZERO).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.tasks[0].counts["acked"], stats.acked), (2, 2));
}

#[tokio::test]
async fn a_stop_ends_a_pause_at_once() {
    let rig = Rig::new().await;
    let sink = Script(|batch: Vec<Delivery>| async move { Ok(done(&batch)) });
    let (report, stats) = stop_during(&rig, sink, Duration::from_secs(3600)).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(report.drained_in < Duration::from_secs(1), "{report:?}");
    assert_eq!((stats.ready, stats.acked), (2, 0));
}

#[tokio::test]
async fn consumers_without_work_stop_cleanly_although_the_stop_is_nearly_over() {
    let rig = Rig::new().await;
    let mut supervisor = Supervisor::new(Duration::from_secs(3));
    supervisor.start(
        "api",
        Stage::Accept,
        OnFailure::Restart,
        |stop| async move {
            stop.nearly_over(GIVE_BACK / 2).await;
            Ok(())
        },
    );
    for number in 0..16 {
        let sink = Script(|batch: Vec<Delivery>| async move { Ok(done(&batch)) });
        let pump = Arc::new(rig.pump(&number.to_string(), sink));
        supervisor.start("pump", Stage::Deliver, OnFailure::Restart, move |stop| {
            let pump = Arc::clone(&pump);
            async move { pump.run(&stop).await }
        });
    }
    let signal = std::future::ready("SIGTERM".to_owned());
    let report = supervisor.run(signal, std::future::pending(), || {}).await;
    assert!(report.is_clean(), "{report:?}");
}
