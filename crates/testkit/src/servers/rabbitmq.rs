//! Private RabbitMQ nodes, alone or as a cluster.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Guarded, ServerFolder, free_port};

/// The scripts themselves: the ones on the path change the user first.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// Names another folder of scripts, of another version of RabbitMQ.
const OTHER: &str = "TOWPATH_TEST_RABBITMQ";

fn script(name: &str) -> PathBuf {
    let folder = std::env::var_os(OTHER).map_or_else(|| PathBuf::from(SCRIPTS), PathBuf::from);
    folder.join(name)
}

/// Longest wait for a node to answer.
const START: Duration = Duration::from_secs(90);

/// A running node and its folder.
pub struct Server {
    folder: ServerFolder,
    data: PathBuf,
    name: String,
    port: u16,
    distribution: u16,
    names: Arc<NameServer>,
    process: Option<Guarded>,
}

/// Where the nodes of one cluster find each other.
struct NameServer {
    port: u16,
    _process: Guarded,
}

impl NameServer {
    fn start() -> Self {
        let port = free_port();
        let arguments = ["-port", &port.to_string(), "-address", "127.0.0.1"].map(str::to_owned);
        let process = Guarded::spawn("epmd", &arguments).expect("epmd can be started");
        Self {
            port,
            _process: process,
        }
    }
}

impl Server {
    /// Starts one node.
    ///
    /// # Panics
    /// When it does not start; [`missing`] checks whether it is installed.
    pub fn start() -> Self {
        Self::start_in(
            ServerFolder::temporary(),
            None,
            "node",
            Arc::new(NameServer::start()),
        )
    }

    /// The same with its data in a folder of the caller; settings and logs are elsewhere.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_at(data: &Path) -> Self {
        Self::start_in(
            ServerFolder::temporary(),
            Some(data),
            "node",
            Arc::new(NameServer::start()),
        )
    }

    /// Starts one node that also speaks TLS, on the second port, with `server.pem`, `server.key` and `ca.pem` of a folder.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_with_tls(certificates: &Path) -> (Self, u16) {
        let folder = ServerFolder::temporary();
        let (port, at) = (free_port(), certificates.display());
        let settings = format!(
            "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {at}/ca.pem\n\
             ssl_options.certfile = {at}/server.pem\nssl_options.keyfile = {at}/server.key\n"
        );
        let file = folder.path().join("node@localhost-settings.conf");
        std::fs::write(file, settings).expect("written");
        let names = Arc::new(NameServer::start());
        (Self::start_in(folder, None, "node", names), port)
    }

    fn start_in(
        folder: ServerFolder,
        data: Option<&Path>,
        name: &str,
        names: Arc<NameServer>,
    ) -> Self {
        let name = format!("{name}@localhost");
        let own = || folder.path().join(format!("{name}-data"));
        let mut server = Self {
            data: data.map_or_else(own, Path::to_owned),
            folder,
            name,
            port: free_port(),
            distribution: free_port(),
            names,
            process: None,
        };
        server.launch();
        server
    }

    /// Starts the nodes of one cluster.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_cluster<const NODES: usize>() -> [Self; NODES] {
        let first = Self::start();
        let (folder, names) = (first.folder.clone(), Arc::clone(&first.names));
        let mut nodes = vec![first];
        for number in 1..NODES {
            let node = Self::start_in(
                folder.clone(),
                None,
                &format!("node{number}"),
                Arc::clone(&names),
            );
            node.control(&["stop_app"]);
            node.control(&["join_cluster", &nodes[0].name]);
            node.control(&["start_app"]);
            nodes.push(node);
        }
        nodes
            .try_into()
            .unwrap_or_else(|_| unreachable!("as many as were started"))
    }

    /// Its port on the loopback address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    /// Kills it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end("KILL");
        }
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end("TERM");
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

    /// Runs an operator's command on it.
    ///
    /// # Panics
    /// When it fails.
    pub fn control(&self, words: &[&str]) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = Command::new("sh")
            .arg(script("rabbitmqctl"))
            .args(["-n", &self.name, "-q"])
            .args(words)
            .envs(self.environment())
            .output()
            .expect("rabbitmqctl can be started");
        assert!(
            status.success(),
            "rabbitmqctl {words:?}: {}",
            String::from_utf8_lossy(&stderr)
        );
        String::from_utf8_lossy(&stdout).into_owned()
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let home = self.folder.path().display().to_string();
        let own = |what: &str| format!("{home}/{}-{what}", self.name);
        vec![
            ("HOME", home.clone()),
            ("RABBITMQ_NODENAME", self.name.clone()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", self.port.to_string()),
            ("RABBITMQ_DIST_PORT", self.distribution.to_string()),
            ("RABBITMQ_MNESIA_BASE", self.data.display().to_string()),
            ("RABBITMQ_LOG_BASE", own("log")),
            ("RABBITMQ_PID_FILE", own("pid")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_CONFIG_FILE", own("settings")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", own("plugins")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none +S 2:2".to_owned(),
            ),
            ("ERL_EPMD_PORT", self.names.port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            // The script then becomes the node instead of staying beside it, so that killing it kills the node.
            ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
        ]
    }

    fn launch(&mut self) {
        let mut arguments: Vec<String> = self
            .environment()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        arguments.push(script("rabbitmq-server").display().to_string());
        self.process = Some(Guarded::spawn("env", &arguments).expect("env can be started"));
        let began = Instant::now();
        while began.elapsed() < START {
            // The port opens before the node takes connections, its own question is answered after that.
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                self.control(&["await_startup", "--timeout", "60"]);
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("rabbitmq-server does not start, see {:?}", self.logs());
    }

    fn logs(&self) -> PathBuf {
        self.folder.path().join(format!("{}-log", self.name))
    }
}

/// Why no server can be started here, if so.
pub fn missing() -> Option<String> {
    let there = script("rabbitmq-server").exists();
    (!there).then(|| "rabbitmq-server is not installed; `make setup` installs it".to_owned())
}

static SHARED: Mutex<Option<Arc<Server>>> = Mutex::new(None);

/// One for all tests of this process that keep to their own prefix; [`stop_shared`] ends it.
pub fn shared() -> Arc<Server> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.get_or_insert_with(|| Arc::new(Server::start())))
}

/// Ends the shared server.
pub fn stop_shared() {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
}
