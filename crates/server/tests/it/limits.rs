//! Clients that are slow, large or broken, while others are served.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::client::{connect, raw, read_answer, to_end};
use crate::process::{World, wait_until};

/// The head of a post with a body of this many bytes.
fn post(length: usize) -> Vec<u8> {
    format!("POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n").into_bytes()
}

/// Raises the limit of open files; gives how many there can be.
fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let (current, maximum) = (limit.maximum, limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    maximum.map_or(usize::MAX, |files| files as usize)
}

#[test]
fn trickling_connections_end_at_their_deadline_while_others_are_served() {
    // Other tests of this process need descriptors as well.
    let count = 10_000.min(raise_open_files().saturating_sub(1_000));
    if count < 10_000 {
        eprintln!("{count} instead of 10000 connections: the limit of open files allows no more");
    }
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__MAX_CONNECTIONS", 12_000)
        .set("TOWPATH_SERVER__MAX_CONNECTIONS_PER_CLIENT", 12_000)
        .set("TOWPATH_SERVER__HEADER_TIMEOUT", "3s")
        .set("TOWPATH_SERVER__BODY_TIMEOUT", "3s");
    let _running = world.up();
    let mut slow: Vec<TcpStream> = (0..count)
        .map(|number| {
            let mut stream = TcpStream::connect(world.http).unwrap();
            let start: &[u8] = match number % 3 {
                0 => b"",
                1 => b"POST /enqueue HT",
                _ => b"POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nab",
            };
            stream.write_all(start).unwrap();
            stream
        })
        .collect();
    let (began, mut client, mut served) = (Instant::now(), world.client(), 0);
    while began.elapsed() < Duration::from_secs(4) {
        assert_eq!(client.post("/enqueue", &[], b"quick").status, 200);
        served += 1;
    }
    assert!(
        served > 20,
        "only {served} requests while {count} connections trickled"
    );
    for stream in &mut slow {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut rest = Vec::new();
        // An answer (408) or a plain end, but an end; a reset is an end as well.
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still open"),
        }
    }
    world.wait_drained();
    assert!(world.messages().iter().all(|message| message == "quick"));
}

#[test]
fn garbage_gets_an_error_and_the_process_lives() {
    let world = World::new();
    let _running = world.up();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"POST /enqueue HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /enqueue HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(world.http).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(15)))
            .unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{garbage:?}: {answer}"
        );
    }
    let head = format!(
        "GET /healthz HTTP/1.1\r\nhost: x\r\nlarge: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let mut stream = TcpStream::connect(world.http).unwrap();
    stream.write_all(head.as_bytes()).ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(world.client().get("/healthz").status, 200);
    assert_eq!(
        world.json(&["queue", "ls"])[0]["enqueued"]
            .as_u64()
            .unwrap_or(0),
        0
    );
}

#[test]
fn slow_bodies_take_no_place_from_complete_requests() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__MAX_IN_FLIGHT", 4);
    let _running = world.up();
    let slow: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = connect(world.http);
            stream.write_all(&[&post(10)[..], b"ab"].concat()).unwrap();
            stream
        })
        .collect();
    let mut client = world.client();
    for _ in 0..20 {
        let answer = client.post("/enqueue", &[], b"quick");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    drop(slow);
}

