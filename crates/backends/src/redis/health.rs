//! What `doctor` and `/readyz` say about a Redis.

use towpath_core::backend::Health;
use towpath_core::{Result, ResultExt};

use super::connection::{Link, info_line};
use super::store::Store;
use super::{reply, script};

impl Store {
    /// Asks every server what a crash of it would cost, and whether it takes the writes that this process needs: a
    /// server that only answers is not enough.
    pub(super) async fn health(&self) -> Result<Health> {
        self.servers.check_open()?;
        let mut health = Health::default();
        for link in self.servers.links().await? {
            look(&link, &mut health).await?;
        }
        self.probe().await?;
        health.facts.push((
            "consumers".to_owned(),
            format!(
                "deliveries of a dead one come back after {:?}",
                self.config.consumer_timeout
            ),
        ));
        Ok(health)
    }
}

impl Store {
    /// # Errors
    /// What a step on one of this process's queues or streams, or on keys, would be refused with.
    pub(super) async fn probe(&self) -> Result<()> {
        for (name, known) in self.all_known() {
            let probe = self.servers.run(known.probe()).await;
            probe.context(|| format!("use `{name}`"))?;
        }
        let key = self.keys.probe();
        self.servers.run(script::PROBE_KEYS.on([&key])).await?;
        Ok(())
    }
}

async fn look(link: &Link, health: &mut Health) -> Result<()> {
    let mut info = redis::cmd("INFO");
    info.arg("everything");
    let info = reply::text(link.query(&info).await?)?;
    let server = link.name();
    let line = |name: &str| info_line(&info, name).unwrap_or("unknown");
    health.facts.push((
        "server".to_owned(),
        format!("redis {} at {server}", line("redis_version")),
    ));
    // Where CONFIG is not permitted, INFO says less.
    let appendonly = line("aof_enabled") == "1";
    let fsync = configured(link, "appendfsync").await;
    let durability = match (appendonly, fsync.as_deref()) {
        (false, _) => {
            "none: what came since the last snapshot is lost when the server ends".to_owned()
        }
        (true, Some("always")) => "fsync before acknowledgement".to_owned(),
        (true, Some("everysec")) => "a power cut loses up to about two seconds".to_owned(),
        (true, Some("no")) => {
            "a power cut loses what the system had not written, often thirty seconds".to_owned()
        }
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
            "`maxmemory-policy` is `{policy}` at {server}: when memory is full, queues are evicted without a word; `CONFIG SET maxmemory-policy noeviction`"
        ));
    }
    if line("aof_last_write_status") == "err" {
        health.warnings.push(format!(
            "the last write to the append-only file failed at {server}"
        ));
    }
    Ok(())
}

/// A setting, when the server tells it.
async fn configured(link: &Link, name: &str) -> Option<String> {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg(name);
    let [_, value] = reply::tuple(link.query(&get).await.ok()?).ok()?;
    reply::text(value).ok()
}
