//! The contract of the orders app, status by status, text by text, field by field.

use std::collections::BTreeSet;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::mail::MailServer;
use crate::process::{World, wait_until};

const SOON: Duration = Duration::from_secs(30);

pub(crate) fn order(client: &mut Client, id: &str, sku: &str, qty: i64) -> Answer {
    let body = json!({"id": id, "sku": sku, "qty": qty}).to_string();
    client.post("/orders", &[], body.as_bytes())
}

pub(crate) fn stock(world: &World, sku: &str) -> i64 {
    let answer = world.client().get(&format!("/inventory/{sku}"));
    answer.json()["quantity"].as_i64().unwrap()
}

pub(crate) fn set_stock(world: &World, sku: &str, quantity: i64) {
    let body = json!({ "quantity": quantity }).to_string();
    let path = format!("/inventory/{sku}");
    let answer = world.client().send("PUT", &path, &[], body.as_bytes());
    assert_eq!(answer.unwrap().status, 200);
}

pub(crate) fn show(world: &World, id: &str) -> Value {
    world.client().get(&format!("/orders/{id}")).json()
}

fn wait_for(world: &World, id: &str, state: &str) -> Value {
    wait_until(&format!("{id} to be {state}"), SOON, || {
        show(world, id)["state"] == state
    });
    show(world, id)
}

fn wait_notified(world: &World, id: &str) -> Value {
    wait_until(&format!("{id} to be notified"), SOON, || {
        show(world, id)["notified"] == true
    });
    show(world, id)
}

#[test]
fn the_walk_through_of_the_reference_system_works() {
    let world = World::new();
    let running = world.up();
    assert_eq!(
        world.ok(&["kv", "set", "inventory:mag-safe-phone-case", "100"]),
        "OK\n"
    );
    assert_eq!(
        world.ok(&["kv", "get", "inventory:mag-safe-phone-case"]),
        "100\n"
    );
    assert_eq!(
        world.ok(&["kv", "incr", "inventory:mag-safe-phone-case", "10"]),
        "110\n"
    );
    assert_eq!(
        world.ok(&["kv", "incr", "inventory:mag-safe-phone-case", "-10"]),
        "100\n"
    );
    let mut client = world.client();
    let answer = order(&mut client, "order123", "mag-safe-phone-case", 2);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (202, "Order received: order123")
    );
    assert!(answer.headers["content-type"].starts_with("text/plain"));
    let answer = order(&mut client, "order123", "mag-safe-phone-case", 2);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (409, "Duplicate order\n")
    );
    let known = wait_notified(&world, "order123");
    assert_eq!(known["state"], "processed");
    assert_eq!(known["attempts"], 1);
    assert_eq!(known["reason"], Value::Null);
    let steps: Vec<&str> = known["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["what"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["accepted", "processed", "notified"]);
    assert_eq!(
        world.ok(&["kv", "get", "inventory:mag-safe-phone-case"]),
        "98\n"
    );
    assert_eq!(world.ok(&["kv", "get", "orders.processed.count"]), "1\n");
    assert_eq!(world.ok(&["kv", "keys", "idemp:*"]), "idemp:order123\n");
    let ttl: i64 = world
        .ok(&["kv", "ttl", "idemp:order123"])
        .trim()
        .parse()
        .unwrap();
    assert!((200..=300).contains(&ttl), "{ttl}");
    assert_eq!(
        world.ok(&["kv", "ttl", "inventory:mag-safe-phone-case"]),
        "-1\n"
    );
    assert_eq!(world.ok(&["kv", "ttl", "no-such-key"]), "-2\n");
    assert_eq!(world.ok(&["kv", "get", "notif:order123"]), "1\n");
    let fields = world.json(&["kv", "get", "notifications:order123"]);
    assert_eq!(fields["fields"]["status"], "sent");
    assert_eq!(world.ok(&["kv", "del", "idemp:order123"]), "1 removed\n");
    assert_eq!(
        world.run(&["kv", "get", "idemp:order123"]).status.code(),
        Some(1)
    );
    // An id is taken as long as its record is kept, and not for five minutes only.
    assert_eq!(
        order(&mut client, "order123", "mag-safe-phone-case", 2).status,
        409
    );
    let books = world.ok(&["orders", "check"]);
    assert!(
        books.contains("balanced: 1 accepted = 1 processed"),
        "{books}"
    );
    drop(running);
}

