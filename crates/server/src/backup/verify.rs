//! Verifying a backup or a data folder: everything is read, every fault is named.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use towpath_core::{Error, ErrorKind, Result};

use super::location::Location;
use super::manifest::{self, Manifest, difference};
use super::{DATABASE, STORE};
use crate::stores::{Depth, Verified, verify_database, verify_store};

/// Files read, and their damage.
#[derive(Debug, Default)]
pub struct Report {
    /// Of a backup that has one.
    pub manifest: Option<Manifest>,
    /// Files that were compared with the manifest, and their bytes.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The contents of the store; absent in a bucket, whose files are compared with the manifest alone.
    pub store: Option<Verified>,
    /// Databases that were read completely; none in a bucket.
    pub databases: Vec<String>,
    /// Everything that is wrong.
    pub faults: Vec<String>,
}

/// Reads a backup, or the store and the databases of a data folder.
///
/// # Errors
/// `NotFound` when there is neither, `Unavailable` when the store is in use or for I/O.
pub async fn verify(location: &Location) -> Result<Report> {
    let mut report = Report::default();
    if let Location::Folder(folder) = location
        && !folder.join(STORE).exists()
        && !folder.join(manifest::NAME).exists()
    {
        let store = verify_store(folder, Depth::All)?;
        report.faults.extend(store.faults.iter().cloned());
        report.store = Some(store);
        report.read_databases(folder)?;
        return Ok(report);
    }
    match location.manifest().await {
        Ok(Some(manifest)) => {
            compare(location, &manifest, &mut report).await?;
            report.manifest = Some(manifest);
        }
        Ok(None) => report.faults.push(incomplete(location).to_string()),
        Err(error) if error.kind() == ErrorKind::Corrupt => report.faults.push(error.chain()),
        Err(error) => return Err(error),
    }
    if let Location::Folder(folder) = location {
        match verify_store(&folder.join(STORE), Depth::All) {
            Ok(store) => {
                report.faults.extend(store.faults.iter().cloned());
                report.store = Some(store);
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                report.faults.push(error.chain());
            }
            Err(error) => return Err(error),
        }
        report.read_databases(folder)?;
    }
    Ok(report)
}

impl Report {
    fn read_databases(&mut self, folder: &Path) -> Result<()> {
        for (name, faults) in databases(folder)? {
            self.databases.push(name);
            self.faults.extend(faults);
        }
        Ok(())
    }
}

/// The databases in a folder, read completely, each with its faults.
pub(super) fn databases(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let unlisted = |error: std::io::Error| {
        let text = format!("`{}` cannot be listed", folder.display());
        Error::unavailable(text).with_source(error)
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(unlisted)? {
        let path = entry.map_err(unlisted)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() && name.ends_with(DATABASE) {
            let faults = verify_database(&path)?.into_iter();
            let faults = faults.map(|fault| format!("database `{name}`: {fault}"));
            found.insert(name.clone().into_owned(), faults.collect());
        }
    }
    Ok(found)
}

async fn compare(location: &Location, manifest: &Manifest, report: &mut Report) -> Result<()> {
    let mut there: BTreeMap<String, u64> = location.list().await?.into_iter().collect();
    there.remove(manifest::NAME);
    for expected in &manifest.files {
        if there.remove(&expected.name).is_none() {
            report
                .faults
                .push(format!("`{}` is missing", expected.name));
            continue;
        }
        let found = match location.hash(&expected.name).await {
            Ok(found) => found,
            Err(error) => {
                report
                    .faults
                    .push(format!("`{}`: {}", expected.name, error.chain()));
                continue;
            }
        };
        report.files += 1;
        report.bytes += found.bytes;
        report.faults.extend(difference(expected, &found));
    }
    let others = there.into_keys();
    let others = others.map(|name| format!("`{name}` is not in the manifest"));
    report.faults.extend(others);
    Ok(())
}

/// The error of a backup without a manifest.
pub(super) fn incomplete(location: &Location) -> Error {
    Error::corrupt(format!(
        "the backup in `{location}` is not complete: it has no `{}`, which is written last. It was cut off, or made by Towpath 0.1.0; \
         `towpath restore --without-manifest` restores one of 0.1.0 that lacks nothing",
        manifest::NAME
    ))
}
