//! Random `kill -9` under orders: the books balance, stock is exact, no order is sold twice, each customer is notified once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use towpath_testkit::proxy::{Fault, Proxy};
use towpath_testkit::servers::rabbitmq;
use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use crate::orders::{Receiver, in_two_stores, set_stock, stock};
use crate::process::{Running, World, able, seeds, wait_until};

/// The goods on sale.
#[derive(Clone, Copy)]
struct Shop {
    skus: usize,
    /// Pieces of each at first.
    initial: i64,
}

const SMALL: Shop = Shop {
    skus: 5,
    initial: 300,
};

impl Shop {
    fn skus(self) -> impl Iterator<Item = String> {
        (0..self.skus).map(|number| format!("sku{number}"))
    }

    fn fill(self, world: &World) {
        for sku in self.skus() {
            set_stock(world, &sku, self.initial);
        }
    }
}

/// The clients' knowledge: an order is retried until it is answered, so each is accepted for certain or never sent.
#[derive(Default)]
struct Ledger(BTreeMap<String, (String, i64)>);

/// Clients that order until stopped.
struct Clients {
    ledger: Arc<Mutex<Ledger>>,
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Clients {
    fn start(world: &World, shop: Shop, count: usize, seed: u64) -> Self {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let over = Arc::<AtomicBool>::default();
        let threads = (0..count)
            .map(|client| {
                let (mut http, ledger, over) =
                    (world.client(), Arc::clone(&ledger), Arc::clone(&over));
                std::thread::spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed * 1000 + client as u64);
                    for number in 0.. {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        let id = format!("c{client}-{number}");
                        let sku = format!("sku{}", rng.random_range(0..shop.skus));
                        let qty = rng.random_range(1..=3);
                        let body = format!(r#"{{"id":"{id}","sku":"{sku}","qty":{qty}}}"#);
                        loop {
                            match http.send("POST", "/orders", &[], body.as_bytes()) {
                                Ok(answer) if [202, 409].contains(&answer.status) => {
                                    // Our own id, so a duplicate is our own earlier try.
                                    assert_ne!(
                                        answer.text(),
                                        "Order id already used for another order\n"
                                    );
                                    break;
                                }
                                Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                                Err(_) => {}
                            }
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        ledger.lock().unwrap().0.insert(id, (sku, qty));
                    }
                })
            })
            .collect();
        Self {
            ledger,
            over,
            threads,
        }
    }

    fn accepted(&self) -> usize {
        self.ledger.lock().unwrap().0.len()
    }

    /// The process must be up: the last orders are tried until they are answered.
    fn stop(self) -> Ledger {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::into_inner(self.ledger).unwrap().into_inner().unwrap()
    }
}

/// Tells customers by posts to the receiver, and tries again soon.
fn tell(world: &mut World, receiver: &Receiver) {
    world
        .set("TOWPATH_ORDERS__NOTIFY__CHANNEL", "webhook")
        .set(
            "TOWPATH_ORDERS__NOTIFY__WEBHOOK__URL",
            format!("http://{}/notified", receiver.address),
        )
        .set("TOWPATH_ORDERS__RETRY__FIRST", "50ms")
        .set("TOWPATH_ORDERS__RETRY__MAX", "500ms")
        .set("TOWPATH_ORDERS__RETRY__ATTEMPTS", 100);
}

/// Compares the system's records with the clients' knowledge and the receiver's posts.
fn check(world: &World, shop: Shop, ledger: &Ledger, receiver: &Receiver, story: &str) {
    let mut books = Value::Null;
    wait_until(
        "every order to be finished and notified",
        Duration::from_secs(120),
        || {
            // A broker that starts again may not answer for a moment.
            books = world.json_of(&["orders", "check"]);
            books["in_flight"] == 0 && books["processed"] == books["notified"]
        },
    );
    assert_eq!(books["balanced"], true, "{story}: {books}");
    assert_eq!(books["accepted"], ledger.0.len(), "{story}: {books}");
    assert_eq!(books["dead"], 0, "{story}: {books}");
    let (mut sold, mut processed, mut rejected, mut client) = (
        BTreeMap::<&str, i64>::new(),
        Vec::new(),
        Vec::new(),
        world.client(),
    );
    for (id, (sku, qty)) in &ledger.0 {
        let known = client.get(&format!("/orders/{id}")).json();
        match known["state"].as_str() {
            Some("processed") => {
                *sold.entry(sku).or_default() += qty;
                processed.push(id.as_str());
                assert_eq!(known["notified"], true, "{story}: {known}");
            }
            Some("rejected") => {
                rejected.push(id.as_str());
                wait_until(
                    "the notification of the rejection",
                    Duration::from_secs(120),
                    || client.get(&format!("/orders/{id}")).json()["notified"] == true,
                );
            }
            other => panic!("{story}: order {id} is {other:?}"),
        }
    }
    for sku in shop.skus() {
        let left = shop.initial - sold.get(sku.as_str()).copied().unwrap_or_default();
        assert_eq!(stock(world, &sku), left, "{story}: {sku}");
        assert!(left >= 0, "{story}: {sku} is oversold");
    }
    // One effect for each order, and it says which.
    let (mut sales, mut refusals) = (Vec::new(), Vec::new());
    for (_, body) in receiver.effects() {
        let body: Value = serde_json::from_str(&body).unwrap();
        let id = body["id"].as_str().unwrap().to_owned();
        match body["state"].as_str() {
            None => sales.push(id),
            Some(state) => {
                assert_eq!(state, "rejected", "{story}: {body}");
                refusals.push(id);
            }
        }
    }
    for (mut notified, mut expected) in [(sales, processed.clone()), (refusals, rejected)] {
        notified.sort();
        expected.sort_unstable();
        assert_eq!(notified, expected, "{story}");
    }
    eprintln!(
        "{story}: {} accepted, {} processed, books balance",
        ledger.0.len(),
        processed.len()
    );
}

