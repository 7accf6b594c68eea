//! The contract of the limits, status by status and field by field, and that no client gets more than the limit.

use std::time::{Duration, Instant};

use serde_json::json;
use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use crate::client::Answer;
use crate::process::{Running, World, able, wait_until};

fn post(world: &World, path: &str, body: &str) -> Answer {
    world.client().post(path, &[], body.as_bytes())
}

/// The same story on the embedded store and on Redis.
fn both(limits: &str, story: impl Fn(&World, Option<&mut Server>)) {
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__LIMITS", limits);
    let running = world.up();
    story(&world, None);
    drop(running);
    if able("redis", missing().is_none()) {
        let (world, _running, mut server) = on_redis(limits);
        story(&world, Some(&mut server));
    }
}

fn on_redis(limits: &str) -> (World, Running, Server) {
    let server = Server::start(DURABLE);
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__LIMITS", limits);
    world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
    let running = world.spawn(&["run", "unified-server"]);
    running.wait_ready(&world);
    (world, running, server)
}

#[test]
fn the_paths_fields_and_codes_of_the_contract_hold() {
    // A day for a token, so that nothing is refilled meanwhile.
    both("default=token_bucket:100:1/24h", |world, _| {
        let full = world.client().get("/api/bucket/check?key=user123");
        assert_eq!(full.status, 200);
        let body = full.json();
        assert_eq!(
            (&body["key"], &body["success"]),
            (&json!("user123"), &json!(true))
        );
        assert_eq!(
            (&body["current_tokens"], &body["capacity"]),
            (&json!(100.0), &json!(100))
        );
        assert_eq!(body["ttl_seconds"], 0, "full already");
        assert_eq!(full.headers["ratelimit-remaining"], "100");
        let time = body["last_refill_time"].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z'), "{time}");

        let taken = post(world, "/api/bucket/consume?key=user123&tokens=5", "");
        assert_eq!(taken.status, 200);
        assert_eq!(
            taken.json(),
            json!({"allowed": true, "remaining_tokens": 95.0, "success": true, "message": "Successfully consumed 5.0 tokens"})
        );
        // Fractions are kept.
        let taken = post(world, "/api/bucket/consume?key=user123&tokens=0.5", "");
        assert_eq!(taken.json()["remaining_tokens"], 94.5);
        let taken = post(world, "/api/bucket/consume?key=user123", "");
        assert_eq!(taken.json()["remaining_tokens"], 93.5);

        let refused = post(world, "/api/bucket/consume?key=user123&tokens=94", "");
        assert_eq!(refused.status, 429);
        let body = refused.json();
        assert_eq!(
            (&body["allowed"], &body["message"]),
            (&json!(false), &json!("Rate limit exceeded"))
        );
        let after = body["retry_after_seconds"].as_f64().unwrap();
        assert!(
            (43_000.0..=43_200.0).contains(&after),
            "half a token is half a day: {after}"
        );
        let header: f64 = refused.headers["retry-after"].parse().unwrap();
        assert!(header >= after && header - after < 1.0, "{header}");

        let reset = post(world, "/api/bucket/reset?key=user123", "");
        assert_eq!(
            reset.json(),
            json!({"success": true, "key": "user123", "message": "Bucket 'user123' has been reset to full capacity"})
        );
        let bulk = post(world, "/api/bucket/bulk-consume?key=user123", "");
        assert_eq!(bulk.status, 200);
        let body = bulk.json();
        assert_eq!(body["message"], "Bulk consumption test completed");
        let results = body["results"].as_array().unwrap();
        assert_eq!(results.len(), 10);
        assert_eq!(
            results[9],
            json!({"attempt": 10, "allowed": true, "remaining_tokens": 90.0, "retry_after": 0.0})
        );

        for (path, word) in [
            ("/api/bucket/consume", "missing_key"),
            ("/api/bucket/consume?key=%20", "missing_key"),
            ("/api/bucket/consume?key=a&tokens=x", "invalid_tokens"),
            ("/api/bucket/consume?key=a&tokens=NaN", "invalid_tokens"),
            ("/api/bucket/consume?key=a&tokens=inf", "invalid_tokens"),
            ("/api/bucket/consume?key=a&tokens=-1", "invalid_tokens"),
            ("/api/bucket/consume?key=a&tokens=0", "invalid_tokens"),
            // It could never be allowed.
            ("/api/bucket/consume?key=a&tokens=101", "invalid_tokens"),
            ("/api/bucket/consume?key=a&policy=b", "unknown_policy"),
            ("/api/bucket/reset", "missing_key"),
            ("/api/bucket/bulk-consume", "missing_key"),
        ] {
            let answer = post(world, path, "");
            assert_eq!(
                (answer.status, &answer.json()["error"]),
                (400, &json!(word)),
                "{path}"
            );
        }
        let answer = post(world, "/api/bucket/bulk-consume?key=a", "{");
        assert_eq!(
            (answer.status, &answer.json()["error"]),
            (400, &json!("parse_error"))
        );
        let wrong = world
            .client()
            .send("GET", "/api/bucket/consume?key=a", &[], b"")
            .unwrap();
        assert_eq!(
            (wrong.status, wrong.headers["allow"].as_str()),
            (405, "POST")
        );
    });
}

