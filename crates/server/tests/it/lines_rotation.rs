//! logrotate itself rotates a file that a program writes 500 lines a second to, while the reader is killed and started:
//! every line comes out once and in order.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lines::SOON;
use crate::process::{Running, World, able, wait_until};

const LOGROTATE: &str = "/usr/sbin/logrotate";

/// Between two lines of the program.
const PACE: Duration = Duration::from_millis(2);

/// Interval of checks for the signal to reopen its file.
const LATE: Duration = Duration::from_millis(30);

const ROTATIONS: usize = 10;

/// A program that writes numbered lines to `app.log`, and reopens it when `reopen` is there, as it would at SIGHUP.
struct Program {
    stop: Arc<AtomicBool>,
    lines: Arc<AtomicU64>,
    writing: JoinHandle<()>,
}

impl Program {
    fn start(folder: &Path) -> Self {
        let (stop, lines) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (until, count) = (Arc::clone(&stop), Arc::clone(&lines));
        let (path, reopen) = (folder.join("app.log"), folder.join("reopen"));
        let writing = std::thread::spawn(move || {
            let open = || -> File {
                let mut options = OpenOptions::new();
                options.create(true).append(true).open(&path).unwrap()
            };
            let (mut file, mut looked, began) = (open(), Instant::now(), Instant::now());
            while !until.load(Ordering::Acquire) {
                let number = count.load(Ordering::Acquire);
                file.write_all(format!("{number} a line of the program\n").as_bytes())
                    .unwrap();
                count.store(number + 1, Ordering::Release);
                if looked.elapsed() > LATE {
                    looked = Instant::now();
                    if fs::remove_file(&reopen).is_ok() {
                        file = open();
                    }
                }
                let next = PACE * u32::try_from(number + 1).unwrap();
                std::thread::sleep(next.saturating_sub(began.elapsed()));
            }
        });
        Self {
            stop,
            lines,
            writing,
        }
    }

    /// Ends, and gives how many lines were written.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.writing.join().unwrap();
        self.lines.load(Ordering::Acquire)
    }
}

/// A folder with a configuration of logrotate.
struct Rotation {
    world: World,
    logs: PathBuf,
}

impl Rotation {
    fn new(how: &str) -> Self {
        let mut world = World::new();
        let logs = world.folder.join("logs");
        fs::create_dir(&logs).unwrap();
        world.set("INPUT_PATH", logs.join("app.log").display());
        world.set("TOWPATH_LINES__OUTPUT", world.folder.join("out").display());
        world.set("TOWPATH_LINES__POLL", "20ms");
        world.set("TOWPATH_LINES__ROTATE_WAIT", "1s");
        let folder = logs.display();
        let config = format!(
            "{folder}/app.log {{\n  su root root\n  rotate 100\n  {how}\n  postrotate\n    touch {folder}/reopen\n  endscript\n}}\n"
        );
        fs::write(world.folder.join("rotate.conf"), config).unwrap();
        // Names that begin alike and are files of others.
        for name in ["app-audit.log", "app.log.bak", "application.log"] {
            fs::write(logs.join(name), "FOREIGN\n").unwrap();
        }
        Self { world, logs }
    }