fn story(world: &mut World, seed: u64, what: &str) {
    let mut rng = StdRng::seed_from_u64(seed);
    let receiver = Receiver::start();
    tell(world, &receiver);
    let mut running = world.up();
    SMALL.fill(world);
    let clients = Clients::start(world, SMALL, 8, seed);
    let kills = rng.random_range(1..=3);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(rng.random_range(5..400)));
        running.kill();
        running = world.up();
    }
    std::thread::sleep(Duration::from_millis(50));
    let ledger = clients.stop();
    check(
        world,
        SMALL,
        &ledger,
        &receiver,
        &format!("{what}, seed {seed}, {kills} kills"),
    );
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn the_books_balance_after_random_kills() {
    for seed in 0..seeds(3) {
        story(&mut World::new(), seed, "one store");
    }
}

#[test]
fn the_books_balance_where_keys_and_queues_are_apart() {
    for seed in 0..seeds(3) {
        let mut world = World::new();
        in_two_stores(&mut world);
        story(&mut world, 500_000 + seed, "two stores");
    }
}

/// The roles, each a process of its own.
const ROLES: [&str; 3] = ["gateway", "processor", "notifier"];

fn start(world: &World, role: &str) -> Running {
    let running = world.spawn(&["run", role]);
    running.wait_ready(world);
    running
}

#[test]
fn the_books_balance_on_redis_whichever_role_is_killed() {
    if !able("redis", missing().is_none()) {
        return;
    }
    for seed in 0..seeds(2) {
        let mut rng = StdRng::seed_from_u64(900_000 + seed);
        let mut server = Server::start(DURABLE);
        let receiver = Receiver::start();
        let folder = tempfile::tempdir().unwrap();
        let worlds = ROLES.map(|_| {
            let mut world = World::at(folder.path());
            tell(&mut world, &receiver);
            world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
            world.set("TOWPATH_ORDERS__LEASE", "2s");
            world
        });
        let start_one = |index: usize| start(&worlds[index], ROLES[index]);
        let mut running: Vec<Running> = (0..ROLES.len()).map(start_one).collect();
        SMALL.fill(&worlds[0]);
        let clients = Clients::start(&worlds[0], SMALL, 4, seed);
        let kills = rng.random_range(3..=6);
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..300)));
            match rng.random_range(0..=ROLES.len()) {
                index if index < ROLES.len() => {
                    running.remove(index).kill();
                    running.insert(index, start_one(index));
                }
                _ => {
                    server.kill();
                    std::thread::sleep(Duration::from_millis(rng.random_range(5..500)));
                    server.restart();
                }
            }
        }
        let ledger = clients.stop();
        let story = format!("redis, seed {seed}, {kills} faults");
        check(&worlds[0], SMALL, &ledger, &receiver, &story);
    }
}

#[test]
fn the_books_balance_on_rabbitmq_and_redis_whichever_process_is_killed() {
    let there = able("rabbitmq", rabbitmq::missing().is_none());
    if !there || !able("redis", missing().is_none()) {
        return;
    }
    for seed in 0..seeds(1) {
        let mut rng = StdRng::seed_from_u64(950_000 + seed);
        let (mut keys, mut broker) = (Server::start(DURABLE), rabbitmq::Server::start());
        let receiver = Receiver::start();
        let folder = tempfile::tempdir().unwrap();
        let worlds = ROLES.map(|_| {
            let mut world = World::at(folder.path());
            tell(&mut world, &receiver);
            world.set("REDIS_ADDR", format!("127.0.0.1:{}", keys.port()));
            world.set("RABBITMQ_URLS", broker.url());
            world
        });
        let start_one = |index: usize| start(&worlds[index], ROLES[index]);
        let mut running: Vec<Running> = (0..ROLES.len()).map(start_one).collect();
        SMALL.fill(&worlds[0]);
        // RabbitMQ 3.10 itself forgets a quorum queue that was made moments before its node is killed.
        broker.stop();
        broker.restart();
        let clients = Clients::start(&worlds[0], SMALL, 4, seed);
        let faults = rng.random_range(3..=6);
        for fault in 0..faults {
            std::thread::sleep(Duration::from_millis(rng.random_range(50..600)));
            match rng.random_range(0..ROLES.len() + 1) {
                // Once in each story, whatever else.
                _ if fault == 1 => {
                    broker.kill();
                    std::thread::sleep(Duration::from_millis(rng.random_range(5..1_000)));
                    broker.restart();
                }
                index if index < ROLES.len() => {
                    running.remove(index).kill();
                    running.insert(index, start_one(index));
                }
                _ => {
                    keys.kill();
                    std::thread::sleep(Duration::from_millis(rng.random_range(5..2_000)));
                    keys.restart();
                }
            }
        }
        let ledger = clients.stop();
        let story = format!("rabbitmq and redis, seed {seed}, {faults} faults");
        check(&worlds[0], SMALL, &ledger, &receiver, &story);
    }
}

