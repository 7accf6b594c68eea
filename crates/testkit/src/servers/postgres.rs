//! Private PostgreSQL servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Guarded, ServerFolder, free_port};

/// The user that the server runs as when the tests run as root, which it refuses to.
const USER: &str = "postgres";

/// Longest wait for a server to answer.
const START: Duration = Duration::from_secs(60);

/// A running server and its folder.
pub struct Server {
    folder: ServerFolder,
    programs: PathBuf,
    port: u16,
    settings: Vec<String>,
    process: Option<Guarded>,
}

impl Server {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not start; [`missing`] checks whether it is installed.
    pub fn start() -> Self {
        Self::start_in(ServerFolder::temporary(), Vec::new())
    }

    /// The same with its data in a folder of the caller, which the server's user must be able to reach.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_at(folder: &Path) -> Self {
        Self::start_in(ServerFolder::at(folder), Vec::new())
    }

    /// Starts one that also speaks TLS, with the certificate that is made for it and signed by `ca.pem` of this folder.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_with_tls(certificates: &Path) -> Self {
        let folder = ServerFolder::temporary();
        let mut settings = vec!["-c".to_owned(), "ssl=on".to_owned()];
        for (setting, name) in [
            ("ssl_cert_file", "server.pem"),
            ("ssl_key_file", "server.key"),
        ] {
            let copy = folder.path().join(name);
            std::fs::copy(certificates.join(name), &copy).expect("copied");
            run(Command::new("chmod").arg("600").arg(&copy));
            settings.extend(["-c".to_owned(), format!("{setting}={}", copy.display())]);
        }
        Self::start_in(folder, settings)
    }

    /// Starts a standby of it, which follows it until [`Server::promote`].
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn standby(&self) -> Self {
        let mut standby = Self::in_folder(ServerFolder::temporary(), Vec::new());
        let (data, port) = (standby.data(), self.port.to_string());
        let from = ["-h", "127.0.0.1", "-p", &port, "-U", "towpath"];
        let how = ["-D", &data, "-R", "--checkpoint=fast", "--no-sync"];
        let words = standby.as_user("pg_basebackup", &[from.as_slice(), &how].concat());
        run(Command::new(&words[0]).args(&words[1..]));
        standby.launch();
        standby
    }

    /// Makes a standby the primary.
    ///
    /// # Panics
    /// When it is not a standby.
    pub fn promote(&self) {
        assert_eq!(self.query("postgres", "SELECT pg_promote()"), "t");
    }

    fn in_folder(folder: ServerFolder, settings: Vec<String>) -> Self {
        let server = Self {
            folder,
            settings,
            programs: programs().expect("PostgreSQL is installed"),
            port: free_port(),
            process: None,
        };
        if rustix::process::getuid().is_root() {
            let folder = server.folder.path();
            run(Command::new("chown").args(["-R", USER]).arg(folder));
        }
        server
    }

    fn start_in(folder: ServerFolder, settings: Vec<String>) -> Self {
        let mut server = Self::in_folder(folder, settings);
        let data = server.data();
        let setup = [
            "--pgdata",
            &data,
            "--username",
            "towpath",
            "--auth",
            "trust",
        ];
        let rest = ["--no-sync", "--locale", "C", "--encoding", "UTF8"];
        let words = server.as_user("initdb", &[setup.as_slice(), &rest].concat());
        run(Command::new(&words[0]).args(&words[1..]));
        server.launch();
        server
    }

    /// Its port on the loopback address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://towpath@127.0.0.1:{}/{database}", self.port)
    }

    /// The URL of a new database of this name.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create(&self, database: &str) -> String {
        self.query("postgres", &format!("CREATE DATABASE \"{database}\""));
        self.url(database)
    }

    /// The rows of a statement, columns separated by `|`.
    ///
    /// # Panics
    /// When it fails.
    pub fn query(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1"]);
        run(psql.args(["-d", &self.url(database), "-c", sql]))
    }

    /// Kills it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end("KILL");
        }
    }

    /// Starts it again on the same port, with its data.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    /// The words that run one of its programs as another user than root.
    fn as_user(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        as_user(&self.programs.join(program), arguments)
    }

    fn launch(&mut self) {
        let (data, port) = (self.data(), self.port.to_string());
        // No socket file: the folder's path may be too long for one.
        let place = ["-D", &data, "-h", "127.0.0.1", "-p", &port, "-k", ""];
        let size = [
            "-c",
            "shared_buffers=32MB",
            "-c",
            "max_connections=200",
            "-c",
            "max_prepared_transactions=10",
        ];
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let words = self.as_user("postgres", &[place.as_slice(), &size, &settings].concat());
        let (began, mut tries) = (Instant::now(), 100);
        while began.elapsed() < START {
            // Processes that a crash left behind end a moment later, and until then no server starts beside them.
            // Ended at once, it still releases its shared memory.
            // Many databases take long to recover, so each start has more time than the one before.
            let process = Guarded::spawn_ending(&words[0], &words[1..], "QUIT");
            self.process = Some(process.expect("it can be started"));
            for _ in 0..tries {
                let mut ready = Command::new(self.programs.join("pg_isready"));
                let ready = ready.args(["-q", "-h", "127.0.0.1", "-p", &port]).status();
                if ready.is_ok_and(|status| status.success()) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            tries *= 2;
        }
        panic!("PostgreSQL does not start");
    }
}

