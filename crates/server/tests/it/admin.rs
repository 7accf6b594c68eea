//! The admin listener from outside: its permitted clients, and its refusals.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::client::{Answer, connect, raw, to_end};
use crate::process::World;

fn problem(answer: &Answer, status: u16, path: &str) -> serde_json::Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["type"], "about:blank");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["instance"], path);
    assert_eq!(
        problem["request_id"],
        answer.headers["x-request-id"].as_str()
    );
    for member in ["title", "detail"] {
        let text = problem[member].as_str().unwrap();
        assert!(!text.is_empty(), "{problem}");
    }
    problem
}

#[test]
fn every_refusal_is_a_problem_document() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.admin_client();
    let bearer = world.bearer();
    let token = ("authorization", bearer.as_str());
    let json = ("content-type", "application/json");
    let redrive = "/v1/queues/messages/dead-letters/redrive";
    for (method, path, headers, body, status) in [
        ("GET", "/nothing", &[token][..], "", 404),
        // Without a route of its own a path is unknown before its token is looked at.
        ("GET", "/v1/nothing", &[], "", 404),
        ("GET", "/v1/queues", &[], "", 401),
        ("GET", "/v1/queues/nothing", &[token], "", 404),
        ("DELETE", "/v1/queues", &[token], "", 405),
        ("DELETE", "/metrics", &[], "", 405),
        (
            "GET",
            "/v1/queues/messages/messages?max=x",
            &[token],
            "",
            400,
        ),
        ("GET", "/v1/queues/%ff", &[token], "", 400),
        ("GET", "/v1/queues/a%2f..%2fb", &[token], "", 404),
        ("GET", "/v1/queues/%00", &[token], "", 400),
        ("POST", redrive, &[token], "{}", 415),
        ("POST", redrive, &[token, json], "{", 400),
        ("POST", redrive, &[token, json], "{\"all\":1}", 422),
        ("POST", redrive, &[token, json], "{}", 400),
        // The path of version 0.1.
        (
            "POST",
            "/v1/queues/messages/dead-letters/requeue",
            &[token, json],
            "{}",
            400,
        ),
        (
            "POST",
            "/v1/queues/messages/messages",
            &[
                token,
                ("content-type", "application/x-ndjson; charset=utf-8"),
            ],
            "\"a\"\n\"b\"\n",
            415,
        ),
    ] {
        let answer = client.send(method, path, headers, body.as_bytes()).unwrap();
        let without_query = path.split('?').next().unwrap();
        let problem = problem(&answer, status, without_query);
        if status == 405 {
            assert!(answer.headers["allow"].starts_with("GET"), "{answer:?}");
        }
        if status == 415 && body.contains("\"a\"") {
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("/enqueue/batch"), "{detail}");
        }
    }
    let large = vec![b' '; (1 << 20) + 1];
    let answer = client
        .send("POST", redrive, &[token, json], &large)
        .unwrap();
    problem(&answer, 413, redrive);
}

