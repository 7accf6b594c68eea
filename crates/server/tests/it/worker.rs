//! The worker's sinks and its settings, from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::process::{World, wait_until};

#[test]
fn a_command_gets_the_payload_and_a_poison_message_becomes_a_dead_letter() {
    let mut world = World::new();
    let script = r#"["sh", "-c", "body=$(cat); case $body in bad*) echo no good >&2; exit 65;; esac; echo \"$body\" >> got.txt"]"#;
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "command")
        .set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", script);
    let _running = world.up();
    let mut client = world.client();
    for text in ["one", "bad apple", "two"] {
        assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
    }
    world.wait_drained();
    let mut got = crate::process::lines_of(&world.folder.join("got.txt"));
    got.sort();
    assert_eq!(got, ["one", "two"]);
    let dead = world.json(&["dlq", "ls", "messages"]);
    assert_eq!(dead.as_array().unwrap().len(), 1, "{dead}");
    assert_eq!(dead[0]["payload"], "bad apple");
    assert!(
        dead[0]["reason"].as_str().unwrap().contains("no good"),
        "{dead}"
    );

    world.ok(&["dlq", "redrive", "messages", "--all"]);
    wait_until("the second death", Duration::from_secs(10), || {
        world.json(&["queue", "show", "messages"])["dead"] == 1
    });
    world.ok(&["dlq", "drop", "messages", "--all", "--yes"]);
    assert_eq!(world.json(&["queue", "show", "messages"])["dead"], 0);
}

/// HMAC as its definition says, to check the library's by. Source: RFC 2104.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let pad = |byte: u8| {
        let mut pad = [byte; 64];
        pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        pad
    };
    let inner = digest(&SHA256, &[&pad(0x36), message].concat());
    let outer = [&pad(0x5c), inner.as_ref()].concat();
    digest(&SHA256, &outer).as_ref().to_vec()
}

#[test]
fn a_webhook_is_signed_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = mpsc::sync_channel(100);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let mut stream = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let status = if number == 0 {
                "500 Internal Server Error"
            } else {
                "204 No Content"
            };
            let reply =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.get_mut().write_all(reply.as_bytes()).unwrap();
            sender
                .send((head, String::from_utf8(body).unwrap()))
                .unwrap();
        }
    });
    let mut world = World::new();
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
            format!("http://{address}/hook"),
        )
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__SECRET",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        )
        .set("TOWPATH_INGEST__WORKER__RETRY__FIRST", "10ms");
    let _running = world.up();
    let id = world.client().post("/enqueue", &[], b"hooked").json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let (first, _) = requests.recv_timeout(Duration::from_secs(10)).unwrap();
    let (second, body) = requests.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(body, "hooked");
    for head in [&first, &second] {
        assert!(head.contains(&format!("webhook-id: {id}")), "{head}");
        let header = |name: &str| {
            let (_, rest) = head.split_once(&format!("{name}: ")).unwrap();
            rest.lines().next().unwrap().to_owned()
        };
        let timestamp = header("webhook-timestamp");
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = format!("{id}.{timestamp}.hooked");
        let expected = STANDARD.encode(hmac_sha256(&key, signed.as_bytes()));
        assert_eq!(header("webhook-signature"), format!("v1,{expected}"));
        let age = jiff::Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
        assert!((-1..60).contains(&age), "{head}");
    }
    world.wait_drained();
    assert_eq!(world.json(&["queue", "show", "messages"])["retried"], 1);
}

#[test]
fn standard_output_gets_one_line_a_message() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "stdout");
    let running = world.up();
    world.client().post("/enqueue", &[], b"two\nlines");
    wait_until("the line", Duration::from_secs(5), || {
        running.log().contains(r" | two\nlines")
    });
}