/// The words that run a program as another user than root.
fn as_user(program: &Path, arguments: &[&str]) -> Vec<String> {
    let mut words = Vec::new();
    if rustix::process::getuid().is_root() {
        words.extend([
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
        ]);
    }
    let words = words.into_iter().map(str::to_owned);
    let arguments = arguments.iter().map(ToString::to_string);
    words
        .chain([program.display().to_string()])
        .chain(arguments)
        .collect()
}

/// A running PgBouncer in transaction mode.
pub struct Pooler {
    _folder: tempfile::TempDir,
    port: u16,
    _process: Guarded,
}

impl Pooler {
    /// Starts one in front of a server, with `sessions` sessions for each database.
    ///
    /// # Panics
    /// When it does not start; [`pooler_missing`] checks whether it is installed.
    pub fn start(server: &Server, sessions: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let port = free_port();
        let users = folder.path().join("users.txt");
        std::fs::write(&users, "\"towpath\" \"\"\n").expect("written");
        let settings = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = {sessions}\n",
            server.port,
            users.display()
        );
        std::fs::write(&settings, text).expect("written");
        if rustix::process::getuid().is_root() {
            run(Command::new("chown").args(["-R", USER]).arg(folder.path()));
        }
        let program = pooler().expect("PgBouncer is installed");
        let words = as_user(&program, &["-q", &settings.display().to_string()]);
        let process = Guarded::spawn(&words[0], &words[1..]).expect("it can be started");
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < START, "PgBouncer does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            _folder: folder,
            port,
            _process: process,
        }
    }

    /// The URL of a database of its server, through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://towpath@127.0.0.1:{}/{database}", self.port)
    }
}

fn pooler() -> Option<PathBuf> {
    let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
    places
        .map(PathBuf::from)
        .into_iter()
        .find(|one| one.exists())
}

/// Why no pooler can be started here, if so.
pub fn pooler_missing() -> Option<String> {
    match pooler() {
        Some(_) => missing(),
        None => Some("PgBouncer is not installed; `make setup` installs it".to_owned()),
    }
}

/// The output of a program.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("it can be started");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Where the newest server's programs are: Debian keeps them out of the path.
fn programs() -> Option<PathBuf> {
    let versions = Path::new("/usr/lib/postgresql").read_dir().ok()?;
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path()));
    let programs = newest.max_by_key(number)?.join("bin");
    programs.join("postgres").exists().then_some(programs)
}

/// Why no server can be started here, if so.
pub fn missing() -> Option<String> {
    match programs() {
        Some(_) => None,
        None => Some("PostgreSQL is not installed; `make setup` installs it".to_owned()),
    }
}

static SHARED: Mutex<Option<Arc<Server>>> = Mutex::new(None);

/// One for all tests of this process that keep to a database of their own; [`stop_shared`] ends it.
pub fn shared() -> Arc<Server> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.get_or_insert_with(|| Arc::new(Server::start())))
}

/// Ends the shared server.
pub fn stop_shared() {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
}
