//! `towpath backup`, `towpath restore` and `towpath verify`: the data folder's store and databases.

use std::path::PathBuf;

use clap::Args;
use futures_util::StreamExt;
use serde_json::json;
use towpath_core::Error;
use towpath_core::backend::Backend;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::HealthView;
use crate::backup::{self, Location, Making, Manifest, SnapshotReader};
use crate::config::Config;
use crate::wiring::{self, Verified};

/// Options of `backup`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the store through the running process, or from its folder when none runs. Every write acknowledged before is in the backup. The manifest is written last: a backup without one is not complete.\n\nS3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL for a server that is not AWS.\n\nExamples:\n  towpath backup copy\n  towpath backup s3://bucket/monday"
)]
pub(super) struct BackupArgs {
    /// A folder that does not exist, or `s3://BUCKET/PREFIX` with nothing below it
    place: String,
}

/// Options of `restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "Every file is checked against the manifest. The data folder must not exist, or be empty; it is put in place as the last step.\n\nExamples:\n  towpath restore copy --data elsewhere\n  towpath restore s3://bucket/monday"
)]
pub(super) struct RestoreArgs {
    /// The backup: a folder or `s3://BUCKET/PREFIX`
    place: String,
    /// Restore a backup of Towpath 0.1.0, which wrote no manifest, if its store lacks nothing
    #[arg(long)]
    without_manifest: bool,
}

/// Options of `verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads everything, the SQLite databases in the folder included, and changes nothing. Exits with 5 when something is missing or damaged. A store in use is refused: verify a backup of it.\n\nExamples:\n  towpath verify copy\n  towpath verify s3://bucket/monday\n  towpath verify elsewhere"
)]
pub(super) struct VerifyArgs {
    /// A backup (a folder or `s3://BUCKET/PREFIX`) or a data folder that is not in use
    place: String,
}

pub(super) async fn backup(global: &Global, args: BackupArgs) -> Result<Exit, Failure> {
    let config = global.load()?.config;
    let place = Location::parse(&args.place)?;
    // Before anything is written: whether there is something to back up.
    let snapshot = snapshot(global, &config).await?;
    let mut making = Making::begin(place.clone()).await?;
    let made = tokio::select! {
        made = fill(&config, &mut making, snapshot) => made,
        () = interrupted() => Err(Failure::failed("interrupted")),
    };
    match made {
        Ok(manifest) => print(global, &place, &manifest),
        Err(Failure::Said(exit, text)) => {
            let left = making.abandon().await;
            Err(Failure::new(exit, format!("{text}; {left}")))
        }
        Err(other) => Err(other),
    }
}

async fn fill(
    config: &Config,
    making: &mut Making,
    (snapshot, store): (SnapshotReader, Option<Backend>),
) -> Result<Manifest, Failure> {
    let copied = making.store(snapshot).await;
    if let Some(store) = store {
        store.lifecycle.close().await?;
    }
    copied?;
    let databases = databases_of(config);
    if !databases.is_empty() {
        let copies = tempfile::Builder::new()
            .prefix(".backup-")
            .tempdir_in(making.scratch().unwrap_or(&config.data_dir))?;
        for file in databases {
            let name = file.file_name().unwrap_or_default();
            let copy = copies.path().join(name);
            let database = wiring::open_database(&format!("sqlite:{}", file.display())).await?;
            database.schema.copy(&copy).await?;
            making.database(&name.to_string_lossy(), &copy).await?;
        }
    }
    Ok(making.complete().await?)
}

/// SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// The store by the process that has it open, or from its folder, which is opened for it.
async fn snapshot(
    global: &Global,
    config: &Config,
) -> Result<(SnapshotReader, Option<Backend>), Failure> {
    let client = Client::new(global)?.patient();
    match client.get::<HealthView>("/v1/health").await {
        Ok(_) => {}
        Err(Failure::Said(Exit::Unreachable, _)) if config.data_dir.join("log").is_dir() => {
            let url = format!("embedded:{}", config.data_dir.display());
            let store = wiring::open(&url).await?;
            let stream = backup::outgoing(store.lifecycle.snapshot().await?, || false)?;
            let stream = stream.map(|piece| {
                piece.map_err(|error| {
                    Error::unavailable("the store cannot be read").with_source(error)
                })
            });
            return Ok((SnapshotReader::begin(stream.boxed()).await?, Some(store)));
        }
        Err(other) => return Err(other),
    }
    let stream = client.stream("/v1/backup").await?;
    let base = client.base().to_owned();
    let stream = stream.map(move |piece| {
        piece.map_err(|error| {
            Error::unavailable(format!(
                "the process at {base} ended the backup before it was complete; its log says why, if it is still there"
            ))
            .with_source(error)
        })
    });
    Ok((SnapshotReader::begin(stream.boxed()).await?, None))
}

