//! Changes by commands that work without a process: each leaves a record in the data folder, and the next process that runs
//! there adds it to its audit log and trail.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use towpath_core::Result;
use tracing::{info, warn};

use super::trail::{Record, Trail};
use towpath::disk;
use towpath::supervisor::Stop;

/// The file of records that no process has read yet.
const FILE: &str = "audit.pending";

/// Interval between two reads.
const INTERVAL: Duration = Duration::from_secs(1);

/// Largest part of the file that is read; commands leave a few hundred bytes each.
const MAX_BYTES: u64 = 1 << 20;

/// Leaves the record of a change in a data folder; without the folder there is nothing to audit.
///
/// # Errors
/// When the file cannot be written.
pub fn leave(
    folder: &Path,
    action: &str,
    object: String,
    parameters: Option<String>,
) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let user = rustix::process::getuid().as_raw();
    let record = Record {
        actor: Some(format!("local:{user}")),
        action: Some(action.to_owned()),
        object: Some(object),
        parameters,
        ..Record::now("change")
    };
    let mut line = serde_json::to_vec(&record)?;
    line.push(b'\n');
    let mut file = open(folder, OpenOptions::new().append(true).create(true))?;
    flock(&file, FlockOperation::LockExclusive)?;
    file.write_all(&line)?;
    file.sync_all()
}

/// Adds records that commands leave to the trail, until the stop.
///
/// # Errors
/// None.
pub async fn collect(folder: PathBuf, trail: Trail, stop: Stop) -> Result<()> {
    loop {
        let from = folder.clone();
        let taken = tokio::task::spawn_blocking(move || take(&from)).await;
        match taken {
            Ok(Ok(records)) => records.into_iter().for_each(|record| add(&trail, record)),
            Ok(Err(error)) => warn!(%error, "audit records of commands not read; retrying"),
            // The runtime is ending.
            Err(_) => {}
        }
        tokio::select! {
            () = stop.requested() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

fn add(trail: &Trail, record: Record) {
    info!(
        target: "audit",
        actor = record.actor,
        action = record.action,
        object = record.object,
        parameters = record.parameters,
        time = record.time,
        "change"
    );
    trail.take(record);
}

/// Reads the file and empties it. A line that is not a record is dropped.
fn take(folder: &Path) -> std::io::Result<Vec<Record>> {
    let mut file = match open(folder, OpenOptions::new().read(true).write(true)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    if file.metadata()?.len() == 0 {
        return Ok(Vec::new());
    }
    flock(&file, FlockOperation::LockExclusive)?;
    let mut text = Vec::new();
    Read::by_ref(&mut file)
        .take(MAX_BYTES)
        .read_to_end(&mut text)?;
    file.set_len(0)?;
    file.rewind()?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// Opens the file, unless a link is there or another user owns it.
fn open(folder: &Path, options: &mut OpenOptions) -> std::io::Result<File> {
    let path = folder.join(FILE);
    let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = options.mode(0o600).custom_flags(no_link).open(&path)?;
    disk::check_owner(&path, &file.metadata()?)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn records_of_commands_are_taken_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let leave = |action: &str| {
            super::leave(folder.path(), action, "x".to_owned(), None).expect("left");
        };
        assert!(take(folder.path()).expect("none yet").is_empty());
        leave("key new");
        leave("key revoke");
        let path = folder.path().join(FILE);
        let found = std::fs::metadata(&path).expect("the file");
        assert_eq!(found.mode() & 0o777, 0o600);
        let taken = take(folder.path()).expect("taken");
        let actions: Vec<_> = taken.iter().filter_map(|it| it.action.as_deref()).collect();
        assert_eq!(actions, ["key new", "key revoke"]);
        assert!(taken.iter().all(|it| {
            it.actor
                .as_deref()
                .is_some_and(|it| it.starts_with("local:"))
        }));
        assert!(take(folder.path()).expect("empty").is_empty());
        leave("restore");
        assert_eq!(take(folder.path()).expect("taken").len(), 1);
        // A command without a data folder makes none.
        let missing = folder.path().join("missing");
        super::leave(&missing, "migrate up", "x".to_owned(), None).expect("nothing");
        assert!(!missing.exists());
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let other = folder.path().join("other");
        std::fs::write(&other, "kept").expect("written");
        std::os::unix::fs::symlink(&other, folder.path().join(FILE)).expect("a link");
        assert!(super::leave(folder.path(), "key new", "x".to_owned(), None).is_err());
        assert!(take(folder.path()).is_err());
        assert_eq!(std::fs::read_to_string(&other).expect("read"), "kept");
    }
}