/// Everything at once: both brokers away for seconds, connections reset, roles killed, as many orders as go.
#[test]
fn the_books_balance_after_a_storm() {
    let there = able("rabbitmq", rabbitmq::missing().is_none());
    if !there || !able("redis", missing().is_none()) {
        return;
    }
    // Of some less is ordered than there is, of the others more.
    let (orders, shop) = match seeds(0) {
        0 => (
            1_500,
            Shop {
                skus: 50,
                initial: 60,
            },
        ),
        _ => (
            20_000,
            Shop {
                skus: 50,
                initial: 790,
            },
        ),
    };
    let mut rng = StdRng::seed_from_u64(975_000 + orders as u64);
    let (mut keys, mut broker) = (Server::start(DURABLE), rabbitmq::Server::start());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxies = [keys.port(), broker.port()].map(|port| runtime.block_on(Proxy::start(port)));
    let receiver = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let worlds = ROLES.map(|_| {
        let mut world = World::at(folder.path());
        tell(&mut world, &receiver);
        let [keys, broker] = proxies.each_ref().map(Proxy::port);
        world.set("REDIS_ADDR", format!("127.0.0.1:{keys}"));
        let url = format!("amqp://guest:guest@127.0.0.1:{broker}");
        world.set("RABBITMQ_URLS", url);
        world
    });
    let start_one = |index: usize| start(&worlds[index], ROLES[index]);
    let mut running: Vec<Running> = (0..ROLES.len()).map(start_one).collect();
    shop.fill(&worlds[0]);
    broker.stop();
    broker.restart();
    let clients = Clients::start(&worlds[0], shop, 32, 0);
    let (mut faults, mut next) = (Vec::new(), [0, 1, 2, 3, 4, 5]);
    // Each of them at least once.
    while clients.accepted() < orders || faults.len() < next.len() {
        if faults.len() % next.len() == 0 {
            next.shuffle(&mut rng);
        }
        let fault = next[faults.len() % next.len()];
        std::thread::sleep(Duration::from_millis(rng.random_range(50..1_000)));
        match fault {
            role @ 0..=2 => {
                running.remove(role).kill();
                running.insert(role, start_one(role));
            }
            3 => {
                keys.kill();
                std::thread::sleep(Duration::from_secs(2));
                keys.restart();
            }
            4 => {
                broker.stop();
                std::thread::sleep(Duration::from_secs(5));
                broker.restart();
            }
            _ => {
                for proxy in &proxies {
                    proxy.set(Fault::Reset);
                    std::thread::sleep(Duration::from_millis(rng.random_range(1..200)));
                    proxy.set(Fault::None);
                }
            }
        }
        faults.push(fault);
    }
    let ledger = clients.stop();
    let story = format!("storm of {} faults", faults.len());
    check(&worlds[0], shop, &ledger, &receiver, &story);
}

#[test]
fn the_public_port_opens_once_the_broker_is_there() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let mut server = Server::start(DURABLE);
    server.kill();
    let mut world = World::new();
    world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
    let running = world.spawn(&["run", "gateway"]);
    wait_until("the probes to answer", Duration::from_secs(30), || {
        let answer = world.admin_client().send("GET", "/livez", &[], b"");
        answer.is_ok_and(|answer| answer.status == 200)
    });
    let ready = world.admin_client().get("/readyz?verbose");
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(std::net::TcpStream::connect(world.http).is_err());
    server.restart();
    running.wait_ready(&world);
    set_stock(&world, "sku0", 5);
    let body = br#"{"id":"a","sku":"sku0","qty":1}"#;
    assert_eq!(world.client().post("/orders", &[], body).status, 202);
    // Away again: refused for now, and the same order is accepted once it is back.
    server.kill();
    let body = br#"{"id":"b","sku":"sku0","qty":1}"#;
    let answer = world.client().post("/orders", &[], body);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (503, "Failed to publish order\n")
    );
    server.restart();
    wait_until("the order to be accepted", Duration::from_secs(30), || {
        [202, 409].contains(&world.client().post("/orders", &[], body).status)
    });
    assert_eq!(world.json(&["orders", "check"])["accepted"], 2);
    drop(running);
}
