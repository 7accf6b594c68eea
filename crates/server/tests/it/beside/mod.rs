//! Whole programs of the reference systems, written from their contract, beside processes of ours: every pairing of the
//! halves of a system, each half switched in both directions while requests arrive.
//!
//! The programs are threads, and end between two messages: losses of the reference systems when they are killed are not
//! the subject. `TOWPATH_SEEDS` is the number of rounds that each test makes through all pairings.

mod accounts;
mod fleet;
mod ingest;
mod lines;
mod orders;
mod two_brokers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Answer, Client};
use crate::process::{Running, World, seeds, wait_until};
use crate::web::{Reply, Request, converse};

const SOON: Duration = Duration::from_secs(60);

/// Pause of a program that found nothing to do.
const IDLE: Duration = Duration::from_millis(5);

/// Tells a program to end.
#[derive(Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A program of a reference system, or one that sends requests.
struct Program {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    fn start(run: impl FnOnce(&Stop) + Send + 'static) -> Self {
        let stop = Stop::default();
        let seen = stop.clone();
        let thread = std::thread::spawn(move || run(&seen));
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Serves HTTP on a port; requests that it has read are answered before it ends.
    fn serve(at: SocketAddr, handler: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::start(move |stop| {
            let mut open: Vec<TcpStream> = Vec::new();
            std::thread::scope(|scope| {
                while !stop.requested() {
                    let Ok((stream, _)) = listener.accept() else {
                        // The listener does not block, so that the program can stop.
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    open.push(stream.try_clone().unwrap());
                    // A client that disconnects ends its thread.
                    scope.spawn(|| converse(stream, &handler).ok());
                }
                drop(listener);
                for stream in &open {
                    stream.shutdown(Shutdown::Read).ok();
                }
            });
        })
    }

    fn stop(mut self) {
        self.stop.0.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Whose program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Reference,
    Ours,
}

enum Process {
    Reference(Program),
    Ours(Running),
}

/// One half of a system.
struct Half<'a> {
    name: &'static str,
    reference: Box<dyn Fn() -> Program + 'a>,
    ours: Box<dyn Fn() -> Running + 'a>,
    /// Runs before the process of this side is stopped.
    leave: Box<dyn Fn(Side) + 'a>,
    process: Option<Process>,
}

impl<'a> Half<'a> {
    fn new(
        name: &'static str,
        reference: impl Fn() -> Program + 'a,
        ours: impl Fn() -> Running + 'a,
    ) -> Self {
        Self {
            name,
            reference: Box::new(reference),
            ours: Box::new(ours),
            leave: Box::new(|_| ()),
            process: None,
        }
    }

    fn before_stop(mut self, leave: impl Fn(Side) + 'a) -> Self {
        self.leave = Box::new(leave);
        self
    }

    fn start(&mut self, side: Side) {
        self.process = Some(match side {
            Side::Reference => Process::Reference((self.reference)()),
            Side::Ours => Process::Ours((self.ours)()),
        });
    }

    fn side(&self) -> Option<Side> {
        self.process.as_ref().map(|process| match process {
            Process::Reference(_) => Side::Reference,
            Process::Ours(_) => Side::Ours,
        })
    }

    fn stop(&mut self) {
        if let Some(side) = self.side() {
            (self.leave)(side);
        }
        match self.process.take() {
            None => (),
            Some(Process::Reference(program)) => program.stop(),
            Some(Process::Ours(running)) => {
                let (status, log, _) = running.stop();
                assert!(status.success(), "{}: {log}", self.name);
                // An adopted queue does not make a library log an error either.
                assert!(!log.contains(r#""level":"ERROR""#), "{}: {log}", self.name);
            }
        }
    }

    /// Replaces the process by the other side's.
    fn switch(&mut self) {
        let next = match self.side() {
            Some(Side::Reference) => Side::Ours,
            _ => Side::Reference,
        };
        self.stop();
        self.start(next);
    }
}

/// Goes through every pairing, `rounds` times, and checks each: one half is switched at a time, in an order that has each
/// pairing once (a Gray code) and begins with another half in each round.
fn every_pairing(halves: &mut [Half], first: Side, rounds: u64, mut check: impl FnMut(&str)) {
    halves.iter_mut().for_each(|half| half.start(first));
    let count = halves.len();
    check("at the start");
    for round in 0..usize::try_from(rounds).unwrap() {
        for step in 1..=1_usize << count {
            let index = (step.trailing_zeros() as usize).min(count - 1);
            halves[(index + round) % count].switch();
            let pairing: Vec<String> = halves
                .iter()
                .map(|half| format!("{} {:?}", half.name, half.side().unwrap()))
                .collect();
            check(&pairing.join(", "));
        }
    }
}

/// How often a test goes through all pairings.
fn rounds() -> u64 {
    seeds(1).min(20)
}

/// Starts a role of ours, and waits until it is ready.
fn start(world: &World, roles: &str) -> Running {
    let running = world.spawn(&["run", roles]);
    running.wait_ready(world);
    running
}

/// Sends a request on a connection of its own until it is answered; also whether it was sent before.
fn insist(at: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> (Answer, bool) {
    let (method, path) = path.split_once(' ').unwrap();
    let (began, mut repeated) = (Instant::now(), false);
    loop {
        match Client::new(at).send(method, path, headers, body.as_bytes()) {
            Ok(answer) => return (answer, repeated),
            Err(error) => assert!(began.elapsed() < SOON, "{method} {path}: {error}"),
        }
        repeated = true;
        pause(1);
    }
}

/// The interval between two steps of a loop that acts as a program of the reference systems, in units of `IDLE`.
fn pause(units: u32) {
    // A program that polls without a pause would take the processor from the tested processes.
    std::thread::sleep(units * IDLE);
}

/// Waits until a count is higher by this much than now.
fn wait_more(what: &str, count: &AtomicUsize, more: usize) {
    let goal = count.load(Ordering::SeqCst) + more;
    wait_until(what, SOON, || count.load(Ordering::SeqCst) >= goal);
}

/// A reply of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Nothing,
    Text(Vec<u8>),
    Number(i64),
    List(Vec<Self>),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Text(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Self::Number(number) => number.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn list(self) -> Vec<Self> {
        match self {
            Self::List(values) => values,
            Self::Nothing => Vec::new(),
            other => panic!("{other:?}"),
        }
    }
}

/// A client of Redis, written from its protocol.
struct Keys(BufReader<TcpStream>);

impl Keys {
    fn new(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a command and fails when Redis refuses it.
    fn ask<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Value {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words.iter().map(AsRef::as_ref) {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend(word);
            request.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&request).unwrap();
        self.reply().unwrap_or_else(|error| {
            let words: Vec<_> = words
                .iter()
                .map(|word| String::from_utf8_lossy(word.as_ref()))
                .collect();
            panic!("{words:?}: {error}")
        })
    }

    fn reply(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        let number = || rest.parse::<i64>().unwrap();
        Ok(match (kind, rest) {
            ("-", _) => return Err(rest.to_owned()),
            ("+", _) => Value::Text(rest.into()),
            (":", _) => Value::Number(number()),
            (_, "-1") => Value::Nothing,
            ("$", _) => {
                let mut bytes = vec![0; usize::try_from(number()).unwrap() + 2];
                self.0.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Value::Text(bytes)
            }
            _ => {
                let values: Result<_, _> = (0..number()).map(|_| self.reply()).collect();
                Value::List(values?)
            }
        })
    }
}
