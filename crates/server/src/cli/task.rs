//! `towpath task`: HTTP tasks of a worker.

use clap::{Subcommand, value_parser};
use serde_json::{Value, json};

use super::fleet::{rows, show};
use super::fleet_client::FleetClient;
use super::queue::show_count;
use super::{Exit, Failure, Format, Global};
use crate::admin::Count;
use crate::http::encoded;
use crate::leftovers::adopt_leftovers;

/// What to do with tasks.
#[derive(Debug, Subcommand)]
pub(super) enum TaskCommand {
    /// Start a task: request the configured URL
    #[command(after_help = "Examples:\n  towpath task start --wait 2")]
    Start {
        /// Seconds to wait for the result, 0 to 60
        #[arg(long, default_value_t = 0, value_parser = value_parser!(u16).range(0..=60))]
        wait: u16,
        /// URL to post the result to
        #[arg(long)]
        callback: Option<String>,
        /// Idempotency key: the same task for the same key
        #[arg(long)]
        key: Option<String>,
    },
    /// Show a task and its result
    #[command(after_help = "`towpath task ls` shows the ids.")]
    Get {
        /// Task id
        id: String,
        /// Seconds to wait for the result, 0 to 60
        #[arg(long, default_value_t = 0, value_parser = value_parser!(u16).range(0..=60))]
        wait: u16,
    },
    /// List recent tasks
    #[command(alias = "list", after_help = "Examples:\n  towpath task ls")]
    Ls {
        /// Start after this id
        #[arg(long)]
        after: Option<String>,
        /// Maximum tasks, 1 to 1000
        #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
    },
    /// Adopt tasks that the worker of the reference system left in its queue
    #[command(
        after_help = "They keep their ids. The queue is `asynq:{default}:*` on the Redis of `backends.fleet`; `towpath doctor` counts the remaining tasks.\n\nExamples:\n  towpath task adopt"
    )]
    Adopt {
        /// Redis database of that queue
        #[arg(long, env = "ASYNQ_DB", default_value_t = 1)]
        database: u32,
    },
    /// Cancel a task; a request in progress may still reach the server
    Cancel {
        /// Task id
        id: String,
    },
}

/// Leaves the first cause of each error, which is its last part; `task get` shows all of it.
fn shorten_errors(tasks: &mut Value) {
    for task in tasks.as_array_mut().into_iter().flatten() {
        let cause = task["error"]
            .as_str()
            .and_then(|error| error.rsplit(": ").next());
        if let Some(cause) = cause.map(str::to_owned) {
            task["error"] = Value::String(cause);
        }
    }
}

pub(super) async fn run(global: &Global, command: TaskCommand) -> Result<Exit, Failure> {
    if let TaskCommand::Adopt { database } = command {
        let loaded = global.load()?;
        towpath::net::certificate::install_provider();
        let count = adopt_leftovers(loaded.config.fleet.backend.expose(), database).await?;
        show_count(global, &Count { count }, "adopted")?;
        return Ok(Exit::Ok);
    }
    let client = FleetClient::worker(global)?;
    let hit = client.path("/tasks", "/hit");
    let get = async |id: &str, wait: u16| {
        let path = format!("{hit}/{}?wait={wait}", encoded(id));
        client.get(&path).await
    };
    match command {
        TaskCommand::Start {
            wait,
            callback,
            key,
        } => {
            let headers: Vec<(&str, String)> = key
                .into_iter()
                .map(|key| ("idempotency-key", key))
                .collect();
            let body = json!({ "callback_url": callback });
            let mut task = client.post(hit, &body, &headers).await?;
            if wait > 0 {
                task = get(task["task_id"].as_str().unwrap_or_default(), wait).await?;
            }
            show(global, &task)?;
        }
        TaskCommand::Get { id, wait } => show(global, &get(&id, wait).await?)?,
        TaskCommand::Ls { after, max } => {
            let after =
                after.map_or_else(String::new, |after| format!("&after={}", encoded(&after)));
            let mut all = client
                .get(&format!(
                    "{}?limit={max}{after}",
                    client.path("/tasks", "/hits")
                ))
                .await?;
            if global.format == Format::Table {
                shorten_errors(&mut all);
            }
            let columns = [
                ("TASK", "task_id"),
                ("STATUS", "status"),
                ("CODE", "status_code"),
                ("ATTEMPTS", "attempts"),
                ("CREATED", "created_at"),
                ("URL", "url"),
                ("ERROR", "error"),
            ];
            rows(global, &all, &columns)?;
        }
        // Needs no running process.
        TaskCommand::Adopt { .. } => {}
        TaskCommand::Cancel { id } => show(
            global,
            &client.delete(&format!("{hit}/{}", encoded(&id))).await?,
        )?,
    }
    Ok(Exit::Ok)
}
