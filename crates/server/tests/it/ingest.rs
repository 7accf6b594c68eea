//! The contract of the ingest app, to the letter, on the embedded store.

use std::time::{Duration, Instant};

use crate::process::{World, wait_until};

#[test]
fn a_post_becomes_a_line_and_the_queue_counts_it() {
    let world = World::new();
    let running = world.up();
    let mut client = world.client();

    let answer = client.post(
        "/enqueue",
        &[("content-type", "application/x-www-form-urlencoded")],
        b"hello\n",
    );
    let began = Instant::now();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(answer.text().ends_with("}\n"));
    let reply = answer.json();
    assert_eq!(reply["enqueued"], true);
    assert_eq!(reply["queue"], "messages");
    assert_eq!(reply["message"], "hello");
    assert_eq!(reply["id"].as_str().unwrap().len(), 36);

    wait_until("the line", Duration::from_secs(5), || {
        world.messages() == ["hello"]
    });
    // Generous beside the promise of 100 ms on an idle machine, because tests share one.
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    world.wait_drained();
    let stats = world.json(&["queue", "show", "messages"]);
    assert_eq!(
        (&stats["enqueued"], &stats["acked"]),
        (&1.into(), &1.into())
    );
    drop(running);
}

#[test]
fn every_reply_of_the_contract_is_kept() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    let json = [("content-type", "application/json; charset=utf-8")];

    let answer = client.post("/enqueue", &json, br#"{"message":" hello json ","x":1}"#);
    assert_eq!(
        (answer.status, &answer.json()["message"]),
        (200, &"hello json".into())
    );
    for (headers, body) in [
        (&[][..], ""),
        (&[], "  \n"),
        (&json[..], "null"),
        (&json, "{}"),
        (&json, r#"{"message":""}"#),
    ] {
        let answer = client.post("/enqueue", headers, body.as_bytes());
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (400, "message is required\n"),
            "{body}"
        );
        assert!(answer.headers["content-type"].starts_with("text/plain"));
    }
    let answer = client.post("/enqueue", &json, b"{");
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().starts_with("invalid JSON body: "),
        "{}",
        answer.text()
    );

    let answer = client.get("/healthz");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let answer = client.send("HEAD", "/healthz", &[], b"").unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));

    let answer = client.get("/enqueue");
    assert_eq!(
        (answer.status, answer.headers["allow"].as_str()),
        (405, "POST")
    );
    let answer = client.send("DELETE", "/healthz", &[], b"").unwrap();
    assert_eq!(
        (answer.status, answer.headers["allow"].as_str()),
        (405, "GET,HEAD")
    );
    assert_eq!(client.get("/nothing").status, 404);
}

#[test]
fn an_oversize_body_is_413_and_nothing_is_stored() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__MAX_BODY", "1KiB");
    let _running = world.up();
    let mut client = world.client();
    let fits = "x".repeat(1024);
    assert_eq!(client.post("/enqueue", &[], fits.as_bytes()).status, 200);
    let answer = client.post("/enqueue", &[], format!("{fits}x").as_bytes());
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (413, "message is over the limit of 1024 bytes\n")
    );
    world.wait_drained();
    assert_eq!(world.messages(), [fits]);
    assert_eq!(world.json(&["queue", "show", "messages"])["enqueued"], 1);
}

#[test]
fn a_repeated_idempotency_key_answers_the_first_id_across_restarts() {
    let world = World::new();
    let running = world.up();
    let key = [("idempotency-key", "order-1")];
    let first = world.client().post("/enqueue", &key, b"once");
    let second = world.client().post("/enqueue", &key, b"once");
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(second.headers["idempotency-replayed"], "true");
    assert!(!first.headers.contains_key("idempotency-replayed"));
    running.kill();

    let _running = world.up();
    let third = world.client().post("/enqueue", &key, b"once");
    assert_eq!(first.json()["id"], third.json()["id"]);
    world.wait_drained();
    assert_eq!(world.messages(), ["once"]);
}

#[test]
fn a_batch_is_taken_whole_or_refused_whole() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    let ndjson = [
        ("content-type", "application/x-ndjson"),
        ("idempotency-key", "batch-1"),
    ];
    let body = b"\"one\"\n{\"message\":\"two\"}\n\n\"three\"\n";
    let answer = client.post("/enqueue/batch", &ndjson, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["enqueued"], 3);
    let again = client.post("/enqueue/batch", &ndjson, body);
    assert_eq!(again.json()["results"][2]["duplicate"], true);
    assert_eq!(
        again.json()["results"][2]["id"],
        answer.json()["results"][2]["id"]
    );

    let answer = client.post("/enqueue/batch", &[], b"\"four\"\nfive\n");
    assert_eq!(answer.status, 400);
    assert!(answer.text().starts_with("line 2: "), "{}", answer.text());
    world.wait_drained();
    assert_eq!(world.messages(), ["one", "two", "three"]);
}

#[test]
fn a_full_queue_is_429_with_retry_after() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__MAX_DEPTH", 2);
    let _running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    let mut client = world.client();
    assert_eq!(client.post("/enqueue", &[], b"1").status, 200);
    assert_eq!(client.post("/enqueue", &[], b"2").status, 200);
    let answer = client.post("/enqueue", &[], b"3");
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.headers["retry-after"], "1");
    world.ok(&["queue", "resume", "messages"]);
    world.wait_drained();
    assert_eq!(world.messages(), ["1", "2"]);
}

#[test]
fn any_message_is_one_line_that_can_be_read_back() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    let forged = "real\n2026-01-01T00:00:00Z | forged\0\r\u{1b}[2J";
    let large = "line\n\\".repeat(174_000);
    assert_eq!(client.post("/enqueue", &[], forged.as_bytes()).status, 200);
    assert_eq!(client.post("/enqueue", &[], large.as_bytes()).status, 200);
    world.wait_drained();
    let read_back: Vec<Vec<u8>> = world
        .messages()
        .iter()
        .map(|text| towpath::sink::unescape(text).unwrap())
        .collect();
    assert_eq!(read_back, [forged.as_bytes(), large.trim().as_bytes()]);
}

#[test]
fn queue_name_and_output_path_are_the_reference_variables() {
    let mut world = World::new();
    let output = world.folder.join("out/processed.log");
    world
        .set("QUEUE_NAME", "jobs")
        .set("OUTPUT_PATH", output.display());
    let _running = world.up();
    let answer = world.client().post("/enqueue", &[], b"x");
    assert_eq!(answer.json()["queue"], "jobs");
    wait_until("the line", Duration::from_secs(5), || {
        crate::process::lines_of(&output).len() == 1
    });
}

#[test]
fn metrics_count_deliveries_in_both_formats() {
    let world = World::new();
    let _running = world.up();
    world.client().post("/enqueue", &[], b"x");
    world.wait_drained();
    let mut admin = world.admin_client();
    let plain = admin.get("/metrics");
    assert!(plain.headers["content-type"].starts_with("text/plain"));
    for line in [
        "towpath_queue_ready_messages{queue=\"messages\"} 0",
        "towpath_messages_enqueued_total{queue=\"messages\"} 1",
    ] {
        assert!(
            plain.text().contains(line),
            "{line} is missing in:\n{}",
            plain.text()
        );
    }
    let open = admin
        .send(
            "GET",
            "/metrics",
            &[("accept", "application/openmetrics-text")],
            b"",
        )
        .unwrap();
    assert!(open.headers["content-type"].starts_with("application/openmetrics-text"));
    assert!(open.text().ends_with("# EOF\n"));
}
