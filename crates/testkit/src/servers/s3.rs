//! Private S3-compatible servers: versitygw in front of a folder.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Guarded, free_port};

/// The credentials of every server.
pub const ACCESS_KEY: &str = "towpath-test-key";
/// The secret of [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "towpath-test-secret";

/// The only bucket.
pub const BUCKET: &str = "backups";

/// Longest wait for a server to answer.
const START: Duration = Duration::from_secs(20);

/// A running server, whose objects are files.
pub struct Server {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Guarded>,
}

impl Server {
    /// Starts one with an empty bucket.
    ///
    /// # Panics
    /// When it does not start; [`missing`] checks whether it is installed.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("a folder can be made");
        let mut server = Self {
            folder,
            port: free_port(),
            process: None,
        };
        server.start_again();
        server
    }

    /// Starts it again after [`Server::kill`].
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_again(&mut self) {
        let arguments = [
            "--access".to_owned(),
            ACCESS_KEY.to_owned(),
            "--secret".to_owned(),
            SECRET_KEY.to_owned(),
            "--port".to_owned(),
            format!("127.0.0.1:{}", self.port),
            "--quiet".to_owned(),
            "posix".to_owned(),
            "--sidecar".to_owned(),
            self.sidecar().display().to_string(),
            self.folder.path().join(BUCKET).display().to_string(),
        ];
        std::fs::create_dir_all(self.sidecar()).expect("a folder can be made");
        std::fs::create_dir_all(self.objects()).expect("a folder can be made");
        self.process = Some(Guarded::spawn("versitygw", &arguments).expect("versitygw starts"));
        let until = Instant::now() + START;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(Instant::now() < until, "versitygw does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it; its objects stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The folder with the objects of [`BUCKET`].
    pub fn objects(&self) -> PathBuf {
        self.folder.path().join(BUCKET).join(BUCKET)
    }

    fn sidecar(&self) -> PathBuf {
        Path::new(self.folder.path()).join("sidecar")
    }
}

/// Why such servers cannot be started; absent when they can.
pub fn missing() -> Option<String> {
    let there = Command::new("versitygw").arg("--version").output();
    let there = there.is_ok_and(|output| output.status.success());
    (!there).then(|| "versitygw is not installed; `make setup` installs it".to_owned())
}
