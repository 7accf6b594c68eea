//! Reader and writer on a Redis stream.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use super::{Half, Keys, Program, SOON, Side, every_pairing, pause, rounds, start, wait_more};
use crate::process::{World, able, wait_until};

/// Follows the file from its end; a line without its newline waits for it.
fn reader(redis: u16, input: &Path) -> Program {
    let mut file = BufReader::new(File::open(input).unwrap());
    file.seek(SeekFrom::End(0)).unwrap();
    Program::start(move |stop| {
        let mut keys = Keys::new(redis);
        let mut line = Vec::new();
        while !stop.requested() {
            file.read_until(b'\n', &mut line).unwrap();
            if line.pop_if(|last| *last == b'\n').is_some() {
                keys.ask(&[b"XADD", &b"line_stream"[..], b"*", b"line", &line]);
                line.clear();
            } else {
                pause(1);
            }
        }
    })
}

/// Reads one entry at a time into a file that it truncates first.
fn writer(redis: u16, output: &Path) -> Program {
    let mut file = File::create(output).unwrap();
    let mut keys = Keys::new(redis);
    // It ignores the answer: the group may be there.
    let create =
        "pcall(redis.call, 'XGROUP', 'CREATE', 'line_stream', 'cg1', '$', 'MKSTREAM') return 1";
    keys.ask(&["EVAL", create, "0"]);
    Program::start(move |stop| {
        let read = [
            "XREADGROUP",
            "GROUP",
            "cg1",
            "host",
            "COUNT",
            "1",
            "BLOCK",
            "50",
            "STREAMS",
            "line_stream",
            ">",
        ];
        while !stop.requested() {
            for stream in keys.ask(&read).list() {
                for entry in stream.list().remove(1).list() {
                    let [id, fields] = <[_; 2]>::try_from(entry.list()).unwrap();
                    let fields = fields.list();
                    // A client that decodes every field as text.
                    fields.iter().for_each(|field| drop(field.text()));
                    let named = fields.chunks(2).find(|pair| pair[0].text() == "line");
                    writeln!(file, "{}", named.unwrap()[1].text()).unwrap();
                    file.flush().unwrap();
                    keys.ask(&["XACK", "line_stream", "cg1", &id.text()]);
                }
            }
        }
    })
}

#[test]
fn chaos_reader_and_writer_are_switched_under_load() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let server = Server::start(DURABLE);
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.txt");
    File::create(&input).unwrap();
    let (mut reading, mut writing) = (World::new(), World::new());
    for world in [&mut reading, &mut writing] {
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
        world.set("INPUT_PATH", input.display());
        world.set("TOWPATH_LINES__POLL", "20ms");
    }
    let redis = server.port();
    // One file for each start of a writer, in their order.
    let outputs = RefCell::new(Vec::<PathBuf>::new());
    let output = || {
        let mut outputs = outputs.borrow_mut();
        let path = folder.path().join(format!("output-{}.txt", outputs.len()));
        outputs.push(path.clone());
        path
    };
    // The group begins at the end of the stream, so the writer starts before the first line.
    let held = Arc::new(AtomicBool::new(true));
    let sent = Arc::new(AtomicUsize::new(0));
    let (hold, count, path) = (Arc::clone(&held), Arc::clone(&sent), input.clone());
    let load = Program::start(move |stop| {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        while !stop.requested() {
            if !hold.load(Ordering::SeqCst) {
                let number = count.fetch_add(1, Ordering::SeqCst);
                // Every tenth line is the same, so that a position cannot be found by the text of one line.
                let text = if number % 10 == 9 {
                    "the same".to_owned()
                } else {
                    format!("line {number} \\ \u{e9}\r")
                };
                writeln!(file, "{text}").unwrap();
            }
            pause(1);
        }
    });
    let mut keys = Keys::new(redis);
    let position = || reading.json(&["lines", "position", &input.display().to_string()]);
    let read_all = || {
        // The reference reader begins at the end of the file, so nothing is written while it starts.
        held.store(true, Ordering::SeqCst);
        wait_until("the reader to have read everything", SOON, || {
            position()["read"] == std::fs::metadata(&input).unwrap().len()
        });
    };
    let writing = RefCell::new(writing);
    let mut halves = [
        Half::new(
            "writer",
            || writer(redis, &output()),
            || {
                let mut world = writing.borrow_mut();
                world.set("OUTPUT_PATH", output().display());
                start(&world, "lines.writer")
            },
        ),
        Half::new(
            "reader",
            || {
                let program = reader(redis, &input);
                held.store(false, Ordering::SeqCst);
                program
            },
            || start(&reading, "lines.reader"),
        )
        .before_stop(|side| {
            if side == Side::Ours {
                read_all();
            }
        }),
    ];
    let copied = || {
        let files = outputs.borrow();
        let files = files.iter().filter_map(|path| std::fs::read(path).ok());
        files.collect::<Vec<_>>().concat()
    };
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    every_pairing(&mut halves, Side::Reference, rounds(), |pairing| {
        wait_more(pairing, &sent, 20);
        let goal = sent.load(Ordering::SeqCst);
        wait_until(pairing, SOON, || lines(&copied()) >= goal);
    });
    load.stop();
    let all = std::fs::read(&input).unwrap();
    wait_until("the last lines", SOON, || lines(&copied()) >= lines(&all));
    assert!(copied() == all, "lost, doubled or out of order");
    let pending = keys.ask(&["XPENDING", "line_stream", "cg1"]).list();
    assert_eq!(pending[0].text(), "0", "delivered and not acknowledged");
}
