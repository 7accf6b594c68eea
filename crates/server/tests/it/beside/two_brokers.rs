//! The order pipeline on two brokers that are not one cluster, each half once from either side.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use towpath_testkit::servers::{rabbitmq, redis};

use super::orders::{Setup, add_host};
use super::{Half, Program, SOON, Side, wait_more};
use crate::process::{able, seeds, wait_until};

/// A pipeline under load.
struct Pipeline<'a> {
    place: &'a Setup,
    host: &'static str,
    _halves: [Half<'a>; 3],
    load: Option<Program>,
    accepted: Arc<AtomicUsize>,
    /// Orders that a broker may have had when it stopped, or that were published before a queue was bound: those are
    /// lost by the reference's gateway and processor, which do not confirm.
    doubtful: Vec<Range<usize>>,
}

impl<'a> Pipeline<'a> {
    fn start(place: &'a Setup, host: &'static str, sides: [Side; 3]) -> Self {
        let mut halves = place.halves();
        // Queues are bound before the first order.
        for at in [1, 2, 0] {
            halves[at].start(sides[at]);
        }
        let accepted = Arc::new(AtomicUsize::new(0));
        Self {
            place,
            host,
            _halves: halves,
            load: Some(place.load(&accepted)),
            accepted,
            doubtful: Vec::new(),
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.accepted()).filter(|number| !self.place.notified(*number))
    }

    /// Orders are accepted, processed and notified.
    fn continues(&self, what: &str) {
        wait_more(what, &self.accepted, 20);
        let last = self.accepted() - 1;
        wait_until(&format!("{what}: {last}"), SOON, || {
            self.place.notified(last)
        });
    }
}

fn is_bound(server: &rabbitmq::Server, host: &str) -> bool {
    let words = [
        "list_bindings",
        "-p",
        host,
        "source_name",
        "destination_name",
    ];
    let bindings = server.control(&words);
    ["orders.queue", "notifier.queue"].iter().all(|queue| {
        let bound = |line: &str| line.starts_with("orders.") && line.trim_end().ends_with(queue);
        bindings.lines().any(bound)
    })
}

/// Stops a broker under load; afterwards orders continue on the other one.
fn fail_over(pipelines: &mut [Pipeline], from: &mut rabbitmq::Server, to: &rabbitmq::Server) {
    let firsts: Vec<usize> = pipelines
        .iter()
        .map(|pipeline| pipeline.missing().next().unwrap_or(pipeline.accepted()))
        .collect();
    from.stop();
    for (pipeline, first) in pipelines.iter_mut().zip(firsts) {
        wait_until("the bindings", SOON, || is_bound(to, pipeline.host));
        // One more may be on its way.
        pipeline.doubtful.push(first..pipeline.accepted() + 1);
    }
    for pipeline in pipelines {
        pipeline.continues("on the other broker");
    }
}

#[test]
fn chaos_halves_of_both_sides_continue_over_two_brokers_that_are_not_one_cluster() {
    // It takes 36 s, so only `make chaos` runs it; `orders_two_brokers` is the short version.
    let there = seeds(0) > 0 && able("rabbitmq", rabbitmq::missing().is_none());
    if !there || !able("redis", redis::missing().is_none()) {
        return;
    }
    let (mut one, mut two) = std::thread::scope(|scope| {
        let one = scope.spawn(rabbitmq::Server::start);
        let two = rabbitmq::Server::start();
        (one.join().unwrap(), two)
    });
    let pairings = [
        ("onn", [Side::Reference, Side::Ours, Side::Ours]),
        ("non", [Side::Ours, Side::Reference, Side::Ours]),
    ];
    let places =
        pairings.map(|(host, _)| Setup::new(vec![add_host(&one, host), add_host(&two, host)]));
    let mut pipelines: Vec<Pipeline> = pairings
        .iter()
        .zip(&places)
        .map(|((host, sides), place)| Pipeline::start(place, host, *sides))
        .collect();
    for pipeline in &pipelines {
        pipeline.continues("on the first broker");
    }
    fail_over(&mut pipelines, &mut one, &two);
    one.restart();
    fail_over(&mut pipelines, &mut two, &one);
    for pipeline in &mut pipelines {
        pipeline.load.take().unwrap().stop();
    }
    for pipeline in &pipelines {
        let lost = || {
            let expected =
                |number: &usize| !pipeline.doubtful.iter().any(|range| range.contains(number));
            pipeline.missing().filter(expected).collect::<Vec<_>>()
        };
        wait_until(pipeline.host, SOON, || lost().is_empty());
        let (place, accepted) = (pipeline.place, pipeline.accepted());
        let processed = place.number("orders.processed.count");
        assert_eq!(
            processed,
            1_000_000 - place.number("inventory:a"),
            "{}",
            pipeline.host
        );
        assert!(
            processed <= accepted,
            "{}: {processed} of {accepted}",
            pipeline.host
        );
        let doubtful: usize = pipeline.doubtful.iter().map(ExactSizeIterator::len).sum();
        assert!(
            doubtful < accepted,
            "{}: {:?} of {accepted}",
            pipeline.host,
            pipeline.doubtful
        );
    }
}
