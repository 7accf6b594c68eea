//! `towpath fleet`: the configuration of agents, and the version of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, value_parser};
use serde_json::{Value, json};
use towpath_core::units;

use super::fleet_client::FleetClient;
use super::{Exit, Failure, Format, Global, output};

/// Interval of requests for agents.
const LOOK: Duration = Duration::from_millis(250);

/// What to do with the fleet.
#[derive(Debug, Subcommand)]
pub(super) enum FleetCommand {
    /// List agents with their last request and version
    #[command(after_help = "Examples:\n  towpath fleet agents")]
    Agents,
    /// Show, publish and roll back configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show or stop the last rollout
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// List audit entries
    #[command(after_help = "Examples:\n  towpath fleet audit")]
    Audit,
}

/// What to do with configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Publish a configuration
    #[command(
        after_help = "A configuration is complete: keys that are not named are removed.\n\nExamples:\n  towpath fleet config publish url=https://example.com/ --wait\n  towpath fleet config publish url=https://example.com/ --step 10%"
    )]
    Publish(PublishArgs),
    /// Show the newest configuration, or a version
    #[command(after_help = "Examples:\n  towpath fleet config get")]
    Get {
        /// Version number
        #[arg(value_name = "VERSION")]
        which: Option<u64>,
    },
    /// List versions, newest first
    #[command(after_help = "Examples:\n  towpath fleet config history")]
    History {
        /// Maximum versions, 1 to 1000
        #[arg(long, default_value_t = 20, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
    },
    /// Compare two versions
    #[command(after_help = "Examples:\n  towpath fleet config diff 1 2")]
    Diff {
        /// Old version
        from: u64,
        /// New version
        to: u64,
    },
    /// Publish an older version again
    #[command(after_help = "Examples:\n  towpath fleet config rollback 1")]
    Rollback {
        /// Version number
        #[arg(value_name = "VERSION")]
        which: u64,
    },
}

/// Options of `fleet config publish`.
#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Keys and values, `key=value`
    #[arg(required_unless_present = "file")]
    pairs: Vec<String>,
    /// JSON object with further keys and values
    #[arg(long)]
    file: Option<PathBuf>,
    /// Polling interval of the agents, in seconds
    #[arg(long, default_value_t = 30)]
    poll: u32,
    /// JSON Schema for this and later versions
    #[arg(long)]
    schema: Option<PathBuf>,
    /// Publish only if this is the newest version
    #[arg(long)]
    if_version: Option<u64>,
    /// Rollout step: `10%` or `label:env=canary`; repeat for several
    #[arg(long)]
    step: Vec<String>,
    /// Wait until every active agent has applied it, at most 60 or this many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60")]
    wait: Option<u64>,
    /// Minimum duration of a step, in seconds
    #[arg(long, default_value_t = 60, requires = "step")]
    bake: u32,
}

/// What to do with a rollout.
#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Show the last rollout
    Status,
    /// Stop the running rollout and publish the previous version again
    Stop {
        /// Reason
        #[arg(long)]
        reason: Option<String>,
    },
}

pub(super) async fn run(global: &Global, command: FleetCommand) -> Result<Exit, Failure> {
    let client = FleetClient::controller(global)?;
    match command {
        FleetCommand::Agents => {
            let mut all = client.get("/agents?limit=1000").await?;
            if global.format != Format::Json {
                note_shared(&mut all);
            }
            let columns = [
                ("AGENT", "agent_id"),
                ("HOST", "hostname"),
                ("STATUS", "status"),
                ("APPLIED", "applied_version"),
                ("FAILED", "failed_version"),
                ("LAST SEEN", "last_seen"),
                ("ERROR", "last_error"),
            ];
            rows(global, &all, &columns)?;
        }
        FleetCommand::Config(command) => config(global, &client, command).await?,
        FleetCommand::Rollout(RolloutCommand::Status) => {
            show(global, &client.get("/rollout").await?)?;
        }
        FleetCommand::Rollout(RolloutCommand::Stop { reason }) => {
            let body = json!({ "reason": reason });
            show(global, &client.post("/rollout/stop", &body, &[]).await?)?;
        }
        FleetCommand::Audit => {
            let all = client.get("/audit?limit=100").await?;
            let columns = [
                ("AT", "at"),
                ("ACTOR", "actor"),
                ("ACTION", "action"),
                ("DETAIL", "detail"),
            ];
            rows(global, &all, &columns)?;
        }
    }
    Ok(Exit::Ok)
}

/// Puts it before an agent's last error when several processes speak as that agent.
fn note_shared(agents: &mut Value) {
    for agent in agents.as_array_mut().into_iter().flatten() {
        let speakers = agent["shared_by"].as_array().into_iter().flatten();
        let from = |speaker: &Value| speaker["address"].as_str().unwrap_or("?").to_owned();
        let from: Vec<String> = speakers.map(from).collect();
        if from.is_empty() {
            continue;
        }
        let mut note = format!(
            "{} agents share this identity, at {}; set `fleet.agent.hostname` on one of them",
            from.len(),
            from.join(", ")
        );
        if let Some(error) = agent["last_error"].as_str() {
            note = format!("{note}; {error}");
        }
        agent["last_error"] = Value::String(note);
    }
}

