//! Single messages: their order, charged attempts, and the effect of a destination's condition.

use std::sync::atomic::AtomicBool;

use towpath_core::port::sink::Cause;

use super::*;

/// A handler that runs the closure.
struct Each<F> {
    handle: F,
    destination: Option<Destination>,
}

#[async_trait::async_trait]
impl<F, R> Handler for Each<F>
where
    F: Fn(Delivery) -> R + Send + Sync,
    R: Future<Output = Outcome> + Send,
{
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        (self.handle)(delivery.clone()).await
    }

    fn destination(&self) -> Option<&Destination> {
        self.destination.as_ref()
    }
}

fn each<F>(handle: F) -> Each<F> {
    Each {
        handle,
        destination: None,
    }
}

type Seen = Arc<Mutex<Vec<Change>>>;

/// A handler with one destination, and the observed changes of its condition.
fn to_destination<F>(handle: F) -> (Each<F>, Seen) {
    let seen = Seen::default();
    let changes = Arc::clone(&seen);
    let observer: Observer = Arc::new(move |change| changes.lock().unwrap().push(change));
    let retry = retry::Policy::default();
    let clock = Arc::new(SystemClock::new());
    let destination = Destination::new("receiver", retry, PATIENCE, clock, observer);
    let each = Each {
        handle,
        destination: Some(destination),
    };
    (each, seen)
}

fn unavailable(cause: Cause, after: Option<Duration>) -> Outcome {
    Outcome::Unavailable {
        cause,
        after,
        error: "no".to_owned(),
    }
}

#[tokio::test]
async fn a_slow_message_holds_up_no_other_and_is_settled_last() {
    let rig = Rig::new().await;
    let handler = each(|delivery: Delivery| async move {
        if text(&delivery) == "slow" {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        Outcome::Done
    });
    let quick: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    rig.send(messages(&["slow"])).await;
    rig.send(quick.into_iter().map(NewMessage::new)).await;
    let pump = rig.messages("one", handler, 4);
    let began = Instant::now();
    let watched = async {
        loop {
            let stats = rig.stats().await;
            if stats.acked == 200 {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let stop = Stop::when(CancellationToken::new());
    let stats = tokio::select! {
        stats = watched => stats,
        _ = pump.run(&stop) => panic!("the pump ended"),
    };
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((stats.leased, stats.ready), (1, 0));
}

#[tokio::test]
async fn no_more_is_leased_than_can_begin() {
    let rig = Rig::new().await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&running), Arc::clone(&most));
    let handler = each(move |_| {
        let (running, most) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Outcome::Done
        }
    });
    rig.send((0..50).map(|number| NewMessage::new(number.to_string())))
        .await;
    let leased = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&leased);
    let pump = rig.messages("one", handler, 3);
    rig.run_until(vec![pump], move |stats| {
        seen.fetch_max(usize::try_from(stats.leased).unwrap(), Ordering::SeqCst);
        stats.acked == 50
    })
    .await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    // Those that have ended and are being settled are leased as well.
    assert!(leased.load(Ordering::SeqCst) <= 6, "{leased:?}");
}

