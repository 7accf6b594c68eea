//! The scripts, and a call of one. `scripts/*_lib.lua` are shared parts that stand before those that use them.

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};
use towpath_core::port::queue::Settings;

/// A script and its digest.
pub(super) struct Script {
    pub(super) code: &'static str,
    hash: String,
}

macro_rules! part {
    ($name:literal) => {
        include_str!(concat!("scripts/", $name, ".lua"))
    };
}

macro_rules! scripts {
    ($($name:ident: $($part:literal)+;)*) => {$(
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(&[$(part!($part)),+]));
    )*};
}

scripts! {
    ENQUEUE: "queue" "enqueue_lib" "enqueue";
    LEASE: "queue" "lease";
    SETTLE: "queue" "settle_lib" "settle";
    EXTEND: "queue" "settle_lib" "extend";
    DISCONNECT: "queue" "disconnect";
    TEND: "queue" "tend";
    STATS: "queue" "stats";
    PEEK: "queue" "peek";
    PURGE: "queue" "purge";
    DEAD_LETTERS: "queue" "dead_letters";
    BRING_BACK: "queue" "bring_back";
    PUBLISH: "queue" "enqueue_lib" "routes_lib" "publish";
    KV: "kv_lib" "kv";
    LIMIT: "big_lib" "limit";
    APPEND: "stream_lib" "append";
    GROUP: "stream_lib" "group";
    READ: "stream_lib" "read";
    COMMIT: "stream_lib" "commit";
    CLAIM: "stream_lib" "claim";
    LEAVE: "stream_lib" "leave";
    TEND_STREAM: "stream_lib" "tend_stream";
    TRIM: "stream_lib" "trim";
    STREAM_STATS: "stream_lib" "stream_stats";
    RANGE: "stream_lib" "range";
    EFFECTS: "queue" "enqueue_lib" "settle_lib" "routes_lib" "kv_lib" "stream_lib" "effects";
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let defaults = Settings::default();
        // What holds for a queue that was never declared.
        let mut code = format!(
            "local call = redis.call\nlocal DEFAULT_ATTEMPTS, DEFAULT_DEDUP_MS = {}, {}\n",
            defaults.retry.attempts,
            defaults.dedup_window.as_millis()
        );
        for part in parts {
            code.push_str(part);
            code.push('\n');
        }
        let hash = redis::Script::new(&code).get_hash().to_owned();
        // Once per script and process.
        Self {
            code: code.leak(),
            hash,
        }
    }

    /// A call that touches these keys.
    pub(super) fn on<K: AsRef<[u8]>>(&'static self, keys: impl IntoIterator<Item = K>) -> Call {
        let keys: Vec<Vec<u8>> = keys.into_iter().map(|key| key.as_ref().to_vec()).collect();
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.hash).arg(keys.len());
        for key in &keys {
            cmd.arg(key);
        }
        Call {
            script: self,
            keys,
            cmd,
        }
    }
}

/// A script with its keys and arguments.
pub(super) struct Call {
    pub(super) script: &'static Script,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) cmd: Cmd,
}

impl Call {
    pub(super) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.cmd.arg(arg);
        self
    }
}