#[test]
fn a_list_is_taken_whole_or_each_key_separately() {
    both(
        "small=token_bucket:2:1/24h window=sliding_window:3/1h",
        |world, _| {
            let list = r#"[{"key":"a","policy":"small","tokens":2},{"key":"b","policy":"window","tokens":4}]"#;
            let never = post(world, "/api/bucket/bulk-consume", list);
            assert_eq!(
                (never.status, &never.json()["error"]),
                (400, &json!("invalid_tokens"))
            );
            let list = r#"[{"key":"a","policy":"small","tokens":2},{"key":"b","policy":"window","tokens":2}]"#;
            assert_eq!(post(world, "/api/bucket/bulk-consume", list).status, 200);
            // `b` has one left and `a` none: nothing is taken of either.
            let one = r#"[{"key":"b","policy":"window"},{"key":"a","policy":"small"}]"#;
            let refused = post(world, "/api/bucket/bulk-consume", one);
            assert_eq!(refused.status, 429, "{}", refused.text());
            assert!(refused.headers.contains_key("retry-after"));
            let results = refused.json()["results"].clone();
            assert!(
                results
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|one| one["allowed"] == false),
                "{results}"
            );
            let each = format!(r#"{{"mode":"each","takes":{one}}}"#);
            let answer = post(world, "/api/bucket/bulk-consume", &each);
            assert_eq!(answer.status, 200);
            let results = answer.json()["results"].clone();
            assert_eq!(
                (&results[0]["allowed"], &results[1]["allowed"]),
                (&json!(true), &json!(false))
            );
        },
    );
}

#[test]
fn many_clients_at_once_get_no_more_than_there_is() {
    // Two tokens a second.
    both("default=token_bucket:50:2/1s", |world, _| {
        let began = Instant::now();
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let mut client = world.client();
                std::thread::spawn(move || {
                    let take =
                        |_: &i32| client.post("/api/bucket/consume?key=k", &[], b"").status == 200;
                    (0..20).filter(take).count()
                })
            })
            .collect();
        let taken: usize = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum();
        let most = 50.0 + 2.0 * (began.elapsed().as_secs_f64() + 0.01);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let taken = taken as f64;
        assert!((50.0..=most).contains(&taken), "{taken} of at most {most}");
    });
}