#[test]
fn a_body_that_does_not_move_is_abandoned_long_before_its_deadline() {
    let world = World::new();
    let _running = world.up();
    let mut stream = connect(world.http);
    stream.write_all(&[&post(10)[..], b"ab"].concat()).unwrap();
    let began = Instant::now();
    let answer = to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nbody took too long\n"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn large_bodies_share_their_memory_and_small_ones_always_fit() {
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__MAX_BODY_MEMORY", "1MiB")
        .set("TOWPATH_INGEST__MAX_BATCH_BODY", "1MiB");
    let _running = world.up();
    let body = "x".repeat(1 << 20);
    let mut slow = connect(world.http);
    slow.write_all(&post(body.len())).unwrap();
    slow.write_all(&body.as_bytes()[..900_000]).unwrap();
    let mut sent = 900_000;
    let mut client = world.client();
    wait_until("the memory to be full", Duration::from_secs(20), || {
        // It has to move, or it is abandoned.
        slow.write_all(&[b'x'; 1024]).unwrap();
        sent += 1024;
        std::thread::sleep(Duration::from_millis(200));
        let answer = client.post("/enqueue", &[], &body.as_bytes()[..200_000]);
        if answer.status == 503 {
            assert_eq!(answer.headers["retry-after"], "1");
            assert_eq!(answer.headers["connection"], "close");
        }
        answer.status == 503
    });
    assert_eq!(client.post("/enqueue", &[], b"small").status, 200);
    slow.write_all(&body.as_bytes()[sent..]).unwrap();
    let answer = read_answer(&mut std::io::BufReader::new(slow), false).unwrap();
    assert_eq!(answer.status, 200);
    wait_until("room again", Duration::from_secs(10), || {
        client.post("/enqueue", &[], body.as_bytes()).status == 200
    });
}

#[test]
fn a_client_that_does_not_read_its_answer_is_disconnected() {
    let mut world = World::new();
    world
        .set("TOWPATH_INGEST__MAX_BODY", "16MiB")
        .set("TOWPATH_SERVER__WRITE_TIMEOUT", "1s");
    let _running = world.up();
    let body = vec![b'x'; 16 << 20];
    let mut stream = connect(world.http);
    stream.write_all(&post(body.len())).unwrap();
    stream.write_all(&body).unwrap();
    wait_until("the connection to end", Duration::from_secs(20), || {
        stream.write(b"x").is_err()
    });
    assert!(to_end(&mut stream).len() < body.len());
}

#[test]
fn a_kept_connection_may_idle_longer_than_a_head_may_take() {
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__HEADER_TIMEOUT", "500ms")
        .set("TOWPATH_SERVER__IDLE_TIMEOUT", "6s");
    let _running = world.up();
    let mut stream = connect(world.http);
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    for pause in [0, 1500] {
        std::thread::sleep(Duration::from_millis(pause));
        stream.write_all(request).unwrap();
        let mut answer = [0; 1000];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{pause} ms");
    }
    let began = Instant::now();
    assert_eq!(to_end(&mut stream), "");
    assert!((5..15).contains(&began.elapsed().as_secs()), "{began:?}");

    // The next head on a kept connection has the deadline of a head again.
    let mut stream = connect(world.http);
    stream.write_all(request).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    // The connection is idle again.
    std::thread::sleep(Duration::from_millis(200));
    stream.write_all(b"GET /hea").unwrap();
    let began = Instant::now();
    to_end(&mut stream);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn connections_over_the_limit_get_an_answer_and_are_counted() {
    let mut world = World::new();
    world.limit_open_files(300);
    world.set("TOWPATH_SERVER__MAX_CONNECTIONS_PER_CLIENT", 1_000);
    let running = world.up();
    assert!(running.log().contains("raise it (`ulimit -n`)"));
    // Each has a part of a head: an idle one would give way.
    let begin = |_| {
        let mut stream = connect(world.http);
        // One over the limit may be closed already.
        stream.write_all(b"POST /enq").ok();
        stream
    };
    let held: Vec<TcpStream> = (0..150).map(begin).collect();
    // Until the server has read those parts.
    std::thread::sleep(Duration::from_millis(500));
    wait_until("the limit", Duration::from_secs(5), || {
        let answer = raw(world.http, b"");
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("too many connections, try again\n")
    });
    let refused =
        "towpath_http_connections_refused_total{listener=\"ingest.api\",reason=\"limit\"}";
    assert!(world.metric(refused) >= 1.0);
    drop(held);
    wait_until("room", Duration::from_secs(5), || {
        let answer = world.client().send("POST", "/enqueue", &[], b"again");
        answer.is_ok_and(|answer| answer.status == 200)
    });
}

/// A connection to the public listener from another address of this machine.
fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

#[test]
fn one_client_takes_its_part_of_the_connections_and_idle_ones_give_way() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__MAX_CONNECTIONS", 20);
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    // Half of them, unless configured.
    let mut held: Vec<TcpStream> = (0..10).map(|_| connect_from(2, world.http)).collect();
    wait_until("the client's limit", Duration::from_secs(5), || {
        let answer = to_end(&mut connect_from(2, world.http));
        answer.starts_with("HTTP/1.1 503 ")
    });
    let ask = |from: u8| {
        let mut stream = connect_from(from, world.http);
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .unwrap();
        let answer = read_answer(&mut std::io::BufReader::new(&stream), false).unwrap();
        (stream, answer.status)
    };
    // These have had a request, and are idle now.
    let kept: Vec<TcpStream> = (0..10)
        .map(|_| {
            let (stream, status) = ask(3);
            assert_eq!(status, 200);
            stream
        })
        .collect();
    // All are open. A new client is served, and the connections that were idle for longest end.
    let (mut last, status) = ask(4);
    assert_eq!(status, 200);
    assert_eq!(to_end(&mut held[0]), "");
    last.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let again = read_answer(&mut std::io::BufReader::new(&last), false).unwrap();
    assert_eq!(again.status, 200, "it is the last to give way");
    let of = |reason: &str| {
        let labels = format!("{{listener=\"ingest.api\",reason=\"{reason}\"}}");
        world.metric(&format!("towpath_http_connections_refused_total{labels}"))
    };
    assert!(of("client_limit") >= 1.0);
    assert_eq!(of("limit"), 0.0);
    let evicted = "towpath_http_connections_evicted_total{listener=\"ingest.api\"}";
    assert!(world.metric(evicted) >= 1.0);
    drop(kept);
}