async fn config(
    global: &Global,
    client: &FleetClient,
    command: ConfigCommand,
) -> Result<(), Failure> {
    match command {
        ConfigCommand::Publish(args) => {
            let headers: Vec<(&str, String)> = args
                .if_version
                .iter()
                .map(|version| ("if-match", format!("\"{version}\"")))
                .collect();
            let patience = args.wait.map(Duration::from_secs);
            let published = client
                .post("/config", &publication(args)?, &headers)
                .await?;
            print_published(global, &published)?;
            match patience {
                Some(patience) => {
                    wait_applied(global, client, &published["version"], patience).await
                }
                None => Ok(()),
            }
        }
        ConfigCommand::Get { which } => {
            let path = which.map_or_else(
                || "/config".to_owned(),
                |version| format!("/config/{version}"),
            );
            show(global, &client.get(&path).await?)
        }
        ConfigCommand::History { max } => {
            let all = client.get(&format!("/config/history?limit={max}")).await?;
            let columns = [
                ("VERSION", "version"),
                ("PUBLISHED", "created_at"),
                ("BY", "author"),
                ("ROLLS BACK TO", "rolls_back_to"),
                ("DATA", "data"),
            ];
            rows(global, &all, &columns)
        }
        ConfigCommand::Diff { from, to } => {
            let found = client
                .get(&format!("/config/diff?from={from}&to={to}"))
                .await?;
            show(global, &found)
        }
        ConfigCommand::Rollback { which } => {
            let body = json!({ "version": which });
            let published = client.post("/config/rollback", &body, &[]).await?;
            print_published(global, &published)
        }
    }
}

/// Waits until every active agent runs the version, or one says that it cannot.
async fn wait_applied(
    global: &Global,
    client: &FleetClient,
    version: &Value,
    patience: Duration,
) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let agents = client.get("/agents?limit=1000").await?;
        let agents = agents.as_array().map_or(&[][..], Vec::as_slice);
        let active: Vec<&Value> = { agents.iter() }
            .filter(|agent| agent["status"] == "active")
            .collect();
        if let Some(failed) = active.iter().find(|one| one["failed_version"] == *version) {
            let (host, error) = (cell(&failed["hostname"]), cell(&failed["last_error"]));
            let text = format!("the agent on `{host}` cannot apply version {version}: {error}");
            return Err(Failure::failed(text));
        }
        let has_it = |one: &&&Value| one["applied_version"].as_u64() >= version.as_u64();
        let applied = active.iter().filter(has_it).count();
        if applied == active.len() && applied > 0 {
            if global.format == Format::Table && !global.quiet {
                let agents = units::counted(applied as u64, "agent");
                output::line(format!("applied by {agents}"))?;
            }
            return Ok(());
        }
        if began.elapsed() >= patience {
            let text = format!(
                "version {version} is published, and applied by {applied} of {} active agents after {}; `towpath fleet agents` lists them",
                active.len(),
                units::age(patience)
            );
            return Err(Failure::failed(text));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn publication(args: PublishArgs) -> Result<Value, Failure> {
    let read = |path: &PathBuf| -> Result<Value, Failure> {
        let text = std::fs::read(path).map_err(|error| {
            Failure::failed(format!("`{}` cannot be read: {error}", path.display()))
        })?;
        serde_json::from_slice(&text).map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("`{}` is not valid JSON: {error}", path.display()),
            )
        })
    };
    let mut data: BTreeMap<String, Value> = match &args.file {
        None => BTreeMap::new(),
        Some(path) => serde_json::from_value(read(path)?).map_err(|_| {
            Failure::new(
                Exit::Usage,
                format!("`{}` is not a JSON object", path.display()),
            )
        })?,
    };
    let usage = |text: String| Failure::new(Exit::Usage, text);
    let mut named = BTreeSet::new();
    for pair in &args.pairs {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            usage(format!(
                "`{pair}` has no `=`; expected e.g. `url=https://example.com/`"
            ))
        })?;
        if key.trim().is_empty() {
            return Err(usage(format!(
                "`{pair}` has no name before its `=`; expected e.g. `url=https://example.com/`"
            )));
        }
        if !named.insert(key) {
            return Err(usage(format!(
                "`{key}` is given more than once; leave one of them"
            )));
        }
        data.insert(key.to_owned(), value.into());
    }
    if data.contains_key("") {
        return Err(usage(
            "a key is empty; expected e.g. `url=https://example.com/`".to_owned(),
        ));
    }
    let mut body = json!({ "data": data, "poll_interval_seconds": args.poll });
    if let Some(path) = &args.schema {
        body["schema"] = read(path)?;
    }
    if !args.step.is_empty() {
        body["rollout"] = json!({ "steps": args.step, "bake_seconds": args.bake });
    }
    Ok(body)
}

fn print_published(global: &Global, published: &Value) -> Result<(), Failure> {
    match global.format {
        Format::Json => output::json(published)?,
        Format::Table if global.quiet => {}
        Format::Table => output::line(format!("published version {}", published["version"]))?,
    }
    Ok(())
}

/// Fields below each other.
pub(super) fn show(global: &Global, value: &Value) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(value)?);
    }
    let fields = value.as_object().into_iter().flatten();
    let shown =
        fields.filter(|(name, _)| !["signature", "epoch", "proof"].contains(&name.as_str()));
    for (name, value) in shown {
        output::line(format!("{name:<22} {}", cell(value)))?;
    }
    Ok(())
}

/// One row for each element, these fields of it.
pub(super) fn rows(global: &Global, all: &Value, columns: &[(&str, &str)]) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(all)?);
    }
    let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
    let rows = all.as_array().into_iter().flatten().map(|one| {
        columns
            .iter()
            .map(|(_, field)| cell(&one[*field]))
            .collect()
    });
    Ok(output::list(&headings, rows.collect(), "none found")?)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => output::time(&towpath::sink::escape(text.as_bytes())),
        other => other.to_string(),
    }
}
