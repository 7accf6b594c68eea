//! The same cuts under a bare Redis server, for comparison: acknowledged messages, and those that are left afterwards.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use libtest_mimic::Failed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::ledger::{Account, Event, Ledger, violations};
use towpath_testkit::power_cut::{Cut, Disk, FileSystem};
use towpath_testkit::servers::redis::Server;

use crate::process::seeds;
use crate::producers::ledger;

const PRODUCERS: usize = 8;
const LIST: &str = "messages";

/// One way to run it.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
    loses: Loss,
}

/// Share of acknowledged messages that a setting may lose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Nothing,
    Anything,
    /// As the setting promises nothing, a run without a loss is one without a cut.
    Something,
}

pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        name: "always_loses_nothing",
        arguments: &["--appendonly", "yes", "--appendfsync", "always"],
        loses: Loss::Nothing,
    },
    Setting {
        name: "everysec_invents_and_doubles_nothing",
        arguments: &["--appendonly", "yes", "--appendfsync", "everysec"],
        loses: Loss::Anything,
    },
    Setting {
        name: "no_loses_what_the_kernel_kept",
        arguments: &["--appendonly", "yes", "--appendfsync", "no"],
        loses: Loss::Something,
    },
];

/// Cuts as often as `TOWPATH_SEEDS` says, each time on a fresh server.
pub(crate) fn cut_and_compare(setting: &Setting) -> Result<(), Failed> {
    let mut lost = 0;
    for seed in 0..seeds(1) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::new(FileSystem::Xfs)?;
        let ledger = ledger(&format!("power-cut-redis-{}-{seed}", setting.name));
        let mut server = Server::start_at(&disk.path(), setting.arguments);
        let producers = Producers::start(server.port(), &ledger);
        sleep(Duration::from_millis(rng.random_range(1_500..3_000)));
        ledger.fault("disk", "power cut");
        producers.cut_off();
        disk.cut(Cut::Plain)?;
        server.kill();
        producers.stop();
        disk.restart()?;
        ledger.record("redis", Event::Started);
        server.restart();
        ledger.record("redis", Event::Ready);
        for message in Connection::open(server.port())?.everything()? {
            ledger.written("redis", &message);
        }
        let history = ledger.history()?;
        let account = Account::of(&history);
        eprintln!("redis {}, seed {seed}: {account}", setting.name);
        lost += account.lost;
        if setting.loses == Loss::Nothing {
            ledger.settle()?;
        } else if let Some(other) = violations(&history)
            .iter()
            .find(|violation| violation.name != "acknowledged_is_present")
        {
            return Err(other.to_string().into());
        }
        ledger.discard();
    }
    if setting.loses == Loss::Something && lost == 0 {
        return Err("nothing was lost, where much must be".into());
    }
    Ok(())
}

struct Producers {
    cut_off: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Producers {
    /// One message in flight each, until cut off.
    fn start(port: u16, ledger: &Arc<Ledger>) -> Self {
        let cut_off = Arc::<AtomicBool>::default();
        let produce = |producer: usize| {
            let (ledger, cut_off) = (Arc::clone(ledger), Arc::clone(&cut_off));
            spawn(move || {
                let who = format!("p{producer}");
                let mut connection = Connection::open(port).unwrap();
                for number in 0.. {
                    let text = format!("{who}-{number}-{}", "x".repeat(number % 300));
                    ledger.offered(&who, &text, Some(&who));
                    let reply = connection.send(&["LPUSH", LIST, &text]);
                    if cut_off.load(Ordering::SeqCst) {
                        return;
                    }
                    match reply {
                        Ok(reply) if reply.starts_with(':') => ledger.acknowledged(&who, &text),
                        // An error or no answer: the outcome is unknown.
                        _ => return,
                    }
                }
            })
        };
        Self {
            threads: (0..PRODUCERS).map(produce).collect(),
            cut_off,
        }
    }

    /// Believes no answer from now on. A sync that is under way while the file system is shut down may return
    /// success without having reached the disk; a machine without power would not have answered.
    fn cut_off(&self) {
        self.cut_off.store(true, Ordering::SeqCst);
    }

    fn stop(self) {
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// A client of the wire protocol, as far as it is needed here.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a command and gives the first line of its reply.
    fn send(&mut self, words: &[&str]) -> std::io::Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        self.line()
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// The list, oldest first.
    fn everything(&mut self) -> Result<Vec<String>, Failed> {
        let count: usize = number(&self.send(&["LRANGE", LIST, "0", "-1"])?)?;
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let size = number(&self.line()?)?;
            let mut bytes = vec![0; size + 2];
            self.0.read_exact(&mut bytes)?;
            bytes.truncate(size);
            messages.push(String::from_utf8(bytes)?);
        }
        messages.reverse();
        Ok(messages)
    }
}

/// The number behind the letter of a reply.
fn number(line: &str) -> Result<usize, Failed> {
    let number = line.get(1..).and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("redis said {line:?}").into())
}
