//! The words of HTTP on every public port: preconditions, idempotency keys, forms of errors, and types that the reference
//! systems' own clients read.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Client, connect, raw, to_end};
use crate::fleet::{KEY, ask, publish, url, world};
use crate::process::World;

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn a_user_changes_only_as_its_preconditions_say() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    let ann = br#"{"email":"ann@example.org","name":"Ann"}"#;
    let user = client.post("/api/users", &[JSON], ann).json();
    let path = format!("/api/users/{}", user["id"].as_str().unwrap());
    let mut put =
        |headers: &[(&str, &str)]| client.send("PUT", &path, headers, ann).unwrap().status;
    let mut version = 1;
    for (header, value, expected) in [
        ("if-match", "\"1\", \"7\"", 200),
        ("if-match", "W/\"2\"", 412),
        ("if-match", "\"abc\"", 412),
        ("if-match", "\"02\"", 412),
        ("if-match", "\"+2\"", 412),
        ("if-match", "\"2\"", 200),
        ("if-match", "*", 200),
        ("if-none-match", "*", 412),
        ("if-none-match", "\"4\"", 412),
        ("if-none-match", "W/\"4\"", 412),
        ("if-none-match", "\"3\"", 200),
    ] {
        assert_eq!(
            put(&[(header, value)]),
            expected,
            "{header}: {value} at {version}"
        );
        version += i32::from(expected == 200);
    }
    assert_eq!(put(&[("if-match", "\"1\""), ("if-match", "\"5\"")]), 200);
    let mut get =
        |header: &str, value: &str| client.send("GET", &path, &[(header, value)], b"").unwrap();
    for (value, expected) in [
        ("\"6\"", 304),
        ("\"1\", W/\"6\"", 304),
        ("*", 304),
        ("\"5\"", 200),
    ] {
        let answer = get("if-none-match", value);
        assert_eq!(
            (answer.status, &*answer.headers["etag"]),
            (expected, "\"6\""),
            "{value}"
        );
    }
    assert_eq!(get("if-match", "\"5\"").status, 412);
    let stale = client
        .send("DELETE", &path, &[("if-match", "\"5\"")], b"")
        .unwrap();
    assert_eq!(stale.status, 412);
    let gone = client
        .send("DELETE", &path, &[("if-match", "\"5\", \"6\"")], b"")
        .unwrap();
    assert_eq!(gone.status, 204);
}

#[test]
fn a_configuration_is_published_only_as_its_preconditions_say() {
    let world = world();
    let _running = world.up();
    let publish_if = |header: &str, value: &str| {
        ask(
            &world,
            "POST",
            "/config",
            &[(header, value)],
            &url("http://127.0.0.1:9/"),
        )
        .status
    };
    assert_eq!(publish_if("if-match", "*"), 412, "there is none");
    assert_eq!(publish_if("if-none-match", "*"), 201, "the first");
    assert_eq!(publish_if("if-none-match", "*"), 412);
    assert_eq!(publish_if("if-match", "W/\"1\""), 412);
    assert_eq!(publish_if("if-match", "\"7\", \"1\""), 201);
    assert_eq!(publish_if("if-match", "*"), 201);
    assert_eq!(publish_if("if-none-match", "\"3\""), 412);
    let headers = [("if-match", "\"1\""), ("if-match", "\"3\"")];
    let two = ask(
        &world,
        "POST",
        "/config",
        &headers,
        &url("http://127.0.0.1:9/"),
    );
    assert_eq!(two.status, 201);
    let old = ask(&world, "GET", "/config/1", &[], &Value::Null);
    let tag = [("if-none-match", &*old.headers["etag"])];
    assert_eq!(
        ask(&world, "GET", "/config/1", &tag, &Value::Null).status,
        304
    );
    assert_eq!(
        ask(&world, "GET", "/config/2", &tag, &Value::Null).status,
        200
    );
}

