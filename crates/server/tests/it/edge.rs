//! Ambiguous requests on every public port.

use std::net::{Ipv6Addr, SocketAddr};

use serde_json::json;

use crate::client::{Client, raw};
use crate::fleet::{KEY, world};
use crate::process::World;

const GZIP: (&str, &str) = ("content-encoding", "gzip");
const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn a_list_is_not_an_object_and_an_unknown_field_is_not_ignored() {
    let world = world();
    let _running = world.up();
    let key = ("x-api-key", KEY);
    let mut public = world.client();
    let mut controller = Client::new(world.controller);
    let mut worker = Client::new(world.hits);
    let users = public.post("/api/users", &[JSON], br#"["n@example.com","N"]"#);
    assert_eq!(users.status, 400);
    let stock = public.send("PATCH", "/inventory/sku", &[JSON], b"[-3]");
    assert_eq!(stock.unwrap().status, 400);
    for takes in [&br#"[["k",1]]"#[..], br#"{"takes":[["k",1]],"mode":"all"}"#] {
        let answer = public.post("/api/bucket/bulk-consume", &[JSON], takes);
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    assert_eq!(worker.post("/config", &[JSON], b"[]").status, 400);
    assert_eq!(worker.post("/hit", &[JSON], b"[null]").status, 400);
    let data = r#""data":{"url":"http://127.0.0.1:9/"}"#;
    for (body, reason) in [
        ("[{\"url\":\"x\"}]".to_owned(), "must be an object"),
        (
            format!("{{{data},\"rollout\":[[\"10%\"],1]}}"),
            "must be an object",
        ),
        (
            format!("{{{data},\"rolout\":{{\"steps\":[\"10%\"]}}}}"),
            "did you mean `rollout`?",
        ),
        (
            format!("{{{data},\"rollout\":{{\"stpes\":[\"10%\"]}}}}"),
            "did you mean `steps`?",
        ),
    ] {
        let answer = controller.post("/config", &[JSON, key], body.as_bytes());
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains(reason), "{}", answer.text());
    }
    let answer = worker.post("/hit", &[JSON], br#"{"callbackUrl":"http://127.0.0.1:9/"}"#);
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("did you mean `callback_url`?"),
        "{}",
        answer.text()
    );
}

#[test]
fn an_encoded_body_is_refused_on_every_port() {
    let world = world();
    let _running = world.up();
    for (address, path) in [
        (world.http, "/enqueue"),
        (world.http, "/enqueue/batch"),
        (world.http, "/orders"),
        (world.http, "/api/users"),
        (world.http, "/api/bucket/bulk-consume"),
        (world.controller, "/config"),
        (world.hits, "/hit"),
    ] {
        let answer = Client::new(address).post(path, &[GZIP], b"\x1f\x8b");
        assert_eq!(
            (answer.status, &*answer.headers["accept-encoding"]),
            (415, "identity"),
            "{path}"
        );
        let plain = [("content-encoding", "identity")];
        assert_ne!(
            Client::new(address).post(path, &plain, b"x").status,
            415,
            "{path}"
        );
    }
}

#[test]
fn takes_of_one_key_must_fit_together() {
    let world = World::new();
    let _running = world.up();
    let take = |tokens| json!({ "key": "k", "tokens": tokens });
    let mut client = world.client();
    let mut bulk = |takes| {
        let body = serde_json::Value::to_string(&takes);
        client.post("/api/bucket/bulk-consume", &[JSON], body.as_bytes())
    };
    let refused = bulk(json!([take(60), take(60)]));
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(
        refused.text().contains("add up to 120"),
        "{}",
        refused.text()
    );
    assert_eq!(bulk(json!([take(60), take(40)])).status, 200);
    assert_eq!(bulk(json!([take(60), take(40)])).status, 429);
}

#[test]
fn clients_behind_a_proxy_are_distinguished_and_probes_are_not_limited() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__LIMITS", "*=token_bucket:1:0.001/1s");
    world.set("TOWPATH_SERVER__TRUSTED_PROXIES", "127.0.0.1");
    let running = world.up();
    let mut client = world.client();
    let mut get = |path: &str, forwarded: &str| {
        let headers = [("x-forwarded-for", forwarded)];
        client.send("GET", path, &headers, b"").unwrap().status
    };
    for address in [
        "203.0.113.1:51001",
        "203.0.113.2:51002",
        "[2001:db8::1]:443",
        "[2001:db8:1::1]",
    ] {
        assert_eq!(get("/api/bucket/check?key=k", address), 200, "{address}");
        assert_eq!(get("/api/bucket/check?key=k", address), 429, "{address}");
    }
    for _ in 0..3 {
        assert_eq!(get("/healthz", "203.0.113.1"), 200);
        assert_eq!(get("/health", "203.0.113.1"), 200);
        get("/api/bucket/check?key=k", "unknown");
    }
    let (_, log, _) = running.stop();
    assert_eq!(
        log.matches("forwarded address unreadable").count(),
        1,
        "{log}"
    );
}

