//! Verifying a backup or a data folder: everything is read, every fault is named.

use std::collections::BTreeMap;

use towpath_core::{Error, ErrorKind, Result};

use super::STORE;
use super::manifest::{self, Manifest, difference};
use super::place::Place;
use crate::wiring::{Depth, Verified, verify_store};

/// What was read, and what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    /// Of a backup that has one.
    pub manifest: Option<Manifest>,
    /// Files that were compared with the manifest, and their bytes.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What the store has; absent in a bucket, whose files are compared with the manifest alone.
    pub store: Option<Verified>,
    /// Everything that is wrong.
    pub faults: Vec<String>,
}

/// Reads a backup or the store of a data folder.
///
/// # Errors
/// `NotFound` when there is neither, `Unavailable` when the store is in use or for I/O.
pub async fn verify(place: &Place) -> Result<Report> {
    let mut report = Report::default();
    if let Place::Folder(folder) = place
        && !folder.join(STORE).exists()
        && !folder.join(manifest::NAME).exists()
    {
        let store = verify_store(folder, Depth::All)?;
        report.faults.extend(store.faults.iter().cloned());
        report.store = Some(store);
        return Ok(report);
    }
    match place.manifest().await {
        Ok(Some(manifest)) => {
            compare(place, &manifest, &mut report).await?;
            report.manifest = Some(manifest);
        }
        Ok(None) => report.faults.push(incomplete(place).to_string()),
        Err(error) if error.kind() == ErrorKind::Corrupt => report.faults.push(error.chain()),
        Err(error) => return Err(error),
    }
    if let Place::Folder(folder) = place {
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
    }
    Ok(report)
}

async fn compare(place: &Place, manifest: &Manifest, report: &mut Report) -> Result<()> {
    let mut there: BTreeMap<String, u64> = place.list().await?.into_iter().collect();
    there.remove(manifest::NAME);
    for expected in &manifest.files {
        if there.remove(&expected.name).is_none() {
            report
                .faults
                .push(format!("`{}` is missing", expected.name));
            continue;
        }
        let found = match place.hash(&expected.name).await {
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
pub(super) fn incomplete(place: &Place) -> Error {
    Error::corrupt(format!(
        "the backup in `{place}` is not complete: it has no `{}`, which is written last. It was cut off, or made by Towpath 0.1.0; \
         `towpath restore --without-manifest` restores one of 0.1.0 that lacks nothing",
        manifest::NAME
    ))
}
