//! Tasks that the worker of the reference system left in its own queue.

use serde::Deserialize;
use towpath_core::{Error, Result};
use uuid::Uuid;

use crate::apps::fleet::Tasks;
use crate::stores::{TaskQueue, open};

/// Its name for tasks.
const KIND: &str = "worker:hit:execute";

#[derive(Deserialize)]
struct Payload {
    task_id: Uuid,
    url: String,
}

/// The database of the queue on the server of a Redis URL; `None` for another backend.
fn queue_url(backend: &str, database: u32) -> Option<String> {
    let is_redis = backend.starts_with("redis://") || backend.starts_with("rediss://");
    let (start, query) = match backend.split_once('?') {
        Some((start, query)) => (start, format!("?{query}")),
        None => (backend, String::new()),
    };
    let (scheme, place) = start.split_once("://").filter(|_| is_redis)?;
    let place = place.split('/').next().unwrap_or_default();
    Some(format!("{scheme}://{place}/{database}{query}"))
}

/// Number of tasks in the queue of the reference worker, on the server of this backend.
///
/// # Errors
/// Those of the server.
pub async fn count_leftovers(backend: &str, database: u32) -> Result<usize> {
    let Some(url) = queue_url(backend, database) else {
        return Ok(0);
    };
    let queue = TaskQueue::open(&url)?;
    let found = queue.leftovers().await;
    queue.close().await?;
    Ok(found?.len())
}

/// Makes tasks of ours of those that are left, each before it is removed there. Returns how many.
///
/// # Errors
/// `Conflict` while a worker of the reference system is alive; `Invalid` for another backend; those of the server.
pub async fn adopt_leftovers(backend: &str, database: u32) -> Result<u64> {
    let url = queue_url(backend, database).ok_or_else(|| {
        Error::invalid(
            "the tasks of the reference worker are in a Redis; set `backends.fleet` to its URL",
        )
    })?;
    let (queue, ours) = (TaskQueue::open(&url)?, open(backend).await?);
    let adopted = async {
        let workers = queue.workers().await?;
        if workers > 0 {
            return Err(Error::conflict(format!(
                "{workers} workers of the reference system are alive; stop them, and try again after a minute"
            )));
        }
        let tasks = Tasks::of(&ours, "task adopt")?;
        tasks.declare().await?;
        let mut count = 0;
        for leftover in queue.leftovers().await? {
            let payload = serde_json::from_slice::<Payload>(&leftover.payload).ok();
            let Some(payload) = payload.filter(|_| leftover.kind == KIND) else {
                tracing::warn!(task = leftover.id, kind = leftover.kind, "task not adopted; it is not a hit");
                continue;
            };
            tasks.adopt(payload.task_id, payload.url).await?;
            queue.remove(&leftover.id).await?;
            count += 1;
        }
        Ok(count)
    }
    .await;
    ours.lifecycle.close().await?;
    queue.close().await?;
    adopted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_in_another_database_of_the_server() {
        let url = |backend| queue_url(backend, 1);
        assert_eq!(url("redis://h:1/0").as_deref(), Some("redis://h:1/1"));
        assert_eq!(
            url("rediss://:p@h?timeout=1s").as_deref(),
            Some("rediss://:p@h/1?timeout=1s")
        );
        assert_eq!(url("embedded:x"), None);
    }
}
