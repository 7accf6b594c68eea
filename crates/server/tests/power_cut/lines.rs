//! Lines with the store and the output on the disk that is cut, and the input on another: each comes out once and in order.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::power_cut::{Cut, Disk, FileSystem};

use crate::cuts::{cut_under_load, rounds};
use crate::process::World;

/// Longest wait for the last line.
const SOON: Duration = Duration::from_secs(60);

/// Writes the input, on a thread of its own.
struct Source {
    stop: Arc<AtomicBool>,
    writing: JoinHandle<Vec<u8>>,
}

impl Source {
    /// Appends lines until it is stopped.
    fn start(path: &Path, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, until) = (path.to_owned(), Arc::clone(&stop));
        let writing = std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            let (mut all, mut number) = (Vec::new(), 0);
            while !until.load(Ordering::Acquire) {
                let begin = all.len();
                for _ in 0..rng.random_range(1..100) {
                    let filling = "x".repeat(rng.random_range(0..80));
                    all.extend(format!("{number} {filling}\n").into_bytes());
                    number += 1;
                }
                file.write_all(&all[begin..]).unwrap();
                std::thread::sleep(Duration::from_millis(rng.random_range(1..8)));
            }
            all
        });
        Self { stop, writing }
    }

    /// Stops, and gives everything that was written.
    fn stop(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Release);
        self.writing.join().unwrap()
    }
}

/// Cuts as often as `TOWPATH_SEEDS` says.
pub(crate) fn come_out_as_they_went_in(
    name: &str,
    file_system: FileSystem,
    cut: Cut,
) -> Result<(), Failed> {
    for (seed, cuts) in rounds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let outside = tempfile::tempdir()?;
        let mut disk = Disk::new(file_system)?;
        let world = world(&disk, outside.path());
        let mut running = world.up();
        let source = Source::start(&input(outside.path()), seed);
        for _ in 0..cuts {
            cut_under_load(&world, &mut disk, cut, running, &mut rng, |_| ())?;
            running = world.up();
        }
        let went_in = source.stop();
        match compare(&world, &went_in) {
            Came::Equal => {}
            wrong => return Err(format!("{name}, seed {seed}: {wrong:?}").into()),
        }
        drop(running);
        let lines = went_in.iter().filter(|byte| **byte == b'\n').count();
        eprintln!("{name}, seed {seed}: {lines} lines through {cuts} cuts");
    }
    Ok(())
}

/// An output that is not synced must lose something, and the comparison must say so: otherwise it proves nothing.
pub(crate) fn show_the_loss_without_syncs(
    name: &str,
    file_system: FileSystem,
    cut: Cut,
) -> Result<(), Failed> {
    let outside = tempfile::tempdir()?;
    let mut disk = Disk::new(file_system)?;
    let mut world = world(&disk, outside.path());
    world.set("TOWPATH_LINES__FSYNC", "never");
    let running = world.up();
    let source = Source::start(&input(outside.path()), 0);
    std::thread::sleep(Duration::from_millis(500));
    disk.cut(cut)?;
    running.kill();
    let went_in = source.stop();
    disk.restart()?;
    let _running = world.up();
    match compare(&world, &went_in) {
        Came::Differing { at } => {
            eprintln!("{name}, not synced: the output differs from byte {at} on");
            Ok(())
        }
        other => Err(format!("a power cut without any sync was not noticed: {other:?}").into()),
    }
}

/// Files that are removed and made again get the inode of the one before, and have the same first bytes: each is read
/// from its beginning, also when the reader is killed in between.
pub(crate) fn tell_files_of_one_inode_apart() -> Result<(), Failed> {
    let disk = Disk::new(FileSystem::Ext4)?;
    let store = tempfile::tempdir()?;
    let path = disk.path().join("in.log");
    let mut world = World::at(store.path());
    world
        .set("INPUT_PATH", path.display())
        .set("TOWPATH_LINES__OUTPUT", output(store.path()).display())
        .set("TOWPATH_LINES__ROTATE_WAIT", "1s")
        .set("TOWPATH_LINES__POLL", "20ms");
    let mut running = world.up();
    let (head, mut all, mut inodes) = ("x".repeat(300), String::new(), Vec::new());
    for round in 0..8 {
        let text = format!(
            "{head}\n{round} first\n{round} second\n{}",
            "more\n".repeat(round)
        );
        if round % 2 == 1 {
            running.kill();
            fs::remove_file(&path)?;
            fs::write(&path, &text)?;
            running = world.up();
        } else {
            fs::remove_file(&path).ok();
            fs::write(&path, &text)?;
        }
        inodes.push(fs::metadata(&path)?.ino());
        all.push_str(&text);
        match compare(&world, all.as_bytes()) {
            Came::Equal => {}
            wrong => return Err(format!("round {round}: {wrong:?}").into()),
        }
    }
    drop(running);
    let count = inodes.len();
    inodes.sort_unstable();
    inodes.dedup();
    if inodes.len() == count {
        return Err("no inode was given again: this shows nothing".into());
    }
    Ok(())
}

/// The result of a run.
#[derive(Debug)]
enum Came {
    Equal,
    /// A line is missing, doubled or out of order at this byte.
    Differing {
        at: usize,
    },
    /// The rest does not come.
    #[expect(dead_code, reason = "shown when a test fails")]
    Short {
        bytes: usize,
    },
}

/// Waits until the output is the input; whatever is wrong before that is wrong for good.
fn compare(world: &World, went_in: &[u8]) -> Came {
    let began = Instant::now();
    loop {
        let came_out = fs::read(output(&world.folder)).unwrap_or_default();
        let same = came_out.iter().zip(went_in).take_while(|(a, b)| a == b);
        let same = same.count();
        if same < came_out.len() {
            return Came::Differing { at: same };
        }
        if same == went_in.len() {
            return Came::Equal;
        }
        if began.elapsed() > SOON {
            return Came::Short { bytes: same };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn input(outside: &Path) -> PathBuf {
    outside.join("input.txt")
}

fn output(disk: &Path) -> PathBuf {
    disk.join("output.txt")
}

fn world(disk: &Disk, outside: &Path) -> World {
    let mut world = World::at(&disk.path());
    world
        .set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "256KiB")
        .set("INPUT_PATH", input(outside).display())
        .set("TOWPATH_LINES__OUTPUT", output(&disk.path()).display())
        .set("TOWPATH_LINES__POLL", "20ms");
    world
}