#[test]
fn every_status_and_text_is_the_contracts() {
    let world = World::new();
    let running = world.up();
    set_stock(&world, "case", 5);
    let mut client = world.client();
    for (body, status, text) in [
        ("", 400, "Invalid JSON\n"),
        ("{", 400, "Invalid JSON\n"),
        (
            r#"{"id":"a","sku":"case","qty":1.5}"#,
            400,
            "Invalid JSON\n",
        ),
        (
            r#"{"id":"a","sku":"case"}"#,
            400,
            "Missing or invalid fields\n",
        ),
        (
            r#"{"id":"","sku":"case","qty":1}"#,
            400,
            "Missing or invalid fields\n",
        ),
        (
            r#"{"id":"a","sku":"case","qty":0}"#,
            400,
            "Missing or invalid fields\n",
        ),
        (
            r#"{"id":"a","sku":"case","qty":1,"new":true}"#,
            202,
            "Order received: a",
        ),
        (
            r#"{"id":"a","sku":"case","qty":1}"#,
            409,
            "Duplicate order\n",
        ),
        (
            r#"{"id":"a","sku":"case","qty":2}"#,
            409,
            "Order id already used for another order\n",
        ),
        // As a shell writes it: text behind the first value does not count.
        (
            "{\"id\":\"b\",\"sku\":\"case\",\"qty\":1}\n}",
            202,
            "Order received: b",
        ),
    ] {
        let answer = client.post("/orders", &[], body.as_bytes());
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, text),
            "{body}"
        );
    }
    for method in ["GET", "PUT", "DELETE"] {
        let answer = client.send(method, "/orders", &[], b"").unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (405, "Method not allowed\n")
        );
        assert_eq!(answer.headers["allow"], "POST");
    }
    assert_eq!(client.get("/orders/absent").status, 404);
    drop(running);
}

