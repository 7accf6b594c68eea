//! What `doctor` and `/readyz` say about a Redis.

use towpath_core::Result;
use towpath_core::backend::Health;

use super::connection::{Link, info_line};
use super::reply;
use super::store::Store;

impl Store {
    /// Asks every server; says what a crash of it would cost.
    pub(super) async fn health(&self) -> Result<Health> {
        self.servers.check_open()?;
        let mut health = Health::default();
        for link in self.servers.links().await? {
            look(&link, &mut health).await?;
        }
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
