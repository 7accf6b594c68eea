//! `towpath backup` and `towpath restore`: the data folder's store and databases.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{BackupMade, BackupWanted};
use crate::config::Config;
use crate::wiring;

/// Where the store is in a backup; databases stand beside it.
const STORE: &str = "store";

/// Options of `backup`.
#[derive(Debug, Args)]
#[command(
    after_help = "Asks the running process for its store, or reads it when none runs. Everything that was acknowledged before is in the backup.\n\nExamples:\n  towpath backup copy"
)]
pub(super) struct BackupArgs {
    /// A folder that is not there yet, on the process's machine
    folder: PathBuf,
}

/// Options of `restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath restore copy --data elsewhere")]
pub(super) struct RestoreArgs {
    /// The backup
    folder: PathBuf,
}

pub(super) async fn backup(global: &Global, args: BackupArgs) -> Result<Exit, Failure> {
    let config = global.load()?.config;
    let folder = std::path::absolute(&args.folder)?;
    if folder.exists() {
        let text = format!("`{}` is there already; name a new folder", folder.display());
        return Err(Failure::new(Exit::Usage, text));
    }
    let made = store(global, &config, &folder.join(STORE)).await?;
    let mut databases = Vec::new();
    for file in databases_of(&config) {
        let name = file.file_name().unwrap_or_default();
        let database = wiring::open_database(&format!("sqlite:{}", file.display())).await?;
        database.schema.copy(&folder.join(name)).await?;
        databases.push(name.to_string_lossy().into_owned());
    }
    tell(global, &folder, &made, &databases)
}

/// The store by the process that has it, or from its folder.
async fn store(global: &Global, config: &Config, to: &Path) -> Result<BackupMade, Failure> {
    let wanted = BackupWanted {
        folder: to.display().to_string(),
    };
    match Client::new(global)?
        .patient()
        .post("/v1/backup", &wanted)
        .await
    {
        Err(Failure::Said(Exit::Unreachable, _)) if config.data_dir.join("log").is_dir() => {
            let url = format!("embedded:{}", config.data_dir.display());
            let backend = wiring::open(&url).await?;
            let copied = backend.lifecycle.backup(to).await;
            backend.lifecycle.close().await?;
            let copied = copied?;
            Ok(BackupMade {
                files: copied.files,
                bytes: copied.bytes,
            })
        }
        answered => answered,
    }
}

pub(super) async fn restore(global: &Global, args: RestoreArgs) -> Result<Exit, Failure> {
    let config = global.load()?.config;
    let data = &config.data_dir;
    let databases: Vec<PathBuf> = std::fs::read_dir(&args.folder)
        .map_err(|error| Failure::failed(format!("`{}`: {error}", args.folder.display())))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect();
    for file in &databases {
        let there = data.join(file.file_name().unwrap_or_default());
        if there.exists() {
            let text = format!(
                "`{}` is there already; name another data folder",
                there.display()
            );
            return Err(Failure::failed(text));
        }
    }
    std::fs::create_dir_all(data)?;
    let copied = wiring::restore(&args.folder.join(STORE), data)?;
    let made = BackupMade {
        files: copied.files,
        bytes: copied.bytes,
    };
    let mut names = Vec::new();
    for file in &databases {
        let name = file.file_name().unwrap_or_default();
        std::fs::copy(file, data.join(name))?;
        names.push(name.to_string_lossy().into_owned());
    }
    // What cannot be opened is no backup, and that is said now.
    let backend = wiring::open(&format!("embedded:{}", data.display())).await?;
    let queues = backend.require_queue("restore")?.list().await?;
    backend.lifecycle.close().await?;
    let waiting: u64 = queues
        .iter()
        .map(|queue| queue.ready + queue.delayed + queue.leased)
        .sum();
    let exit = tell(global, data, &made, &names)?;
    if global.format == Format::Table && !global.quiet {
        output::line(format!(
            "{waiting} messages wait in {} queues",
            queues.len()
        ))?;
    }
    Ok(exit)
}

/// The SQLite files that are there.
fn databases_of(config: &Config) -> Vec<PathBuf> {
    let urls = [&config.accounts.database, &config.fleet.database];
    let mut files: Vec<PathBuf> = urls
        .iter()
        .filter_map(|url| url.expose().strip_prefix("sqlite:"))
        .map(PathBuf::from)
        .filter(|path| path.exists())
        .collect();
    files.dedup();
    files
}

fn tell(
    global: &Global,
    place: &Path,
    made: &BackupMade,
    databases: &[String],
) -> Result<Exit, Failure> {
    let (files, bytes) = (made.files, made.bytes);
    match global.format {
        Format::Json => output::json(&json!({
            "folder": place, "files": files, "bytes": bytes, "databases": databases,
        }))?,
        Format::Table if global.quiet => {}
        Format::Table => output::line(format!(
            "{}: {files} files of the store, {bytes} bytes; databases: {}",
            place.display(),
            if databases.is_empty() {
                "none".to_owned()
            } else {
                databases.join(", ")
            }
        ))?,
    }
    Ok(Exit::Ok)
}
