//! Health of a Redis for `doctor` and `/readyz`.

use towpath_core::backend::Health;
use towpath_core::{Result, ResultExt};

use super::connection::{NodeConnection, info_line};
use super::store::Store;
use super::{reply, script};

impl Store {
    /// Checks the durability settings of every server, and that it accepts the writes of this process: a
    /// ping alone is not enough.
    pub(super) async fn health(&self) -> Result<Health> {
        self.servers.check_open()?;
        let mut health = Health::default();
        for node in self.servers.nodes().await? {
            look(&node, &mut health).await?;
        }
        self.probe().await?;
        health.facts.push((
            "consumers".to_owned(),
            format!(
                "deliveries of a dead one are redelivered after {:?}",
                self.config.consumer_timeout
            ),
        ));
        Ok(health)
    }
}

impl Store {
    /// # Errors
    /// The error of a step on a queue or stream of this process, or on keys.
    pub(super) async fn probe(&self) -> Result<()> {
        for (name, handle) in self.all_handles() {
            let probe = self.servers.run(handle.probe()).await;
            probe.context(|| format!("use `{name}`"))?;
        }
        let key = self.keys.probe();
        self.servers.run(script::PROBE_KEYS.on([&key])).await?;
        Ok(())
    }
}

async fn look(node: &NodeConnection, health: &mut Health) -> Result<()> {
    let mut info = redis::cmd("INFO");
    info.arg("everything");
    let info = reply::text(node.query(&info).await?)?;
    let server = node.name();
    let line = |name: &str| info_line(&info, name).unwrap_or("unknown");
    health.facts.push((
        "server".to_owned(),
        format!("redis {} at {server}", line("redis_version")),
    ));
    // Without permission for CONFIG, INFO has less.
    let appendonly = line("aof_enabled") == "1";
    let fsync = configured(node, "appendfsync").await;
    let durability = match (appendonly, fsync.as_deref()) {
        (false, _) => {
            "none: messages since the last snapshot are lost when the server stops".to_owned()
        }
        (true, Some("always")) => "fsync before acknowledgement".to_owned(),
        (true, Some("everysec")) => "a power cut loses up to about two seconds".to_owned(),
        (true, Some("no")) => "a power cut loses unsynced writes, often thirty seconds".to_owned(),
        (true, other) => format!("appendonly, appendfsync {}", other.unwrap_or("unknown")),
    };
    if !appendonly {
        health.warnings.push(format!(
            "`appendonly` is off at {server}: a crash of the server loses acknowledged messages; `CONFIG SET appendonly yes`"
        ));
    } else if fsync.as_deref() != Some("always") {
        health.warnings.push(format!(
            "`appendfsync` is `{}` at {server}: {durability}; `CONFIG SET appendfsync always` closes the window",
            fsync.as_deref().unwrap_or("unknown")
        ));
    }
    health.facts.push(("durability".to_owned(), durability));
    let policy = line("maxmemory_policy");
    if policy != "noeviction" && policy != "unknown" {
        health.warnings.push(format!(
            "`maxmemory-policy` is `{policy}` at {server}: when memory is full, queues are evicted silently; `CONFIG SET maxmemory-policy noeviction`"
        ));
    }
    if line("aof_last_write_status") == "err" {
        health.warnings.push(format!(
            "the last write to the append-only file failed at {server}"
        ));
    }
    Ok(())
}

/// A setting, if the user may read it.
async fn configured(node: &NodeConnection, name: &str) -> Option<String> {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg(name);
    let [_, value] = reply::tuple(node.query(&get).await.ok()?).ok()?;
    reply::text(value).ok()
}
