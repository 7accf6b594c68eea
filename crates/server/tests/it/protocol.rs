//! HTTP as clients speak it, well and badly: one bad request costs its connection, and nothing else.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use crate::client::{connect, raw, read_answer, to_end};
use crate::process::World;

#[test]
fn every_dialect_gets_its_answer() {
    let world = World::new();
    let _running = world.up();
    let long = "x".repeat(20_000);
    let many = "a: b\r\n".repeat(200);
    for (request, expected) in [
        // Older and unusual, and right.
        ("GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
        (
            "GET http://x/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200",
        ),
        (
            "\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200",
        ),
        (
            "GET /%68ealthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 404",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n",
            "HTTP/1.1 200",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
            "HTTP/1.1 200",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 200",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1;ext=1\r\no\r\n1\r\nk\r\n0\r\ntrailer: x\r\n\r\n",
            "HTTP/1.1 200",
        ),
        // Wrong.
        (
            "OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 404",
        ),
        (
            "CONNECT x:80 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 404",
        ),
        (
            "BREW /enqueue HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 405",
        ),
        (
            "GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: x\r\nhost: y\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 2, 3\r\n\r\nok",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\nok",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokok\r\n0\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "GET /healthz HTTP/1.1\r\nhost: x\r\n bad: folded\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n", "HTTP/1.1 400"),
        ("GET /healthz HTTP/9.9\r\nhost: x\r\n\r\n", "HTTP/1.1 400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (
            &format!("GET /healthz HTTP/1.1\r\nhost: x\r\nlong: {long}\r\n\r\n"),
            "HTTP/1.1 431",
        ),
        (
            &format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
            "HTTP/1.1 431",
        ),
        (
            &format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
            "HTTP/1.1 4",
        ),
    ] {
        let answer = raw(world.http, request.as_bytes());
        let shown = &request[..request.len().min(200)];
        assert!(answer.starts_with(expected), "{shown:?}: {answer}");
    }
    assert_eq!(world.client().get("/healthz").status, 200);
    world.wait_drained();
    assert_eq!(world.messages(), ["ok", "ok"]);
}

#[test]
fn a_length_and_chunks_together_cannot_smuggle_a_request() {
    let world = World::new();
    let _running = world.up();
    let smuggled = "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\nconnection: close\r\n\r\nsmuggled";
    let request = format!(
        "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{smuggled}",
        12 + smuggled.len()
    );
    raw(world.http, request.as_bytes());
    world.wait_drained();
    assert!(!world.messages().contains(&"smuggled".to_owned()));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let world = World::new();
    let _running = world.up();
    let requests: String = (0..50)
        .map(|number| {
            format!("POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{number:02}")
        })
        .collect();
    let mut stream = connect(world.http);
    stream.write_all(requests.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    for number in 0..50 {
        let answer = read_answer(&mut stream, false).unwrap();
        assert_eq!(answer.json()["message"], format!("{number:02}"));
    }
}

#[test]
fn a_half_closed_connection_still_gets_its_answer() {
    let world = World::new();
    let _running = world.up();
    for (request, expected) in [
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nwhole",
            "HTTP/1.1 200",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nshort",
            "HTTP/1.1 400",
        ),
        (
            "POST /enqueue HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort",
            "HTTP/1.1 400",
        ),
    ] {
        let mut stream = connect(world.http);
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = to_end(&mut stream);
        assert!(answer.starts_with(expected), "{request}: {answer}");
    }
    world.wait_drained();
    assert_eq!(world.messages(), ["whole"]);
}

#[test]
fn only_a_body_that_is_wanted_is_asked_for() {
    let world = World::new();
    let _running = world.up();
    let head = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut stream = connect(world.http);
    stream.write_all(head("/enqueue", 2).as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    let answer = read_answer(&mut BufReader::new(stream), false).unwrap();
    assert_eq!(answer.status, 200);
    for (address, path, length, expected) in [
        (world.http, "/enqueue", 100 << 20, "HTTP/1.1 413"),
        (world.http, "/nothing", 10, "HTTP/1.1 404"),
        (
            world.admin,
            "/v1/queues/messages/messages",
            10,
            "HTTP/1.1 401",
        ),
    ] {
        let answer = raw(address, head(path, length).as_bytes());
        assert!(answer.starts_with(expected), "{path}: {answer}");
    }
}

#[test]
fn a_client_reads_its_refusal_though_it_sends_a_hundred_mebibytes_first() {
    let world = World::new();
    let _running = world.up();
    let part = vec![b'x'; 1 << 20];
    for framing in ["content-length: 104857600", "transfer-encoding: chunked"] {
        let mut stream = connect(world.http);
        let head = format!("POST /enqueue HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..100 {
            if framing.ends_with("chunked") {
                stream.write_all(b"100000\r\n").unwrap();
            }
            stream.write_all(&part).unwrap();
            if framing.ends_with("chunked") {
                stream.write_all(b"\r\n").unwrap();
            }
        }
        let answer = to_end(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 413"), "{framing}: {answer}");
        assert!(answer.ends_with("message is over the limit of 1048576 bytes\n"));
    }
    let head = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n",
        "x".repeat(8 << 20)
    );
    let answer = raw(world.http, head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let memory = world.metric("process_resident_memory_bytes");
    assert!(memory < 150e6, "{memory}");
}

#[test]
fn a_refusal_is_a_problem_document_on_request() {
    let world = World::new();
    let _running = world.up();
    let accept = [
        ("accept", "application/problem+json"),
        ("x-request-id", "r-1"),
    ];
    let answer = world.client().post("/enqueue", &accept, b" ");
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(
        answer.json(),
        serde_json::json!({
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "detail": "message is required",
            "instance": "/enqueue",
            "request_id": "r-1",
        })
    );
}

#[test]
fn a_trace_is_passed_to_the_message_when_it_is_one() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "webhook");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    world.set(
        "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
        format!("http://{}/", listener.local_addr().unwrap()),
    );
    let _running = world.up();
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (parent, kept) in [(valid, true), ("00-1-2-3", false)] {
        let headers = [("traceparent", parent), ("tracestate", "rojo=1")];
        assert_eq!(world.client().post("/enqueue", &headers, b"x").status, 200);
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut head = String::new();
        while !head.contains("\r\n\r\n") {
            let mut part = [0; 4096];
            let length = stream.read(&mut part).unwrap();
            head.push_str(std::str::from_utf8(&part[..length]).unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            .unwrap();
        let found = head
            .lines()
            .find_map(|line| line.strip_prefix("traceparent: "));
        assert_eq!(found.unwrap().len(), valid.len(), "{head}");
        assert_eq!(found == Some(valid), kept, "{head}");
        assert_eq!(head.contains("tracestate: rojo=1"), kept, "{head}");
    }
}