#[test]
fn a_batch_costs_the_limit_of_its_route_as_many_as_it_has_messages() {
    let mut world = World::new();
    world.set(
        "TOWPATH_SERVER__LIMITS",
        "/enqueue/batch=token_bucket:100:0.001/1s",
    );
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    let mut client = world.client();
    let mut send = |count: usize| {
        let ndjson = ("content-type", "application/x-ndjson");
        client.post(
            "/enqueue/batch",
            &[ndjson],
            "\"x\"\n".repeat(count).as_bytes(),
        )
    };
    let answer = send(60);
    let left = |answer: &crate::client::Answer| answer.headers["x-ratelimit-remaining"].clone();
    assert_eq!((answer.status, &*left(&answer)), (200, "40"));
    // Its first message is taken before the others are known.
    let refused = send(60);
    assert_eq!((refused.status, &*left(&refused)), (429, "39"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(send(39).status, 200);
    assert_eq!(send(1).status, 429);
    let waiting = &world.json(&["queue", "show", "messages"])["ready"];
    assert_eq!(waiting.as_u64(), Some(99), "nothing of a refused batch");
    let mut world = World::new();
    world.set("TOWPATH_SERVER__LIMITS", "*=sliding_window:100/1h");
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    let body = "\"x\"\n".repeat(101);
    let never = world.client().post("/enqueue/batch", &[], body.as_bytes());
    assert_eq!(never.status, 413);
    assert!(
        never.text().contains("send smaller batches"),
        "{}",
        never.text()
    );
}

/// Texts that are kept for hours or for ever have bounds.
#[test]
fn texts_of_anonymous_requests_are_bounded() {
    let world = World::new();
    let running = world.spawn(&["run", "ingest.api,orders.gateway,accounts.api"]);
    running.wait_ready(&world);
    let mut client = world.client();
    let long = "x".repeat(257);
    let json = ("content-type", "application/json");
    let mut send = |method: &str, path: &str, body: &str| {
        let sent = client.send(method, path, &[json], body.as_bytes());
        sent.unwrap().status
    };
    let stock = format!("/inventory/{long}");
    assert_eq!(send("PUT", &stock, r#"{"quantity":1}"#), 400);
    for (id, sku, email) in [
        (&*long, "sku", "a@example.com"),
        ("id", &*long, "a@example.com"),
        ("id", "sku", &*format!("{long}@example.com")),
    ] {
        let order = format!(r#"{{"id":"{id}","sku":"{sku}","qty":1,"email":"{email}"}}"#);
        assert_eq!(send("POST", "/orders", &order), 400, "{order}");
    }
    for (name, email) in [(&*long, "a@example.com"), ("name", &*long)] {
        let user = format!(r#"{{"name":"{name}","email":"{email}"}}"#);
        let status = send("POST", "/api/users", &user);
        assert!(matches!(status, 400 | 422), "{status}: {user}");
    }
    let bucket = format!("/api/bucket/consume?key={}", long.repeat(4));
    assert_eq!(send("POST", &bucket, ""), 400);
    let trace = format!("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-{long}");
    let headers = [("traceparent", &*trace), ("tracestate", &*long.repeat(3))];
    assert_eq!(client.post("/enqueue", &headers, b"traced").status, 200);
    let (mut admin, bearer) = (world.admin_client(), world.bearer());
    let token = [("authorization", bearer.as_str())];
    let shown = admin.send("GET", "/v1/queues/messages/messages", &token, b"");
    let shown = shown.unwrap().text();
    assert!(
        shown.contains("0af7651916cd43dd8448eb211c80319c"),
        "{shown}"
    );
    assert!(!shown.contains("xxx"), "{shown}");
}

#[test]
fn named_routes_of_every_listener_of_roles_have_limits() {
    let mut world = World::new();
    world.set(
        "TOWPATH_SERVER__LIMITS",
        "*=token_bucket:1:0.001/1s /hits=token_bucket:2:0.001/1s /inventory=token_bucket:3:0.001/1s",
    );
    let running = world.spawn(&["run", "orders.dashboard,fleet.worker"]);
    running.wait_ready(&world);
    let of = |address: SocketAddr, path: &str| {
        let mut client = crate::client::Client::new(address);
        let statuses = (0..4).map(|_| client.get(path).status);
        statuses.collect::<Vec<u16>>()
    };
    assert_eq!(of(world.hits, "/hits"), [200, 200, 429, 429]);
    assert_eq!(of(world.dashboard, "/inventory"), [200, 200, 200, 429]);
    // `*` is of the public listener.
    assert_eq!(of(world.dashboard, "/metrics"), [200; 4]);
}

#[test]
fn running_out_of_descriptors_is_counted_and_passes() {
    let world = World::new();
    // Other roles open connections of their own at the start.
    let running = world.spawn(&["run", "ingest.api,ingest.worker"]);
    running.wait_ready(&world);
    let used = world.metric("process_open_fds") as u64;
    let process = rustix::process::Pid::from_raw(running.id().cast_signed());
    let few = Rlimit {
        current: Some(used + 8),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let mut scraper = world.admin_client();
    assert_eq!(scraper.get("/livez").status, 200);
    let usual = prlimit(process, Resource::Nofile, few).unwrap();
    let crowd: Vec<TcpStream> = (0..30).map(|_| connect(world.http)).collect();
    std::thread::sleep(Duration::from_secs(1));
    let failed =
        "towpath_http_connections_refused_total{listener=\"ingest.api\",reason=\"failed\"} ";
    let metrics = scraper.get("/metrics").text();
    let count = metrics.lines().find_map(|line| line.strip_prefix(failed));
    assert!(count.unwrap().parse::<u64>().unwrap() >= 3, "{metrics}");
    let log = running.log();
    assert_eq!(
        log.matches("connections cannot be accepted").count(),
        1,
        "{log}"
    );
    prlimit(process, Resource::Nofile, usual).unwrap();
    drop(crowd);
    assert_eq!(world.client().post("/enqueue", &[], b"again").status, 200);
}