#[tokio::test]
async fn interrupted_messages_are_handled_one_at_a_time_and_alone() {
    let rig = Rig::new().await;
    rig.send((0..6).map(|number| NewMessage::new(format!("old {number}"))))
        .await;
    let lease = LeaseRequest {
        queue: rig.name.clone(),
        consumer: ConsumerId::new("dead").unwrap(),
        max: 6,
        in_flight: 6,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
    };
    assert_eq!(rig.queue.lease(lease).await.unwrap().len(), 6);
    rig.queue
        .disconnect(&ConsumerId::new("dead").unwrap())
        .await
        .unwrap();
    rig.send((0..20).map(|number| NewMessage::new(format!("new {number}"))))
        .await;
    let (running, attempts) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let pumps = ["one", "two"].map(|consumer| {
        let (running, attempts) = (Arc::clone(&running), Arc::clone(&attempts));
        let handler = each(move |delivery: Delivery| {
            let (running, attempts) = (Arc::clone(&running), Arc::clone(&attempts));
            async move {
                let others = running.fetch_add(1, Ordering::SeqCst);
                let is_old = text(&delivery).starts_with("old");
                if is_old {
                    attempts.lock().unwrap().push((delivery.attempt, others));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Outcome::Done
            }
        });
        rig.messages(consumer, handler, 4)
    });
    rig.run_until(pumps.into(), |stats| stats.acked == 26).await;
    let attempts = attempts.lock().unwrap();
    assert_eq!(attempts.len(), 6, "{attempts:?}");
    assert!(
        attempts.iter().all(|(attempt, _)| *attempt == 2),
        "{attempts:?}"
    );
    // Another pump may have fresh messages under way, and never another interrupted one.
    let alone = attempts.iter().filter(|(_, others)| *others == 0).count();
    assert!(alone >= 3, "{attempts:?}");
}

#[tokio::test]
async fn an_unavailable_destination_charges_nothing_and_is_tried_by_one_message_at_a_time() {
    let rig = Rig::new().await;
    let (is_up, posts) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let state = (Arc::clone(&is_up), Arc::clone(&posts));
    let (handler, seen) = to_destination(move |delivery: Delivery| {
        let (is_up, posts) = (Arc::clone(&state.0), Arc::clone(&state.1));
        async move {
            assert_eq!(delivery.attempt, 1);
            posts.fetch_add(1, Ordering::SeqCst);
            match is_up.load(Ordering::SeqCst) {
                true => Outcome::Done,
                false => unavailable(Cause::Failed, None),
            }
        }
    });
    rig.send((0..100).map(|number| NewMessage::new(number.to_string())))
        .await;
    let pump = rig.messages("one", handler, 16);
    let up = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        // The first ones at once, then trials: 100, 200, 400, 800 ms apart, at least half of that.
        let posts = posts.load(Ordering::SeqCst);
        assert!((2..=30).contains(&posts), "{posts}");
        is_up.store(true, Ordering::SeqCst);
    };
    let run = rig.run_until(vec![pump], |stats| stats.acked == 100);
    tokio::join!(up, run);
    assert_eq!((rig.stats().await.dead, rig.stats().await.retried), (0, 0));
    let seen = seen.lock().unwrap();
    let changes: Vec<_> = seen
        .iter()
        .filter(|change| change.from != change.to)
        .map(|change| change.to)
        .collect();
    assert_eq!(changes, [Condition::Paused, Condition::Open]);
    let problem = seen[0].problem.as_deref();
    assert_eq!(problem, Some("destination `receiver` is unavailable: no"));
    assert!(seen.last().unwrap().problem.is_none());
}

#[tokio::test]
async fn a_destination_is_left_alone_for_as_long_as_it_asks() {
    let rig = Rig::new().await;
    let posts = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&posts);
    let (handler, _) = to_destination(move |_| {
        let times = Arc::clone(&times);
        async move {
            let mut times = times.lock().unwrap();
            times.push(Instant::now());
            match times.len() {
                1 => unavailable(Cause::Failed, Some(Duration::from_secs(1))),
                _ => Outcome::Done,
            }
        }
    });
    rig.send(messages(&["one", "two", "three"])).await;
    // One at a time: with several under way the others could not know yet.
    let pump = rig.messages("one", handler, 1);
    rig.run_until(vec![pump], |stats| stats.acked == 3).await;
    let posts = posts.lock().unwrap();
    assert!(posts[1] - posts[0] >= Duration::from_secs(1), "{posts:?}");
    assert!(
        posts[1] - posts[0] < Duration::from_millis(1_500),
        "{posts:?}"
    );
}

#[tokio::test]
async fn a_message_that_a_destination_fails_with_blocks_no_other() {
    let rig = Rig::new().await;
    let posts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&posts);
    let (handler, _) = to_destination(move |delivery: Delivery| {
        let count = Arc::clone(&count);
        async move {
            if text(&delivery) == "poison" {
                count.fetch_add(1, Ordering::SeqCst);
                return unavailable(Cause::Failed, None);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            Outcome::Done
        }
    });
    rig.send(messages(&["poison"])).await;
    rig.send((0..2_000).map(|number| NewMessage::new(number.to_string())))
        .await;
    let pump = rig.messages("one", handler, 4);
    rig.run_until(vec![pump], |stats| stats.acked == 2_000)
        .await;
    let stats = rig.stats().await;
    assert_eq!((stats.dead, stats.delayed + stats.ready), (0, 1));
    let posts = posts.load(Ordering::SeqCst);
    assert!(posts <= 5, "it waits longer each time: {posts}");
}