pub(super) async fn restore(global: &Global, args: RestoreArgs) -> Result<Exit, Failure> {
    let config = global.load()?.config;
    let data = std::path::absolute(&config.data_dir)?;
    let place = Location::parse(&args.place)?;
    let restored = tokio::select! {
        restored = backup::restore(&place, &data, args.without_manifest) => restored?,
        () = interrupted() => return Err(Failure::failed("interrupted; nothing was restored")),
    };
    let store = &restored.store;
    Global::leave(&config, "restore", data.display().to_string(), None);
    match global.format {
        Format::Json => output::json(&json!({
            "folder": data, "files": restored.files, "bytes": restored.bytes, "databases": restored.databases,
            "queues": store.queues, "waiting": store.waiting, "faults": store.faults,
        }))?,
        Format::Table if global.quiet => {}
        Format::Table => {
            output::line(format!(
                "{}: {} files, {} bytes; databases: {}",
                data.display(),
                restored.files,
                restored.bytes,
                listed(restored.databases.iter().map(String::as_str))
            ))?;
            let (waiting, queues) = (store.waiting, store.queues);
            output::line(format!("{waiting} messages wait in {queues} queues"))?;
        }
    }
    if store.faults.is_empty() {
        return Ok(Exit::Ok);
    }
    for fault in &store.faults {
        output::note(format!(
            "restored as it was in the store that the backup was made of: {fault}"
        ));
    }
    Ok(Exit::Problems)
}

pub(super) async fn verify(global: &Global, args: VerifyArgs) -> Result<Exit, Failure> {
    let place = Location::parse(&args.place)?;
    let report = backup::verify(&place).await?;
    let manifest = report.manifest.as_ref();
    if global.format == Format::Json {
        output::json(&json!({
            "place": place.to_string(),
            "made_by": manifest.map(|manifest| &manifest.towpath),
            "created_at": manifest.map(|manifest| manifest.created_at),
            "files": report.files,
            "bytes": report.bytes,
            "databases": report.databases,
            "store": report.store.as_ref().map(|store| json!({
                "checkpoints": store.checkpoints, "segments": store.segments, "records": store.records,
                "bytes": store.bytes, "queues": store.queues, "messages": store.messages, "waiting": store.waiting,
                "notes": store.notes,
            })),
            "faults": report.faults,
        }))?;
    } else if !global.quiet {
        if let Some(manifest) = manifest {
            output::line(format!(
                "{place}: a backup of Towpath {}, complete at {}; databases: {}",
                manifest.towpath,
                manifest.created_at,
                listed(manifest.databases())
            ))?;
            let (read, wanted) = (report.files, manifest.files.len());
            output::line(format!(
                "manifest: {read} of {wanted} files read, {} bytes",
                report.bytes
            ))?;
        }
        if let Some(store) = &report.store {
            output::line(line_of(store))?;
            for note in &store.notes {
                output::line(format!("note: {note}"))?;
            }
            let databases = listed(report.databases.iter().map(String::as_str));
            output::line(format!("databases read: {databases}"))?;
        }
    }
    if report.faults.is_empty() {
        if global.format == Format::Table && !global.quiet {
            output::line("no fault")?;
        }
        return Ok(Exit::Ok);
    }
    if global.format == Format::Table {
        for fault in &report.faults {
            output::error(fault);
        }
    }
    Ok(Exit::Problems)
}

/// The counts of a store in one line.
fn line_of(store: &Verified) -> String {
    format!(
        "store: {} checkpoints, {} segments, {} records, {} bytes read; {} messages in {} queues and streams, {} of them waiting",
        store.checkpoints,
        store.segments,
        store.records,
        store.bytes,
        store.messages,
        store.queues,
        store.waiting
    )
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

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

fn print(global: &Global, place: &Location, made: &Manifest) -> Result<Exit, Failure> {
    let (files, bytes) = (made.files.len(), made.bytes());
    match global.format {
        Format::Json => output::json(&json!({
            "place": place.to_string(), "id": made.id, "files": files, "bytes": bytes,
            "databases": made.databases().collect::<Vec<_>>(),
        }))?,
        Format::Table if global.quiet => {}
        Format::Table => output::line(format!(
            "{place}: {files} files, {bytes} bytes; databases: {}",
            listed(made.databases())
        ))?,
    }
    Ok(Exit::Ok)
}