#[test]
fn an_idempotency_key_means_one_request_on_every_route() {
    let world = world();
    let _running = world.up();
    publish(&world, &url("http://127.0.0.1:9/"));
    crate::fleet::wait_version(&world, 1);
    let admin = world.bearer();
    let auth = ("authorization", &*admin);
    for (address, path, body, other) in [
        (world.http, "/enqueue", "one", "two"),
        (
            world.http,
            "/enqueue/batch",
            "\"one\"\n\"two\"",
            "\"one\"\n\"three\"",
        ),
        (
            world.http,
            "/api/users",
            r#"{"email":"a@example.org","name":"A"}"#,
            r#"{"email":"b@example.org","name":"B"}"#,
        ),
        (
            world.hits,
            "/hit",
            "",
            r#"{"callback_url":"http://127.0.0.1:9/"}"#,
        ),
        (world.admin, "/v1/queues/jobs/messages", "one", "two"),
    ] {
        let mut client = Client::new(address);
        let mut post = |key: &str, body: &str| {
            let headers = [("idempotency-key", key), auth];
            client.post(path, &headers, body.as_bytes())
        };
        let id = |answer: &Answer| match answer.json() {
            answer if answer["data"].is_object() => answer["data"]["task_id"].clone(),
            answer if answer["results"].is_array() => answer["results"][1]["id"].clone(),
            answer => answer["id"].clone(),
        };
        let longest = "k".repeat(255);
        for key in ["key 1", &longest] {
            let key = format!("{}{key}", &path[1..2]);
            let key = &key[..key.len().min(255)];
            let first = post(key, body);
            assert!(first.status < 300, "{path}: {}", first.text());
            assert_eq!(first.headers.get("idempotency-replayed"), None, "{path}");
            if path != "/api/users" || key.len() < 255 {
                let again = post(key, body);
                assert_eq!(
                    (again.status, id(&again)),
                    (first.status, id(&first)),
                    "{path}"
                );
                assert_eq!(again.headers["idempotency-replayed"], "true", "{path}");
            }
            let refused = post(key, other);
            assert_eq!(refused.status, 422, "{path}: {}", refused.text());
            assert!(refused.text().contains("use a new key"), "{path}");
            if path == "/api/users" {
                break;
            }
        }
        for wrong in ["k".repeat(256), String::new()] {
            let refused = post(&wrong, body);
            assert_eq!(refused.status, 400, "{path}: {}", refused.text());
            assert!(
                refused.text().contains("`Idempotency-Key` must be"),
                "{path}"
            );
        }
        let twice = [("idempotency-key", "a"), ("idempotency-key", "b"), auth];
        assert_eq!(
            client.post(path, &twice, body.as_bytes()).status,
            400,
            "{path}"
        );
    }
}

#[test]
fn problems_of_an_app_have_one_form_in_every_layer() {
    let world = world();
    let _running = world.up();
    let key = ("x-api-key", KEY);
    let long = "x".repeat(1025);
    for (address, method, path, status, code) in [
        (world.controller, "GET", "/nowhere", 404, "NOT_FOUND"),
        (
            world.controller,
            "PUT",
            "/config",
            405,
            "METHOD_NOT_ALLOWED",
        ),
        (
            world.controller,
            "GET",
            "/agents?limit=zz",
            400,
            "INVALID_REQUEST",
        ),
        (
            world.controller,
            "GET",
            "/agents?after=zz",
            400,
            "INVALID_REQUEST",
        ),
        (
            world.controller,
            "GET",
            "/config/diff",
            400,
            "INVALID_REQUEST",
        ),
        (
            world.controller,
            "GET",
            "/config/%ff",
            400,
            "INVALID_REQUEST",
        ),
        (world.hits, "GET", "/nowhere", 404, "NOT_FOUND"),
        (world.hits, "PATCH", "/hit", 405, "METHOD_NOT_ALLOWED"),
        (world.hits, "GET", "/hits?limit=zz", 400, "INVALID_REQUEST"),
    ] {
        let answer = Client::new(address)
            .send(method, path, &[key], b"")
            .unwrap();
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["content-type"], "application/json", "{path}");
        let body = answer.json();
        assert_eq!(body["error"]["code"], code, "{path}: {body}");
        assert_eq!(
            (&body["success"], &body["status"]),
            (&json!(false), &json!(status))
        );
        assert!(
            body["request_id"].is_string() && body["message"].is_string(),
            "{body}"
        );
    }
    let bearer = ("authorization", &*format!("bearer {KEY}"));
    let mut controller = Client::new(world.controller);
    let answer = controller.send("GET", "/agents", &[bearer], b"").unwrap();
    assert_eq!(answer.status, 200);
    let bulk = "/api/bucket/bulk-consume";
    for (method, path, body, status, word) in [
        ("GET", "/api/bucket/nowhere", "", 404, "not_found"),
        ("GET", "/api/bucket/consume", "", 405, "method_not_allowed"),
        (
            "GET",
            "/api/bucket/check?key=a&key=b",
            "",
            400,
            "invalid_request",
        ),
        ("GET", "/api/bucket/check?kye=a", "", 400, "invalid_request"),
        ("GET", "/api/bucket/check", "", 400, "missing_key"),
        (
            "GET",
            &format!("/api/bucket/check?key={long}"),
            "",
            400,
            "invalid_key",
        ),
        ("GET", "/api/bucket/check?key=a%07b", "", 400, "invalid_key"),
        (
            "POST",
            "/api/bucket/consume?key=k&tokens=x",
            "",
            400,
            "invalid_tokens",
        ),
        ("POST", bulk, "7", 400, "parse_error"),
    ] {
        let answer = world
            .client()
            .send(method, path, &[JSON], body.as_bytes())
            .unwrap();
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        let body = answer.json();
        assert_eq!(body["error"], word, "{path}: {body}");
        assert!(body["message"].is_string(), "{body}");
    }
    let kind = |accept: &str| {
        let accept = [("accept", accept)];
        let answer = world
            .client()
            .send("GET", "/api/users/7", &accept, b"")
            .unwrap();
        answer.headers["content-type"].clone()
    };
    assert_eq!(kind("application/json"), "application/problem+json");
    assert!(kind("application/json, text/plain, */*").starts_with("text/plain"));
}

