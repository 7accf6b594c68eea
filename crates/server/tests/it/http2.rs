//! HTTP/2 on every listener, spoken by curl and by a client that can misbehave.

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Method, Request};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::process::{Running, World, able, wait_until};

/// Longer than any deadline that a test sets.
const SOON: Duration = Duration::from_secs(20);

/// Time that the server may need on a busy machine before it sees a frame.
const MOMENT: Duration = Duration::from_millis(300);

type Sender = SendRequest<Bytes>;
type Ended = JoinHandle<Result<(), h2::Error>>;

fn serve(world: &World) -> Running {
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(world);
    running
}

fn within<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON, work).await.unwrap() })
}

async fn connect(world: &World, builder: &client::Builder) -> (Sender, Ended) {
    let stream = TcpStream::connect(world.http).await.unwrap();
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    // Ends with the connection; the test waits for it.
    let ended = tokio::spawn(connection);
    (sender.ready().await.unwrap(), ended)
}

fn request(world: &World, method: Method, path: &str) -> Request<()> {
    let uri = format!("http://{}{path}", world.http);
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

/// The status, the version and the body that curl gets.
fn curl(world: &World, args: &[&str]) -> (u16, String, String) {
    let output = Command::new("curl")
        .args([
            "-sS",
            "--max-time",
            "10",
            "-w",
            "\n%{http_code} %{http_version}",
        ])
        .args(args)
        .current_dir(&world.folder)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, last) = text.rsplit_once('\n').unwrap();
    let (status, version) = last.split_once(' ').unwrap();
    (status.parse().unwrap(), version.to_owned(), body.to_owned())
}

#[test]
fn curl_speaks_http2_to_every_listener_with_and_without_tls() {
    if !able(
        "openssl",
        Command::new("openssl").arg("version").output().is_ok(),
    ) {
        return;
    }
    let mut world = World::new();
    towpath_testkit::certificates::make(&world.folder);
    {
        let _running = world.up();
        let known = "--http2-prior-knowledge";
        for port in [world.http, world.hits] {
            let path = if port == world.http {
                "/health"
            } else {
                "/config"
            };
            let (status, version, _) = curl(&world, &[known, &format!("http://{port}{path}")]);
            assert_eq!((status < 500, version.as_str()), (true, "2"), "{path}");
        }
        let live = format!("http://{}/livez", world.admin);
        assert_eq!(curl(&world, &[known, &live]).0, 200);
        let named = curl(&world, &[known, "-H", "Host: elsewhere.example", &live]);
        let before = curl(&world, &["-H", "Host: elsewhere.example", &live]);
        assert_eq!((named.0, named.1.as_str()), (before.0, "2"), "{named:?}");
        let enqueue = format!("http://{}/enqueue", world.http);
        let (status, _, body) = curl(&world, &[known, "-d", "two", &enqueue]);
        assert_eq!(status, 200, "{body}");
        let long = format!("X-Long: {}", "x".repeat(20 * 1024));
        assert_eq!(curl(&world, &[known, "-H", &long, &enqueue]).0, 431);
        // Another client continues with HTTP/1 on the same port.
        assert_eq!(curl(&world, &["-d", "one", &enqueue]).1, "1.1");
        wait_until("both messages", SOON, || {
            let mut messages = world.messages();
            messages.sort();
            messages == ["one", "two"]
        });
    }
    for (name, file) in [("CERTIFICATE", "server.pem"), ("KEY", "server.key")] {
        let name = format!("TOWPATH_SERVER__TLS__{name}");
        world.set(&name, world.folder.join(file).display());
    }
    world.set("TOWPATH_SERVER__TLS__ADMIN", "on");
    let _running = world.up();
    for (port, path) in [
        (world.http.port(), "/health"),
        (world.hits.port(), "/config"),
        (world.admin.port(), "/livez"),
    ] {
        let url = format!("https://localhost:{port}{path}");
        let agreed = |protocol| curl(&world, &["--cacert", "ca.pem", protocol, &url]).1;
        assert_eq!(agreed("--http2"), "2", "{path}");
        assert_eq!(agreed("--http1.1"), "1.1", "{path}");
    }
}

