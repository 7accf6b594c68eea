//! Real servers for tests: private ones, on free ports, in temporary folders, gone with their owner.

pub mod kafka;
pub mod postgres;
pub mod rabbitmq;
pub mod redis;
pub mod s3;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;

/// A process that ends when this is dropped, and also when the test's own process is killed.
///
/// A shell stands in between: it waits for its standard input to be closed. It also closes the files open in this process
/// and was not meant for others, as the pipes of Kafka's client: PostgreSQL does not start with a thousand of them.
pub(crate) struct Guarded {
    shell: Child,
    signal: &'static str,
}

impl Guarded {
    pub(crate) fn spawn(program: &str, arguments: &[String]) -> std::io::Result<Self> {
        Self::spawn_ending(program, arguments, "KILL")
    }

    /// The same for a process that ends by another signal, as one that has to clear up after itself.
    pub(crate) fn spawn_ending(
        program: &str,
        arguments: &[String],
        signal: &'static str,
    ) -> std::io::Result<Self> {
        const SCRIPT: &str = r#"for fd in /proc/$$/fd/*; do
                fd=${fd##*/}; [ "$fd" -gt 2 ] && eval "exec $fd>&-"
            done 2>/dev/null
            "$0" "$@" >/dev/null 2>&1 & pid=$!
            read -r how; kill -"${how:-$SIGNAL}" $pid; wait $pid"#;
        // The plain shell knows descriptors of one digit only.
        let shell = Command::new("bash")
            .args(["-c", SCRIPT, program])
            .args(arguments)
            .env("SIGNAL", signal)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { shell, signal })
    }

    /// Sends the signal and waits for the end.
    pub(crate) fn end(&mut self, signal: &str) {
        if let Some(mut stdin) = self.shell.stdin.take() {
            // A shell that is gone already has ended its child.
            drop(writeln!(stdin, "{signal}"));
        }
        drop(self.shell.wait());
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end(self.signal);
    }
}

/// Where a server keeps its data: in a temporary folder that ends with it, or in a folder of the caller.
#[derive(Clone)]
pub(crate) struct ServerFolder {
    path: PathBuf,
    _temporary: Option<Arc<tempfile::TempDir>>,
}

impl ServerFolder {
    /// A new temporary folder.
    pub(crate) fn temporary() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self {
            path: folder.path().to_owned(),
            _temporary: Some(Arc::new(folder)),
        }
    }

    /// A folder of the caller, made when it is missing.
    pub(crate) fn at(path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("the folder can be made");
        Self {
            path: path.to_owned(),
            _temporary: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Cache folder of `make setup`.
pub fn made(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or_else(home).unwrap_or_default();
    cache.join("towpath").join(name)
}

/// Ports below those that the system gives to outgoing connections, so that none of these takes one while its server
/// is being started again.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A free port that no other call in this process got.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..1_000)
        .map(|_| rand::rng().random_range(PORTS))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok() && given.insert(*port))
        .expect("a free port")
}
