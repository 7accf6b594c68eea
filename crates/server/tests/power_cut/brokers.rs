//! The servers that Towpath uses, with their data on a disk that is cut.

use std::path::Path;

use towpath_testkit::servers::{kafka, postgres, rabbitmq, redis};

/// A server that a power cut ends and that starts again on its disk.
pub(crate) trait Server {
    fn url(&self) -> String;
    fn kill(&mut self);
    fn restart(&mut self);
    /// Passes declarations to the file system, as a server has done some time after them.
    fn settle(&self) {}
}

macro_rules! server {
    ($($kind:ty),*) => {
        $(impl Server for $kind {
            fn url(&self) -> String {
                <$kind>::url(self)
            }
            fn kill(&mut self) {
                <$kind>::kill(self);
            }
            fn restart(&mut self) {
                <$kind>::restart(self);
            }
        })*
    };
}

server!(kafka::Server, redis::Server);

impl Server for rabbitmq::Server {
    fn url(&self) -> String {
        Self::url(self)
    }
    fn kill(&mut self) {
        Self::kill(self);
    }
    fn restart(&mut self) {
        Self::restart(self);
    }
    fn settle(&self) {
        // A cut 2.3 s after the declaration of a classic queue took all its confirmed messages, most likely with the
        // queue: RabbitMQ 3.10 answers declarations before its metadata is on the disk.
        self.control(&["eval", "mnesia:dump_log(), mnesia:sync_log()."]);
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
}

impl Server for postgres::Server {
    fn url(&self) -> String {
        Self::url(self, "postgres")
    }
    fn kill(&mut self) {
        Self::kill(self);
    }
    fn restart(&mut self) {
        Self::restart(self);
    }
}

/// A way to use one of them.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Name of the server in `TOWPATH_TEST_REQUIRE`.
    pub(crate) ability: &'static str,
    pub(crate) missing: fn() -> Option<String>,
    pub(crate) start: fn(&Path) -> Box<dyn Server>,
    /// Appended to its URL.
    pub(crate) parameters: &'static str,
    /// Whether it keeps idempotency keys.
    pub(crate) keyed: bool,
    /// Whether it acknowledges before it syncs.
    pub(crate) loses: bool,
    /// Cuts where `TOWPATH_SEEDS` does not say how many.
    pub(crate) cuts: u64,
}

const RABBITMQ: Kind = Kind {
    name: "rabbitmq_quorum_queue",
    ability: "rabbitmq",
    missing: rabbitmq::missing,
    start: |folder| Box::new(rabbitmq::Server::start_at(folder)),
    parameters: "",
    keyed: false,
    loses: false,
    cuts: 1,
};

/// Servers that sync before they acknowledge.
pub(crate) const QUEUES: &[Kind] = &[
    RABBITMQ,
    Kind {
        name: "rabbitmq_classic_queue",
        parameters: "?queue_type=classic",
        ..RABBITMQ
    },
    Kind {
        name: "redis_queue",
        ability: "redis",
        missing: redis::missing,
        start: |folder| {
            std::fs::create_dir_all(folder).unwrap();
            Box::new(redis::Server::start_at(folder, redis::DURABLE))
        },
        parameters: "?consumer_timeout=1s",
        keyed: true,
        loses: false,
        cuts: 3,
    },
];

/// The one that acknowledges before it syncs.
pub(crate) const KAFKA: Kind = Kind {
    name: "kafka_queue",
    ability: "kafka",
    missing: kafka::missing,
    start: |folder| Box::new(kafka::Server::start_at(folder)),
    parameters: "",
    keyed: false,
    loses: true,
    cuts: 1,
};

pub(crate) const POSTGRES: Kind = Kind {
    name: "postgres_outbox",
    ability: "postgres",
    missing: postgres::missing,
    start: |folder| Box::new(postgres::Server::start_at(folder)),
    parameters: "",
    keyed: true,
    loses: false,
    cuts: 3,
};
