//! Random `kill -9` of a worker that posts: acknowledged messages are posted, and deliveries that had not begun are not
//! charged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::servers::{kafka, rabbitmq, redis};

use crate::client::Client;
use crate::process::{World, able, seeds};
use crate::web::{Reply, serve};

/// Kills the process at random under load: every acknowledged message is posted, none becomes a dead letter, and no
/// more are posted twice than were under way.
fn posts_survive_kill_9(seed: u64, world: &mut World) {
    let mut rng = StdRng::seed_from_u64(seed);
    let posts: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let kept = Arc::clone(&posts);
    let receiver = serve(move |asked| {
        let text = String::from_utf8(asked.body).unwrap();
        *kept.lock().unwrap().entry(text).or_default() += 1;
        std::thread::sleep(Duration::from_millis(2));
        Reply::text(200, "")
    });
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
            format!("http://{receiver}/"),
        )
        // Two charges of one message would show.
        .set("TOWPATH_INGEST__WORKER__RETRY__ATTEMPTS", 5);
    let mut running = world.spawn(&["run", "ingest.api,ingest.worker"]);
    running.wait_ready(world);
    let stop = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = (0..4)
        .map(|producer| {
            let (stop, address) = (Arc::clone(&stop), world.http);
            std::thread::spawn(move || {
                let (mut acked, mut client) = (Vec::new(), Client::new(address));
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let text = format!("{producer}-{number}");
                    match client.send("POST", "/enqueue", &[], text.as_bytes()) {
                        Ok(answer) if answer.status == 200 => acked.push(text),
                        _ => {
                            std::thread::sleep(Duration::from_millis(20));
                            client = Client::new(address);
                        }
                    }
                }
                acked
            })
        })
        .collect();
    let kills = rng.random_range(1..=3);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(rng.random_range(20..600)));
        running.kill();
        running = world.spawn(&["run", "ingest.api,ingest.worker"]);
        running.wait_ready(world);
    }
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::SeqCst);
    let acked: Vec<String> = producers
        .into_iter()
        .flat_map(|producer| producer.join().unwrap())
        .collect();
    world.wait_drained();
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!(stats["dead"], 0, "{stats}");
    let posts = posts.lock().unwrap();
    let lost: Vec<_> = acked
        .iter()
        .filter(|text| !posts.contains_key(*text))
        .collect();
    assert!(lost.is_empty(), "seed {seed}: lost {lost:?}");
    let repeated: usize = posts.values().map(|count| count - 1).sum();
    eprintln!(
        "seed {seed}: {kills} kills, {} acknowledged, {repeated} posted again",
        acked.len()
    );
    assert!(
        repeated <= kills * 16,
        "seed {seed}: {repeated} posted again"
    );
}

#[test]
fn chaos_posts_survive_kill_9() {
    for seed in 0..seeds(3) {
        posts_survive_kill_9(seed, &mut World::new());
    }
}

#[test]
fn chaos_posts_survive_kill_9_on_redis() {
    if !able("redis", redis::missing().is_none()) {
        return;
    }
    for seed in 0..seeds(2) {
        let server = redis::Server::start(redis::DURABLE);
        let mut world = World::new();
        let url = format!("redis://127.0.0.1:{}?consumer_timeout=1s", server.port());
        world.set("TOWPATH_BACKENDS__INGEST", url);
        posts_survive_kill_9(seed, &mut world);
    }
}

#[test]
fn chaos_posts_survive_kill_9_on_rabbitmq() {
    if !able("rabbitmq", rabbitmq::missing().is_none()) {
        return;
    }
    for seed in 0..seeds(2) {
        let host = format!("h{}", uuid::Uuid::now_v7().simple());
        let server = rabbitmq::shared();
        server.control(&["add_vhost", &host]);
        server.control(&["set_permissions", "-p", &host, "guest", ".*", ".*", ".*"]);
        let mut world = World::new();
        world.set(
            "TOWPATH_BACKENDS__INGEST",
            format!("{}/{host}", server.url()),
        );
        posts_survive_kill_9(seed, &mut world);
    }
}

#[test]
fn chaos_posts_survive_kill_9_on_kafka() {
    if !able("kafka", kafka::missing().is_none()) {
        return;
    }
    for seed in 0..seeds(1) {
        let server = kafka::shared();
        let mut world = World::new();
        let prefix = uuid::Uuid::now_v7().simple();
        world.set(
            "TOWPATH_BACKENDS__INGEST",
            format!("{}?prefix=p{prefix}.", server.url()),
        );
        posts_survive_kill_9(seed, &mut world);
    }
}