#[test]
fn unknown_parameters_are_refused_on_every_route() {
    let world = world();
    let _running = world.up();
    let admin = world.bearer();
    let headers = [("x-api-key", KEY), ("authorization", &*admin)];
    for (address, method, path, reason) in [
        (
            world.http,
            "GET",
            "/api/users?limt=1",
            "did you mean `limit`?",
        ),
        (
            world.http,
            "GET",
            "/inventory?aftre=1",
            "did you mean `after`?",
        ),
        (
            world.http,
            "POST",
            "/api/bucket/consume?key=k&token=1",
            "did you mean `tokens`?",
        ),
        (
            world.http,
            "POST",
            "/enqueue?delay=1",
            "unknown query parameter `delay`",
        ),
        (
            world.http,
            "POST",
            "/orders?x=1",
            "unknown query parameter `x`",
        ),
        (
            world.http,
            "GET",
            "/api/users/7?x",
            "unknown query parameter `x`",
        ),
        (
            world.dashboard,
            "GET",
            "/metrics?skuu=1",
            "did you mean `sku`?",
        ),
        (
            world.controller,
            "GET",
            "/agents?limt=1",
            "did you mean `limit`?",
        ),
        (
            world.controller,
            "GET",
            "/config?wiat=1",
            "did you mean `wait`?",
        ),
        (world.hits, "GET", "/hits?limti=1", "did you mean `limit`?"),
        (world.hits, "GET", "/hit?x=1", "unknown query parameter `x`"),
        (
            world.admin,
            "GET",
            "/v1/kv?prefx=1",
            "did you mean `prefix`?",
        ),
        (
            world.admin,
            "GET",
            "/v1/queues?x=1",
            "unknown query parameter `x`",
        ),
    ] {
        let answer = Client::new(address)
            .send(method, path, &headers, b"x")
            .unwrap();
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        assert!(answer.text().contains(reason), "{path}: {}", answer.text());
    }
    // Load balancers add parameters of their own.
    assert_eq!(world.client().get("/healthz?lb=1").status, 200);
}

#[test]
fn refusals_by_the_head_are_answered_before_the_body() {
    let mut world = world();
    world.set("TOWPATH_SERVER__LIMITS", "/enqueue=token_bucket:1:0.001/1s");
    let _running = world.up();
    assert_eq!(world.client().post("/enqueue", &[], b"one").status, 200);
    for (address, line, length, status) in [
        (world.http, "POST /enqueue", 1 << 20, "429"),
        (world.http, "PATCH /orders", 1 << 20, "405"),
        (world.http, "POST /enqueue/batch", 1 << 30, "413"),
        (world.http, "DELETE /api/users", 1 << 20, "405"),
        (world.controller, "PUT /config", 1 << 19, "405"),
        // Without a key.
        (world.controller, "POST /config", 1 << 19, "401"),
        (world.controller, "POST /config/rollback", 1 << 19, "401"),
        (world.controller, "POST /config/restore", 1 << 19, "401"),
        (world.controller, "POST /rollout/stop", 1 << 19, "401"),
        (world.controller, "POST /register", 1 << 19, "401"),
        (
            world.controller,
            "POST /agents/00000000-0000-0000-0000-000000000000/report",
            1 << 19,
            "401",
        ),
    ] {
        let mut stream = connect(address);
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        let head =
            format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let answer = to_end(&mut stream);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line}: {answer}"
        );
        assert!(answer.contains("connection: close"), "{line}: {answer}");
    }
}

#[test]
fn heads_that_cannot_be_served_are_refused() {
    let world = World::new();
    let _running = world.up();
    for (head, status) in [
        (
            "POST /enqueue HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked",
            "501",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: localhost\r\nexpect: 200-maybe",
            "417",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue, 200-maybe",
            "417",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: localhost\r\nexpect: 100-Continue",
            "200",
        ),
        ("GET /healthz HTTP/1.1\r\nhost: local<host", "400"),
        ("GET /healthz HTTP/1.1\r\nhost: user@localhost", "400"),
        ("GET /healthz HTTP/1.1\r\nhost: localhost:port", "400"),
        ("GET /healthz HTTP/1.1\r\nhost: localhost:80", "200"),
    ] {
        let text = format!("{head}\r\nconnection: close\r\n\r\n");
        let answer = raw(world.http, text.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head}: {answer}"
        );
    }
}

