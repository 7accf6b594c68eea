//! Private Kafka brokers, alone or as a cluster, each also a controller.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Guarded, ServerFolder, free_port};
use crate::certificates;

/// Longest wait for a broker to answer.
const START: Duration = Duration::from_secs(90);

/// Every private cluster has this id.
const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qk";

/// A small virtual machine that starts soon.
const JAVA: [&str; 4] = [
    "-Xmx512m",
    "-Xms128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
];

/// A running broker and its folder.
pub struct Server {
    folder: ServerFolder,
    data: PathBuf,
    number: usize,
    port: u16,
    process: Option<Guarded>,
}

/// A broker with TLS.
pub struct Secure {
    /// The broker.
    pub server: Server,
    /// The port for those with an account.
    pub account: u16,
    /// The port for those with a certificate.
    pub certificate: u16,
}

impl Server {
    /// Starts one broker.
    ///
    /// # Panics
    /// When it does not start; [`missing`] checks whether it is installed.
    pub fn start() -> Self {
        Self::start_alone(None)
    }

    /// The same with its data in a folder of the caller; its settings are elsewhere.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_at(data: &Path) -> Self {
        Self::start_alone(Some(data))
    }

    fn start_alone(data: Option<&Path>) -> Self {
        let mut server = Self::prepare(1, data).remove(0);
        server.launch();
        server.wait();
        server
    }

    /// Starts one broker that also listens with TLS: to the user `alice` with the password `secret`, and to who shows a
    /// certificate. The folder has what [`certificates::make`] makes.
    ///
    /// # Panics
    /// As [`Server::start`], and when `openssl` is not installed.
    pub fn start_secure(folder: &Path) -> Secure {
        certificates::make(folder);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("made");
        let identity = folder.join("identity.pem");
        std::fs::write(&identity, read("server.key") + &read("server.pem")).expect("written");
        let mut server = Self::prepare(1, None).remove(0);
        let (account, certificate) = (free_port(), free_port());
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule";
        let settings = std::fs::read_to_string(server.file("properties")).expect("written");
        let settings = settings
            .lines()
            .map(|line| match line.split_once('=') {
                Some(("listeners" | "advertised.listeners", _)) => {
                    format!("{line},SASL_SSL://localhost:{account},SSL://localhost:{certificate}")
                }
                Some(("listener.security.protocol.map", _)) => {
                    format!("{line},SASL_SSL:SASL_SSL,SSL:SSL")
                }
                _ => line.to_owned(),
            })
            .collect::<Vec<_>>()
            .join("\n");
        let more = format!(
            "\nssl.keystore.type=PEM\nssl.keystore.location={identity}\nssl.truststore.type=PEM\n\
             ssl.truststore.location={ca}\nlistener.name.ssl.ssl.client.auth=required\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config={plain} required user_alice=\"secret\";\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram} required;\n",
            identity = identity.display(),
            ca = folder.join("ca.pem").display(),
        );
        std::fs::write(server.file("properties"), settings + &more).expect("written");
        std::fs::remove_dir_all(&server.data).expect("it was formatted");
        server.format(&["--add-scram", "SCRAM-SHA-512=[name=alice,password=secret]"]);
        server.launch();
        server.wait();
        Secure {
            server,
            account,
            certificate,
        }
    }

    /// Starts three brokers of one cluster: three replicas, of which two have to be in sync.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_cluster() -> Vec<Self> {
        let mut all = Self::prepare(3, None);
        for server in &mut all {
            server.launch();
        }
        for server in &all {
            server.wait();
        }
        all
    }

    fn prepare(count: usize, data: Option<&Path>) -> Vec<Self> {
        let folder = ServerFolder::temporary();
        let controllers: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let all: Vec<Self> = (1..=count)
            .map(|number| Self {
                data: data.map_or_else(
                    || folder.path().join(format!("{number}-data")),
                    Path::to_owned,
                ),
                folder: folder.clone(),
                number,
                port: free_port(),
                process: None,
            })
            .collect();
        for (server, controller) in all.iter().zip(&controllers) {
            let settings = server.settings(*controller, &controllers);
            std::fs::write(server.file("properties"), settings).expect("written");
            server.format(&[]);
        }
        all
    }

    fn settings(&self, controller: u16, controllers: &[u16]) -> String {
        let (number, port, count) = (self.number, self.port, controllers.len());
        let voters = (1..).zip(controllers);
        let voters = voters.map(|(number, port)| format!("{number}@127.0.0.1:{port}"));
        let voters = voters.collect::<Vec<_>>().join(",");
        let (replicas, in_sync) = if count == 1 { (1, 1) } else { (3, 2) };
        format!(
            "process.roles=broker,controller\nnode.id={number}\ncontroller.quorum.voters={voters}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\nlistener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
             log.dirs={data}\ndefault.replication.factor={replicas}\nmin.insync.replicas={in_sync}\n\
             offsets.topic.replication.factor={replicas}\noffsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor={replicas}\ntransaction.state.log.min.isr={in_sync}\n\
             transaction.state.log.num.partitions=4\nshare.coordinator.state.topic.replication.factor={replicas}\n\
             share.coordinator.state.topic.min.isr={in_sync}\ngroup.initial.rebalance.delay.ms=0\n\
             auto.create.topics.enable=false\nlog.segment.bytes=67108864\nbroker.session.timeout.ms=6000\n",
            data = self.data.display(),
        )
    }

    fn format(&self, more: &[&str]) {
        let output = Command::new("java")
            .args(JAVA)
            .args(["-cp", &class_path(), "kafka.tools.StorageTool", "format"])
            .args(["-t", CLUSTER, "-c"])
            .arg(self.file("properties"))
            .args(more)
            .output()
            .expect("java runs");
        assert!(
            output.status.success(),
            "formatting a Kafka: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Its port on the loopback address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("kafka://127.0.0.1:{}", self.port)
    }

    /// The first segment of a topic's first partition, as it is on disk.
    ///
    /// # Panics
    /// When the topic is not there.
    pub fn segment(&self, topic: &str) -> Vec<u8> {
        let name = format!("{topic}-0/00000000000000000000.log");
        std::fs::read(self.data.join(name)).expect("the segment is read")
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
        self.wait();
    }

    fn launch(&mut self) {
        let mut arguments: Vec<String> = JAVA.map(str::to_owned).into();
        arguments.extend(["-cp".to_owned(), class_path(), "kafka.Kafka".to_owned()]);
        arguments.push(self.file("properties").display().to_string());
        self.process = Some(Guarded::spawn("java", &arguments).expect("java can be started"));
    }

    fn wait(&self) {
        let began = Instant::now();
        while began.elapsed() < START {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("kafka does not start, see {}", self.folder.path().display());
    }

    fn file(&self, what: &str) -> PathBuf {
        self.folder.path().join(format!("{}-{what}", self.number))
    }
}

fn jars() -> PathBuf {
    super::made("kafka-4.1.0")
}

fn class_path() -> String {
    format!("{}/*", jars().display())
}

/// Why no broker can be started here, if so.
pub fn missing() -> Option<String> {
    let java = Command::new("java").arg("-version").output();
    let there = jars().join("kafka_2.13-4.1.0.jar").exists() && java.is_ok();
    (!there).then(|| "kafka is not installed; `make setup` installs it".to_owned())
}

static SHARED: Mutex<Option<Arc<Server>>> = Mutex::new(None);

/// One for all tests of this process that keep to their own prefix; [`stop_shared`] ends it.
pub fn shared() -> Arc<Server> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.get_or_insert_with(|| Arc::new(Server::start())))
}

/// Ends the shared broker.
pub fn stop_shared() {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
}
