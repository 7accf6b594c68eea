//! Clients that post while the power is cut, and when their answers count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use towpath_testkit::ledger::Ledger;

use crate::client::Client;
use crate::process::World;

const CLIENTS: usize = 8;

/// Longest wait for Towpath to find the server again.
const RECONNECTED: Duration = Duration::from_secs(15);

/// One message of a client.
pub(crate) struct Request {
    pub(crate) path: &'static str,
    pub(crate) json: bool,
    pub(crate) body: String,
    /// Status of a stored message.
    pub(crate) stored: u16,
}

/// State shared by the clients.
struct Shared {
    ledger: Arc<Ledger>,
    over: AtomicBool,
    dark: AtomicBool,
    /// Answers that said "stored": all of them, and those that did not count.
    stored: AtomicUsize,
    doubted: AtomicUsize,
    request: fn(&str) -> Request,
    keyed: bool,
    ordered: bool,
}

/// Clients with one message in flight each, until they are stopped.
///
/// With keys every third message is sent again with its key until it is stored, so it must come out once whatever
/// happened in between.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(
        world: &World,
        ledger: &Arc<Ledger>,
        request: fn(&str) -> Request,
        keyed: bool,
        ordered: bool,
    ) -> Self {
        let shared = Arc::new(Shared {
            ledger: Arc::clone(ledger),
            over: AtomicBool::new(false),
            dark: AtomicBool::new(false),
            stored: AtomicUsize::new(0),
            doubted: AtomicUsize::new(0),
            request,
            keyed,
            ordered,
        });
        let threads = (0..CLIENTS)
            .map(|number| {
                let (shared, mut client) = (Arc::clone(&shared), world.client());
                spawn(move || {
                    let who = format!("p{number}");
                    for number in 0.. {
                        if shared.over.load(Ordering::SeqCst) {
                            break;
                        }
                        shared.send(&mut client, &who, &format!("{who}-{number}"), number);
                    }
                })
            })
            .collect();
        Self { shared, threads }
    }

    /// From here until [`Clients::light`] no answer counts.
    ///
    /// A sync that is under way when the file system is shut down may return success without having reached the disk
    /// (see `Disk::cut`), and the server then acknowledges a lost message; a machine without power would not have
    /// answered.
    pub(crate) fn dark(&self) {
        self.shared.dark.store(true, Ordering::SeqCst);
    }

    /// The server is back, and answers count again. Gives the time until one has come.
    pub(crate) fn light(&self) -> Result<Duration, String> {
        let (began, before) = (Instant::now(), self.stored());
        self.shared.dark.store(false, Ordering::SeqCst);
        while self.stored() == before {
            if began.elapsed() > RECONNECTED {
                return Err(format!("nothing was stored within {RECONNECTED:?}"));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(began.elapsed())
    }

    /// Answers so far that said "stored".
    pub(crate) fn stored(&self) -> usize {
        self.shared.stored.load(Ordering::SeqCst)
    }

    /// Waits for the answers to work in progress. Gives how many answers did not count.
    pub(crate) fn stop(self) -> usize {
        self.shared.over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.shared.doubted.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// Sends a message, until its outcome is known or, without a key, can no more be known.
    fn send(&self, client: &mut Client, who: &str, id: &str, number: usize) {
        let request = (self.request)(id);
        let again = self.keyed && number.is_multiple_of(3);
        let mut headers = Vec::new();
        if again {
            headers.push(("idempotency-key", id));
        }
        if request.json {
            headers.push(("content-type", "application/json"));
        }
        loop {
            self.ledger.offered(who, id, self.ordered.then_some(who));
            let answer = client.send("POST", request.path, &headers, request.body.as_bytes());
            match answer.as_ref().map(|answer| answer.status) {
                Ok(status) if status == request.stored => {
                    self.stored.fetch_add(1, Ordering::SeqCst);
                    if !self.dark.load(Ordering::SeqCst) {
                        return self.ledger.acknowledged(who, id);
                    }
                    self.doubted.fetch_add(1, Ordering::SeqCst);
                }
                Ok(429) => self.ledger.refused(who, id),
                Ok(503) | Err(_) => sleep(Duration::from_millis(20)),
                Ok(status) => panic!("answered {status}: {}", answer.unwrap().text()),
            }
            if !again || self.over.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}