#[test]
fn while_the_store_is_unavailable_each_limit_follows_its_policy() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let limits = "open=token_bucket:1:1/24h:fail_open local=token_bucket:2:1/24h:local";
    let (world, _running, mut server) = on_redis(limits);
    let health = world.client().get("/health");
    assert_eq!(
        (health.status, &health.json()["status"]),
        (200, &json!("healthy"))
    );
    let health = world.client().get("/health/bucket").json();
    assert_eq!(health["service"], "redis-token-bucket");
    let shown = server.command(&["EXISTS", "token_bucket:user"]);
    assert!(shown.starts_with(":0"), "{shown}");
    post(&world, "/api/bucket/consume?key=user", "");
    let shown = server.command(&["EXISTS", "token_bucket:user"]);
    assert!(shown.starts_with(":1"), "the key of the contract: {shown}");
    server.kill();
    let take = |policy: &str| {
        let path = format!("/api/bucket/consume?key=k&policy={policy}");
        post(&world, &path, "").status
    };
    assert_eq!(take("default"), 503);
    assert_eq!([take("open"), take("open")], [200, 200]);
    assert_eq!(
        [take("local"), take("local"), take("local")],
        [200, 200, 429]
    );
    let refused = post(&world, "/api/bucket/consume?key=k", "");
    assert_eq!(refused.json()["error"], "bucket_error");
    assert!(
        !refused.text().contains("127.0.0.1"),
        "no internal text: {}",
        refused.text()
    );
    let metrics = world.admin_client().get("/metrics").text();
    for (limit, outcome, count) in [
        ("default", "allowed", 1),
        ("default", "undecided", 2),
        ("open", "allowed", 2),
        ("local", "allowed", 2),
        ("local", "denied", 1),
    ] {
        let line = format!("limit=\"{limit}\",outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    assert_eq!(world.client().get("/health").status, 503);
    server.restart();
    wait_until("the store", Duration::from_secs(30), || {
        take("default") == 200
    });
}

#[test]
fn routes_are_limited_for_each_client_whatever_it_says() {
    let mut world = World::new();
    world.set(
        "TOWPATH_SERVER__LIMITS",
        "*=token_bucket:3:0.001/1s /api/users=token_bucket:1:0.001/1s:fail_open",
    );
    // Clients that forward others have no key.
    world.set("TOWPATH_SERVER__AUTH", "off");
    let running = world.up();
    let mut client = world.client();
    let mut get = |path: &str, forwarded: &str| {
        let headers = [("x-forwarded-for", forwarded), ("authorization", forwarded)];
        client.send("GET", path, &headers, b"").unwrap()
    };
    for left in ["2", "1", "0"] {
        let answer = get("/api/bucket/check?key=a", left);
        assert_eq!(
            (answer.status, &*answer.headers["x-ratelimit-remaining"]),
            (200, left)
        );
        assert_eq!(answer.headers["x-ratelimit-limit"], "3");
        assert_eq!(answer.headers["ratelimit-limit"], "100", "of the bucket");
    }
    let refused = get("/api/bucket/check?key=a", "1.2.3.4");
    assert_eq!(refused.status, 429);
    let after: u64 = refused.headers["retry-after"].parse().unwrap();
    assert!((990..=1_000).contains(&after), "{after}");
    let text = format!("Rate limit exceeded. Try again after {after} seconds.\n");
    assert_eq!(refused.text(), text);
    // A route with a limit of its own, and probes, which have none.
    assert_eq!(get("/api/users", "x").status, 200);
    assert_eq!(get("/api/users", "y").status, 429);
    for _ in 0..5 {
        assert_eq!(get("/health", "x").status, 200);
    }
    let metrics = world.admin_client().get("/metrics").text();
    let denied = "{limit=\"/api/users\",outcome=\"denied\"} 1\n";
    assert!(metrics.contains(denied), "{metrics}");
    drop(running);
    world.set("TOWPATH_SERVER__TRUSTED_PROXIES", "127.0.0.0/8");
    let _running = world.up();
    let mut client = world.client();
    let mut get = |forwarded: &str| {
        let headers = [("x-forwarded-for", forwarded)];
        client
            .send("GET", "/api/users", &headers, b"")
            .unwrap()
            .status
    };
    assert_eq!((get("1.2.3.4"), get("1.2.3.4")), (200, 429));
    assert_eq!(
        get("9.9.9.9, 1.2.3.4, 127.0.0.2"),
        429,
        "the last address that is not a proxy"
    );
    assert_eq!(get("5.6.7.8"), 200);
    assert_eq!(
        (get("2001:db8::1"), get("2001:db8::2")),
        (200, 429),
        "of one network"
    );
}