#[test]
fn a_slow_body_of_an_operator_ends_too() {
    let world = World::new();
    let _running = world.up();
    let mut stream = connect(world.admin);
    let head = format!(
        "POST /v1/queues/messages/dead-letters/drop HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{{",
        world.bearer()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let began = Instant::now();
    let answer = to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn only_known_names_are_answered_to() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__ADMIN_HOSTS", "towpath.internal");
    let _running = world.up();
    for path in ["/metrics", "/readyz", "/v1/queues"] {
        for host in ["evil.example", "localhost.evil.example:7070", ""] {
            let answer = raw(
                world.admin,
                format!(
                    "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: {}\r\nconnection: close\r\n\r\n",
                    world.bearer()
                )
                .as_bytes(),
            );
            assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
            assert!(answer.contains("server.admin_hosts"), "{answer}");
        }
        for host in [
            "localhost:1",
            "127.0.0.1",
            "10.0.0.7",
            "[::1]",
            "Towpath.Internal:7070",
        ] {
            let answer = raw(
                world.admin,
                format!(
                    "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: bearer {}\r\nconnection: close\r\n\r\n",
                    world.bearer().trim_start_matches("Bearer ")
                )
                .as_bytes(),
            );
            assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
        }
    }
}

#[test]
fn the_document_says_how_to_be_let_in() {
    let world = World::new();
    let _running = world.up();
    let document = world.admin_client().get("/openapi.json").json();
    let scheme = &document["components"]["securitySchemes"]["token"];
    assert_eq!(
        (&scheme["type"], &scheme["scheme"]),
        (&"http".into(), &"bearer".into())
    );
    assert_eq!(document["security"], serde_json::json!([{ "token": [] }]));
}

#[test]
fn the_document_names_every_way_to_refuse() {
    let world = World::new();
    let _running = world.up();
    let document = world.admin_client().get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    for (path, item) in paths.iter().filter(|(path, _)| path.starts_with("/v1/")) {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            let creates = ["send", "send_batch", "put_queue"].map(serde_json::Value::from);
            let of_queue = path.contains("{queue}") && !creates.contains(&operation["operationId"]);
            let of_key = path == "/v1/kv/{key}" && method == "get";
            let of_part = path.contains("{stream}")
                || path == "/v1/orders/check"
                || ["/v1/outbox", "/v1/fleet", "/v1/tasks"]
                    .iter()
                    .any(|part| path.starts_with(part));
            let has_success = ["200", "201", "202"]
                .iter()
                .any(|status| responses.contains_key(*status));
            assert!(has_success, "{method} {path}");
            let with_body = operation.get("requestBody").is_some();
            for (status, expected) in [
                ("400", true),
                ("401", true),
                ("403", true),
                ("404", of_queue || of_key || of_part),
                ("413", with_body),
                ("415", with_body),
                ("421", true),
                ("422", with_body),
                ("429", ["post", "put"].contains(&method.as_str())),
                ("503", true),
            ] {
                let found = responses.contains_key(status);
                assert_eq!(found, expected, "{method} {path} {status}");
            }
            for (status, response) in responses {
                assert!(response["description"].is_string(), "{method} {path}");
                let kind = match status.as_str() {
                    "200" if path == "/v1/backup" => "application/octet-stream",
                    "200" | "201" | "202" | "207" => "application/json",
                    // It has no body.
                    "304" => continue,
                    _ => "application/problem+json",
                };
                assert!(response["content"][kind].is_object(), "{method} {path}");
            }
        }
    }
    let send = &document["paths"]["/v1/queues/{queue}/messages"]["post"];
    let headers = send["parameters"].to_string();
    for name in ["Idempotency-Key", "Towpath-Key", "Towpath-Delay"] {
        assert!(headers.contains(name), "{headers}");
    }
}

#[test]
fn values_out_of_range_are_refused_and_not_clamped() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.admin_client();
    let bearer = world.bearer();
    let token = ("authorization", bearer.as_str());
    let messages = "/v1/queues/messages/messages";
    for query in ["max=0", "max=1001", "most=5", "after=x"] {
        let path = format!("{messages}?{query}");
        let answer = client.send("GET", &path, &[token], b"").unwrap();
        let problem = problem(&answer, 400, messages);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("max"), "{query}: {detail}");
    }
    for delay in ["-1", "1.5", "315360001", "18446744073709551615"] {
        let headers = [token, ("towpath-delay", delay)];
        let answer = client.send("POST", messages, &headers, b"x").unwrap();
        problem(&answer, 400, messages);
    }
    let headers = [token, ("towpath-delay", "315360000")];
    let answer = client.send("POST", messages, &headers, b"x").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn the_process_is_measured_under_its_usual_names() {
    let world = World::new();
    let running = world.up();
    let memory = world.metric("process_resident_memory_bytes");
    assert!((1e6..1e9).contains(&memory), "{memory}");
    let open = world.metric("process_open_fds");
    let listed = std::fs::read_dir(format!("/proc/{}/fd", running.id()))
        .unwrap()
        .count() as f64;
    // Connections that ended in between; each of the admin listener has two descriptors.
    assert!((open - listed).abs() <= 6.0, "{open} {listed}");
    assert!(world.metric("process_max_fds") >= open);
    assert!(world.metric("process_cpu_seconds_total") > 0.0);
    let started = world.metric("process_start_time_seconds");
    let now = jiff::Timestamp::now().as_second() as f64;
    assert!(
        (now - 60.0..now + 2.0).contains(&started),
        "{started} {now}"
    );
}

#[test]
fn a_token_that_cannot_be_used_stops_the_start_and_stays() {
    let world = World::new();
    let path = world.data().join("admin.token");
    world.up().stop();
    let bearer = world.bearer();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let running = world.up();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!((mode & 0o777, world.bearer()), (0o600, bearer));
    running.stop();
    std::fs::write(&path, b"\xff\xff").unwrap();
    let output = world.run(&["up"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("admin.token"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), b"\xff\xff");
}