#[tokio::test]
async fn an_overloaded_destination_gets_its_own_rate() {
    let rig = Rig::new().await;
    // A token bucket: 100 a second, 20 at once.
    let bucket = Arc::new(Mutex::new((20.0_f64, Instant::now())));
    let refused = Arc::new(AtomicUsize::new(0));
    let state = (Arc::clone(&bucket), Arc::clone(&refused));
    let (handler, _) = to_destination(move |delivery: Delivery| {
        let (bucket, refused) = (Arc::clone(&state.0), Arc::clone(&state.1));
        async move {
            assert_eq!(delivery.attempt, 1);
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut bucket = bucket.lock().unwrap();
            let (tokens, since) = *bucket;
            let now = Instant::now();
            let tokens = (tokens + (now - since).as_secs_f64() * 100.0).min(20.0);
            if tokens >= 1.0 {
                *bucket = (tokens - 1.0, now);
                return Outcome::Done;
            }
            *bucket = (tokens, now);
            refused.fetch_add(1, Ordering::SeqCst);
            unavailable(Cause::Overloaded, Some(Duration::from_millis(200)))
        }
    });
    rig.send((0..1_500).map(|number| NewMessage::new(number.to_string())))
        .await;
    let began = Instant::now();
    let pump = rig.messages("one", handler, 16);
    rig.run_until(vec![pump], |stats| stats.acked == 1_500)
        .await;
    let (took, refused) = (began.elapsed(), refused.load(Ordering::SeqCst));
    assert!(refused <= 60, "{refused} refused in {took:?}");
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert_eq!(rig.stats().await.dead, 0);
}

#[tokio::test]
async fn a_message_that_waited_too_long_for_its_destination_is_charged() {
    let rig = Rig::new().await;
    let (mut handler, _) = to_destination(|_| async { unavailable(Cause::Unreachable, None) });
    handler.destination = Some(Destination::new(
        "receiver",
        retry::Policy::default(),
        Duration::from_millis(700),
        Arc::new(SystemClock::new()),
        Arc::new(|_| {}),
    ));
    rig.send(messages(&["one"])).await;
    let pump = rig.messages("one", handler, 1);
    rig.run_until(vec![pump], |stats| stats.dead == 1).await;
    let dead = rig.queue.dead_letters(&rig.name, None, 1).await.unwrap();
    assert_eq!((dead[0].attempts, dead[0].reason.as_str()), (3, "no"));
}

#[tokio::test]
async fn a_handler_whose_backend_does_not_answer_charges_nothing() {
    let rig = Rig::new().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let handler = each(move |delivery: Delivery| {
        let count = Arc::clone(&count);
        async move {
            assert_eq!(delivery.attempt, 1);
            match count.fetch_add(1, Ordering::SeqCst) {
                0..8 => Outcome::from(Error::unavailable("no answer")),
                _ => Outcome::Done,
            }
        }
    });
    rig.send(messages(&["one", "two", "three"])).await;
    let pump = rig.messages("one", handler, 4);
    rig.run_until(vec![pump], |stats| stats.acked == 3).await;
    assert_eq!(rig.stats().await.retried, 0);
}

#[tokio::test]
async fn a_panic_of_a_handler_is_the_messages_own() {
    let rig = Rig::new().await;
    let handler = each(|delivery: Delivery| async move {
        assert!(text(&delivery) != "poison", "cannot bear it");
        Outcome::Done
    });
    rig.send(messages(&["one", "poison", "two", "three"])).await;
    let pump = rig.messages("one", handler, 4);
    rig.run_until(vec![pump], |stats| stats.acked == 3 && stats.dead == 1)
        .await;
    let dead = rig.queue.dead_letters(&rig.name, None, 1).await.unwrap();
    assert_eq!(dead[0].reason, "the handler panicked: cannot bear it");
    assert_eq!(dead[0].attempts, 3);
}

#[tokio::test]
async fn a_handler_slower_than_the_lease_handles_once() {
    let mut rig = Rig::new().await;
    rig.lease = Duration::from_secs(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let slow = |consumer| {
        let calls = Arc::clone(&calls);
        let handler = each(move |_| {
            calls.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                Outcome::Done
            }
        });
        rig.messages(consumer, handler, 4)
    };
    rig.send(messages(&["one"])).await;
    let pumps = vec![slow("one"), slow("two")];
    let counts = rig.run_until(pumps, |stats| stats.acked == 1).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(!counts.contains_key("lost leases"), "{counts:?}");
}

#[tokio::test]
async fn a_stop_releases_the_messages_of_a_hanging_handler_uncharged() {
    let rig = Rig::new().await;
    rig.send(messages(&["one", "two"])).await;
    let handler = each(|_| std::future::pending());
    let pump = Arc::new(rig.messages("one", handler, 4));
    let mut supervisor = Supervisor::new(Duration::from_secs(3));
    supervisor.start("pump", Stage::Deliver, OnFailure::Restart, move |stop| {
        let pump = Arc::clone(&pump);
        async move { pump.run(&stop).await }
    });
    let signal = async {
        while rig.stats().await.leased < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        "SIGTERM".to_owned()
    };
    let report = supervisor.run(signal, std::future::pending(), || {}).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.tasks[0].counts["released"], 2);
    let waiting = rig.queue.peek(&rig.name, 10).await.unwrap();
    assert!(waiting.iter().all(|one| one.attempts == 0), "{waiting:?}");
}