#[test]
fn api_and_worker_run_by_name() {
    let world = World::new();
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    assert_eq!(world.client().post("/enqueue", &[], b"kept").status, 200);
    assert!(running.stop().0.success());
    assert!(!world.output().exists());

    let running = world.spawn(&["run", "ingest.worker"]);
    running.wait_ready(&world);
    wait_until("the line", Duration::from_secs(5), || {
        world.messages() == ["kept"]
    });
    assert!(
        world.client().send("GET", "/healthz", &[], b"").is_err(),
        "the worker opens no public port"
    );
    drop(running);

    let refused = world.run(&["run", "worker"]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(
        text.contains("ingest.worker") && text.contains("fleet.worker"),
        "{text}"
    );
    let running = world.spawn(&["run", "api"]);
    running.wait_ready(&world);
}

#[test]
fn a_queue_name_never_leads_to_another_command() {
    let world = World::new();
    let _running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    world.ok(&["send", "messages", "keep me"]);
    for trick in [
        "messages/purge?",
        "messages/purge#",
        "../v1/queues/messages/purge?",
    ] {
        assert!(
            !world.run(&["queue", "pause", trick]).status.success(),
            "{trick}"
        );
    }
    assert_eq!(world.json(&["queue", "show", "messages"])["ready"], 1);
    assert_eq!(
        world.run(&["queue", "pause", "two words"]).status.code(),
        Some(2)
    );
}

#[test]
fn keys_outside_ascii_count() {
    let world = World::new();
    let _running = world.up();
    world.ok(&["queue", "pause", "messages"]);
    for _ in 0..2 {
        world.ok(&[
            "send",
            "messages",
            "once",
            "--idempotency-key",
            "ключ",
            "--key",
            "клавиша",
        ]);
    }
    let waiting = world.json(&["queue", "peek", "messages"]);
    assert_eq!(
        (waiting.as_array().unwrap().len(), &waiting[0]["key"]),
        (1, &"клавиша".into())
    );
}

#[test]
fn two_processes_share_one_file() {
    let shared = tempfile::tempdir().unwrap();
    let output = shared.path().join("out.log");
    let mut worlds = [World::new(), World::new()];
    for world in &mut worlds {
        world.set("OUTPUT_PATH", output.display());
    }
    let running = worlds.each_ref().map(World::up);
    let senders: Vec<_> = worlds
        .iter()
        .enumerate()
        .map(|(number, world)| {
            let mut client = world.client();
            std::thread::spawn(move || {
                for message in 0..100 {
                    let text = format!("{number}.{message:03}");
                    assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    worlds.iter().for_each(World::wait_drained);
    let lines = crate::process::lines_of(&output);
    assert_eq!(lines.len(), 200);
    for number in 0..2 {
        let mine: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.split_once(" | "))
            .map(|(_, message)| message)
            .filter(|message| message.starts_with(&format!("{number}.")))
            .collect();
        assert_eq!(mine.len(), 100);
        assert!(mine.is_sorted(), "{mine:?}");
    }
    drop(running);
}

#[test]
fn raw_lines_are_the_messages_themselves() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__FORMAT", "raw");
    let _running = world.up();
    for text in [r"C:\dir | x", "two\nlines"] {
        let answer = world.client().post("/enqueue", &[], text.as_bytes());
        assert_eq!(answer.status, 200);
    }
    world.wait_drained();
    assert_eq!(world.lines(), [r"C:\dir | x"]);
    let dead = world.json(&["dlq", "ls", "messages"]);
    assert!(
        dead[0]["reason"].as_str().unwrap().contains("newline"),
        "{dead}"
    );
}

#[test]
fn a_command_may_call_towpath_itself() {
    let mut world = World::new();
    let script = format!(
        r#"["sh", "-c", "{} send other passed-on"]"#,
        crate::process::BINARY
    );
    world
        .set("TOWPATH_INGEST__WORKER__SINK", "command")
        .set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", script);
    let _running = world.up();
    world.client().post("/enqueue", &[], b"pass it on");
    world.wait_drained();
    assert_eq!(world.json(&["queue", "show", "messages"])["acked"], 1);
    assert_eq!(world.json(&["queue", "show", "other"])["ready"], 1);
}
