//! Starts the real binary in a folder of its own, on ports of its own, and stops exactly that.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use towpath_testkit::servers::free_port;

use crate::client::Client;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_towpath");

/// A folder, two ports and the settings of one Towpath; processes come and go.
pub(crate) struct World {
    pub(crate) folder: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) dashboard: SocketAddr,
    /// The fleet's controller and worker.
    pub(crate) controller: SocketAddr,
    pub(crate) hits: SocketAddr,
    env: Vec<(String, String)>,
    /// The runtime folder of the processes.
    pub(crate) runtime: tempfile::TempDir,
    /// Commands of the shell before it becomes the process.
    before: Option<String>,
    _temporary: Option<tempfile::TempDir>,
}

/// A running process of a [`World`].
pub(crate) struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut world = Self::at(temporary.path());
        world._temporary = Some(temporary);
        world
    }

    /// A world in a folder that another client looks after.
    pub(crate) fn at(folder: &Path) -> Self {
        let (http, admin) = free_ports();
        let (dashboard, controller) = free_ports();
        let (hits, _) = free_ports();
        Self {
            folder: folder.to_owned(),
            http,
            admin,
            dashboard,
            controller,
            hits,
            env: Vec::new(),
            runtime: tempfile::tempdir().unwrap(),
            before: None,
            _temporary: None,
        }
    }

    pub(crate) fn set(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Its processes may open this many files.
    pub(crate) fn limit_open_files(&mut self, count: u32) {
        self.before = Some(format!("ulimit -n {count} && exec \"$0\" \"$@\""));
    }

    /// Its processes make files under this mask.
    pub(crate) fn set_umask(&mut self, mask: &str) {
        self.before = Some(format!("umask {mask} && exec \"$0\" \"$@\""));
    }

    /// Its processes are in this control group.
    pub(crate) fn join_group(&mut self, group: &Path) {
        let members = group.join("cgroup.procs");
        let join = format!("echo $$ > {}", members.display());
        self.before = Some(format!("{join} && exec \"$0\" \"$@\""));
    }

    /// Its processes are in the network namespace of this one.
    pub(crate) fn join_network(&mut self, pid: u32) {
        let enter = format!("exec nsenter --net=/proc/{pid}/ns/net");
        self.before = Some(format!("{enter} \"$0\" \"$@\""));
    }

    /// Its processes look names up at this address, in a mount namespace of their own.
    pub(crate) fn ask_names_of(&mut self, server: IpAddr) {
        let file = self.runtime.path().join("resolv.conf");
        std::fs::write(&file, format!("nameserver {server}\n")).unwrap();
        let mount = format!("mount --bind {} /etc/resolv.conf", file.display());
        self.before = Some(format!(
            "exec unshare --mount sh -c '{mount} && exec \"$0\" \"$@\"' \"$0\" \"$@\""
        ));
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("towpath-data")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.data().join("processed.log")
    }

    /// A command of the binary with this world's settings and nothing of the surrounding environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.before {
            None => Command::new(BINARY),
            Some(script) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", script, BINARY]);
                shell
            }
        };
        command
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env("HTTP_ADDR", self.http.to_string())
            .env("TOWPATH_SERVER__ADMIN", self.admin.to_string())
            .env(
                "TOWPATH_ORDERS__DASHBOARD__LISTEN",
                self.dashboard.to_string(),
            )
            .env(
                "TOWPATH_FLEET__CONTROLLER__LISTEN",
                self.controller.to_string(),
            )
            .env("TOWPATH_FLEET__WORKER__LISTEN", self.hits.to_string())
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of the binary to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed, and gives its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "towpath {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut args = args.to_vec();
        args.extend(["--output", "json"]);
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    /// As [`World::json`], for a command that may end with another code than 0; the error where it printed none.
    pub(crate) fn json_of(&self, args: &[&str]) -> serde_json::Value {
        let mut args = args.to_vec();
        args.extend(["--output", "json"]);
        let output = self.run(&args);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into())
    }

    /// Starts `towpath up` and waits until it is ready.
    pub(crate) fn up(&self) -> Running {
        let running = self.spawn(&["up"]);
        running.wait_ready(self);
        running
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let mut child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        for stream in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        Running { child, log }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.http)
    }

    pub(crate) fn admin_client(&self) -> Client {
        Client::new(self.admin)
    }

    /// The header that the admin API wants.
    pub(crate) fn bearer(&self) -> String {
        let token = fs::read_to_string(self.data().join("admin.token")).unwrap();
        format!("Bearer {}", token.trim())
    }

    /// The value of a metric, its labels included in the name; 0 when it is not there.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.admin_client().get("/metrics").text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The lines of the output file; every one must be whole.
    pub(crate) fn lines(&self) -> Vec<String> {
        lines_of(&self.output())
    }

    /// The messages of the output file, timestamps checked and removed.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.lines()
            .into_iter()
            .map(|line| {
                let (timestamp, message) = line
                    .split_once(" | ")
                    .unwrap_or_else(|| panic!("torn line: {line:?}"));
                timestamp
                    .parse::<jiff::Timestamp>()
                    .unwrap_or_else(|error| panic!("{error}: {line:?}"));
                message.to_owned()
            })
            .collect()
    }

    /// Waits until the queue has no waiting and no leased messages.
    pub(crate) fn wait_drained(&self) {
        wait_until("the queue to be empty", Duration::from_secs(60), || {
            let stats = self.json(&["queue", "show", "messages"]);
            ["ready", "delayed", "leased"]
                .iter()
                .all(|place| stats[*place] == 0)
        });
    }
}

impl Running {
    pub(crate) fn wait_ready(&self, world: &World) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = world.admin_client().send("GET", "/readyz", &[], b"");
            if answer.is_ok_and(|answer| answer.status == 200) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not ready within 30 s:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The output of the process so far, both streams.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// `kill -9`, and gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// SIGTERM, and gone in order. Gives the status, the log and how long it took.
    pub(crate) fn stop(self) -> (ExitStatus, String, Duration) {
        let began = Instant::now();
        self.signal("-TERM");
        let (status, log) = self.wait();
        (status, log, began.elapsed())
    }

    /// Waits for the process to exit.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The readers end with the process.
                std::thread::sleep(Duration::from_millis(50));
                return (status, self.log());
            }
            assert!(
                Instant::now() < deadline,
                "still running after 60 s:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Two unused loopback addresses.
pub(crate) fn free_ports() -> (SocketAddr, SocketAddr) {
    let free = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    (free(), free())
}

pub(crate) fn lines_of(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "torn last line: {:?}",
        text.lines().last()
    );
    text.lines().map(str::to_owned).collect()
}

/// Waits for a condition, and names it in the panic when it does not become true.
pub(crate) fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {within:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Number of runs of a chaos test.
pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("TOWPATH_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(default)
}

/// Whether this machine can do `what`; fails when `TOWPATH_TEST_REQUIRE` names it and it cannot.
pub(crate) fn able(what: &str, can: bool) -> bool {
    let required = std::env::var("TOWPATH_TEST_REQUIRE").unwrap_or_default();
    assert!(
        can || !required.split(',').any(|name| name == what),
        "this machine must do `{what}` and cannot"
    );
    if !can {
        eprintln!("not run: this machine cannot do `{what}`");
    }
    can
}
