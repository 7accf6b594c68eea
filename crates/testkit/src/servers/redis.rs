//! Private Redis servers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Guarded, free_port};

/// Settings with which acknowledged writes survive a power cut.
pub const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// Nothing is kept.
pub const EPHEMERAL: &[&str] = &["--appendonly", "no"];

/// Longest wait for a server to answer.
const START: Duration = Duration::from_secs(20);

/// A running server and its folder.
pub struct Server {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    file: Option<PathBuf>,
    settings: Vec<String>,
    port: u16,
    process: Option<Guarded>,
}

impl Server {
    /// Starts one with these arguments of `redis-server` besides its place.
    ///
    /// # Panics
    /// When it does not start; [`missing`] checks whether it is installed.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_with(None, settings)
    }

    /// The same with a configuration file, which it may change.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_with_file(file: &Path, settings: &[&str]) -> Self {
        Self::start_with(Some(file.to_owned()), settings)
    }

    fn start_with(file: Option<PathBuf>, settings: &[&str]) -> Self {
        let temporary = tempfile::tempdir().expect("a temporary folder can be made");
        let mut server = Self::start_from(temporary.path(), file, settings);
        server._temporary = Some(temporary);
        server
    }

    /// The same in a folder that the caller owns.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_at(folder: &Path, settings: &[&str]) -> Self {
        Self::start_from(folder, None, settings)
    }

    fn start_from(folder: &Path, file: Option<PathBuf>, settings: &[&str]) -> Self {
        let mut server = Self {
            folder: folder.to_owned(),
            _temporary: None,
            file,
            settings: settings.iter().map(ToString::to_string).collect(),
            port: 0,
            process: None,
        };
        // Another process may take the port in between.
        for _ in 0..5 {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server does not start with {settings:?}");
    }

    /// Its port on the loopback address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
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
        assert!(self.launch(), "redis-server does not start again");
    }

    /// Sends one command as plain words and returns the first bytes of the reply.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn command(&self, words: &[&str]) -> String {
        ask(self.port, words).expect("redis answers")
    }

    fn launch(&mut self) -> bool {
        let file = self.file.iter().map(|file| file.display().to_string());
        let mut arguments: Vec<String> = file.collect();
        arguments.extend(["--port".to_owned(), self.port.to_string()]);
        for (name, value) in [
            ("--bind", "127.0.0.1"),
            ("--save", ""),
            ("--dir", &*self.folder.to_string_lossy()),
            ("--daemonize", "no"),
        ] {
            arguments.extend([name.to_owned(), value.to_owned()]);
        }
        arguments.extend(self.settings.iter().cloned());
        self.process = Guarded::spawn("redis-server", &arguments).ok();
        let began = Instant::now();
        while began.elapsed() < START {
            // One that wants a password first is there too.
            let reply = ask(self.port, &["PING"]).unwrap_or_default();
            if reply.starts_with("+PONG") || reply.starts_with("-NOAUTH") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.process = None;
        false
    }
}

/// One command over a connection of its own.
fn ask(port: u16, words: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = [0; 4096];
    let read = stream.read(&mut reply).ok()?;
    Some(String::from_utf8_lossy(&reply[..read]).into_owned())
}

/// Why no server can be started here, if so.
pub fn missing() -> Option<String> {
    match Command::new("redis-server").arg("--version").output() {
        Ok(output) if output.status.success() => None,
        _ => Some("redis-server is not installed; `make setup` installs it".to_owned()),
    }
}

static SHARED: Mutex<Option<Arc<Server>>> = Mutex::new(None);

/// One for all tests of this process that keep to their own prefix; [`stop_shared`] ends it.
pub fn shared() -> Arc<Server> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.get_or_insert_with(|| Arc::new(Server::start(EPHEMERAL))))
}

/// Ends the shared server.
pub fn stop_shared() {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
}