    fn rotate(&self) {
        let rotated = Command::new(LOGROTATE)
            .args(["--force", "--state"])
            .arg(self.world.folder.join("rotate.state"))
            .arg(self.world.folder.join("rotate.conf"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&rotated.stderr).into_owned();
        assert!(rotated.status.success(), "{said}");
    }

    fn written(&self) -> Vec<u8> {
        fs::read(self.world.folder.join("out")).unwrap_or_default()
    }

    /// The numbers of the output's lines, each of which must be whole and of the program.
    fn numbers(&self) -> Vec<u64> {
        let text = String::from_utf8(self.written()).unwrap();
        let number = |line: &str| {
            let number = line.strip_suffix(" a line of the program");
            let number = number.and_then(|number| number.parse().ok());
            number.unwrap_or_else(|| panic!("foreign bytes: {line:?}"))
        };
        text.lines().map(number).collect()
    }

    /// The open files of the process in the folder of the logs.
    fn descriptors(&self, running: &Running) -> Vec<PathBuf> {
        let all = fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap();
        all.filter_map(|one| fs::read_link(one.unwrap().path()).ok())
            .filter(|path| path.starts_with(&self.logs))
            .collect()
    }

    fn catch_up(&self, before: usize) {
        wait_until("the reader to continue", SOON, || {
            self.written().len() > before
        });
    }
}

/// Ten rotations; the reader is killed at three of them, where `is_down` while the file is rotated.
fn story(how: &str, pause: Duration, is_down: bool) -> Option<(Rotation, Program, Running)> {
    if !able("logrotate", Path::new(LOGROTATE).exists()) {
        return None;
    }
    let rotation = Rotation::new(how);
    let program = Program::start(&rotation.logs);
    let mut running = rotation.world.up();
    for number in 0..ROTATIONS {
        std::thread::sleep(pause);
        if number % 3 != 2 {
            rotation.rotate();
            continue;
        }
        running.kill();
        if is_down {
            rotation.rotate();
        }
        let before = rotation.written().len();
        running = rotation.world.up();
        rotation.catch_up(before);
        if !is_down {
            rotation.rotate();
        }
    }
    std::thread::sleep(pause);
    Some((rotation, program, running))
}

/// Every line once and in order, and the descriptors as at the beginning.
fn check(how: &str, pause: Duration, is_down: bool) {
    let Some((rotation, program, running)) = story(how, pause, is_down) else {
        return;
    };
    let lines = program.stop();
    wait_until("every line", SOON, || {
        let numbers = rotation.numbers();
        let wrong = numbers
            .iter()
            .zip(0..)
            .find(|(number, right)| **number != *right);
        assert_eq!(wrong, None, "{how}: missing, doubled or out of order");
        numbers.len() as u64 == lines
    });
    wait_until("one open file", SOON, || {
        rotation.descriptors(&running).len() == 1
    });
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
}

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn created_files_of_logrotate_come_out_once() {
    check("create", SHORT, true);
}

#[test]
fn files_that_logrotate_compresses_come_out_once() {
    check("create\n  compress", SHORT, false);
}

#[test]
fn files_that_logrotate_compresses_later_come_out_once() {
    check("create\n  compress\n  delaycompress", SHORT, true);
}

#[test]
fn files_that_logrotate_dates_come_out_once() {
    // Its dates are of a second at least.
    check(
        "create\n  dateext\n  dateformat -%Y%m%d-%s",
        Duration::from_millis(1_050),
        true,
    );
}

#[test]
fn files_that_logrotate_copies_and_truncates_come_out_once() {
    let Some((rotation, program, running)) = story("copytruncate", SHORT, true) else {
        return;
    };
    let lines = program.stop();
    // The method itself loses lines between the copy and the truncation, unless the reader was faster.
    let mut kept = Vec::new();
    for entry in fs::read_dir(&rotation.logs).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let numbers = text
            .lines()
            .filter_map(|line| line.strip_suffix(" a line of the program"));
        kept.extend(numbers.map(|number| number.parse::<u64>().unwrap()));
    }
    kept.sort_unstable();
    assert!(kept.len() as u64 > lines / 2, "{} of {lines}", kept.len());
    wait_until("every line that was kept", SOON, || {
        let numbers = rotation.numbers();
        assert!(
            numbers.is_sorted_by(|one, other| one < other),
            "doubled or out of order"
        );
        let missing: Vec<_> = kept
            .iter()
            .filter(|one| numbers.binary_search(one).is_err())
            .collect();
        missing.is_empty()
    });
    wait_until("one open file", SOON, || {
        rotation.descriptors(&running).len() == 1
    });
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
}
