//! The scripts, and calls of them. `scripts/*_lib.lua` are shared parts, placed before the scripts that use them.

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
    ENQUEUE: "guard_lib" "queue" "enqueue_lib" "enqueue";
    LEASE: "guard_lib" "queue" "record_lib" "dead_lib" "due_lib" "list_lib" "return_lib" "lease";
    SETTLE: "guard_lib" "queue" "record_lib" "dead_lib" "settle_lib" "settle";
    EXTEND: "guard_lib" "queue" "record_lib" "dead_lib" "settle_lib" "extend";
    DISCONNECT: "guard_lib" "queue" "record_lib" "due_lib" "return_lib" "disconnect";
    MAINTAIN: "guard_lib" "queue" "record_lib" "due_lib" "return_lib" "maintain";
    STATS: "guard_lib" "queue" "record_lib" "due_lib" "stats";
    PEEK: "guard_lib" "queue" "record_lib" "due_lib" "list_lib" "peek";
    PURGE: "guard_lib" "queue" "record_lib" "due_lib" "list_lib" "purge";
    DEAD_LETTERS: "guard_lib" "queue" "record_lib" "dead_lib" "list_lib" "dead_letters";
    REDRIVE: "guard_lib" "queue" "record_lib" "redrive";
    PUBLISH: "guard_lib" "queue" "enqueue_lib" "routes_lib" "publish";
    KV: "guard_lib" "kv_lib" "kv";
    KV_STEPS: "guard_lib" "kv_lib" "kv_steps";
    LIMIT: "guard_lib" "big_lib" "limit";
    APPEND: "guard_lib" "stream_lib" "append";
    GROUP: "guard_lib" "stream_lib" "group";
    READ: "guard_lib" "stream_lib" "read";
    COMMIT: "guard_lib" "stream_lib" "commit";
    CLAIM: "guard_lib" "stream_lib" "claim";
    DISCONNECT_STREAM: "guard_lib" "stream_lib" "disconnect_stream";
    MAINTAIN_STREAM: "guard_lib" "stream_lib" "maintain_stream";
    TRIM: "guard_lib" "stream_lib" "trim";
    STREAM_STATS: "guard_lib" "stream_lib" "stream_stats";
    RANGE: "guard_lib" "stream_lib" "range";
    PROBE: "guard_lib" "queue" "record_lib" "dead_lib" "due_lib" "return_lib" "enqueue_lib" "probe_lib" "probe";
    PROBE_STREAM: "guard_lib" "stream_lib" "probe_lib" "probe_stream";
    PROBE_KEYS: "guard_lib" "probe_lib" "probe_keys";
    EFFECTS: "guard_lib" "queue" "record_lib" "dead_lib" "enqueue_lib" "settle_lib" "routes_lib" "kv_lib" "stream_lib" "effects";
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let defaults = Settings::default();
        // Defaults of a queue that was never declared.
        let mut code = format!(
            "local STRICT, DEFAULT_ATTEMPTS, DEFAULT_DEDUP_MS = {}, {}, {}\n",
            cfg!(debug_assertions),
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
