//! Leasing the next batch beside the delivery of this one.

use super::*;

/// A pump whose batches have two messages and then more, so that it leases ahead.
fn growing(rig: &Rig, sink: impl Sink + 'static) -> Pump {
    rig.pump_of(
        "one",
        Work::Batches(Arc::new(sink), BatchSize::growing(2, 4)),
    )
}

/// Waits until this many messages are leased.
async fn leased(queue: &Arc<dyn Queue>, name: &QueueName, count: u64) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while queue.stats(name).await.unwrap().leased != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{count} messages were not leased within 10 s"));
}

/// A sink whose first delivery waits until the next batch of four is leased too, and then runs the closure.
fn first_waits<R>(
    rig: &Rig,
    batches: &Arc<Mutex<Vec<Vec<String>>>>,
    then: impl Fn(Vec<Delivery>) -> R + Send + Sync + Copy + 'static,
) -> impl Sink + 'static
where
    R: Future<Output = Result<Vec<Outcome>>> + Send,
{
    let (queue, name, batches) = (
        Arc::clone(&rig.queue),
        rig.name.clone(),
        Arc::clone(batches),
    );
    Script(move |batch: Vec<Delivery>| {
        let (queue, name) = (Arc::clone(&queue), name.clone());
        let is_first = {
            let mut batches = batches.lock().unwrap();
            batches.push(batch.iter().map(text).collect());
            batches.len() == 1
        };
        async move {
            if !is_first {
                return Ok(done(&batch));
            }
            leased(&queue, &name, 6).await;
            then(batch).await
        }
    })
}

const SIX: [&str; 6] = ["1", "2", "3", "4", "5", "6"];

#[tokio::test]
async fn the_next_batch_is_leased_during_a_delivery() {
    let rig = Rig::new().await;
    let batches = Arc::default();
    let sink = first_waits(&rig, &batches, |batch| async move { Ok(done(&batch)) });
    let pump = growing(&rig, sink);
    rig.send(messages(&SIX)).await;
    rig.run_until(vec![pump], |stats| stats.acked == 6).await;
    let batches = batches.lock().unwrap().clone();
    assert_eq!(batches, [vec!["1", "2"], vec!["3", "4", "5", "6"]]);
}

#[tokio::test]
async fn a_batch_leased_ahead_keeps_its_lease() {
    let mut rig = Rig::new().await;
    rig.lease = Duration::from_millis(300);
    let batches = Arc::default();
    let sink = first_waits(&rig, &batches, |batch| async move {
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        Ok(done(&batch))
    });
    let pump = growing(&rig, sink);
    rig.send(messages(&SIX)).await;
    let other = async {
        // Another consumer would get every message whose lease expires.
        leased(&rig.queue, &rig.name, 6).await;
        let request = LeaseRequest {
            queue: rig.name.clone(),
            consumer: ConsumerId::new("other").unwrap(),
            max: 10,
            in_flight: 10,
            lease: Duration::from_secs(30),
            wait: Duration::from_millis(900),
        };
        rig.queue.lease(request).await.unwrap()
    };
    let running = rig.run_until(vec![pump], |stats| stats.acked == 6);
    let (stolen, counts) = tokio::join!(other, running);
    assert!(stolen.is_empty(), "{stolen:?}");
    assert!(!counts.contains_key("lost leases"), "{counts:?}");
}

#[tokio::test]
async fn a_sink_that_fails_releases_the_batch_leased_ahead_uncharged() {
    let rig = Rig::new().await;
    let batches = Arc::default();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let sink = first_waits(&rig, &batches, |_| async {
        Err(Error::unavailable("the sink is down"))
    });
    let seen = Arc::clone(&attempts);
    let sink = Arc::new(sink);
    let counting = Script(move |batch: Vec<Delivery>| {
        let (sink, seen) = (Arc::clone(&sink), Arc::clone(&seen));
        async move {
            let of_batch = batch.iter().map(|one| one.attempt);
            seen.lock().unwrap().extend(of_batch);
            sink.deliver(&batch).await
        }
    });
    let pump = growing(&rig, counting);
    rig.send(messages(&SIX)).await;
    rig.run_until(vec![pump], |stats| stats.acked == 6).await;
    let attempts = attempts.lock().unwrap().clone();
    assert!(attempts.iter().all(|attempt| *attempt == 1), "{attempts:?}");
    let batches = batches.lock().unwrap().clone();
    // In order, and nothing but the batch that failed twice.
    let all = batches.concat();
    assert_eq!(all, ["1", "2", "1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn a_stop_releases_the_batch_leased_ahead_uncharged() {
    let rig = Rig::new().await;
    let batches = Arc::default();
    let sink = first_waits(&rig, &batches, |batch| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(done(&batch))
    });
    let pump = growing(&rig, sink);
    rig.send(messages(&SIX)).await;
    // The stop comes between the second lease and the end of the delivery.
    rig.run_until(vec![pump], |stats| stats.leased == 6).await;
    let stats = rig.stats().await;
    assert_eq!((stats.acked, stats.ready, stats.leased), (2, 4, 0));
    let waiting = rig.queue.peek(&rig.name, 10).await.unwrap();
    let attempts: Vec<u32> = waiting.iter().map(|peeked| peeked.attempts).collect();
    assert_eq!(attempts, [0; 4]);
}