/// A typed client's view of a reference system: the request, its status, and the type of a field.
#[test]
fn clients_of_the_reference_systems_read_the_expected_types() {
    let world = world();
    let _running = world.up();
    publish(&world, &url("http://127.0.0.1:9/"));
    crate::fleet::wait_version(&world, 1);
    let text = |value: &Value| value.is_string();
    let integer = |value: &Value| value.is_i64();
    let time = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok())
    };
    type Is<'a> = &'a dyn Fn(&Value) -> bool;
    let types: [(&str, Is<'_>); 3] = [("text", &text), ("integer", &integer), ("time", &time)];
    let place = r#"{"Hostname":"h","IP_Address":"127.0.0.1","Port":8081}"#;
    let config = r#"{"ID":"x","Version":4,"Data":{"url":"http://127.0.0.1:9/"}}"#;
    for (address, method, path, body, status, field, kind) in [
        // 000
        (
            world.http,
            "POST",
            "/enqueue",
            r#"{"Message":"x"}"#,
            200,
            "/message",
            "text",
        ),
        (world.http, "POST", "/enqueue", r#"["x"]"#, 400, "", ""),
        // 001
        (
            world.http,
            "POST",
            "/orders",
            r#"{"ID":"o1","SKU":"s","Qty":1}"#,
            202,
            "",
            "",
        ),
        (
            world.dashboard,
            "GET",
            "/metrics",
            "",
            200,
            "/processed_orders_count",
            "integer",
        ),
        (world.dashboard, "HEAD", "/metrics", "", 200, "", ""),
        // 003
        (
            world.http,
            "POST",
            "/api/users",
            r#"{"Email":"a@example.org","NAME":"A"}"#,
            201,
            "/id",
            "text",
        ),
        (
            world.http,
            "POST",
            "/api/users",
            r#"["b@example.org","B"]"#,
            400,
            "",
            "",
        ),
        (
            world.http,
            "GET",
            "/api/bucket/check?key=k",
            "",
            200,
            "/capacity",
            "integer",
        ),
        (
            world.http,
            "GET",
            "/api/bucket/check?key=k",
            "",
            200,
            "/last_refill_time",
            "time",
        ),
        (world.http, "GET", "/health", "", 200, "/timestamp", "time"),
        (
            world.http,
            "GET",
            "/health/users",
            "",
            200,
            "/timestamp",
            "time",
        ),
        (
            world.http,
            "GET",
            "/health/bucket",
            "",
            200,
            "/timestamp",
            "integer",
        ),
        (world.http, "HEAD", "/health", "", 200, "", ""),
        // 004
        (
            world.controller,
            "POST",
            "/register",
            place,
            201,
            "/data/agent_id",
            "text",
        ),
        (
            world.controller,
            "POST",
            "/register",
            r#"["h9","1.1.1.1",5]"#,
            400,
            "",
            "",
        ),
        (
            world.controller,
            "POST",
            "/config",
            r#"{"Data":{"Key":"v","url":"http://127.0.0.1:9/"}}"#,
            201,
            "/data/version",
            "integer",
        ),
        (
            world.controller,
            "GET",
            "/config",
            "",
            200,
            "/data/data/Key",
            "text",
        ),
        (
            world.hits,
            "POST",
            "/config",
            config,
            200,
            "/data/version",
            "integer",
        ),
        (world.hits, "POST", "/config", "[]", 400, "", ""),
        (world.hits, "GET", "/hit", "", 202, "/data/status", "text"),
        (world.hits, "HEAD", "/hit", "", 405, "", ""),
    ] {
        let headers = [JSON, ("x-api-key", KEY)];
        let answer = Client::new(address)
            .send(method, path, &headers, body.as_bytes())
            .unwrap();
        assert_eq!(
            answer.status,
            status,
            "{method} {path} {body}: {}",
            answer.text()
        );
        if let Some((_, has)) = types.iter().find(|(name, _)| *name == kind) {
            let value = answer.json().pointer(field).cloned().unwrap_or_default();
            assert!(has(&value), "{path} {field} is {value}, not {kind}");
        }
    }
    // One hit was asked for, and `HEAD` asked for none.
    let mut worker = Client::new(world.hits);
    let all = worker.get("/hits").json()["data"].clone();
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
}

#[test]
fn a_limit_of_no_route_is_refused() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__LIMITS", "/enqeue=token_bucket:1:1/1s");
    let refused = world.run(&["config", "check"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("did you mean `/enqueue`?"), "{said}");
}