#[test]
fn a_refused_media_type_is_not_served() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    let mut kind = |accept: &str| {
        let answer = client
            .send("GET", "/nowhere", &[("accept", accept)], b"")
            .unwrap();
        answer.headers["content-type"].clone()
    };
    assert_eq!(kind("application/problem+json"), "application/problem+json");
    assert!(kind("text/plain, application/problem+json;q=0").starts_with("text/plain"));
    let mut dashboard = Client::new(world.dashboard);
    let mut kind = |accept: &str| {
        let answer = dashboard
            .send("GET", "/metrics", &[("accept", accept)], b"")
            .unwrap();
        answer.headers["content-type"].clone()
    };
    assert_eq!(
        kind("application/json, text/plain, */*"),
        "application/json"
    );
    assert!(kind("text/plain;version=0.0.4;q=0.5,*/*;q=0.1").starts_with("text/plain"));
}

#[test]
fn a_port_alone_is_served_on_both_families() {
    let mut world = World::new();
    let port = world.http.port();
    world.set("HTTP_ADDR", format!(":{port}"));
    let _running = world.up();
    assert_eq!(world.client().get("/healthz").status, 200);
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    assert_eq!(Client::new(six).get("/healthz").status, 200);
}

#[test]
fn a_page_of_another_site_reaches_nothing() {
    let world = world();
    let _running = world.up();
    let evil = ("origin", "http://evil.example");
    let order = br#"{"id":"o1","sku":"s","qty":1}"#;
    for (address, path, body) in [
        (world.http, "/enqueue", &b"hello"[..]),
        (world.http, "/enqueue/batch", b"\"hello\""),
        (world.http, "/orders", order),
        (world.http, "/api/users", br#"{"email":"a@b","name":"N"}"#),
        (world.http, "/api/bucket/reset?key=k", b""),
        (world.dashboard, "/inventory/s", br#"{"quantity":1}"#),
        (world.controller, "/config", b"{}"),
        (world.hits, "/config", br#"{"version":9,"data":{}}"#),
        (world.hits, "/hit", b""),
    ] {
        let method = match path {
            "/inventory/s" => "PUT",
            _ => "POST",
        };
        let mut client = Client::new(address);
        for page in [evil, ("sec-fetch-site", "cross-site")] {
            let answer = client.send(method, path, &[page], body).unwrap();
            assert_eq!(answer.status, 403, "{path} {page:?}");
        }
        let host =
            format!("{method} {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n");
        let length = format!("content-length: {}\r\n\r\n", body.len());
        let answer = raw(
            address,
            &[host.as_bytes(), length.as_bytes(), body].concat(),
        );
        assert!(answer.starts_with("HTTP/1.1 421 "), "{path}: {answer}");
        assert!(answer.contains("server.hosts"), "{answer}");
    }
    // Its own page, and programs.
    let own = format!("http://{}", world.http);
    let answer = world
        .client()
        .post("/enqueue", &[("origin", &own)], b"hello");
    assert_eq!(answer.status, 200);
}

#[test]
fn the_worker_trusts_programs_of_this_machine_only() {
    let world = world();
    let _running = world.up();
    let mut client = Client::new(world.hits);
    let mut get = |path: &str, headers: &[(&str, &str)]| {
        client.send("GET", path, headers, b"").unwrap().status
    };
    for path in ["/hit", "/hits", "/config"] {
        for header in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("x-forwarded-for", "203.0.113.9"),
            ("forwarded", "for=203.0.113.9"),
            ("via", "1.1 proxy"),
            ("x-real-ip", "203.0.113.9"),
        ] {
            assert_eq!(get(path, &[header]), 403, "{path} {header:?}");
            let with_key = get(path, &[header, ("x-api-key", KEY)]);
            assert_ne!(with_key, 403, "{path} {header:?}");
        }
    }
    assert_eq!(get("/hits", &[]), 200);
}
