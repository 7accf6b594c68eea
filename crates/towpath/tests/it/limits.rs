//! Clients that are slow, large or broken, while others are served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::process::World;

#[test]
fn trickling_connections_end_at_their_deadline_while_others_are_served() {
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__HEADER_TIMEOUT", "2s")
        .set("TOWPATH_SERVER__BODY_TIMEOUT", "2s");
    let _running = world.up();
    let count = crate::process::seeds(1).clamp(1, 4) as usize * 500;
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
    while began.elapsed() < Duration::from_secs(3) {
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