#[test]
fn stock_is_never_negative_and_short_orders_are_rejected() {
    let world = World::new();
    let running = world.up();
    set_stock(&world, "case", 5);
    let mut client = world.client();
    assert_eq!(order(&mut client, "fits", "case", 3).status, 202);
    wait_for(&world, "fits", "processed");
    assert_eq!(order(&mut client, "short", "case", 3).status, 202);
    let known = wait_for(&world, "short", "rejected");
    assert_eq!(
        known["reason"],
        "not enough stock of `case`: 2 left, 3 ordered"
    );
    let known = wait_notified(&world, "short");
    assert_eq!(known["notification"]["channel"], "log", "{known}");
    assert_eq!(order(&mut client, "strange", "hat", 1).status, 202);
    let known = wait_for(&world, "strange", "rejected");
    assert_eq!(known["reason"], "unknown sku `hat`");
    assert_eq!(stock(&world, "case"), 2);
    assert_eq!(client.get("/inventory/hat").status, 404);
    // By hand, with the same floor.
    let mut patch = |delta: &str| {
        client
            .send("PATCH", "/inventory/case", &[], delta.as_bytes())
            .unwrap()
    };
    assert_eq!(
        patch(r#"{"delta": 8}"#).json(),
        json!({"sku": "case", "quantity": 10})
    );
    assert_eq!(patch(r#"{"delta": -11}"#).status, 409);
    assert_eq!(patch(r#"{"delta": "x"}"#).status, 400);
    let put = client
        .send("PUT", "/inventory/case", &[], br#"{"quantity": -1}"#)
        .unwrap();
    assert_eq!(put.status, 400);
    set_stock(&world, "bag", 1);
    assert_eq!(
        client.get("/inventory").json(),
        json!([{"sku": "bag", "quantity": 1}, {"sku": "case", "quantity": 10}])
    );
    assert_eq!(
        client.get("/inventory?max=1&after=bag").json(),
        json!([{"sku": "case", "quantity": 10}])
    );
    let books = world.json(&["orders", "check"]);
    assert_eq!(
        (&books["processed"], &books["rejected"]),
        (&json!(1), &json!(2))
    );
    drop(running);
}

#[test]
fn an_order_that_is_tried_again_shows_its_attempts_and_why() {
    both_ways(|world| {
        let _running = world.up();
        world.ok(&["kv", "set", "inventory:case", "abc"]);
        assert_eq!(order(&mut world.client(), "o1", "case", 1).status, 202);
        wait_until("two attempts", SOON, || {
            show(&world, "o1")["attempts"].as_u64() >= Some(2)
        });
        let known = show(&world, "o1");
        assert_eq!(known["state"], "accepted", "{known}");
        let reason = known["reason"].as_str().unwrap();
        assert!(reason.contains("inventory:case"), "{known}");
        set_stock(&world, "case", 5);
        let known = wait_for(&world, "o1", "processed");
        assert_eq!(known["reason"], Value::Null, "{known}");
        assert_eq!(stock(&world, "case"), 4);
    });
}

#[test]
fn the_dashboard_answers_json_and_prometheus() {
    let world = World::new();
    let running = world.up();
    let mut board = Client::new(world.dashboard);
    let numbers = board.get("/metrics").json();
    assert_eq!(numbers["processed_orders_count"], 0);
    assert_eq!(numbers.get("inventory_level"), None);
    assert_eq!(numbers.get("notification_status"), None);
    set_stock(&world, "case", 5);
    order(&mut world.client(), "a", "case", 2);
    wait_notified(&world, "a");
    let numbers = board.get("/metrics?sku=case&order_id=a").json();
    assert_eq!(numbers["processed_orders_count"], 1);
    assert_eq!(numbers["accepted_orders_count"], 1);
    assert_eq!(numbers["rejected_orders_count"], 0);
    assert_eq!(numbers["notified_orders_count"], 1);
    assert_eq!(numbers["dead_letters_count"], 0);
    assert_eq!(numbers["inventory_level"], 3);
    assert_eq!(numbers["notification_status"], "sent");
    assert_eq!(numbers["notification"]["channel"], "log");
    assert_eq!(numbers["queues"]["orders.queue"]["ready"], 0);
    assert!(numbers["rates"]["processed_per_second"].is_number());
    let numbers = board.get("/metrics?sku=hat&order_id=absent").json();
    assert_eq!(numbers.get("inventory_level"), None);
    assert_eq!(numbers.get("notification_status"), None);
    assert_eq!(board.post("/metrics", &[], b"").status, 405);
    let accept = [(
        "accept",
        "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
    )];
    let text = board.send("GET", "/metrics", &accept, b"").unwrap().text();
    assert!(
        text.contains("towpath_orders{state=\"processed\"} 1\n"),
        "{text}"
    );
    // The stock is here too.
    assert_eq!(board.get("/inventory/case").json()["quantity"], 3);
    drop(running);
}

#[test]
fn poison_goes_to_the_dead_letters_and_comes_back() {
    let world = World::new();
    let running = world.up();
    set_stock(&world, "case", 5);
    world.ok(&["send", "orders.queue", "no order at all"]);
    // Stock that is not a number has to be fixed by the operator; the order is not lost meanwhile.
    world.ok(&["kv", "set", "inventory:odd", "many"]);
    order(&mut world.client(), "kept", "odd", 1);
    order(&mut world.client(), "good", "case", 1);
    wait_for(&world, "good", "processed");
    let mut letters = Value::Null;
    wait_until("the poison to become a dead letter", SOON, || {
        letters = world.json(&["dlq", "ls", "orders.queue"]);
        letters.as_array().unwrap().len() == 1
    });
    assert_eq!(letters[0]["reason"], "not an order: Invalid JSON");
    assert_eq!(show(&world, "kept")["state"], "accepted");
    let books = world.json(&["orders", "check"]);
    assert_eq!(
        (&books["balanced"], &books["in_flight"], &books["poison"]),
        (&json!(true), &json!(1), &json!(1))
    );
    world.ok(&["dlq", "redrive", "orders.queue", "--all"]);
    wait_until("the poison to become a dead letter again", SOON, || {
        world
            .json(&["dlq", "ls", "orders.queue"])
            .as_array()
            .unwrap()
            .len()
            == 1
    });
    world.ok(&["kv", "set", "inventory:odd", "7"]);
    wait_for(&world, "kept", "processed");
    assert_eq!(stock(&world, "odd"), 6);
    drop(running);
}

#[test]
fn an_order_that_vanished_is_named() {
    let world = World::new();
    let running = world.spawn(&["run", "gateway"]);
    running.wait_ready(&world);
    order(&mut world.client(), "gone", "case", 1);
    order(&mut world.client(), "there", "case", 1);
    assert_eq!(world.json(&["orders", "check"])["in_flight"], 2);
    // An operator with the token makes a mistake.
    world.ok(&["queue", "purge", "orders.queue", "--yes"]);
    world.ok(&[
        "send",
        "orders.queue",
        r#"{"id":"there","sku":"case","qty":1}"#,
    ]);
    let output = world.run(&["orders", "check"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("  gone: accepted, and neither finished"),
        "{text}"
    );
    assert!(!text.contains("  there:"), "{text}");
    drop(running);
}

/// The keys in one store, the queues in another: no step over both.
pub(crate) fn in_two_stores(world: &mut World) {
    world
        .set("TOWPATH_BACKENDS__ORDERS", "embedded:./queues")
        .set("TOWPATH_BACKENDS__ORDERS_KV", "embedded:./keys");
}

/// Runs the same story with keys and queues in one store, and in two.
fn both_ways(story: impl Fn(World)) {
    story(World::new());
    let mut world = World::new();
    in_two_stores(&mut world);
    story(world);
}

#[test]
fn orders_wait_for_a_processor_and_for_a_notifier() {
    both_ways(|world| {
        let running = world.spawn(&["run", "gateway"]);
        running.wait_ready(&world);
        set_stock(&world, "case", 5);
        order(&mut world.client(), "early", "case", 1);
        assert_eq!(show(&world, "early")["state"], "accepted");
        running.kill();
        let running = world.spawn(&["run", "gateway,processor"]);
        running.wait_ready(&world);
        wait_for(&world, "early", "processed");
        assert_eq!(show(&world, "early")["notified"], false);
        running.kill();
        let running = world.spawn(&["run", "orders.gateway,orders.processor,orders.notifier"]);
        running.wait_ready(&world);
        wait_notified(&world, "early");
        assert_eq!(stock(&world, "case"), 4);
        let (status, log, _) = running.stop();
        assert!(status.success(), "{log}");
    });
}

#[test]
fn of_a_hundred_posts_of_one_id_one_is_accepted() {
    both_ways(|world| {
        let running = world.up();
        set_stock(&world, "case", 1000);
        let threads: Vec<_> = (0..100)
            .map(|_| {
                let mut client = world.client();
                std::thread::spawn(move || order(&mut client, "one", "case", 3).status)
            })
            .collect();
        let mut statuses: Vec<u16> = threads.into_iter().map(|one| one.join().unwrap()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses[0], 202);
        assert!(
            statuses[1..].iter().all(|status| *status == 409),
            "{statuses:?}"
        );
        wait_notified(&world, "one");
        assert_eq!(stock(&world, "case"), 997);
        let books = world.json(&["orders", "check"]);
        assert_eq!(
            (&books["accepted"], &books["notified"]),
            (&json!(1), &json!(1))
        );
        drop(running);
    });
}

#[test]
fn an_abandoned_reservation_is_claimed() {
    let mut world = World::new();
    in_two_stores(&mut world);
    let running = world.up();
    set_stock(&world, "case", 5);
    // The state after a gateway died between reserving and publishing: a record without an order.
    order(&mut world.client(), "model", "case", 1);
    wait_notified(&world, "model");
    let hash = {
        let record = world.json(&["kv", "get", "order:model"])["value"]["payload"].clone();
        let record: Value = serde_json::from_str(record.as_str().unwrap()).unwrap();
        assert_eq!(record["state"], "processed");
        record["hash"].clone()
    };
    let record = json!({
        "id": "model", "sku": "case", "qty": 1, "hash": hash, "state": "reserved",
        "reserved_until": 1, "attempts": 0, "announced": false, "history": [],
    });
    world.ok(&["kv", "set", "order:model", &record.to_string()]);
    for key in ["notif:model", "notifications:model"] {
        world.ok(&["kv", "del", key]);
    }
    let answer = order(&mut world.client(), "model", "case", 1);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (202, "Order received: model")
    );
    wait_notified(&world, "model");
    assert_eq!(stock(&world, "case"), 3);
    drop(running);
}

#[test]
fn processes_of_the_contract_can_stand_in() {
    let world = World::new();
    let running = world.up();
    set_stock(&world, "case", 50);
    // A gateway that keeps no records: the key, and the bare order.
    world.ok(&["kv", "set", "idemp:foreign", "1", "--ttl", "5m"]);
    world.ok(&[
        "send",
        "orders.queue",
        r#"{"id":"foreign","Email":"a@b","sku":"case","qty":2,"user_email":"a@b"}"#,
    ]);
    wait_notified(&world, "foreign");
    assert_eq!(stock(&world, "case"), 48);
    assert_eq!(world.json(&["orders", "check"])["accepted"], 1);
    // And ours heeds its key.
    world.ok(&["kv", "set", "idemp:held", "1"]);
    let answer = order(&mut world.client(), "held", "case", 1);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (409, "Duplicate order\n")
    );
    // A notifier that keeps its own mark has notified the customer.
    world.ok(&["kv", "set", "notif:marked", "1"]);
    order(&mut world.client(), "marked", "case", 1);
    wait_for(&world, "marked", "processed");
    wait_until("the event to be done", SOON, || {
        world.json(&["queue", "show", "notifier.queue"])["acked"] == 2
    });
    assert_eq!(show(&world, "marked")["notified"], false);
    drop(running);
}

#[test]
fn customers_are_notified_by_mail() {
    let server = MailServer::start();
    let mut world = World::new();
    world
        .set("TOWPATH_ORDERS__NOTIFY__CHANNEL", "smtp")
        .set(
            "TOWPATH_ORDERS__NOTIFY__SMTP__URL",
            format!("smtp://{}", server.address),
        )
        .set("TOWPATH_ORDERS__NOTIFY__SMTP__TO", "desk@example.org")
        .set("TOWPATH_ORDERS__RETRY__FIRST", "10ms");
    server.refuse(2);
    let running = world.up();
    set_stock(&world, "case", 50);
    order(&mut world.client(), "plain", "case", 1);
    let body = json!({"id": "own", "sku": "case", "qty": 1, "email": "me@example.org"}).to_string();
    world.client().post("/orders", &[], body.as_bytes());
    let body =
        json!({"id": "wrong", "sku": "case", "qty": 1, "email": "not an address"}).to_string();
    world.client().post("/orders", &[], body.as_bytes());
    wait_notified(&world, "plain");
    let known = wait_notified(&world, "own");
    assert_eq!(known["notification"]["channel"], "smtp");
    // Stock for none.
    order(&mut world.client(), "short", "hat", 1);
    wait_notified(&world, "short");
    let mails = server.mails();
    assert_eq!(mails.len(), 3, "{mails:?}");
    let short = mails.iter().find(|mail| mail.text.contains("Order short"));
    let short = &short.unwrap().text;
    assert!(
        short.contains("Your order short was rejected, 1 of hat: unknown sku `hat`."),
        "{short}"
    );
    let own = mails
        .iter()
        .find(|mail| mail.to.contains("me@example.org"))
        .unwrap();
    assert!(own.text.contains("Subject: Order own\r\n"), "{}", own.text);
    assert!(
        own.text
            .contains("Your order own was processed: 1 of case."),
        "{}",
        own.text
    );
    assert!(
        mails
            .iter()
            .any(|mail| mail.to.contains("desk@example.org"))
    );
    wait_until(
        "the one without an address to become a dead letter",
        SOON,
        || {
            world
                .json(&["dlq", "ls", "notifier.queue"])
                .as_array()
                .unwrap()
                .len()
                == 1
        },
    );
    let known = show(&world, "wrong");
    assert_eq!(
        (&known["notified"], &known["notification"]["status"]),
        (&json!(false), &json!("failed"))
    );
    drop(running);
}

/// Takes posts, remembers their ids, and answers 503 while `away` is set.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    pub(crate) ids: Arc<Mutex<Vec<(String, String)>>>,
    pub(crate) away: Arc<AtomicBool>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            ids: Arc::default(),
            away: Arc::default(),
        };
        let (ids, away) = (Arc::clone(&receiver.ids), Arc::clone(&receiver.away));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (ids, away) = (Arc::clone(&ids), Arc::clone(&away));
                std::thread::spawn(move || {
                    let mut writer = stream.try_clone().unwrap();
                    let mut reader = BufReader::new(stream);
                    while let Some((id, body)) = request(&mut reader) {
                        let status = if away.load(Ordering::SeqCst) {
                            "503 Service Unavailable"
                        } else {
                            ids.lock().unwrap().push((id, body));
                            "204 No Content"
                        };
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                        if writer.write_all(answer.as_bytes()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        receiver
    }

    /// Each effect once: posts with one key are one effect.
    pub(crate) fn effects(&self) -> BTreeSet<(String, String)> {
        self.ids.lock().unwrap().iter().cloned().collect()
    }
}

/// The `webhook-id` and the body of a request.
fn request(reader: &mut impl std::io::BufRead) -> Option<(String, String)> {
    let (mut id, mut length, mut line) = (String::new(), 0, String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("webhook-id", value)) => id = value.to_owned(),
            Some(("content-length", value)) => length = value.parse().ok()?,
            _ if line == "\r\n" => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((id, String::from_utf8(body).ok()?))
}

#[test]
fn a_webhook_that_was_unavailable_is_called_once_when_it_is_back() {
    let receiver = Receiver::start();
    receiver.away.store(true, Ordering::SeqCst);
    let mut world = World::new();
    world
        .set("TOWPATH_ORDERS__NOTIFY__CHANNEL", "webhook")
        .set(
            "TOWPATH_ORDERS__NOTIFY__WEBHOOK__URL",
            format!("http://{}/notified", receiver.address),
        )
        .set("TOWPATH_ORDERS__RETRY__FIRST", "50ms")
        .set("TOWPATH_ORDERS__RETRY__MAX", "200ms")
        .set("TOWPATH_ORDERS__RETRY__ATTEMPTS", 1000);
    let running = world.up();
    set_stock(&world, "case", 50);
    for number in 0..20 {
        order(&mut world.client(), &format!("o{number}"), "case", 1);
    }
    // The receiver is tried by one notification at a time.
    wait_until("a failed attempt to show", SOON, || {
        (0..20).any(|number| {
            show(&world, &format!("o{number}"))["notification"]["status"] == "retrying"
        })
    });
    // A notifier of the reference system would take a claim for a sent notification.
    wait_until("the claims of failed attempts to be released", SOON, || {
        !world.ok(&["kv", "keys", "notif:"]).contains("notif:")
    });
    receiver.away.store(false, Ordering::SeqCst);
    for number in 0..20 {
        let known = wait_notified(&world, &format!("o{number}"));
        assert!(known["notification"]["attempts"].as_str().unwrap() > "0");
    }
    let came = receiver.ids.lock().unwrap().len();
    assert_eq!((came, receiver.effects().len()), (20, 20));
    drop(running);
}

#[test]
fn variables_may_come_from_a_file() {
    let world = World::new();
    std::fs::write(
        world.folder.join(".env"),
        "TOWPATH_ORDERS__IDEMPOTENCY_WINDOW=1h # longer\nHTTP_ADDR=127.0.0.1:1\n",
    )
    .unwrap();
    // The environment itself goes before the file: HTTP_ADDR is set there.
    let running = world.up();
    order(&mut world.client(), "a", "case", 1);
    let ttl: i64 = world.ok(&["kv", "ttl", "idemp:a"]).trim().parse().unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    drop(running);
}