#[test]
fn requests_that_are_reset_at_once_end_the_connection() {
    let world = World::new();
    let running = serve(&world);
    within(async {
        let (mut sender, ended) = connect(&world, &client::Builder::new()).await;
        let get = request(&world, Method::GET, "/healthz");
        let (answer, _) = sender.send_request(get, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        let mut sent = 0;
        while let Ok(ready) = sender.ready().await {
            sender = ready;
            // The handler waits for a body that never comes.
            let post = request(&world, Method::POST, "/enqueue");
            let Ok((_answer, mut body)) = sender.send_request(post, false) else {
                break;
            };
            // Long enough for the handler to begin.
            tokio::time::sleep(Duration::from_millis(5)).await;
            body.send_reset(h2::Reason::CANCEL);
            sent += 1;
            assert!(sent < 5_000, "the connection continues");
        }
        ended.await.unwrap().ok();
        assert!(sent >= 20, "{sent} resets");
    });
    assert_eq!(world.client().post("/enqueue", &[], b"x").status, 200);
    assert!(running.log().lines().count() < 50, "{}", running.log());
}

#[test]
fn client_that_takes_no_answer_is_cut_although_it_takes_others() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__WRITE_TIMEOUT", "1s");
    let _running = serve(&world);
    let began = Instant::now();
    within(async {
        // No byte of a body may be sent.
        let (mut sender, ended) =
            connect(&world, client::Builder::new().initial_window_size(0)).await;
        let get = request(&world, Method::GET, "/healthz");
        let (answer, _) = sender.send_request(get, true).unwrap();
        // Kept: a client that drops an answer resets its stream.
        let unread = answer.await.unwrap();
        assert_eq!(unread.status(), 200);
        while let Ok(ready) = sender.ready().await {
            sender = ready;
            let head = request(&world, Method::HEAD, "/healthz");
            let Ok((answer, _)) = sender.send_request(head, true) else {
                break;
            };
            if answer.await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ended.await.unwrap().ok();
    });
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[test]
fn connections_without_a_request_end_in_time() {
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__HEADER_TIMEOUT", "500ms")
        .set("TOWPATH_SERVER__IDLE_TIMEOUT", "700ms");
    let _running = serve(&world);
    within(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for begun in [&b"PRI * HTTP"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut stream = TcpStream::connect(world.http).await.unwrap();
            stream.write_all(begun).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
        }
        let (_sender, ended) = connect(&world, &client::Builder::new()).await;
        ended.await.unwrap().ok();
        let (mut sender, ended) = connect(&world, &client::Builder::new()).await;
        let get = request(&world, Method::GET, "/healthz");
        let (answer, _) = sender.send_request(get, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        // An idle client is sent a GOAWAY, which is an end without an error.
        ended.await.unwrap().unwrap();
    });
}

#[test]
fn open_requests_of_a_listener_are_bounded_by_its_connections() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__MAX_CONNECTIONS", 3);
    let _running = serve(&world);
    within(async {
        let (sender, _ended) = connect(&world, &client::Builder::new()).await;
        let (mut open, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let post = request(&world, Method::POST, "/enqueue");
            let mut sender = sender.clone().ready().await.unwrap();
            let (answer, body) = sender.send_request(post, false).unwrap();
            open.push(body);
            answers.push(answer);
        }
        // One for the connection, three beside it.
        let refused = answers.pop().unwrap().await.unwrap();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("retry-after"));
        for (mut body, answer) in open.into_iter().zip(answers) {
            body.send_data(Bytes::from_static(b"x"), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 200);
        }
        assert_eq!(sender.current_max_send_streams(), 128);
    });
}

#[test]
fn drain_finishes_open_requests_and_takes_no_more() {
    let world = World::new();
    let running = serve(&world);
    let began = within(async {
        let (mut sender, ended) = connect(&world, &client::Builder::new()).await;
        let (mut idle, idle_ended) = connect(&world, &client::Builder::new()).await;
        let post = request(&world, Method::POST, "/enqueue");
        let (answer, mut body) = sender.send_request(post, false).unwrap();
        body.send_data(Bytes::from_static(b"half "), false).unwrap();
        tokio::time::sleep(MOMENT).await;
        let began = Instant::now();
        running.signal("-TERM");
        // An idle connection ends at once.
        idle_ended.await.unwrap().unwrap();
        assert!(
            idle.send_request(request(&world, Method::GET, "/healthz"), true)
                .is_err()
        );
        tokio::time::sleep(MOMENT).await;
        assert!(sender.ready().await.is_err(), "GOAWAY was sent");
        body.send_data(Bytes::from_static(b"whole"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
        ended.await.unwrap().unwrap();
        began
    });
    let (status, log) = running.wait();
    assert!(status.success(), "{log}");
    assert!(!log.contains("connections cut="), "{log}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}
