//! The power of a server is cut under Towpath: everything acknowledged comes out once, and Towpath continues without help.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::ledger::{Account, Ledger};
use towpath_testkit::power_cut::{Cut, Disk, FileSystem};

use crate::brokers::{Kind, Server};
use crate::clients::{Clients, Request};
use crate::cuts::pause;
use crate::process::{Running, World, seeds};
use crate::producers::{ledger, read_output, text, up};

/// Room for the logs of RabbitMQ and Kafka.
const DISK_BYTES: u64 = 2 << 30;

/// Number of cuts of one disk, so that the state after a cut is cut again.
const CUTS_PER_DISK: u64 = 2;

/// Longest wait for the last message.
const DRAINED: Duration = Duration::from_secs(60);

/// A server on a disk that is cut, and a Towpath that uses it.
pub(crate) struct CutServer {
    name: String,
    disk: Disk,
    server: Box<dyn Server>,
    pub(crate) world: World,
    /// Whether Towpath's own files are on the same disk, so that it dies with the server.
    pub(crate) both: bool,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) rng: StdRng,
    slowest: Duration,
    _outside: tempfile::TempDir,
}

/// The disks of a kind, each with the number of its cuts: together as many as `TOWPATH_SEEDS` says.
pub(crate) fn rounds(
    kind: &'static Kind,
) -> impl Iterator<Item = Result<(CutServer, u64), Failed>> {
    let all = seeds(kind.cuts);
    let disks = 0..all.div_ceil(CUTS_PER_DISK);
    disks.map(move |seed| {
        let cuts = (all - seed * CUTS_PER_DISK).min(CUTS_PER_DISK);
        Ok((CutServer::new(kind, seed)?, cuts))
    })
}

impl CutServer {
    fn new(kind: &Kind, seed: u64) -> Result<Self, Failed> {
        let disk = Disk::with_size(FileSystem::Xfs, DISK_BYTES)?;
        let outside = tempfile::tempdir()?;
        let both = seed % 2 == 1;
        let folder = if both {
            disk.path().join("towpath")
        } else {
            outside.path().to_owned()
        };
        std::fs::create_dir_all(&folder)?;
        let name = format!("{}, seed {seed}", kind.name);
        Ok(Self {
            server: (kind.start)(&disk.path().join("server")),
            world: World::at(&folder),
            ledger: ledger(&format!("power-cut-{}-{seed}", kind.name)),
            rng: StdRng::seed_from_u64(seed),
            slowest: Duration::ZERO,
            name: if both { name + ", with Towpath" } else { name },
            _outside: outside,
            disk,
            both,
        })
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Starts Towpath; its declarations are on the disk afterwards, as they are long before a real cut.
    pub(crate) fn up(&self) -> Result<Running, Failed> {
        let running = up(&self.world, &self.ledger);
        self.server.settle();
        self.disk.sync()?;
        Ok(running)
    }

    /// Cuts the power at a random moment under load, and waits until messages are stored again.
    pub(crate) fn cut(&mut self, running: Running, clients: &Clients) -> Result<Running, Failed> {
        pause(&mut self.rng, 1_000..3_000);
        clients.dark();
        self.ledger.fault("disk", "power cut");
        self.disk.cut(Cut::Plain)?;
        // Server and process meet the dead disk.
        pause(&mut self.rng, 0..50);
        self.server.kill();
        let mut running = Some(running);
        if self.both
            && let Some(running) = running.take()
        {
            running.kill();
        }
        self.disk.restart()?;
        self.server.restart();
        let running = running.unwrap_or_else(|| up(&self.world, &self.ledger));
        let took = clients
            .light()
            .map_err(|wrong| format!("{}: {wrong}\n{}", self.name, running.log()))?;
        self.slowest = self.slowest.max(took);
        Ok(running)
    }

    /// Waits until the worker writes.
    fn wait_for_output(&self, running: &Running) -> Result<(), Failed> {
        let size = || std::fs::metadata(self.world.output()).map_or(0, |file| file.len());
        let (began, before) = (Instant::now(), size());
        while size() == before {
            if began.elapsed() > DRAINED {
                let (name, log) = (&self.name, running.log());
                return Err(format!("{name}: the worker writes nothing\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until nothing is in the queue.
    fn wait_drained(&self, running: &Running) -> Result<(), Failed> {
        let began = Instant::now();
        loop {
            let stats = self.world.json(&["queue", "show", "messages"]);
            let places = ["ready", "delayed", "leased"];
            if places.iter().all(|place| stats[*place] == 0) {
                return Ok(());
            }
            if began.elapsed() > DRAINED {
                let (name, log) = (&self.name, running.log());
                return Err(format!("{name}: the queue is not empty: {stats}\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Prints the outcomes of the messages.
    pub(crate) fn tell(&self, account: &Account, doubted: usize) {
        eprintln!(
            "{}: {account}; {doubted} answers doubted; stored again within {} ms of the server's start",
            self.name,
            self.slowest.as_millis()
        );
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

fn message(id: &str) -> Request {
    Request {
        path: "/enqueue",
        json: false,
        body: text(id),
        stored: 200,
    }
}

/// Ingest's queue on the server, the output of its worker on another disk or on the same.
pub(crate) fn queue_keeps_everything(kind: &'static Kind) -> Result<(), Failed> {
    for round in rounds(kind) {
        let (mut place, cuts) = round?;
        let (running, doubted) = drive(&mut place, kind, cuts)?;
        let account = place
            .ledger
            .settle()
            .map_err(|wrong| format!("{}: {wrong}\n{}", place.name, running.log()))?;
        place.tell(&account, doubted);
    }
    Ok(())
}

/// Load and cuts, and then the output is read. Gives how many answers did not count.
pub(crate) fn drive(
    place: &mut CutServer,
    kind: &Kind,
    cuts: u64,
) -> Result<(Running, usize), Failed> {
    let url = place.url() + kind.parameters;
    place
        .world
        .set("TOWPATH_BACKENDS__INGEST", url)
        .set("TOWPATH_INGEST__WORKER__LEASE", "3s");
    // Half of the time most is still in the queue at the cut, half of the time most is in the file.
    let is_slow = kind.loses || place.rng.random();
    if is_slow {
        let delay = place.rng.random_range(1..4);
        place.world.set("PROCESSING_DELAY_MS", delay);
    }
    let mut running = place.up()?;
    let clients = Clients::start(
        &place.world,
        &place.ledger,
        message,
        kind.keyed,
        // A lease whose answer was lost ends by time, and its message then comes behind others.
        false,
    );
    for _ in 0..cuts {
        running = place.cut(running, &clients)?;
    }
    let doubted = clients.stop();
    if is_slow && !kind.loses {
        // The worker has found the server again; the rest shall not take as long.
        place.wait_for_output(&running)?;
        drop(running.stop());
        place.world.set("PROCESSING_DELAY_MS", "");
        running = up(&place.world, &place.ledger);
    }
    place.wait_drained(&running)?;
    read_output(&place.world, &place.ledger);
    Ok((running, doubted))
}
